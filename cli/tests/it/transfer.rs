//! A collection's people and faces leave a server as a file, and come into another.

use std::collections::HashMap;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use futures_util::stream::{once, pending};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::library::{changed, index};
use crate::server::{Server, Site, command, inline, on_both, photo, read};

on_both!(
    an_interrupted_import_goes_on,
    bad_files_are_refused,
    a_broken_connection_leaves_no_half_face,
    an_import_goes_on_while_something_is_erased,
    a_picture_that_is_whole_is_written_once,
    imports_at_once_are_bounded
);

const NDJSON: &str = "application/x-ndjson";

async fn transfer(server: &Server, arguments: &[&str], file: &Path) -> Output {
    let mut command = command();
    command.envs(server.key_setting());
    command.args(arguments).arg(file).args(["--server", &server.address]).output().await.unwrap()
}

/// What the command prints with `--json`.
async fn done(server: &Server, arguments: &[&str], file: &Path) -> Value {
    let output = transfer(server, &[arguments, &["--json"]].concat(), file).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Enrolled, indexed, said by hand: three persons, one of them merged into another, and strangers.
async fn fill(server: &Server) {
    server.make_collection("c").await;
    let ann = server.enroll("c", 1).await["person_id"].clone();
    let bob = server.enroll("c", 2).await["person_id"].clone();
    let other = server.enroll("c", 3).await["person_id"].clone();
    let nameless = server.request(Method::POST, "/v1/collections/c/persons").json(&json!({ "name": "" }));
    assert_eq!(read(nameless).await.0, StatusCode::CREATED);
    let path = format!("/v1/collections/c/persons/{}/merge", other.as_str().unwrap());
    let (status, body) = read(server.request(Method::POST, &path).json(&json!({ "into": bob }))).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let faces = index(server, &[1, 7]).await;
    for face in faces.iter().filter(|face| face["decision"] == "match") {
        changed(server, &face["face_id"], &json!({ "person_id": null })).await;
    }
    let stranger = index(server, &[8]).await[0]["face_id"].clone();
    changed(server, &stranger, &json!({ "person_id": ann })).await;
    let hidden = index(server, &[9]).await[0]["face_id"].clone();
    changed(server, &hidden, &json!({ "hidden": true })).await;
    index(server, &[]).await;
}

/// Who the collection says that people are, and how surely.
async fn answers(server: &Server, collection: &str) -> Vec<Value> {
    let mut answers = Vec::new();
    for people in [[1, 2], [3, 7], [8, 9]] {
        let job = server.run(collection, "identify", &json!({ "image": inline(&photo(&people)) })).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        for face in job["result"]["faces"].as_array().unwrap() {
            let best = &face["matches"][0];
            let cosine = best["cosine"].as_f64().map(|cosine| (cosine * 1e4).round());
            answers.push(json!([face["decision"], best["external_id"], best["name"], cosine]));
        }
        answers.push(job["result"]["gallery"].clone());
    }
    let row = server.get(&format!("/v1/collections/{collection}")).await;
    answers.push(json!([row["persons"], row["faces"], row["images"], row["pipeline"], row["settings"]]));
    answers
}

#[tokio::test]
async fn a_collection_moves_from_embedded_to_services_and_back() {
    let (here, there) = (Site::embedded(), Site::services().await);
    let (here, there) = (Server::start(&here).await, Server::start(&there).await);
    fill(&here).await;
    let wanted = answers(&here, "c").await;
    assert!(wanted.iter().any(|answer| answer[0] == "match"), "{wanted:?}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.ndjson");
    let exported = done(&here, &["export", "--collection", "c"], &file).await;
    assert_eq!(exported["counts"]["faces"], 7, "{exported}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no half file is left");

    let imported = done(&there, &["import"], &file).await;
    assert_eq!((&imported["added"], &imported["read"]), (&exported["counts"], &exported["counts"]));
    assert_eq!(answers(&there, "c").await, wanted);
    let faces = |server| async move { Server::get(server, "/v1/collections/c/faces").await["items"].clone() };
    assert_eq!(faces(&there).await, faces(&here).await, "ids and all");
    let again = index(&there, &[1, 7]).await;
    assert_eq!(again.len(), 2);
    assert_eq!(answers(&there, "c").await, wanted, "a picture that is indexed again has its faces already");

    let back = folder.path().join("back.ndjson");
    done(&there, &["export", "--collection", "c"], &back).await;
    let imported = done(&here, &["import", "--collection", "d"], &back).await;
    assert_eq!(imported["added"], exported["counts"], "beside the first, with ids of its own");
    assert_eq!(answers(&here, "d").await, wanted);
    assert_eq!(answers(&here, "c").await, wanted);
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn a_server_is_started_where_there_is_none() {
    let site = Site::embedded();
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    server.enroll("c", 1).await;
    server.stop().await;
    let file = site.folder().join("out.ndjson");
    for arguments in [&["export", "--collection", "c"][..], &["import", "--collection", "d"]] {
        let mut command = command();
        let output = command.args(arguments).arg(&file).arg("--data-dir").arg(site.folder()).output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("faces"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    }
    let server = Server::start(&site).await;
    assert_eq!(server.get("/v1/collections/d").await["faces"], 1);
    server.stop().await;
}

pub(crate) async fn exported(server: &Server, collection: &str) -> String {
    let path = format!("/v1/collections/{collection}/export");
    let answer = server.request(Method::GET, &path).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], NDJSON);
    answer.text().await.unwrap()
}

pub(crate) async fn import(server: &Server, collection: &str, body: impl Into<reqwest::Body>) -> (StatusCode, Value) {
    let path = format!("/v1/collections/{collection}/import");
    read(server.request(Method::POST, &path).header("content-type", NDJSON).body(body)).await
}

/// The file as far as the last face.
fn cut(file: &str) -> String {
    let lines: Vec<&str> = file.lines().collect();
    let last_face = lines.iter().rposition(|line| line.contains("\"type\":\"face\"")).unwrap();
    lines[..last_face].join("\n") + "\n"
}

/// Faces of one picture: more than are written at once.
const CROWD: usize = 2600;
/// Pictures of one face: they too are more than that.
const SINGLES: usize = 600;

/// The file with many more faces, which are nobody's and like nobody.
fn enlarged(file: &str) -> String {
    let mut lines: Vec<Value> = file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let revision = lines[0]["pipelines"][0]["detector_revision"].as_str().unwrap().to_owned();
    let mut end = lines.pop().unwrap();
    for (image, faces) in std::iter::once(CROWD).chain([1; SINGLES]).enumerate() {
        // Behind all others.
        let sha256 = format!("{}{image:016x}", "f".repeat(48));
        let id = Uuid::now_v7();
        lines.push(json!({
            "type": "image", "id": id, "sha256": sha256, "width": 1000, "height": 1000, "created_at": 1,
            "analyses": { &revision: faces },
        }));
        lines.extend((0..faces).map(|face| stranger(&revision, face)));
    }
    let many = [("images", 1 + SINGLES), ("faces", CROWD + SINGLES), ("vectors", CROWD + SINGLES)];
    for (kind, more) in many {
        end[kind] = json!(end[kind].as_u64().unwrap() + more as u64);
    }
    lines.push(end);
    lines.iter().map(Value::to_string).collect::<Vec<_>>().join("\n") + "\n"
}

/// The nth face of a picture.
fn stranger(revision: &str, n: usize) -> Value {
    let mut vector = [0f32; 64];
    vector[n % 64] = 1.0;
    let vector = STANDARD.encode(vector.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
    let face_box = json!({ "x": (n % 60) as f32 + 0.5, "y": (n / 60) as f32 + 0.5, "width": 0.75, "height": 0.75 });
    let seen = json!({ "box": face_box, "landmarks": [], "score": 0.5, "quality": { "usable": false } });
    json!({
        "type": "face", "id": Uuid::now_v7(), "created_at": 1, "geometry": { revision: seen },
        "vectors": { "tiny": vector },
    })
}

/// The faces of a file by their ids.
fn faces_of(file: &str) -> HashMap<String, Value> {
    let lines = file.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let face = |line: Value| Some((line["id"].as_str()?.to_owned(), line));
    lines.filter(|line| line["type"] == "face").filter_map(face).collect()
}

async fn face_count(server: &Server, collection: &str) -> u64 {
    server.get(&format!("/v1/collections/{collection}")).await["faces"].as_u64().unwrap()
}

/// Without how many faces and pictures there are.
fn without_counts(mut answers: Vec<Value>) -> Vec<Value> {
    answers.pop();
    answers
}

async fn an_interrupted_import_goes_on(site: Site) {
    let server = Server::start(&site).await;
    fill(&server).await;
    let wanted = without_counts(answers(&server, "c").await);
    let file = enlarged(&exported(&server, "c").await);
    server.make_collection("d").await;
    let (status, refused) = import(&server, "d", cut(&file)).await;
    assert_eq!((status, &refused["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("export_cut")), "{refused}");
    let there = face_count(&server, "d").await;
    assert!(there > CROWD as u64, "what was written before the cut stays: {there}");
    let (status, all) = import(&server, "d", file.clone()).await;
    assert_eq!(status, StatusCode::OK, "{all}");
    let read = all["read"]["faces"].as_u64().unwrap();
    assert_eq!(all["added"]["faces"], read - there, "{all}");
    assert!(read > there && face_count(&server, "d").await == read, "{all}");
    assert_eq!(without_counts(answers(&server, "d").await), wanted);
    let (_, again) = import(&server, "d", file).await;
    assert_eq!(again["read"], all["read"]);
    assert!(again["added"].as_object().unwrap().values().all(|added| added == 0), "{again}");
    assert_eq!(without_counts(answers(&server, "d").await), wanted);
    server.stop().await;
}

/// Waits until the collection has faces.
async fn faces_came(http: reqwest::Client, address: String) {
    loop {
        let row = http.get(format!("{address}/v1/collections/d")).send().await.unwrap().text().await.unwrap();
        if serde_json::from_str::<Value>(&row).unwrap()["faces"] != 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn a_broken_connection_leaves_no_half_face(site: Site) {
    let server = Server::start(&site).await;
    fill(&server).await;
    let file = enlarged(&exported(&server, "c").await);
    server.make_collection("d").await;
    let analysed = format!(":{CROWD}}}");
    assert!(file.contains(&analysed));
    // Within the crowd, of which a part is written by then.
    let part = file.as_bytes()[..file.len() * 2 / 3].to_vec();
    let (http, address) = (server.http.clone(), server.address.clone());
    let breaks = async move {
        tokio::time::timeout(Duration::from_secs(60), faces_came(http, address)).await.unwrap();
        Err(std::io::Error::other("the client dies"))
    };
    let body = reqwest::Body::wrap_stream(once(std::future::ready(Ok(part))).chain(once(breaks)));
    let sent = server.request(Method::POST, "/v1/collections/d/import");
    let sent = sent.header("content-type", NDJSON).body(body).send().await;
    assert!(sent.is_err(), "{sent:?}");
    let strangers = faces_of(&file);
    let broken_off = exported(&server, "d").await;
    assert!(!broken_off.contains(&analysed), "{CROWD} faces are not there yet");
    let there = faces_of(&broken_off);
    let whole = there.iter().filter(|(id, face)| strangers.get(*id) == Some(face)).count();
    assert!(there.len() < CROWD && whole > CROWD / 2, "{whole} of {}", there.len());
    assert!(there.values().all(|face| face["vectors"]["tiny"].is_string()));
    let (status, all) = import(&server, "d", file).await;
    assert_eq!(status, StatusCode::OK, "{all}");
    assert_eq!(face_count(&server, "d").await, all["read"]["faces"].as_u64().unwrap());
    assert!(exported(&server, "d").await.contains(&analysed));
    assert_eq!(without_counts(answers(&server, "d").await), without_counts(answers(&server, "c").await));
    server.stop().await;
}

/// Imports into `d`; between both parts of the file something else happens.
async fn import_around(
    server: &Server,
    part: &str,
    between: impl Future<Output = ()> + Send + 'static,
    rest: &str,
) -> Value {
    let (part, rest) = (part.to_owned(), rest.to_owned());
    let goes_on = async move {
        between.await;
        Ok::<_, std::io::Error>(rest)
    };
    let body = reqwest::Body::wrap_stream(once(std::future::ready(Ok(part))).chain(once(goes_on)));
    let (status, all) = import(server, "d", body).await;
    assert_eq!(status, StatusCode::OK, "{all}");
    all
}

/// The last picture that the collection has when no more come.
async fn last_picture(http: reqwest::Client, address: String) -> String {
    let path = format!("{address}/v1/collections/d/export");
    let mut before = Vec::new();
    loop {
        let file = http.get(&path).send().await.unwrap().text().await.unwrap();
        let lines = file.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let there: Vec<Value> = lines.filter(|line| line["type"] == "image").collect();
        if there.len() > SINGLES / 4 && there == before {
            return there.iter().max_by_key(|image| image["sha256"].as_str()).unwrap()["id"]
                .as_str()
                .unwrap()
                .to_owned();
        }
        before = there;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn a_picture_that_is_whole_is_written_once(site: Site) {
    let server = Server::start(&site).await;
    fill(&server).await;
    let file = enlarged(&exported(&server, "c").await);
    server.make_collection("d").await;
    // Within the pictures of one face; those before are written as far as they fill a transaction.
    let at = file.rmatch_indices("\"type\":\"image\"").nth(SINGLES / 4).unwrap().0;
    let at = file[..at].rfind('\n').unwrap() + 1;
    let (http, address) = (server.http.clone(), server.address.clone());
    let erases = async move {
        let last = last_picture(http.clone(), address.clone());
        let last = tokio::time::timeout(Duration::from_secs(60), last).await.unwrap();
        let path = format!("{address}/v1/collections/d/images/{last}");
        assert_eq!(http.delete(path).send().await.unwrap().status(), StatusCode::ACCEPTED);
    };
    let all = import_around(&server, &file[..at], erases, &file[at..]).await;
    assert_eq!((&all["added"], &all["erased"]["images"]), (&all["read"], &json!(0)), "{all}");
    let row = server.get("/v1/collections/d").await;
    let count = |kind: &str| all["read"][kind].as_u64().unwrap() - 1;
    assert_eq!((&row["images"], &row["faces"]), (&json!(count("images")), &json!(count("faces"))), "{all}");
    server.stop().await;
}

async fn an_import_goes_on_while_something_is_erased(site: Site) {
    let server = Server::start(&site).await;
    fill(&server).await;
    let file = enlarged(&exported(&server, "c").await);
    server.make_collection("d").await;
    let mut lines = file.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let crowd = lines.find(|line| line["analyses"].to_string().contains(&format!(":{CROWD}}}"))).unwrap();
    let path = format!("{}/v1/collections/d/images/{}", server.address, crowd["id"].as_str().unwrap());
    // Within the crowd, of which a part is written by then.
    let (part, rest) = file.split_at(file.len() * 2 / 3);
    let (http, address) = (server.http.clone(), server.address.clone());
    let erases = async move {
        tokio::time::timeout(Duration::from_secs(60), faces_came(http.clone(), address)).await.unwrap();
        assert_eq!(http.delete(path).send().await.unwrap().status(), StatusCode::ACCEPTED);
    };
    let all = import_around(&server, part, erases, rest).await;
    let count = |what: &str, kind: &str| all[what][kind].as_u64().unwrap();
    assert_eq!((count("erased", "images"), count("added", "images")), (0, count("read", "images")), "a part was there");
    assert!((1..CROWD as u64).contains(&count("erased", "faces")), "{all}");
    assert_eq!(count("erased", "faces") + count("added", "faces"), count("read", "faces"), "{all}");
    assert_eq!(face_count(&server, "d").await, count("read", "faces") - CROWD as u64);
    assert_eq!(without_counts(answers(&server, "d").await), without_counts(answers(&server, "c").await));
    server.stop().await;
}

/// Begins an import that does not end; again where it is refused.
async fn begin(http: reqwest::Client, address: String, file: String) {
    loop {
        let body = once(std::future::ready(Ok::<_, std::io::Error>(file.clone()))).chain(pending());
        let request = http.post(format!("{address}/v1/collections/c/import"));
        let request = request.header("content-type", NDJSON).body(reqwest::Body::wrap_stream(body));
        request.send().await.unwrap();
    }
}

async fn imports_at_once_are_bounded(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let file = exported(&server, "c").await;
    let begun = |_| tokio::spawn(begin(server.http.clone(), server.address.clone(), file.clone()));
    let begun: Vec<_> = (0..2).map(begun).collect();
    let until = async |wanted: StatusCode| {
        let status = async || import(&server, "c", file.clone()).await.0;
        while status().await != wanted {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let soon = Duration::from_secs(20);
    tokio::time::timeout(soon, until(StatusCode::SERVICE_UNAVAILABLE)).await.unwrap();
    begun.iter().for_each(tokio::task::JoinHandle::abort);
    tokio::time::timeout(soon, until(StatusCode::OK)).await.unwrap();
    server.stop().await;
}

async fn bad_files_are_refused(site: Site) {
    let server = Server::start(&site).await;
    fill(&server).await;
    let file = exported(&server, "c").await;
    server.make_collection("d").await;
    let lines: Vec<&str> = file.lines().collect();
    let changed = |line: usize, from: &str, to: &str| {
        assert!(lines[line].contains(from), "{}", lines[line]);
        let text = |(n, l): (usize, &&str)| if n == line { l.replace(from, to) } else { (*l).to_owned() };
        lines.iter().enumerate().map(text).collect::<Vec<_>>().join("\n") + "\n"
    };
    let face = lines.iter().position(|line| line.contains("\"vectors\"")).unwrap();
    let vector = serde_json::from_str::<Value>(lines[face]).unwrap()["vectors"]["tiny"].as_str().unwrap().to_owned();
    // 0x7f800000 is infinite.
    let infinite = format!("AACAfw{}", &vector[6..]);
    let cases = [
        (String::new(), "not_an_export", ""),
        ("{\"s3\":\"s3://b/k\"}\n".to_owned(), "not_an_export", ""),
        (cut(&file), "export_cut", ""),
        (file.replace("\"faces\":7,", "\"faces\":8,"), "export_cut", ""),
        (changed(0, "\"version\":1", "\"version\":2"), "newer_format", "upgrade"),
        (
            changed(0, "\"name\":\"tiny\"", "\"name\":\"other\"")
                .replace("\"pipeline\":\"tiny\"", "\"pipeline\":\"other\""),
            "unknown_pipeline",
            "other",
        ),
        (changed(0, "\"dimension\":64", "\"dimension\":65"), "dimension_mismatch", "65"),
        (changed(0, "\"weights\":\"", "\"weights\":\"0"), "weights_mismatch", "tiny"),
        (changed(face, "\"type\"", "\"typ"), "corrupt_line", "line"),
        (changed(face, &vector, &infinite), "corrupt_line", "finite"),
        (changed(face, &vector, &vector[..8]), "corrupt_line", "vector"),
        (format!("{{\"x\":\"{}\"}}\n", "y".repeat(5 << 20)), "corrupt_line", "longer"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.ndjson");
    for (bad, code, part) in cases {
        let (status, refused) = import(&server, "d", bad.clone()).await;
        assert_eq!((status, refused["code"].as_str()), (StatusCode::UNPROCESSABLE_ENTITY, Some(code)), "{refused}");
        let detail = refused["detail"].as_str().unwrap();
        assert!(detail.contains(part), "{detail} lacks {part}");
        std::fs::write(&path, bad).unwrap();
        let output = transfer(&server, &["import", "--collection", "e"], &path).await;
        assert!(!output.status.success(), "{code}");
    }
    let (status, missing) = import(&server, "nowhere", file.clone()).await;
    assert_eq!((status, &missing["code"]), (StatusCode::NOT_FOUND, &json!("collection_not_found")));
    let untyped = server.request(Method::POST, "/v1/collections/d/import").body(file.clone());
    assert_eq!(read(untyped).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let face_count = server.get("/v1/collections/d").await["faces"].as_i64().unwrap();
    let (_, all) = import(&server, "d", file).await;
    assert_eq!(all["added"]["faces"].as_i64().unwrap() + face_count, 7, "a bad file does no harm: {all}");
    server.stop().await;
}
