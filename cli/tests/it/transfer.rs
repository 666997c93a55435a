//! A collection's people and faces leave a server as a file, and come into another.

use std::path::Path;
use std::process::Output;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::library::{changed, index};
use crate::server::{Server, Site, command, inline, on_both, photo, read};

on_both!(an_interrupted_import_goes_on, bad_files_are_refused, a_broken_connection_leaves_no_half_face);

const NDJSON: &str = "application/x-ndjson";

async fn transfer(server: &Server, arguments: &[&str], file: &Path) -> Output {
    let mut command = command();
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

async fn exported(server: &Server) -> String {
    let answer = server.request(Method::GET, "/v1/collections/c/export").send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], NDJSON);
    answer.text().await.unwrap()
}

async fn import(server: &Server, collection: &str, body: impl Into<reqwest::Body>) -> (StatusCode, Value) {
    let path = format!("/v1/collections/{collection}/import");
    read(server.request(Method::POST, &path).header("content-type", NDJSON).body(body)).await
}

/// The file as far as the last face.
fn cut(file: &str) -> String {
    let lines: Vec<&str> = file.lines().collect();
    let last_face = lines.iter().rposition(|line| line.contains("\"type\":\"face\"")).unwrap();
    lines[..last_face].join("\n") + "\n"
}

async fn an_interrupted_import_goes_on(site: Site) {
    let server = Server::start(&site).await;
    fill(&server).await;
    let wanted = answers(&server, "c").await;
    let file = exported(&server).await;
    server.make_collection("d").await;
    let (status, refused) = import(&server, "d", cut(&file)).await;
    assert_eq!((status, &refused["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("export_cut")), "{refused}");
    let (status, all) = import(&server, "d", file.clone()).await;
    assert_eq!(status, StatusCode::OK, "{all}");
    assert_eq!(answers(&server, "d").await, wanted);
    let (_, again) = import(&server, "d", file).await;
    assert_eq!(again["read"], all["read"]);
    assert!(again["added"].as_object().unwrap().values().all(|added| added == 0), "{again}");
    assert_eq!(answers(&server, "d").await, wanted);
    server.stop().await;
}

async fn a_broken_connection_leaves_no_half_face(site: Site) {
    let server = Server::start(&site).await;
    fill(&server).await;
    let file = exported(&server).await;
    server.make_collection("d").await;
    let half = file.as_bytes()[..file.len() / 2].to_vec();
    let pieces = [Ok(half), Err(std::io::Error::other("the client dies"))];
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let path = format!("{}/v1/collections/d/import", server.address);
    let sent = reqwest::Client::new().post(path).header("content-type", NDJSON).body(body).send().await;
    assert!(sent.is_err(), "{sent:?}");
    let (status, all) = import(&server, "d", file).await;
    assert_eq!(status, StatusCode::OK, "{all}");
    assert_eq!(answers(&server, "d").await, answers(&server, "c").await);
    server.stop().await;
}

async fn bad_files_are_refused(site: Site) {
    let server = Server::start(&site).await;
    fill(&server).await;
    let file = exported(&server).await;
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
