//! The wait until the collection's unknown faces are clustered, and what came of it.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::ProgressBar;
use tokio_util::sync::CancellationToken;

use super::{LOOK_EVERY, PATIENCE};
use crate::client::Client;

/// How long faces may wait with none of them being looked at.
const STANDSTILL: Duration = Duration::from_secs(120);
/// How long is waited at most: others may add faces all the time.
const LIMIT: Duration = Duration::from_secs(3600);

/// What is known of a collection's unknown faces.
pub(super) struct Unknown {
    /// Faces that are nobody's.
    pub(super) faces: i64,
    /// Clusters of at least two of them.
    pub(super) clusters: i64,
    /// Faces that still wait to be looked at.
    pub(super) pending: i64,
    /// Whether the collection has clusters at all.
    pub(super) is_clustering: bool,
}

/// The unknown faces once all are clustered; as they are when that is given up, or `stop` says so.
pub(super) async fn settled(client: &Client, collection: &str, stop: &CancellationToken) -> anyhow::Result<Unknown> {
    let path = format!("/v1/collections/{collection}");
    let is_clustering = client.get(&path).await?["settings"]["clustering"].as_bool().unwrap_or(true);
    let pending = if is_clustering { wait(client, &path, stop).await? } else { 0 };
    let now = client.get(&path).await?;
    let number = |name: &str| now[name].as_i64().with_context(|| format!("the server's collection has no {name}"));
    Ok(Unknown { faces: number("unknown_faces")?, clusters: number("clusters")?, pending, is_clustering })
}

/// Waits until no face waits any more; how many still do.
async fn wait(client: &Client, path: &str, stop: &CancellationToken) -> anyhow::Result<i64> {
    let path = format!("{path}/clusters?limit=1");
    let bar = ProgressBar::new_spinner();
    let began = Instant::now();
    let (mut answered, mut progressed, mut least) = (began, began, i64::MAX);
    loop {
        match client.get(&path).await {
            Ok(page) => {
                let pending = page["pending"].as_i64().context("the server's clusters have no pending")?;
                answered = Instant::now();
                if pending < least {
                    (least, progressed) = (pending, answered);
                }
                bar.set_message(format!("{pending} faces wait for their clusters"));
                bar.tick();
                let is_over = pending == 0 || progressed.elapsed() > STANDSTILL || began.elapsed() > LIMIT;
                if is_over || stop.is_cancelled() {
                    bar.finish_and_clear();
                    return Ok(pending);
                }
            }
            Err(_) if answered.elapsed() < PATIENCE && !stop.is_cancelled() => {}
            Err(error) => return Err(error.context("look at the clusters")),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}
