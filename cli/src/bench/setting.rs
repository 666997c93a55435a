//! What all parts of a benchmark measure with: settings, models, and how thoroughly.

use std::path::PathBuf;

use anyhow::Context as _;
use shared::catalogue::Catalogue;
use shared::config::Config;
use worker::assets::Assets;
use worker::inference::{Engine, EngineOptions};

/// Shipped pipelines that are faster than the default one and on LFW at most 0.2 points less accurate (99.25 % against
/// 99.32 %, models/README.md), fastest first.
const FASTER: [&str; 1] = ["yunet-mobilefacenet-int8"];

/// Shared by all parts of a run.
pub(super) struct Setting {
    /// The settings as they are, which name services or not.
    config: Config,
    /// The same without services.
    pub(super) embedded: Config,
    pub(super) catalogue: Catalogue,
    pub(super) assets: Assets,
    pub(super) default_pipeline: String,
    /// The fastest pipeline that this machine can run, and why it is none of the faster ones where it is not.
    pub(super) fastest: String,
    pub(super) why_not_faster: Option<String>,
    /// The folder of `scripts/` and `models/`.
    pub(super) repository: PathBuf,
    pub(super) rounds: usize,
}

impl Setting {
    pub(super) async fn new(config: &Config, repository: PathBuf, rounds: usize) -> anyhow::Result<Self> {
        let catalogue = Catalogue::load(config.models.catalogue_dir())?;
        let assets = Assets::configured(config);
        let default_pipeline = config.models.default_pipeline.clone();
        let (mut fastest, mut why_not_faster) = (default_pipeline.clone(), None);
        for name in FASTER {
            let options = EngineOptions::for_cpu(1);
            match Engine::load(catalogue.pipeline(name)?, &assets, options).await {
                Ok(_) => {
                    name.clone_into(&mut fastest);
                    why_not_faster = None;
                    break;
                }
                Err(error) => why_not_faster = Some(format!("{name} does not run here: {error}")),
            }
        }
        let (config, embedded) = (config.clone(), config.embedded());
        Ok(Self { config, embedded, catalogue, assets, default_pipeline, fastest, why_not_faster, repository, rounds })
    }

    /// The default pipeline, and the fastest one where that is another.
    pub(super) fn pipelines(&self) -> Vec<&str> {
        let mut pipelines = vec![self.default_pipeline.as_str()];
        pipelines.extend(Some(self.fastest.as_str()).filter(|name| *name != self.default_pipeline));
        pipelines
    }

    /// The settings where they name services.
    pub(super) fn services(&self) -> anyhow::Result<&Config> {
        let config = Some(&self.config).filter(|config| config.has_services());
        config.context("the settings name no services: run `make services` and evaluate what it prints")
    }
}

/// Tells how far it is.
pub(super) fn say(what: &str) {
    eprintln!("bench: {what}");
}
