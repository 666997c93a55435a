//! Publishes messages, each confirmed by the broker, over a connection of its own: an alarm at the broker stops all that
//! a publishing connection sends, and acknowledgements must not wait behind that.

use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use lapin::uri::AMQPUri;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::link::{self, LinkError};
use super::sending::Answer;
use super::session::PublishSession;
use super::topology::Topology;
use super::wire;
use crate::queue::{Message, QueueError};
use crate::telemetry::metrics;

const CLOSED: &str = "the queue is closed";

/// Publishes for as long as it exists; see the module.
pub(super) struct Publisher {
    topology: Arc<Topology>,
    timeout: Duration,
    link: watch::Receiver<Link>,
    closed: CancellationToken,
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone)]
enum Link {
    /// The first attempt to connect is under way: it is worth waiting for.
    Starting,
    Up(Arc<PublishSession>),
    Down(String),
}

impl Publisher {
    /// Connects in the background, again and again until `closed`.
    pub(super) fn start(uri: AMQPUri, topology: Arc<Topology>, timeout: Duration, closed: CancellationToken) -> Self {
        let (sender, link) = watch::channel(Link::Starting);
        let keeper = keep(uri, Arc::clone(&topology), sender, closed.clone());
        Self { topology, timeout, link, closed, _task: AbortOnDropHandle::new(tokio::spawn(keeper)) }
    }

    /// Publishes one message; `Ok` when the broker has it on disk.
    pub(super) async fn publish(&self, message: &Message) -> Result<(), QueueError> {
        if !Topology::can_name(&message.pipeline) {
            return Err(QueueError::Unavailable("no queue can be named after this pipeline".to_owned()));
        }
        let deadline = tokio::time::Instant::now() + self.timeout;
        let session = tokio::time::timeout_at(deadline, self.session()).await.map_err(|_| self.unanswered())??;
        let published = tokio::time::timeout_at(deadline, self.publish_over(&session, message)).await;
        published.unwrap_or_else(|_| {
            session.give_up("the broker does not confirm messages");
            Err(self.unanswered())
        })
    }

    /// A fresh channel, for questions that may close it.
    pub(super) async fn channel(&self) -> Result<Channel, QueueError> {
        let asked = async {
            let session = self.session().await?;
            session.usable()?;
            Ok(session.channel().await?)
        };
        tokio::time::timeout(self.timeout, asked).await.unwrap_or_else(|_| Err(self.unanswered()))
    }

    /// Whether a message could be published now.
    pub(super) async fn check(&self) -> Result<(), QueueError> {
        let link = self.link.borrow().clone();
        match link {
            Link::Starting => Err(QueueError::Unavailable("the broker has not answered yet".to_owned())),
            Link::Down(why) => Err(QueueError::Unavailable(why)),
            Link::Up(session) => {
                let checked = tokio::time::timeout(self.timeout, session.check(&self.topology)).await;
                checked.unwrap_or_else(|_| Err(self.unanswered()))
            }
        }
    }

    fn unanswered(&self) -> QueueError {
        QueueError::Unavailable(format!("the broker did not answer within {} s", self.timeout.as_secs_f32()))
    }

    async fn session(&self) -> Result<Arc<PublishSession>, QueueError> {
        if self.closed.is_cancelled() {
            return Err(QueueError::Closed);
        }
        // Without a wait where none is needed, which keeps the order of calls.
        if let Link::Up(session) = &*self.link.borrow() {
            return Ok(Arc::clone(session));
        }
        let mut link = self.link.clone();
        let settled = async { link.wait_for(|link| !matches!(link, Link::Starting)).await.map(|link| link.clone()) };
        let settled = tokio::select! {
            biased;
            () = self.closed.cancelled() => return Err(QueueError::Closed),
            settled = settled => settled,
        };
        match settled {
            Ok(Link::Up(session)) => Ok(session),
            Ok(Link::Down(why)) => Err(QueueError::Unavailable(why)),
            Ok(Link::Starting) | Err(_) => Err(QueueError::Closed),
        }
    }

    async fn publish_over(&self, session: &PublishSession, message: &Message) -> Result<(), QueueError> {
        let (lane, pipeline) = (message.lane, message.pipeline.as_str());
        let (body, properties) = wire::encode(message);
        // A queue that somebody deleted is made again, once.
        for _ in 0..2 {
            match session.publish(&self.topology, (lane, pipeline), &body, &properties).await? {
                Answer::Taken => return Ok(()),
                Answer::Refused => return Err(QueueError::Full(lane)),
                Answer::NoQueue => session.forget(lane, pipeline),
            }
        }
        let queue = self.topology.lane_queue(lane, pipeline);
        Err(QueueError::Unavailable(format!("the broker found no way to the queue {queue}")))
    }
}

async fn keep(uri: AMQPUri, topology: Arc<Topology>, sender: watch::Sender<Link>, closed: CancellationToken) {
    let report = |error: &LinkError| drop(sender.send_replace(Link::Down(error.to_string())));
    let session = || async {
        let (opened, sending) = tokio::select! {
            () = closed.cancelled() => return Ok(()),
            opened = PublishSession::open(&uri, &topology) => opened?,
        };
        let opened = Arc::new(opened);
        sender.send_replace(Link::Up(Arc::clone(&opened)));
        tracing::info!("connected to the message broker for publishing");
        metrics::queue_connected("publish", true);
        // Publishes that are under way when the queue is closed get their answer.
        let over = async {
            closed.cancelled().await;
            sender.send_replace(Link::Down(CLOSED.to_owned()));
            while Arc::strong_count(&opened) > 1 {
                tokio::time::sleep(link::LOOK).await;
            }
        };
        let ended = tokio::select! {
            () = over => Ok(()),
            error = opened.watch(sending) => Err(error),
        };
        metrics::queue_connected("publish", false);
        metrics::queue_blocked(false);
        if let Err(error) = &ended {
            // Those who wait for a confirmation of this connection will never get it.
            opened.give_up(error.to_string());
        }
        ended
    };
    link::keep_up("publish", &closed, report, session).await;
    sender.send_replace(Link::Down(CLOSED.to_owned()));
}
