//! What the server refuses when too much waits.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::server::{Server, Site, inline, on_both, photo};

on_both!(bulk_jobs_are_refused_first_and_then_all, jobs_are_refused_where_the_first_has_waited_too_long,);

const PATIENCE: Duration = Duration::from_secs(60);

/// A server whose workers take nothing while the file is there.
async fn stuck(site: &Site, settings: &[(&str, &str)]) -> (Server, std::path::PathBuf) {
    let file = site.folder().join("stand-still");
    std::fs::write(&file, "").unwrap();
    let stand_still = format!("consumer={}", file.display());
    let server = Server::start_with(site, &[&[("FACE_ID_STAND_STILL_AT", &*stand_still)], settings].concat()).await;
    server.make_collection("c").await;
    (server, file)
}

async fn metrics(server: &Server) -> String {
    server.request(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap()
}

/// Until it has counted what waits.
async fn until_counted(server: &Server) {
    let began = Instant::now();
    while !metrics(server).await.contains("face_id_waiting_jobs{") {
        assert!(began.elapsed() < PATIENCE, "it is not counted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Until that many have been counted.
async fn until_waiting(server: &Server, interactive: u32, bulk: u32) {
    let began = Instant::now();
    let line = |lane: &str, jobs: u32| format!("face_id_waiting_jobs{{pipeline=\"tiny\",lane=\"{lane}\"}} {jobs}\n");
    let lines = [line("interactive", interactive), line("bulk", bulk)];
    loop {
        let told = metrics(server).await;
        if lines.iter().all(|line| told.contains(line)) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{lines:?} are not in {told}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The status, the seconds of `Retry-After`, and the body.
async fn post(server: &Server, path: &str, key: Option<&str>, body: &Value) -> (StatusCode, Option<u64>, Value) {
    let mut request = server.request(Method::POST, path).json(body);
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let answer = request.send().await.unwrap();
    let wait = answer.headers().get("retry-after").map(|wait| wait.to_str().unwrap().parse().unwrap());
    (answer.status(), wait, answer.json().await.unwrap())
}

/// Asserts that it was refused because of what waits; the seconds of `Retry-After`.
fn refused((status, wait, body): (StatusCode, Option<u64>, Value), expected: (u16, &str)) -> u64 {
    assert_eq!((status.as_u16(), body["code"].as_str().unwrap()), expected, "{body}");
    assert_eq!(
        (&body["status"], &body["type"]),
        (&json!(expected.0), &json!(format!("urn:face-id:problem:{}", expected.1)))
    );
    let wait = wait.unwrap();
    assert!((1..=600).contains(&wait), "{wait}");
    wait
}

const BULK: (u16, &str) = (429, "bulk_queue_full");
const ALL: (u16, &str) = (503, "queue_full");

async fn bulk_jobs_are_refused_first_and_then_all(site: Site) {
    let library = site.folder().join("library");
    std::fs::create_dir(&library).unwrap();
    let limits = [("FACE_ID_SERVER__MAX_QUEUED_JOBS", "10"), ("FACE_ID_IMPORT__ROOTS", library.to_str().unwrap())];
    let (server, file) = stuck(&site, &limits).await;
    until_counted(&server).await;
    let image = json!({ "image": inline(&photo(&[1])) });
    let mut jobs = Vec::new();
    for n in 0..4 {
        let key = format!("key-{n}");
        let (status, _, job) = post(&server, "/v1/collections/c/identify", Some(&key), &image).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{job}");
        jobs.push(job);
    }
    let (status, _, job) = post(&server, "/v1/collections/c/index", None, &image).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{job}");
    jobs.push(job);
    until_waiting(&server, 4, 1).await;
    // Half of what may wait is there: interactive jobs find room still.
    let wait = refused(post(&server, "/v1/collections/c/index", None, &image).await, BULK);
    assert_eq!(wait, 600, "nothing ends");
    let batch = json!({ "collection": "c", "kind": "index", "source": { "folder": library } });
    refused(post(&server, "/v1/batches", Some("b"), &batch).await, BULK);
    for _ in 0..5 {
        let (status, _, job) = post(&server, "/v1/collections/c/identify", None, &image).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{job}");
        jobs.push(job);
    }
    until_waiting(&server, 9, 1).await;
    // It holds over further counts.
    for _ in 0..2 {
        refused(post(&server, "/v1/collections/c/identify", None, &image).await, ALL);
        refused(post(&server, "/v1/collections/c/index", None, &image).await, ALL);
        refused(post(&server, "/v1/batches", Some("b"), &batch).await, ALL);
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    let (status, _, repeated) = post(&server, "/v1/collections/c/identify", Some("key-0"), &image).await;
    assert_eq!((status, &repeated["id"]), (StatusCode::ACCEPTED, &jobs[0]["id"]), "what was accepted is answered");
    assert_eq!(server.objects().len(), 10, "no picture of a refused request is kept");
    let told = metrics(&server).await;
    for line in [
        "face_id_jobs_refused_total{lane=\"bulk\",code=\"bulk_queue_full\"} 2",
        "face_id_jobs_refused_total{lane=\"interactive\",code=\"queue_full\"} 2",
        "face_id_jobs_refused_total{lane=\"bulk\",code=\"queue_full\"} 4",
        "face_id_waiting_jobs{pipeline=\"tiny\",lane=\"interactive\"} 9",
        "face_id_waiting_jobs{pipeline=\"tiny\",lane=\"bulk\"} 1",
    ] {
        assert!(told.contains(line), "{line} is not in {told}");
    }

    std::fs::remove_file(&file).unwrap();
    for job in &jobs {
        assert_eq!(server.ended(job).await["state"], "succeeded");
    }
    until_taken(&server, "/v1/collections/c/index", &image).await;
    server.stop().await;
}

/// Sends it until it is accepted; meanwhile `Retry-After` is told.
async fn until_taken(server: &Server, path: &str, body: &Value) {
    let began = Instant::now();
    loop {
        let (status, wait, answer) = post(server, path, None, body).await;
        if status == StatusCode::ACCEPTED {
            return;
        }
        assert!((1..=600).contains(&wait.unwrap()), "{answer}");
        assert!(began.elapsed() < PATIENCE, "{answer}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn jobs_are_refused_where_the_first_has_waited_too_long(site: Site) {
    let limits = [("FACE_ID_SERVER__MAX_QUEUED_JOBS", "0"), ("FACE_ID_SERVER__MAX_QUEUE_AGE_S", "4")];
    let (server, file) = stuck(&site, &limits).await;
    let image = json!({ "image": inline(&photo(&[1])) });
    let began = Instant::now();
    let (status, _, first) = post(&server, "/v1/collections/c/identify", None, &image).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{first}");
    let answer = loop {
        let answer = post(
            &server,
            "/v1/collections/c/verify",
            None,
            &json!({
                "image": image["image"], "other": image,
            }),
        )
        .await;
        if answer.0 != StatusCode::ACCEPTED {
            break answer;
        }
        assert!(began.elapsed() < PATIENCE, "the first job has waited for {:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert!(began.elapsed() > Duration::from_secs(3), "not before it has waited");
    refused(answer, ALL);
    std::fs::remove_file(&file).unwrap();
    server.ended(&first).await;
    until_taken(&server, "/v1/collections/c/identify", &image).await;
    server.stop().await;
}
