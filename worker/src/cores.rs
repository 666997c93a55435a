//! Who may use a processor core: interactive jobs first, bulk ones in every eighth turn at least.
//!
//! Every step of an analysis that keeps a core busy waits here for one. So no more steps run than there are cores, and an
//! interactive job waits for the end of one step at most, however many pictures of a batch are under way.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shared::job::Lane;
use tokio::sync::oneshot;

/// Of so many cores given away in a row while both lanes wait, the last goes to bulk.
const BULK_TURN: u32 = 8;

/// The cores of a process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Cores(Arc<Mutex<State>>);

/// A core, until it is dropped.
#[derive(Debug)]
pub struct Core(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    interactive: VecDeque<oneshot::Sender<Core>>,
    bulk: VecDeque<oneshot::Sender<Core>>,
    /// Interactive turns since the last bulk one.
    turns: u32,
}

impl Cores {
    /// So many cores, at least one.
    pub fn new(count: usize) -> Self {
        let (interactive, bulk) = (VecDeque::new(), VecDeque::new());
        Self(Arc::new(Mutex::new(State { free: count.max(1), interactive, bulk, turns: 0 })))
    }

    /// Waits for a core.
    pub async fn enter(&self, lane: Lane) -> Core {
        loop {
            let waiting = {
                let mut state = lock(&self.0);
                if state.free > 0 {
                    state.free -= 1;
                    return Core(Arc::clone(&self.0));
                }
                let (sender, receiver) = oneshot::channel();
                state.line(lane).push_back(sender);
                receiver
            };
            if let Ok(core) = waiting.await {
                return core;
            }
        }
    }
}

impl State {
    fn line(&mut self, lane: Lane) -> &mut VecDeque<oneshot::Sender<Core>> {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Bulk => &mut self.bulk,
        }
    }

    /// Who gets the next core, of those that still wait for one.
    fn next(&mut self) -> Option<oneshot::Sender<Core>> {
        let gone = |waiting: &VecDeque<oneshot::Sender<Core>>| waiting.front().is_some_and(oneshot::Sender::is_closed);
        for line in [&mut self.interactive, &mut self.bulk] {
            while gone(line) {
                line.pop_front();
            }
        }
        let is_bulk_turn = self.interactive.is_empty() || self.turns + 1 >= BULK_TURN;
        if is_bulk_turn && let Some(waiting) = self.bulk.pop_front() {
            self.turns = 0;
            return Some(waiting);
        }
        let waiting = self.interactive.pop_front()?;
        self.turns += 1;
        Some(waiting)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let next = {
            let mut state = lock(&self.0);
            let next = state.next();
            if next.is_none() {
                state.free += 1;
            }
            next
        };
        if let Some(waiting) = next {
            // Who no longer waits gives the core back, which passes it on.
            let _ = waiting.send(Self(Arc::clone(&self.0)));
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn interactive_goes_first_and_bulk_is_not_starved() {
        let cores = Cores::new(1);
        let mut held = Some(cores.enter(Lane::Bulk).await);
        let mut bulk: VecDeque<_> = (0..3).map(|_| Box::pin(cores.enter(Lane::Bulk))).collect();
        let mut interactive: VecDeque<_> = (0..20).map(|_| Box::pin(cores.enter(Lane::Interactive))).collect();
        for waiting in bulk.iter_mut().chain(&mut interactive) {
            assert!(waiting.now_or_never().is_none(), "the one core is taken");
        }
        let mut order = String::new();
        while !(bulk.is_empty() && interactive.is_empty()) {
            drop(held.take());
            if let Some(core) = interactive.front_mut().and_then(FutureExt::now_or_never) {
                interactive.pop_front();
                order.push('i');
                held = Some(core);
            } else {
                let core = bulk.front_mut().and_then(FutureExt::now_or_never);
                held = Some(core.expect("somebody has the core"));
                bulk.pop_front();
                order.push('b');
            }
        }
        assert_eq!(order, "iiiiiiibiiiiiiibiiiiiib");
    }

    #[tokio::test]
    async fn who_gave_up_waiting_passes_its_core_on() {
        let cores = Cores::new(2);
        let (a, b) = (cores.enter(Lane::Bulk).await, cores.enter(Lane::Bulk).await);
        let mut gone = Box::pin(cores.enter(Lane::Interactive));
        let mut waiting = Box::pin(cores.enter(Lane::Bulk));
        assert!(gone.as_mut().now_or_never().is_none() && waiting.as_mut().now_or_never().is_none());
        drop(gone);
        drop(a);
        assert!(waiting.as_mut().now_or_never().is_some());
        drop(b);
        let two = (cores.enter(Lane::Bulk).now_or_never(), cores.enter(Lane::Bulk).now_or_never());
        assert!(two.0.is_some() && two.1.is_some());
    }
}
