//! The processor's cores: as many threads, on which pictures are analysed. Interactive jobs go first, bulk ones in every
//! eighth turn at least.
//!
//! An analysis stays on its thread from step to step. Between two of them it gives way to whom it has to, so an interactive
//! job waits for the end of one step at most, however many pictures of a batch are under way.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::thread::{self, JoinHandle};

use async_task::Runnable;
use futures_util::FutureExt;
use shared::job::Lane;
use tracing::Instrument as _;

/// Of so many steps in a row while both lanes wait, the last is bulk's.
const BULK_TURN: u32 = 8;

/// The cores of a process; cheap to clone. The last clone's end ends the threads.
#[derive(Clone, Debug)]
pub struct Cores(Arc<Threads>);

/// Why work on a core has no result.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum BrokenOff {
    /// It panicked.
    #[error("a step of the analysis panicked")]
    Panicked,
    /// The threads were ended before.
    #[error("the process stops")]
    Stopped,
}

#[derive(Debug)]
struct Threads {
    line: Arc<Line>,
    running: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Line {
    state: Mutex<State>,
    changed: Condvar,
}

/// Who waits for a core.
#[derive(Debug, Default)]
struct State {
    interactive: VecDeque<Runnable>,
    bulk: VecDeque<Runnable>,
    /// Interactive steps since the last bulk one.
    turns: u32,
    is_closed: bool,
}

impl Cores {
    /// So many cores, at least one.
    ///
    /// # Panics
    /// The system gives no thread.
    pub fn new(count: usize) -> Self {
        let line = Arc::new(Line::default());
        let start = |n: usize| {
            let line = Arc::clone(&line);
            let thread = thread::Builder::new().name(format!("core-{n}"));
            thread.spawn(move || line.work()).expect("start a thread for each core")
        };
        let running = (0..count.max(1)).map(start).collect();
        Self(Arc::new(Threads { line, running }))
    }

    /// Runs `work` on one of the cores. Who no longer waits for it ends it after the step it is in.
    pub async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, BrokenOff> {
        self.spawn(lane, work, false).await
    }

    /// Runs a part of work that is under way, before what has not begun.
    pub async fn run_part<T: Send + 'static>(
        &self,
        lane: Lane,
        part: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, BrokenOff> {
        self.spawn(lane, part, true).await
    }

    async fn spawn<T: Send + 'static>(
        &self,
        lane: Lane,
        work: impl Future<Output = T> + Send + 'static,
        is_begun: bool,
    ) -> Result<T, BrokenOff> {
        let (line, is_begun) = (Arc::clone(&self.0.line), AtomicBool::new(is_begun));
        let schedule = move |runnable| line.push(lane, runnable, is_begun.swap(true, Ordering::Relaxed));
        let (runnable, task) = async_task::spawn(AssertUnwindSafe(work).catch_unwind().in_current_span(), schedule);
        runnable.schedule();
        match task.fallible().await {
            Some(Ok(result)) => Ok(result),
            Some(Err(_)) => Err(BrokenOff::Panicked),
            None => Err(BrokenOff::Stopped),
        }
    }

