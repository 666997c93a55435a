//! Running a pipeline's two models: [`Engine`] is what the rest of the worker sees of ONNX Runtime.

mod batcher;
mod fingerprint;
mod ladder;
mod on_core;
mod pool;
mod session;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shared::catalogue::{CpuFeature, DetectorFamily, Pipeline, any_of};
use shared::config::{ExecutionProvider, WorkerConfig};
use shared::job::Lane;

use self::batcher::Batcher;
pub use self::ladder::Ladder;
pub use self::on_core::OnCore;
use self::pool::Pool;
pub use self::session::SessionError;
use self::session::{Model, Wanted};
use crate::assets::{AssetError, Assets};
use crate::cores::{BrokenOff, Cores};
use crate::vision::tensor::Tensor;

/// How many sessions to open and how to feed them.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Sessions a model.
    pub sessions: usize,
    /// Threads inside one run. On CPUs one: several sessions side by side do more than one session with several threads.
    pub intra_threads: usize,
    /// How many inputs go through a model together. On CPUs one: a batch of eight takes as long as eight runs.
    pub batches: Ladder,
    /// What runs the models.
    pub provider: ExecutionProvider,
    /// What this machine's processor can do, of what pipelines ask for.
    pub features: &'static [CpuFeature],
}

impl EngineOptions {
    /// The right ones for `sessions` CPU cores.
    pub fn for_cpu(sessions: usize) -> Self {
        Self {
            sessions: sessions.max(1),
            intra_threads: 1,
            batches: Ladder::one_by_one(),
            provider: ExecutionProvider::Cpu,
            features: CpuFeature::of_this_machine(),
        }
    }

    /// Those that the settings ask for.
    pub fn configured(config: &WorkerConfig) -> Self {
        let cpu = Self::for_cpu(config.sessions());
        match config.execution_provider {
            ExecutionProvider::Cpu => cpu,
            ExecutionProvider::Cuda => {
                Self { batches: Ladder::of(&config.batch_sizes), provider: ExecutionProvider::Cuda, ..cpu }
            }
        }
    }
}

/// The models of one pipeline, loaded and ready, for jobs of one lane. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Engine {
    loaded: Arc<Loaded>,
    cores: Cores,
    lane: Lane,
}

#[derive(Debug)]
struct Loaded {
    pipeline: Pipeline,
    detector: Runner,
    recognizer: Runner,
}

/// Who runs a model's sessions.
#[derive(Debug)]
enum Runner {
    /// The core that asks.
    Core(Pool),
    /// Threads that gather inputs for a device.
    Device(Batcher),
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
    #[error("a batch of {rows} gave an output of shape {shape:?}")]
    Batch {
        /// Rows that went in.
        rows: usize,
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
    /// The core gave no answer.
    #[error(transparent)]
    BrokenOff(#[from] BrokenOff),
}

impl Runner {
    fn start(name: &'static str, models: Vec<Model>, batches: &Ladder) -> Result<Self, EngineError> {
        if *batches == Ladder::one_by_one() {
            Ok(Self::Core(Pool::new(name, models)))
        } else {
            Ok(Self::Device(Batcher::start(name, models, batches)?))
        }
    }

    /// Runs the model on one input of batch size 1.
    async fn run(&self, input: Tensor) -> Result<Vec<Tensor>, InferenceError> {
        match self {
            Self::Core(pool) => pool.run(&input).await,
            Self::Device(batcher) => batcher.run(input).await,
        }
    }
}

impl Engine {
    /// Finds, checks and loads a pipeline's models, runs each once, and compares the recognizer's answers with the
    /// entry's fingerprint.
    pub async fn load(pipeline: &Pipeline, assets: &Assets, options: EngineOptions) -> Result<Self, EngineError> {
        Self::check_terms(pipeline, assets, &options)?;
        let library = assets.runtime_library()?;
        let detector_file = assets.weights(pipeline, &pipeline.detector.file).await?;
        let recognizer_file = assets.weights(pipeline, &pipeline.recognizer.file).await?;
        let pipeline = pipeline.clone();
        let engine =
            tokio::task::spawn_blocking(move || load(pipeline, &library, &detector_file, &recognizer_file, &options))
                .await??;
        engine.probe().await?;
        engine.check_fingerprint().await?;
        Ok(engine)
    }

    /// Refuses a pipeline whose licence the operator has not accepted, or which this processor may not run.
    pub fn check_terms(pipeline: &Pipeline, assets: &Assets, options: &EngineOptions) -> Result<(), EngineError> {
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

    /// Runs work on one of the cores, which it keeps from step to step.
    pub async fn on_core<T, W>(&self, work: impl FnOnce(OnCore) -> W) -> Result<T, BrokenOff>
    where
        T: Send + 'static,
        W: Future<Output = T> + Send + 'static,
    {
        self.cores.run(self.lane, work(OnCore::of(self.clone()))).await
    }

    /// Runs the detector on `[1, 3, height, width]`, both sides multiples of 32.
    pub async fn detect(&self, input: Tensor) -> Result<Vec<Tensor>, InferenceError> {
        self.on_core(|core| async move { core.detect(input).await }).await?
    }

    /// Runs the recognizer on one aligned crop, `[1, 3, height, width]`; the vector is as the model gave it.
    pub async fn embed(&self, input: Tensor) -> Result<Vec<f32>, InferenceError> {
        self.on_core(|core| async move { core.embed(input).await }).await?
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
    options: &EngineOptions,
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
    let detectors = open(detector_file, &Wanted::Detector { outputs })?;
    let recognizers = open(recognizer_file, &recognizer)?;
    let loaded = Arc::new(Loaded {
        detector: Runner::start("detector", detectors, &options.batches)?,
        recognizer: Runner::start("recognizer", recognizers, &options.batches)?,
        pipeline,
    });
    Ok(Engine { loaded, cores: Cores::new(options.sessions), lane: Lane::Interactive })
}

#[cfg(test)]
mod tests;
