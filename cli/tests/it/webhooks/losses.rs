//! No event is lost: receivers answer as badly as they can, and the processes that tell them die.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt as _, stream};
use reqwest::Method;
use serde_json::{Value, json};

use super::{PATIENCE, Receiver, SETTINGS, jobs, make_endpoint, ok, path, until_all_are};
use crate::server::{Server, Site, inline, on_both, photo, read};

on_both!(
    nothing_is_lost_when_the_process_dies_before_it_tells,
    nothing_is_lost_when_the_process_dies_after_it_told,
    nothing_is_lost_in_a_storm,
);

/// Jobs of the storm, unless `CONTRACT_EVENTS` says otherwise.
const JOBS: usize = 20;

/// What the tests of this process have told, and lost: the report of `make contract`.
static TALLY: Mutex<(usize, usize)> = Mutex::new((0, 0));

fn tally(events: usize, told: usize) {
    let mut tally = TALLY.lock().unwrap();
    *tally = (tally.0 + events, tally.1 + (events - told));
    let report = json!({ "events": tally.0, "events_lost": tally.1 });
    std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("webhooks.json"), report.to_string()).unwrap();
}

async fn nothing_is_lost_when_the_process_dies_before_it_tells(site: Site) {
    dies_at(site, "webhook_claimed:3").await;
}

async fn nothing_is_lost_when_the_process_dies_after_it_told(site: Site) {
    dies_at(site, "webhook_told:3").await;
}

/// The process that tells dies; another one tells what it had not, or perhaps had.
async fn dies_at(site: Site, point: &str) {
    const JOBS: usize = 12;
    let receiver = Receiver::start(|_| ok()).await;
    let server = Server::start_with(&site, &[&SETTINGS[..], &[("FACE_ID_CRASH_AT", point)]].concat()).await;
    server.make_collection("c").await;
    let endpoint = make_endpoint(&server, json!({ "url": receiver.url, "event_types": ["job.succeeded"] })).await;
    let body = |n: u32| json!({ "image": inline(&photo(&[n])), "tag": format!("t{n}") });
    let mut accepted = 0;
    for n in 0..u32::try_from(JOBS).unwrap() {
        let request = server.request(Method::POST, "/v1/collections/c/identify").json(&body(n));
        // On the embedded set-up the API dies with the worker.
        let Ok(answer) = request.send().await else { break };
        accepted += usize::from(answer.status() == StatusCode::ACCEPTED);
    }
    assert!(accepted >= 3, "{accepted} jobs were accepted");
    server.wait_for_crash().await;
    let server = Server::start_with(&site, &SETTINGS).await;
    let ended = all_ended(&server).await;
    assert!(ended.len() >= accepted, "there are {} of {accepted} accepted jobs", ended.len());
    every_one_is_told(&server, &endpoint, &receiver, &ended).await;
    server.stop().await;
}

