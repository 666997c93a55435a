//! What a client says it knows (`If-None-Match`), and what it means to change (`If-Match`).

use reqwest::header::{ETAG, IF_MATCH, IF_NONE_MATCH};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::server::{Server, Site, inline, on_both, photo, read};

on_both!(what_is_known_is_not_sent_again, what_was_changed_meanwhile_is_not_changed);

async fn what_is_known_is_not_sent_again(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let job = server.run("c", "identify", &json!({ "image": inline(&photo(&[1])) })).await;
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let answer = server.request(Method::GET, &path).send().await.unwrap();
    let etag = answer.headers()[ETAG].to_str().unwrap().to_owned();
    let again = server.request(Method::GET, &path).header(IF_NONE_MATCH, &etag).send().await.unwrap();
    assert_eq!((again.status(), again.headers()[ETAG].to_str().unwrap()), (StatusCode::NOT_MODIFIED, etag.as_str()));
    assert!(again.bytes().await.unwrap().is_empty());
    let (status, other) = read(server.request(Method::GET, &path).header(IF_NONE_MATCH, "\"0\"")).await;
    assert_eq!((status, &other["state"]), (StatusCode::OK, &json!("succeeded")));

    // A change is the end of a wait: here the one from waiting to running, or straight to the end.
    let job = server.submit("c", "identify", &json!({ "image": inline(&photo(&[2])) })).await;
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let known = format!("\"{}\"", job["version"]);
    let request = server.request(Method::GET, &path).header(IF_NONE_MATCH, known).header("prefer", "wait=30");
    let (status, changed) = read(request).await;
    assert_eq!(status, StatusCode::OK, "{changed}");
    assert!(changed["version"].as_i64() > job["version"].as_i64(), "{changed}");
    server.stop().await;
}

impl Server {
    async fn etag(&self, path: &str) -> String {
        let answer = self.request(Method::GET, path).send().await.unwrap();
        answer.headers()[ETAG].to_str().unwrap().to_owned()
    }

    pub(crate) async fn patch(&self, path: &str, etag: &str, changes: &Value) -> (StatusCode, Value) {
        read(self.request(Method::PATCH, path).header(IF_MATCH, etag).json(changes)).await
    }
}

async fn what_was_changed_meanwhile_is_not_changed(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let person = |external_id: &str| json!({ "external_id": external_id, "name": "Ann" });
    let make = async |external_id| {
        let request = server.request(Method::POST, "/v1/collections/c/persons").json(&person(external_id));
        let (status, made) = read(request).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        format!("/v1/collections/c/persons/{}", made["id"].as_str().unwrap())
    };
    let (path, _) = (make("a").await, make("b").await);
    let etag = server.etag(&path).await;
    let (status, renamed) = server.patch(&path, &etag, &json!({ "name": "Anna" })).await;
    assert_eq!((status, &renamed["name"], &renamed["external_id"]), (StatusCode::OK, &json!("Anna"), &json!("a")));
    let (status, problem) = server.patch(&path, &etag, &json!({ "name": "Anne" })).await;
    assert_eq!((status, &problem["code"]), (StatusCode::PRECONDITION_FAILED, &json!("version_mismatch")));
    let etag = server.etag(&path).await;
    let (status, problem) = server.patch(&path, &etag, &json!({ "external_id": "b" })).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("person_exists")));
    let (status, problem) = server.patch(&path, &etag, &json!({ "external_id": null, "name": null })).await;
    assert_eq!((status, &problem["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("invalid_request")));
    let (status, anonymous) = server.patch(&path, "*", &json!({ "name": null })).await;
    assert_eq!((status, &anonymous["name"], &anonymous["external_id"]), (StatusCode::OK, &Value::Null, &json!("a")));
    let etag = server.etag(&path).await;
    let (status, described) = server.patch(&path, &etag, &json!({ "description": "of the third row" })).await;
    assert_eq!((status, &described["description"]), (StatusCode::OK, &json!("of the third row")));
    assert_ne!(server.etag(&path).await, etag, "it is a part of what can be changed");
    let (status, _) = server.patch(&path, "*", &json!({ "description": "x".repeat(2001) })).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let nobody = "/v1/collections/c/persons/01900000-0000-7000-8000-000000000000";
    assert_eq!(server.patch(nobody, "*", &json!({ "name": "x" })).await.0, StatusCode::NOT_FOUND);

    let etag = server.etag("/v1/collections/c").await;
    let settings = |matches: u32| json!({ "settings": { "max_matches": matches } });
    let (status, changed) = server.patch("/v1/collections/c", &etag, &settings(2)).await;
    assert_eq!((status, &changed["settings"]["max_matches"]), (StatusCode::OK, &json!(2)));
    let (status, problem) = server.patch("/v1/collections/c", &etag, &settings(3)).await;
    assert_eq!((status, &problem["code"]), (StatusCode::PRECONDITION_FAILED, &json!("version_mismatch")));
    server.stop().await;
}
