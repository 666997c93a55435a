//! What every [`JobQueue`] promises, as a suite that each implementation runs.

use std::sync::Arc;
use std::time::Duration;

use super::{JobQueue, Message, QueueError};
use crate::ids::{EpochId, JobId};
use crate::job::Lane;

/// How many messages a lane of the queue under test must hold.
pub const CAPACITY: usize = 8;

const SOON: Duration = Duration::from_secs(10);
const BRIEFLY: Duration = Duration::from_millis(50);

/// Runs the suite, each case on a fresh queue, which the suite binds to its pipelines.
///
/// # Panics
/// The queue breaks a promise.
pub async fn run<F>(make: impl Fn() -> F)
where
    F: Future<Output = Arc<dyn JobQueue>>,
{
    let make = || async {
        let queue = make().await;
        queue.bind(&["tiny".to_owned()]).await.expect("bind");
        queue
    };
    delivers_in_order(make().await).await;
    keeps_lanes_apart(make().await).await;
    redelivers_what_is_dropped(make().await).await;
    refuses_when_full(make().await).await;
    gives_a_message_to_one_consumer(make().await).await;
    wakes_a_waiting_consumer(make().await).await;
    follows_what_it_is_bound_to(make().await).await;
    is_full_for_one_pipeline_only(make().await).await;
    remembers_its_epoch(make().await).await;
    closes(make().await).await;
}

fn message(lane: Lane) -> Message {
    let (pipeline, jobs) = ("tiny".to_owned(), vec![JobId::new(), JobId::new()]);
    Message { lane, pipeline, needs_models: true, jobs, alone: 0, traceparent: None }
}

fn of(pipeline: &str) -> Message {
    Message { pipeline: pipeline.to_owned(), ..message(Lane::Bulk) }
}

async fn bind(queue: &Arc<dyn JobQueue>, pipelines: &[&str]) {
    let pipelines: Vec<String> = pipelines.iter().map(|&pipeline| pipeline.to_owned()).collect();
    queue.bind(&pipelines).await.expect("bind");
}

async fn take(queue: &Arc<dyn JobQueue>, lane: Lane) -> Message {
    let delivery = queue.receive(lane, SOON).await.expect("receive").expect("a message was published");
    let message = delivery.message().clone();
    delivery.ack().await.expect("ack");
    message
}

async fn is_empty(queue: &Arc<dyn JobQueue>, lane: Lane) -> bool {
    queue.receive(lane, BRIEFLY).await.expect("receive").is_none()
}

async fn delivers_in_order(queue: Arc<dyn JobQueue>) {
    let sent: Vec<_> = (0..5).map(|_| message(Lane::Interactive)).collect();
    for message in &sent {
        queue.publish(message.clone()).await.expect("publish");
    }
    for message in &sent {
        assert_eq!(&take(&queue, Lane::Interactive).await, message, "messages of a lane keep their order");
    }
    assert!(is_empty(&queue, Lane::Interactive).await, "an acknowledged message is not delivered again");
}

async fn keeps_lanes_apart(queue: Arc<dyn JobQueue>) {
    let bulk = message(Lane::Bulk);
    queue.publish(bulk.clone()).await.expect("publish");
    assert!(is_empty(&queue, Lane::Interactive).await, "a bulk message does not appear in the interactive lane");
    assert_eq!(take(&queue, Lane::Bulk).await, bulk);
}

async fn redelivers_what_is_dropped(queue: Arc<dyn JobQueue>) {
    let sent = message(Lane::Bulk);
    queue.publish(sent.clone()).await.expect("publish");
    drop(queue.receive(Lane::Bulk, SOON).await.expect("receive").expect("a message was published"));
    assert_eq!(take(&queue, Lane::Bulk).await, sent, "a delivery dropped unsettled comes again");
    assert!(is_empty(&queue, Lane::Bulk).await);
}

