//! Whether a face is live, or a picture of one: networks that no pipeline owns, loaded when a collection first asks for them.

use std::path::PathBuf;
use std::sync::Arc;

use shared::catalogue::{AllowedUse, AntiSpoofing, CatalogueError, ModelFile, SpoofNetwork};
use shared::config::Config;
use tokio::sync::OnceCell;

use crate::analysis::{AnalysedFace, AnalysisError};
use crate::assets::{AssetError, Assets};
use crate::inference::{EngineError, EngineOptions, InferenceError, Network, OnCore};
use crate::vision::decode::photo::Photo;
use crate::vision::frame::Frame;
use crate::vision::{BoundingBox, spoof};

/// The networks that the settings name, loaded once.
#[derive(Debug)]
pub struct Liveness {
    catalogue_dir: Option<PathBuf>,
    name: String,
    assets: Assets,
    options: EngineOptions,
    loaded: OnceCell<Arc<LiveNetworks>>,
}

/// Why nobody can say whether a face is live.
#[derive(Debug, thiserror::Error)]
pub enum LivenessError {
    /// There is no such entry.
    #[error("models.anti_spoofing names no entry for anti-spoofing")]
    Entry(#[from] CatalogueError),
    /// A file is missing or wrong.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// A file cannot be loaded.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The loading broke off.
    #[error("loading the anti-spoofing networks broke off")]
    Broken(#[from] tokio::task::JoinError),
}

impl Liveness {
    /// Loads nothing yet.
    pub fn configured(config: &Config, assets: Assets, options: EngineOptions) -> Self {
        Self {
            catalogue_dir: config.models.catalogue_dir().map(Into::into),
            name: config.models.anti_spoofing.clone(),
            assets,
            options,
            loaded: OnceCell::new(),
        }
    }

    /// The networks, loaded by the first caller while others wait. A failure is not kept: the next one tries again.
    pub async fn get(&self) -> Result<Arc<LiveNetworks>, LivenessError> {
        let load = || async {
            let entry = AntiSpoofing::load(self.catalogue_dir.as_deref(), &self.name)?;
            Ok(Arc::new(LiveNetworks::load(entry, &self.assets, &self.options).await?))
        };
        self.loaded.get_or_try_init(load).await.cloned()
    }
}

/// Loaded networks.
#[derive(Debug)]
pub struct LiveNetworks {
    networks: Vec<(SpoofNetwork, Network)>,
}

impl LiveNetworks {
    /// Finds, checks and loads the networks of an entry.
    pub async fn load(entry: AntiSpoofing, assets: &Assets, options: &EngineOptions) -> Result<Self, LivenessError> {
        let library = assets.runtime_library()?;
        let mut files = Vec::with_capacity(entry.networks.len());
        for network in entry.networks {
            check_licence(&entry.name, &network, assets)?;
            files.push((assets.weights_of(&entry.name, &network.file).await?, network));
        }
        let options = options.clone();
        let load = move || {
            let load = |(file, network): (PathBuf, SpoofNetwork)| {
                let planes = network.channels.planes() as i64;
                let inputs = vec![[planes, network.side.into(), network.side.into()]];
                let loaded = Network::load("anti_spoofing", (&library, &file), (inputs, network.classes), &options)?;
                Ok::<_, EngineError>((network, loaded))
            };
            files.into_iter().map(load).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self { networks: tokio::task::spawn_blocking(load).await?? })
    }

    /// Their weights.
    pub fn files(&self) -> Vec<&ModelFile> {
        self.networks.iter().map(|(network, _)| &network.file).collect()
    }

    /// How likely each face is live, 0..1: the mean over the networks. One whose box has no extent is not.
    pub(crate) async fn scores(
        &self,
        core: &OnCore,
        photo: &Photo,
        faces: &[AnalysedFace],
    ) -> Result<Vec<f32>, AnalysisError> {
        let boxes: Vec<BoundingBox> = faces.iter().map(|face| face.detection.bounding_box).collect();
        let crop_scales: Vec<f32> = self.networks.iter().map(|(network, _)| network.crop_scale).collect();
        let close_up = core.step(|| spoof::close_up(photo, &boxes, &crop_scales)).await?;
        let frame = close_up.as_ref().unwrap_or(&photo.overview);
        let mut scores = Vec::with_capacity(boxes.len());
        for face in &boxes {
            scores.push(self.score(core, (frame, photo.size), face).await?);
        }
        Ok(scores)
    }

    async fn score(
        &self,
        core: &OnCore,
        (frame, size): (&Frame, [u32; 2]),
        face: &BoundingBox,
    ) -> Result<f32, InferenceError> {
        let mut sum = 0.0;
        for (network, loaded) in &self.networks {
            let Some(input) = core.step(|| spoof::input(frame, size, face, network)).await else { return Ok(0.0) };
            let answer = core.ask(loaded, &[input]).await?;
            sum += spoof::live(network, &answer).ok_or(InferenceError::Answer { numbers: answer.len() })?;
        }
        Ok(sum / self.networks.len() as f32)
    }
}

fn check_licence(name: &str, network: &SpoofNetwork, assets: &Assets) -> Result<(), AssetError> {
    if network.file.allowed_use() == AllowedUse::Permissive
        || assets.accepted_licences.iter().any(|known| known == name)
    {
        return Ok(());
    }
    Err(AssetError::LicenceNotAccepted {
        pipeline: name.to_owned(),
        file: network.file.name.clone(),
        allowed_use: network.file.allowed_use(),
        licence: network.file.licence.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::{Wishes, analyse};
    use crate::inference::Engine;
    use crate::testing;
    use crate::vision::crops::Keep;
    use crate::vision::decode::DecodeLimits;

    const LIMITS: DecodeLimits = DecodeLimits { max_bytes: 1 << 24, max_pixels: 1 << 24, max_side: 1 << 13 };

    async fn scores(engine: &Engine, networks: &Arc<LiveNetworks>, picture: Vec<u8>) -> Vec<f32> {
        let wishes = Wishes { keep: Keep::Nothing, live: Some(Arc::clone(networks)) };
        let analysis = analyse(engine, picture, LIMITS, wishes).await.unwrap();
        analysis.faces.iter().map(|face| face.live_score.unwrap()).collect()
    }

    #[tokio::test]
    async fn spoof_scores_of_synthetic_faces_tell_the_dim_one() {
        let engine =
            Engine::load(&testing::tiny_pipeline(), &testing::tiny_assets(), EngineOptions::for_cpu(1)).await.unwrap();
        let entry = AntiSpoofing::load(Some(&testing::repository().join("models/tiny")), "tiny-live").unwrap();
        let networks = LiveNetworks::load(entry, &testing::tiny_assets(), &EngineOptions::for_cpu(1)).await.unwrap();
        let networks = Arc::new(networks);
        let live = scores(&engine, &networks, testing::synthetic_photo(&[1, 2], 640, 480)).await;
        assert!(live.len() == 2 && live.iter().all(|score| *score > 0.9), "{live:?}");
        let spoof = scores(&engine, &networks, testing::synthetic_spoof(&[1], 640, 480)).await;
        assert!(spoof.len() == 1 && spoof[0] < 0.1, "{spoof:?}");
        let plain = analyse(&engine, testing::synthetic_photo(&[1], 640, 480), LIMITS, Keep::Nothing).await.unwrap();
        assert_eq!(plain.faces[0].live_score, None, "nobody asked");
    }

    #[tokio::test]
    async fn spoof_scores_of_the_sources_own_pictures_are_apart() {
        let catalogue = testing::catalogue();
        let pipeline = catalogue.pipeline("yunet-mobilefacenet").unwrap();
        let Some(assets) = testing::real_assets(pipeline) else { return };
        let entry = AntiSpoofing::load(None, "minifasnet").unwrap();
        if !testing::has_weights(&assets, "minifasnet", entry.files()) {
            return;
        }
        let engine = Engine::load(pipeline, &assets, EngineOptions::for_cpu(1)).await.unwrap();
        let networks = Arc::new(LiveNetworks::load(entry, &assets, &EngineOptions::for_cpu(1)).await.unwrap());
        // What the networks say of a box found by YuNet: real 0.9999, and 0.23 and 0.002 of a picture.
        for (name, wanted) in [("T1", 0.99..=1.0), ("F1", 0.0..=0.4), ("F2", 0.0..=0.05)] {
            let Some(file) = testing::real_data(&format!("faces/minivision_image_{name}.jpg")) else { return };
            let found = scores(&engine, &networks, std::fs::read(file).unwrap()).await;
            assert!(found.first().is_some_and(|score| wanted.contains(score)), "{name}: {found:?}");
        }
    }

    #[tokio::test]
    async fn missing_spoof_weights_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let assets = Assets {
            assets_dir: None,
            cache_dir: folder.path().to_owned(),
            runtime_library: testing::tiny_assets().runtime_library().ok(),
            ..testing::tiny_assets()
        };
        let entry = AntiSpoofing::load(None, "minifasnet").unwrap();
        let missing = LiveNetworks::load(entry, &assets, &EngineOptions::for_cpu(1)).await.unwrap_err().to_string();
        assert!(missing.contains("minifasnet_v2_2.7_80x80.onnx") && missing.contains("pull"), "{missing}");
    }
}
