//! Running a pipeline's models: [`Engine`] is what the rest of the worker sees of ONNX Runtime.

mod batcher;
mod fingerprint;
mod ladder;
mod network;
mod on_core;
mod pool;
mod second_stage;
mod session;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use shared::catalogue::{
    CpuFeature, Detector, DetectorFamily, LandmarkModel, LandmarkScheme, ModelFile, Pipeline, any_of,
};
use shared::config::{ExecutionProvider, WorkerConfig};
use shared::job::Lane;
use shared::joint_bayes::JointBayes;

use self::batcher::Batcher;
pub use self::ladder::Ladder;
pub use self::network::Network;
pub use self::on_core::OnCore;
use self::pool::Pool;
use self::second_stage::SecondModel;
pub use self::second_stage::SecondStageError;
pub(crate) use self::second_stage::joint_bayes;
pub use self::session::SessionError;
use self::session::{Model, Wanted};
use crate::assets::{AssetError, Assets};
use crate::cores::{BrokenOff, Cores};
use crate::vision::shape_predictor::{ShapePredictor, ShapePredictorError};
use crate::vision::tensor::Tensor;
use crate::vision::{Picture, detect, mtcnn, recognize, ultraface};

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
    /// One, or each stage of a cascade.
    detector: Vec<Runner>,
    /// What places points, where that is a model of its own.
    landmarks: Option<Placer>,
    recognizer: Runner,
    second: Option<SecondModel>,
}

