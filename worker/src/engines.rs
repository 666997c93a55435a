//! The models that are loaded: each pipeline's once, as many of them as there is memory for.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use shared::catalogue::{LandmarkFamily, ModelFile, Pipeline, SecondStageKind};
use shared::health::Check;
use shared::joint_bayes::JointBayes;
use shared::models::{Models, ModelsError};
use shared::telemetry::metrics;
use tokio::sync::{Mutex, OnceCell};

use crate::assets::Assets;
use crate::inference::{self, Engine, EngineError, EngineOptions};

/// What a session takes beside its weights, in bytes: its plan, and the values of a run.
const BESIDE_WEIGHTS: u64 = 16 << 20;

/// The engines of the pipelines that jobs asked for. One that is not used for longest goes when another needs its room;
/// whoever works with it at that moment keeps it until the work is done.
pub struct Engines {
    models: Arc<Models>,
    assets: Assets,
    options: EngineOptions,
    /// What all of them may take together, in bytes.
    budget: u64,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    slots: HashMap<String, Slot>,
    /// Joint Bayesian models that were read without the others of their pipeline, by checksum; as long as one is registered that
    /// has it.
    joint: HashMap<String, Arc<JointBayes>>,
    /// Checksums of those that were missing.
    missing: BTreeSet<String>,
    /// Grows with each use.
    uses: u64,
    /// What networks take that are no pipeline's, in bytes.
    beside: u64,
}

struct Slot {
    pipeline: Arc<Pipeline>,
    engine: Arc<OnceCell<Engine>>,
    bytes: u64,
    last_use: u64,
}

impl Engines {
    /// Loads nothing yet.
    pub fn new(models: Arc<Models>, assets: Assets, options: EngineOptions, budget: u64) -> Self {
        Self { models, assets, options, budget, loaded: Mutex::default() }
    }

    /// Where weights are found.
    pub fn assets(&self) -> &Assets {
        &self.assets
    }

    /// How models are run.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// The models that there are, loaded or not.
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// The engine of that pipeline, loaded by the first caller while others wait.
    pub async fn get(&self, name: &str) -> Result<Engine, EnginesError> {
        let pipeline = self.models.pipeline(name).await?;
        let slot = self.slot(&pipeline).await;
        let loaded = slot.get_or_try_init(|| Engine::load(&pipeline, &self.assets, self.options.clone())).await;
        match loaded {
            Ok(engine) => Ok(engine.clone()),
            Err(error) => {
                self.loaded.lock().await.forget(name, &slot);
                Err(error.into())
            }
        }
    }

    async fn slot(&self, pipeline: &Arc<Pipeline>) -> Arc<OnceCell<Engine>> {
        let mut loaded = self.loaded.lock().await;
        loaded.uses += 1;
        let last_use = loaded.uses;
        // One of an entry that was changed since gives its place to the new one's.
        if let Some(slot) = loaded.slots.get_mut(&pipeline.name).filter(|slot| Arc::ptr_eq(&slot.pipeline, pipeline)) {
            slot.last_use = last_use;
            return Arc::clone(&slot.engine);
        }
        loaded.remove(&pipeline.name);
        let bytes = self.bytes_of(pipeline);
        while loaded.bytes().saturating_add(bytes) > self.budget
            && let Some(unloaded) = loaded.unload_one()
        {
            tracing::info!(pipeline = unloaded, for_pipeline = pipeline.name, "models are unloaded to make room");
        }
        let slot = Slot { pipeline: Arc::clone(pipeline), engine: Arc::default(), bytes, last_use };
        let engine = Arc::clone(&slot.engine);
        loaded.insert(slot);
        engine
    }

    /// What a pipeline's models take.
    fn bytes_of(&self, pipeline: &Pipeline) -> u64 {
        let of = |file: &ModelFile| if is_network(pipeline, file) { self.sessions_of(file) } else { file.size_bytes };
        pipeline.files().into_iter().map(of).fold(0, u64::saturating_add)
    }

    /// What a network's sessions take: each has weights of its own.
    fn sessions_of(&self, file: &ModelFile) -> u64 {
        let sessions = u64::try_from(self.options.sessions).unwrap_or(u64::MAX);
        file.size_bytes.saturating_add(BESIDE_WEIGHTS).saturating_mul(sessions)
    }

    /// Takes networks that were loaded beside the pipelines, and stay, off the room that these have.
    pub async fn count_beside(&self, networks: &[&ModelFile]) {
        let beside = networks.iter().map(|file| self.sessions_of(file)).fold(0, u64::saturating_add);
        let mut loaded = self.loaded.lock().await;
        if loaded.beside == beside {
            return;
        }
        loaded.beside = beside;
        while loaded.slots.len() > 1
            && loaded.bytes() > self.budget
            && let Some(unloaded) = loaded.unload_one()
        {
            tracing::info!(pipeline = unloaded, "models are unloaded to make room for networks beside them");
        }
    }