async fn refuses_when_full(queue: Arc<dyn JobQueue>) {
    for _ in 0..CAPACITY {
        queue.publish(message(Lane::Bulk)).await.expect("publish");
    }
    // A distributed queue notices its limit a little late.
    let mut taken = CAPACITY;
    let refused = loop {
        match queue.publish(message(Lane::Bulk)).await {
            Ok(()) if taken < 4 * CAPACITY => taken += 1,
            last => break last,
        }
    };
    assert!(matches!(refused, Err(QueueError::Full(Lane::Bulk))), "a full lane refuses, got {refused:?}");
    queue.publish(message(Lane::Interactive)).await.expect("the other lane has room");
    for _ in 0..taken {
        take(&queue, Lane::Bulk).await;
    }
    assert!(is_empty(&queue, Lane::Bulk).await, "what was refused is not delivered");
    queue.publish(message(Lane::Bulk)).await.expect("there is room again");
}

async fn gives_a_message_to_one_consumer(queue: Arc<dyn JobQueue>) {
    queue.publish(message(Lane::Bulk)).await.expect("publish");
    let held = queue.receive(Lane::Bulk, SOON).await.expect("receive");
    assert!(held.is_some());
    assert!(is_empty(&queue, Lane::Bulk).await, "a message in one worker's hands is not given to another");
}

async fn wakes_a_waiting_consumer(queue: Arc<dyn JobQueue>) {
    let sent = message(Lane::Interactive);
    let (received, published) = tokio::join!(take(&queue, Lane::Interactive), async {
        tokio::time::sleep(BRIEFLY).await;
        queue.publish(sent.clone()).await
    });
    published.expect("publish");
    assert_eq!(received, sent);
}

async fn follows_what_it_is_bound_to(queue: Arc<dyn JobQueue>) {
    let others: Vec<_> = (0..3).map(|_| of("other")).collect();
    for message in &others {
        queue.publish(message.clone()).await.expect("publish");
    }
    assert!(is_empty(&queue, Lane::Bulk).await, "nothing of a pipeline that it is not bound to");
    bind(&queue, &["tiny", "other"]).await;
    let finished = queue.receive(Lane::Bulk, SOON).await.expect("receive").expect("it is bound now");
    let given_back = queue.receive(Lane::Bulk, SOON).await.expect("receive").expect("there are more");
    assert_eq!((finished.message(), given_back.message()), (&others[0], &others[1]));

    bind(&queue, &["tiny"]).await;
    let sent = message(Lane::Bulk);
    queue.publish(sent.clone()).await.expect("publish");
    assert_eq!(take(&queue, Lane::Bulk).await, sent, "what nobody has begun is not delivered any more");
    finished.ack().await.expect("what is in a worker's hands can be finished");
    drop(given_back);
    assert!(is_empty(&queue, Lane::Bulk).await, "nor is what was given back");

    bind(&queue, &["tiny", "other"]).await;
    let mut rest = [take(&queue, Lane::Bulk).await, take(&queue, Lane::Bulk).await];
    rest.sort_by_key(|message| message.jobs[0]);
    assert_eq!(rest, others[1..], "it has waited meanwhile");
    assert!(is_empty(&queue, Lane::Bulk).await, "what was finished does not come again");
}

async fn is_full_for_one_pipeline_only(queue: Arc<dyn JobQueue>) {
    for taken in 0.. {
        assert!(taken < 4 * CAPACITY, "it is never full");
        if queue.publish(of("other")).await.is_err() {
            break;
        }
    }
    let sent = message(Lane::Bulk);
    queue.publish(sent.clone()).await.expect("another pipeline's messages have room");
    assert_eq!(take(&queue, Lane::Bulk).await, sent, "and do not wait behind those that nobody takes");
}

async fn remembers_its_epoch(queue: Arc<dyn JobQueue>) {
    let (first, second) = (EpochId::new(), EpochId::new());
    assert!(!queue.remembers(first).await.expect("ask"), "a queue knows no epoch that was not begun");
    queue.begin_epoch(first).await.expect("begin");
    assert!(queue.remembers(first).await.expect("ask"));
    queue.begin_epoch(second).await.expect("begin");
    assert!(queue.remembers(second).await.expect("ask"));
    queue.check().await.expect("a queue that works says so");
}

async fn closes(queue: Arc<dyn JobQueue>) {
    let (received, ()) = tokio::join!(queue.receive(Lane::Bulk, SOON), async {
        tokio::time::sleep(BRIEFLY).await;
        queue.close().await;
    });
    assert!(matches!(received, Err(QueueError::Closed)), "a waiting consumer hears of the end");
    assert!(matches!(queue.publish(message(Lane::Bulk)).await, Err(QueueError::Closed)));
}
