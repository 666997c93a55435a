//! What people with a photo library do by hand: say whose a face is, and whose it is not.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::server::{Server, Site, inline, on_both, photo, read};

on_both!(faces_are_assigned_by_hand, what_a_face_is_not_is_remembered, hidden_faces_are_left_out);

/// Changes a face and returns the answer.
async fn change(server: &Server, face: &Value, changes: &Value) -> (StatusCode, Value) {
    let path = format!("/v1/collections/c/faces/{}", face.as_str().unwrap());
    read(server.request(Method::PATCH, &path).json(changes)).await
}

pub(crate) async fn changed(server: &Server, face: &Value, changes: &Value) -> Value {
    let (status, body) = change(server, face, changes).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body
}

/// Indexes a picture of these persons and returns its faces, from the left.
pub(crate) async fn index(server: &Server, people: &[u32]) -> Vec<Value> {
    let job = server.run("c", "index", &json!({ "image": inline(&photo(people)) })).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    let mut faces = job["result"]["faces"].as_array().unwrap().clone();
    faces.sort_by(|a, b| a["box"]["x"].as_f64().unwrap().total_cmp(&b["box"]["x"].as_f64().unwrap()));
    faces
}

/// The person that an identify names for a picture of one face.
async fn identified(server: &Server, seed: u32) -> Value {
    let job = server.run("c", "identify", &json!({ "image": inline(&photo(&[seed])) })).await;
    let face = &job["result"]["faces"][0];
    if face["decision"] == "match" { face["matches"][0]["external_id"].clone() } else { Value::Null }
}

async fn faces_are_assigned_by_hand(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let ann = server.enroll("c", 1).await["person_id"].clone();
    let stranger = index(&server, &[7]).await[0]["face_id"].clone();
    assert_eq!(identified(&server, 7).await, Value::Null);

    let face = changed(&server, &stranger, &json!({ "person_id": ann })).await;
    assert_eq!((&face["person_id"], &face["assigned_by"], &face["locked"]), (&ann, &json!("user"), &json!(true)));
    assert_eq!(identified(&server, 7).await, "person-1", "what a user assigns forms a template");
    let face = changed(&server, &stranger, &json!({ "person_id": null })).await;
    assert_eq!(
        (&face["person_id"], &face["assigned_by"], &face["locked"]),
        (&Value::Null, &Value::Null, &json!(false))
    );
    assert_eq!(identified(&server, 7).await, Value::Null);

    let nobody = json!("0192aaaa-0000-7000-8000-000000000000");
    let cases = [
        (&stranger, json!({ "person_id": nobody }), StatusCode::NOT_FOUND, "person_not_found"),
        (&nobody, json!({ "hidden": true }), StatusCode::NOT_FOUND, "face_not_found"),
        (&stranger, json!({}), StatusCode::UNPROCESSABLE_ENTITY, "invalid_request"),
        (&stranger, json!({ "person": ann }), StatusCode::UNPROCESSABLE_ENTITY, "invalid_request"),
        (&stranger, json!({ "person_id": "ann" }), StatusCode::UNPROCESSABLE_ENTITY, "invalid_request"),
    ];
    for (face, changes, status, code) in cases {
        let (was, body) = change(&server, face, &changes).await;
        assert_eq!((was, &body["code"]), (status, &json!(code)), "{changes}: {body}");
    }
    server.stop().await;
}

async fn what_a_face_is_not_is_remembered(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    // Enrolled only, so that an index finds the face at its place without having analysed the picture.
    let picture = json!({ "image": inline(&photo(&[1])) });
    let enroll = async |person: &str| {
        let body = json!({ "image": picture["image"], "person": { "external_id": person } });
        let job = server.run("c", "enroll", &body).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        job["result"].clone()
    };
    let ann = enroll("ann").await;
    changed(&server, &ann["face_id"], &json!({ "person_id": null })).await;
    // Another picture keeps Ann in the gallery.
    for face in index(&server, &[2, 1]).await {
        if face["decision"] != "match" {
            changed(&server, &face["face_id"], &json!({ "person_id": ann["person_id"] })).await;
        }
    }
    let indexed = server.run("c", "index", &picture).await;
    assert_eq!(indexed["result"]["faces"][0]["decision"], "match", "{indexed}");
    assert_eq!(indexed["result"]["faces"][0]["face_id"], ann["face_id"]);
    let path = format!("/v1/collections/c/faces/{}", ann["face_id"].as_str().unwrap());
    let stored = server.get(&path).await;
    assert_ne!(stored["person_id"], ann["person_id"], "an index does not go against what was said by hand");
    assert_eq!(enroll("ann").await["face_id"], ann["face_id"]);
    assert_eq!(server.get(&path).await["person_id"], ann["person_id"], "an enroll does: it says so by hand, too");
    server.stop().await;
}

async fn hidden_faces_are_left_out(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let ann = server.enroll("c", 1).await;
    let listed = async |query: &str| {
        let faces = server.get(&format!("/v1/collections/c/faces{query}")).await;
        faces["items"].as_array().unwrap().len()
    };
    assert_eq!((listed("").await, listed("?hidden=true").await), (1, 0));
    let face = changed(&server, &ann["face_id"], &json!({ "hidden": true })).await;
    assert_eq!((&face["hidden"], &face["person_id"]), (&json!(true), &ann["person_id"]));
    assert_eq!((listed("").await, listed("?hidden=true").await), (0, 1));
    assert_eq!(identified(&server, 1).await, Value::Null, "a hidden face matches nobody");
    let person = server.get(&format!("/v1/collections/c/persons/{}", ann["person_id"].as_str().unwrap())).await;
    assert_eq!(person["faces"], 0);
    changed(&server, &ann["face_id"], &json!({ "hidden": false })).await;
    assert_eq!((listed("").await, identified(&server, 1).await), (1, json!("person-1")));
    server.stop().await;
}