/// What places points on a face.
#[derive(Debug)]
enum Placer {
    Network(Runner),
    Trees(ShapePredictor),
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
    /// The file of the second stage is not what its entry says.
    #[error("load the second stage {file}")]
    SecondStage {
        /// Which file.
        file: PathBuf,
        /// What is wrong.
        #[source]
        source: SecondStageError,
    },
    /// ONNX Runtime or a model does not load.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A file holds no shape predictor.
    #[error("load the shape predictor {file}; check that the file is whole with `face-id models verify`")]
    ShapePredictor {
        /// Which file.
        file: PathBuf,
        /// What is wrong.
        #[source]
        source: ShapePredictorError,
    },
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
    /// The pipeline has no such model.
    #[error("the pipeline has no such model; this is a bug: its entry was checked")]
    NoModel,
    /// An answer is not what its entry says.
    #[error("the network answered with {numbers} numbers that are no classes of its entry")]
    Answer {
        /// How many.
        numbers: usize,
    },
    /// A file leaves the length of its answer open, and it is another one than the entry's.
    #[error(
        "the {model} answers with {found} numbers, and {wanted} belong to its entry; check its file, dimension and scheme"
    )]
    Length {
        /// Which one.
        model: &'static str,
        /// By the entry.
        wanted: usize,
        /// In the answer.
        found: usize,
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

impl InferenceError {
    fn check(model: &'static str, wanted: usize, found: usize) -> Result<(), Self> {
        if wanted == found { Ok(()) } else { Err(Self::Length { model, wanted, found }) }
    }
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
        let mut files = HashMap::new();
        for file in pipeline.files() {
            files.insert(file.sha256.clone(), assets.weights(pipeline, file).await?);
        }
        let pipeline = pipeline.clone();
        let engine = tokio::task::spawn_blocking(move || load(pipeline, &library, &files, &options)).await??;
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

    /// What scores pairs of vectors, where the pipeline's second stage does that.
    pub fn joint_bayes(&self) -> Option<&Arc<JointBayes>> {
        match &self.loaded.second {
            Some(SecondModel::Joint(model)) => Some(model),
            Some(SecondModel::Pair(_)) | None => None,
        }
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

    /// Runs the detector, of a cascade the first stage, on `[1, 3, height, width]`.
    pub async fn detect(&self, input: Tensor) -> Result<Vec<Tensor>, InferenceError> {
        self.on_core(|core| async move { core.detect(input).await }).await?
    }

    /// Runs the landmark network on one face, `[1, 3, side, side]`; its answer is x and y of each point, 0..1.
    pub async fn place(&self, input: Tensor) -> Result<Vec<f32>, InferenceError> {
        self.on_core(|core| async move { core.place(input).await }).await?
    }

    /// Runs the recognizer on one aligned crop, as `vision::recognize::input` lays it out; the vector is as the model gave it.
    pub async fn embed(&self, input: Tensor) -> Result<Vec<f32>, InferenceError> {
        self.on_core(|core| async move { core.embed(input).await }).await?
    }

    /// Runs all models on black pictures: they are ready when this returns.
    pub async fn probe(&self) -> Result<(), InferenceError> {
        let pipeline = self.loaded.pipeline.clone();
        self.on_core(|core| async move {
            for (stage, shape) in detect::probe_shapes(&pipeline.detector).into_iter().enumerate() {
                core.stage(stage, black(&shape)).await?;
            }
            if let Some(input) = pipeline.landmarks.as_ref().and_then(|landmarks| landmarks.input.as_ref()) {
                let answer = core.place(black(&[1, 3, input.side.into(), input.side.into()])).await?;
                let points = pipeline.landmark_scheme().map_or(0, LandmarkScheme::points);
                InferenceError::check("landmark network", 2 * points, answer.len())?;
            }
            let answer =
                core.embed(black(&recognize::input_shape(&pipeline.recognizer, pipeline.alignment.size()))).await?;
            InferenceError::check("recognizer", pipeline.recognizer.dimension, answer.len())?;
            if pipeline.has_pair_network() {
                let [width, height] = pipeline.alignment.size();
                let crop = Picture { width, height, rgb: vec![0; width as usize * height as usize * 3] };
                core.pair(&crop, &crop).await?;
            }
            Ok(())
        })
        .await?
    }
}

fn black(shape: &[i64; 4]) -> Tensor {
    let numbers = shape.iter().product::<i64>();
    Tensor { shape: shape.to_vec(), data: vec![0.0; usize::try_from(numbers).unwrap_or_default()] }
}

fn load(
    pipeline: Pipeline,
    library: &Path,
    files: &HashMap<String, PathBuf>,
    options: &EngineOptions,
) -> Result<Engine, EngineError> {
    // Each of the pipeline's files was looked up before, and two of them may be called alike.
    let path = |file: &ModelFile| files.get(&file.sha256).cloned().unwrap_or_else(|| PathBuf::from(&file.name));
    let start = |name: &'static str, file: &ModelFile, wanted: &Wanted| {
        let path = &path(file);
        let load = |_| Model::load(library, path, (options.intra_threads, options.provider), wanted);
        let models = (0..options.sessions).map(load).collect::<Result<Vec<_>, _>>()?;
        Runner::start(name, models, &options.batches)
    };
    let detector = &pipeline.detector;
    let stages = std::iter::once(&detector.file).chain(&detector.stages).zip(detector_stages(detector));
    let stages = stages.map(|(file, wanted)| start("detector", file, &wanted)).collect::<Result<Vec<_>, _>>()?;
    let landmarks = match &pipeline.landmarks {
        Some(model) => Some(match landmark_network(model) {
            Some(wanted) => Placer::Network(start("landmarks", &model.file, &wanted)?),
            None => Placer::Trees(shape_predictor(model, path(&model.file))?),
        }),
        None => None,
    };
    let [_, first, second, third] = recognize::input_shape(&pipeline.recognizer, pipeline.alignment.size());
    let recognizer = Wanted::Recognizer { input: [first, second, third], dimension: pipeline.recognizer.dimension };
    let recognizer = start("recognizer", &pipeline.recognizer.file, &recognizer)?;
    let second = match &pipeline.second_stage {
        Some(stage) => SecondModel::load(&pipeline, (library, &path(&stage.file)), options)?,
        None => None,
    };
    let loaded = Arc::new(Loaded { detector: stages, landmarks, recognizer, second, pipeline });
    Ok(Engine { loaded, cores: Cores::new(options.sessions), lane: Lane::Interactive })
}

/// What each file of a detector has to be.
fn detector_stages(detector: &Detector) -> Vec<Wanted> {
    let free = |outputs| match detector.fixed_side {
        Some(side) => Wanted::Fixed { input: [side; 2], outputs },
        None => Wanted::Detector { outputs },
    };
    match detector.family {
        DetectorFamily::Yunet => vec![free(12)],
        DetectorFamily::Scrfd => vec![free(9)],
        DetectorFamily::Mmod => vec![free(1)],
        DetectorFamily::Ultraface => vec![Wanted::Fixed { input: ultraface::INPUT, outputs: 2 }],
        DetectorFamily::Mtcnn => {
            let [refine, output] = mtcnn::SIDES.map(|side| [side; 2]);
            vec![free(2), Wanted::Fixed { input: refine, outputs: 2 }, Wanted::Fixed { input: output, outputs: 3 }]
        }
    }
}

/// The trees of a file whose checksum is known to be right.
fn shape_predictor(model: &LandmarkModel, file: PathBuf) -> Result<ShapePredictor, EngineError> {
    let read = std::fs::read(&file);
    let bytes = read.map_err(|source| AssetError::Io { action: "read", path: file.clone(), source })?;
    let points = model.scheme.points();
    let predictor = ShapePredictor::read(&bytes).and_then(|predictor| predictor.placing(points));
    predictor.map_err(|source| EngineError::ShapePredictor { file, source })
}

/// What the file of a landmark model has to be, where ONNX Runtime runs it.
fn landmark_network(model: &LandmarkModel) -> Option<Wanted> {
    let side = model.input.as_ref()?.side;
    Some(Wanted::Fixed { input: [side; 2], outputs: 1 })
}

#[cfg(test)]
mod tests;
