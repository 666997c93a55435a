//! The queue against real brokers: its contract, and what others do to its queues. `faults`: when brokers fail.

mod faults;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, QueueDeleteOptions, QueuePurgeOptions};
use services::rabbitmq;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::finished::{relay_in, relay_out};
use super::topology::short;
use super::{AmqpOptions, AmqpOptionsError, AmqpQueue, link};
use crate::finished::FinishedJobs;
use crate::ids::{EpochId, JobId};
use crate::job::Lane;
use crate::queue::{Delivery, JobQueue, Message, QueueError, contract};

const SOON: Duration = Duration::from_secs(20);
const BRIEFLY: Duration = Duration::from_millis(300);
/// A broker that comes back takes some seconds itself, and the pauses between attempts grow meanwhile.
const BACK: Duration = Duration::from_secs(90);

fn namespace() -> String {
    format!("test-{}", Uuid::now_v7().simple())
}

/// Options of a process that publishes and consumes the pipeline "tiny".
fn worker(url: &str, namespace: &str) -> AmqpOptions {
    AmqpOptions {
        consume: Some(vec!["tiny".to_owned()]),
        namespace: namespace.to_owned(),
        publish_timeout: Duration::from_secs(5),
        capacity: 1000,
        ..AmqpOptions::new(url)
    }
}

fn message(lane: Lane) -> Message {
    let traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned());
    let pipeline = "tiny".to_owned();
    Message { lane, pipeline, needs_models: true, jobs: vec![JobId::new()], alone: 1, traceparent }
}

async fn start(options: AmqpOptions) -> AmqpQueue {
    let queue = AmqpQueue::start(options).unwrap();
    healthy(&queue).await;
    queue
}

