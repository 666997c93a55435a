//! A message in a worker's hands, and the lines in which messages wait for one.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use lapin::Acker;
use lapin::options::BasicAckOptions;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use crate::queue::{Delivery, Message, QueueError};

/// The longest wait until an acknowledgement is sent.
const ACK: Duration = Duration::from_secs(5);

/// A delivery; dropped unsettled it goes back to its queue.
pub(super) struct AmqpDelivery {
    message: Message,
    acker: Acker,
    settled: bool,
    /// To the task that owns the connection, as nothing can be awaited in a drop. Prefetch bounds what waits in it.
    returns: UnboundedSender<Acker>,
}

impl AmqpDelivery {
    pub(super) fn new(message: Message, acker: Acker, returns: UnboundedSender<Acker>) -> Self {
        Self { message, acker, settled: false, returns }
    }
}

#[async_trait]
impl Delivery for AmqpDelivery {
    fn message(&self) -> &Message {
        &self.message
    }

    async fn ack(mut self: Box<Self>) -> Result<(), QueueError> {
        let acked = tokio::time::timeout(ACK, self.acker.ack(BasicAckOptions::default())).await;
        // Once tried it is never given back: the acknowledgement may still be on its way.
        self.settled = true;
        let why = match acked {
            Ok(Ok(true)) => return Ok(()),
            // lapin says "false" of a delivery whose channel is gone.
            Ok(Ok(false)) => "its connection was lost".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it was not sent within {} s", ACK.as_secs()),
        };
        Err(QueueError::Unavailable(format!("acknowledge a message: {why}; it will be delivered again")))
    }
}

impl Drop for AmqpDelivery {
    fn drop(&mut self) {
        if !self.settled {
            // With the connection's task the message is gone from this process: the broker has taken it back.
            let _ = self.returns.send(self.acker.clone());
        }
    }
}

/// Messages of one lane that wait for a worker. Prefetch bounds it.
#[derive(Default)]
pub(super) struct Line {
    waiting: Mutex<VecDeque<AmqpDelivery>>,
    changed: Notify,
}

impl Line {
    /// Adds a message that has come.
    pub(super) fn push(&self, delivery: AmqpDelivery) {
        self.waiting().push_back(delivery);
        self.changed.notify_one();
    }

    /// The next message; waits for it.
    pub(super) async fn take(&self) -> AmqpDelivery {
        loop {
            let changed = self.changed.notified();
            if let Some(delivery) = self.pop() {
                // One notification may stand for several messages.
                self.changed.notify_one();
                return delivery;
            }
            changed.await;
        }
    }

    /// Throws away what waits.
    pub(super) fn clear(&self) {
        let dropped = std::mem::take(&mut *self.waiting());
        drop(dropped);
    }

    /// Gives back what waits of one pipeline.
    pub(super) fn give_back(&self, pipeline: &str) {
        let gone = {
            let mut waiting = self.waiting();
            let (gone, kept): (VecDeque<_>, VecDeque<_>) =
                waiting.drain(..).partition(|delivery| delivery.message.pipeline == pipeline);
            *waiting = kept;
            gone
        };
        drop(gone);
    }

    fn pop(&self) -> Option<AmqpDelivery> {
        let mut waiting = self.waiting();
        // What came over a connection that is gone is delivered again over the next.
        while let Some(delivery) = waiting.pop_front() {
            if delivery.acker.usable() {
                return Some(delivery);
            }
        }
        None
    }

    /// A panic elsewhere cannot leave the deque half changed, so poison is ignored.
    fn waiting(&self) -> MutexGuard<'_, VecDeque<AmqpDelivery>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
