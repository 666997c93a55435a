//! Enroll, identify, verify, index, and the resources around them.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::server::{Server, Site, command, inline, on_both, photo, read};

on_both!(
    people_are_enrolled_and_recognised,
    faces_are_verified,
    which_face_is_enrolled_is_a_choice,
    a_picture_is_indexed_once,
    what_is_deleted_is_gone,
    uploads_come_raw_or_as_a_form,
    lists_have_pages
);

async fn people_are_enrolled_and_recognised(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    for seed in 1..=3 {
        let result = server.enroll("c", seed).await;
        assert_eq!(result["already_enrolled"], false);
    }

    let job = server.run("c", "identify", &json!({ "image": inline(&photo(&[2, 9])), "tag": "door 7" })).await;
    assert_eq!((&job["state"], &job["tag"]), (&json!("succeeded"), &json!("door 7")), "{job}");
    let faces = job["result"]["faces"].as_array().unwrap();
    let mut found: Vec<_> =
        faces.iter().map(|f| (f["decision"].as_str().unwrap(), &f["matches"][0]["external_id"])).collect();
    found.sort_unstable_by_key(|f| f.0);
    assert_eq!(found[0], ("match", &json!("person-2")));
    assert_eq!((found.len(), found[1].0), (2, "unknown"));
    assert_eq!(job["result"]["gallery"], json!({ "persons": 3, "faces": 3 }));
    assert!(faces.iter().all(|f| f["matches"].as_array().unwrap().len() == 3), "persons near the face, best first");

    let empty = server.run("c", "identify", &json!({ "image": inline(&photo(&[])) })).await;
    assert_eq!((&empty["state"], &empty["result"]["faces"]), (&json!("succeeded"), &json!([])));
    server.stop().await;
}

async fn faces_are_verified(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let person = server.enroll("c", 1).await["person_id"].clone();
    let one = inline(&photo(&[1]));
    let cases = [
        (json!({ "person_id": person }), "match"),
        (json!({ "image": one }), "match"),
        (json!({ "image": inline(&photo(&[2])) }), "unknown"),
    ];
    for (other, decision) in cases {
        let job = server.run("c", "verify", &json!({ "image": one, "other": other })).await;
        assert_eq!(job["result"]["decision"], decision, "{job}");
    }
    let job = server.run("c", "verify", &json!({ "image": one, "other": { "image": inline(&photo(&[])) } })).await;
    assert_eq!((&job["state"], &job["problem"]["code"]), (&json!("rejected"), &json!("no_face")));
    server.stop().await;
}

async fn which_face_is_enrolled_is_a_choice(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let two = inline(&photo(&[1, 2]));
    let enroll =
        |id: &str, face: serde_json::Value| json!({ "image": two, "person": { "external_id": id }, "face": face });

    let job = server.run("c", "enroll", &enroll("a", json!("only"))).await;
    assert_eq!((&job["state"], &job["problem"]["code"]), (&json!("rejected"), &json!("multiple_faces")), "{job}");
    let boxes = job["problem"]["faces"].as_array().unwrap().clone();
    assert_eq!(boxes.len(), 2);

    let first = server.run("c", "enroll", &enroll("a", json!({ "box": boxes[0] }))).await;
    assert_eq!(first["state"], "succeeded", "{first}");
    let again = server.run("c", "enroll", &enroll("a", json!({ "box": boxes[0] }))).await;
    assert_eq!(again["result"]["already_enrolled"], true, "the same face of the same bytes is one face");
    assert_eq!(again["result"]["face_id"], first["result"]["face_id"]);
    let other = server.run("c", "enroll", &enroll("b", json!({ "box": boxes[0] }))).await;
    assert_eq!(other["problem"]["code"], "face_belongs_to_other_person", "{other}");
    let second = server.run("c", "enroll", &enroll("b", json!({ "box": boxes[1] }))).await;
    assert_eq!(second["state"], "succeeded", "{second}");
    let nowhere = json!({ "x": 0, "y": 0, "width": 3, "height": 3 });
    let none = server.run("c", "enroll", &enroll("b", json!({ "box": nowhere }))).await;
    assert_eq!(none["problem"]["code"], "no_such_face");

    let collection = server.get("/v1/collections/c").await;
    assert_eq!(
        (&collection["persons"], &collection["faces"], &collection["images"]),
        (&json!(2), &json!(2), &json!(1))
    );
    server.stop().await;
}

