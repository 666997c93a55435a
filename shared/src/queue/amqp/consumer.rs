//! Receives messages: one task that holds the consuming connection, and opens it anew after any trouble.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::uri::AMQPUri;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::delivery::{AmqpDelivery, Line};
use super::intake::Intake;
use super::link::{self, LinkError};
use super::topology::Topology;
use crate::job::Lane;
use crate::queue::{Delivery, QueueError};
use crate::telemetry::metrics;

/// So old may the last proof be that the broker still serves the consumers.
const PROOF: Duration = Duration::from_secs(15);
/// How long `close` waits until what no worker has begun is given back.
const GIVING_BACK: Duration = Duration::from_secs(5);

/// Receives for as long as it exists; see the module.
pub(super) struct Consumer {
    shared: Arc<Shared>,
    pipelines: watch::Sender<Vec<String>>,
    _task: AbortOnDropHandle<()>,
}

/// How this process consumes.
pub(super) struct Plan {
    pub(super) uri: AMQPUri,
    pub(super) topology: Arc<Topology>,
    /// Messages in this process at once, for each queue.
    pub(super) prefetch: u16,
}

/// What the connection's task and those who receive have in common.
pub(super) struct Shared {
    interactive: Line,
    bulk: Line,
    pub(super) dead: Line,
    health: Mutex<Health>,
    pub(super) closed: CancellationToken,
    /// What nobody has begun is given back.
    given_back: CancellationToken,
}

enum Health {
    Starting,
    Up { proof: Instant },
    Down(String),
}

impl Consumer {
    /// Connects in the background, again and again until `closed`.
    pub(super) fn start(plan: Plan, pipelines: Vec<String>, closed: CancellationToken) -> Self {
        let shared = Arc::new(Shared {
            interactive: Line::default(),
            bulk: Line::default(),
            dead: Line::default(),
            health: Mutex::new(Health::Starting),
            closed,
            given_back: CancellationToken::new(),
        });
        let (pipelines, wanted) = watch::channel(pipelines);
        let task = tokio::spawn(keep(plan, wanted, Arc::clone(&shared)));
        Self { shared, pipelines, _task: AbortOnDropHandle::new(task) }
    }

    /// See `JobQueue::bind`: the connection's task consumes what is new, and ends the consumers of what is gone.
    pub(super) fn bind(&self, pipelines: &[String]) {
        self.pipelines.send_if_modified(|bound| {
            let is_other = bound != pipelines;
            if is_other {
                *bound = pipelines.to_vec();
            }
            is_other
        });
    }

    /// See `JobQueue::receive`.
    pub(super) async fn receive(&self, lane: Lane, timeout: Duration) -> Result<Option<Box<dyn Delivery>>, QueueError> {
        self.within(timeout, self.next(self.shared.line(lane))).await
    }

    /// See `JobQueue::receive_dead`.
    pub(super) async fn receive_dead(&self, timeout: Duration) -> Result<Option<Box<dyn Delivery>>, QueueError> {
        self.within(timeout, self.shared.dead.take()).await
    }

    /// Whether the consumers are registered and the broker serves them.
    pub(super) fn check(&self) -> Result<(), QueueError> {
        let why = match &*self.shared.health() {
            Health::Up { proof } if proof.elapsed() < PROOF => return Ok(()),
            Health::Up { proof } => {
                format!("the broker has not answered the consuming connection for {} s", proof.elapsed().as_secs())
            }
            Health::Starting => "the consumers are not registered yet".to_owned(),
            Health::Down(why) => format!("no consumers: {why}"),
        };
        Err(QueueError::Unavailable(why))
    }

    /// Waits, after the common token was cancelled, until messages that nobody has begun are given back. Those in
    /// workers' hands can still be acknowledged.
    pub(super) async fn close(&self) {
        if tokio::time::timeout(GIVING_BACK, self.shared.given_back.cancelled()).await.is_err() {
            tracing::warn!(
                "messages could not be given back to the broker in time; it takes them when the process ends"
            );
        }
    }

    /// The next message of a pipeline that this process is bound to. One of another came before that changed, and is dropped: its
    /// consumer ends before the broker has it back.
    async fn next(&self, line: &Line) -> AmqpDelivery {
        loop {
            let delivery = line.take().await;
            if self.pipelines.borrow().contains(&delivery.message().pipeline) {
                return delivery;
            }
        }
    }

    async fn within(
        &self,
        timeout: Duration,
        next: impl Future<Output = AmqpDelivery>,
    ) -> Result<Option<Box<dyn Delivery>>, QueueError> {
        tokio::select! {
            biased;
            () = self.shared.closed.cancelled() => Err(QueueError::Closed),
            delivery = next => Ok(Some(Box::new(delivery))),
            () = tokio::time::sleep(timeout) => Ok(None),
        }
    }
}

impl Shared {
    pub(super) fn line(&self, lane: Lane) -> &Line {
        match lane {
            Lane::Interactive => &self.interactive,
            Lane::Bulk => &self.bulk,
        }
    }

    /// The broker has just answered over the consuming connection.
    pub(super) fn proven(&self) {
        *self.health() = Health::Up { proof: Instant::now() };
    }

    /// Gives back, or where the connection is gone throws away, what nobody has begun.
    pub(super) fn clear(&self) {
        for line in [&self.interactive, &self.bulk, &self.dead] {
            line.clear();
        }
    }

    /// Nothing is left here that nobody has begun.
    pub(super) fn all_given_back(&self) {
        self.given_back.cancel();
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn keep(plan: Plan, wanted: watch::Receiver<Vec<String>>, shared: Arc<Shared>) {
    let report = |error: &LinkError| *shared.health() = Health::Down(error.to_string());
    let session = || async {
        let connected = tokio::select! {
            () = shared.closed.cancelled() => return Ok(()),
            connected = async {
                let connection = link::connect(&plan.uri, "consume").await?;
                let intake = Intake::open(&connection, &plan, wanted.clone(), &shared).await?;
                Ok((connection, intake))
            } => connected,
        };
        let (connection, intake) = connected?;
        shared.proven();
        tracing::info!(pipelines = ?*wanted.borrow(), "connected to the message broker for consuming");
        metrics::queue_connected("consume", true);
        let ended = intake.run(&connection).await;
        metrics::queue_connected("consume", false);
        shared.clear();
        ended
    };
    link::keep_up("consume", &shared.closed, report, session).await;
    shared.clear();
    shared.all_given_back();
}
