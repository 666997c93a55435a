//! A caller's trace, in the log lines of both processes.

use std::fs::File;

use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::faults::load::{Kind, request};
use crate::server::{Server, Site, read};

#[tokio::test]
async fn a_request_is_followed_into_the_worker() {
    let site = Site::services().await;
    let log = |process: &str| site.folder().join(format!("{process}.log"));
    let to_file = |process: &str| File::create(log(process)).unwrap().into();
    let server = Server::start_logging(&site, site.folder(), &[("FACE_ID_LOG__FORMAT", "json")], to_file).await;
    server.make_collection("c").await;
    let mut jobs = Vec::new();
    for (seed, kind) in [(1, Kind::Enroll), (2, Kind::Index)] {
        let trace = format!("4bf92f3577b34da6a3ce929d0e0e473{seed}");
        let request = server
            .request(Method::POST, &format!("/v1/collections/c/{}", kind.as_str()))
            .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"))
            .json(&request(kind, "key", seed));
        let (status, job) = read(request).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{job}");
        server.ended(&job).await;
        jobs.push((job["id"].as_str().unwrap().to_owned(), trace));
    }
    server.stop().await;
    for process in ["api", "worker"] {
        let text = std::fs::read_to_string(log(process)).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for (job, trace) in &jobs {
            let of_job: Vec<String> = lines.iter().map(Value::to_string).filter(|line| line.contains(job)).collect();
            assert!(!of_job.is_empty(), "the {process} logs the job {job}:\n{text}");
            let traced = format!("\"trace.id\":\"{trace}\"");
            assert!(of_job.iter().all(|line| line.contains(&traced)), "{process}: {traced} is missing: {of_job:#?}");
        }
    }
}
