//! Takes deliveries: interactive ones first, but never only those.

use std::sync::Arc;
use std::time::Duration;

use shared::job::Lane;
use shared::queue::{Delivery, QueueError};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::context::WorkerContext;
use crate::runner::{Solitude, handle};
use crate::stop::Stop;

/// Of so many deliveries in a row the last is a bulk one, if there is any: bulk keeps moving under any load.
const BULK_TURN: u32 = 8;
/// How long to wait for a delivery before looking around.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after the queue failed to give anything.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Works on up to the configured number of deliveries at once until `stop`, then waits for those that run.
pub async fn run(ctx: WorkerContext, stop: Stop) -> Result<(), QueueError> {
    let slots = Arc::new(Semaphore::new(ctx.config.worker.concurrency()));
    let solitude = Solitude::default();
    let mut running = JoinSet::new();
    let mut turn = 0;
    let ended = loop {
        while running.try_join_next().is_some() {}
        ctx.pulse.beat();
        let slot = tokio::select! {
            () = stop.asked() => break Ok(()),
            slot = Arc::clone(&slots).acquire_owned() => slot,
        };
        let delivery = tokio::select! {
            () = stop.asked() => break Ok(()),
            delivery = next(&ctx, turn) => delivery,
        };
        match delivery {
            Ok(Some(delivery)) => {
                turn = if delivery.message().lane == Lane::Bulk { 0 } else { turn + 1 };
                let (ctx, solitude, stop) = (ctx.clone(), Arc::clone(&solitude), stop.clone());
                running.spawn(async move {
                    handle(&ctx, delivery, &solitude, &stop).await;
                    drop(slot);
                });
            }
            Ok(None) => {}
            Err(QueueError::Closed) if stop.is_asked() => break Ok(()),
            Err(error @ QueueError::Closed) => break Err(error),
            Err(error) => {
                tracing::warn!(%error, "receive from the queue");
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    };
    while running.join_next().await.is_some() {}
    ended
}

async fn next(ctx: &WorkerContext, turn: u32) -> Result<Option<Box<dyn Delivery>>, QueueError> {
    let first = if turn + 1 >= BULK_TURN { Lane::Bulk } else { Lane::Interactive };
    let second = if first == Lane::Bulk { Lane::Interactive } else { Lane::Bulk };
    tokio::select! {
        biased;
        delivery = ctx.queue.receive(first, RECEIVE_TIMEOUT) => delivery,
        delivery = ctx.queue.receive(second, RECEIVE_TIMEOUT) => delivery,
    }
}
