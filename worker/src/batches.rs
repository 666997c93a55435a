//! Keeps the batches' accounts: folds what their jobs' moves add up to, ends those that are done, and carries out in slices
//! what clients want of a batch's jobs.

use std::collections::HashMap;
use std::time::Duration;

use sea_orm::DbErr;
use shared::db::batches::control;
use shared::db::batches::deltas::{Folded, fold};
use shared::ids::BatchId;
use tokio_util::sync::CancellationToken;

use crate::context::WorkerContext;
use crate::leadership::Leadership;

/// How soon to look again while jobs end.
const BUSY_POLL: Duration = Duration::from_millis(200);
/// Folds and slices of one round: a leader has to renew its role in time.
const ROUND: usize = 50;

/// The passes over cancelled batches: the last item of each that was looked at; `None` once all were.
type Passes = HashMap<BatchId, Option<i64>>;

/// Keeps the accounts until `stop`.
pub async fn run(ctx: WorkerContext, stop: CancellationToken) {
    let poll = Duration::from_secs_f64(ctx.config.worker.poll_s);
    let mut leadership = Leadership::new(ctx.db.clone(), "batches");
    let mut passes = Passes::new();
    loop {
        let mut pause = poll;
        if leadership.held().await {
            match round(&ctx, &mut passes).await {
                Ok(Round::More) => pause = Duration::ZERO,
                Ok(Round::Busy) => pause = poll.min(BUSY_POLL),
                Ok(Round::Idle) => {}
                Err(error) => tracing::warn!(%error, "keep the accounts of batches"),
            }
        } else {
            // Another leader may have gone on.
            passes.clear();
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    leadership.resign().await;
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Round {
    Idle,
    Busy,
    More,
}

async fn round(ctx: &WorkerContext, passes: &mut Passes) -> Result<Round, DbErr> {
    let mut round = cancel(ctx, passes).await?;
    if reopen(ctx).await? {
        round = Round::More;
    }
    for _ in 0..ROUND {
        match fold(&ctx.db).await? {
            Folded::Nothing => break,
            Folded::All => {
                round = round.max(Round::Busy);
                break;
            }
            Folded::Some => round = Round::More,
        }
    }
    control::measure_pace(&ctx.db).await?;
    for batch in control::finish(&ctx.db).await? {
        tracing::info!(batch.id = %batch, "batch ended");
    }
    Ok(round)
}

/// Takes each cancelled batch some slices further.
async fn cancel(ctx: &WorkerContext, passes: &mut Passes) -> Result<Round, DbErr> {
    let cancelled = control::being_cancelled(&ctx.db).await?;
    passes.retain(|batch, _| cancelled.contains(batch));
    let mut round = Round::Idle;
    for batch in cancelled {
        let mut after = *passes.entry(batch).or_insert(Some(-1));
        for _ in 0..ROUND {
            let Some(item) = after else { break };
            let slice = control::cancel_slice(&ctx.db, batch, item).await?;
            for job in slice.ended {
                ctx.finished.announce(job);
            }
            after = slice.last_item;
        }
        passes.insert(batch, after);
        round = round.max(if after.is_some() { Round::More } else { Round::Busy });
    }
    Ok(round)
}

/// Puts failed jobs of each retried batch back; true when there may be more.
async fn reopen(ctx: &WorkerContext) -> Result<bool, DbErr> {
    let mut more = false;
    for batch in control::being_retried(&ctx.db).await? {
        more |= control::reopen_slice(&ctx.db, batch).await?;
    }
    Ok(more)
}
