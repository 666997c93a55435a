//! Jobs as clients see them: waiting, idempotency, cancelling.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::server::{Server, Site, inline, on_both, photo, read};

on_both!(a_waiting_client_is_answered_when_the_job_ends, the_same_key_is_the_same_job, a_waiting_job_can_be_cancelled);

async fn a_waiting_client_is_answered_when_the_job_ends(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let request =
        server.request(Method::POST, "/v1/collections/c/identify").json(&json!({ "image": inline(&photo(&[1])) }));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    assert_eq!(answer.headers()["retry-after"], "1");
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let began = Instant::now();
    let answer = server.request(Method::GET, &location).header("prefer", "wait=30").send().await.unwrap();
    assert_eq!(answer.headers()["preference-applied"], "wait=30");
    assert!(answer.headers().contains_key("x-request-id"));
    assert!(began.elapsed() < Duration::from_secs(20), "the answer came with the end of the job");
    let job: serde_json::Value = answer.json().await.unwrap();
    assert_eq!((&job["state"], &job["attempt"]), (&json!("succeeded"), &json!(1)));
    server.stop().await;
}

async fn the_same_key_is_the_same_job(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let send = async |kind: &str, seed: u32, key: &str| {
        let mut body = json!({ "image": inline(&photo(&[seed])) });
        if kind == "enroll" {
            body["person"] = json!({ "external_id": "x" });
        }
        let request = server.request(Method::POST, &format!("/v1/collections/c/{kind}")).header("idempotency-key", key);
        read(request.json(&body)).await
    };
    let (status, first) = send("index", 1, "k1").await;
    assert_eq!(status, StatusCode::ACCEPTED);
    server.ended(&first).await;
    let (status, again) = send("index", 1, "k1").await;
    assert_eq!((status, &again["id"], &again["state"]), (StatusCode::ACCEPTED, &first["id"], &json!("succeeded")));
    let (status, other) = send("index", 2, "k1").await;
    assert_eq!((status, &other["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("idempotency_key_reused")));
    let (_, route) = send("enroll", 1, "k1").await;
    assert_ne!(route["id"], first["id"], "another route has keys of its own");
    server.ended(&route).await;
    let jobs = server.get("/v1/jobs?collection=c").await;
    assert_eq!(jobs["items"].as_array().unwrap().len(), 2);
    // The pictures of the refused and the repeated request are not kept; the stored one is.
    server.wait_for_objects(1).await;
    a_repeat_is_answered_when_the_person_is_gone(&server).await;
    server.stop().await;
}

async fn a_repeat_is_answered_when_the_person_is_gone(server: &Server) {
    let person = server.enroll("c", 3).await["person_id"].clone();
    let image = inline(&photo(&[3]));
    let bodies = [
        ("enroll", json!({ "image": image, "person": { "id": person } })),
        ("verify", json!({ "image": image, "other": { "person_id": person } })),
    ];
    let send = async |kind: &str, body: &serde_json::Value, key: &str| {
        let request = server.request(Method::POST, &format!("/v1/collections/c/{kind}")).header("idempotency-key", key);
        read(request.json(body)).await
    };
    let mut jobs = Vec::new();
    for (kind, body) in &bodies {
        let (status, job) = send(kind, body, "gone").await;
        assert_eq!(status, StatusCode::ACCEPTED, "{job}");
        server.ended(&job).await;
        jobs.push(job);
    }
    let path = format!("/v1/collections/c/persons/{}", person.as_str().unwrap());
    assert_eq!(server.delete(&path).await, StatusCode::ACCEPTED);
    for ((kind, body), job) in bodies.iter().zip(jobs) {
        let (status, again) = send(kind, body, "gone").await;
        assert_eq!((status, &again["id"]), (StatusCode::ACCEPTED, &job["id"]), "{again}");
        let (status, problem) = send(kind, body, "new").await;
        assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &json!("person_not_found")), "{problem}");
    }
}

async fn a_waiting_job_can_be_cancelled(site: Site) {
    // One interactive job at a time, and all sent at once: some wait when they are cancelled.
    let server = Server::start_with(&site, &[("FACE_ID_WORKER__CONCURRENCY", "1")]).await;
    server.make_collection("c").await;
    let sent = (0..100).map(|seed| {
        let person = json!({ "external_id": format!("person-{seed}") });
        let body = json!({ "image": inline(&photo(&[seed])), "person": person });
        let server = &server;
        async move { server.submit("c", "enroll", &body).await }
    });
    let jobs = join_all(sent).await;
    let mut cancelled = 0;
    for job in jobs.iter().rev() {
        let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
        let (status, body) = read(server.request(Method::DELETE, &path)).await;
        match status {
            StatusCode::OK => {
                cancelled += 1;
                assert_eq!(body["state"], "cancelled");
            }
            StatusCode::ACCEPTED => {}
            _ => assert_eq!((status, &body["code"]), (StatusCode::CONFLICT, &json!("job_already_finished"))),
        }
    }
    let mut succeeded = 0;
    for job in &jobs {
        let job = server.ended(job).await;
        assert!(job["state"] == "cancelled" || job["state"] == "succeeded", "{job}");
        succeeded += usize::from(job["state"] == "succeeded");
    }
    assert!(cancelled > 0, "some jobs were still waiting");
    let collection = server.get("/v1/collections/c").await;
    assert_eq!(collection["images"], json!(succeeded), "a cancelled job stores nothing");
    server.wait_for_objects(succeeded).await;
    server.stop().await;
}
