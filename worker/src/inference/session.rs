//! ONNX Runtime: the only file that names it. Loads its library once, and one model into one session.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session, SessionInputValue};
use ort::value::{TensorElementType, TensorRef};

use shared::config::ExecutionProvider;

use crate::vision::tensor::Tensor;

/// The environment lives as long as the process: the library cannot be unloaded.
static ENVIRONMENT: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

/// Why a model cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The library is there but cannot be loaded.
    #[error(
        "load ONNX Runtime from {path}; run `make setup`, or point ORT_DYLIB_PATH at libonnxruntime.so 1.22 or later"
    )]
    Library {
        /// Where it was.
        path: PathBuf,
        /// What the loader said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file is no model that ONNX Runtime can run.
    #[error("load the model {file}; check that the file is whole with `face-id models verify`")]
    Load {
        /// Which file.
        file: PathBuf,
        /// What ONNX Runtime said.
        #[source]
        source: ort::Error,
    },
    /// The model's inputs or outputs are not what the catalogue says.
    #[error("the model {file} does not fit its catalogue entry: {wanted} was expected, but it has {found}")]
    Shape {
        /// Which file.
        file: PathBuf,
        /// What the catalogue's entry needs.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// A run failed.
    #[error("run the model")]
    Run(#[source] ort::Error),
}

/// One model, loaded; owned by one thread.
#[derive(Debug)]
pub(super) struct Model {
    session: Session,
    file: PathBuf,
}

/// What a catalogue entry needs of a model.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// `[n, 3, any, any]` in, `n` free or 1; this many tensors out.
    Detector { outputs: usize },
    /// `[n, 3, height, width]` in with the width and height of `input`, `n` free or 1; this many tensors out.
    Fixed { input: [u32; 2], outputs: usize },
    /// `[n, ..input]` in, `n` free or 1; `[n, dimension]` out.
    Recognizer { input: [i64; 3], dimension: usize },
    /// Each of the inputs `[n, ..input]`, `n` free or 1; one output `[n, numbers]`.
    Numbers { inputs: Vec<[i64; 3]>, numbers: usize },
}

fn environment(library: &Path) -> Result<Environment, SessionError> {
    let failed = |source| SessionError::Library { path: library.to_owned(), source };
    let mut shared = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((path, environment)) = shared.as_ref() {
        if path != library {
            let text = format!("this process already runs {}", path.display());
            return Err(failed(text.into()));
        }
        return Ok(environment.clone());
    }
    let builder = ort::init_from(library).map_err(|e| failed(Box::new(e)))?;
    let environment = builder.with_name("face-id").build().map_err(|e| failed(Box::new(e)))?;
    *shared = Some((library.to_owned(), environment.clone()));
    Ok(environment)
}

impl Model {
    /// Loads a file whose checksum is known to be right, for `threads` threads inside one run.
    pub(super) fn load(
        library: &Path,
        file: &Path,
        (threads, provider): (usize, ExecutionProvider),
        wanted: &Wanted,
    ) -> Result<Self, SessionError> {
        let environment = environment(library)?;
        let providers = match provider {
            ExecutionProvider::Cpu => Vec::new(),
            // Without this ONNX Runtime would silently run on the processor.
            ExecutionProvider::Cuda => vec![ort::ep::CUDA::default().build().error_on_failure()],
        };
        let load = || -> Result<Session, ort::Error> {
            Session::builder(&environment)?
                .with_execution_providers(&providers)?
                .with_optimization_level(GraphOptimizationLevel::All)?
                .with_intra_threads(threads)?
                // Several sessions share the cores: a thread that spins takes time from another's work.
                .with_intra_op_spinning(false)?
                .with_inter_op_spinning(false)?
                // Sizes differ from run to run, so a plan for one would only hold memory.
                .with_memory_pattern(false)?
                .commit_from_file(file)
        };
        let session = load().map_err(|source| SessionError::Load { file: file.to_owned(), source })?;
        let model = Self { session, file: file.to_owned() };
        model.check(wanted)?;
        Ok(model)
    }

    fn check(&self, wanted: &Wanted) -> Result<(), SessionError> {
        let refuse =
            |wanted: String, found: String| Err(SessionError::Shape { file: self.file.clone(), wanted, found });
        if let Wanted::Numbers { inputs, numbers } = wanted {
            return self.check_numbers(inputs, *numbers);
        }
        let inputs = self.session.inputs();
        let shape: Option<Vec<i64>> =
            inputs.first().and_then(|i| i.dtype().tensor_shape()).map(|s| s.iter().copied().collect());
        let input_shape = shape.clone().unwrap_or_default();
        let is_one = inputs.len() == 1
            && inputs.first().and_then(|i| i.dtype().tensor_type()) == Some(TensorElementType::Float32);
        // A negative length is a free one.
        let fits = |wanted: [i64; 4]| {
            input_shape.len() == 4 && input_shape.iter().zip(wanted).all(|(has, w)| *has < 0 || w < 0 || *has == w)
        };
        let found =
            format!("{} inputs, the first {input_shape:?}, and {} outputs", inputs.len(), self.session.outputs().len());
        match wanted {
            Wanted::Numbers { .. } => {}
            Wanted::Detector { outputs } => {
                let free = input_shape.len() == 4 && input_shape[2] < 0 && input_shape[3] < 0;
                if !is_one || !fits([1, 3, -1, -1]) || !free || self.session.outputs().len() != *outputs {
                    let text =
                        format!("one f32 input [n, 3, free height, free width], n free or 1, and {outputs} outputs");
                    return refuse(text, found);
                }
            }
            Wanted::Fixed { input: [width, height], outputs } => {
                let wanted = [1, 3, i64::from(*height), i64::from(*width)];
                if !is_one || !fits(wanted) || self.session.outputs().len() != *outputs {
                    let text = format!("one f32 input [n, 3, {height}, {width}], n free or 1, and {outputs} outputs");
                    return refuse(text, found);
                }
            }
            Wanted::Recognizer { input: [first, second, third], dimension } => {
                let output = self.session.outputs().first().and_then(|o| o.dtype().tensor_shape());
                let components = output.and_then(|s| s.last().copied()).unwrap_or_default();
                #[expect(clippy::cast_possible_wrap, reason = "the catalogue bounds it to 4096")]
                let right = components < 0 || components == *dimension as i64;
                if !is_one || !fits([1, *first, *second, *third]) || !right {
                    let text = format!(
                        "one f32 input [n, {first}, {second}, {third}], n free or 1, and {dimension} components out"
                    );
                    return refuse(text, format!("{found}, the first with {components} components"));
                }
            }
        }
        Ok(())
    }

    /// The same for a model that may have several inputs.
    fn check_numbers(&self, wanted: &[[i64; 3]], numbers: usize) -> Result<(), SessionError> {
        let inputs = self.session.inputs();
        let shape = |shape: Option<&ort::value::Shape>| {
            shape.map(|s| s.iter().copied().collect::<Vec<_>>()).unwrap_or_default()
        };
        let fits = |has: &[i64], [first, second, third]: [i64; 3]| {
            has.len() == 4 && has.iter().zip([1, first, second, third]).all(|(has, wanted)| *has < 0 || *has == wanted)
        };
        let is_right = inputs.len() == wanted.len()
            && inputs.iter().zip(wanted).all(|(input, wanted)| {
                input.dtype().tensor_type() == Some(TensorElementType::Float32)
                    && fits(&shape(input.dtype().tensor_shape()), *wanted)
            });
        let output =
            self.session.outputs().first().map(|output| shape(output.dtype().tensor_shape())).unwrap_or_default();
        let given = output.last().copied().unwrap_or_default();
        if is_right && self.session.outputs().len() == 1 && (given < 0 || given == numbers as i64) {
            return Ok(());
        }
        let has: Vec<_> = inputs.iter().map(|input| shape(input.dtype().tensor_shape())).collect();
        Err(SessionError::Shape {
            file: self.file.clone(),
            wanted: format!(
                "f32 inputs {wanted:?} after a batch axis that is free or 1, and one output of {numbers} numbers"
            ),
            found: format!("inputs {has:?} and {} outputs, the first {output:?}", self.session.outputs().len()),
        })
    }

    /// Whether one run takes a batch of any size.
    pub(super) fn has_free_batch(&self) -> bool {
        let shape = self.session.inputs().first().and_then(|i| i.dtype().tensor_shape());
        shape.and_then(|s| s.first().copied()).is_some_and(|n| n < 0)
    }

    /// Runs the model on one input and returns all its outputs in the file's order.
    pub(super) fn run(&mut self, input: &Tensor) -> Result<Vec<Tensor>, SessionError> {
        self.run_all(std::slice::from_ref(input))
    }

    /// The same of a model that has several inputs, in the file's order.
    pub(super) fn run_all(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, SessionError> {
        let run = |session: &mut Session| -> Result<Vec<Tensor>, ort::Error> {
            let mut values: Vec<SessionInputValue<'_>> = Vec::with_capacity(inputs.len());
            for Tensor { shape, data } in inputs {
                values.push(TensorRef::from_array_view((shape.clone(), data.as_slice()))?.into());
            }
            let outputs = session.run(values.as_slice())?;
            outputs
                .iter()
                .map(|(_, output)| {
                    let (shape, data) = output.try_extract_tensor::<f32>()?;
                    Ok(Tensor { shape: shape.iter().copied().collect(), data: data.to_vec() })
                })
                .collect()
        };
        run(&mut self.session).map_err(SessionError::Run)
    }
}
