//! How job ids reach a worker. A message carries ids only: what they stand for is read from the jobs table.

pub mod amqp;
#[cfg(any(test, feature = "testing"))]
pub mod contract;
mod embedded;

use std::time::Duration;

use async_trait::async_trait;

use crate::ids::{EpochId, JobId};
use crate::job::Lane;

pub use embedded::EmbeddedQueue;

/// One message: jobs of one lane, pipeline, kind and collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The lane whose workers take it.
    pub lane: Lane,
    /// The pipeline that the jobs are pinned to.
    pub pipeline: String,
    /// Whether whoever runs them has to have the pipeline's models.
    pub needs_models: bool,
    /// The jobs, at least one.
    pub jobs: Vec<JobId>,
    /// 0: may run beside others; 1: in a message of its own; 2: with nothing else in the process.
    pub alone: i32,
    /// The W3C trace context of the request that made the job, where all jobs have the same.
    pub traceparent: Option<String>,
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
    /// The queue cannot be reached, does not answer in time or did not take the message. It may have taken it
    /// nevertheless: publishing again is safe.
    #[error("the queue is unavailable: {0}")]
    Unavailable(String),
}

/// A queue of messages, one first-in-first-out line a lane and pipeline.
///
/// Every implementation promises, and `contract` checks:
/// - a published message is delivered at least once, to one consumer at a time;
/// - a delivery that is dropped unsettled is delivered again, before newer ones where that is possible;
/// - `publish` takes a message wholly or not at all, and refuses at once when the lane is full of the pipeline's;
/// - `receive` gives messages that need models of those pipelines only that it is bound to;
/// - it remembers an epoch for as long as it remembers the messages published in it.
#[async_trait]
pub trait JobQueue: Send + Sync {
    /// Hands a message over; it is the queue's when this returns.
    async fn publish(&self, message: Message) -> Result<(), QueueError>;

    /// Has `receive` give messages of these pipelines from now on, and of no others; of none before the first call, unless the
    /// queue was made so. What is in a worker's hands stays there; what nobody has begun waits until somebody is bound to it. A
    /// queue within one process, to which nobody else can be bound, gives messages that need no models in any case.
    async fn bind(&self, pipelines: &[String]) -> Result<(), QueueError>;

    /// The next message of a lane, or `None` after `timeout` without one, also while the queue cannot be reached.
    async fn receive(&self, lane: Lane, timeout: Duration) -> Result<Option<Box<dyn Delivery>>, QueueError>;

    /// The next message that the queue gave up delivering, or `None` after `timeout` without one.
    async fn receive_dead(&self, timeout: Duration) -> Result<Option<Box<dyn Delivery>>, QueueError>;

    /// Begins an epoch: from now on, until it loses its messages, the queue remembers `epoch`.
    async fn begin_epoch(&self, epoch: EpochId) -> Result<(), QueueError>;

    /// Whether the queue has kept everything since that epoch began.
    async fn remembers(&self, epoch: EpochId) -> Result<bool, QueueError>;

    /// Whether the queue can be reached and, where this process receives from it, its consumers are alive.
    async fn check(&self) -> Result<(), QueueError>;

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
