//! Running a pipeline's two models: [`Engine`] is what the rest of the worker sees of ONNX Runtime.

mod batcher;
mod fingerprint;
mod session;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shared::catalogue::{CpuFeature, DetectorFamily, Pipeline, any_of};
use shared::config::{ExecutionProvider, WorkerConfig};
use shared::job::Lane;

use self::batcher::Batcher;
pub use self::session::SessionError;
use self::session::{Model, Wanted};
use crate::assets::{AssetError, Assets};
use crate::cores::{Core, Cores};
use crate::vision::tensor::Tensor;

/// How many sessions to open and how to feed them.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Sessions a model, each with a thread of its own.
    pub sessions: usize,
    /// Threads inside one run. On CPUs one: several sessions side by side do more than one session with several threads.
    pub intra_threads: usize,
    /// Inputs that go through a model together. On CPUs one: a batch of eight takes as long as eight runs.
    pub max_batch: usize,
    /// What runs the models.
    pub provider: ExecutionProvider,
    /// What this machine's processor can do, of what pipelines ask for.
    pub features: &'static [CpuFeature],
}

/// Inputs that go through a model together on a GPU.
const GPU_BATCH: usize = 16;

impl EngineOptions {
    /// The right ones for `sessions` CPU cores.
    pub fn for_cpu(sessions: usize) -> Self {
        Self {
            sessions: sessions.max(1),
            intra_threads: 1,
            max_batch: 1,
            provider: ExecutionProvider::Cpu,
            features: CpuFeature::of_this_machine(),
        }
    }

    /// Those that the settings ask for.
    pub fn configured(config: &WorkerConfig) -> Self {
        let cpu = Self::for_cpu(config.sessions());
        match config.execution_provider {
            ExecutionProvider::Cpu => cpu,
            ExecutionProvider::Cuda => Self { max_batch: GPU_BATCH, provider: ExecutionProvider::Cuda, ..cpu },
        }
    }
}

/// The models of one pipeline, loaded and ready, for jobs of one lane. Cloning shares them; the last clone's end ends
/// their threads.
#[derive(Clone, Debug)]
pub struct Engine {
    loaded: Arc<Loaded>,
    cores: Cores,
    lane: Lane,
}

#[derive(Debug)]
struct Loaded {
    pipeline: Pipeline,
    provider: ExecutionProvider,
    detector: Batcher,
    recognizer: Batcher,
}

