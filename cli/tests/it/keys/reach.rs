//! What lies outside a key's collections answers like what is not there, whatever the operation.

use std::collections::HashMap;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::scopes::{Operation, operations};
use super::{keyed, masked, token};
use crate::batches::{Library, pictures, post, until};
use crate::calibrate::calibration;
use crate::library::index;
use crate::reprocess::Models;
use crate::server::{Server, Site, http, inline, on_both, photo, read};

on_both!(what_is_outside_a_grant_is_not_there);

/// Ids by the names that the document has for them.
pub(crate) type Ids = HashMap<&'static str, String>;
/// What stands for each parameter of a path.
type Values<'a> = &'a dyn Fn(&str) -> String;

async fn what_is_outside_a_grant_is_not_there(site: Site) {
    let site = keyed(site).await;
    let library = Library::new(&site, &pictures(40..42)).await;
    let models = Models::of(&site).await;
    let server = library.serve(&site, &models.settings()).await;
    let (foreign, own) = (fill(&site, &server, &library).await, "own");
    server.make_collection(own).await;
    let own_id = id(&server.get("/v1/collections/own").await);
    let before = state(&server).await;
    let key = site.make_key(&["--scope", "admin", "--collection", own]).await;
    let (mut compared, mut passed) = (0, 0);
    for operation in operations(&server).await {
        // Models are the installation's: whoever may read anything sees them.
        if operation.method == "GET" && operation.path.starts_with("/v1/models/") {
            continue;
        }
        let parameters: Vec<String> =
            operation.path.split('{').skip(1).map(|part| part.split_once('}').unwrap().0.to_owned()).collect();
        for name in ["name", "id"] {
            let collection = if name == "id" { foreign["collection"].clone() } else { "c".to_owned() };
            let absent = if name == "id" { Uuid::now_v7().to_string() } else { "absent".to_owned() };
            if !parameters.is_empty() {
                compared += 1;
                let there = |what: &str| if what == "collection" { collection.clone() } else { foreign[what].clone() };
                let nowhere =
                    |what: &str| if what == "collection" { absent.clone() } else { Uuid::now_v7().to_string() };
                passed += told_apart(&server, &key, &operation, (&there, &nowhere), &foreign).await;
            }
            if operation.query.iter().any(|parameter| parameter == "collection") && operation.method == "GET" {
                compared += 1;
                let asked = async |named: &str| {
                    ask(&server, &key, &operation, &format!("{}?collection={named}", operation.path), None).await
                };
                assert_eq!(asked(&collection).await, asked(&absent).await);
                assert_eq!(asked(&absent).await.0, StatusCode::NOT_FOUND);
            }
        }
        // In a collection of its own, what another one has.
        if parameters.len() > 1 {
            compared += 1;
            let there = |what: &str| if what == "collection" { own_id.clone() } else { foreign[what].clone() };
            let nowhere = |what: &str| if what == "collection" { own_id.clone() } else { Uuid::now_v7().to_string() };
            passed += told_apart(&server, &key, &operation, (&there, &nowhere), &foreign).await;
        }
    }
    let routes = operations(&server).await.len();
    let database = if site.has_services() { "services" } else { "embedded" };
    crate::contract::leave(
        &format!("reach-{database}"),
        &json!({ "routes": routes, "compared": compared, "unauthorised_passed": passed }),
    );
    assert_eq!(passed, 0, "requests that were told something of what is not theirs");
    assert!(compared > 80, "{compared} comparisons");
    in_bodies(&server, &key, &library, &foreign).await;
    lists_hold_only_what_is_own(&server, &key, &own_id).await;
    assert_eq!(state(&server).await, before, "nothing of it was changed");
    server.stop().await;
}

/// Compares the answers for what is there with those for what is not: 1 where they differ.
async fn told_apart(
    server: &Server,
    key: &Value,
    operation: &Operation,
    (there, nowhere): (Values<'_>, Values<'_>),
    ids: &Ids,
) -> usize {
    let body = body_of(operation, ids);
    let asked = ask(server, key, operation, &operation.path_with(there), body.clone()).await;
    let expected = ask(server, key, operation, &operation.path_with(nowhere), body).await;
    let what = format!("{} {}", operation.method, operation.path);
    // Webhook endpoints and models belong to no collection: a key of some is refused whatever it names.
    let is_of_none = ["/v1/webhook-", "/v1/models/"].iter().any(|path| operation.path.starts_with(path));
    let refused = if is_of_none { StatusCode::FORBIDDEN } else { StatusCode::NOT_FOUND };
    assert_eq!(expected.0, refused, "{what}: {}", expected.1);
    if asked != expected {
        eprintln!("{what} answers {asked:?} for what is there, and {expected:?} for what is not");
    }
    usize::from(asked != expected)
}

