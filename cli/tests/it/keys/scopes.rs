//! Every operation of `/openapi.json` asks for the scope that it names there, and nothing is open that should not be.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{NONE, keyed, masked, send, token};
use crate::server::{Server, Site, http, on_both};

on_both!(every_operation_asks_for_its_scope);

/// What needs no key.
const OPEN: [&str; 3] = ["/healthz", "/metrics", "/readyz"];

/// An operation of the document.
pub(super) struct Operation {
    pub(super) method: String,
    /// With names of parameters in braces.
    pub(super) path: String,
    /// Scopes of which one is needed; none of an open one.
    pub(super) scopes: Vec<String>,
    /// Names of its query's parameters.
    pub(super) query: Vec<String>,
    /// Media types of its body.
    pub(super) body: Vec<String>,
}

impl Operation {
    /// The path with this in the place of each parameter.
    pub(super) fn path_with(&self, value: impl Fn(&str) -> String) -> String {
        let mut path = self.path.clone();
        while let Some((before, rest)) = path.split_once('{') {
            let (name, after) = rest.split_once('}').unwrap();
            path = format!("{before}{}{after}", value(name));
        }
        path
    }
}

pub(super) async fn operations(server: &Server) -> Vec<Operation> {
    let document = server.get("/openapi.json").await;
    assert_eq!(document["components"]["securitySchemes"]["api_key"]["scheme"], "bearer");
    let mut found = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let scopes = operation["security"].as_array().into_iter().flatten();
            let scopes = scopes.flat_map(|one| one["api_key"].as_array().unwrap()).map(text).collect();
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let query = parameters.filter(|p| p["in"] == "query").map(|p| text(&p["name"])).collect();
            let body = operation["requestBody"]["content"].as_object().into_iter().flat_map(|c| c.keys().cloned());
            let (method, path) = (method.to_uppercase(), path.clone());
            found.push(Operation { method, path, scopes, query, body: body.collect() });
        }
    }
    assert!(found.len() > 40, "the document has all of them");
    found
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// What of the four a key with this one may do.
fn included(scope: &str) -> &'static [&'static str] {
    match scope {
        "read" => &["read"],
        "identify" => &["identify"],
        "write" => &["read", "identify", "write"],
        _ => &["read", "identify", "write", "admin"],
    }
}

async fn every_operation_asks_for_its_scope(site: Site) {
    let site = keyed(site).await;
    let server = Server::start(&site).await;
    let mut keys = Vec::new();
    for scope in ["read", "identify", "write", "admin"] {
        keys.push((scope, site.make_key(&["--scope", scope]).await));
    }
    let bad = bad_tokens(&site, &server).await;
    let mut open = Vec::new();
    for operation in operations(&server).await {
        let (method, path) = (&operation.method, operation.path_with(|_| NONE.to_owned()));
        if operation.scopes.is_empty() {
            let answer = http(None, super::TIMEOUT).get(format!("{}{path}", server.address)).send().await.unwrap();
            assert_ne!(answer.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
            open.push(path);
            continue;
        }
        let (status, absent) = send(&server, method, &path, None, None).await;
        assert_eq!((status, &absent["code"]), (StatusCode::UNAUTHORIZED, &json!("unauthenticated")), "{method} {path}");
        for bad in &bad {
            let (status, refused) = send(&server, method, &path, Some(bad), None).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path} with {bad}");
            assert_eq!(masked(&refused), masked(&absent), "nothing tells what is wrong with a key");
        }
        for (scope, key) in &keys {
            let (status, body) = send(&server, method, &path, Some(token(key)), None).await;
            if operation.scopes.iter().any(|needed| included(scope).contains(&needed.as_str())) {
                let refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];
                assert!(!refused.contains(&status), "{scope} is enough for {method} {path}: {body}");
            } else {
                assert_eq!(
                    (status, &body["code"]),
                    (StatusCode::FORBIDDEN, &json!("forbidden")),
                    "{scope}: {method} {path}"
                );
                let detail = body["detail"].as_str().unwrap();
                assert!(operation.scopes.iter().all(|needed| detail.contains(needed)), "{detail}");
            }
        }
    }
    open.sort();
    assert_eq!(open, OPEN);
    let answer = http(None, super::TIMEOUT).get(format!("{}/v1/jobs", server.address)).send().await.unwrap();
    assert_eq!(answer.headers()["www-authenticate"], "Bearer");
    server.stop().await;
}

/// Tokens that open nothing: of no form, of no key, of a key with another secret, of one that ended.
async fn bad_tokens(site: &Site, server: &Server) -> Vec<String> {
    let key = site.make_key(&["--scope", "admin"]).await;
    let good = token(&key).to_owned();
    let (head, secret) = good.split_at(17);
    assert!(head.starts_with("fid_") && head.ends_with('_'));
    let revoked = site.make_key(&["--scope", "admin"]).await;
    let path = format!("/v1/api-keys/{}", revoked["id"].as_str().unwrap());
    assert_eq!(server.delete(&path).await, StatusCode::NO_CONTENT);
    let expired = site.make_key(&["--scope", "admin", "--expires", "1ms"]).await;
    vec![
        "x".to_owned(),
        format!("fid_{}_{secret}", "0".repeat(12)),
        format!("{head}{}{}", if secret.starts_with('A') { 'B' } else { 'A' }, &secret[1..]),
        token(&revoked).to_owned(),
        token(&expired).to_owned(),
    ]
}
