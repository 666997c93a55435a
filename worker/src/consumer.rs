//! Takes deliveries of both lanes, each on its own: what a batch is doing never keeps an interactive job from beginning.

use std::sync::Arc;
use std::time::Duration;

use shared::dispatch::CHUNK;
use shared::failpoints::stand_still;
use shared::job::Lane;
use shared::queue::QueueError;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::context::WorkerContext;
use crate::runner::{Solitude, handle};
use crate::stop::Stop;

/// Bulk jobs that are claimed at once: while one message ends, the next one is under way.
const BULK_JOBS: usize = 2 * CHUNK;
/// How long to wait for a delivery, or for room to take one, before looking around.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the queue failed to give anything.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Works on deliveries until `stop`, then waits for those that run.
pub async fn run(ctx: WorkerContext, stop: Stop) -> Result<(), QueueError> {
    let solitude = Solitude::default();
    let (interactive, bulk) =
        tokio::join!(consume(&ctx, Lane::Interactive, &solitude, &stop), consume(&ctx, Lane::Bulk, &solitude, &stop),);
    interactive.and(bulk)
}

async fn consume(ctx: &WorkerContext, lane: Lane, solitude: &Solitude, stop: &Stop) -> Result<(), QueueError> {
    // The jobs that a message may hold, and how many may be claimed at once.
    let (message_jobs, room) = match lane {
        Lane::Interactive => (1, ctx.config.worker.concurrency()),
        Lane::Bulk => (CHUNK, BULK_JOBS),
    };
    let slots = Arc::new(Semaphore::new(room));
    let mut running = JoinSet::new();
    let ended = loop {
        while running.try_join_next().is_some() {}
        stand_still("consumer").await;
        ctx.pulse.beat(lane);
        // Taken only when there is room for its jobs: what waits here waits for other workers too.
        let free = tokio::select! {
            () = stop.asked() => break Ok(()),
            free = tokio::time::timeout(RECEIVE_TIMEOUT, acquire(&slots, message_jobs)) => free,
        };
        let Ok(Ok(mut free)) = free else { continue };
        let delivery = tokio::select! {
            () = stop.asked() => break Ok(()),
            delivery = ctx.queue.receive(lane, RECEIVE_TIMEOUT) => delivery,
        };
        match delivery {
            Ok(Some(delivery)) => {
                // What took a process down keeps all its room: next to few others it takes few along.
                let unused = match delivery.message() {
                    message if message.alone > 0 => 0,
                    message => message_jobs.saturating_sub(message.jobs.len()),
                };
                drop(free.split(unused));
                let (ctx, solitude, stop) = (ctx.clone(), Arc::clone(solitude), stop.clone());
                running.spawn(async move {
                    handle(&ctx, delivery, &solitude, &stop).await;
                    drop(free);
                });
            }
            Ok(None) => {}
            Err(QueueError::Closed) if stop.is_asked() => break Ok(()),
            Err(error @ QueueError::Closed) => break Err(error),
            Err(error) => {
                tracing::warn!(%error, ?lane, "receive from the queue");
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    };
    while running.join_next().await.is_some() {}
    ended
}

async fn acquire(slots: &Arc<Semaphore>, count: usize) -> Result<OwnedSemaphorePermit, AcquireError> {
    Arc::clone(slots).acquire_many_owned(u32::try_from(count).unwrap_or(u32::MAX)).await
}
