//! Every template of models/templates end to end, on networks of the same inputs and outputs (models/tiny/signatures).

use std::path::Path;

use reqwest::{Method, StatusCode};
use serde_json::json;
use shared::catalogue::{Catalogue, Metric, Pipeline, Template, templates};
use shared::digest::sha256_hex;
use worker::testing::{real_assets, real_data, repository, synthetic_photo};

use crate::server::{Server, Site, inline, photo, read};

/// The section of that name, with the tables below it, up to the next one.
fn section<'t>(entry: &'t str, name: &str) -> &'t str {
    let start = entry.find(&format!("[{name}]")).unwrap();
    let end = ["[landmarks]", "[alignment]"].iter().filter_map(|next| entry[start + 1..].find(next)).min().unwrap();
    &entry[start..=start + end]
}

/// The entry that the template makes with its stand-in, on the tiny detector; all files lie below `models`.
fn entry(template: Template, models: &Path) -> String {
    let signatures = repository().join("models/tiny/signatures");
    let read = |name: &str| std::fs::read(signatures.join(format!("{name}.onnx"))).unwrap();
    let (weights, points) = (read(template.name), read("landmark68"));
    let file = format!("{}.onnx", template.name);
    std::fs::write(models.join(&file), &weights).unwrap();
    std::fs::write(models.join("landmark68.onnx"), &points).unwrap();
    let text = template.filled(&sha256_hex(&weights), weights.len() as u64);
    let known = Pipeline::parse(template.name, &text).unwrap();
    let text = text.replace(&format!("{:?}", known.recognizer.file.name), &format!("{file:?}"));
    let tiny = std::fs::read_to_string(repository().join("models/tiny/tiny.toml")).unwrap();
    let text = text.replace(section(&text, "detector"), section(&tiny, "detector"));
    let Some(landmarks) = known.landmarks else { return text };
    let known = format!("sha256 = {:?}\nsize_bytes = {}", landmarks.file.sha256, landmarks.file.size_bytes);
    assert!(text.contains(&known), "{text}");
    text.replace(&known, &format!("sha256 = {:?}\nsize_bytes = {}", sha256_hex(&points), points.len()))
}

#[tokio::test]
async fn every_template_enrolls_and_tells_people_apart() {
    let (site, own) = (Site::embedded(), tempfile::tempdir().unwrap());
    let models = own.path().join("models");
    std::fs::create_dir(&models).unwrap();
    for file in ["tiny_detector.onnx", "tiny_recognizer.onnx", "tiny.toml"] {
        std::fs::copy(repository().join("models/tiny").join(file), models.join(file)).unwrap();
    }
    for template in templates() {
        std::fs::write(models.join(format!("{}.toml", template.name)), entry(template, &models)).unwrap();
    }
    let names: Vec<&str> = templates().map(|template| template.name).collect();
    let server = Server::start_with(
        &site,
        &[
            ("FACE_ID_ASSETS_DIR", own.path().to_str().unwrap()),
            ("FACE_ID_MODELS__CATALOGUE_DIR", models.to_str().unwrap()),
            ("FACE_ID_MODELS__ACCEPTED_LICENCES", &names.join(",")),
            ("FACE_ID_WORKER__PIPELINES", ""),
        ],
    )
    .await;
    for template in templates() {
        let name = template.name;
        // What lies around a face is alike in all pictures, so that even two patterns of nothing in common are alike where the crop
        // has a margin.
        let is_cosine = template.pipeline().unwrap().recognizer.metric == Metric::Cosine;
        let threshold = if is_cosine { 0.9 } else { 0.6 };
        let collection = json!({ "name": name, "pipeline": name, "settings": { "match_cosine": threshold } });
        let (status, made) = read(server.request(Method::POST, "/v1/collections").json(&collection)).await;
        assert_eq!(status, StatusCode::CREATED, "{name}: {made}");
        for seed in 1..=3 {
            server.enroll(name, seed).await;
        }
        for (seed, is_known) in [(2, true), (9, false)] {
            let probe = inline(&synthetic_photo(&[seed], 320, 300));
            let job = server.run(name, "identify", &json!({ "image": probe })).await;
            let faces = job["result"]["faces"].as_array().unwrap_or_else(|| panic!("{name}: {job}"));
            assert_eq!((faces.len(), faces[0]["decision"] == "match"), (1, is_known), "{name}: {job}");
            if is_known {
                assert_eq!(faces[0]["matches"][0]["external_id"], "person-2", "{name}: {job}");
            }
        }
        let job = server
            .run(name, "verify", &json!({ "image": inline(&photo(&[1])), "other": { "image": inline(&photo(&[2])) } }))
            .await;
        assert_ne!(job["result"]["decision"], "match", "{name}: {job}");
    }
    server.stop().await;
}