    /// Between two steps of work on a core: lets those run whose turn it is.
    pub async fn give_way(&self, lane: Lane) {
        let mut is_to_stay = !self.0.line.is_turn_of_others(lane);
        poll_fn(|cx| {
            if std::mem::replace(&mut is_to_stay, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is begun goes on before others begin.
    fn push(&self, lane: Lane, runnable: Runnable, is_begun: bool) {
        let mut state = self.lock();
        if state.is_closed {
            // Dropping it may end the last clone of these cores.
            drop(state);
            return drop(runnable);
        }
        let waiting = state.waiting(lane);
        if is_begun {
            waiting.push_front(runnable);
        } else {
            waiting.push_back(runnable);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Counts a step of that lane, and tells whether the other lane has the next turn.
    fn is_turn_of_others(&self, lane: Lane) -> bool {
        let mut state = self.lock();
        match lane {
            Lane::Bulk => !state.interactive.is_empty(),
            Lane::Interactive => {
                state.turns = state.turns.saturating_add(1);
                state.is_bulk_turn() && !state.bulk.is_empty()
            }
        }
    }

    /// A core's thread.
    fn work(&self) {
        while let Some(runnable) = self.next() {
            // A panic of the work itself is caught before and told to who waits for it.
            let _ = catch_unwind(AssertUnwindSafe(|| runnable.run()));
        }
    }

    /// Waits for the next step; `None` at the end.
    fn next(&self) -> Option<Runnable> {
        let mut state = self.lock();
        loop {
            if state.is_closed {
                return None;
            }
            if let Some(runnable) = state.next() {
                return Some(runnable);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    fn waiting(&mut self, lane: Lane) -> &mut VecDeque<Runnable> {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Bulk => &mut self.bulk,
        }
    }

    fn is_bulk_turn(&self) -> bool {
        self.turns + 1 >= BULK_TURN
    }

    fn next(&mut self) -> Option<Runnable> {
        if (self.interactive.is_empty() || self.is_bulk_turn())
            && let Some(waiting) = self.bulk.pop_front()
        {
            self.turns = 0;
            return Some(waiting);
        }
        self.interactive.pop_front()
    }
}

impl Drop for Threads {
    /// Ends the threads after the steps they are in; what waits ends with [`BrokenOff::Stopped`].
    fn drop(&mut self) {
        let left = {
            let mut state = self.line.lock();
            state.is_closed = true;
            (std::mem::take(&mut state.interactive), std::mem::take(&mut state.bulk))
        };
        drop(left);
        self.line.changed.notify_all();
        for thread in self.running.drain(..) {
            // Work that held the last clone ends them from one of their own.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::join_all;
    use tokio::sync::oneshot;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Keeps a core busy until the sender is used or dropped.
    async fn held(cores: &Cores) -> (oneshot::Sender<()>, tokio::task::JoinHandle<Result<(), BrokenOff>>) {
        let (release, released) = oneshot::channel::<()>();
        let (began, begun) = oneshot::channel::<()>();
        let cores = cores.clone();
        let task = tokio::spawn(async move {
            let hold = async move {
                let _ = began.send(());
                let _ = released.blocking_recv();
            };
            cores.run(Lane::Bulk, hold).await
        });
        begun.await.unwrap();
        (release, task)
    }

    async fn until_waiting(cores: &Cores, count: usize) {
        let count_of = |state: &State| state.interactive.len() + state.bulk.len();
        while count_of(&cores.0.line.lock()) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn interactive_goes_first_and_bulk_is_not_starved() {
        let cores = Cores::new(1);
        let (release, holding) = held(&cores).await;
        let order = Arc::new(Mutex::new(String::new()));
        let steps = |lane, name: char, steps: usize| {
            let (cores, order) = (cores.clone(), Arc::clone(&order));
            async move {
                let inner = cores.clone();
                let work = async move {
                    for _ in 0..steps {
                        order.lock().unwrap().push(name);
                        inner.give_way(lane).await;
                    }
                };
                cores.run(lane, work).await.unwrap();
            }
        };
        // One bulk analysis of four steps that is begun first, another behind it, and interactive ones of two steps.
        let bulk = ['b', 'c'].map(|name| tokio::spawn(steps(Lane::Bulk, name, 4)));
        until_waiting(&cores, 2).await;
        let interactive: Vec<_> = (0..8).map(|_| tokio::spawn(steps(Lane::Interactive, 'i', 2))).collect();
        until_waiting(&cores, 10).await;
        drop(release);
        tokio::time::timeout(LIMIT, join_all(bulk.into_iter().chain(interactive))).await.unwrap();
        holding.await.unwrap().unwrap();
        assert_eq!(*order.lock().unwrap(), "iiiiiiibiiiiiiibiibbcccc");
    }

    #[tokio::test]
    async fn who_gave_up_waiting_costs_no_step() {
        let cores = Cores::new(1);
        let (release, holding) = held(&cores).await;
        let ran = Arc::new(AtomicBool::new(false));
        let work = {
            let ran = Arc::clone(&ran);
            async move { ran.store(true, Ordering::Relaxed) }
        };
        let gone = tokio::time::timeout(Duration::from_millis(5), cores.run(Lane::Interactive, work)).await;
        assert!(gone.is_err());
        drop(release);
        holding.await.unwrap().unwrap();
        let next = tokio::time::timeout(LIMIT, cores.run(Lane::Bulk, async { 7 })).await.unwrap();
        assert_eq!(next.unwrap(), 7);
        assert!(!ran.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn a_panic_is_told_and_the_core_goes_on() {
        let cores = Cores::new(1);
        let broken = cores.run(Lane::Bulk, async { panic!("as a test") }).await;
        assert!(matches!(broken, Err::<(), _>(BrokenOff::Panicked)));
        assert_eq!(cores.run(Lane::Bulk, async { 7 }).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn the_last_clone_may_end_on_a_thread_of_its_own() {
        let cores = Cores::new(2);
        let line = Arc::downgrade(&cores.0.line);
        let (release, released) = oneshot::channel::<()>();
        let (began, begun) = oneshot::channel::<()>();
        let own = cores.clone();
        let work = async move {
            let _own = own;
            let _ = began.send(());
            let _ = released.blocking_recv();
        };
        let task = tokio::spawn(async move { cores.run(Lane::Bulk, work).await });
        begun.await.unwrap();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        drop(release);
        let ended = async {
            while line.strong_count() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LIMIT, ended).await.unwrap();
    }
}
