//! Unknown faces come together by themselves, and users say who they are.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::server::{Server, Site, command, inline, on_both, photo, read};

on_both!(unknown_faces_come_together, a_cluster_gets_a_name, clusters_are_changed_by_hand);

const CLUSTERS: &str = "/v1/collections/c/clusters";

async fn index(server: &Server, people: &[u32]) -> Value {
    let job = server.run("c", "index", &json!({ "image": inline(&photo(people)) })).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    job["result"].clone()
}

/// The clusters once no face waits to be looked at.
async fn clusters(server: &Server) -> Vec<Value> {
    for _ in 0..300 {
        let page = server.get(CLUSTERS).await;
        if page["pending"] == 0 {
            return page["items"].as_array().unwrap().clone();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("faces still wait: {}", server.get(CLUSTERS).await);
}

fn sizes(clusters: &[Value]) -> Vec<i64> {
    clusters.iter().map(|cluster| cluster["faces"].as_i64().unwrap()).collect()
}

fn path(cluster: &Value, what: &str) -> String {
    format!("{CLUSTERS}/{}{what}", cluster["id"].as_str().unwrap())
}

async fn post(server: &Server, path: &str, body: &Value) -> (StatusCode, Value) {
    read(server.request(Method::POST, path).json(body)).await
}

async fn edit(server: &Server, cluster: &Value, what: &str, body: &Value) -> Value {
    let (status, answer) = post(server, &path(cluster, what), body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

async fn undo(server: &Server, edited: &Value) -> StatusCode {
    let path = format!("/v1/collections/c/cluster-changes/{}/undo", edited["change_id"].as_str().unwrap());
    server.request(Method::POST, &path).send().await.unwrap().status()
}

/// A server on which person 1 was seen three times, 2 twice, and others once.
async fn seen(site: &Site) -> Server {
    let server = Server::start(site).await;
    server.make_collection("c").await;
    for people in [[1, 2], [1, 3], [1, 4], [2, 5]] {
        index(&server, &people).await;
    }
    assert_eq!(sizes(&clusters(&server).await), [3, 2], "the largest first, and nobody who was seen once");
    server
}

async fn unknown_faces_come_together(site: Site) {
    let server = seen(&site).await;
    let found = clusters(&server).await;
    let faces = server.get(&path(&found[0], "/faces")).await;
    let images: Vec<&Value> = faces["items"].as_array().unwrap().iter().map(|face| &face["image_id"]).collect();
    assert_eq!(images.len(), 3);
    assert!(images[0] != images[1] && images[1] != images[2], "two faces of one picture are two people");
    assert_eq!(found[0]["cover"].as_array().unwrap().len(), 3);
    index(&server, &[2, 6]).await;
    index(&server, &[2, 7]).await;
    let found = clusters(&server).await;
    assert_eq!(sizes(&found), [4, 3]);
    let page = server.get(&format!("{CLUSTERS}?limit=1")).await;
    let next = format!("{CLUSTERS}?limit=1&cursor={}", page["next_cursor"].as_str().unwrap_or_default());
    let next = server.get(&next).await;
    assert_eq!([&page["items"][0]["id"], &next["items"][0]["id"]], [&found[0]["id"], &found[1]["id"]]);
    assert_eq!(next["next_cursor"], Value::Null);
    // A face that is deleted is in no cluster any more.
    let face = faces["items"][0]["id"].as_str().unwrap();
    let deleted = server.request(Method::DELETE, &format!("/v1/collections/c/faces/{face}")).send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::ACCEPTED);
    assert_eq!(sizes(&clusters(&server).await), [4, 2]);
    // The leader that comes after a restart goes on from what is stored.
    server.stop().await;
    let server = Server::start(&site).await;
    index(&server, &[1, 8]).await;
    assert_eq!(sizes(&clusters(&server).await), [4, 3]);
    server.stop().await;
}

async fn a_cluster_gets_a_name(site: Site) {
    let server = seen(&site).await;
    let found = clusters(&server).await;
    let named = edit(&server, &found[0], "/name", &json!({ "person": { "external_id": "ann", "name": "Ann" } })).await;
    let ann = named["cluster"]["person_id"].clone();
    let job = server.run("c", "identify", &json!({ "image": inline(&photo(&[1])) })).await;
    assert_eq!(job["result"]["faces"][0]["matches"][0]["external_id"], "ann", "its cover forms templates: {job}");
    let faces = server.get(&format!("/v1/collections/c/persons/{}/faces", ann.as_str().unwrap())).await;
    assert_eq!(faces["items"].as_array().unwrap().len(), 3);
    assert_eq!(clusters(&server).await.len(), 2, "named clusters are listed too");
    let unnamed = server.get(&format!("{CLUSTERS}?named=false")).await;
    assert_eq!(unnamed["items"].as_array().unwrap().len(), 1);

    // Without a template, what joins the cluster becomes the person's by that.
    let bob = json!({ "person": { "external_id": "bob" }, "confirmed": [] });
    edit(&server, &found[1], "/name", &bob).await;
    let seen = index(&server, &[2, 9]).await["faces"].clone();
    let seen: Vec<&Value> = seen.as_array().unwrap().iter().map(|face| &face["face_id"]).collect();
    assert_eq!(sizes(&clusters(&server).await), [3, 3]);
    let joined = server.get(&path(&found[1], "/faces")).await;
    let joined: Vec<&Value> = joined["items"].as_array().unwrap().iter().collect();
    assert!(joined.iter().all(|face| face["assigned_by"] == "cluster"), "{joined:?}");
    let new = joined.iter().filter(|face| seen.contains(&&face["id"])).count();
    assert_eq!(new, 1, "one of the two on the new picture: {joined:?}");

    assert_eq!(undo(&server, &named).await, StatusCode::NO_CONTENT);
    assert_eq!(undo(&server, &named).await, StatusCode::CONFLICT);
    assert_eq!(server.get(&path(&found[0], "")).await["person_id"], Value::Null);
    let job = server.run("c", "identify", &json!({ "image": inline(&photo(&[1])) })).await;
    assert_ne!(job["result"]["faces"][0]["decision"], "match", "{job}");
    server.stop().await;
}

async fn clusters_are_changed_by_hand(site: Site) {
    let server = seen(&site).await;
    let found = clusters(&server).await;
    let faces = server.get(&path(&found[0], "/faces")).await;
    let split = edit(&server, &found[0], "/split", &json!({ "faces": [faces["items"][2]["id"]] })).await;
    assert_eq!(split["cluster"]["faces"], 1);
    index(&server, &[1, 8]).await;
    assert_eq!(sizes(&clusters(&server).await)[..2], [3, 2], "what was split off does not come back by itself");
    let merged = edit(&server, &found[0], "/merge", &json!({ "clusters": [found[1]["id"]] })).await;
    assert_eq!(merged["cluster"]["faces"], 5);
    let (status, gone) = post(&server, &path(&found[1], "/merge"), &json!({ "clusters": [found[0]["id"]] })).await;
    assert_eq!((status, &gone["code"]), (StatusCode::NOT_FOUND, &json!("cluster_not_found")));
    assert_eq!(undo(&server, &merged).await, StatusCode::NO_CONTENT);
    assert_eq!(sizes(&clusters(&server).await), [3, 2]);
    let changes = server.get("/v1/collections/c/cluster-changes").await;
    let kinds: Vec<&Value> = changes["items"].as_array().unwrap().iter().map(|change| &change["kind"]).collect();
    assert_eq!(kinds, ["merge", "split"]);

    let nobody = "0192aaaa-0000-7000-8000-000000000000";
    let cases = [
        ("/merge", json!({ "clusters": [] }), StatusCode::UNPROCESSABLE_ENTITY, "invalid_request"),
        ("/merge", json!({ "clusters": [found[0]["id"]] }), StatusCode::UNPROCESSABLE_ENTITY, "invalid_request"),
        ("/merge", json!({ "clusters": [nobody] }), StatusCode::NOT_FOUND, "cluster_not_found"),
        ("/split", json!({ "faces": [nobody] }), StatusCode::UNPROCESSABLE_ENTITY, "invalid_request"),
        ("/name", json!({ "person": { "id": nobody } }), StatusCode::NOT_FOUND, "person_not_found"),
        ("/name", json!({ "person": {} }), StatusCode::UNPROCESSABLE_ENTITY, "invalid_request"),
    ];
    for (what, body, status, code) in cases {
        let (was, answer) = post(&server, &path(&found[0], what), &body).await;
        assert_eq!((was, &answer["code"]), (status, &json!(code)), "{what} {body}: {answer}");
    }
    let change = format!("/v1/collections/c/cluster-changes/{nobody}/undo");
    assert_eq!(post(&server, &change, &json!({})).await.1["code"], "cluster_change_not_found");
    server.stop().await;
}

#[tokio::test]
async fn a_collection_that_was_too_large_is_clustered_when_there_is_room() {
    let site = Site::embedded();
    let server = Server::start_with(&site, &[("FACE_ID_CLUSTERING__MAX_FACES", "2")]).await;
    server.make_collection("c").await;
    for people in [[1, 2], [1, 3]] {
        index(&server, &people).await;
    }
    assert_eq!(clusters(&server).await, Vec::<Value>::new(), "four faces are too many, and none waits");
    server.stop().await;
    let server = Server::start(&site).await;
    for _ in 0..300 {
        if sizes(&clusters(&server).await) == [2] {
            return server.stop().await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("nothing was clustered: {}", server.get(CLUSTERS).await);
}

#[tokio::test]
async fn the_command_waits_for_the_clusters() {
    let site = Site::embedded();
    let library = tempfile::tempdir().unwrap();
    for (n, people) in [[1, 2], [1, 3], [1, 4], [2, 5]].into_iter().enumerate() {
        std::fs::write(library.path().join(format!("{n}.png")), photo(&people)).unwrap();
    }
    let mut index = command();
    index.arg("index").arg(library.path()).args(["--collection", "c", "--data-dir"]).arg(site.folder().join("data"));
    let output = index.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let summary: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let told = (&summary["unknown_faces"], &summary["clusters"], &summary["pending"]);
    assert_eq!(told, (&json!(8), &json!(2), &json!(0)), "{text}");
    assert!(text.contains("/v1/collections/c/clusters"), "how to list them: {text}");
}
