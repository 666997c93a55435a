//! Dispatches what nobody announced: retries that are due, jobs of a full queue, jobs of a process that died.

use std::time::Duration;

use sea_orm::DbErr;
use shared::db::jobs::outbox;
use shared::dispatch::dispatch;
use shared::job::Lane;
use tokio_util::sync::CancellationToken;

use crate::context::WorkerContext;

/// How soon to look again while there is more than the queue takes.
const BUSY_POLL: Duration = Duration::from_millis(20);

/// Looks for due jobs until `stop`.
pub async fn run(ctx: WorkerContext, stop: CancellationToken) {
    let poll = Duration::from_secs_f64(ctx.config.worker.poll_s);
    loop {
        let mut pause = poll;
        for lane in [Lane::Interactive, Lane::Bulk] {
            match round(&ctx, lane).await {
                Ok(Round::More) => pause = pause.min(BUSY_POLL),
                Ok(Round::Done) => {}
                Err(error) => tracing::warn!(%error, ?lane, "dispatch due jobs"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

enum Round {
    Done,
    More,
}

/// Fills the lane up to the queue's capacity.
async fn round(ctx: &WorkerContext, lane: Lane) -> Result<Round, DbErr> {
    let capacity = ctx.config.queue.capacity as u64;
    let dispatched = u64::try_from(outbox::dispatched(&ctx.db, lane).await?).unwrap_or_default();
    let room = capacity.saturating_sub(dispatched);
    if room == 0 {
        return Ok(Round::More);
    }
    let due = outbox::due(&ctx.db, lane, room).await?;
    let taken = dispatch(&ctx.db, &*ctx.queue, &due).await?;
    if taken > 0 {
        tracing::debug!(?lane, jobs = taken, "dispatched");
    }
    Ok(if due.len() as u64 == room || taken < due.len() { Round::More } else { Round::Done })
}