/// A good body of the operation. One without an entry here fails the test: add it.
fn body_of(operation: &Operation, ids: &Ids) -> Option<Value> {
    if !operation.body.iter().any(|media_type| media_type == "application/json") {
        return None;
    }
    let image = inline(&photo(&[1]));
    let end = operation.path.rsplit('/').next().unwrap();
    Some(match (operation.method.as_str(), end) {
        ("POST", "enroll") => json!({ "image": image, "person": { "external_id": "x" } }),
        ("POST", "index" | "identify") => json!({ "image": image }),
        ("POST", "verify") => json!({ "image": image, "other": { "image": image } }),
        ("POST", "persons") | ("PATCH", "{person}") => json!({ "name": "x" }),
        ("POST", "merge") if operation.path.contains("/clusters/") => json!({ "clusters": [Uuid::now_v7()] }),
        ("POST", "merge") => json!({ "into": Uuid::now_v7() }),
        ("POST", "reprocess") => json!({ "pipeline": "tiny-swapped" }),
        ("POST", "split") => json!({ "faces": [ids["face"]] }),
        ("POST", "name") => json!({ "person": { "external_id": "x" } }),
        ("POST", "calibrations") => calibration("tiny-sure", Some("c"), [0.1, 0.3, 0.5]),
        ("POST", "rotate" | "rotate-secret") => json!({}),
        ("PATCH", "{face}") => json!({ "hidden": true }),
        ("PATCH", "{collection}") => json!({ "settings": {} }),
        ("PATCH", "{endpoint}") => json!({ "description": "x" }),
        ("POST", "recover") => json!({ "since": "2026-11-26T00:00:00Z" }),
        (method, _) => panic!("there is no body for {method} {}", operation.path),
    })
}

/// The status, and the problem without ids.
async fn ask(
    server: &Server,
    key: &Value,
    operation: &Operation,
    path: &str,
    body: Option<Value>,
) -> (StatusCode, String) {
    let method = Method::from_bytes(operation.method.as_bytes()).unwrap();
    let mut request = http(Some(token(key)), super::TIMEOUT).request(method, format!("{}{path}", server.address));
    if let Some(body) = body {
        request = request.json(&body);
    } else if let Some(media_type) = operation.body.first() {
        request = request.header("content-type", media_type).body(photo(&[1]));
    }
    let (status, body) = read(request).await;
    (status, masked(&body).replace("absent", "c"))
}

/// Collections that a body names.
async fn in_bodies(server: &Server, key: &Value, library: &Library, foreign: &Ids) {
    let batch = |named: Value| json!({ "collection": named, "kind": "index", "source": library.source() });
    let calibrated = |named: &Value| calibration("tiny-sure", named.as_str(), [0.1, 0.3, 0.5]);
    let new_key = |named: Value| json!({ "name": "x", "scopes": ["read"], "collections": [named] });
    for named in [json!("c"), json!(foreign["collection"])] {
        let absent = json!(Uuid::now_v7());
        let cases = [
            ("/v1/batches", batch(named.clone()), batch(absent.clone())),
            ("/v1/calibrations", calibrated(&named), calibrated(&absent)),
            ("/v1/api-keys", new_key(named), new_key(absent)),
        ];
        for (path, there, nowhere) in cases {
            let asked = async |body: Value| {
                let (status, body) = super::send(server, "POST", path, Some(token(key)), Some(&body)).await;
                (status, masked(&body))
            };
            let expected = asked(nowhere).await;
            assert_eq!(expected.0, StatusCode::NOT_FOUND);
            assert_eq!(asked(there).await, expected, "{path}");
        }
    }
}

async fn lists_hold_only_what_is_own(server: &Server, key: &Value, own: &str) {
    let list = async |path: &str| {
        let (status, page) = super::send(server, "GET", path, Some(token(key)), None).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        page["items"].as_array().unwrap().clone()
    };
    let collections = list("/v1/collections").await;
    assert_eq!(collections.iter().map(id).collect::<Vec<_>>(), [own]);
    assert_eq!(list("/v1/jobs").await, [] as [Value; 0]);
    assert_eq!(list("/v1/batches").await, [] as [Value; 0]);
    assert_eq!(list("/v1/reprocess-runs").await, [] as [Value; 0]);
    assert_eq!(list("/v1/calibrations").await, [] as [Value; 0]);
    assert_eq!(list("/v1/erasures").await, [] as [Value; 0]);
    assert_eq!(list("/v1/api-keys").await.iter().map(id).collect::<Vec<_>>(), [id(key)]);
}

