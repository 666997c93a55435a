//! What is said of a match once more: by a second stage, and by networks that look for pictures of faces.

use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shared::digest::sha256_hex;
use shared::joint_bayes::{JointBayes, Matrix};
use worker::testing::{repository, synthetic_spoof};

use crate::server::{SIDE, Server, Site, inline, on_both, photo, read};

on_both!(pictures_of_faces_are_told, a_match_needs_both_stages, crops_are_compared_by_a_network);

/// Nothing here takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(30);

async fn make(server: &Server, name: &str, pipeline: &str, settings: Value) {
    let body = json!({ "name": name, "pipeline": pipeline, "settings": settings });
    let (status, body) = read(server.request(Method::POST, "/v1/collections").json(&body)).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
}

async fn enroll(server: &Server, collection: &str, picture: &[u8]) -> Value {
    server.run(collection, "enroll", &json!({ "image": inline(picture), "person": { "external_id": "ann" } })).await
}

/// The only face of an identify.
async fn identified(server: &Server, collection: &str, picture: &[u8]) -> Value {
    let job = server.run(collection, "identify", &json!({ "image": inline(picture) })).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    job["result"]["faces"][0].clone()
}

async fn pictures_of_faces_are_told(site: Site) {
    let variables = [("FACE_ID_MODELS__ANTI_SPOOFING", "tiny-live"), ("FACE_ID_WORKER__MAX_ATTEMPTS", "1")];
    let server = Server::start_with(&site, &variables).await;
    let (real, spoof) = (photo(&[1]), synthetic_spoof(&[1], SIDE, SIDE));
    for (mode, is_scored, is_required) in [("off", false, false), ("score", true, false), ("require", true, true)] {
        make(&server, mode, "tiny", json!({ "anti_spoofing": mode })).await;
        let refused = enroll(&server, mode, &spoof).await;
        if is_required {
            assert_eq!(
                (&refused["state"], &refused["problem"]["code"]),
                (&json!("rejected"), &json!("spoof_suspected"))
            );
            assert_eq!(refused["problem"]["faces"].as_array().unwrap().len(), 1, "{refused}");
        } else {
            assert_eq!(refused["state"], "succeeded", "{refused}");
        }
        let enrolled = enroll(&server, mode, &real).await;
        assert_eq!(enrolled["state"], "succeeded", "{enrolled}");
        assert_eq!(enrolled["result"]["live_score"].as_f64().is_some_and(|score| score > 0.9), is_scored, "{enrolled}");
        let face = identified(&server, mode, &spoof).await;
        assert_eq!(face["live_score"].as_f64().is_some_and(|score| score < 0.1), is_scored, "{face}");
        assert_eq!(face["spoof_suspected"], if is_scored { json!(is_required) } else { Value::Null });
        assert_eq!(face["decision"], if is_required { "unknown" } else { "match" }, "{face}");
        assert_eq!(face["matches"].as_array().unwrap().is_empty(), is_required);
        assert_eq!(identified(&server, mode, &real).await["decision"], "match");
    }
    let body = json!({ "settings": { "anti_spoofing": "require", "min_live_score": 1.5 } });
    let (status, problem) = read(server.request(Method::PATCH, "/v1/collections/off").json(&body)).await;
    assert_eq!(
        (status, &problem["errors"][0]["pointer"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("#/settings/min_live_score"))
    );
    server.stop().await;

    // The entry that comes with face-id has its weights nowhere here.
    let server = Server::start_with(&site, &variables[1..]).await;
    let failed = enroll(&server, "require", &photo(&[2])).await;
    assert_eq!(failed["state"], "failed", "{failed}");
    assert!(failed["problem"]["detail"].as_str().unwrap().contains("minifasnet"), "{failed}");
    assert_eq!(enroll(&server, "off", &photo(&[1])).await["state"], "succeeded");
    server.stop().await;
}

/// A folder with the tiny weights and entries, each of which has another second stage beside these weights.
struct Folder(tempfile::TempDir);

impl Folder {
    fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for part in ["models", "entries"] {
            std::fs::create_dir(folder.path().join(part)).unwrap();
        }
        let own = Self(folder);
        for name in ["tiny_detector.onnx", "tiny_recognizer.onnx", "tiny_pair_two.onnx"] {
            std::fs::copy(repository().join("models/tiny").join(name), own.path().join("models").join(name)).unwrap();
        }
        // A score of -|x - y|^2: 0 for the same vector, and -2 for one at a right angle.
        let model = JointBayes::new(vec![0.0; 64], Matrix::diagonal(64, -1.0), Matrix::diagonal(64, -1.0)).unwrap();
        std::fs::write(own.path().join("models/joint.jb"), model.to_bytes()).unwrap();
        own
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn add(&self, name: &str, stage: &str, file: &str) {
        let bytes = std::fs::read(self.path().join("models").join(file)).unwrap();
        let tiny = std::fs::read_to_string(repository().join("models/tiny/tiny.toml")).unwrap();
        let tiny = tiny.replace("name = \"tiny\"\n", &format!("name = \"{name}\"\n"));
        let entry = format!(
            "{tiny}\n[second_stage]\n{stage}\n\n[second_stage.file]\nname = \"{file}\"\nsha256 = \"{}\"\nsize_bytes = {}\n\
             licence = \"own\"\nuse = \"permissive\"\n",
            sha256_hex(&bytes),
            bytes.len()
        );
        std::fs::write(self.path().join("entries").join(format!("{name}.toml")), entry).unwrap();
    }

    async fn serve(&self, site: &Site) -> Server {
        let entries = self.path().join("entries");
        let variables = [
            ("FACE_ID_ASSETS_DIR", self.path().to_str().unwrap()),
            ("FACE_ID_MODELS__CATALOGUE_DIR", entries.to_str().unwrap()),
            ("FACE_ID_WORKER__PIPELINES", ""),
        ];
        Server::start_with(site, &variables).await
    }
}

async fn a_match_needs_both_stages(site: Site) {
    let folder = Folder::make();
    folder.add("tiny", "kind = \"joint-bayesian\"\nthreshold = -0.5", "joint.jb");
    folder.add("strict", "kind = \"joint-bayesian\"\nthreshold = 0.5", "joint.jb");
    let server = folder.serve(&site).await;
    for (pipeline, decision, is_match) in [("tiny", "match", true), ("strict", "uncertain", false)] {
        make(&server, pipeline, pipeline, json!({})).await;
        let ann = enroll(&server, pipeline, &photo(&[1])).await["result"]["person_id"].clone();
        let face = identified(&server, pipeline, &photo(&[1])).await;
        assert_eq!(face["decision"], decision, "{face}");
        let second = &face["matches"][0]["second_stage"];
        assert_eq!((&second["kind"], &second["is_match"]), (&json!("joint-bayesian"), &json!(is_match)), "{face}");
        assert!(second["score"].as_f64().unwrap() > -0.5 && second["threshold"].is_number(), "{face}");
        for other in [json!({ "person_id": ann }), json!({ "image": inline(&photo(&[1])) })] {
            let verified =
                server.run(pipeline, "verify", &json!({ "image": inline(&photo(&[1])), "other": other })).await;
            assert_eq!(verified["result"]["decision"], decision, "{verified}");
            assert_eq!(verified["result"]["second_stage"]["is_match"], is_match, "{verified}");
        }
        let stranger = identified(&server, pipeline, &photo(&[7])).await;
        assert_eq!(stranger["decision"], "unknown", "the second stage lifts nobody: {stranger}");

        let wanted = if is_match { ann } else { Value::Null };
        let indexed = server.run(pipeline, "index", &json!({ "image": inline(&photo(&[1, 2])) })).await;
        let matching: Vec<_> =
            indexed["result"]["faces"].as_array().unwrap().iter().filter(|f| f["decision"] == decision).collect();
        assert_eq!(matching.len(), 1, "{indexed}");
        let path = format!("/v1/collections/{pipeline}/faces/{}", matching[0]["face_id"].as_str().unwrap());
        assert_eq!(server.get(&path).await["person_id"], wanted);
        rematched(&server, pipeline).await;
        assert_eq!(server.get(&path).await["person_id"], wanted, "a rematch says the same");
    }
    server.stop().await;
}

/// Has all faces matched again, and waits for the end.
async fn rematched(server: &Server, collection: &str) {
    let began = Instant::now();
    loop {
        let (status, job) = read(server.request(Method::POST, &format!("/v1/collections/{collection}/rematch"))).await;
        if status == StatusCode::ACCEPTED {
            let job = server.ended(&job).await;
            assert_eq!(job["state"], "succeeded", "{job}");
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{job}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn crops_are_compared_by_a_network(site: Site) {
    let folder = Folder::make();
    let stage = "kind = \"pair-network\"\nthreshold = 0.7\ninput = { width = 64, height = 64, channels = \"rgb\", mean = [0.0, 0.0, 0.0], \
                 scale = [1.0, 1.0, 1.0], tensors = \"two\" }";
    folder.add("tiny", stage, "tiny_pair_two.onnx");
    let server = folder.serve(&site).await;
    for (name, keeps, decision) in [("kept", true, "match"), ("bare", false, "uncertain")] {
        make(&server, name, "tiny", json!({ "keep_crops": keeps })).await;
        let ann = enroll(&server, name, &photo(&[1])).await["result"]["person_id"].clone();
        let face = identified(&server, name, &photo(&[1])).await;
        assert_eq!(face["decision"], decision, "{face}");
        let second = &face["matches"][0]["second_stage"];
        assert_eq!(second["reason"], if keeps { Value::Null } else { json!("no_crop") }, "{face}");
        assert_eq!(second["score"].is_number(), keeps);
        let verify = async |other: Value| {
            server.run(name, "verify", &json!({ "image": inline(&photo(&[1])), "other": other })).await["result"]
                .clone()
        };
        assert_eq!(verify(json!({ "person_id": ann })).await["decision"], decision);
        let pictures = verify(json!({ "image": inline(&photo(&[1])) })).await;
        assert_eq!((&pictures["decision"], &pictures["second_stage"]["is_match"]), (&json!("match"), &json!(true)));
        let strangers = verify(json!({ "image": inline(&photo(&[2])) })).await;
        assert_eq!(
            (&strangers["decision"], &strangers["second_stage"]["is_match"]),
            (&json!("unknown"), &json!(false))
        );

        let indexed = server.run(name, "index", &json!({ "image": inline(&photo(&[1, 2])) })).await;
        let faces = indexed["result"]["faces"].as_array().unwrap();
        let face = faces.iter().find(|face| face["decision"] == decision).unwrap();
        let path = format!("/v1/collections/{name}/faces/{}", face["face_id"].as_str().unwrap());
        let wanted = if keeps { ann } else { Value::Null };
        assert_eq!(server.get(&path).await["person_id"], wanted);
        rematched(&server, name).await;
        assert_eq!(server.get(&path).await["person_id"], wanted, "a rematch leaves it as it is");
    }
    server.stop().await;
}