/// Why a pipeline cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A file is missing, wrong, or not to be used.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// The processor would give other vectors.
    #[error(
        "pipeline {pipeline} needs a processor with {}; this one has none of them and would round its sums otherwise, so \
         that its vectors could not be compared with those of other machines. Run it on a processor that has, or use \
         another pipeline here",
        any_of(requires)
    )]
    Processor {
        /// The pipeline.
        pipeline: String,
        /// What its entry asks for, any one of it.
        requires: Vec<CpuFeature>,
    },
    /// The recognizer gives other vectors here.
    #[error(
        "the recognizer {file} of pipeline {pipeline} gives other vectors here than its entry holds: on test crop {crop} the \
         cosine is {cosine:.4}, and at least {min_cosine} is needed, so that what it stores could not be compared. Run it \
         on another processor or with another ONNX Runtime, or use another pipeline here; an entry of your own takes \
         what `face-id models fingerprint {pipeline}` prints"
    )]
    Fingerprint {
        /// The pipeline.
        pipeline: String,
        /// Its recognizer's file.
        file: String,
        /// Which test crop, from 1.
        crop: usize,
        /// What was found.
        cosine: f32,
        /// What the entry asks for.
        min_cosine: f32,
    },
    /// ONNX Runtime or a model does not load.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// No thread could be started.
    #[error("start a thread for a model")]
    Thread(#[from] std::io::Error),
    /// The loading itself broke off.
    #[error("loading the models broke off")]
    Broken(#[from] tokio::task::JoinError),
    /// The first run failed.
    #[error("the first run of the models failed")]
    Probe(#[from] InferenceError),
}

/// Why a run gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum InferenceError {
    /// The runtime refused.
    #[error("the model failed on this input")]
    Run(#[source] Arc<SessionError>),
    /// An answer has no batch axis.
    #[error("a batch of {count} gave an output of shape {shape:?}")]
    Batch {
        /// Inputs that went in.
        count: usize,
        /// What came out.
        shape: Vec<i64>,
    },
    /// The thread caught a panic.
    #[error("the model's thread panicked on this input")]
    Panicked,
    /// Nothing came back in time.
    #[error("the model gave no answer within {0:?}")]
    Timeout(Duration),
    /// The engine is shutting down.
    #[error("the models are being unloaded")]
    Stopped,
}

impl Engine {
    /// Finds, checks and loads a pipeline's models, runs each once, and compares the recognizer's answers with the
    /// entry's fingerprint.
    pub async fn load(pipeline: &Pipeline, assets: &Assets, options: EngineOptions) -> Result<Self, EngineError> {
        Self::check_terms(pipeline, assets, options)?;
        let library = assets.runtime_library()?;
        let detector_file = assets.weights(pipeline, &pipeline.detector.file).await?;
        let recognizer_file = assets.weights(pipeline, &pipeline.recognizer.file).await?;
        let pipeline = pipeline.clone();
        let engine =
            tokio::task::spawn_blocking(move || load(pipeline, &library, &detector_file, &recognizer_file, options))
                .await??;
        engine.probe().await?;
        engine.check_fingerprint().await?;
        Ok(engine)
    }

    /// Refuses a pipeline whose licence the operator has not accepted, or which this processor may not run.
    pub fn check_terms(pipeline: &Pipeline, assets: &Assets, options: EngineOptions) -> Result<(), EngineError> {
        assets.check_licence(pipeline)?;
        match options.provider {
            ExecutionProvider::Cpu if !pipeline.runs_on(options.features) => {
                Err(EngineError::Processor { pipeline: pipeline.name.clone(), requires: pipeline.requires.clone() })
            }
            // What a GPU answers is compared with the fingerprint.
            ExecutionProvider::Cpu | ExecutionProvider::Cuda => Ok(()),
        }
    }

    /// The pipeline whose models these are.
    pub fn pipeline(&self) -> &Pipeline {
        &self.loaded.pipeline
    }

    /// The same models for jobs of `lane`, on cores that are shared with others.
    #[must_use]
    pub fn sharing(&self, cores: Cores, lane: Lane) -> Self {
        Self { loaded: Arc::clone(&self.loaded), cores, lane }
    }

    /// Runs a step of an analysis that keeps a core busy.
    pub(crate) async fn on_core<T: Send + 'static>(
        &self,
        step: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, tokio::task::JoinError> {
        let core = self.cores.enter(self.lane).await;
        // The core is held to the end of the step, even if nobody waits for its answer any more.
        tokio::task::spawn_blocking(move || {
            let _core = core;
            step()
        })
        .await
    }

    /// A core for a run of a model, where cores run the models.
    async fn core(&self) -> Option<Core> {
        match self.loaded.provider {
            ExecutionProvider::Cpu => Some(self.cores.enter(self.lane).await),
            ExecutionProvider::Cuda => None,
        }
    }

    /// Runs the detector on `[1, 3, height, width]`, both sides multiples of 32.
    pub async fn detect(&self, input: Tensor) -> Result<Vec<Tensor>, InferenceError> {
        let _core = self.core().await;
        self.loaded.detector.run(input).await
    }

    /// Runs the recognizer on one aligned crop, `[1, 3, height, width]`; the vector is as the model gave it.
    pub async fn embed(&self, input: Tensor) -> Result<Vec<f32>, InferenceError> {
        let _core = self.core().await;
        let mut outputs = self.loaded.recognizer.run(input).await?;
        Ok(outputs.swap_remove(0).data)
    }

    /// Runs both models on black pictures: they are ready when this returns.
    pub async fn probe(&self) -> Result<(), InferenceError> {
        let alignment = &self.loaded.pipeline.alignment;
        self.detect(black(64, 64)).await?;
        self.embed(black(alignment.height, alignment.width)).await?;
        Ok(())
    }
}

fn black(height: u32, width: u32) -> Tensor {
    Tensor { shape: vec![1, 3, height.into(), width.into()], data: vec![0.0; 3 * height as usize * width as usize] }
}

fn load(
    pipeline: Pipeline,
    library: &std::path::Path,
    detector_file: &PathBuf,
    recognizer_file: &PathBuf,
    options: EngineOptions,
) -> Result<Engine, EngineError> {
    let outputs = match pipeline.detector.family {
        DetectorFamily::Yunet => 12,
        DetectorFamily::Scrfd => 9,
    };
    let alignment = &pipeline.alignment;
    let recognizer = Wanted::Recognizer {
        width: alignment.width,
        height: alignment.height,
        dimension: pipeline.recognizer.dimension,
    };
    let open = |file: &PathBuf, wanted: &Wanted| {
        (0..options.sessions)
            .map(|_| Model::load(library, file, (options.intra_threads, options.provider), wanted))
            .collect::<Result<Vec<_>, _>>()
    };
    // Detector inputs differ in size from picture to picture, so they go one by one.
    let detectors = open(detector_file, &Wanted::Detector { outputs })?;
    let recognizers = open(recognizer_file, &recognizer)?;
    let loaded = Arc::new(Loaded {
        detector: Batcher::start("detector", detectors, 1)?,
        recognizer: Batcher::start("recognizer", recognizers, options.max_batch)?,
        provider: options.provider,
        pipeline,
    });
    Ok(Engine { loaded, cores: Cores::new(options.sessions), lane: Lane::Interactive })
}

#[cfg(test)]
mod tests;
