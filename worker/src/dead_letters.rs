//! Messages that the queue gave up delivering. What becomes of their jobs is decided by an attempt, never here.

use std::time::Duration;

use shared::db::jobs::outbox::return_dead;
use shared::queue::{Delivery, QueueError};
use shared::telemetry::metrics;
use tokio_util::sync::CancellationToken;

use crate::context::WorkerContext;

/// How long to wait for a message before looking around.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Gives the jobs of dead messages back to the dispatcher until `stop`.
pub async fn run(ctx: WorkerContext, stop: CancellationToken) {
    let pause = Duration::from_secs_f64(ctx.config.worker.retry_base_s);
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = ctx.queue.receive_dead(RECEIVE_TIMEOUT) => received,
        };
        let wait = match received {
            Ok(None) => false,
            Ok(Some(delivery)) => !give_back(&ctx, delivery).await,
            Err(QueueError::Closed) if stop.is_cancelled() => return,
            Err(error) => {
                tracing::warn!(%error, "receive dead letters");
                true
            }
        };
        if wait {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// False when the message has to come again.
async fn give_back(ctx: &WorkerContext, delivery: Box<dyn Delivery>) -> bool {
    let jobs = &delivery.message().jobs;
    match return_dead(&ctx.db, jobs).await {
        Ok(returned) => {
            metrics::dead_letter();
            tracing::warn!(jobs = jobs.len(), returned, "the queue gave up a message; its jobs are sent alone");
            if let Err(error) = delivery.ack().await {
                tracing::warn!(%error, "acknowledge a dead letter; it will come again and change nothing");
            }
            true
        }
        Err(error) => {
            tracing::warn!(%error, "return the jobs of a dead letter");
            false
        }
    }
}
