//! Dispatches what nobody announced: retries that are due, jobs of a full queue, jobs of a process that died, and after
//! the queue has lost its messages all that they stood for.

use std::collections::HashMap;
use std::time::Duration;

use sea_orm::DbErr;
use sea_orm::prelude::Uuid;
use shared::db::jobs::outbox::{self, DueJob};
use shared::dispatch::{CHUNK, dispatch};
use shared::ids::EpochId;
use shared::job::Lane;
use shared::telemetry::metrics;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::WorkerContext;
use crate::leadership::Leadership;

/// How soon to look again while there is more than the queue takes.
const BUSY_POLL: Duration = Duration::from_millis(50);
/// How often the queue is asked whether it still holds what was published.
const EPOCH_POLL: Duration = Duration::from_secs(5);
/// Jobs of one round: a slow broker must not keep a leader from renewing its role.
const ROUND: u64 = 1024;
/// Sources that have a turn in one round.
const SOURCES: u64 = 64;
/// Rematches of a pipeline that are in the queue at once, beside its window: few enough that what needs models finds room there.
const REMATCHES: u64 = 64;

/// Looks for due jobs until `stop`.
pub async fn run(ctx: WorkerContext, stop: CancellationToken) {
    let poll = Duration::from_secs_f64(ctx.config.worker.poll_s);
    let mut leadership = Leadership::new(ctx.db.clone(), "dispatcher");
    let mut epoch_due = Instant::now();
    let mut turns = Turns::new();
    loop {
        let mut pause = poll;
        if leadership.held().await {
            if Instant::now() >= epoch_due {
                keep_epoch(&ctx).await;
                epoch_due = Instant::now() + EPOCH_POLL;
            }
            for lane in [Lane::Interactive, Lane::Bulk] {
                match round(&ctx, lane, &mut turns).await {
                    Ok(Round::More) => pause = pause.min(BUSY_POLL),
                    Ok(Round::Done) => {}
                    Err(error) => tracing::warn!(%error, ?lane, "dispatch due jobs"),
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
            () = ctx.listed.notified() => {}
        }
    }
    leadership.resign().await;
}

enum Round {
    Done,
    More,
}

/// Which source of a lane and pipeline had the last turn.
type Turns = HashMap<(Lane, String), Uuid>;

/// Fills the lane's queues up to what may wait in them, each pipeline's on its own: one that no worker takes must not keep
/// others from moving, nor rematches, which need no models.
async fn round(ctx: &WorkerContext, lane: Lane, turns: &mut Turns) -> Result<Round, DbErr> {
    let window = match lane {
        Lane::Interactive => ctx.config.queue.capacity,
        Lane::Bulk => ctx.config.queue.bulk_window,
    };
    let mut round = Round::Done;
    let (mut waiting, mut oldest) = (0, Duration::ZERO);
    for pipeline in outbox::pipelines(&ctx.db, lane).await? {
        let dispatched = u64::try_from(outbox::dispatched(&ctx.db, lane, &pipeline).await?).unwrap_or_default();
        let room = u64::from(window).saturating_sub(dispatched).min(ROUND);
        // Bulk jobs wait until there is room for a whole message of them, or messages would become ever smaller.
        let chunk = if lane == Lane::Bulk { (CHUNK as u64).min(window.into()) } else { 1 };
        let mut due = match lane {
            Lane::Interactive => Vec::new(),
            Lane::Bulk => outbox::due_rematches(&ctx.db, &pipeline, REMATCHES).await?,
        };
        if room < chunk {
            round = Round::More;
        } else {
            due.extend(in_turn(ctx, (lane, &pipeline), (room, chunk), turns).await?);
        }
        waiting += due.len();
        oldest = due.iter().map(DueJob::overdue).fold(oldest, Duration::max);
        let taken = dispatch(&ctx.db, &*ctx.queue, &due).await?;
        if taken > 0 {
            tracing::debug!(?lane, pipeline, jobs = taken, "dispatched");
        }
        // What the queue refused is tried at the next poll: to hammer a sick broker would not heal it.
        if taken == due.len() && !due.is_empty() {
            round = Round::More;
        }
    }
    metrics::outbox(lane, waiting, oldest);
    Ok(round)
}

/// Up to `room` due jobs, the same number of each source and a `chunk` at least, beginning after the source that had the
/// last turn.
async fn in_turn(
    ctx: &WorkerContext,
    (lane, pipeline): (Lane, &str),
    (room, chunk): (u64, u64),
    turns: &mut Turns,
) -> Result<Vec<DueJob>, DbErr> {
    let turn = turns.entry((lane, pipeline.to_owned())).or_default();
    let mut sources = outbox::sources(&ctx.db, lane, pipeline, Some(*turn), SOURCES).await?;
    if sources.len() < usize::try_from(SOURCES).unwrap_or(usize::MAX) {
        let from_the_start = outbox::sources(&ctx.db, lane, pipeline, None, SOURCES).await?;
        sources.extend(from_the_start.into_iter().filter(|s| s <= turn));
    }
    let share = (room / (sources.len() as u64).max(1)).max(chunk);
    let mut due = Vec::new();
    for source in sources {
        let left = room.saturating_sub(due.len() as u64);
        if left == 0 {
            break;
        }
        due.extend(outbox::due(&ctx.db, lane, pipeline, source, share.min(left)).await?);
        *turn = source;
    }
    Ok(due)
}

/// Notices that the queue has lost its messages, and has them all sent again.
async fn keep_epoch(ctx: &WorkerContext) {
    match epoch_round(ctx).await {
        Ok(None) => {}
        Ok(Some(jobs)) => {
            tracing::warn!(jobs, "the queue is new or has lost its messages; jobs that wait are sent again");
        }
        Err(error) => tracing::warn!(error = format!("{error:#}"), "ask the queue for its epoch"),
    }
}

async fn epoch_round(ctx: &WorkerContext) -> anyhow::Result<Option<u64>> {
    let current = outbox::epoch(&ctx.db).await?;
    if let Some(epoch) = current
        && ctx.queue.remembers(epoch).await?
    {
        return Ok(None);
    }
    // The queue learns it first: an epoch that only the database knows would look lost at once.
    let next = EpochId::new();
    ctx.queue.begin_epoch(next).await?;
    metrics::queue_epoch_begun();
    Ok(outbox::begin_epoch(&ctx.db, current, next).await?)
}
