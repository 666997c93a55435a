//! Who may do what: keys, their scopes and collections, their ends, and their limits.

mod limits;
pub(crate) mod reach;
mod scopes;

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::server::{Server, Site, command, http, inline, on_both, photo, read};

on_both!(
    keys_are_managed_over_http,
    a_kiosk_sees_what_it_made,
    a_key_gives_no_more_than_it_has,
    what_is_revoked_ends_everywhere,
    no_key_outlives_its_maker,
);

const TIMEOUT: Duration = Duration::from_secs(60);
const NONE: &str = "00000000-0000-7000-8000-000000000000";

/// A site whose servers ask for keys, and are called with one that may do everything.
pub(crate) async fn keyed(mut site: Site) -> Site {
    if !site.has_services() {
        let admin = site.make_key(&["--scope", "admin"]).await;
        site.call_with(&admin);
    }
    site
}

/// Sends a request with another token than the server's own, or with none.
async fn send(
    server: &Server,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: Option<&Value>,
) -> (StatusCode, Value) {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = http(token, TIMEOUT).request(method, format!("{}{path}", server.address));
    let request = request.header("idempotency-key", Uuid::now_v7().to_string());
    read(if let Some(body) = body { request.json(body) } else { request }).await
}

pub(crate) fn token(made: &Value) -> &str {
    made["token"].as_str().unwrap()
}

/// The problem without what tells one request from another.
fn masked(problem: &Value) -> String {
    let mut problem = problem.clone();
    problem["request_id"] = json!("ID");
    let text = problem.to_string();
    let mut masked = String::new();
    let mut rest = text.as_str();
    // An id has 36 characters, a place of its own, and nothing else looks like it.
    while let Some(at) =
        rest.char_indices().find_map(|(at, _)| rest.get(at..at + 36).filter(|id| is_id(id)).map(|_| at))
    {
        masked.push_str(&rest[..at]);
        masked.push_str("ID");
        rest = &rest[at + 36..];
    }
    masked + rest
}

fn is_id(text: &str) -> bool {
    text.parse::<uuid::Uuid>().is_ok()
}

