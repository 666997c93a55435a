//! Faces that are matched again when templates come and go.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::library::{changed, index};
use crate::server::{Server, Site, inline, on_both, photo, read};

on_both!(
    faces_follow_the_templates,
    a_wrong_label_loses_what_it_gave,
    a_rematch_can_be_asked_for,
    a_rematch_survives_a_crash
);

/// Nothing here takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(30);

async fn person_of(server: &Server, face: &Value) -> Value {
    server.get(&format!("/v1/collections/c/faces/{}", face.as_str().unwrap())).await["person_id"].clone()
}

/// Waits until the face is that person's.
async fn until_person_is(server: &Server, face: &Value, person: &Value) {
    let began = Instant::now();
    while person_of(server, face).await != *person {
        assert!(began.elapsed() < PATIENCE, "face {face} should become {person}'s");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn rematch(server: &Server) -> Value {
    let (status, job) = read(server.request(Method::POST, "/v1/collections/c/rematch")).await;
    assert_eq!((status, &job["kind"]), (StatusCode::ACCEPTED, &json!("rematch")), "{job}");
    job
}

/// Asks for a rematch and waits for its result.
async fn rematched(server: &Server) -> Value {
    let job = server.ended(&rematch(server).await).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    job["result"].clone()
}

async fn faces_follow_the_templates(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let faces = index(&server, &[1, 2]).await;
    let stranger = |seed: usize| &faces[seed]["face_id"];
    let ann = server.enroll("c", 1).await;
    let mut is_ann = &Value::Null;
    let began = Instant::now();
    while is_ann.is_null() {
        assert!(began.elapsed() < PATIENCE, "neither face became Ann's");
        for face in [0, 1].map(stranger) {
            if person_of(&server, face).await == ann["person_id"] {
                is_ann = face;
            }
        }
    }
    let other = [0, 1].map(stranger).into_iter().find(|face| *face != is_ann).unwrap();
    assert_eq!(person_of(&server, other).await, Value::Null, "who looks like nobody stays unknown");

    changed(&server, &ann["face_id"], &json!({ "hidden": true })).await;
    until_person_is(&server, is_ann, &Value::Null).await;
    changed(&server, &ann["face_id"], &json!({ "hidden": false })).await;
    until_person_is(&server, is_ann, &ann["person_id"]).await;
    changed(&server, &ann["face_id"], &json!({ "person_id": null })).await;
    until_person_is(&server, is_ann, &Value::Null).await;
    // What is said of a face by hand finds others like it.
    changed(&server, &ann["face_id"], &json!({ "person_id": ann["person_id"] })).await;
    until_person_is(&server, is_ann, &ann["person_id"]).await;
    changed(&server, is_ann, &json!({ "person_id": null })).await;
    let result = rematched(&server).await;
    assert_eq!((&result["assigned"], &result["unassigned"]), (&json!(0), &json!(0)), "{result}");
    assert_eq!(person_of(&server, is_ann).await, Value::Null, "what a face is not is remembered");
    server.stop().await;
}

/// Indexes a picture of two persons, one below the other, and returns the upper one's face.
async fn upper(server: &Server, people: [u32; 2]) -> Value {
    let y = |face: &Value| face["box"]["y"].as_f64().unwrap();
    let faces = index(server, &people).await;
    faces.into_iter().min_by(|a, b| y(a).total_cmp(&y(b))).unwrap()
}

/// What an identify and a verify say of a picture of 7: the decisions, and the identify's first match.
async fn asked_of_seven(server: &Server, person: &Value) -> ([Value; 2], Value) {
    let image = inline(&photo(&[7]));
    let identified = server.run("c", "identify", &json!({ "image": image })).await["result"]["faces"][0].clone();
    let verified =
        server.run("c", "verify", &json!({ "image": image, "other": { "person_id": person } })).await["result"].clone();
    let (best, other) = (&identified["matches"][0], &verified["other"]);
    let apart = best["score"].as_f64().unwrap() - verified["score"].as_f64().unwrap();
    assert!(apart.abs() < 1e-5 && best["face_id"] == other["face_id"], "{identified} {verified}");
    ([identified["decision"].clone(), verified["decision"].clone()], best.clone())
}

async fn a_wrong_label_loses_what_it_gave(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let ann = server.enroll("c", 1).await["person_id"].clone();
    let is_ann = async |face: &Value| changed(&server, &face["face_id"], &json!({ "person_id": ann })).await;
    let wrong = upper(&server, [7, 2]).await;
    is_ann(&wrong).await;
    let matched = upper(&server, [7, 3]).await;
    assert_eq!(matched["decision"], "match", "of two faces either may be the right one: {matched}");
    let (decisions, best) = asked_of_seven(&server, &ann).await;
    assert_eq!((decisions, &best["face_id"]), ([json!("match"), json!("match")], &wrong["face_id"]));

    // The third face is like the first one: the second is the wrong one, and what it gave is taken back.
    let third = upper(&server, [1, 4]).await;
    assert_eq!(third["decision"], "match");
    is_ann(&third).await;
    until_person_is(&server, &matched["face_id"], &Value::Null).await;
    let (decisions, best) = asked_of_seven(&server, &ann).await;
    assert!(decisions.iter().all(|decision| *decision != "match"), "{best}");
    assert_ne!(best["face_id"], wrong["face_id"], "{best}");
    let after = upper(&server, [7, 5]).await;
    assert_ne!(after["decision"], "match", "whether it is indexed before or after: {after}");

    // Another one like it, said to be hers by hand: she has two looks.
    is_ann(&matched).await;
    until_person_is(&server, &after["face_id"], &ann).await;
    let (decisions, best) = asked_of_seven(&server, &ann).await;
    assert_eq!(decisions, [json!("match"), json!("match")], "{best}");
    assert!(best["score"].as_f64() >= best["face_score"].as_f64(), "{best}");
    server.stop().await;
}

async fn a_rematch_can_be_asked_for(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    assert_eq!(rematched(&server).await, json!({ "faces": 0, "assigned": 0, "unassigned": 0 }));
    let ann = server.enroll("c", 1).await["person_id"].clone();
    let faces = index(&server, &[1, 2, 3]).await;
    let stranger = faces.iter().find(|face| face["decision"] != "match").unwrap()["face_id"].clone();
    assert_eq!(rematched(&server).await, json!({ "faces": 3, "assigned": 0, "unassigned": 0 }));
    decide(&server, &json!({ "match_cosine": -1.0 })).await;
    until_person_is(&server, &stranger, &ann).await;
    decide(&server, &json!({})).await;
    let result = rematched(&server).await;
    assert_eq!(person_of(&server, &stranger).await, Value::Null, "{result}");
    let (status, body) = read(server.request(Method::POST, "/v1/collections/none/rematch")).await;
    assert_eq!((status, &body["code"]), (StatusCode::NOT_FOUND, &json!("collection_not_found")));
    let listed = server.get("/v1/jobs?kind=rematch").await;
    assert!(!listed["items"].as_array().unwrap().is_empty());
    server.stop().await;
}

async fn a_rematch_survives_a_crash(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let ann = server.enroll("c", 1).await["person_id"].clone();
    let faces = index(&server, &[1, 2, 3]).await;
    rematched(&server).await;
    decide(&server, &json!({ "match_cosine": -1.0 })).await;
    server.stop().await;
    // Its first commit takes what was asked for, the second one would write the slice.
    let server = Server::start_with(&site, &[("FACE_ID_CRASH_AT", "before_commit:2")]).await;
    let job = rematch(&server).await;
    server.wait_for_crash().await;
    let server = Server::start(&site).await;
    server.ended(&job).await;
    // The change of the settings has asked for one of its own; together they have done it once.
    let jobs = server.get("/v1/jobs?kind=rematch").await["items"].as_array().unwrap().clone();
    let mut assigned = 0;
    for job in &jobs {
        let job = server.ended(job).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        assigned += job["result"]["assigned"].as_u64().unwrap();
    }
    assert_eq!(assigned, 2, "{jobs:?}");
    for face in &faces {
        assert_eq!(person_of(&server, &face["face_id"]).await, ann);
    }
    server.stop().await;
}

/// Changes how the collection decides.
async fn decide(server: &Server, settings: &Value) {
    let request = server.request(Method::PATCH, "/v1/collections/c").json(&json!({ "settings": settings }));
    assert_eq!(read(request).await.0, StatusCode::OK);
}
