//! Which of the registered models this process can run, and what keeps it from the others.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use shared::catalogue::{Catalogue, Pipeline};
use shared::db::workers::Served;

use crate::assets::{AssetError, Assets};
use crate::inference::{Engine, EngineError, EngineOptions};

/// What a process can run.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    tried: BTreeMap<String, Tried>,
    /// The pipelines that the process takes at most; all where absent.
    named: Option<Vec<String>>,
}

/// A pipeline that was tried.
#[derive(Clone, Debug)]
struct Tried {
    pipeline: Arc<Pipeline>,
    obstacle: Option<Obstacle>,
}

/// What keeps a process from a pipeline.
#[derive(Clone, Debug)]
struct Obstacle {
    why: String,
    /// Somebody may put the weights in their place while the process runs.
    may_pass: bool,
}

impl Offer {
    /// Tries all of the catalogue's pipelines.
    pub async fn of_all(catalogue: &Catalogue, assets: &Assets, options: &EngineOptions) -> Self {
        Self::default().again(catalogue, assets, options, Obstacles::Stay).await
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
        let nothing = Self { named: Some(names.to_vec()), ..Self::default() };
        Ok(nothing.again(catalogue, assets, options, Obstacles::Stay).await)
    }

    /// The offer of a catalogue that has changed: what was tried of it before is not tried again.
    #[must_use]
    pub async fn again(
        &self,
        catalogue: &Catalogue,
        assets: &Assets,
        options: &EngineOptions,
        obstacles: Obstacles,
    ) -> Self {
        let mut tried = BTreeMap::new();
        let names = catalogue.pipelines().map(|pipeline| &pipeline.name);
        for name in names.filter(|name| self.named.as_ref().is_none_or(|named| named.contains(name))) {
            let Some(pipeline) = catalogue.find(name) else { continue };
            let known = self.tried.get(name).filter(|known| Arc::ptr_eq(&known.pipeline, pipeline));
            let known = known.filter(|known| obstacles == Obstacles::Stay || !known.may_pass());
            let now = match known {
                Some(known) => known.clone(),
                None => Tried::now(pipeline, assets, options).await,
            };
            tried.insert(name.clone(), now);
        }
        Self { tried, named: self.named.clone() }
    }

    /// Whether something keeps the process from a pipeline that may be gone now.
    pub fn may_grow(&self) -> bool {
        self.tried.values().any(Tried::may_pass)
    }

    /// The pipelines whose jobs the process takes, by name.
    pub fn pipelines(&self) -> Vec<String> {
        let able = self.tried.iter().filter(|(_, tried)| tried.obstacle.is_none());
        able.map(|(name, _)| name.clone()).collect()
    }

    /// What keeps it from each of the others.
    pub fn left_out(&self) -> BTreeMap<String, String> {
        let left_out = self.tried.iter().filter_map(|(name, tried)| Some((name, tried.obstacle.as_ref()?)));
        left_out.map(|(name, obstacle)| (name.clone(), obstacle.why.clone())).collect()
    }

    /// Both.
    pub fn served(&self) -> Served {
        Served { pipelines: self.pipelines(), left_out: self.left_out() }
    }
}

impl Tried {
    async fn now(pipeline: &Arc<Pipeline>, assets: &Assets, options: &EngineOptions) -> Self {
        let obstacle = try_out(pipeline, assets, options).await.err().map(|error| Obstacle {
            may_pass: matches!(
                &error,
                EngineError::Asset(
                    AssetError::Missing { .. }
                        | AssetError::Checksum { .. }
                        | AssetError::Size { .. }
                        | AssetError::Io { .. }
                )
            ),
            why: error.to_string(),
        });
        Self { pipeline: Arc::clone(pipeline), obstacle }
    }

    fn may_pass(&self) -> bool {
        self.obstacle.as_ref().is_some_and(|obstacle| obstacle.may_pass)
    }
}

/// Whether what kept a process from a pipeline is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacles {
    /// No.
    Stay,
    /// Where it may be gone.
    MayPass,
}

