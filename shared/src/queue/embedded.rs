//! The queue inside one process: a bounded line a lane and pipeline.
//!
//! Nothing of it outlives the process, nor needs to: at start every queued job counts as not dispatched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::{Delivery, JobQueue, Message, QueueError};
use crate::ids::EpochId;
use crate::job::Lane;

/// See the module.
#[derive(Debug)]
pub struct EmbeddedQueue {
    interactive: Arc<Line>,
    bulk: Arc<Line>,
    capacity: usize,
    epoch: Mutex<Option<EpochId>>,
}

/// A lane's messages.
#[derive(Debug, Default)]
struct Line {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By pipeline and whether they need its models, in the order in which they came.
    waiting: BTreeMap<(String, bool), BTreeMap<u64, Message>>,
    /// The number of the next message that comes.
    next: u64,
    /// The pipelines whose messages are given out; those that need no models are in any case.
    bound: BTreeSet<String>,
    closed: bool,
}

impl EmbeddedQueue {
    /// An empty queue that holds up to `capacity` messages a lane and pipeline.
    pub fn new(capacity: usize) -> Self {
        Self { interactive: Arc::default(), bulk: Arc::default(), capacity, epoch: Mutex::default() }
    }

    fn line(&self, lane: Lane) -> &Arc<Line> {
        match lane {
            Lane::Interactive => &self.interactive,
            Lane::Bulk => &self.bulk,
        }
    }
}

impl State {
    fn put(&mut self, number: u64, message: Message) {
        self.waiting.entry(line_of(&message)).or_default().insert(number, message);
    }

    /// The oldest message of those that may be given out, with its number.
    fn take(&mut self) -> Option<(u64, Message)> {
        let is_open = |(pipeline, needs_models): &(String, bool)| !needs_models || self.bound.contains(pipeline);
        let bound = self.waiting.iter_mut().filter(|(line, _)| is_open(line));
        let oldest = bound.map(|(_, messages)| messages).min_by_key(|messages| messages.keys().next().copied());
        let taken = oldest.and_then(BTreeMap::pop_first);
        self.waiting.retain(|_, messages| !messages.is_empty());
        taken
    }
}

/// Which messages it waits behind.
fn line_of(message: &Message) -> (String, bool) {
    (message.pipeline.clone(), message.needs_models)
}

impl Line {
    /// Runs `change` on the state. A panic elsewhere cannot leave it half changed, so poison is ignored.
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl JobQueue for EmbeddedQueue {
    async fn publish(&self, message: Message) -> Result<(), QueueError> {
        let line = self.line(message.lane);
        let lane = message.lane;
        line.with(|state| {
            if state.closed {
                return Err(QueueError::Closed);
            }
            if state.waiting.get(&line_of(&message)).is_some_and(|waiting| waiting.len() >= self.capacity) {
                return Err(QueueError::Full(lane));
            }
            let number = state.next;
            state.next += 1;
            state.put(number, message);
            Ok(())
        })?;
        line.changed.notify_one();
        Ok(())
    }

    async fn bind(&self, pipelines: &[String]) -> Result<(), QueueError> {
        for line in [&self.interactive, &self.bulk] {
            line.with(|state| state.bound = pipelines.iter().cloned().collect());
            line.changed.notify_one();
        }
        Ok(())
    }

    async fn receive(&self, lane: Lane, timeout: Duration) -> Result<Option<Box<dyn Delivery>>, QueueError> {
        let line = self.line(lane);
        let next = async {
            loop {
                let changed = line.changed.notified();
                let taken = line.with(|state| match state.take() {
                    Some(taken) => Ok(Some(taken)),
                    None if state.closed => Err(QueueError::Closed),
                    None => Ok(None),
                })?;
                if let Some(taken) = taken {
                    return Ok(taken);
                }
                changed.await;
            }
        };
        match tokio::time::timeout(timeout, next).await {
            Err(_) => Ok(None),
            Ok(Err(error)) => Err(error),
            Ok(Ok((number, message))) => {
                // One notification may stand for several messages.
                line.changed.notify_one();
                Ok(Some(Box::new(EmbeddedDelivery { number, message: Some(message), line: Arc::clone(line) })))
            }
        }
    }

    async fn receive_dead(&self, timeout: Duration) -> Result<Option<Box<dyn Delivery>>, QueueError> {
        // Within one process nothing is given up.
        tokio::time::sleep(timeout).await;
        Ok(None)
    }

    async fn begin_epoch(&self, epoch: EpochId) -> Result<(), QueueError> {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner) = Some(epoch);
        Ok(())
    }

    async fn remembers(&self, epoch: EpochId) -> Result<bool, QueueError> {
        Ok(*self.epoch.lock().unwrap_or_else(PoisonError::into_inner) == Some(epoch))
    }

    async fn check(&self) -> Result<(), QueueError> {
        if self.bulk.with(|state| state.closed) { Err(QueueError::Closed) } else { Ok(()) }
    }

    async fn close(&self) {
        for line in [&self.interactive, &self.bulk] {
            line.with(|state| state.closed = true);
            line.changed.notify_waiters();
            line.changed.notify_one();
        }
    }
}

struct EmbeddedDelivery {
    number: u64,
    /// Taken by `ack`; what is left at drop goes back.
    message: Option<Message>,
    line: Arc<Line>,
}

#[async_trait]
impl Delivery for EmbeddedDelivery {
    fn message(&self) -> &Message {
        self.message.as_ref().expect("a delivery keeps its message until it is acknowledged; this is a bug")
    }

    async fn ack(mut self: Box<Self>) -> Result<(), QueueError> {
        self.message = None;
        Ok(())
    }
}

impl Drop for EmbeddedDelivery {
    fn drop(&mut self) {
        if let Some(message) = self.message.take() {
            self.line.with(|state| state.put(self.number, message));
            self.line.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::JobId;
    use crate::queue::contract;

    #[tokio::test]
    async fn keeps_the_contract() {
        contract::run(|| async { Arc::new(EmbeddedQueue::new(contract::CAPACITY)) as Arc<dyn JobQueue> }).await;
    }

    #[tokio::test]
    async fn gives_what_needs_no_models_whatever_it_is_bound_to() {
        let queue = EmbeddedQueue::new(1);
        let sent = |needs_models| Message {
            lane: Lane::Bulk,
            pipeline: "tiny".to_owned(),
            needs_models,
            jobs: vec![JobId::new()],
            alone: 0,
            traceparent: None,
        };
        let [waits, goes] = [true, false].map(sent);
        for message in [&waits, &goes] {
            queue.publish(message.clone()).await.unwrap();
        }
        let receive = async || {
            let delivery = queue.receive(Lane::Bulk, Duration::from_millis(50)).await.unwrap()?;
            let message = delivery.message().clone();
            delivery.ack().await.unwrap();
            Some(message)
        };
        assert_eq!(receive().await, Some(goes), "it is not behind the other one");
        assert_eq!(receive().await, None);
        queue.bind(&["tiny".to_owned()]).await.unwrap();
        assert_eq!(receive().await, Some(waits));
    }
}
