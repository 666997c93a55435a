//! Owner threads: each owns one loaded model and runs what waits for it.
//!
//! While a model is busy, further inputs wait; those of one shape then go through it together, in a batch size of the
//! ladder. There is no timer: an idle model starts at once with what is there.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use shared::telemetry::metrics;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::InferenceError;
use super::ladder::{Ladder, Share};
use super::session::{Model, SessionError};
use crate::vision::tensor::Tensor;

/// Of the largest batch that each thread may hold: one in the model, and one that waits.
const BATCHES_PER_THREAD: usize = 2;
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
    ladder: Ladder,
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

/// What goes through a model together.
#[derive(Debug)]
struct Batch {
    /// At least one, all of one shape.
    requests: Vec<Request>,
    /// The batch size, at least as many.
    rows: usize,
}

impl Batcher {
    /// Starts a thread for each model. A model whose batch size is fixed takes its inputs one by one.
    pub(super) fn start(name: &'static str, models: Vec<Model>, ladder: &Ladder) -> std::io::Result<Self> {
        let is_free = models.iter().all(Model::has_free_batch);
        let line = Arc::new(Line::new(if is_free { ladder.clone() } else { Ladder::one_by_one() }));
        let room = Arc::new(Semaphore::new(models.len() * BATCHES_PER_THREAD * line.ladder.largest()));
        let mut batcher = Self { line: Arc::clone(&line), room, threads: Vec::new(), runtime: Handle::current() };
        for (n, mut model) in models.into_iter().enumerate() {
            let line = Arc::clone(&line);
            let thread = std::thread::Builder::new().name(format!("{name}-{n}")).spawn(move || {
                while let Some(batch) = line.next_batch() {
                    metrics::batch_run(name, batch.requests.len(), batch.rows);
                    batch.run(|input| model.run(input));
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
    fn new(ladder: Ladder) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), ladder }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the oldest request and takes those of its shape along, as the ladder says; `None` at the end.
    fn next_batch(&self) -> Option<Batch> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            // Who gave up waiting needs no answer.
            state.waiting.retain(|r| !r.reply.is_closed());
            if let Some(first) = state.waiting.pop_front() {
                let is_alike = |other: &Request| other.input.shape == first.input.shape;
                let alike = 1 + state.waiting.iter().filter(|other| is_alike(other)).count();
                let Share { inputs, rows } = self.ladder.share(alike);
                let mut requests = Vec::with_capacity(inputs);
                let mut others = VecDeque::new();
                for other in state.waiting.drain(..) {
                    if requests.len() + 1 < inputs && is_alike(&other) {
                        requests.push(other);
                    } else {
                        others.push_back(other);
                    }
                }
                state.waiting = others;
                requests.insert(0, first);
                return Some(Batch { requests, rows });
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Batch {
    /// Runs the model and answers each request with its own row.
    fn run(self, model: impl FnOnce(&Tensor) -> Result<Vec<Tensor>, SessionError>) {
        let (inputs, replies): (Vec<_>, Vec<_>) =
            self.requests.into_iter().map(|request| (request.input, (request.reply, request.room))).unzip();
        let joined = join(inputs, self.rows);
        let answers = match catch_unwind(AssertUnwindSafe(|| model(&joined))) {
            Ok(Ok(outputs)) => split(outputs, replies.len(), self.rows),
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
}

/// Inputs of one shape along the batch axis, and rows of zeros behind them.
fn join(inputs: Vec<Tensor>, rows: usize) -> Tensor {
    let mut inputs = inputs.into_iter();
    let mut joined = inputs.next().expect("a batch has at least one input; this is a bug");
    let length = joined.data.len() * rows;
    joined.data.reserve_exact(length - joined.data.len());
    for input in inputs {
        joined.data.extend(input.data);
    }
    joined.data.resize(length, 0.0);
    joined.shape[0] *= rows as i64;
    joined
}

/// Outputs with a batch axis of `rows`, one set for each of the first `count`; what the padding gave is dropped.
fn split(outputs: Vec<Tensor>, count: usize, rows: usize) -> Result<Vec<Vec<Tensor>>, InferenceError> {
    if rows == 1 {
        return Ok(vec![outputs]);
    }
    let mut answers = vec![Vec::with_capacity(outputs.len()); count];
    for output in outputs {
        if output.shape.first().copied() != i64::try_from(rows).ok() || output.data.len() % rows != 0 {
            return Err(InferenceError::Batch { rows, shape: output.shape });
        }
        let mut shape = output.shape.clone();
        shape[0] = 1;
        let length = output.data.len() / rows;
        for (n, answer) in answers.iter_mut().enumerate() {
            let data = output.data[n * length..(n + 1) * length].to_vec();
            answer.push(Tensor { shape: shape.clone(), data });
        }
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Answer = oneshot::Receiver<Result<Vec<Tensor>, InferenceError>>;

    /// One of three shapes, which holds `n` everywhere.
    fn tensor(kind: usize, n: usize) -> Tensor {
        let shape = [&[1, 2][..], &[1, 3], &[1, 3, 2]][kind].to_vec();
        let length = shape.iter().product::<i64>();
        Tensor { data: vec![n as f32; usize::try_from(length).unwrap()], shape }
    }

    fn push(line: &Line, room: &Arc<Semaphore>, input: Tensor) -> Answer {
        let (reply, answer) = oneshot::channel();
        let room = Arc::clone(room).try_acquire_owned().unwrap();
        line.lock().waiting.push_back(Request { input, reply, room });
        answer
    }

    /// A model of two outputs: each row's input, and the row's shape with its mean behind it.
    fn echo(input: &Tensor) -> Vec<Tensor> {
        let rows = usize::try_from(input.shape[0]).unwrap();
        let length = input.data.len() / rows;
        let second = input.data.chunks_exact(length).flat_map(|row| [length as f32, row[0] + row[length - 1]]);
        vec![input.clone(), Tensor { shape: vec![rows as i64, 2], data: second.collect() }]
    }

    proptest! {
        /// Between two runs any number of inputs of any shapes comes, and some of those that wait give up.
        #[test]
        fn every_answer_belongs_to_its_input(
            sizes in prop::collection::vec(2usize..20, 0..4),
            arrivals in prop::collection::vec(prop::collection::vec((0usize..3, prop::bool::weighted(0.1)), 0..40), 1..8),
        ) {
            let line = Line::new(Ladder::of(&sizes));
            let room = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
            let (mut count, mut waiting, mut answered) = (0, Vec::new(), 0);
            let run = || {
                let batch = line.next_batch().unwrap();
                let (inputs, rows) = (batch.requests.len(), batch.rows);
                batch.run(|input| {
                    assert_eq!(input.shape[0], rows as i64);
                    assert!(rows == 1 || sizes.contains(&rows), "{rows} is no rung of {sizes:?}");
                    Ok(echo(input))
                });
                inputs
            };
            for arrival in arrivals {
                for (kind, gives_up) in arrival {
                    count += 1;
                    let answer = push(&line, &room, tensor(kind, count));
                    if !gives_up {
                        waiting.push((tensor(kind, count), answer));
                    }
                }
                if line.lock().waiting.iter().any(|request| !request.reply.is_closed()) {
                    answered += run();
                }
            }
            while line.lock().waiting.iter().any(|request| !request.reply.is_closed()) {
                answered += run();
            }
            prop_assert_eq!(answered, waiting.len());
            for (input, mut answer) in waiting {
                prop_assert_eq!(answer.try_recv().unwrap().unwrap(), echo(&input));
            }
            line.lock().waiting.clear();
            prop_assert_eq!(room.available_permits(), Semaphore::MAX_PERMITS);
        }
    }

    #[test]
    fn what_is_above_a_batch_goes_next_and_the_oldest_first() {
        let line = Line::new(Ladder::of(&[1, 4]));
        let room = Arc::new(Semaphore::new(8));
        let kinds = [1, 0, 0, 0, 0, 0, 1];
        let answers: Vec<Answer> =
            kinds.iter().enumerate().map(|(n, kind)| push(&line, &room, tensor(*kind, n))).collect();
        let mut taken = Vec::new();
        for _ in 0..3 {
            let batch = line.next_batch().unwrap();
            taken.push((batch.requests.iter().map(|r| r.input.data[0]).collect::<Vec<_>>(), batch.rows));
        }
        assert_eq!(taken, [(vec![0.0, 6.0], 4), (vec![1.0, 2.0, 3.0, 4.0], 4), (vec![5.0], 1)]);
        drop(answers);
    }

    #[test]
    fn padding_is_zeros_and_nobody_sees_its_answer() {
        let joined = join(vec![tensor(0, 1), tensor(0, 2)], 4);
        assert_eq!(joined, Tensor { shape: vec![4, 2], data: vec![1.0, 1.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0] });
        let parts = split(vec![joined], 2, 4).unwrap();
        assert_eq!(parts, [vec![tensor(0, 1)], vec![tensor(0, 2)]]);
    }

    #[test]
    fn an_output_without_the_batch_axis_is_refused() {
        let output = Tensor { shape: vec![1, 4], data: vec![0.0; 4] };
        assert!(matches!(split(vec![output], 2, 2), Err(InferenceError::Batch { rows: 2, .. })));
        // One that has as many rows as there are inputs, but not padding.
        let output = Tensor { shape: vec![3, 4], data: vec![0.0; 12] };
        assert!(matches!(split(vec![output], 3, 4), Err(InferenceError::Batch { rows: 4, .. })));
    }
}
