//! A server of the measurement's own beside a library of pictures, and batches of it that are watched.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;
use shared::config::Config;

use super::library::Library;
use super::servers::Servers;
use super::usage::{self, Took};
use crate::child::Server;
use crate::client::Client;

/// How often a batch is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Pictures that are indexed before anything is measured, so that models are loaded and connections open.
const WARM_UP: usize = 40;

/// A server, embedded or on services as the settings say, and what it may read.
pub(super) struct Site {
    pub(super) client: Client,
    pub(super) library: Library,
    config: Config,
    server: Server,
    servers: Option<Servers>,
}

/// How a batch went.
pub(super) struct Batch {
    pub(super) took: Took,
    /// Processor time of each server meanwhile; none where they are not processes of this machine.
    pub(super) servers: Option<Vec<(&'static str, Duration)>>,
    pub(super) samples: Vec<Sample>,
}

/// One look at a batch.
#[derive(Clone, Copy)]
pub(super) struct Sample {
    /// Jobs that have ended.
    pub(super) images: u64,
    /// Memory of the server's processes in bytes.
    pub(super) resident: u64,
}

impl Site {
    /// Starts a server with `settings` of its own that may read the library.
    pub(super) async fn open(
        config: &Config,
        library: Library,
        settings: &[(&'static str, String)],
    ) -> anyhow::Result<Self> {
        let settings = [&library.settings()?, settings].concat();
        let server = Server::for_a_while(config, &settings).await?;
        let client = server.client()?;
        Ok(Self { client, library, config: config.clone(), server, servers: Servers::of(config) })
    }

    /// Stops the server and takes the library's copies away, whatever came of the measurement, and gives that.
    pub(super) async fn close<T>(self, measured: anyhow::Result<T>) -> anyhow::Result<T> {
        let stopped = self.server.stop().await;
        let closed = self.library.close(&self.config).await;
        let measured = measured?;
        stopped.and(closed)?;
        Ok(measured)
    }

    pub(super) fn mode(&self) -> &'static str {
        if self.config.has_services() { "services" } else { "embedded" }
    }

    /// Kills the server's processes and starts them anew.
    pub(super) async fn crash(&mut self) -> anyhow::Result<()> {
        self.server.crash().await?;
        self.client = self.server.client()?;
        Ok(())
    }

    /// A counter of the processes that run models, since they began: see [`Server::counted`].
    pub(super) async fn counted(&self, counter: &str, label: &str) -> anyhow::Result<u64> {
        self.server.counted(counter, label).await
    }

    /// Makes a collection anew.
    pub(super) async fn collection(&self, name: &str, pipeline: &str) -> anyhow::Result<()> {
        self.client.delete(&format!("/v1/collections/{name}")).await?;
        self.client
            .post(
                "/v1/collections",
                &json!({ "name": name, "pipeline": pipeline, "settings": { "keep_crops": false } }),
            )
            .await?;
        Ok(())
    }

    /// Indexes a few pictures into a collection that goes again.
    pub(super) async fn warm_up(&self, pipeline: &str) -> anyhow::Result<()> {
        self.collection("bench-warm-up", pipeline).await?;
        let batch = self.begin("bench-warm-up", WARM_UP).await?;
        self.follow(&batch, None).await?;
        self.client.delete("/v1/collections/bench-warm-up").await
    }

    /// Indexes the whole library into a collection that goes again, from the request to the last result.
    pub(super) async fn index(&self, pipeline: &str) -> anyhow::Result<Batch> {
        self.collection("bench-index", pipeline).await?;
        let batch = self.index_into("bench-index").await?;
        self.client.delete("/v1/collections/bench-index").await?;
        Ok(batch)
    }

    /// Indexes the whole library into a collection.
    pub(super) async fn index_into(&self, collection: &str) -> anyhow::Result<Batch> {
        let batch = self.begin(collection, usize::MAX).await?;
        self.follow(&batch, Some(self.library.pictures.len())).await
    }

    /// The id of a batch, of so many pictures at most, that has just begun.
    pub(super) async fn begin(&self, collection: &str, limit: usize) -> anyhow::Result<String> {
        let path = format!("/v1/batches?collection={collection}&kind=index");
        let batch = self.client.make_of(&path, "application/x-ndjson", self.library.manifest(limit)).await?;
        Ok(batch["id"].as_str().context("the server's batch has no id")?.to_owned())
    }

    /// Waits for the batch's end, and for so many jobs that ended well where that is known.
    pub(super) async fn follow(&self, batch: &str, images: Option<usize>) -> anyhow::Result<Batch> {
        let pids = self.server.pids();
        let servers = || self.servers.as_ref().map(Servers::cpu).unwrap_or_default();
        let (servers_before, began, before) = (servers(), Instant::now(), usage::cpu(&pids));
        let mut samples = Vec::new();
        loop {
            let now = self.client.get(&format!("/v1/batches/{batch}")).await?;
            let jobs = |state: &str| now["jobs"][state].as_u64().unwrap_or_default();
            let (succeeded, rejected, failed) = (jobs("succeeded"), jobs("rejected"), jobs("failed"));
            samples.push(Sample { images: succeeded + rejected + failed, resident: usage::resident(&pids) });
            if now["finished_at"].is_null() {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            let (elapsed, cpu) = (began.elapsed(), usage::cpu(&pids).saturating_sub(before));
            anyhow::ensure!(failed == 0, "{failed} jobs of batch {batch} failed: {}", now["problems"]);
            let done = usize::try_from(succeeded + rejected)?;
            let right = images.is_none_or(|images| images == done);
            anyhow::ensure!(right, "{done} jobs of batch {batch} ended in place of {images:?}");
            let faces = usize::try_from(now["faces"].as_u64().unwrap_or_default())?;
            let used = servers().into_iter().zip(servers_before);
            let used: Vec<_> = used.map(|((name, now), (_, then))| (name, now.saturating_sub(then))).collect();
            let servers = Some(used).filter(|used| !used.is_empty());
            return Ok(Batch { took: Took { images: done, faces, elapsed, cpu }, servers, samples });
        }
    }

    /// Uploads a picture into a collection and gives the upload's id.
    pub(super) async fn upload(&self, collection: &str, picture: &Path) -> anyhow::Result<serde_json::Value> {
        let bytes = tokio::fs::read(picture).await.with_context(|| format!("read {}", picture.display()))?;
        let upload = self.client.post_bytes(&format!("/v1/collections/{collection}/uploads"), bytes).await?;
        Ok(upload["id"].clone())
    }

    /// Posts a job and waits for its good end.
    pub(super) async fn job(&self, path: &str, body: &serde_json::Value) -> anyhow::Result<serde_json::Value> {
        let job = self.client.post(path, body).await?;
        let id = job["id"].as_str().context("the server's job has no id")?;
        let job = self.client.get_when_ended(&format!("/v1/jobs/{id}"), 30).await?;
        anyhow::ensure!(job["state"] == "succeeded", "a job of {path} has not succeeded: {job}");
        Ok(job)
    }
}
