//! The bare loop of a run: crops in memory are decoded, aligned and embedded, without queue, database or store.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use shared::catalogue::Catalogue;
use shared::config::Config;
use tokio::task::JoinSet;
use worker::analysis::{analyse, embed_crops};
use worker::assets::Assets;
use worker::inference::{Engine, EngineOptions};
use worker::vision::Landmarks;
use worker::vision::crops::Keep;
use worker::vision::decode::DecodeLimits;

/// Crops of one call, as many as a job has images.
const CHUNK: usize = 64;

/// The crops of some pictures, and what embeds them.
pub(super) struct BareCrops {
    engine: Engine,
    limits: DecodeLimits,
    in_flight: usize,
    crops: Vec<(Vec<u8>, Landmarks)>,
}

impl BareCrops {
    /// Cuts the crops that `from` keeps of the pictures, for `to`.
    pub(super) async fn cut(config: &Config, [from, to]: [&str; 2], pictures: &[PathBuf]) -> anyhow::Result<Self> {
        let (catalogue, assets) = (Catalogue::load(config.models.catalogue_dir())?, Assets::configured(config));
        let options = || EngineOptions::for_cpu(config.worker.sessions());
        let engine = Engine::load(catalogue.pipeline(from)?, &assets, options()).await?;
        let limits = DecodeLimits {
            max_bytes: config.vision.max_image_bytes,
            max_pixels: config.vision.max_image_pixels,
            max_side: config.vision.max_image_side,
        };
        let mut crops = Vec::new();
        for picture in pictures {
            let found = analyse(&engine, tokio::fs::read(picture).await?, limits, Keep::Crops).await?;
            crops.extend(
                found
                    .faces
                    .into_iter()
                    .filter_map(|face| Some((face.crop.as_ref()?.file.clone(), face.crop?.landmarks))),
            );
        }
        let engine = Engine::load(catalogue.pipeline(to)?, &assets, options()).await?;
        Ok(Self { engine, limits, in_flight: config.worker.concurrency(), crops })
    }

    /// Faces a second.
    pub(super) async fn rate(&self) -> anyhow::Result<f64> {
        let (mut running, mut waiting) = (JoinSet::new(), self.crops.chunks(CHUNK));
        let (began, mut faces) = (Instant::now(), 0);
        loop {
            while running.len() < self.in_flight
                && let Some(chunk) = waiting.next()
            {
                let (engine, chunk, limits) = (self.engine.clone(), chunk.to_vec(), self.limits);
                running.spawn(async move { embed_crops(&engine, chunk, limits).await });
            }
            let Some(embedded) = running.join_next().await else { break };
            faces += embedded??.len();
        }
        Ok(faces as f64 / began.elapsed().max(Duration::from_millis(1)).as_secs_f64())
    }
}
