//! Word of ended jobs between processes: through a fanout exchange, unconfirmed and not durable.
//!
//! What is lost here costs a waiting client at most a second: it looks at its job by itself that often.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::AmqpOptions;
use super::link::{self, LinkError, within};
use super::topology::{Topology, bind, short};
use crate::finished::FinishedJobs;
use crate::ids::JobId;

/// How long ids are gathered for one message.
const GATHER: Duration = Duration::from_millis(5);
/// Ids in one message.
const LARGEST: usize = 512;
/// Messages in this process at once.
const PREFETCH: u16 = 64;
/// Messages that wait at the broker for one process; older ones are dropped.
const BACKLOG: i64 = 4096;

/// Tells the other processes of jobs that end in this one, until `stop`. Ids that nobody can be told are dropped.
///
/// Options that `AmqpQueue::start` would refuse are logged, and end it at once.
pub async fn relay_out(options: AmqpOptions, finished: FinishedJobs, stop: CancellationToken) {
    let Some((uri, topology)) = parsed(&options) else { return };
    let session = || async {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            error = send(&uri, &topology, &finished) => Err(error),
        }
    };
    link::keep_up("tell of ended jobs", &stop, |_| {}, session).await;
}

/// Tells this process of jobs that end in others, until `stop`.
///
/// Options that `AmqpQueue::start` would refuse are logged, and end it at once.
pub async fn relay_in(options: AmqpOptions, finished: FinishedJobs, stop: CancellationToken) {
    let Some((uri, topology)) = parsed(&options) else { return };
    let session = || async {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            error = listen(&uri, &topology, &finished) => Err(error),
        }
    };
    link::keep_up("hear of ended jobs", &stop, |_| {}, session).await;
}

fn parsed(options: &AmqpOptions) -> Option<(AMQPUri, Arc<Topology>)> {
    options.parsed().inspect_err(|error| tracing::error!(%error, "no word of ended jobs between processes")).ok()
}

/// Sends until something fails. What ended before it was connected is nobody's news any more.
async fn send(uri: &AMQPUri, topology: &Topology, finished: &FinishedJobs) -> LinkError {
    let sending = async {
        let connection = link::connect(uri, "ended jobs out").await?;
        let channel = link::channel(&connection).await?;
        topology.declare_finished(&channel).await?;
        let mut ended = finished.ended_here();
        loop {
            tokio::select! {
                error = link::loss(&connection) => return Err(error),
                ids = gather(&mut ended) => {
                    // While the broker takes nothing, everything sent would only pile up here.
                    if !connection.status().blocked() {
                        publish(&channel, topology, &ids).await?;
                    }
                }
            }
        }
    };
    let Err(error) = sending.await as Result<std::convert::Infallible, LinkError>;
    error
}

/// The next ids that ended, at least one.
async fn gather(ended: &mut broadcast::Receiver<JobId>) -> HashSet<JobId> {
    let mut ids = HashSet::from([next(ended).await]);
    let more = async {
        while ids.len() < LARGEST {
            ids.insert(next(ended).await);
        }
    };
    // Either way it is time to send.
    let _ = tokio::time::timeout(GATHER, more).await;
    ids
}

async fn next(ended: &mut broadcast::Receiver<JobId>) -> JobId {
    loop {
        match ended.recv().await {
            Ok(job) => return job,
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

async fn publish(channel: &Channel, topology: &Topology, ids: &HashSet<JobId>) -> Result<(), LinkError> {
    let body = serde_json::to_vec(ids).expect("ids are always JSON; this is a bug");
    let properties = BasicProperties::default().with_content_type(short("application/json"));
    let (exchange, options) = (short(&topology.finished_exchange()), BasicPublishOptions::default());
    let published = channel.basic_publish(exchange, short(""), options, &body, properties);
    within("tell of ended jobs", published).await.map(drop)
}

/// Listens until something fails.
async fn listen(uri: &AMQPUri, topology: &Topology, finished: &FinishedJobs) -> LinkError {
    let listening = async {
        let connection = link::connect(uri, "ended jobs in").await?;
        let channel = link::channel(&connection).await?;
        let queue = declare_inbox(&channel, topology).await?;
        within("limit what is prefetched", channel.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
        let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
        let consumer = channel.basic_consume(short(&queue), short("ended"), options, FieldTable::default());
        let mut consumer = within("consume the queue of ended jobs", consumer).await?;
        loop {
            let Some(arrival) = consumer.next().await else {
                return Err(LinkError::Ended("the broker ended the consumer of ended jobs".to_owned()));
            };
            let doing = || "hear of ended jobs".to_owned();
            let arrival = arrival.map_err(|source| LinkError::Failed { doing: doing(), source })?;
            if let Ok(ids) = serde_json::from_slice::<Vec<JobId>>(&arrival.data) {
                for id in ids {
                    finished.announce_from_elsewhere(id);
                }
            } else {
                tracing::warn!("a message about ended jobs is not a list of ids; it is ignored");
            }
            within(doing(), arrival.acker.ack(BasicAckOptions::default())).await?;
        }
    };
    let Err(error) = listening.await as Result<std::convert::Infallible, LinkError>;
    error
}

/// A queue that only this connection sees and that goes with it. Its name begins as all others do, so that a user of the
/// broker who may touch no other names can use it.
async fn declare_inbox(channel: &Channel, topology: &Topology) -> Result<String, LinkError> {
    topology.declare_finished(channel).await?;
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert(short("x-max-length"), AMQPValue::LongLongInt(BACKLOG));
    let queue = topology.finished_inbox();
    within("declare a queue of ended jobs", channel.queue_declare(short(&queue), options, arguments)).await?;
    bind(channel, &queue, &topology.finished_exchange(), "").await?;
    Ok(queue)
}
