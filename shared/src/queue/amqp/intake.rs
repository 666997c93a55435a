//! One consuming connection: from its consumers into the lines, and back what is not wanted.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, BoxStream, SelectAll};
use futures_util::{StreamExt as _, future};
use lapin::message::Delivery as Arrival;
use lapin::options::BasicRejectOptions;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Acker, Channel, Connection};
use tokio::sync::{mpsc, watch};

use super::consumer::{Plan, Shared};
use super::delivery::{AmqpDelivery, Line};
use super::link::{self, LinkError, within};
use super::topology::{self, LANES, Topology, short};
use super::wire::{self, message_id};
use crate::job::Lane;
use crate::telemetry::metrics;

/// How often the broker is asked whether it still serves this connection: a consumer alone never notices.
const PROBE: Duration = Duration::from_secs(5);
/// Bulk messages in this process at once: of up to 64 jobs each, one is worked on while the next is at hand. More would be
/// kept from other workers.
const BULK_PREFETCH: u16 = 2;
/// Dead letters in this process at once.
const DEAD_PREFETCH: u16 = 16;

/// See the module.
pub(super) struct Intake {
    shared: Arc<Shared>,
    topology: Arc<Topology>,
    /// One for each lane: what is prefetched is limited by channel.
    lanes: Vec<(Lane, Channel)>,
    /// The pipelines that are to be consumed.
    wanted: watch::Receiver<Vec<String>>,
    /// What comes, each with the number of its consumer.
    arrivals: SelectAll<BoxStream<'static, (u64, Event)>>,
    /// Those that were not cancelled.
    consumers: BTreeMap<u64, Consumed>,
    /// The number of the next one.
    next: u64,
    /// Asks; a question about a queue that is gone closes it.
    control: Channel,
    queues: Arc<Mutex<Vec<String>>>,
    given: mpsc::UnboundedSender<Acker>,
    returns: mpsc::UnboundedReceiver<Acker>,
}

/// Where a message belongs.
#[derive(Clone, Copy)]
enum Place {
    Lane(Lane),
    Dead,
}

/// A queue that is consumed.
struct Consumed {
    channel: Channel,
    tag: String,
    queue: String,
    place: Place,
    /// None of the dead letters' queue.
    pipeline: Option<String>,
}

enum Event {
    Arrived(Box<Arrival>),
    Ended(LinkError),
}

impl Intake {
    /// Declares all that this process consumes, and registers its consumers: a channel for each lane.
    pub(super) async fn open(
        connection: &Connection,
        plan: &Plan,
        wanted: watch::Receiver<Vec<String>>,
        shared: &Arc<Shared>,
    ) -> Result<Self, LinkError> {
        let control = link::channel(connection).await?;
        plan.topology.declare_base(&control).await?;
        let (given, returns) = mpsc::unbounded_channel();
        let mut intake = Self {
            shared: Arc::clone(shared),
            topology: Arc::clone(&plan.topology),
            lanes: Vec::new(),
            wanted,
            arrivals: SelectAll::new(),
            consumers: BTreeMap::new(),
            next: 0,
            control,
            queues: Arc::default(),
            given,
            returns,
        };
        for lane in LANES {
            let prefetch = match lane {
                Lane::Interactive => plan.prefetch,
                Lane::Bulk => plan.prefetch.min(BULK_PREFETCH),
            };
            intake.lanes.push((lane, limited_channel(connection, prefetch).await?));
        }
        intake.bind().await?;
        let channel = limited_channel(connection, DEAD_PREFETCH).await?;
        intake.consume(channel, (Place::Dead, None), plan.topology.dead_queue()).await?;
        Ok(intake)
    }

    /// Takes messages until the connection fails, or until the queue is closed and every message is settled.
    pub(super) async fn run(mut self, connection: &Connection) -> Result<(), LinkError> {
        let (control, queues, shared) = (self.control.clone(), Arc::clone(&self.queues), Arc::clone(&self.shared));
        let mut probing = pin!(probe(&control, &queues, &shared));
        let mut wanted = self.wanted.clone();
        loop {
            tokio::select! {
                // A consumer ends before the broker has back what was for it.
                biased;
                () = shared.closed.cancelled() => return self.finish(connection).await,
                error = &mut probing => return Err(error),
                error = link::loss(connection) => return Err(error),
                Ok(()) = wanted.changed() => self.bind().await?,
                Some(acker) = self.returns.recv() => give_back(&acker).await?,
                event = self.arrivals.next() => match event {
                    Some((consumer, Event::Arrived(arrival))) => self.arrived(consumer, *arrival).await?,
                    Some((consumer, Event::Ended(error))) if self.consumers.contains_key(&consumer) => return Err(error),
                    Some((_, Event::Ended(_))) => {}
                    None => return Err(LinkError::Ended("this process consumes nothing".to_owned())),
                },
            }
        }
    }

    /// Consumes what is wanted, and nothing else.
    async fn bind(&mut self) -> Result<(), LinkError> {
        let wanted = self.wanted.borrow_and_update().clone();
        let is_gone = |consumed: &Consumed| consumed.pipeline.as_ref().is_some_and(|bound| !wanted.contains(bound));
        let gone: Vec<u64> = self.consumers.iter().filter(|(_, one)| is_gone(one)).map(|(number, _)| *number).collect();
        for consumer in gone {
            self.cancel(consumer).await?;
        }
        for pipeline in wanted {
            if self.consumers.values().any(|consumed| consumed.pipeline.as_ref() == Some(&pipeline)) {
                continue;
            }
            for (lane, channel) in self.lanes.clone() {
                self.topology.declare_lane(&self.control, lane, &pipeline).await?;
                let queue = self.topology.lane_queue(lane, &pipeline);
                self.consume(channel, (Place::Lane(lane), Some(pipeline.clone())), queue).await?;
            }
        }
        Ok(())
    }

