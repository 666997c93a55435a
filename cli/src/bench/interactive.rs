//! Interactive identify jobs, with nothing beside them and beside a batch.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::bare::BareLoop;
use super::site::Site;

/// Persons that are enrolled, each from a picture of the library, so that there is somebody to find.
const PERSONS: usize = 50;
/// Longest wait for the first results of the batch.
const BATCH_BEGINS: Duration = Duration::from_secs(60);

/// Times from a request to its answer.
pub(super) struct Interactive {
    /// The analysis of the same picture in the bare loop.
    pub(super) bare: Latencies,
    pub(super) idle: Latencies,
    /// Beside a batch that keeps all cores busy.
    pub(super) flood: Latencies,
}

/// Of many times, the two that are told.
#[derive(Clone, Copy)]
pub(super) struct Latencies {
    pub(super) p50: Duration,
    pub(super) p99: Duration,
}

impl Latencies {
    fn of(mut times: Vec<Duration>) -> Self {
        Self { p50: percentile(&mut times, 50), p99: percentile(&mut times, 99) }
    }

    /// Both in milliseconds.
    pub(super) fn shown(self) -> String {
        format!("{:.1} / {:.1} ms", self.p50.as_secs_f64() * 1e3, self.p99.as_secs_f64() * 1e3)
    }
}

impl Interactive {
    pub(super) fn idle_vs_bare(&self) -> f64 {
        self.idle.p50.as_secs_f64() / self.bare.p50.as_secs_f64()
    }

    pub(super) fn flood_vs_idle(&self) -> f64 {
        self.flood.p99.as_secs_f64() / self.idle.p99.as_secs_f64()
    }
}

/// Identifies one picture so many times, one after the other.
pub(super) async fn measure(site: &Site, bare: &BareLoop, pipeline: &str, times: usize) -> anyhow::Result<Interactive> {
    let probe = &site.library.pictures[site.library.pictures.len() / 2];
    bare.alone(probe, 10).await?;
    let bare = Latencies::of(bare.alone(probe, times).await?);
    site.collection("bench-identify", pipeline).await?;
    enroll(site, "bench-identify").await?;
    identify(site, probe, 10).await?;
    let idle = Latencies::of(identify(site, probe, times).await?);
    let flood = Latencies::of(identify_beside_batches(site, pipeline, probe, times).await?);
    site.client.delete("/v1/collections/bench-identify").await?;
    Ok(Interactive { bare, idle, flood })
}

/// Enrolls the largest face of some pictures; one without a usable face is passed over.
async fn enroll(site: &Site, collection: &str) -> anyhow::Result<()> {
    let step = site.library.pictures.len().div_ceil(PERSONS);
    for (n, picture) in site.library.pictures.iter().step_by(step).enumerate() {
        let image = site.upload(collection, picture).await?;
        let body =
            json!({ "image": { "upload_id": image }, "person": { "external_id": n.to_string() }, "face": "largest" });
        let job = site.client.post(&format!("/v1/collections/{collection}/enroll"), &body).await?;
        let id = job["id"].as_str().context("the server's job has no id")?;
        let job = site.client.get_when_ended(&format!("/v1/jobs/{id}"), 30).await?;
        anyhow::ensure!(job["state"] == "succeeded" || job["state"] == "rejected", "an enroll has failed: {job}");
    }
    Ok(())
}

async fn identify(site: &Site, probe: &Path, times: usize) -> anyhow::Result<Vec<Duration>> {
    let image = site.upload("bench-identify", probe).await?;
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        took.push(identified(site, &image).await?);
    }
    Ok(took)
}

async fn identified(site: &Site, upload: &Value) -> anyhow::Result<Duration> {
    let began = Instant::now();
    site.job("/v1/collections/bench-identify/identify", &json!({ "image": { "upload_id": upload } })).await?;
    Ok(began.elapsed())
}

/// Identifies while batches keep all cores busy: when half of one is done, the next begins.
async fn identify_beside_batches(
    site: &Site,
    pipeline: &str,
    probe: &Path,
    times: usize,
) -> anyhow::Result<Vec<Duration>> {
    let image = site.upload("bench-identify", probe).await?;
    let (mut batches, mut collections) = (Vec::new(), Vec::new());
    let mut took = Vec::with_capacity(times);
    let mut left = 0;
    for n in 0..times {
        if left * 2 <= site.library.pictures.len() {
            let collection = format!("bench-flood-{}", collections.len());
            site.collection(&collection, pipeline).await?;
            batches.push(site.begin(&collection, usize::MAX).await?);
            collections.push(collection);
        }
        if n == 0 {
            begun(site, &batches[0]).await?;
        }
        took.push(identified(site, &image).await?);
        let mut open = Vec::new();
        left = 0;
        for batch in batches {
            let now = site.client.get(&format!("/v1/batches/{batch}")).await?;
            if now["finished_at"].is_null() {
                left += site.library.pictures.len().saturating_sub(ended(&now));
                open.push(batch);
            }
        }
        anyhow::ensure!(!open.is_empty(), "half a batch ended during one request; take more pictures");
        batches = open;
    }
    for batch in batches {
        let path = format!("/v1/batches/{batch}");
        let cancelled = site.client.post(&format!("{path}/cancel"), &json!({})).await;
        // It may have ended by itself since.
        if site.client.get(&path).await?["finished_at"].is_null() {
            cancelled?;
        }
        site.follow(&batch, None).await?;
    }
    for collection in collections {
        site.client.delete(&format!("/v1/collections/{collection}")).await?;
    }
    Ok(took)
}

/// How many of a batch's jobs have ended, however.
fn ended(batch: &Value) -> usize {
    let of = |state: &str| batch["jobs"][state].as_u64().unwrap_or_default();
    let ended = ["succeeded", "rejected", "failed", "cancelled"].map(of).iter().sum::<u64>();
    usize::try_from(ended).unwrap_or(usize::MAX)
}

/// Waits until some of the batch's pictures are done.
async fn begun(site: &Site, batch: &str) -> anyhow::Result<()> {
    let began = Instant::now();
    while site.client.get(&format!("/v1/batches/{batch}")).await?["jobs"]["succeeded"].as_u64().unwrap_or_default() == 0
    {
        anyhow::ensure!(began.elapsed() < BATCH_BEGINS, "no picture of the batch is done after {BATCH_BEGINS:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn percentile(values: &mut [Duration], percent: usize) -> Duration {
    values.sort_unstable();
    let at = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let times = Latencies::of((1..=100).rev().map(Duration::from_millis).collect());
        assert_eq!((times.p50.as_millis(), times.p99.as_millis()), (50, 99));
        assert_eq!(Latencies::of(vec![Duration::from_millis(7)]).shown(), "7.0 / 7.0 ms");
    }
}