/// Whether this process can run a pipeline, without fetching anything: weights that can be downloaded count as there, unless
/// a damaged file is.
/// A recognizer with a fingerprint is loaded and has to answer as it says.
///
/// # Errors
/// What keeps it from running.
pub async fn try_out(pipeline: &Pipeline, assets: &Assets, options: &EngineOptions) -> Result<(), EngineError> {
    Engine::check_terms(pipeline, assets, options)?;
    let mut is_complete = true;
    for file in pipeline.files() {
        if !assets.can_download(file) {
            assets.weights(pipeline, file).await?;
            continue;
        }
        match assets.here(pipeline, file).await {
            Ok(_) => {}
            Err(AssetError::Missing { .. } | AssetError::Size { .. } | AssetError::Io { .. }) => is_complete = false,
            // Of the right length, and still another, as damaged files are: somebody thinks that it is there, and jobs would pay
            // where it cannot be fetched.
            Err(error) => return Err(error.into()),
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
        assert!(able.pipelines().contains(&"tiny".to_owned()), "{able:?}");

        let offer = Offer::of_all(&catalogue, &assets, &options(&[])).await;
        assert!(!offer.pipelines().contains(&"tiny".to_owned()), "{offer:?}");
        for (pipeline, part) in [
            ("tiny", "needs a processor with dotprod"),
            ("yunet-mobilefacenet-int8", "avx512_vnni, avx_vnni or dotprod"),
            ("scrfd-mobilefacenet", "--accept-license"),
        ] {
            assert!(offer.left_out()[pipeline].contains(part), "{offer:?}");
        }
    }

    #[tokio::test]
    async fn what_was_tried_is_not_tried_again_unless_it_changed_or_may_be_there_now() {
        let folder = tempfile::tempdir().unwrap();
        let empty = Assets {
            assets_dir: Some(folder.path().to_owned()),
            cache_dir: folder.path().to_owned(),
            ..testing::tiny_assets()
        };
        let (tiny, options) = (testing::tiny_assets(), options(&[]));
        let (_one, before) = catalogue(str::to_owned);
        let (_two, after) = catalogue(str::to_owned);
        let offer = Offer::of_all(&before, &empty, &options).await;
        assert!(offer.pipelines().is_empty() && offer.may_grow(), "{offer:?}");
        // The same entries, and what they lack is there now.
        assert!(offer.again(&before, &tiny, &options, Obstacles::Stay).await.pipelines().is_empty());
        for grown in [
            offer.again(&before, &tiny, &options, Obstacles::MayPass).await,
            offer.again(&after, &tiny, &options, Obstacles::Stay).await,
        ] {
            assert!(grown.pipelines().contains(&"tiny".to_owned()), "{grown:?}");
        }
        let none = offer.again(&Catalogue::default(), &tiny, &options, Obstacles::Stay).await;
        assert_eq!(none.served(), Served::default());
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
            Offer::of_all(&catalogue, &fetching, &int8).await.pipelines(),
            ["yunet-mobilefacenet", "yunet-sface"],
            "the others have no address"
        );
        assert_eq!(Offer::of_all(&catalogue, &here, &int8).await.left_out().len(), catalogue.pipelines().count());
    }

    #[tokio::test]
    async fn a_damaged_file_is_an_obstacle_though_another_could_be_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let (catalogue, cached) = (testing::catalogue(), folder.path().join("models"));
        let pipeline = catalogue.pipeline("yunet-mobilefacenet").unwrap();
        let file = &pipeline.detector.file;
        let assets = Assets {
            assets_dir: None,
            cache_dir: folder.path().to_owned(),
            allow_download: true,
            ..testing::tiny_assets()
        };
        std::fs::create_dir_all(&cached).unwrap();
        std::fs::write(cached.join(&file.name), b"another model's").unwrap();
        try_out(pipeline, &assets, &options(&[])).await.unwrap();
        let damaged = std::fs::File::create(cached.join(&file.name)).unwrap();
        damaged.set_len(file.size_bytes).unwrap();
        let refused = try_out(pipeline, &assets, &options(&[])).await.unwrap_err();
        assert!(matches!(refused, EngineError::Asset(AssetError::Checksum { .. })), "{refused}");
        let offer = Offer::of_all(&catalogue, &assets, &options(&[])).await;
        assert!(offer.may_grow() && offer.left_out()["yunet-mobilefacenet"].contains(&file.name), "{offer:?}");
    }

    #[tokio::test]
    async fn what_is_named_must_run() {
        let (_folder, catalogue) = catalogue(|entry| format!("requires = [\"avx_vnni\"]\n{entry}"));
        let assets = testing::tiny_assets();
        let names = ["tiny".to_owned()];
        let able = Offer::of_named(&names, &catalogue, &assets, &options(&[CpuFeature::AvxVnni])).await.unwrap();
        assert_eq!(able.pipelines(), names);
        let refused = Offer::of_named(&names, &catalogue, &assets, &options(&[])).await.unwrap_err();
        let text = format!("{refused:#}");
        assert!(text.contains("worker.pipelines names tiny") && text.contains("avx_vnni"), "{text}");
        assert!(Offer::of_named(&["vgg".to_owned()], &catalogue, &assets, &options(&[])).await.is_err());
    }
}
