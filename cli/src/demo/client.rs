//! The demo as a client of the HTTP API.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

/// The demo's collection.
const COLLECTION: &str = "face-id-demo";
/// Longest time one request may take; a job is waited for within it.
const TIMEOUT: Duration = Duration::from_secs(90);
/// How often a job is waited for, 20 s each.
const WAITS: usize = 4;

pub(super) struct Client {
    http: reqwest::Client,
    address: String,
}

impl Client {
    pub(super) fn new(address: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build()?;
        Ok(Self { http, address: address.to_owned() })
    }

    /// Makes the collection anew: on services that stay, an earlier demo has left one.
    pub(super) async fn make_collection(&self) -> anyhow::Result<()> {
        self.http.delete(format!("{}/v1/collections/{COLLECTION}", self.address)).send().await?;
        self.post("/v1/collections", &json!({ "name": COLLECTION })).await?;
        Ok(())
    }

    /// Uploads the picture, enrolls it, and gives the job when it has ended.
    pub(super) async fn enroll(&self, picture: &Path, person: &str) -> anyhow::Result<Value> {
        let upload = self.upload(picture).await?;
        let body = json!({ "image": { "upload_id": upload }, "person": { "external_id": person, "name": person } });
        let job = self.post(&format!("/v1/collections/{COLLECTION}/enroll"), &body).await?;
        self.ended(&job).await
    }

    /// Uploads the picture, identifies its faces, and gives the job when it has ended.
    pub(super) async fn identify(&self, picture: &Path) -> anyhow::Result<Value> {
        let upload = self.upload(picture).await?;
        let body = json!({ "image": { "upload_id": upload } });
        let job = self.post(&format!("/v1/collections/{COLLECTION}/identify"), &body).await?;
        self.ended(&job).await
    }

    async fn upload(&self, picture: &Path) -> anyhow::Result<Value> {
        let bytes = tokio::fs::read(picture).await.with_context(|| format!("read {}", picture.display()))?;
        let url = format!("{}/v1/collections/{COLLECTION}/uploads", self.address);
        let answer = self.http.post(url).body(bytes).send().await?;
        Ok(read(answer).await.with_context(|| format!("upload {}", picture.display()))?["id"].clone())
    }

    async fn ended(&self, job: &Value) -> anyhow::Result<Value> {
        let id = job["id"].as_str().context("the server's job has no id")?;
        for _ in 0..WAITS {
            let url = format!("{}/v1/jobs/{id}", self.address);
            let job = read(self.http.get(url).header("prefer", "wait=20").send().await?).await?;
            if !job["finished_at"].is_null() {
                return Ok(job);
            }
        }
        anyhow::bail!("job {id} has not ended after {} s", WAITS * 20)
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        read(self.http.post(format!("{}{path}", self.address)).json(body).send().await?).await
    }
}

/// The body of a good answer; of a bad one, the problem as an error.
async fn read(answer: reqwest::Response) -> anyhow::Result<Value> {
    let status = answer.status();
    let body: Value = answer.json().await?;
    anyhow::ensure!(status.is_success(), "{status}: {}", body["detail"].as_str().unwrap_or("no detail"));
    Ok(body)
}
