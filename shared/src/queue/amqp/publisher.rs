//! Publishes messages, each confirmed by the broker, over a connection of its own: an alarm at the broker stops all that
//! a publishing connection sends, and acknowledgements must not wait behind that.

use std::sync::Arc;
use std::time::Duration;

use lapin::uri::AMQPUri;
use lapin::{Channel, Confirmation};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::link::{self, LinkError};
use super::session::PublishSession;
use super::topology::Topology;
use super::wire;
use crate::queue::{Message, QueueError};

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
        let unanswered = || QueueError::Unavailable(format!("no answer within {} s", self.timeout.as_secs_f32()));
        let session = tokio::time::timeout_at(deadline, self.session()).await.map_err(|_| unanswered())??;
        let published = tokio::time::timeout_at(deadline, self.publish_over(&session, message)).await;
        published.unwrap_or_else(|_| {
            session.give_up("the broker does not confirm messages");
            Err(unanswered())
        })
    }

    /// A fresh channel, for questions that may close it.
    pub(super) async fn channel(&self) -> Result<Channel, QueueError> {
        let asked = async {
            let session = self.session().await?;
            session.usable()?;
            session.channel().await.map_err(unavailable)
        };
        let unanswered = || QueueError::Unavailable(format!("no answer within {} s", self.timeout.as_secs_f32()));
        tokio::time::timeout(self.timeout, asked).await.unwrap_or_else(|_| Err(unanswered()))
    }

    /// Whether a message could be published now.
    pub(super) fn check(&self) -> Result<(), QueueError> {
        match &*self.link.borrow() {
            Link::Starting => Err(QueueError::Unavailable("the broker has not answered yet".to_owned())),
            Link::Down(why) => Err(QueueError::Unavailable(why.clone())),
            Link::Up(session) => session.check(),
        }
    }

    async fn session(&self) -> Result<Arc<PublishSession>, QueueError> {
        let mut link = self.link.clone();
        let settled = tokio::select! {
            () = self.closed.cancelled() => return Err(QueueError::Closed),
            settled = link.wait_for(|link| !matches!(link, Link::Starting)) => settled,
        };
        match settled.as_deref() {
            Ok(Link::Up(session)) => Ok(Arc::clone(session)),
            Ok(Link::Down(why)) => Err(QueueError::Unavailable(why.clone())),
            Ok(Link::Starting) | Err(_) => Err(QueueError::Closed),
        }
    }

    async fn publish_over(&self, session: &PublishSession, message: &Message) -> Result<(), QueueError> {
        let (lane, pipeline) = (message.lane, message.pipeline.as_str());
        let (body, properties) = wire::encode(message);
        // A queue that somebody deleted is made again, once.
        for _ in 0..2 {
            session.declare(&self.topology, lane, pipeline).await?;
            match session.send(&self.topology, lane, pipeline, &body, properties.clone()).await? {
                Confirmation::Ack(None) => return Ok(()),
                Confirmation::Ack(Some(_)) => session.forget(lane, pipeline),
                // The queue refuses: it is full.
                Confirmation::Nack(_) => return Err(QueueError::Full(lane)),
                Confirmation::NotRequested => {
                    session.give_up("the channel is not in confirm mode; this is a bug");
                    return Err(QueueError::Unavailable("the message was sent unconfirmed".to_owned()));
                }
            }
        }
        let queue = self.topology.lane_queue(lane, pipeline);
        Err(QueueError::Unavailable(format!("the broker found no way to the queue {queue}")))
    }
}

/// What a failure means to whoever uses the queue.
pub(super) fn unavailable(error: LinkError) -> QueueError {
    QueueError::Unavailable(error.to_string())
}

async fn keep(uri: AMQPUri, topology: Arc<Topology>, sender: watch::Sender<Link>, closed: CancellationToken) {
    let report = |error: &LinkError| drop(sender.send_replace(Link::Down(error.to_string())));
    let session = || async {
        let opened = tokio::select! {
            () = closed.cancelled() => return Ok(()),
            opened = PublishSession::open(&uri, &topology) => Arc::new(opened?),
        };
        sender.send_replace(Link::Up(Arc::clone(&opened)));
        tracing::info!("connected to the message broker for publishing");
        let ended = tokio::select! {
            () = closed.cancelled() => Ok(()),
            error = opened.watch() => Err(error),
        };
        if let Err(error) = &ended {
            // Those who wait for a confirmation of this connection will never get it.
            opened.give_up(error.to_string());
        }
        ended
    };
    link::keep_up("publish", &closed, report, session).await;
    // A publish that is under way holds the connection until it has its answer.
    sender.send_replace(Link::Down("the queue is closed".to_owned()));
}