async fn healthy(queue: &AmqpQueue) {
    let begun = Instant::now();
    while let Err(error) = queue.check().await {
        assert!(begun.elapsed() < BACK, "the queue does not come up: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What `check` complains about, as soon as it does.
async fn complaint(queue: &AmqpQueue) -> String {
    let begun = Instant::now();
    loop {
        if let Err(error) = queue.check().await {
            return error.to_string();
        }
        assert!(begun.elapsed() < BACK, "the queue takes itself for healthy");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn next(queue: &AmqpQueue, lane: Lane) -> Box<dyn Delivery> {
    queue.receive(lane, SOON).await.unwrap().expect("a message is on its way")
}

async fn take(queue: &AmqpQueue, lane: Lane) -> Message {
    let delivery = next(queue, lane).await;
    let message = delivery.message().clone();
    delivery.ack().await.unwrap();
    message
}

/// Takes messages until all of these have come, some of them perhaps twice.
async fn take_all(queue: &AmqpQueue, lane: Lane, sent: &[Message]) {
    let mut missing: HashSet<_> = sent.iter().map(|message| message.jobs[0]).collect();
    while !missing.is_empty() {
        missing.remove(&take(queue, lane).await.jobs[0]);
    }
}

async fn publish_some(queue: &AmqpQueue, lane: Lane, count: usize) -> Vec<Message> {
    let sent: Vec<_> = (0..count).map(|_| message(lane)).collect();
    let published: Vec<_> = stream::iter(&sent).map(|m| queue.publish(m.clone())).buffered(64).collect().await;
    for result in published {
        result.unwrap();
    }
    sent
}

fn is_unavailable(result: &Result<(), QueueError>) -> bool {
    matches!(result, Err(QueueError::Unavailable(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_contract() {
    let broker = rabbitmq::shared().await;
    let make = || async {
        let capacity = u32::try_from(contract::CAPACITY).unwrap();
        let options = AmqpOptions { capacity, ..worker(&broker.url(), &namespace()) };
        Arc::new(start(options).await) as Arc<dyn JobQueue>
    };
    contract::run(make).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn takes_another_pipeline_while_it_runs() {
    let broker = rabbitmq::shared().await;
    let options = AmqpOptions { consume: Some(Vec::new()), ..worker(&broker.url(), &namespace()) };
    let queue = start(options).await;
    let of = |pipeline: &str| Message { pipeline: pipeline.to_owned(), ..message(Lane::Bulk) };
    let (first, second) = (of("tiny"), of("added"));
    queue.publish(first.clone()).await.unwrap();
    assert!(queue.receive(Lane::Bulk, BRIEFLY).await.unwrap().is_none(), "of a pipeline that it did not bind to");
    queue.bind(&["tiny".to_owned()]).await.unwrap();
    // One in hand while the next one is bound keeps its place.
    let in_hand = next(&queue, Lane::Bulk).await;
    assert_eq!(in_hand.message(), &first);
    queue.bind(&["tiny".to_owned(), "added".to_owned()]).await.unwrap();
    queue.publish(second.clone()).await.unwrap();
    assert_eq!(take(&queue, Lane::Bulk).await, second);
    in_hand.ack().await.unwrap();
    assert!(queue.receive(Lane::Bulk, BRIEFLY).await.unwrap().is_none(), "nothing comes twice");
    assert!(queue.bind(&[String::new()]).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_a_pipeline_to_other_processes_that_it_does_not_take_any_more() {
    let (broker, namespace) = (rabbitmq::shared().await, namespace());
    let url = broker.url();
    let queue = start(worker(&url, &namespace)).await;
    let sent = publish_some(&queue, Lane::Bulk, 5).await;
    // One in hand, and one that waits in this process.
    let in_hand = next(&queue, Lane::Bulk).await;
    queue.bind(&[]).await.unwrap();
    assert!(queue.receive(Lane::Bulk, BRIEFLY).await.unwrap().is_none());
    let other = start(worker(&url, &namespace)).await;
    take_all(&other, Lane::Bulk, &sent[1..]).await;
    in_hand.ack().await.unwrap();
    // It goes on to be in order, and takes it again, more than once.
    for _ in 0..3 {
        queue.bind(&["tiny".to_owned()]).await.unwrap();
        queue.check().await.unwrap();
        queue.bind(&[]).await.unwrap();
    }
    other.close().await;
    queue.bind(&["tiny".to_owned()]).await.unwrap();
    let sent = publish_some(&queue, Lane::Bulk, 5).await;
    take_all(&queue, Lane::Bulk, &sent).await;
    assert!(queue.receive(Lane::Bulk, BRIEFLY).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_order_of_concurrent_publishes() {
    let broker = rabbitmq::shared().await;
    let queue = start(worker(&broker.url(), &namespace())).await;
    for _ in 0..3 {
        let sent = publish_some(&queue, Lane::Bulk, 300).await;
        for message in &sent {
            assert_eq!(&take(&queue, Lane::Bulk).await, message);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gives_a_message_up_that_comes_back_again_and_again() {
    let broker = rabbitmq::shared().await;
    let queue = start(worker(&broker.url(), &namespace())).await;
    let sent = message(Lane::Bulk);
    queue.publish(sent.clone()).await.unwrap();
    for _ in 0..21 {
        drop(next(&queue, Lane::Bulk).await);
    }
    let dead = queue.receive_dead(SOON).await.unwrap().expect("the message is given up");
    assert_eq!(dead.message(), &sent);
    drop(dead);
    let dead = queue.receive_dead(SOON).await.unwrap().expect("a dead letter is never given up");
    dead.ack().await.unwrap();
    assert!(queue.receive_dead(BRIEFLY).await.unwrap().is_none());
    assert!(queue.receive(Lane::Bulk, BRIEFLY).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_aside_what_is_no_message() {
    let broker = rabbitmq::shared().await;
    let options = worker(&broker.url(), &namespace());
    let (uri, topology) = options.parsed().unwrap();
    let queue = start(options).await;
    let connection = link::connect(&uri, "test").await.unwrap();
    let channel = link::channel(&connection).await.unwrap();
    let (exchange, key) = (short(&topology.jobs_exchange()), short("bulk.tiny"));
    let options = BasicPublishOptions::default();
    channel.basic_publish(exchange, key, options, b"{}", BasicProperties::default()).await.unwrap();
    let sent = message(Lane::Bulk);
    queue.publish(sent.clone()).await.unwrap();
    assert_eq!(take(&queue, Lane::Bulk).await, sent, "the next message comes through");
    assert!(queue.receive_dead(Duration::from_secs(2)).await.unwrap().is_none(), "nobody is bothered with it");
    for name in [topology.lane_queue(Lane::Bulk, "tiny"), topology.dead_queue()] {
        let left = channel.queue_delete(short(&name), QueueDeleteOptions::default()).await.unwrap();
        assert_eq!(left, 0, "{name} is empty");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn comes_back_when_its_queue_is_deleted() {
    let broker = rabbitmq::shared().await;
    let options = worker(&broker.url(), &namespace());
    let (uri, topology) = options.parsed().unwrap();
    let queue = start(options).await;
    let connection = link::connect(&uri, "test").await.unwrap();
    let channel = link::channel(&connection).await.unwrap();
    queue.publish(message(Lane::Bulk)).await.unwrap();
    let held = next(&queue, Lane::Bulk).await;
    let name = topology.lane_queue(Lane::Bulk, "tiny");
    channel.queue_delete(short(&name), QueueDeleteOptions::default()).await.unwrap();
    let why = complaint(&queue).await;
    assert!(why.contains(&name), "it says which queue is gone: {why}");
    assert!(is_unavailable(&held.ack().await), "nobody takes this for acknowledged");
    // Whoever is first, publisher or consumer, makes the queue again.
    let sent = message(Lane::Bulk);
    queue.publish(sent.clone()).await.unwrap();
    assert_eq!(take(&queue, Lane::Bulk).await, sent);
    healthy(&queue).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn says_that_a_queue_has_other_arguments() {
    let broker = rabbitmq::shared().await;
    let namespace = namespace();
    let _first = start(worker(&broker.url(), &namespace)).await;
    let other = AmqpOptions { capacity: 7, ..worker(&broker.url(), &namespace) };
    let second = AmqpQueue::start(other.clone()).unwrap();
    let published = second.publish(message(Lane::Bulk)).await;
    assert!(is_unavailable(&published), "{published:?}");
    let why = complaint(&second).await;
    assert!(why.contains("capacity") && why.contains(&namespace), "{why}");
    // It is not tried again and again, and what has nothing to do with that queue works.
    let begun = Instant::now();
    for _ in 0..100 {
        assert!(is_unavailable(&second.publish(message(Lane::Bulk)).await));
    }
    assert!(begun.elapsed() < Duration::from_secs(1));
    let elsewhere = Message { pipeline: "other".to_owned(), ..message(Lane::Bulk) };
    second.publish(elsewhere).await.unwrap();
    // A consumer of it says the same.
    let consuming = AmqpQueue::start(AmqpOptions { capacity: 7, ..worker(&broker.url(), &namespace) }).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let why = complaint(&consuming).await;
    assert!(why.contains("no consumers") && why.contains("capacity"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gives_back_what_nobody_has_begun_when_it_closes() {
    let broker = rabbitmq::shared().await;
    let options = AmqpOptions { prefetch: 4, ..worker(&broker.url(), &namespace()) };
    let first = start(options.clone()).await;
    let sent = publish_some(&first, Lane::Bulk, 4).await;
    let held = next(&first, Lane::Bulk).await;
    first.close().await;
    let second = start(options).await;
    take_all(&second, Lane::Bulk, &sent[1..]).await;
    held.ack().await.expect("what was begun can be finished");
    assert!(second.receive(Lane::Bulk, BRIEFLY).await.unwrap().is_none());
    drop(first);
    assert!(second.receive(Lane::Bulk, BRIEFLY).await.unwrap().is_none());
    assert!(matches!(second.remembers(EpochId::new()).await, Ok(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn tells_other_processes_of_ended_jobs() {
    let broker = rabbitmq::shared().await;
    ends_are_told(&AmqpOptions { namespace: namespace(), ..AmqpOptions::new(broker.url()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn needs_rights_on_its_own_names_only() {
    let broker = rabbitmq::shared().await;
    let namespace = namespace();
    let own = format!("^{namespace}");
    broker.ctl(&["-q", "add_user", &namespace, "hush"]).await.unwrap();
    broker.ctl(&["-q", "set_permissions", &namespace, &own, &own, &own]).await.unwrap();
    let url = broker.url().replace("guest:guest", &format!("{namespace}:hush"));
    let queue = start(worker(&url, &namespace)).await;
    let sent = publish_some(&queue, Lane::Interactive, 3).await;
    take_all(&queue, Lane::Interactive, &sent).await;
    let epoch = EpochId::new();
    queue.begin_epoch(epoch).await.unwrap();
    assert!(queue.remembers(epoch).await.unwrap());
    ends_are_told(&AmqpOptions { namespace, ..AmqpOptions::new(url) }).await;
    queue.close().await;
}

async fn ends_are_told(options: &AmqpOptions) {
    let (api, work) = (FinishedJobs::new(), FinishedJobs::new());
    let stop = CancellationToken::new();
    let relays = [
        tokio::spawn(relay_in(options.clone(), api.clone(), stop.clone())),
        tokio::spawn(relay_out(options.clone(), work.clone(), stop.clone())),
        // A process may do both: what it hears it does not tell again.
        tokio::spawn(relay_out(options.clone(), api.clone(), stop.clone())),
    ];
    let job = JobId::new();
    let mut listener = api.listen();
    let mut told_again = api.ended_here();
    let telling = async {
        loop {
            // Lost by design until both are connected.
            work.announce(job);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = listener.wait_for(job) => {}
        () = telling => {}
        () = tokio::time::sleep(SOON) => panic!("nobody heard of the job"),
    }
    assert!(told_again.try_recv().is_err());
    stop.cancel();
    for relay in relays {
        relay.await.unwrap();
    }
}

#[tokio::test]
async fn bears_a_broker_that_is_down() {
    // A port that nobody else can have, and on which nobody listens.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("amqp://me:hush@127.0.0.1:{}/%2f", socket.local_addr().unwrap().port());
    let queue = AmqpQueue::start(worker(&url, &namespace())).unwrap();
    assert!(is_unavailable(&queue.publish(message(Lane::Bulk)).await));
    assert!(queue.receive(Lane::Bulk, BRIEFLY).await.unwrap().is_none());
    assert!(queue.receive_dead(BRIEFLY).await.unwrap().is_none());
    assert!(matches!(queue.remembers(EpochId::new()).await, Err(QueueError::Unavailable(_))));
    let why = queue.check().await.unwrap_err().to_string();
    assert!(why.contains("127.0.0.1") && !why.contains("hush"), "{why}");
    queue.close().await;
    assert!(matches!(queue.publish(message(Lane::Bulk)).await, Err(QueueError::Closed)));
    assert!(matches!(queue.receive(Lane::Bulk, SOON).await, Err(QueueError::Closed)));
}

#[tokio::test]
async fn refuses_options_that_can_never_work() {
    let good = worker("amqp://localhost/%2f", "face-id");
    let url = "amqp://me:hu sh@local host/%2f".to_owned();
    let error = AmqpQueue::start(AmqpOptions { url, ..good.clone() }).err().unwrap();
    assert!(matches!(error, AmqpOptionsError::Url) && !error.to_string().contains("hu sh"));
    let namespace = String::new();
    assert!(matches!(AmqpQueue::start(AmqpOptions { namespace, ..good.clone() }), Err(AmqpOptionsError::Namespace(_))));
    let consume = Some(vec!["p".repeat(129)]);
    assert!(matches!(AmqpQueue::start(AmqpOptions { consume, ..good.clone() }), Err(AmqpOptionsError::Pipeline(_))));
    assert!(matches!(AmqpQueue::start(AmqpOptions { prefetch: 0, ..good.clone() }), Err(AmqpOptionsError::Prefetch)));
    assert!(!format!("{:?}", AmqpOptions { url: "amqp://me:hush@h".to_owned(), ..good }).contains("hush"));
}

#[tokio::test(flavor = "multi_thread")]
async fn loses_nothing_when_a_queue_vanishes_among_concurrent_publishes() {
    let broker = rabbitmq::shared().await;
    let options = AmqpOptions { consume: None, ..worker(&broker.url(), &namespace()) };
    let (uri, topology) = options.parsed().unwrap();
    let queue = start(options).await;
    let connection = link::connect(&uri, "test").await.unwrap();
    let channel = link::channel(&connection).await.unwrap();
    let to = |pipeline: &str| Message { pipeline: pipeline.to_owned(), ..message(Lane::Bulk) };
    let names = ["there", "gone"].map(|pipeline| topology.lane_queue(Lane::Bulk, pipeline));
    for _ in 0..5 {
        queue.publish(to("there")).await.unwrap();
        queue.publish(to("gone")).await.unwrap();
        channel.queue_delete(short(&names[1]), QueueDeleteOptions::default()).await.unwrap();
        let mixed = (0..40).map(|n| queue.publish(to(if n % 2 == 0 { "gone" } else { "there" })));
        for result in stream::iter(mixed).buffer_unordered(40).collect::<Vec<_>>().await {
            result.unwrap();
        }
        for (name, least) in names.iter().zip([21, 20]) {
            let kept = channel.queue_purge(short(name), QueuePurgeOptions::default()).await.unwrap();
            assert!(kept >= least, "{kept} of {least} confirmed messages are in {name}");
        }
    }
}
