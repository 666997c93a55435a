//! The bare loop: decode, detect, cut out and embed the same files on the same cores, without queue, database or HTTP.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use shared::catalogue::Catalogue;
use shared::config::Config;
use tokio::task::JoinSet;
use worker::analysis::analyse;
use worker::assets::Assets;
use worker::inference::{Engine, EngineOptions};
use worker::vision::crops::Keep;
use worker::vision::decode::DecodeLimits;

use super::usage::{self, Took};

/// A loaded pipeline, and what a server would allow it.
#[derive(Clone)]
pub(super) struct BareLoop {
    engine: Engine,
    limits: DecodeLimits,
    in_flight: usize,
}

impl BareLoop {
    pub(super) async fn load(
        config: &Config,
        catalogue: &Catalogue,
        assets: &Assets,
        pipeline: &str,
    ) -> anyhow::Result<Self> {
        let options = EngineOptions::for_cpu(config.worker.sessions());
        let engine = Engine::load(catalogue.pipeline(pipeline)?, assets, options).await?;
        let limits = DecodeLimits {
            max_bytes: config.vision.max_image_bytes,
            max_pixels: config.vision.max_image_pixels,
            max_side: config.vision.max_image_side,
        };
        Ok(Self { engine, limits, in_flight: config.worker.concurrency() })
    }

    /// All pictures, as many at once as a worker takes.
    pub(super) async fn run(&self, pictures: &[PathBuf]) -> anyhow::Result<Took> {
        let (mut running, mut waiting) = (JoinSet::new(), pictures.iter().cloned());
        let own = [std::process::id()];
        let (began, before, mut faces) = (Instant::now(), usage::cpu(&own), 0);
        loop {
            while running.len() < self.in_flight
                && let Some(path) = waiting.next()
            {
                running.spawn(self.clone().faces(path));
            }
            let Some(found) = running.join_next().await else { break };
            faces += found??;
        }
        let (elapsed, cpu) = (began.elapsed(), usage::cpu(&own).saturating_sub(before));
        Ok(Took { images: pictures.len(), faces, elapsed, cpu })
    }

    /// How long one picture takes by itself, so often one after the other.
    pub(super) async fn alone(&self, picture: &Path, times: usize) -> anyhow::Result<Vec<Duration>> {
        let mut took = Vec::with_capacity(times);
        for _ in 0..times {
            let began = Instant::now();
            self.clone().faces(picture.to_owned()).await?;
            took.push(began.elapsed());
        }
        Ok(took)
    }

    async fn faces(self, picture: PathBuf) -> anyhow::Result<usize> {
        let bytes = tokio::fs::read(&picture).await.with_context(|| format!("read {}", picture.display()))?;
        // A picture that cannot be decoded has no faces.
        Ok(analyse(&self.engine, bytes, self.limits, Keep::Nothing).await.map_or(0, |found| found.faces.len()))
    }
}
