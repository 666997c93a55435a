//! What people with a photo library do by hand: say whose a face is, and whose it is not.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use worker::testing::dated_photo;

use crate::server::{SIDE, Server, Site, inline, on_both, photo, read};

on_both!(
    faces_are_assigned_by_hand,
    what_a_face_is_not_is_remembered,
    hidden_faces_are_left_out,
    persons_are_made_and_merged,
    a_persons_pictures_are_in_order
);

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

async fn post(server: &Server, path: &str, body: &Value) -> (StatusCode, Value) {
    read(server.request(Method::POST, &format!("/v1/collections/c/{path}")).json(body)).await
}

async fn persons_are_made_and_merged(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let (status, ann) = post(&server, "persons", &json!({ "name": "Ann" })).await;
    assert_eq!((status, &ann["name"], &ann["faces"]), (StatusCode::CREATED, &json!("Ann"), &json!(0)), "{ann}");
    let enrolled = server.enroll("c", 1).await;
    let loser = enrolled["person_id"].as_str().unwrap();
    for (body, wanted) in [
        (json!({}), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({ "external_id": " " }), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({ "external_id": "person-1" }), StatusCode::CONFLICT),
    ] {
        assert_eq!(post(&server, "persons", &body).await.0, wanted, "{body}");
    }
    let (_, bob) = post(&server, "persons", &json!({ "external_id": "bob" })).await;
    let merge = async |from: &str, into: &Value| post(&server, &format!("persons/{from}/merge"), into).await;
    let (status, merged) = merge(loser, &json!({ "into": bob["id"] })).await;
    assert_eq!((status, &merged["id"], &merged["faces"]), (StatusCode::OK, &bob["id"], &json!(1)), "{merged}");
    assert_eq!((&merged["name"], &merged["external_id"]), (&json!("Person 1"), &json!("bob")));
    let face = server.get(&format!("/v1/collections/c/faces/{}", enrolled["face_id"].as_str().unwrap())).await;
    assert_eq!((&face["person_id"], &face["assigned_by"]), (&bob["id"], &json!("enrolled")), "faces keep their ids");
    assert_eq!(identified(&server, 1).await, "bob");

    let (status, gone) = read(server.request(Method::GET, &format!("/v1/collections/c/persons/{loser}"))).await;
    assert_eq!((status, &gone["code"]), (StatusCode::GONE, &json!("person_merged")), "{gone}");
    assert!(gone["detail"].as_str().unwrap().contains(bob["id"].as_str().unwrap()), "{gone}");
    for person in [json!({ "id": loser }), json!({ "external_id": "person-1" })] {
        let body = json!({ "image": inline(&photo(&[3])), "person": person });
        let (status, refused) = post(&server, "enroll", &body).await;
        assert_eq!((status, &refused["code"]), (StatusCode::GONE, &json!("person_merged")), "{refused}");
    }
    let (status, refused) = change(&server, &face["id"], &json!({ "person_id": loser })).await;
    assert_eq!((status, &refused["code"]), (StatusCode::GONE, &json!("person_merged")), "{refused}");
    let bob_path = bob["id"].as_str().unwrap();
    for (from, into, status) in [
        (loser, json!({ "into": bob["id"] }), StatusCode::GONE),
        (bob_path, json!({ "into": loser }), StatusCode::GONE),
        (bob_path, json!({ "into": bob["id"] }), StatusCode::UNPROCESSABLE_ENTITY),
        (bob_path, json!({ "into": "0192aaaa-0000-7000-8000-000000000000" }), StatusCode::NOT_FOUND),
        (bob_path, json!({ "into": ann["id"] }), StatusCode::OK),
    ] {
        let (was, body) = merge(from, &into).await;
        assert_eq!(was, status, "{body}");
    }
    assert_eq!(identified(&server, 1).await, "bob", "what Ann lacked she took over");
    server.stop().await;
}

async fn a_persons_pictures_are_in_order(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let ann = server.enroll("c", 1).await["person_id"].clone();
    let taken = ["2021-05-01T08:00:00", "2019-07-01T12:30:05+02:00", "2020-01-01T00:00:00"];
    for (n, time) in taken.into_iter().enumerate() {
        let other = 2 + u32::try_from(n).unwrap();
        let picture = dated_photo(&[1, other], SIDE, SIDE, time);
        let job = server.run("c", "index", &json!({ "image": inline(&picture) })).await;
        assert_eq!(job["state"], "succeeded", "{job}");
    }
    let path = format!("/v1/collections/c/persons/{}/images", ann.as_str().unwrap());
    let first = server.get(&format!("{path}?limit=3")).await;
    let second = server.get(&format!("{path}?limit=3&cursor={}", first["next_cursor"].as_str().unwrap())).await;
    let images: Vec<&Value> = [&first, &second].iter().flat_map(|page| page["items"].as_array().unwrap()).collect();
    let times: Vec<&Value> = images.iter().map(|image| &image["captured_at"]).collect();
    assert_eq!(times, [&json!(taken[1]), &json!(taken[2]), &json!(taken[0]), &Value::Null], "the undated one is last");
    for image in &images {
        let faces = image["faces"].as_array().unwrap();
        assert_eq!((faces.len(), &faces[0]["person_id"]), (1, &ann), "only the person's own: {image}");
        assert!(faces[0]["box"]["width"].as_f64().unwrap() > 1.0);
        assert_eq!((&faces[0]["captured_at"], &image["width"]), (&image["captured_at"], &json!(256)));
    }
    let face = images[0]["faces"][0]["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/v1/collections/c/faces/{face}")).await["captured_at"], taken[1]);
    changed(&server, &json!(face), &json!({ "hidden": true })).await;
    assert_eq!(server.get(&path).await["items"].as_array().unwrap().len(), 3);
    server.stop().await;
}
