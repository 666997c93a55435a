//! How job ids reach a worker. A message carries ids only: what they stand for is read from the jobs table.

#[cfg(any(test, feature = "testing"))]
pub mod contract;
mod embedded;

use std::time::Duration;

use async_trait::async_trait;

use crate::ids::JobId;
use crate::job::Lane;

pub use embedded::EmbeddedQueue;

/// One message: jobs of one lane, pipeline, kind and collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The lane whose workers take it.
    pub lane: Lane,
    /// The pipeline that the jobs are pinned to.
    pub pipeline: String,
    /// The jobs, at least one.
    pub jobs: Vec<JobId>,
    /// 0: may run beside others; 1: in a message of its own; 2: with nothing else in the process.
    pub alone: i32,
}

/// Why a message was not taken.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The lane is full; the jobs stay in the table and are tried again.
    #[error("the queue's {0:?} lane is full")]
    Full(Lane),
    /// The queue was closed: the process stops.
    #[error("the queue is closed")]
    Closed,
}

/// A queue of messages, one first-in-first-out line a lane.
///
/// Every implementation promises, and `contract` checks:
/// - a published message is delivered at least once, to one consumer at a time;
/// - a delivery that is dropped unsettled is delivered again, before newer ones where that is possible;
/// - `publish` takes a message wholly or not at all, and refuses at once when the lane is full.
#[async_trait]
pub trait JobQueue: Send + Sync {
    /// Hands a message over; it is the queue's when this returns.
    async fn publish(&self, message: Message) -> Result<(), QueueError>;

    /// The next message of a lane, or `None` after `timeout` without one.
    async fn receive(&self, lane: Lane, timeout: Duration) -> Result<Option<Box<dyn Delivery>>, QueueError>;

    /// Refuses further work; those who wait in `receive` are told.
    async fn close(&self);
}

/// A message in a worker's hands.
#[async_trait]
pub trait Delivery: Send + Sync {
    /// What was delivered.
    fn message(&self) -> &Message;

    /// Every job of the message is settled: it need not be delivered again.
    async fn ack(self: Box<Self>) -> Result<(), QueueError>;
}