    /// Ends a consumer. What nobody has begun is given back; what is in workers' hands can still be acknowledged.
    async fn cancel(&mut self, consumer: u64) -> Result<(), LinkError> {
        let Some(Consumed { channel, tag, queue, place, pipeline }) = self.consumers.remove(&consumer) else {
            return Ok(());
        };
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).retain(|probed| *probed != queue);
        let cancelled = channel.basic_cancel(short(&tag), BasicCancelOptions::default());
        within(format!("cancel the consumer of the queue {queue}"), cancelled).await?;
        if let Some(pipeline) = pipeline {
            self.line(place).give_back(&pipeline);
        }
        Ok(())
    }

    async fn consume(
        &mut self,
        channel: Channel,
        (place, pipeline): (Place, Option<String>),
        queue: String,
    ) -> Result<(), LinkError> {
        let (number, options) = (self.next, BasicConsumeOptions::default());
        self.next += 1;
        // One of its own for each: messages of a consumer that was cancelled may still be out when the queue is consumed again.
        let tag = format!("{queue}.{number}");
        let consumer = channel.basic_consume(short(&queue), short(&tag), options, FieldTable::default());
        let consumer = within(format!("consume the queue {queue}"), consumer).await?;
        let ended = format!("the broker ended the consumer of the queue {queue}");
        let failed = format!("consume the queue {queue}");
        let events = consumer
            .map(move |arrival| match arrival {
                Ok(arrival) => Event::Arrived(Box::new(arrival)),
                Err(source) => Event::Ended(LinkError::Failed { doing: failed.clone(), source }),
            })
            .chain(stream::once(future::ready(Event::Ended(LinkError::Ended(ended)))));
        self.arrivals.push(events.map(move |event| (number, event)).boxed());
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).push(queue.clone());
        self.consumers.insert(number, Consumed { channel, tag, queue, place, pipeline });
        Ok(())
    }

    async fn arrived(&mut self, consumer: u64, arrival: Arrival) -> Result<(), LinkError> {
        let Some(place) = self.consumers.get(&consumer).map(|consumed| consumed.place) else {
            // It was on its way when its consumer was cancelled.
            return give_back(&arrival.acker).await;
        };
        match wire::decode(&arrival.data, &arrival.properties) {
            Ok(message) => {
                if let Place::Lane(lane) = place {
                    metrics::delivered(lane, arrival.redelivered);
                }
                let delivery = AmqpDelivery::new(message, arrival.acker, self.given.clone());
                self.line(place).push(delivery);
                Ok(())
            }
            Err(error) => {
                let id = message_id(&arrival.properties);
                tracing::error!(message.id = id, %error, "not a message of this program; it is put aside");
                put_aside(place, &arrival.acker).await
            }
        }
    }

    fn line(&self, place: Place) -> &Line {
        match place {
            Place::Lane(lane) => self.shared.line(lane),
            Place::Dead => &self.shared.dead,
        }
    }

    /// Stops the consumers, gives back what nobody has begun, and holds the connection for the rest.
    async fn finish(mut self, connection: &Connection) -> Result<(), LinkError> {
        let cancelled = self.consumers.values().map(|Consumed { channel, tag, .. }| {
            within("cancel a consumer", channel.basic_cancel(short(tag), BasicCancelOptions::default()))
        });
        for result in future::join_all(cancelled).await {
            result?;
        }
        // Every consumer's stream ends after its cancellation, and with what came before it.
        while let Some(event) = self.arrivals.next().await {
            if let (_, Event::Arrived(arrival)) = event {
                give_back(&arrival.acker).await?;
            }
        }
        self.shared.clear();
        while let Ok(acker) = self.returns.try_recv() {
            give_back(&acker).await?;
        }
        self.shared.all_given_back();
        drop(self.given);
        loop {
            tokio::select! {
                returned = self.returns.recv() => match returned {
                    Some(acker) => give_back(&acker).await?,
                    None => break,
                },
                error = link::loss(connection) => return Err(error),
            }
        }
        within("close the connection", connection.close(200, short("the process stops"))).await
    }
}

async fn limited_channel(connection: &Connection, prefetch: u16) -> Result<Channel, LinkError> {
    let channel = link::channel(connection).await?;
    within("limit what is prefetched", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    Ok(channel)
}

/// Asks for the consumed queues in turn; returns what was wrong at last.
async fn probe(control: &Channel, queues: &Mutex<Vec<String>>, shared: &Shared) -> LinkError {
    let mut turn = 0;
    loop {
        tokio::time::sleep(PROBE).await;
        // There may be more of them than the last time.
        let queue = {
            let queues = queues.lock().unwrap_or_else(PoisonError::into_inner);
            queues.get(turn % queues.len().max(1)).cloned()
        };
        let Some(queue) = queue else { return LinkError::Ended("this process consumes nothing".to_owned()) };
        if let Err(error) = topology::exists(control, &queue).await {
            return error;
        }
        shared.proven();
        turn += 1;
    }
}

async fn give_back(acker: &Acker) -> Result<(), LinkError> {
    let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
    within("give a message back", acker.nack(options)).await.map(drop)
}

/// To the dead letters; from there nowhere, as nobody could ever make anything of it.
async fn put_aside(place: Place, acker: &Acker) -> Result<(), LinkError> {
    let settled = match place {
        Place::Lane(_) => within("reject a message", acker.reject(BasicRejectOptions { requeue: false })).await,
        Place::Dead => within("acknowledge a dead letter", acker.ack(BasicAckOptions::default())).await,
    };
    settled.map(drop)
}
