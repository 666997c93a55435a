//! Memory of an embedded server while it indexes a long library of which no two pictures are alike.

use std::path::PathBuf;

use anyhow::Context as _;

use super::library::Library;
use super::setting::{Setting, say};
use super::site::{Sample, Site};
use super::synthetic;

/// What the server held, look by look.
pub(super) struct Memory {
    pub(super) images: usize,
    pub(super) photographs: usize,
    /// The looks while pictures were worked on.
    pub(super) samples: Vec<Sample>,
    /// Bytes of the face index in memory at the end.
    pub(super) index_bytes: u64,
}

impl Memory {
    /// The mean of each quarter of the looks, in bytes.
    pub(super) fn quarters(&self) -> Option<[f64; 4]> {
        let quarter = self.samples.len() / 4;
        let mean = |n: usize| {
            let part = &self.samples[n * quarter..(n + 1) * quarter];
            part.iter().map(|sample| sample.resident as f64).sum::<f64>() / part.len() as f64
        };
        (quarter > 0).then(|| [0, 1, 2, 3].map(mean))
    }

    /// The last quarter over the second, the index's bytes taken off the last one.
    pub(super) fn last_vs_second_quarter(&self) -> Result<f64, String> {
        let [_, second, _, last] =
            self.quarters().ok_or("the batch ended before four looks at it; take more pictures")?;
        Ok((last - self.index_bytes as f64) / second)
    }
}

/// Indexes so many variants of the photographs.
pub(super) async fn measure(setting: &Setting, photographs: &[PathBuf], images: usize) -> anyhow::Result<Memory> {
    let folder = tempfile::tempdir()?;
    say(&format!("{images} different pictures for the measurement of memory"));
    synthetic::vary(photographs, folder.path(), images).await?;
    let config = &setting.embedded;
    let site = Site::open(config, Library::open(config, folder.path(), images).await?, &[]).await?;
    say("indexing them");
    let measured = indexed(&site, &setting.default_pipeline).await;
    let (samples, templates) = site.close(measured).await?;
    // Only faces of people that somebody enrolled or named are in the index, so indexing leaves it empty.
    anyhow::ensure!(templates == 0, "{templates} faces are in the index, whose size is not known");
    Ok(Memory { images, photographs: photographs.len().min(images), samples, index_bytes: 0 })
}

async fn indexed(site: &Site, pipeline: &str) -> anyhow::Result<(Vec<Sample>, u64)> {
    site.warm_up(pipeline).await?;
    site.collection("bench-memory", pipeline).await?;
    let batch = site.index_into("bench-memory").await?;
    let image = site.upload("bench-memory", &site.library.pictures[0]).await?;
    let body = serde_json::json!({ "image": { "upload_id": image } });
    let job = site.job("/v1/collections/bench-memory/identify", &body).await?;
    let templates = job["result"]["gallery"]["faces"].as_u64().context("the answer tells no size of the gallery")?;
    Ok((batch.samples, templates))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters_are_compared() {
        let samples = [9, 2, 7, 3].map(|resident| Sample { images: 0, resident }).to_vec();
        let mut memory = Memory { images: 4, photographs: 4, samples, index_bytes: 0 };
        assert_eq!(memory.last_vs_second_quarter(), Ok(1.5));
        memory.samples.truncate(3);
        assert!(memory.last_vs_second_quarter().unwrap_err().contains("more pictures"));
    }
}
