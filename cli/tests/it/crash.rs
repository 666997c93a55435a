//! kill -9 in the middle of the work.

use std::collections::HashSet;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::server::{Server, Site, inline, on_both, photo};

on_both!(every_accepted_job_ends_once_after_a_kill);

const JOBS: u32 = 200;
const ROUNDS: u32 = 4;

async fn every_accepted_job_ends_once_after_a_kill(site: Site) {
    // One at a time, so that the kill finds work that waits and work that runs.
    let settings = [("FACE_ID_WORKER__CONCURRENCY", "1")];
    let mut server = Server::start_with(&site, &settings).await;
    server.make_collection("c").await;
    let mut jobs = Vec::new();
    let mut interrupted = 0;
    for round in 0..ROUNDS {
        let submitted = (0..JOBS / ROUNDS).map(|n| {
            let n = round * (JOBS / ROUNDS) + n;
            // Every tenth picture was sent before: its job must find the image, not store it again.
            let seed = if n % 10 == 9 { n - 1 } else { n };
            let body = json!({ "image": inline(&photo(&[seed, seed + 10_000])) });
            let server = &server;
            async move { server.submit("c", "index", &body).await }
        });
        jobs.extend(join_all(submitted).await);
        // A bulk message is claimed as a whole: what waits may do so in a worker's hands.
        for state in ["queued", "running"] {
            let open = server.get(&format!("/v1/jobs?collection=c&state={state}&limit=500")).await;
            interrupted += open["items"].as_array().unwrap().len();
        }
        server.kill().await;
        server = Server::start_with(&site, &settings).await;
    }
    assert!(interrupted > 0, "the kills came after all the work; more jobs are needed");

    for job in &jobs {
        let job = server.ended(job).await;
        assert_eq!(job["state"], "succeeded", "{job}");
    }
    let images = JOBS - JOBS / 10;
    let collection = server.get("/v1/collections/c").await;
    assert_eq!(
        (&collection["images"], &collection["faces"]),
        (&json!(images), &json!(images * 2)),
        "no face is doubled"
    );
    let faces = all(&server, "/v1/collections/c/faces").await;
    let places: HashSet<_> = faces.iter().map(|f| (f["image_id"].to_string(), f["box"].to_string())).collect();
    assert_eq!(places.len(), faces.len());
    server.wait_for_objects(images as usize).await;
    server.stop().await;
}

async fn all(server: &Server, path: &str) -> Vec<Value> {
    let mut rows = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = server.get(&format!("{path}?limit=500{cursor}")).await;
        rows.extend(page["items"].as_array().unwrap().iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return rows,
        }
    }
}