    /// The Joint Bayesian model of a pipeline, for who needs no other of its models; `None` where it has none. It is read once.
    pub async fn joint_bayes(&self, pipeline: &Pipeline) -> Result<Option<Arc<JointBayes>>, EngineError> {
        let Some(stage) = &pipeline.second_stage else { return Ok(None) };
        let sha256 = &stage.file.sha256;
        let known = self.loaded.lock().await.joint.get(sha256).cloned();
        // Another entry may name the file for vectors that it is not for.
        if let Some(model) = known.filter(|model| model.dimension() == pipeline.recognizer.dimension) {
            return Ok(Some(model));
        }
        let model = inference::joint_bayes(pipeline, &self.assets).await?;
        if let Some(model) = &model {
            let mut loaded = self.loaded.lock().await;
            loaded.joint.insert(sha256.clone(), Arc::clone(model));
            loaded.missing.remove(sha256);
        }
        Ok(model)
    }

    /// Whether this file was not found missing before, since it was there last.
    pub async fn is_first_miss(&self, file: &ModelFile) -> bool {
        self.loaded.lock().await.missing.insert(file.sha256.clone())
    }

    /// The pipelines that are loaded, or being so.
    pub async fn loaded(&self) -> Vec<String> {
        let mut names: Vec<String> = self.loaded.lock().await.slots.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// What is registered of a pipeline.
    pub async fn pipeline(&self, name: &str) -> Result<Arc<Pipeline>, EnginesError> {
        Ok(self.models.pipeline(name).await?)
    }

    /// Unloads what is not registered any more.
    pub async fn forget_removed(&self) {
        let now = self.models.now();
        let mut loaded = self.loaded.lock().await;
        let gone: Vec<String> = loaded.slots.keys().filter(|name| now.find(name).is_none()).cloned().collect();
        for name in gone {
            loaded.remove(&name);
        }
        let second = now.pipelines().filter_map(|pipeline| pipeline.second_stage.as_ref());
        let registered: HashSet<&str> = second.map(|stage| stage.file.sha256.as_str()).collect();
        loaded.joint.retain(|sha256, _| registered.contains(sha256.as_str()));
        loaded.missing.retain(|sha256| registered.contains(sha256.as_str()));
    }

    /// A readiness check that runs this pipeline's models.
    pub fn check(self: &Arc<Self>, pipeline: String) -> Check {
        let engines = Arc::clone(self);
        Check::new("inference", move || {
            let (engines, pipeline) = (Arc::clone(&engines), pipeline.clone());
            async move {
                let engine = engines.get(&pipeline).await.map_err(anyhow::Error::new)?;
                engine.probe().await.map_err(anyhow::Error::new)
            }
        })
    }
}

/// Whether sessions run the file: what is not a network is there once, whoever asks it.
fn is_network(pipeline: &Pipeline, file: &ModelFile) -> bool {
    let landmarks = pipeline.landmarks.as_ref().filter(|model| model.family == LandmarkFamily::ShapePredictor);
    let second = pipeline.second_stage.as_ref().filter(|stage| stage.kind == SecondStageKind::JointBayesian);
    landmarks.is_none_or(|model| model.file != *file) && second.is_none_or(|stage| stage.file != *file)
}

impl Loaded {
    fn bytes(&self) -> u64 {
        self.slots.values().map(|slot| slot.bytes).fold(self.beside, u64::saturating_add)
    }

    /// Forgets what could not be loaded, unless somebody tries again.
    fn forget(&mut self, name: &str, slot: &Arc<OnceCell<Engine>>) {
        if self.slots.get(name).is_some_and(|known| Arc::ptr_eq(&known.engine, slot) && Arc::strong_count(slot) == 2) {
            self.remove(name);
        }
    }

    fn insert(&mut self, slot: Slot) {
        metrics::pipeline_loaded(&slot.pipeline.name, slot.bytes);
        self.slots.insert(slot.pipeline.name.clone(), slot);
        metrics::pipelines_loaded(self.slots.len());
    }

    fn remove(&mut self, name: &str) {
        if self.slots.remove(name).is_some() {
            metrics::pipeline_loaded(name, 0);
            metrics::pipelines_loaded(self.slots.len());
        }
    }

