//! One publishing connection: which queues it has declared, and what stops it.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::ConfirmSelectOptions;
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Connection, Event};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::link::{self, LinkError, within};
use super::sending::{Answer, Request, Sending, WAITING};
use super::topology::{Topology, route, short};
use crate::job::Lane;
use crate::queue::QueueError;
use crate::telemetry::metrics;

/// How long a refused declaration is not tried again.
const REFUSAL: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct PublishSession {
    channel: Channel,
    requests: mpsc::Sender<Request>,
    /// Held from the declaration of a queue until the message is in line, which keeps messages in the order of calls.
    turn: tokio::sync::Mutex<()>,
    declared: Mutex<HashMap<(Lane, String), Declared>>,
    trouble: watch::Sender<Trouble>,
    connection: Connection,
}

#[derive(Clone)]
enum Declared {
    Yes,
    Refused { why: String, until: Instant },
}

#[derive(Clone)]
enum Trouble {
    None,
    /// The broker takes no messages for now; what was sent may still arrive later.
    Blocked(String),
    /// The connection is given up.
    Broken(String),
}

impl PublishSession {
    /// Connects, and declares what every publisher needs. The second of the pair is for `watch`.
    pub(super) async fn open(uri: &AMQPUri, topology: &Topology) -> Result<(Self, Sending), LinkError> {
        let connection = link::connect(uri, "publish").await?;
        topology.declare_base(&link::channel(&connection).await?).await?;
        let channel = link::channel(&connection).await?;
        within("ask for confirmations", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let (requests, waiting) = mpsc::channel(WAITING);
        let sending = Sending::new(channel.clone(), waiting);
        let session = Self {
            channel,
            requests,
            turn: tokio::sync::Mutex::default(),
            declared: Mutex::default(),
            trouble: watch::Sender::new(Trouble::None),
            connection,
        };
        Ok((session, sending))
    }

    /// Sends what is published, and follows the state of the connection until it is lost or given up.
    pub(super) async fn watch(&self, sending: Sending) -> LinkError {
        let mut sending = pin!(sending.run());
        let mut events = pin!(self.connection.events_listener());
        // What the broker said before somebody listened.
        if self.connection.status().blocked() {
            self.blocked("no reason given");
        }
        loop {
            tokio::select! {
                () = self.until(|trouble| matches!(trouble, Trouble::Broken(_))) => {
                    return LinkError::Ended(self.trouble().unwrap_or_default());
                }
                error = link::loss(&self.connection) => return error,
                error = &mut sending => return error,
                () = self.channel_loss() => {
                    return LinkError::Ended("the broker closed the channel for publishing".to_owned());
                }
                Some(event) = events.next() => match event {
                    Event::ConnectionBlocked(reason) => self.blocked(&reason),
                    Event::ConnectionUnblocked => self.unblocked(),
                    // Losses are seen above; an error may be one of a channel that only asked something.
                    _ => {}
                },
            }
        }
    }

    /// A fresh channel of this connection.
    pub(super) async fn channel(&self) -> Result<Channel, LinkError> {
        link::channel(&self.connection).await
    }

    /// An error while the broker takes nothing.
    pub(super) fn usable(&self) -> Result<(), QueueError> {
        self.trouble().map_or(Ok(()), |why| Err(QueueError::Unavailable(why)))
    }

    /// Like `usable`, and also an error where a queue could not be declared; that is tried again now and then.
    pub(super) async fn check(&self, topology: &Topology) -> Result<(), QueueError> {
        self.usable()?;
        let refused: Vec<_> = {
            let declared = self.declared();
            let refused = declared.iter().filter(|(_, declared)| matches!(declared, Declared::Refused { .. }));
            refused.map(|(key, _)| key.clone()).collect()
        };
        let _turn = self.turn.lock().await;
        for (lane, pipeline) in refused {
            self.declare(topology, lane, &pipeline).await?;
        }
        Ok(())
    }

    /// Gives the connection up; it is made anew.
    pub(super) fn give_up(&self, why: impl Into<String>) {
        self.trouble.send_if_modified(|trouble| {
            let first = !matches!(trouble, Trouble::Broken(_));
            if first {
                *trouble = Trouble::Broken(why.into());
            }
            first
        });
    }

    /// Sends a message to the queue of a lane and pipeline, and waits for what the broker says to it.
    pub(super) async fn publish(
        &self,
        topology: &Topology,
        (lane, pipeline): (Lane, &str),
        body: &[u8],
        properties: &BasicProperties,
    ) -> Result<Answer, QueueError> {
        let (answer, said) = oneshot::channel();
        let (exchange, key) = (short(&topology.jobs_exchange()), short(&route(lane, pipeline)));
        let request = Request { exchange, key, body: body.to_vec(), properties: properties.clone(), answer };
        {
            // Where nothing has to be waited for, nothing is: many calls within one task would come out of order, as
            // Tokio lets each wait now and then.
            self.usable()?;
            let _turn = match self.turn.try_lock() {
                Ok(turn) => turn,
                Err(_) => self.turn.lock().await,
            };
            self.declare(topology, lane, pipeline).await?;
            match self.requests.try_send(request) {
                Ok(()) => {}
                Err(TrySendError::Full(request)) => {
                    self.unless_in_trouble(self.requests.send(request)).await?.map_err(|_| lost())?;
                }
                Err(TrySendError::Closed(_)) => return Err(lost()),
            }
        }
        self.unless_in_trouble(said).await?.map_err(|_| lost())
    }

    /// Has the queue declared again at the next message.
    pub(super) fn forget(&self, lane: Lane, pipeline: &str) {
        self.declared().remove(&(lane, pipeline.to_owned()));
    }

    /// Declares the queue of a lane and pipeline, unless this connection has done so before.
    async fn declare(&self, topology: &Topology, lane: Lane, pipeline: &str) -> Result<(), QueueError> {
        let key = (lane, pipeline.to_owned());
        if self.is_declared(&key)? {
            return Ok(());
        }
        let declaring = async {
            // A refusal closes the channel, so it is not the one that publishes.
            topology.declare_lane(&self.channel().await?, lane, pipeline).await
        };
        let error = match self.unless_in_trouble(declaring).await? {
            Ok(()) => {
                self.declared().insert(key, Declared::Yes);
                return Ok(());
            }
            Err(error) => error,
        };
        let why = error.to_string();
        if error.is_refusal() {
            tracing::error!(%error, "the message broker refused a queue; its jobs wait in the jobs table");
            let until = Instant::now() + REFUSAL;
            self.declared().insert(key, Declared::Refused { why: why.clone(), until });
        } else {
            self.give_up(why.clone());
        }
        Err(QueueError::Unavailable(why))
    }

    /// Waits for `answer`, but not longer than the connection is in order.
    async fn unless_in_trouble<T>(&self, answer: impl Future<Output = T>) -> Result<T, QueueError> {
        tokio::select! {
            biased;
            () = self.until(|trouble| !matches!(trouble, Trouble::None)) => {
                Err(QueueError::Unavailable(self.trouble().unwrap_or_default()))
            }
            answer = answer => Ok(answer),
        }
    }

    async fn until(&self, is_so: fn(&Trouble) -> bool) {
        // The sender is this session's: it cannot be gone.
        let _ = self.trouble.subscribe().wait_for(is_so).await.is_ok();
    }

    async fn channel_loss(&self) {
        while self.channel.status().connected() {
            tokio::time::sleep(link::LOOK).await;
        }
    }

    fn is_declared(&self, key: &(Lane, String)) -> Result<bool, QueueError> {
        match self.declared().get(key) {
            Some(Declared::Yes) => Ok(true),
            Some(Declared::Refused { why, until }) if Instant::now() < *until => {
                Err(QueueError::Unavailable(why.clone()))
            }
            Some(Declared::Refused { .. }) | None => Ok(false),
        }
    }

    fn blocked(&self, reason: &str) {
        tracing::warn!(reason, "the message broker takes no messages for now");
        let why =
            format!("the broker blocks publishers ({})", if reason.is_empty() { "no reason given" } else { &reason });
        metrics::queue_blocked(true);
        self.change(Trouble::Blocked(why));
    }

    fn unblocked(&self) {
        tracing::info!("the message broker takes messages again");
        metrics::queue_blocked(false);
        self.change(Trouble::None);
    }

    fn change(&self, to: Trouble) {
        self.trouble.send_if_modified(|trouble| {
            let alive = !matches!(trouble, Trouble::Broken(_));
            if alive {
                *trouble = to;
            }
            alive
        });
    }

    fn trouble(&self) -> Option<String> {
        match &*self.trouble.borrow() {
            Trouble::None => None,
            Trouble::Blocked(why) | Trouble::Broken(why) => Some(why.clone()),
        }
    }

    fn declared(&self) -> MutexGuard<'_, HashMap<(Lane, String), Declared>> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost() -> QueueError {
    QueueError::Unavailable("the connection was lost before the broker answered".to_owned())
}
