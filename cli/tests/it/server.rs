//! A `face-id serve` of a test's own, and its client.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use worker::testing::{repository, synthetic_photo};

/// Nothing here takes nearly as long on a slow machine.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Pictures of tests are this large.
pub(crate) const SIDE: u32 = 256;

pub(crate) struct Server {
    pub(crate) address: String,
    data: PathBuf,
    child: Child,
    http: reqwest::Client,
}

/// The command with the tiny pipeline as its default, and quick housekeeping.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_face-id"));
    command
        .env("FACE_ID_ASSETS_DIR", repository())
        .env("FACE_ID_MODELS__CATALOGUE_DIR", repository().join("models/tiny"))
        .env("FACE_ID_MODELS__DEFAULT_PIPELINE", "tiny")
        .env("FACE_ID_MODELS__ALLOW_DOWNLOAD", "false")
        .env("FACE_ID_WORKER__SWEEP_S", "0.1")
        .env("FACE_ID_WORKER__POLL_S", "0.1")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

impl Server {
    pub(crate) async fn start(data: &Path) -> Self {
        Self::start_with(data, &[]).await
    }

    /// Starts it with these variables in its environment.
    pub(crate) async fn start_with(data: &Path, variables: &[(&str, &str)]) -> Self {
        let mut child = command()
            .args(["serve", "--bind", "127.0.0.1:0", "--data-dir"])
            .arg(data)
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(TIMEOUT, lines.next_line()).await.unwrap().unwrap();
        let line = line.expect("the server ended before it listened; its log is above");
        let address = line.strip_prefix("listening on ").unwrap().to_owned();
        let http = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build().unwrap();
        Self { address, data: data.to_owned(), child, http }
    }

    /// SIGKILL, as a crash or the kernel's out-of-memory killer would.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// SIGTERM, and the wait for a clean end.
    pub(crate) async fn stop(mut self) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = tokio::time::timeout(TIMEOUT, self.child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "SIGTERM ends it cleanly, got {status}");
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.address))
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = read(self.request(Method::GET, path)).await;
        assert_eq!(status, StatusCode::OK, "GET {path}: {body}");
        body
    }

    pub(crate) async fn delete(&self, path: &str) -> StatusCode {
        read(self.request(Method::DELETE, path)).await.0
    }

    pub(crate) async fn make_collection(&self, name: &str) {
        let (status, body) = read(self.request(Method::POST, "/v1/collections").json(&json!({ "name": name }))).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
    }

    /// Uploads the picture and returns the upload's id.
    pub(crate) async fn upload(&self, collection: &str, picture: Vec<u8>) -> Value {
        let request = self.request(Method::POST, &format!("/v1/collections/{collection}/uploads")).body(picture);
        let (status, body) = read(request).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["id"].clone()
    }

    /// Makes a job and returns it as accepted.
    pub(crate) async fn submit(&self, collection: &str, kind: &str, body: &Value) -> Value {
        let request = self.request(Method::POST, &format!("/v1/collections/{collection}/{kind}")).json(body);
        let (status, job) = read(request).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{job}");
        job
    }

    /// The job when it has ended.
    pub(crate) async fn ended(&self, job: &Value) -> Value {
        let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
        for _ in 0..6 {
            let (_, job) = read(self.request(Method::GET, &path).header("prefer", "wait=10")).await;
            if !job["finished_at"].is_null() {
                return job;
            }
        }
        panic!("job {job} has not ended");
    }

    /// Makes a job and waits for its end.
    pub(crate) async fn run(&self, collection: &str, kind: &str, body: &Value) -> Value {
        let job = self.submit(collection, kind, body).await;
        self.ended(&job).await
    }

    /// Enrolls one synthetic person and returns the result.
    pub(crate) async fn enroll(&self, collection: &str, seed: u32) -> Value {
        let person = json!({ "external_id": format!("person-{seed}"), "name": format!("Person {seed}") });
        let body = json!({ "image": inline(&photo(&[seed])), "person": person });
        let job = self.run(collection, "enroll", &body).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        job["result"].clone()
    }

    /// Keys of the objects in the data folder.
    pub(crate) fn objects(&self) -> Vec<PathBuf> {
        files_below(&self.data.join("objects"))
    }

    /// Waits until the sweeper has left just `count` objects.
    pub(crate) async fn wait_for_objects(&self, count: usize) {
        for _ in 0..200 {
            if self.objects().len() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{count} objects should be left, there are {:?}", self.objects());
    }
}

/// Sends the request; the body as JSON where it is any.
pub(crate) async fn read(request: RequestBuilder) -> (StatusCode, Value) {
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let bytes = answer.bytes().await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

/// A picture of these synthetic persons.
pub(crate) fn photo(people: &[u32]) -> Vec<u8> {
    synthetic_photo(people, SIDE, SIDE)
}

/// A picture as base64 inside a request.
pub(crate) fn inline(picture: &[u8]) -> Value {
    json!({ "base64": base64::engine::general_purpose::STANDARD.encode(picture) })
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}
