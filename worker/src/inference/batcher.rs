//! Owner threads: each owns one loaded model and runs what waits for it.
//!
//! While a model is busy, further inputs wait; those of one shape then go through it together, up to `max_batch`. There
//! is no timer: an idle model starts at once with what is there.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use shared::telemetry::metrics;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::InferenceError;
use super::session::Model;
use crate::vision::tensor::Tensor;

/// Inputs that may wait for each thread.
const WAITING_PER_THREAD: usize = 8;
/// No run of a model on one picture takes nearly as long; beyond it something hangs.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The threads of one model.
#[derive(Debug)]
pub(super) struct Batcher {
    line: Arc<Line>,
    room: Arc<Semaphore>,
    threads: Vec<JoinHandle<()>>,
    /// Has the clock for those that ask from a thread of their own.
    runtime: Handle,
}

#[derive(Debug)]
struct Line {
    state: Mutex<State>,
    changed: Condvar,
    max_batch: usize,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Request>,
    closed: bool,
}

#[derive(Debug)]
struct Request {
    input: Tensor,
    reply: oneshot::Sender<Result<Vec<Tensor>, InferenceError>>,
    room: OwnedSemaphorePermit,
}

impl Batcher {
    /// Starts a thread for each model.
    pub(super) fn start(name: &'static str, models: Vec<Model>, max_batch: usize) -> std::io::Result<Self> {
        let free_batch = models.iter().all(Model::has_free_batch);
        let line = Arc::new(Line {
            state: Mutex::default(),
            changed: Condvar::new(),
            max_batch: if free_batch { max_batch.max(1) } else { 1 },
        });
        let room = Arc::new(Semaphore::new(models.len() * WAITING_PER_THREAD * line.max_batch));
        let mut batcher = Self { line: Arc::clone(&line), room, threads: Vec::new(), runtime: Handle::current() };
        for (n, mut model) in models.into_iter().enumerate() {
            let line = Arc::clone(&line);
            let thread = std::thread::Builder::new().name(format!("{name}-{n}")).spawn(move || {
                while let Some(batch) = line.next_batch() {
                    metrics::batch_run(name, batch.len(), line.max_batch);
                    run_batch(&mut model, batch);
                }
            })?;
            batcher.threads.push(thread);
        }
        Ok(batcher)
    }

    /// Runs the model on one input of batch size 1, beside others where that is possible.
    pub(super) async fn run(&self, input: Tensor) -> Result<Vec<Tensor>, InferenceError> {
        let answer = async {
            let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_| InferenceError::Stopped)?;
            let (reply, answer) = oneshot::channel();
            {
                let mut state = self.line.lock();
                if state.closed {
                    return Err(InferenceError::Stopped);
                }
                state.waiting.push_back(Request { input, reply, room });
            }
            self.line.changed.notify_one();
            answer.await.map_err(|_| InferenceError::Stopped)?
        };
        let answer = {
            let _clock = self.runtime.enter();
            tokio::time::timeout(TIMEOUT, answer)
        };
        answer.await.map_err(|_| InferenceError::Timeout(TIMEOUT))?
    }
}

impl Drop for Batcher {
    /// Ends the threads after the runs they are in; what waits is answered with [`InferenceError::Stopped`].
    fn drop(&mut self) {
        {
            let mut state = self.line.lock();
            state.closed = true;
            state.waiting.clear();
        }
        self.room.close();
        self.line.changed.notify_all();
        for thread in self.threads.drain(..) {
            // Panics of a run are caught and answered inside the thread.
            let _ = thread.join();
        }
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the oldest request and takes those of its shape along; `None` at the end.
    fn next_batch(&self) -> Option<Vec<Request>> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            // Who gave up waiting needs no answer.
            state.waiting.retain(|r| !r.reply.is_closed());
            if let Some(first) = state.waiting.pop_front() {
                let mut batch = vec![first];
                let mut at = 0;
                while batch.len() < self.max_batch && at < state.waiting.len() {
                    if state.waiting[at].input.shape == batch[0].input.shape {
                        batch.extend(state.waiting.remove(at));
                    } else {
                        at += 1;
                    }
                }
                return Some(batch);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn run_batch(model: &mut Model, batch: Vec<Request>) {
    let (inputs, replies): (Vec<_>, Vec<_>) = batch.into_iter().map(|r| (r.input, (r.reply, r.room))).unzip();
    let joined = join(inputs);
    let answers = match catch_unwind(AssertUnwindSafe(|| model.run(&joined))) {
        Ok(Ok(outputs)) => split(outputs, replies.len()),
        Ok(Err(error)) => Err(InferenceError::Run(Arc::new(error))),
        Err(_) => Err(InferenceError::Panicked),
    };
    match answers {
        Ok(answers) => {
            for ((reply, _), answer) in replies.into_iter().zip(answers) {
                // The caller may have gone away.
                let _ = reply.send(Ok(answer));
            }
        }
        Err(error) => {
            for (reply, _) in replies {
                let _ = reply.send(Err(error.clone()));
            }
        }
    }
}

/// Inputs of one shape along the batch axis.
fn join(inputs: Vec<Tensor>) -> Tensor {
    let mut inputs = inputs.into_iter();
    let mut joined = inputs.next().expect("a batch has at least one input; this is a bug");
    for input in inputs {
        joined.shape[0] += input.shape[0];
        joined.data.extend(input.data);
    }
    joined
}

/// Outputs with a batch axis of `count`, one set a request.
fn split(outputs: Vec<Tensor>, count: usize) -> Result<Vec<Vec<Tensor>>, InferenceError> {
    if count == 1 {
        return Ok(vec![outputs]);
    }
    let mut answers = vec![Vec::with_capacity(outputs.len()); count];
    for output in outputs {
        if output.shape.first().copied() != i64::try_from(count).ok() || output.data.len() % count != 0 {
            return Err(InferenceError::Batch { count, shape: output.shape });
        }
        let mut shape = output.shape.clone();
        shape[0] = 1;
        for (answer, data) in answers.iter_mut().zip(output.data.chunks_exact(output.data.len() / count)) {
            answer.push(Tensor { shape: shape.clone(), data: data.to_vec() });
        }
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(n: u8) -> Tensor {
        Tensor { shape: vec![1, 2], data: vec![f32::from(n), f32::from(n) + 0.5] }
    }

    #[test]
    fn a_joined_batch_splits_into_its_parts() {
        let inputs: Vec<_> = (0..5).map(tensor).collect();
        let joined = join(inputs.clone());
        assert_eq!(joined.shape, [5, 2]);
        let parts = split(vec![joined], 5).unwrap();
        assert_eq!(parts.into_iter().map(|mut p| p.remove(0)).collect::<Vec<_>>(), inputs);
    }

    #[test]
    fn an_output_without_the_batch_axis_is_refused() {
        let output = Tensor { shape: vec![1, 4], data: vec![0.0; 4] };
        assert!(matches!(split(vec![output], 2), Err(InferenceError::Batch { count: 2, .. })));
    }
}
