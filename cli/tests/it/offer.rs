//! Pipelines that a machine cannot run: refused where that can be told at once, and left to other workers.

use std::path::Path;

use reqwest::{Method, StatusCode};
use serde_json::json;
use tempfile::TempDir;

use crate::server::{Server, Site, command, on_both, read};

on_both!(what_cannot_run_here_is_left_out_and_told);

/// A feature that no processor of this machine's kind has.
const FOREIGN: &str = if cfg!(target_arch = "x86_64") { "dotprod" } else { "avx_vnni" };

/// The entry `tiny`, and `elsewhere`, which is the same for another processor.
fn catalogue() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tiny = std::fs::read_to_string(worker::testing::repository().join("models/tiny/tiny.toml")).unwrap();
    let elsewhere = tiny.replace("name = \"tiny\"\n", &format!("name = \"elsewhere\"\nrequires = [\"{FOREIGN}\"]\n"));
    assert_ne!(elsewhere, tiny);
    std::fs::write(folder.path().join("tiny.toml"), tiny).unwrap();
    std::fs::write(folder.path().join("elsewhere.toml"), elsewhere).unwrap();
    folder
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

async fn what_cannot_run_here_is_left_out_and_told(site: Site) {
    let folder = catalogue();
    let settings = [("FACE_ID_MODELS__CATALOGUE_DIR", text(folder.path())), ("FACE_ID_WORKER__PIPELINES", "")];
    let server = Server::start_with(&site, &settings).await;
    server.make_collection("c").await;
    server.enroll("c", 1).await;

    let ready = reqwest::get(format!("{}/readyz", server.probes.as_ref().unwrap_or(&server.address))).await.unwrap();
    assert_eq!(ready.status(), StatusCode::OK);
    let told = ready.text().await.unwrap();
    assert!(told.contains("without elsewhere: ") && told.contains(FOREIGN), "{told}");
    assert!(!told.contains("without tiny"), "{told}");

    let asked = json!({ "name": "e", "pipeline": "elsewhere" });
    let (status, body) = read(server.request(Method::POST, "/v1/collections").json(&asked)).await;
    if site.has_services() {
        assert_eq!(status, StatusCode::CREATED, "another worker may run it: {body}");
    } else {
        let expected = (StatusCode::UNPROCESSABLE_ENTITY, &json!("pipeline_not_runnable"));
        assert_eq!((status, &body["code"]), expected, "{body}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_worker_that_is_told_to_run_it_does_not_start() {
    let (folder, site) = (catalogue(), Site::services().await);
    let mut worker = command();
    worker
        .envs(site.settings())
        .env("FACE_ID_MODELS__CATALOGUE_DIR", folder.path())
        .env("FACE_ID_WORKER__PIPELINES", "tiny,elsewhere");
    let output = worker.arg("worker").output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    for part in ["worker.pipelines names elsewhere", &format!("needs a processor with {FOREIGN}")] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
}
