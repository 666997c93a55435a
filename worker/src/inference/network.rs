//! A network beside a pipeline's own: what looks at pairs of crops, or at liveness.

use std::path::Path;

use super::pool::Pool;
use super::session::{Model, Wanted};
use super::{EngineError, EngineOptions, InferenceError};
use crate::vision::tensor::Tensor;

/// A network of one or several inputs and one output, loaded and ready. It runs one input after the other, on a GPU too: few faces
/// go through it.
#[derive(Debug)]
pub struct Network {
    pool: Pool,
}

impl Network {
    /// Loads a file whose checksum is known to be right: `inputs` without their batch axis in, `numbers` out.
    pub fn load(
        name: &'static str,
        (library, file): (&Path, &Path),
        (inputs, numbers): (Vec<[i64; 3]>, usize),
        options: &EngineOptions,
    ) -> Result<Self, EngineError> {
        let wanted = Wanted::Numbers { inputs, numbers };
        let load = |_| Model::load(library, file, (options.intra_threads, options.provider), &wanted);
        let models = (0..options.sessions).map(load).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { pool: Pool::new(name, models) })
    }

    /// Runs it on one set of inputs of batch size 1.
    pub(super) async fn run(&self, inputs: &[Tensor]) -> Result<Vec<f32>, InferenceError> {
        Ok(self.pool.run_all(inputs).await?.swap_remove(0).data)
    }
}