/// As docs/MODELS.md says it: the entry goes into the folder that face-id reads.
#[tokio::test]
async fn a_template_makes_an_entry_in_the_folder_of_the_catalogue() {
    let own = tempfile::tempdir().unwrap();
    let (weights, entry) = (own.path().join("own.onnx"), own.path().join("yunet-adaface.toml"));
    std::fs::write(&weights, "weights").unwrap();
    let models = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_face-id"));
        command.env("FACE_ID_MODELS__CATALOGUE_DIR", own.path()).arg("models").args(arguments).output().await.unwrap()
    };
    let template =
        ["template", "yunet-adaface", "--weights", weights.to_str().unwrap(), "--output", entry.to_str().unwrap()];
    let made = models(&template).await;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let listed = models(&["list"]).await;
    assert!(listed.status.success() && String::from_utf8_lossy(&listed.stdout).contains("yunet-adaface"));
    let again = models(&template).await;
    assert!(!again.status.success(), "an entry that is there stays");
    // One that describes it once more is refused by its name, and not only the later one taken.
    std::fs::copy(&entry, own.path().join("copy.toml")).unwrap();
    let doubled = models(&["list"]).await;
    let said = String::from_utf8_lossy(&doubled.stderr).into_owned();
    assert!(!doubled.status.success() && said.contains("another file of the folder"), "{said}");
}

/// The alignment of 2018: MTCNN finds, 68 points align, and vectors are compared by their distance.
#[tokio::test]
async fn mtcnn_and_dlibs_alignment_recognise_people() {
    let pipeline = Catalogue::load(None).unwrap().pipeline("mtcnn-dlib-densenet").unwrap().clone();
    let (Some(assets), Some(faces)) = (real_assets(&pipeline), real_data("faces")) else { return };
    let site = Site::embedded();
    let assets_dir = assets.assets_dir.unwrap();
    let variables = [
        ("FACE_ID_ASSETS_DIR", assets_dir.to_str().unwrap()),
        ("FACE_ID_MODELS__DEFAULT_PIPELINE", pipeline.name.as_str()),
        ("FACE_ID_WORKER__PIPELINES", ""),
    ];
    let server = Server::start_with(&site, &variables).await;
    // The authors take two faces for one person below a distance of 0.55.
    let collection = json!({ "name": "c", "pipeline": pipeline.name, "settings": { "match_cosine": 0.45 } });
    let (status, made) = read(server.request(Method::POST, "/v1/collections").json(&collection)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let photo = |name: &str| inline(&std::fs::read(faces.join(name)).unwrap());
    for (name, person) in [("obama.jpg", "obama"), ("biden.jpg", "biden")] {
        let body = json!({ "image": photo(name), "person": { "external_id": person } });
        let job = server.run("c", "enroll", &body).await;
        assert_eq!(job["state"], "succeeded", "{job}");
    }
    for (name, person) in [("obama2.jpg", Some("obama")), ("biden2.jpg", Some("biden")), ("astronaut.png", None)] {
        let job = server.run("c", "identify", &json!({ "image": photo(name) })).await;
        let face = &job["result"]["faces"][0];
        assert_eq!(face["landmarks"]["scheme"], "ibug-68", "{job}");
        assert_eq!(face["decision"] == "match", person.is_some(), "{name}: {job}");
        if let Some(person) = person {
            assert_eq!(face["matches"][0]["external_id"], person, "{name}: {job}");
        }
    }
    server.stop().await;
}
