//! What changes, told to those who watch a stream of events.

use std::time::Duration;

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::server::{Server, Site, inline, on_both, photo, read};

on_both!(
    a_stream_tells_each_change_until_the_end,
    an_open_stream_does_not_hold_up_a_stop,
    a_batch_is_streamed_to_its_end,
);

/// An event of a stream.
#[derive(Debug)]
struct Event {
    name: String,
    id: String,
    data: Value,
}

/// The events of a whole stream, which has to end within `patience`.
async fn events(answer: Response, patience: Duration) -> Vec<Event> {
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let text = tokio::time::timeout(patience, answer.text()).await.expect("the stream ends").unwrap();
    let field = |event: &str, name: &str| {
        let value = event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.unwrap_or_default().to_owned()
    };
    let told = text.split("\n\n").filter(|event| event.contains("event:"));
    let event = |event: &str| Event {
        name: field(event, "event"),
        id: field(event, "id"),
        data: serde_json::from_str(&field(event, "data")).unwrap_or(Value::Null),
    };
    told.map(event).collect()
}

async fn a_stream_tells_each_change_until_the_end(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let job = server.submit("c", "identify", &json!({ "image": inline(&photo(&[1])) })).await;
    let path = format!("/v1/jobs/{}/events", job["id"].as_str().unwrap());
    let watch = |after: Option<&str>| {
        let request = server.request(Method::GET, &path);
        after.into_iter().fold(request, |request, id| request.header("last-event-id", id)).send()
    };
    let told = events(watch(None).await.unwrap(), Duration::from_secs(30)).await;
    let last = told.last().unwrap();
    assert_eq!((last.name.as_str(), &last.data["state"]), ("job", &json!("succeeded")));
    let versions: Vec<i64> = told.iter().map(|event| event.id.parse().unwrap()).collect();
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    assert_eq!(watch(Some(&last.id)).await.unwrap().status(), StatusCode::NO_CONTENT);
    let missed = events(watch(Some("0")).await.unwrap(), Duration::from_secs(10)).await;
    assert_eq!(missed.iter().map(|event| &event.id).collect::<Vec<_>>(), [&last.id]);
    let nowhere = server.request(Method::GET, "/v1/jobs/01900000-0000-7000-8000-000000000000/events");
    assert_eq!(read(nowhere).await.0, StatusCode::NOT_FOUND);
    server.stop().await;
}

/// A server, and a batch on it of pictures that are not there.
async fn with_batch(site: &Site, pictures: usize) -> (Server, String) {
    let (place, server) = if site.has_services() {
        let bucket = site.another_bucket().await.name;
        let server = Server::start_with(site, &[("FACE_ID_OBJECTS__ALLOWED_BUCKETS", &bucket)]).await;
        (format!("{{\"s3\":\"s3://{bucket}/"), server)
    } else {
        let root = site.folder().join("library");
        std::fs::create_dir_all(&root).unwrap();
        let root = root.to_str().unwrap();
        (format!("{{\"file\":\"{root}/"), Server::start_with(site, &[("FACE_ID_IMPORT__ROOTS", root)]).await)
    };
    server.make_collection("c").await;
    let lines: Vec<String> = (0..pictures).map(|n| format!("{place}{n}.jpg\"}}\n")).collect();
    let request = server.request(Method::POST, "/v1/batches?collection=c&kind=index");
    let request = request.header("content-type", "application/x-ndjson").header("idempotency-key", "batch");
    let (status, batch) = read(request.body(lines.concat())).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{batch}");
    (server, format!("/v1/batches/{}", batch["id"].as_str().unwrap()))
}

async fn an_open_stream_does_not_hold_up_a_stop(site: Site) {
    let (server, path) = with_batch(&site, 5000).await;
    let (status, paused) = read(server.request(Method::POST, &format!("{path}/pause"))).await;
    assert_eq!(status, StatusCode::OK, "{paused}");
    let answer = server.request(Method::GET, &format!("{path}/events")).send().await.unwrap();
    let told = tokio::spawn(events(answer, Duration::from_secs(30)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!told.is_finished(), "a batch that is paused has not ended");
    // The server's own grace for requests is longer than this.
    tokio::time::timeout(Duration::from_secs(8), server.stop()).await.expect("a stream is ended by the stop");
    assert!(!told.await.unwrap().is_empty());
}

async fn a_batch_is_streamed_to_its_end(site: Site) {
    let (server, path) = with_batch(&site, 5).await;
    let path = format!("{path}/events");
    let told = events(server.request(Method::GET, &path).send().await.unwrap(), Duration::from_secs(60)).await;
    let last = told.last().unwrap();
    assert_eq!(last.name, "batch");
    assert!(!last.data["finished_at"].is_null(), "{last:?}");
    assert_eq!((&last.data["items"], &last.data["jobs"]["rejected"]), (&json!(5), &json!(5)), "{last:?}");
    let mut seen: Vec<&str> = told.iter().map(|event| event.id.as_str()).collect();
    seen.dedup();
    assert_eq!(seen.len(), told.len(), "no event comes twice in a row");
    server.stop().await;
}
