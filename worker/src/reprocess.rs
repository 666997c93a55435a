//! Takes runs that give collections another pipeline further: lists their images, makes the jobs that add what these lack,
//! and deletes what is to go at the end.

use std::time::Duration;

use sea_orm::DbErr;
use shared::db::reprocess::{self, Run, RunState, pending, prune};
use tokio_util::sync::CancellationToken;

use crate::context::WorkerContext;
use crate::leadership::Leadership;

/// How soon to look again while a run has something to do.
const BUSY_POLL: Duration = Duration::from_millis(200);
/// Pages and slices of one round: a leader has to renew its role in time.
const ROUND: usize = 20;
/// Images of a job whose faces are cut from kept crops: so many that what a job costs besides does not count.
const IMAGES_OF_CROPS: usize = 64;
/// Jobs of one pipeline that have not ended. What waits here cannot be paused, and what is too little leaves workers idle.
const OPEN_JOBS: usize = 512;

/// Looks after runs until `stop`.
pub(crate) async fn run(ctx: WorkerContext, stop: CancellationToken) {
    let poll = Duration::from_secs_f64(ctx.config.worker.poll_s);
    let mut leadership = Leadership::new(ctx.db.clone(), "reprocess");
    loop {
        let mut pause = poll;
        if leadership.held().await {
            match reprocess::all_open(&ctx.db).await {
                Ok(runs) => {
                    if round(&ctx, runs).await {
                        pause = BUSY_POLL.min(poll);
                    }
                }
                Err(error) => tracing::warn!(%error, "look for reprocess runs"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    leadership.resign().await;
}

/// Takes each run a little further; true when one may go on at once. One that cannot keeps no other from it.
async fn round(ctx: &WorkerContext, runs: Vec<Run>) -> bool {
    let mut is_busy = false;
    for run in runs {
        let id = run.id;
        match step(ctx, run).await {
            Ok(may_go_on) => is_busy |= may_go_on,
            Err(error) => tracing::warn!(run.id = %id, %error, "look after a reprocess run"),
        }
    }
    is_busy
}

async fn step(ctx: &WorkerContext, run: Run) -> Result<bool, DbErr> {
    if run.kept_and_gone().is_some() {
        return end(ctx, &run).await;
    }
    if run.prune_after.is_some() && prune::begin_due(&ctx.db, &run).await? {
        return Ok(true);
    }
    fill(ctx, run).await
}

async fn fill(ctx: &WorkerContext, mut run: Run) -> Result<bool, DbErr> {
    pending::give_up_ended(&ctx.db, &run).await?;
    if run.paused {
        return Ok(false);
    }
    if run.state == RunState::Filling && run.listed_at.is_none() {
        for _ in 0..ROUND {
            let is_more = pending::list_page(&ctx.db, &run).await?;
            let Some(read) = reprocess::reread(&ctx.db, &run).await? else { return Ok(false) };
            run = read;
            if !is_more {
                break;
            }
        }
    }
    let made = make_jobs(ctx, &run, &run.pipeline, images_a_job(ctx, &run)).await?
        + make_jobs(ctx, &run, &run.from_pipeline, 1).await?;
    if run.state == RunState::Filling {
        pending::measure_pace(&ctx.db, &run).await?;
        if pending::complete(&ctx.db, &run).await? {
            tracing::info!(run.id = %run.id, collection.id = %run.collection_id, pipeline = run.pipeline, "a reprocess run is complete");
        }
    }
    Ok(run.state == RunState::Filling || made > 0)
}

/// Makes jobs of what lacks something of a pipeline, as far as there is room for them; returns how many.
async fn make_jobs(ctx: &WorkerContext, run: &Run, pipeline: &str, images_a_job: usize) -> Result<usize, DbErr> {
    let open = pending::open_jobs(&ctx.db, run.collection_id, pipeline).await?;
    let room = OPEN_JOBS.saturating_sub(open);
    // A few jobs at a time are not worth a transaction while many are left.
    if room <= OPEN_JOBS / 4 {
        return Ok(0);
    }
    let made = pending::make_jobs(&ctx.db, run, pipeline, room * images_a_job, images_a_job).await?;
    if made > 0 {
        ctx.listed.notify_one();
    }
    Ok(made)
}

/// A job that reads pictures is as long as one that indexes.
fn images_a_job(ctx: &WorkerContext, run: &Run) -> usize {
    let known = ctx.engines.models().now();
    let reads_crops = known.find(&run.pipeline).is_some_and(|pipeline| pipeline.reads_crops());
    if run.changes_detector() || !reads_crops { 1 } else { IMAGES_OF_CROPS }
}

/// Deletes what goes with a run, once what stays lacks nothing that was made of the other one alone.
async fn end(ctx: &WorkerContext, run: &Run) -> Result<bool, DbErr> {
    pending::give_up_ended(&ctx.db, run).await?;
    if let Some((kept, _)) = run.kept_and_gone() {
        make_jobs(ctx, run, kept.pipeline, 1).await?;
    }
    for _ in 0..ROUND {
        let slice = prune::slice(&ctx.db, run).await?;
        for job in slice.cancelled {
            ctx.finished.announce(job);
        }
        if slice.is_last {
            tracing::info!(run.id = %run.id, collection.id = %run.collection_id, "a reprocess run has ended");
            return Ok(false);
        }
        if slice.waits {
            return Ok(false);
        }
    }
    Ok(true)
}
