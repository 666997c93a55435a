//! Sends messages over one channel, and tells each sender what the broker said to its message.
//!
//! One task does all of it. lapin counts a message before it sends it, so two tasks could get each other's
//! confirmations; and it hands a message that found no queue to whichever confirmation comes next.

use std::collections::HashSet;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};

use super::link::LinkError;

/// Messages that wait to be sent; more wait with their senders.
pub(super) const WAITING: usize = 256;

/// A message to be sent.
pub(super) struct Request {
    pub(super) exchange: ShortString,
    pub(super) key: ShortString,
    pub(super) body: Vec<u8>,
    /// With a message id that no other message has.
    pub(super) properties: BasicProperties,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// What the broker said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is on disk.
    Taken,
    /// The queue is full.
    Refused,
    /// There may have been no queue for it.
    NoQueue,
}

/// See the module.
pub(super) struct Sending {
    channel: Channel,
    requests: mpsc::Receiver<Request>,
    unconfirmed: FuturesUnordered<BoxFuture<'static, Confirmed>>,
    /// Messages that came back with another message's confirmation.
    returned: HashSet<ShortString>,
}

struct Confirmed {
    id: Option<ShortString>,
    confirmation: lapin::Result<Confirmation>,
    answer: oneshot::Sender<Answer>,
}

impl Sending {
    /// Over a channel in confirm mode.
    pub(super) fn new(channel: Channel, requests: mpsc::Receiver<Request>) -> Self {
        Self { channel, requests, unconfirmed: FuturesUnordered::new(), returned: HashSet::new() }
    }

    /// Sends until something fails.
    pub(super) async fn run(mut self) -> LinkError {
        loop {
            let done = tokio::select! {
                biased;
                Some(confirmed) = self.unconfirmed.next() => self.confirmed(confirmed),
                Some(request) = self.requests.recv() => self.send(request).await,
                else => Err(LinkError::Ended("nobody publishes any more".to_owned())),
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    async fn send(&mut self, request: Request) -> Result<(), LinkError> {
        let Request { exchange, key, body, properties, answer } = request;
        if answer.is_closed() {
            // Its sender has given up while the broker took nothing.
            return Ok(());
        }
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let id = properties.message_id().clone();
        let sent = self.channel.basic_publish(exchange, key, options, &body, properties).await;
        let confirmation = sent.map_err(failed)?;
        let confirmed = async move { Confirmed { id, confirmation: confirmation.await, answer } };
        self.unconfirmed.push(confirmed.boxed());
        Ok(())
    }

    /// Answers the senders of this and of all other messages whose confirmation is there.
    fn confirmed(&mut self, first: Confirmed) -> Result<(), LinkError> {
        // A message whose return went to another confirmation is confirmed after that one, perhaps at the same moment:
        // all that is there must be looked at before any is answered.
        let mut all = vec![first];
        while let Some(Some(more)) = self.unconfirmed.next().now_or_never() {
            all.push(more);
        }
        let returned = all.iter().filter_map(|confirmed| returned(confirmed.confirmation.as_ref().ok()?));
        self.returned.extend(returned.filter_map(|message| message.properties.message_id().clone()));
        for Confirmed { id, confirmation, answer } in all {
            let came_back = id.is_some_and(|id| self.returned.remove(&id));
            let said = match confirmation.map_err(failed)? {
                Confirmation::Ack(None) if !came_back => Answer::Taken,
                // This one or another; to send both again is safe.
                Confirmation::Ack(_) => Answer::NoQueue,
                Confirmation::Nack(_) => Answer::Refused,
                Confirmation::NotRequested => {
                    return Err(LinkError::Ended("the channel confirms nothing; this is a bug".to_owned()));
                }
            };
            // Nobody waits for it where the sender has given up.
            let _ = answer.send(said);
        }
        Ok(())
    }
}

fn returned(confirmation: &Confirmation) -> Option<&BasicReturnMessage> {
    match confirmation {
        Confirmation::Ack(message) | Confirmation::Nack(message) => message.as_ref(),
        Confirmation::NotRequested => None,
    }
}

fn failed(source: lapin::Error) -> LinkError {
    LinkError::Failed { doing: "publish a message".to_owned(), source }
}