async fn a_picture_is_indexed_once(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let person = server.enroll("c", 1).await["person_id"].clone();
    let picture = photo(&[1, 2, 3]);
    let first = server.run("c", "index", &json!({ "image": inline(&picture) })).await;
    let faces = first["result"]["faces"].as_array().unwrap();
    assert_eq!(faces.len(), 3, "{first}");
    assert_eq!(faces.iter().filter(|f| f["decision"] == "match").count(), 1);
    let again = server.run("c", "index", &json!({ "image": inline(&picture) })).await;
    assert_eq!(again["result"]["already_indexed"], true);
    let stored = server.get("/v1/collections/c/faces").await;
    let stored = stored["items"].as_array().unwrap();
    assert_eq!(stored.len(), 4, "one enrolled, three indexed");
    let auto: Vec<_> = stored.iter().filter(|f| f["assigned_by"] == "auto").collect();
    assert_eq!((auto.len(), &auto[0]["person_id"]), (1, &person));
    let identified = server.run("c", "identify", &json!({ "image": inline(&photo(&[1])) })).await;
    assert_eq!(identified["result"]["gallery"]["faces"], 1, "an automatic match forms no template");

    let empty = server.run("c", "index", &json!({ "image": inline(&photo(&[])) })).await;
    assert_eq!((&empty["state"], &empty["result"]["faces"]), (&json!("succeeded"), &json!([])));
    server.stop().await;
}

async fn what_is_deleted_is_gone(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let ann = server.enroll("c", 1).await;
    let bob = server.enroll("c", 2).await;
    assert_eq!(server.objects().len(), 2);
    let identify = async |seed| {
        let job = server.run("c", "identify", &json!({ "image": inline(&photo(&[seed])) })).await;
        job["result"]["faces"][0]["decision"].as_str().unwrap().to_owned()
    };
    assert_eq!(identify(1).await, "match");
    let path = format!("/v1/collections/c/persons/{}", ann["person_id"].as_str().unwrap());
    let faces = server.get(&format!("{path}/faces")).await;
    assert_eq!(faces["items"][0]["id"], ann["face_id"]);
    assert_eq!(server.delete(&path).await, StatusCode::ACCEPTED);
    assert_eq!(server.delete(&path).await, StatusCode::ACCEPTED, "the same receipt");
    assert_eq!(read(server.request(Method::GET, &path)).await.0, StatusCode::NOT_FOUND);
    assert_eq!(identify(1).await, "unknown");
    server.wait_for_objects(1).await;
    server.wait_for_crops(1).await;
    let face = format!("/v1/collections/c/faces/{}", bob["face_id"].as_str().unwrap());
    assert_eq!(server.delete(&face).await, StatusCode::ACCEPTED);
    server.wait_for_crops(0).await;
    assert_eq!(identify(2).await, "unknown");
    assert_eq!(server.delete("/v1/collections/c").await, StatusCode::ACCEPTED);
    assert_eq!(read(server.request(Method::GET, "/v1/collections/c")).await.0, StatusCode::NOT_FOUND);
    server.wait_for_objects(0).await;
    server.stop().await;
}

async fn uploads_come_raw_or_as_a_form(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let picture = photo(&[4]);
    let raw = server.upload("c", picture.clone()).await;
    let mut form = b"--cut\r\ncontent-disposition: form-data; name=\"note\"\r\n\r\nx\r\n--cut\r\n".to_vec();
    form.extend(b"content-disposition: form-data; name=\"file\"; filename=\"a.png\"\r\n\r\n");
    form.extend(&picture);
    form.extend(b"\r\n--cut--\r\n");
    let request = server.request(Method::POST, "/v1/collections/c/uploads").body(form);
    let (status, sent) = read(request.header("content-type", "multipart/form-data; boundary=cut")).await;
    assert_eq!((status, &sent["content_type"]), (StatusCode::CREATED, &json!("image/png")), "{sent}");
    let shown = server.get(&format!("/v1/collections/c/uploads/{}", raw.as_str().unwrap())).await;
    assert_eq!((&shown["sha256"], &shown["size_bytes"]), (&sent["sha256"], &json!(picture.len())));
    for id in [&raw, &sent["id"]] {
        let job = server.run("c", "identify", &json!({ "image": { "upload_id": id } })).await;
        assert_eq!(job["result"]["faces"].as_array().unwrap().len(), 1);
    }
    server.stop().await;
}

