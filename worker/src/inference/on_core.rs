//! What an analysis has while it is on a core: steps, and the models.

use futures_util::future::try_join_all;
use shared::catalogue::Pipeline;
use shared::job::Lane;

use super::{Engine, InferenceError, Network, Runner};
use crate::vision::tensor::Tensor;

/// A core under work of [`Engine::on_core`]. Each step and each run of a model gives way to others afterwards.
#[derive(Clone, Debug)]
pub struct OnCore {
    pub(super) engine: Engine,
}

impl OnCore {
    pub(super) fn of(engine: Engine) -> Self {
        Self { engine }
    }

    /// The pipeline whose models these are.
    pub fn pipeline(&self) -> &Pipeline {
        self.engine.pipeline()
    }

    /// Does what keeps the core busy.
    pub async fn step<T>(&self, step: impl FnOnce() -> T) -> T {
        let done = step();
        self.give_way().await;
        done
    }

    /// As [`Engine::detect`].
    pub async fn detect(&self, input: Tensor) -> Result<Vec<Tensor>, InferenceError> {
        self.stage(0, input).await
    }

    /// Runs one stage of a cascade, counted from 0, on one input.
    pub async fn stage(&self, stage: usize, input: Tensor) -> Result<Vec<Tensor>, InferenceError> {
        let Some(runner) = self.engine.loaded.detector.get(stage) else { return Err(InferenceError::NoModel) };
        let outputs = runner.run(input).await;
        self.give_way().await;
        outputs
    }

    /// Runs the landmark network on one face, `[1, 3, side, side]`; its answer is x and y of each point.
    pub async fn place(&self, input: Tensor) -> Result<Vec<f32>, InferenceError> {
        let Some(runner) = &self.engine.loaded.landmarks else { return Err(InferenceError::NoModel) };
        let outputs = runner.run(input).await;
        self.give_way().await;
        Ok(outputs?.swap_remove(0).data)
    }

    /// As [`Engine::embed`].
    pub async fn embed(&self, input: Tensor) -> Result<Vec<f32>, InferenceError> {
        let outputs = self.engine.loaded.recognizer.run(input).await;
        self.give_way().await;
        Ok(outputs?.swap_remove(0).data)
    }

    /// Runs a network that is none of the pipeline's own.
    pub async fn ask(&self, network: &Network, inputs: &[Tensor]) -> Result<Vec<f32>, InferenceError> {
        let answer = network.run(inputs).await;
        self.give_way().await;
        answer
    }

    /// Runs one of the models on several inputs: a device takes them together, an interactive job has them done by all cores
    /// that are free, and a bulk one, beside which others wait, does one after the other.
    pub async fn all<T, W>(&self, runs: impl IntoIterator<Item = W>) -> Result<Vec<T>, InferenceError>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, InferenceError>> + Send + 'static,
    {
        match (&self.engine.loaded.recognizer, self.engine.lane) {
            (Runner::Device(_), _) => try_join_all(runs).await,
            (Runner::Core(_), Lane::Interactive) => {
                let spread = |run| async { self.engine.cores.run_part(Lane::Interactive, run).await? };
                try_join_all(runs.into_iter().map(spread)).await
            }
            (Runner::Core(_), Lane::Bulk) => {
                let mut done = Vec::new();
                for run in runs {
                    done.push(run.await?);
                }
                Ok(done)
            }
        }
    }

    async fn give_way(&self) {
        self.engine.cores.give_way(self.engine.lane).await;
    }
}
