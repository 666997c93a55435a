//! The queue's memory of epochs: an empty queue at the broker that is lost together with the messages.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use lapin::Channel;

use super::publisher::Publisher;
use super::topology::Topology;
use crate::ids::EpochId;
use crate::queue::QueueError;

/// See the module.
pub(super) struct Epochs {
    topology: Arc<Topology>,
    /// Those whose queue may be at the broker, as far as this process knows.
    known: Mutex<HashSet<EpochId>>,
}

impl Epochs {
    pub(super) fn new(topology: Arc<Topology>) -> Self {
        Self { topology, known: Mutex::default() }
    }

    /// See `JobQueue::begin_epoch`.
    pub(super) async fn begin(&self, publisher: &Publisher, epoch: EpochId) -> Result<(), QueueError> {
        let channel = publisher.channel().await?;
        self.topology.declare_epoch(&channel, epoch).await?;
        self.end_others(&channel, epoch).await;
        Ok(())
    }

    /// See `JobQueue::remembers`.
    pub(super) async fn has(&self, publisher: &Publisher, epoch: EpochId) -> Result<bool, QueueError> {
        let channel = publisher.channel().await?;
        let there = self.topology.has_epoch(&channel, epoch).await?;
        if there {
            self.end_others(&channel, epoch).await;
        }
        Ok(there)
    }

    /// Deletes the queues of epochs that were over when `current` began. One that stays behind does no harm, and one
    /// that is missing too early only has messages sent twice.
    async fn end_others(&self, channel: &Channel, current: EpochId) {
        let mut others = std::mem::take(&mut *self.known.lock().unwrap_or_else(PoisonError::into_inner));
        others.remove(&current);
        for epoch in others {
            if let Err(error) = self.topology.delete_epoch(channel, epoch).await {
                tracing::warn!(%epoch, %error, "delete the queue of an epoch that is over");
            }
        }
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(current);
    }
}
