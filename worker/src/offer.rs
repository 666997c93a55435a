//! Which of the catalogue's pipelines this process can run, and what keeps it from the others.

use std::collections::BTreeMap;

use anyhow::Context as _;
use shared::catalogue::{Catalogue, Pipeline};
use shared::health::Check;

use crate::assets::Assets;
use crate::inference::{Engine, EngineError, EngineOptions};

/// What a process can run.
#[derive(Debug, Default)]
pub struct Offer {
    /// The pipelines whose jobs it may take, by name.
    pub pipelines: Vec<String>,
    /// What keeps it from each of the others.
    pub left_out: BTreeMap<String, String>,
}

impl Offer {
    /// Tries all of the catalogue's pipelines.
    pub async fn of_all(catalogue: &Catalogue, assets: &Assets, options: &EngineOptions) -> Self {
        let mut offer = Self::default();
        for pipeline in catalogue.pipelines() {
            match try_out(pipeline, assets, options).await {
                Ok(()) => offer.pipelines.push(pipeline.name.clone()),
                Err(error) => {
                    offer.left_out.insert(pipeline.name.clone(), error.to_string());
                }
            }
        }
        offer
    }

    /// Those named, all of which must run here.
    ///
    /// # Errors
    /// The catalogue does not know one, or it does not run here.
    pub async fn of_named(
        names: &[String],
        catalogue: &Catalogue,
        assets: &Assets,
        options: &EngineOptions,
    ) -> anyhow::Result<Self> {
        for name in names {
            let pipeline = catalogue.pipeline(name).context("worker.pipelines")?;
            try_out(pipeline, assets, options)
                .await
                .with_context(|| format!("worker.pipelines names {name}, which this worker cannot run"))?;
        }
        Ok(Self { pipelines: names.to_vec(), left_out: BTreeMap::new() })
    }

    /// Says in the log what is left out.
    pub fn log(&self) {
        for (pipeline, why) in &self.left_out {
            tracing::info!(pipeline, why, "a pipeline cannot be run by this process");
        }
    }

    /// The same for `/readyz`, which it does not turn red.
    pub fn check(&self) -> Check {
        let left_out: Vec<String> = self.left_out.iter().map(|(name, why)| format!("without {name}: {why}")).collect();
        Check::note("pipelines", left_out.join("; "))
    }
}

/// Whether this process can run a pipeline, without fetching anything: weights that can be downloaded count as there.
/// A recognizer with a fingerprint is loaded and has to answer as it says.
///
/// # Errors
/// What keeps it from running.
pub async fn try_out(pipeline: &Pipeline, assets: &Assets, options: &EngineOptions) -> Result<(), EngineError> {
    Engine::check_terms(pipeline, assets, options)?;
    let mut is_complete = true;
    for file in pipeline.files() {
        if assets.find(file)?.is_none() && assets.can_download(file) {
            is_complete = false;
        } else {
            assets.weights(pipeline, file).await?;
        }
    }
    if is_complete && pipeline.fingerprint.is_some() {
        Engine::load(pipeline, assets, EngineOptions { sessions: 1, ..options.clone() }).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use shared::catalogue::CpuFeature;
    use shared::health::Health;

    use super::*;
    use crate::testing;

    fn options(features: &'static [CpuFeature]) -> EngineOptions {
        EngineOptions { features, ..EngineOptions::for_cpu(1) }
    }

    /// The built-in entries and one more, `tiny` with these changes, in a folder of its own.
    fn catalogue(change: impl Fn(&str) -> String) -> (tempfile::TempDir, Catalogue) {
        let folder = tempfile::tempdir().unwrap();
        let entry = std::fs::read_to_string(testing::repository().join("models/tiny/tiny.toml")).unwrap();
        std::fs::write(folder.path().join("tiny.toml"), change(&entry)).unwrap();
        let catalogue = Catalogue::load(Some(folder.path())).unwrap();
        (folder, catalogue)
    }

    #[tokio::test]
    async fn what_does_not_run_here_is_left_out_with_its_reason() {
        let (_folder, catalogue) = catalogue(|entry| format!("requires = [\"dotprod\"]\n{entry}"));
        let assets = testing::tiny_assets();
        let able = Offer::of_all(&catalogue, &assets, &options(&[CpuFeature::Dotprod])).await;
        assert!(able.pipelines.contains(&"tiny".to_owned()), "{able:?}");

        let offer = Offer::of_all(&catalogue, &assets, &options(&[])).await;
        assert!(!offer.pipelines.contains(&"tiny".to_owned()), "{offer:?}");
        for (pipeline, part) in [
            ("tiny", "needs a processor with dotprod"),
            ("yunet-mobilefacenet-int8", "avx512_vnni, avx_vnni or dotprod"),
            ("scrfd-mobilefacenet", "--accept-license"),
        ] {
            assert!(offer.left_out[pipeline].contains(part), "{:?}", offer.left_out);
        }
        let health = Health::of(&[offer.check()]).await;
        assert!(health.is_ok());
        let shown = serde_json::to_string(&health).unwrap();
        assert!(shown.contains("without tiny: ") && shown.contains("dotprod"), "{shown}");
    }

    #[tokio::test]
    async fn weights_that_are_nowhere_are_an_obstacle_unless_they_can_be_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let here = Assets {
            assets_dir: Some(folder.path().to_owned()),
            cache_dir: folder.path().to_owned(),
            ..testing::tiny_assets()
        };
        let catalogue = testing::catalogue();
        let fetching = Assets { allow_download: true, ..here.clone() };
        let int8 = options(&[CpuFeature::AvxVnni]);
        assert_eq!(
            Offer::of_all(&catalogue, &fetching, &int8).await.pipelines,
            ["yunet-mobilefacenet", "yunet-sface"],
            "the others have no address"
        );
        assert_eq!(Offer::of_all(&catalogue, &here, &int8).await.left_out.len(), catalogue.pipelines().count());
    }

    #[tokio::test]
    async fn what_is_named_must_run() {
        let (_folder, catalogue) = catalogue(|entry| format!("requires = [\"avx_vnni\"]\n{entry}"));
        let assets = testing::tiny_assets();
        let names = ["tiny".to_owned()];
        let able = Offer::of_named(&names, &catalogue, &assets, &options(&[CpuFeature::AvxVnni])).await.unwrap();
        assert_eq!(able.pipelines, names);
        let refused = Offer::of_named(&names, &catalogue, &assets, &options(&[])).await.unwrap_err();
        let text = format!("{refused:#}");
        assert!(text.contains("worker.pipelines names tiny") && text.contains("avx_vnni"), "{text}");
        assert!(Offer::of_named(&["vgg".to_owned()], &catalogue, &assets, &options(&[])).await.is_err());
    }
}
