//! The demo as a client of the HTTP API.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::client::Client;

/// The demo's collection.
const COLLECTION: &str = "face-id-demo";
/// How often a job is waited for, [`WAIT_S`] each.
const WAITS: usize = 4;
const WAIT_S: u64 = 20;

pub(super) struct DemoClient(Client);

impl DemoClient {
    pub(super) fn new(client: Client) -> Self {
        Self(client)
    }

    /// Makes the collection anew: on services that stay, an earlier demo has left one. A score is given where nobody measured
    /// what the pipeline's mean.
    pub(super) async fn make_collection(&self, pipeline: &str) -> anyhow::Result<()> {
        self.0.delete(&format!("/v1/collections/{COLLECTION}")).await?;
        let body = json!({ "name": COLLECTION, "pipeline": pipeline });
        self.0.post("/v1/collections", &body).await?;
        Ok(())
    }

    /// Uploads the picture, enrolls it, and gives the job when it has ended.
    pub(super) async fn enroll(&self, picture: &Path, person: &str) -> anyhow::Result<Value> {
        let upload = self.upload(picture).await?;
        let body = json!({ "image": { "upload_id": upload }, "person": { "external_id": person, "name": person } });
        let job = self.0.post(&format!("/v1/collections/{COLLECTION}/enroll"), &body).await?;
        self.ended(&job).await
    }

    /// Uploads the picture, identifies its faces, and gives the job when it has ended.
    pub(super) async fn identify(&self, picture: &Path) -> anyhow::Result<Value> {
        let upload = self.upload(picture).await?;
        let body = json!({ "image": { "upload_id": upload } });
        let job = self.0.post(&format!("/v1/collections/{COLLECTION}/identify"), &body).await?;
        self.ended(&job).await
    }

    async fn upload(&self, picture: &Path) -> anyhow::Result<Value> {
        let bytes = tokio::fs::read(picture).await.with_context(|| format!("read {}", picture.display()))?;
        let answer = self.0.post_bytes(&format!("/v1/collections/{COLLECTION}/uploads"), bytes).await;
        Ok(answer.with_context(|| format!("upload {}", picture.display()))?["id"].clone())
    }

    async fn ended(&self, job: &Value) -> anyhow::Result<Value> {
        let id = job["id"].as_str().context("the server's job has no id")?;
        for _ in 0..WAITS {
            let job = self.0.get_when_ended(&format!("/v1/jobs/{id}"), WAIT_S).await?;
            if !job["finished_at"].is_null() {
                return Ok(job);
            }
        }
        anyhow::bail!("job {id} has not ended after {} s", WAITS as u64 * WAIT_S)
    }
}