async fn keys_are_managed_over_http(site: Site) {
    let site = keyed(site).await;
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let wanted = json!({ "name": "door", "scopes": ["identify"], "collections": ["c"], "expires_in_s": 3600,
        "limits": { "requests_per_minute": 1000 } });
    let request = server.request(Method::POST, "/v1/api-keys").json(&wanted);
    let answer = request.send().await.unwrap();
    let headers = answer.headers().clone();
    let made: Value = answer.json().await.unwrap();
    let path = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    assert_eq!(
        (headers["location"].to_str().unwrap(), headers["cache-control"].to_str().unwrap()),
        (&*path, "no-store")
    );
    let shown = server.get(&path).await;
    assert!(shown["token"].is_null() && shown["secret"].is_null(), "a token is shown once: {shown}");
    let collection = server.get("/v1/collections/c").await["id"].clone();
    assert_eq!((&shown["collections"], &shown["state"]), (&json!([collection]), &json!("active")));
    assert_eq!(shown["limits"], json!({ "requests_per_minute": 1000, "jobs_in_flight": null, "images_per_day": null }));
    let listed = server.get("/v1/api-keys").await;
    let ids: Vec<&Value> = listed["items"].as_array().unwrap().iter().map(|key| &key["id"]).collect();
    assert_eq!((ids.len(), ids[1]), (2, &made["id"]));
    let wrong = [
        json!({ "name": "x", "scopes": [] }),
        json!({ "name": " ", "scopes": ["read"] }),
        json!({ "name": "x", "scopes": ["root"] }),
        json!({ "name": "x", "scopes": ["read"], "collections": [] }),
        json!({ "name": "x", "scopes": ["read"], "expires_in_s": 1u64 << 60 }),
        json!({ "name": "x", "scopes": ["read"], "limits": { "jobs_in_flight": -1 } }),
    ];
    for wrong in wrong {
        let (status, body) = read(server.request(Method::POST, "/v1/api-keys").json(&wrong)).await;
        assert_eq!((status, &body["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("invalid_request")), "{wrong}");
    }
    server.stop().await;
}

async fn a_kiosk_sees_what_it_made(site: Site) {
    let site = keyed(site).await;
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let made = site.make_key(&["--scope", "identify", "--collection", "c"]).await;
    let path = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    let body = json!({ "image": inline(&photo(&[1])) });
    let (status, job) = send(&server, "POST", "/v1/collections/c/identify", Some(token(&made)), Some(&body)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{job}");
    let of_others = server.run("c", "identify", &body).await;
    let seen = async |job: &Value| {
        send(&server, "GET", &format!("/v1/jobs/{}", job["id"].as_str().unwrap()), Some(token(&made)), None).await.0
    };
    assert_eq!((seen(&job).await, seen(&of_others).await), (StatusCode::OK, StatusCode::NOT_FOUND));
    let rotated = server.request(Method::POST, &format!("{path}/rotate")).json(&json!({ "grace_s": 3600 }));
    let (status, next) = read(rotated).await;
    assert_eq!(
        (status, &next["name"], &next["scopes"]),
        (StatusCode::CREATED, &made["name"], &made["scopes"]),
        "{next}"
    );
    let (_, own) = send(&server, "GET", "/v1/jobs", Some(token(&next)), None).await;
    assert_eq!(own["items"][0]["id"], job["id"], "what the key made is its successor's own");
    let (_, old) = send(&server, "GET", "/v1/jobs", Some(token(&made)), None).await;
    assert_eq!(old["items"].as_array().unwrap().len(), 1, "the old token is good for a while");
    let (status, again) = read(server.request(Method::POST, &format!("{path}/rotate")).json(&json!({}))).await;
    assert_eq!((status, &again["code"]), (StatusCode::CONFLICT, &json!("api_key_rotated")));

    let used = || async { server.get(&path).await["last_used_at"].clone() };
    let began = Instant::now();
    while used().await.is_null() {
        assert!(began.elapsed() < TIMEOUT, "its use is not noted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.delete(&path).await, StatusCode::NO_CONTENT);
    assert_eq!(server.get(&path).await["state"], "revoked");
    let admin = server.get("/v1/api-keys").await["items"][0].clone();
    let last = server.request(Method::DELETE, &format!("/v1/api-keys/{}", admin["id"].as_str().unwrap()));
    let (status, refused) = read(last).await;
    assert_eq!((status, &refused["code"]), (StatusCode::CONFLICT, &json!("last_admin_key")), "{refused}");
    server.stop().await;
}

async fn a_key_gives_no_more_than_it_has(site: Site) {
    let site = keyed(site).await;
    let server = Server::start(&site).await;
    for name in ["c", "d"] {
        server.make_collection(name).await;
    }
    let of_c = site.make_key(&["--scope", "admin", "--collection", "c", "--jobs-in-flight", "5"]).await;
    let make = async |body: Value| send(&server, "POST", "/v1/api-keys", Some(token(&of_c)), Some(&body)).await;
    let wanted = |limit: u32| json!({ "name": "x", "scopes": ["write"], "collections": ["c"], "limits": { "jobs_in_flight": limit } });
    assert_eq!(make(wanted(5)).await.0, StatusCode::CREATED);
    for limit in [0, 6] {
        assert_eq!(make(wanted(limit)).await.1["code"], "invalid_request");
    }
    let (status, body) = make(json!({ "name": "x", "scopes": ["read"], "limits": { "jobs_in_flight": 1 } })).await;
    assert_eq!((status, &body["code"]), (StatusCode::FORBIDDEN, &json!("forbidden")), "{body}");
    let (status, body) = make(json!({ "name": "x", "scopes": ["read"], "collections": ["d"] })).await;
    assert_eq!((status, &body["code"]), (StatusCode::NOT_FOUND, &json!("collection_not_found")), "{body}");
    let (status, body) =
        send(&server, "POST", "/v1/collections", Some(token(&of_c)), Some(&json!({ "name": "d" }))).await;
    assert_eq!((status, &body["code"]), (StatusCode::FORBIDDEN, &json!("forbidden")), "{body}");
    let writer = site.make_key(&["--scope", "write"]).await;
    let (status, body) = send(&server, "POST", "/v1/api-keys", Some(token(&writer)), Some(&wanted(1))).await;
    assert_eq!((status, &body["code"]), (StatusCode::FORBIDDEN, &json!("forbidden")), "{body}");
    server.stop().await;
}

async fn what_is_revoked_ends_everywhere(site: Site) {
    let site = keyed(site).await;
    let server = Server::start(&site).await;
    let key = site.make_key(&["--scope", "read", "--expires", "1h"]).await;
    let status = async || send(&server, "GET", "/v1/collections", Some(token(&key)), None).await.0;
    assert_eq!(status().await, StatusCode::OK);
    // Beside the server, which has the key in its memory.
    let mut revoke = command();
    revoke.args(["keys", "revoke", key["prefix"].as_str().unwrap()]).envs(site.settings());
    if !site.has_services() {
        revoke.arg("--data-dir").arg(site.folder());
    }
    assert!(revoke.output().await.unwrap().status.success());
    let began = Instant::now();
    while status().await == StatusCode::OK {
        assert!(began.elapsed() < Duration::from_millis(2500), "it is revoked within two seconds");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(status().await, StatusCode::UNAUTHORIZED);
    let short = site.make_key(&["--scope", "read", "--expires", "1s"]).await;
    let began = Instant::now();
    while send(&server, "GET", "/v1/collections", Some(token(&short)), None).await.0 == StatusCode::OK {
        assert!(began.elapsed() < Duration::from_secs(4), "it ends by itself");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.stop().await;
}

async fn no_key_outlives_its_maker(site: Site) {
    let site = keyed(site).await;
    let server = Server::start(&site).await;
    let maker = site.make_key(&["--scope", "admin", "--expires", "1h"]).await;
    let make = async |expires_in_s: Value| {
        let wanted = json!({ "name": "x", "scopes": ["read"], "expires_in_s": expires_in_s });
        send(&server, "POST", "/v1/api-keys", Some(token(&maker)), Some(&wanted)).await
    };
    for too_long in [Value::Null, json!(3601)] {
        let (status, problem) = make(too_long).await;
        assert_eq!((status, &problem["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("invalid_request")));
        assert_eq!(problem["errors"][0]["pointer"], "#/expires_in_s");
    }
    let (status, short) = make(json!(3000)).await;
    assert_eq!(status, StatusCode::CREATED);
    // Nor does it get one by rotating another's; its own goes on.
    let endless = site.make_key(&["--scope", "read"]).await;
    for (key, expected) in
        [(&endless, StatusCode::FORBIDDEN), (&short, StatusCode::CREATED), (&maker, StatusCode::CREATED)]
    {
        let path = format!("/v1/api-keys/{}/rotate", key["id"].as_str().unwrap());
        let (status, answer) = send(&server, "POST", &path, Some(token(&maker)), Some(&json!({}))).await;
        assert_eq!(status, expected, "{answer}");
    }
    server.stop().await;
}

/// Whoever leads a browser here has not been let in.
#[tokio::test]
async fn an_open_server_answers_no_page_of_another_site() {
    let site = Site::embedded();
    let server = Server::start(&site).await;
    let asked = async |name: &str, value: &str| {
        let request = server.request(Method::GET, "/v1/collections").header(name, value);
        request.send().await.unwrap().status()
    };
    let own = server.address.split_once("://").unwrap().1;
    for (name, value) in [("host", own), ("host", "localhost:1"), ("host", "[::1]"), ("sec-fetch-site", "same-origin")]
    {
        assert_eq!(asked(name, value).await, StatusCode::OK, "{name}: {value}");
    }
    let foreign =
        [("host", "rebound.example"), ("sec-fetch-site", "cross-site"), ("origin", "https://elsewhere.example")];
    for (name, value) in foreign {
        assert_eq!(asked(name, value).await, StatusCode::FORBIDDEN, "{name}: {value}");
    }
    server.stop().await;
}

#[tokio::test]
async fn an_open_server_closes_with_its_first_key() {
    let site = Site::embedded();
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let made = site.make_key(&["--scope", "admin"]).await;
    let began = Instant::now();
    while send(&server, "GET", "/v1/collections", None, None).await.0 == StatusCode::OK {
        assert!(began.elapsed() < Duration::from_millis(2500), "it closes within two seconds");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (status, body) = send(&server, "GET", "/v1/collections", Some(token(&made)), None).await;
    assert_eq!((status, body["items"].as_array().unwrap().len()), (StatusCode::OK, 1));
    assert_eq!(send(&server, "GET", "/readyz", None, None).await.0, StatusCode::OK);
    let mut revoke = command();
    revoke.args(["keys", "revoke", made["id"].as_str().unwrap(), "--data-dir"]).arg(site.folder());
    assert!(revoke.output().await.unwrap().status.success());
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let closed = async |server: &Server| send(server, "GET", "/v1/collections", None, None).await.0;
    assert_eq!(closed(&server).await, StatusCode::UNAUTHORIZED, "the end of the last key opens nothing");
    server.stop().await;
    let server = Server::start(&site).await;
    assert_eq!(closed(&server).await, StatusCode::UNAUTHORIZED);
    server.stop().await;
}

#[tokio::test]
async fn an_address_for_others_needs_a_key() {
    let site = Site::embedded();
    let serve = || {
        let mut serve = command();
        serve.args(["serve", "--bind", "0.0.0.0:0", "--data-dir"]).arg(site.folder());
        serve
    };
    let output = tokio::time::timeout(TIMEOUT, serve().output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("face-id keys create --name NAME --scope admin"), "{text}");
    site.make_key(&["--scope", "admin"]).await;
    let mut process = serve().stdout(std::process::Stdio::piped()).spawn().unwrap();
    crate::server::first_line(&mut process, "listening on http://0.0.0.0:").await;
    process.kill().await.unwrap();
}

#[tokio::test]
async fn an_api_on_services_needs_a_key() {
    let site = Site::services().await;
    let listed = command().args(["keys", "list", "--json"]).envs(site.settings()).output().await.unwrap();
    let keys: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let id = keys[0]["id"].as_str().unwrap();
    let revoked = command().args(["keys", "revoke", id]).envs(site.settings()).output().await.unwrap();
    assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
    let mut api = command();
    api.args(["api", "--bind", "127.0.0.1:0"]).envs(site.settings());
    let output = tokio::time::timeout(TIMEOUT, api.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("face-id keys create --name NAME --scope admin"), "{text}");
}

#[tokio::test]
async fn commands_bring_a_key_along() {
    let site = keyed(Site::embedded()).await;
    let library = tempfile::tempdir().unwrap();
    std::fs::write(library.path().join("1.png"), photo(&[1])).unwrap();
    let index = |more: &[&str]| {
        let mut index = command();
        index.arg("index").arg(library.path()).args(["--collection", "c"]).args(more);
        index
    };
    // On the data folder, where the command may do anything: one that it starts itself, and one that runs.
    let folder = site.folder().to_str().unwrap();
    let output = index(&["--data-dir", folder]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let root = library.path().to_str().unwrap();
    let server = Server::start_with(&site, &[("FACE_ID_IMPORT__ROOTS", root)]).await;
    let output = index(&["--data-dir", folder]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let keys = server.get("/v1/api-keys").await;
    assert_eq!(keys["items"].as_array().unwrap().len(), 1, "the commands' own keys are gone: {keys}");
    // By its address, it is a client like any other.
    let output = index(&["--server", &server.address]).output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("FACE_ID_API_KEY"), "{text}");
    let output = index(&["--server", &server.address]).envs(server.key_setting()).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    server.stop().await;
}

#[tokio::test]
async fn the_command_lists_and_rotates() {
    let site = Site::embedded();
    let keys = async |arguments: &[&str]| {
        let mut keys = command();
        keys.arg("keys").args(arguments).arg("--data-dir").arg(site.folder());
        let output = keys.output().await.unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (found, _, why) = keys(&["list"]).await;
    assert!(!found && why.contains("there is no database"), "{why}");
    let (_, made, why) = keys(&["create", "--name", "door 7", "--scope", "read", "--scope", "identify"]).await;
    assert!(made.contains("door 7") && made.contains("read, identify"), "{made}{why}");
    let token = made.lines().find(|line| line.starts_with("fid_")).unwrap();
    let prefix = &token[4..16];
    let (_, next, why) = keys(&["rotate", prefix, "--grace", "0s", "--token"]).await;
    assert!(next.starts_with("fid_") && next.lines().count() == 1 && !next.contains(token), "{next}{why}");
    let (_, listed, _) = keys(&["list"]).await;
    let row = |prefix: &str| listed.lines().find(|line| line.contains(prefix)).unwrap().to_owned();
    assert!(row(prefix).contains("expired") && row(&next[4..16]).contains("active"), "{listed}");
    assert!(!listed.contains(&token[17..]), "secrets are not shown again");
    let refused = [
        (&["rotate", prefix][..], "was rotated into"),
        (&["revoke", "door 7"], "there is no key door 7"),
        (&["create", "--name", "x", "--scope", "root"], "read, identify, write and admin"),
        (&["create", "--name", "x", "--scope", "read", "--collection", "c"], "there is no collection c"),
    ];
    for (arguments, wanted) in refused {
        let (done, _, why) = keys(arguments).await;
        assert!(!done && why.contains(wanted), "{arguments:?}: {why}");
    }
}
