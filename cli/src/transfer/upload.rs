//! Sends a file to a server, which works on it as it comes.

use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use indicatif::ProgressBar;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use super::PATIENCE;
use super::file::bar;
use crate::client::Client;

/// Bytes that are read from the file at once.
const PIECE: usize = 256 << 10;

/// Sends the file and returns the server's answer.
pub(super) async fn send(client: &Client, collection: &str, path: &Path) -> anyhow::Result<Value> {
    let file = tokio::fs::File::open(path).await.with_context(|| format!("open {}", path.display()))?;
    let progress = bar("{bar:30} {bytes}/{total_bytes} imported, {bytes_per_sec}, {eta} left");
    progress.set_length(file.metadata().await?.len());
    let body = reqwest::Body::wrap_stream(pieces(file, progress.clone()));
    let path = format!("/v1/collections/{collection}/import");
    let answer = tokio::select! {
        answer = client.post_stream(&path, "application/x-ndjson", body) => answer,
        () = standstill(&progress) => Err(anyhow::anyhow!(
            "the server took nothing for {} s; run the same command again to go on", PATIENCE.as_secs()
        )),
    };
    progress.finish_and_clear();
    answer
}

fn pieces(file: tokio::fs::File, progress: ProgressBar) -> impl futures_util::Stream<Item = std::io::Result<Vec<u8>>> {
    futures_util::stream::try_unfold((file, progress), |(mut file, progress)| async move {
        let mut piece = vec![0; PIECE];
        let read = file.read(&mut piece).await?;
        piece.truncate(read);
        progress.inc(read as u64);
        Ok((read > 0).then_some((piece, (file, progress))))
    })
}

/// Ends once nothing has been sent for too long.
async fn standstill(progress: &ProgressBar) {
    let (mut sent, mut moved) = (progress.position(), Instant::now());
    while moved.elapsed() < PATIENCE {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        if progress.position() != sent {
            (sent, moved) = (progress.position(), Instant::now());
        }
    }
}