    /// Forgets what was not used for longest; its name.
    fn unload_one(&mut self) -> Option<String> {
        let name = self.slots.iter().min_by_key(|(_, slot)| slot.last_use).map(|(name, _)| name.clone())?;
        self.remove(&name);
        Some(name)
    }
}

/// Why there is no engine of that name.
#[derive(Debug, thiserror::Error)]
pub enum EnginesError {
    /// It is not registered.
    #[error(transparent)]
    Models(#[from] ModelsError),
    /// It cannot be loaded.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

#[cfg(test)]
mod tests {
    use shared::catalogue::Catalogue;
    use shared::digest::sha256_hex;
    use shared::joint_bayes::Matrix;

    use super::*;
    use crate::testing;

    fn engines(room_for: u64) -> (tempfile::TempDir, Engines) {
        let folder = tempfile::tempdir().unwrap();
        let tiny = std::fs::read_to_string(testing::repository().join("models/tiny/tiny.toml")).unwrap();
        for name in ["tiny", "second", "third"] {
            let entry = tiny.replace("name = \"tiny\"\n", &format!("name = \"{name}\"\n"));
            std::fs::write(folder.path().join(format!("{name}.toml")), entry).unwrap();
        }
        let models = Arc::new(Models::fixed(Catalogue::load(Some(folder.path())).unwrap()));
        let options = EngineOptions::for_cpu(1);
        let one = Engines::new(Arc::clone(&models), testing::tiny_assets(), options.clone(), 0)
            .bytes_of(models.now().pipeline("tiny").unwrap());
        (folder, Engines::new(models, testing::tiny_assets(), options, one * room_for))
    }

    #[tokio::test]
    async fn what_was_not_used_for_longest_goes() {
        let (_folder, engines) = engines(2);
        for (name, loaded) in [
            ("tiny", &["tiny"][..]),
            ("second", &["second", "tiny"]),
            ("tiny", &["second", "tiny"]),
            ("third", &["third", "tiny"]),
            ("second", &["second", "third"]),
        ] {
            engines.get(name).await.unwrap();
            assert_eq!(engines.loaded().await, loaded, "after {name}");
        }
    }

    #[tokio::test]
    async fn one_has_room_always_and_whoever_works_keeps_it() {
        let (_folder, engines) = engines(0);
        let at_work = engines.get("tiny").await.unwrap();
        engines.get("second").await.unwrap();
        assert_eq!(engines.loaded().await, ["second"]);
        at_work.probe().await.unwrap();
    }

    #[tokio::test]
    async fn what_stays_beside_the_pipelines_takes_of_their_room() {
        let (_folder, engines) = engines(2);
        for name in ["tiny", "second"] {
            engines.get(name).await.unwrap();
        }
        let pipeline = testing::tiny_pipeline();
        engines.count_beside(&[&pipeline.detector.file]).await;
        assert_eq!(engines.loaded().await, ["second"]);
        engines.get("tiny").await.unwrap();
        assert_eq!(engines.loaded().await, ["tiny"]);
    }

    #[test]
    fn what_no_session_runs_counts_once() {
        let models = Arc::new(Models::fixed(Catalogue::load(None).unwrap()));
        let engines = Engines::new(Arc::clone(&models), testing::tiny_assets(), EngineOptions::for_cpu(4), 0);
        let catalogue = models.now();
        let pipeline = catalogue.pipeline("dlib-68").unwrap();
        let trees = pipeline.landmarks.as_ref().unwrap().file.size_bytes;
        let networks: u64 = [&pipeline.detector.file, &pipeline.recognizer.file]
            .into_iter()
            .map(|file| 4 * (file.size_bytes + BESIDE_WEIGHTS))
            .sum();
        assert_eq!((pipeline.files().len(), engines.bytes_of(pipeline)), (3, networks + trees));
    }

    #[tokio::test]
    async fn a_joint_bayesian_model_is_read_once_and_forgotten_with_its_pipeline() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("models")).unwrap();
        let file = folder.path().join("models/second.jb");
        let model = JointBayes::new(vec![0.0; 64], Matrix::diagonal(64, -1.0), Matrix::diagonal(64, -1.0)).unwrap();
        let bytes = model.to_bytes();
        std::fs::write(&file, &bytes).unwrap();
        let tiny = std::fs::read_to_string(testing::repository().join("models/tiny/tiny.toml")).unwrap();
        let entry = format!(
            "{tiny}\n[second_stage]\nkind = \"joint-bayesian\"\nthreshold = 0.0\n[second_stage.file]\nname = \"second.jb\"\n\
             sha256 = \"{}\"\nsize_bytes = {}\nlicence = \"own\"\nuse = \"permissive\"\n",
            sha256_hex(&bytes),
            bytes.len()
        );
        let pipeline = Pipeline::parse("x.toml", &entry).unwrap();
        let assets = Assets { assets_dir: Some(folder.path().to_owned()), ..testing::tiny_assets() };
        let models = Arc::new(Models::fixed(Catalogue::load(None).unwrap()));
        let engines = Engines::new(models, assets, EngineOptions::for_cpu(1), 0);
        let first = engines.joint_bayes(&pipeline).await.unwrap().unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(Arc::ptr_eq(&first, &engines.joint_bayes(&pipeline).await.unwrap().unwrap()));
        // It is registered nowhere.
        engines.forget_removed().await;
        assert!(engines.joint_bayes(&pipeline).await.is_err());
        let file = &pipeline.second_stage.as_ref().unwrap().file;
        assert!(engines.is_first_miss(file).await && !engines.is_first_miss(file).await);
    }
}
