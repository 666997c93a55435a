//! Brokers that stop, die, forget, refuse and no longer answer.

use std::time::{Duration, Instant};

use lapin::uri::AMQPUri;
use services::rabbitmq::{self, RabbitMq};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::super::AmqpQueue;
use super::{BRIEFLY, SOON, complaint, healthy, is_unavailable, message, namespace, next, publish_some, start};
use super::{take, take_all, worker};
use crate::ids::EpochId;
use crate::job::Lane;
use crate::queue::JobQueue;

#[tokio::test(flavor = "multi_thread")]
async fn notices_a_connection_that_only_seems_to_be_there() {
    let broker = rabbitmq::shared().await;
    let tunnel = Tunnel::to(&broker.url()).await;
    let queue = start(worker(&tunnel.url, &namespace())).await;
    let sent = message(Lane::Bulk);
    queue.publish(sent.clone()).await.unwrap();
    let held = next(&queue, Lane::Bulk).await;
    tunnel.open.send_replace(false);
    let begun = Instant::now();
    assert!(is_unavailable(&queue.publish(message(Lane::Bulk)).await));
    assert!(begun.elapsed() < Duration::from_secs(7), "a publish takes no longer than it may");
    let why = complaint(&queue).await;
    assert!(begun.elapsed() < Duration::from_secs(25), "{why}");
    tunnel.open.send_replace(true);
    healthy(&queue).await;
    drop(held);
    take_all(&queue, Lane::Bulk, &[sent]).await;
    works(&queue).await;
}

/// A way to a broker that can be blocked without any end of it hearing of that.
struct Tunnel {
    url: String,
    open: watch::Sender<bool>,
    _task: AbortOnDropHandle<()>,
}

impl Tunnel {
    async fn to(url: &str) -> Self {
        let mut uri: AMQPUri = url.parse().unwrap();
        let target = format!("{}:{}", uri.authority.host, uri.authority.port);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        uri.authority.port = listener.local_addr().unwrap().port();
        let (open, is_open) = watch::channel(true);
        let task = tokio::spawn(async move {
            let mut ways = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&target).await.unwrap();
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                ways.spawn(carry(near_in, far_out, is_open.clone()));
                ways.spawn(carry(far_in, near_out, is_open.clone()));
            }
        });
        Self { url: uri.to_string(), open, _task: AbortOnDropHandle::new(task) }
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut is_open: watch::Receiver<bool>) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let opened = is_open.wait_for(|open| *open).await.is_ok();
        if !opened || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

/// Faults of the broker, one after the other on the same queue object; each ends with a queue that works.
#[tokio::test(flavor = "multi_thread")]
async fn survives_faults_of_the_broker() {
    let folder = tempfile::tempdir().unwrap();
    let broker = RabbitMq::start(folder.path()).await.unwrap();
    let queue = start(worker(&broker.url(), "faults")).await;
    let epoch = EpochId::new();
    queue.begin_epoch(epoch).await.unwrap();
    stopped_and_started(&broker, &queue).await;
    assert!(queue.remembers(epoch).await.unwrap());
    alarmed(&broker, &queue).await;
    killed(&broker, &queue).await;
    assert!(queue.remembers(epoch).await.unwrap());
    wiped(&broker, &queue).await;
    assert!(!queue.remembers(epoch).await.unwrap());
    queue.close().await;
}

async fn stopped_and_started(broker: &RabbitMq, queue: &AmqpQueue) {
    let sent = publish_some(queue, Lane::Interactive, 5).await;
    let held = next(queue, Lane::Interactive).await;
    broker.ctl(&["stop_app"]).await.unwrap();
    complaint(queue).await;
    assert!(is_unavailable(&held.ack().await), "nobody takes this for acknowledged");
    let begun = Instant::now();
    assert!(is_unavailable(&queue.publish(message(Lane::Bulk)).await));
    assert!(begun.elapsed() < Duration::from_secs(1), "it does not wait for a broker that is down");
    assert!(queue.receive(Lane::Interactive, BRIEFLY).await.unwrap().is_none(), "nothing stale is delivered");
    broker.ctl(&["start_app"]).await.unwrap();
    healthy(queue).await;
    take_all(queue, Lane::Interactive, &sent).await;
    works(queue).await;
}

async fn alarmed(broker: &RabbitMq, queue: &AmqpQueue) {
    let sent = publish_some(queue, Lane::Bulk, 20).await;
    broker.set_memory_alarm(true).await.unwrap();
    let begun = Instant::now();
    while queue.publish(message(Lane::Interactive)).await.is_ok() {
        assert!(begun.elapsed() < SOON, "the broker never blocks");
    }
    let why = complaint(queue).await;
    assert!(why.contains("blocks publishers") && why.contains("memory"), "{why}");
    let begun = Instant::now();
    assert!(is_unavailable(&queue.publish(message(Lane::Interactive)).await));
    assert!(begun.elapsed() < Duration::from_secs(1), "it fails at once while it is blocked");
    take_all(queue, Lane::Bulk, &sent).await;
    broker.set_memory_alarm(false).await.unwrap();
    healthy(queue).await;
    works(queue).await;
}

async fn killed(broker: &RabbitMq, queue: &AmqpQueue) {
    let sent = publish_some(queue, Lane::Bulk, 50).await;
    broker.kill().await.unwrap();
    complaint(queue).await;
    broker.restart().await.unwrap();
    healthy(queue).await;
    take_all(queue, Lane::Bulk, &sent).await;
    works(queue).await;
}

async fn wiped(broker: &RabbitMq, queue: &AmqpQueue) {
    broker.kill().await.unwrap();
    complaint(queue).await;
    broker.wipe().await.unwrap();
    healthy(queue).await;
    works(queue).await;
}

/// Empties the lanes of what faults had come twice, and sends a message through each.
async fn works(queue: &AmqpQueue) {
    for lane in [Lane::Interactive, Lane::Bulk] {
        while let Some(left) = queue.receive(lane, BRIEFLY).await.unwrap() {
            left.ack().await.unwrap();
        }
        let sent = message(lane);
        queue.publish(sent.clone()).await.unwrap();
        assert_eq!(take(queue, lane).await, sent);
    }
}
