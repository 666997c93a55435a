//! Names and arguments of everything at the broker, and how it is declared.
//!
//! Arguments cannot change while a queue exists: a change of them goes with a new version in the names, or with
//! deleting the queue.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};
use uuid::Uuid;

use super::link::{LinkError, within};
use crate::ids::EpochId;
use crate::job::Lane;

/// Both lanes, in the order in which workers look at them.
pub(super) const LANES: [Lane; 2] = [Lane::Interactive, Lane::Bulk];
/// Returns of a message (a nack, a lost connection) until the broker gives it up. A backstop only: `RabbitMQ` 3 counts
/// every return, also of messages that no worker had begun, so that a small number would hit innocents.
const DELIVERY_LIMIT: i64 = 20;
/// So many returns that it means "never", in words that every version takes: `RabbitMQ` 4 gives up after 20 where the
/// argument is absent, and 3 does not know its -1.
const NO_DELIVERY_LIMIT: i64 = 1_000_000_000;
/// AMQP's limit on names is 255 bytes; these two leave room for each other and for what is added to them.
const LONGEST_NAMESPACE: usize = 64;
const LONGEST_PIPELINE: usize = 128;
/// What a broker says about a queue that does not exist at all; one that is down for now is a 404 as well.
const ABSENT: &str = "no queue";

/// Everything that one installation has at the broker.
#[derive(Clone, Debug)]
pub(super) struct Topology {
    namespace: String,
    capacity: u32,
}

impl Topology {
    /// `None` where the namespace is empty or too long.
    pub(super) fn new(namespace: &str, capacity: u32) -> Option<Self> {
        let fits = !namespace.is_empty() && namespace.len() <= LONGEST_NAMESPACE;
        fits.then(|| Self { namespace: namespace.to_owned(), capacity })
    }

    /// Whether a queue can be named after this pipeline.
    pub(super) fn can_name(pipeline: &str) -> bool {
        !pipeline.is_empty() && pipeline.len() <= LONGEST_PIPELINE
    }

    pub(super) fn jobs_exchange(&self) -> String {
        format!("{}.jobs", self.namespace)
    }

    pub(super) fn finished_exchange(&self) -> String {
        format!("{}.finished", self.namespace)
    }

    /// A name for a queue on it that is one process's own.
    pub(super) fn finished_inbox(&self) -> String {
        format!("{}.ended.{}", self.namespace, Uuid::now_v7().simple())
    }

    pub(super) fn dead_queue(&self) -> String {
        format!("{}.v1.dead", self.namespace)
    }

    pub(super) fn lane_queue(&self, lane: Lane, pipeline: &str) -> String {
        format!("{}.v1.{}", self.namespace, route(lane, pipeline))
    }

    fn dead_exchange(&self) -> String {
        format!("{}.dead", self.namespace)
    }

    fn epoch_queue(&self, epoch: EpochId) -> String {
        format!("{}.v1.epoch.{epoch}", self.namespace)
    }

    /// Declares what every process needs, whatever it publishes or consumes: a dead letter without its exchange would be
    /// lost, so that exists before the first message does.
    pub(super) async fn declare_base(&self, channel: &Channel) -> Result<(), LinkError> {
        declare_exchange(channel, &self.jobs_exchange(), ExchangeKind::Direct).await?;
        declare_exchange(channel, &self.dead_exchange(), ExchangeKind::Fanout).await?;
        let arguments = [
            ("x-queue-type", text("quorum")),
            ("x-overflow", text("reject-publish")),
            ("x-delivery-limit", AMQPValue::LongLongInt(NO_DELIVERY_LIMIT)),
        ];
        declare_queue(channel, &self.dead_queue(), arguments).await?;
        bind(channel, &self.dead_queue(), &self.dead_exchange(), "").await
    }

    /// Declares the queue of a lane and pipeline. At-least-once dead-lettering needs all of: quorum, `reject-publish`
    /// and an exchange; the broker silently falls back to at-most-once where one is missing.
    pub(super) async fn declare_lane(&self, channel: &Channel, lane: Lane, pipeline: &str) -> Result<(), LinkError> {
        let queue = self.lane_queue(lane, pipeline);
        let arguments = [
            ("x-queue-type", text("quorum")),
            ("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT)),
            ("x-dead-letter-exchange", text(&self.dead_exchange())),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
            ("x-max-length", AMQPValue::LongLongInt(self.capacity.into())),
        ];
        declare_queue(channel, &queue, arguments).await?;
        bind(channel, &queue, &self.jobs_exchange(), &route(lane, pipeline)).await
    }

    /// Declares the exchange of ended jobs' ids.
    pub(super) async fn declare_finished(&self, channel: &Channel) -> Result<(), LinkError> {
        declare_exchange(channel, &self.finished_exchange(), ExchangeKind::Fanout).await
    }

    /// Declares the queue that stands for an epoch: it is as durable as the messages, and nothing is ever in it.
    pub(super) async fn declare_epoch(&self, channel: &Channel, epoch: EpochId) -> Result<(), LinkError> {
        declare_queue(channel, &self.epoch_queue(epoch), [("x-queue-type", text("quorum"))]).await
    }

    /// Whether the queue of an epoch is there. Closes the channel where it is not.
    pub(super) async fn has_epoch(&self, channel: &Channel, epoch: EpochId) -> Result<bool, LinkError> {
        match exists(channel, &self.epoch_queue(epoch)).await {
            Ok(()) => Ok(true),
            Err(error) if error.reply().is_some_and(|(code, text)| code == 404 && text.contains(ABSENT)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes the queue of an epoch that is over.
    pub(super) async fn delete_epoch(&self, channel: &Channel, epoch: EpochId) -> Result<(), LinkError> {
        let queue = self.epoch_queue(epoch);
        let deleted = channel.queue_delete(short(&queue), QueueDeleteOptions::default());
        within(format!("delete the queue {queue}"), deleted).await.map(drop)
    }
}

/// The routing key of a lane and pipeline.
pub(super) fn route(lane: Lane, pipeline: &str) -> String {
    format!("{}.{pipeline}", lane.as_str())
}

/// A name as AMQP has it; `Topology::new` and `can_name` keep all of ours short enough.
pub(super) fn short(name: &str) -> ShortString {
    ShortString::from(name)
}

/// Asks the broker for a queue without making it.
pub(super) async fn exists(channel: &Channel, queue: &str) -> Result<(), LinkError> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let asked = channel.queue_declare(short(queue), options, FieldTable::default());
    within(format!("look for the queue {queue}"), asked).await.map(drop)
}

/// Binds a queue to an exchange.
pub(super) async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> Result<(), LinkError> {
    let options = QueueBindOptions::default();
    let bound = channel.queue_bind(short(queue), short(exchange), short(key), options, FieldTable::default());
    within(format!("bind the queue {queue} to {exchange}"), bound).await
}

async fn declare_exchange(channel: &Channel, name: &str, kind: ExchangeKind) -> Result<(), LinkError> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared = channel.exchange_declare(short(name), kind, options, FieldTable::default());
    within(format!("declare the exchange {name}"), declared).await
}

async fn declare_queue<const N: usize>(
    channel: &Channel,
    name: &str,
    arguments: [(&str, AMQPValue); N],
) -> Result<(), LinkError> {
    let mut table = FieldTable::default();
    for (key, value) in arguments {
        table.insert(short(key), value);
    }
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(short(name), options, table);
    within(format!("declare the queue {name}"), declared).await.map(drop)
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}
