//! The queue on `RabbitMQ` 3.10 to 4: one quorum queue a lane and pipeline, and one for the messages it gave up.
//!
//! Two connections, each with a task that keeps it up for as long as the [`AmqpQueue`] exists: one publishes, one
//! consumes. Nothing that happens at the broker ends the process; `check` tells what is wrong.

mod consumer;
mod delivery;
mod epochs;
pub mod finished;
mod intake;
mod link;
mod publisher;
mod sending;
mod session;
#[cfg(test)]
mod tests;
mod topology;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lapin::uri::AMQPUri;
use tokio_util::sync::CancellationToken;

use self::consumer::{Consumer, Plan};
use self::epochs::Epochs;
use self::publisher::Publisher;
use self::topology::Topology;
use super::{Delivery, JobQueue, Message, QueueError};
use crate::ids::EpochId;
use crate::job::Lane;
use crate::telemetry::metrics;

/// How a process uses the broker.
#[derive(Clone)]
pub struct AmqpOptions {
    /// `amqp://user:password@host:5672/%2f`, or `amqps://`; never shown.
    pub url: String,
    /// The pipelines whose queues this process consumes at first; `None` where it only publishes.
    pub consume: Option<Vec<String>>,
    /// Messages that wait in this process for a worker, or are worked on, for each lane and pipeline; at least 1.
    pub prefetch: u16,
    /// Messages that wait at the broker, for each lane and pipeline, before it refuses more. All processes must agree,
    /// and a queue that exists keeps what it was made with.
    pub capacity: u32,
    /// Begins every name at the broker, so that installations can share one; up to 64 bytes.
    pub namespace: String,
    /// The longest wait until the broker has confirmed a message.
    pub publish_timeout: Duration,
}

/// Settings that can never work.
#[derive(Debug, thiserror::Error)]
pub enum AmqpOptionsError {
    /// The URL does not parse. What is wrong is not told, as it could show the password.
    #[error(
        "the message broker's URL does not parse: write amqp://user:password@host:5672/%2f, special characters as %XX"
    )]
    Url,
    /// The namespace cannot begin a name.
    #[error("the message broker's namespace {0:?} must have 1 to 64 bytes")]
    Namespace(String),
    /// A pipeline's name cannot be part of a name.
    #[error("no queue can be named after the pipeline {0:?}: its name must have 1 to 128 bytes")]
    Pipeline(String),
    /// Without a limit the whole queue would come into this process.
    #[error("the number of messages to prefetch must be at least 1")]
    Prefetch,
}

/// See the module. Must be made within a Tokio runtime; dropping it closes its connections at once.
pub struct AmqpQueue {
    publisher: Publisher,
    consumer: Option<Consumer>,
    epochs: Epochs,
    closed: CancellationToken,
}

impl AmqpQueue {
    /// Starts to connect. A broker that is down is no error: it is tried for ever, and `check` says so.
    ///
    /// # Errors
    /// The options can never work.
    pub fn start(options: AmqpOptions) -> Result<Self, AmqpOptionsError> {
        let (uri, topology) = options.parsed()?;
        let closed = CancellationToken::new();
        let consumer = match options.consume {
            None => None,
            Some(_) if options.prefetch == 0 => return Err(AmqpOptionsError::Prefetch),
            Some(pipelines) => {
                can_name_all(&pipelines)?;
                let (uri, topology) = (uri.clone(), Arc::clone(&topology));
                Some(Consumer::start(Plan { uri, topology, prefetch: options.prefetch }, pipelines, closed.clone()))
            }
        };
        let epochs = Epochs::new(Arc::clone(&topology));
        let publisher = Publisher::start(uri, topology, options.publish_timeout, closed.clone());
        Ok(Self { publisher, consumer, epochs, closed })
    }

    async fn nothing(&self, timeout: Duration) -> Result<Option<Box<dyn Delivery>>, QueueError> {
        tokio::select! {
            () = self.closed.cancelled() => Err(QueueError::Closed),
            () = tokio::time::sleep(timeout) => Ok(None),
        }
    }
}

fn can_name_all(pipelines: &[String]) -> Result<(), AmqpOptionsError> {
    match pipelines.iter().find(|pipeline| !Topology::can_name(pipeline)) {
        Some(pipeline) => Err(AmqpOptionsError::Pipeline(pipeline.clone())),
        None => Ok(()),
    }
}

impl AmqpOptions {
    /// Options with the usual numbers, for a process that only publishes.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            consume: None,
            prefetch: 2,
            capacity: 20_000,
            namespace: "face-id".to_owned(),
            publish_timeout: Duration::from_secs(10),
        }
    }

    fn parsed(&self) -> Result<(AMQPUri, Arc<Topology>), AmqpOptionsError> {
        let uri = self.url.parse().map_err(|_: String| AmqpOptionsError::Url)?;
        let topology = Topology::new(&self.namespace, self.capacity)
            .ok_or_else(|| AmqpOptionsError::Namespace(self.namespace.clone()))?;
        Ok((uri, Arc::new(topology)))
    }
}

impl fmt::Debug for AmqpOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpOptions")
            .field("consume", &self.consume)
            .field("prefetch", &self.prefetch)
            .field("capacity", &self.capacity)
            .field("namespace", &self.namespace)
            .field("publish_timeout", &self.publish_timeout)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl JobQueue for AmqpQueue {
    async fn publish(&self, message: Message) -> Result<(), QueueError> {
        let published = self.publisher.publish(&message).await;
        metrics::published(match &published {
            Ok(()) => "ack",
            Err(QueueError::Full(_)) => "full",
            Err(QueueError::Unavailable(_) | QueueError::Closed) => "unavailable",
        });
        published
    }

    async fn bind(&self, pipelines: &[String]) -> Result<(), QueueError> {
        can_name_all(pipelines).map_err(|error| QueueError::Unavailable(error.to_string()))?;
        if let Some(consumer) = &self.consumer {
            consumer.bind(pipelines);
        }
        Ok(())
    }

    async fn receive(&self, lane: Lane, timeout: Duration) -> Result<Option<Box<dyn Delivery>>, QueueError> {
        match &self.consumer {
            Some(consumer) => consumer.receive(lane, timeout).await,
            None => self.nothing(timeout).await,
        }
    }

    async fn receive_dead(&self, timeout: Duration) -> Result<Option<Box<dyn Delivery>>, QueueError> {
        match &self.consumer {
            Some(consumer) => consumer.receive_dead(timeout).await,
            None => self.nothing(timeout).await,
        }
    }

    async fn begin_epoch(&self, epoch: EpochId) -> Result<(), QueueError> {
        self.epochs.begin(&self.publisher, epoch).await
    }

    async fn remembers(&self, epoch: EpochId) -> Result<bool, QueueError> {
        self.epochs.has(&self.publisher, epoch).await
    }

    async fn check(&self) -> Result<(), QueueError> {
        if self.closed.is_cancelled() {
            return Err(QueueError::Closed);
        }
        self.publisher.check().await?;
        self.consumer.as_ref().map_or(Ok(()), Consumer::check)
    }

    async fn close(&self) {
        self.closed.cancel();
        if let Some(consumer) = &self.consumer {
            consumer.close().await;
        }
    }
}