async fn lists_have_pages(site: Site) {
    let server = Server::start(&site).await;
    for name in ["a", "b", "c"] {
        server.make_collection(name).await;
    }
    for seed in 1..=3 {
        server.enroll("a", seed).await;
    }
    for path in ["/v1/collections?", "/v1/collections/a/persons?", "/v1/collections/a/faces?", "/v1/jobs?collection=a&"]
    {
        let first = server.get(&format!("{path}limit=2")).await;
        let cursor = first["next_cursor"].as_str().unwrap();
        let second = server.get(&format!("{path}limit=2&cursor={cursor}")).await;
        let mut ids: Vec<_> = [&first, &second]
            .iter()
            .flat_map(|p| p["items"].as_array().unwrap())
            .map(|r| r["id"].to_string())
            .collect();
        ids.sort();
        ids.dedup();
        assert_eq!((ids.len(), &second["next_cursor"]), (3, &serde_json::Value::Null), "{path}");
    }
    let found = server.get("/v1/collections/a/persons?external_id=person-2").await;
    assert_eq!(found["items"][0]["name"], "Person 2");
    let none = server.get("/v1/jobs?collection=a&state=failed").await;
    assert_eq!(none["items"], json!([]));
    server.stop().await;
}

#[tokio::test]
async fn the_server_says_how_it_is() {
    let site = Site::embedded();
    let server = Server::start(&site).await;
    assert_eq!(server.get("/healthz").await["status"], "ok");
    let ready = server.get("/readyz").await;
    let names: Vec<_> = ready["checks"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["database", "inference", "pipelines"]);
    let document = server.get("/openapi.json").await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    for path in ["/v1/collections/{collection}/enroll", "/v1/jobs/{job}", "/readyz"] {
        assert!(document["paths"][path].is_object(), "{path} is documented");
    }
    let second =
        command().args(["serve", "--bind", "127.0.0.1:0", "--data-dir"]).arg(site.folder()).output().await.unwrap();
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && text.contains("another face-id serves the data folder"), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_catalogue_entry_is_told_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let entry = std::fs::read_to_string(worker::testing::repository().join("models/tiny/tiny.toml")).unwrap();
    let wrong = entry.replace("dimension = 64", "dimension = 63");
    assert_ne!(wrong, entry);
    std::fs::write(folder.path().join("tiny.toml"), wrong).unwrap();
    let mut serve = command();
    serve.env("FACE_ID_MODELS__CATALOGUE_DIR", folder.path()).args(["serve", "--bind", "127.0.0.1:0", "--data-dir"]);
    let output = serve.arg(folder.path().join("data")).output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in ["tiny_recognizer.onnx", "63 components", "with 64"] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
}

#[tokio::test]
async fn pictures_of_an_allowed_bucket_are_indexed() {
    let site = Site::services().await;
    let library = site.another_bucket().await;
    library.put("2019/summer day.png", &photo(&[3])).await;
    let library = library.name;
    let server = Server::start_with(&site, &[("FACE_ID_OBJECTS__ALLOWED_BUCKETS", &library)]).await;
    server.make_collection("c").await;
    let index = async |uri: String| server.run("c", "index", &json!({ "image": { "s3": uri } })).await;
    let job = index(format!("s3://{library}/2019/summer day.png")).await;
    assert_eq!((&job["state"], job["result"]["faces"].as_array().unwrap().len()), (&json!("succeeded"), 1), "{job}");
    let again = index(format!("s3://{library}/2019/summer day.png")).await;
    assert_eq!(again["result"]["already_indexed"], true);
    let missing = index(format!("s3://{library}/2019/none.png")).await;
    assert_eq!(
        (&missing["state"], &missing["problem"]["code"]),
        (&json!("rejected"), &json!("source_gone")),
        "{missing}"
    );
    for wrong in ["s3://elsewhere/a.png", "https://example.org/a.png", "s3://x"] {
        let request =
            server.request(Method::POST, "/v1/collections/c/index").json(&json!({ "image": { "s3": wrong } }));
        let (status, body) = read(request).await;
        assert_eq!(
            (status, &body["errors"][0]["pointer"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!("#/image/s3")),
            "{body}"
        );
    }
    assert_eq!(server.objects().len(), 0, "nothing is copied");
    assert_eq!(server.delete("/v1/collections/c").await, StatusCode::ACCEPTED);
    server.stop().await;
}