/// Every message is answered badly several times, in every way that there is, while the telling process is killed twice.
async fn nothing_is_lost_in_a_storm(site: Site) {
    let count = count();
    assert!(count <= 500, "CONTRACT_EVENTS: a list is read as one page");
    let schedule = vec!["0.2"; 20].join(",");
    let settings = [
        &SETTINGS[..],
        &[
            ("FACE_ID_WEBHOOKS__SCHEDULE_S", schedule.as_str()),
            ("FACE_ID_WEBHOOKS__TIMEOUT_S", "1"),
            ("FACE_ID_WEBHOOKS__MAX_IN_FLIGHT_PER_ENDPOINT", "16"),
        ],
    ]
    .concat();
    // Each event is answered in all these ways before it is taken.
    let receiver = Receiver::slow(|_, again| match again {
        0 => (Duration::ZERO, StatusCode::INTERNAL_SERVER_ERROR.into_response()),
        1 => (Duration::ZERO, (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")]).into_response()),
        2 => (Duration::ZERO, (StatusCode::FOUND, [(header::LOCATION, "http://127.0.0.1:9/")]).into_response()),
        3 => (Duration::from_secs(2), ok()),
        4 => (Duration::ZERO, (StatusCode::BAD_GATEWAY, "x".repeat(5_000_000)).into_response()),
        5 => (Duration::ZERO, breaks_off(StatusCode::SERVICE_UNAVAILABLE)),
        _ => (Duration::ZERO, breaks_off(StatusCode::OK)),
    })
    .await;
    let server = Server::start_with(&site, &settings).await;
    server.make_collection("c").await;
    let endpoint = make_endpoint(&server, json!({ "url": receiver.url, "event_types": ["job.succeeded"] })).await;
    // Nothing is told before everything is accepted: what dies takes the API with it on the embedded set-up.
    set_state(&server, &endpoint, "paused").await;
    jobs(&server, count, &json!({})).await;
    server.stop().await;
    for (nth, point) in ["webhook_told:10", "webhook_claimed:15"].into_iter().enumerate() {
        let server = Server::start_with(&site, &[&settings[..], &[("FACE_ID_CRASH_AT", point)]].concat()).await;
        if nth == 0 {
            set_state(&server, &endpoint, "enabled").await;
        }
        server.wait_for_crash().await;
    }
    let server = Server::start_with(&site, &settings).await;
    let ended = all_ended(&server).await;
    assert_eq!(ended.len(), count);
    every_one_is_told(&server, &endpoint, &receiver, &ended).await;
    server.stop().await;
}

#[expect(clippy::disallowed_methods, reason = "it is no setting of the program")]
fn count() -> usize {
    std::env::var("CONTRACT_EVENTS").map_or(JOBS, |n| n.parse().unwrap())
}

async fn set_state(server: &Server, endpoint: &Value, state: &str) {
    let change = server.request(Method::PATCH, &path(endpoint)).json(&json!({ "state": state }));
    let (status, shown) = read(change).await;
    assert_eq!((status, &shown["state"]), (StatusCode::OK, &json!(state)));
}

/// An answer whose body ends in the middle, after what came before it was sent.
fn breaks_off(status: StatusCode) -> Response {
    let broken = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Err(std::io::Error::other("broken off"))
    };
    let parts = stream::once(async { Ok(Bytes::from_static(b"some")) }).chain(stream::once(broken));
    (status, Body::from_stream(parts)).into_response()
}

/// Waits until all jobs have succeeded, and gives their ids.
async fn all_ended(server: &Server) -> HashSet<String> {
    let began = Instant::now();
    loop {
        let jobs = server.get("/v1/jobs?collection=c&limit=500").await["items"].clone();
        let jobs = jobs.as_array().unwrap();
        if jobs.iter().all(|job| job["state"] == "succeeded") {
            return jobs.iter().map(|job| job["id"].to_string()).collect();
        }
        assert!(began.elapsed() < PATIENCE, "the jobs end: {jobs:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// One event of each job came, each time with the same id and body, and signed.
async fn every_one_is_told(server: &Server, endpoint: &Value, receiver: &Receiver, ended: &HashSet<String>) {
    let began = Instant::now();
    let patience = PATIENCE + Duration::from_secs(ended.len() as u64);
    while jobs_of(receiver).len() < ended.len() && began.elapsed() < patience {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tally(ended.len(), jobs_of(receiver).intersection(ended).count());
    assert_eq!(&jobs_of(receiver), ended, "every job is told of");
    until_all_are(server, endpoint, "delivered", ended.len()).await;
    let mut told: HashMap<String, Bytes> = HashMap::new();
    for message in receiver.came() {
        assert!(message.is_signed_with(endpoint["secret"].as_str().unwrap()));
        let body = told.entry(message.id().to_owned()).or_insert_with(|| message.body.clone());
        assert_eq!(*body, message.body, "what is told again is the same");
    }
    assert_eq!(told.len(), ended.len(), "one event a job");
}

/// The jobs of which messages have told.
fn jobs_of(receiver: &Receiver) -> HashSet<String> {
    receiver.came().iter().map(|message| message.json()["data"]["job_id"].to_string()).collect()
}
