//! Sessions that run on the thread that asks: on a CPU, a step of an analysis is best done by the core that did the one
//! before it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use shared::telemetry::metrics;
use tokio::sync::Semaphore;

use super::InferenceError;
use super::session::Model;
use crate::vision::tensor::Tensor;

/// The sessions of one model.
#[derive(Debug)]
pub(super) struct Pool {
    name: &'static str,
    idle: Mutex<Vec<Model>>,
    room: Semaphore,
}

impl Pool {
    pub(super) fn new(name: &'static str, models: Vec<Model>) -> Self {
        let room = Semaphore::new(models.len());
        Self { name, idle: Mutex::new(models), room }
    }

    /// Runs the model on one input of batch size 1, where as many run as there are sessions after one of them.
    pub(super) async fn run(&self, input: &Tensor) -> Result<Vec<Tensor>, InferenceError> {
        self.run_all(std::slice::from_ref(input)).await
    }

    /// The same of a model that has several inputs.
    pub(super) async fn run_all(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferenceError> {
        let _room = self.room.acquire().await.map_err(|_| InferenceError::Stopped)?;
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // There is one for each place in the room. The one that ran last is the warmest.
        let Some(mut model) = idle().pop() else { return Err(InferenceError::Stopped) };
        metrics::batch_run(self.name, 1, 1);
        let answer = catch_unwind(AssertUnwindSafe(|| model.run_all(inputs)));
        idle().push(model);
        answer.map_err(|_| InferenceError::Panicked)?.map_err(|error| InferenceError::Run(Arc::new(error)))
    }
}