/// A collection `c` that has one of everything.
pub(crate) async fn fill(site: &Site, server: &Server, library: &Library) -> Ids {
    server.make_collection("c").await;
    let person = server.enroll("c", 1).await["person_id"].clone();
    let upload = server.upload("c", photo(&[1])).await;
    for seed in [2, 3] {
        index(server, &[30, seed]).await;
    }
    let (status, batch) =
        post(server, &json!({ "collection": "c", "kind": "index", "source": library.source() })).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{batch}");
    until(server, &batch, |batch| batch["state"] == "completed").await;
    let cluster = cluster(server).await;
    let path = format!("/v1/collections/c/clusters/{}/name", cluster.as_str().unwrap());
    let (status, named) = read(server.request(Method::POST, &path).json(&json!({ "person": { "id": person } }))).await;
    assert_eq!(status, StatusCode::OK, "{named}");
    let seen = server.get("/v1/collections/c/faces").await["items"][0].clone();
    let stranger = server.enroll("c", 9).await["person_id"].clone();
    let gone = format!("/v1/collections/c/persons/{}", stranger.as_str().unwrap());
    let (status, erasure) = read(server.request(Method::DELETE, &gone)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{erasure}");
    let job = server.get("/v1/jobs?kind=enroll").await["items"][0]["id"].clone();
    let key = site.make_key(&["--scope", "read", "--collection", "c"]).await["id"].clone();
    let collection = server.get("/v1/collections/c").await["id"].clone();
    let (endpoint, delivery) = told(server).await;
    let other = json!({ "pipeline": "tiny-swapped" });
    let (status, run) = read(server.request(Method::POST, "/v1/collections/c/reprocess").json(&other)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{run}");
    // Of a pipeline that it does not go by: nothing is decided otherwise for it.
    let body = calibration("tiny-sure", Some("c"), [0.1, 0.3, 0.5]);
    let (status, calibration) = read(server.request(Method::POST, "/v1/calibrations").json(&body)).await;
    assert_eq!(status, StatusCode::CREATED, "{calibration}");
    let ids = [
        ("calibration", calibration["id"].clone()),
        ("endpoint", endpoint),
        ("delivery", delivery),
        ("collection", collection),
        ("person", person),
        ("upload", upload),
        ("batch", batch["id"].clone()),
        ("cluster", cluster),
        ("change", named["change_id"].clone()),
        ("face", seen["id"].clone()),
        ("image", seen["image_id"].clone()),
        ("erasure", erasure["id"].clone()),
        ("job", job),
        ("key", key),
        ("run", run["id"].clone()),
        ("model", json!("tiny")),
    ];
    ids.into_iter().map(|(name, id)| (name, id.as_str().unwrap().to_owned())).collect()
}

/// A webhook endpoint, and what it was to be told.
async fn told(server: &Server) -> (Value, Value) {
    let wanted = json!({ "url": "https://hooks.invalid/" });
    let (status, made) = read(server.request(Method::POST, "/v1/webhook-endpoints").json(&wanted)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let path = format!("/v1/webhook-endpoints/{}/test", made["id"].as_str().unwrap());
    let (status, test) = read(server.request(Method::POST, &path)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{test}");
    (made["id"].clone(), test["delivery_id"].clone())
}

/// Unknown faces that came together.
async fn cluster(server: &Server) -> Value {
    for _ in 0..300 {
        let page = server.get("/v1/collections/c/clusters").await;
        if page["pending"] == 0 && !page["items"][0].is_null() {
            return page["items"][0]["id"].clone();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no cluster came")
}

/// All that requests might have changed.
async fn state(server: &Server) -> Vec<Value> {
    let mut state = vec![server.get("/v1/collections/c").await];
    for list in ["persons", "faces", "faces?hidden=true", "cluster-changes"] {
        state.push(server.get(&format!("/v1/collections/c/{list}")).await);
    }
    state.push(json!(server.get("/v1/api-keys").await["items"].as_array().unwrap()[1]["state"]));
    state
}

fn id(row: &Value) -> String {
    row["id"].as_str().unwrap().to_owned()
}
