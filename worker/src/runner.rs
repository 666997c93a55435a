//! One delivery through claim, work and record.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use sea_orm::DbErr;
use shared::db::jobs::claims::{Claim, ClaimedJob, Heartbeat, claim, heartbeat};
use shared::db::jobs::settle::{Fence, Outcome, fence, finish, release, retry};
use shared::ids::{ClaimId, JobId};
use shared::job::Problem;
use shared::queue::Delivery;
use tokio::sync::RwLock;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::context::WorkerContext;
use crate::jobs::{self, Done, JobError};
use crate::retry;

/// Jobs that have ended their process before run while nothing else does.
pub type Solitude = Arc<RwLock<()>>;

/// The level of `jobs.alone` at which a job runs with nothing else in the process.
const ALONE_IN_PROCESS: i32 = 2;

/// How an attempt ended.
enum End {
    Done(Done),
    Error(JobError),
    /// A client no longer wants the job.
    Cancelled,
    /// The claim was taken away.
    Lost,
    /// The worker stops and the grace period is over.
    Stopping,
}

/// Takes a delivery to its end: every job of it settled, or given back because the worker stops.
pub async fn handle(ctx: &WorkerContext, delivery: Box<dyn Delivery>, solitude: &Solitude, stop: &CancellationToken) {
    if stop.is_cancelled() {
        // Dropped unsettled, it is the queue's again.
        return;
    }
    let message = delivery.message().clone();
    let settled = if message.alone >= ALONE_IN_PROCESS {
        let _alone = solitude.write().await;
        work(ctx, &message.jobs, stop).await
    } else {
        let _beside_others = solitude.read().await;
        work(ctx, &message.jobs, stop).await
    };
    match settled {
        Ok(()) => {
            if let Err(error) = delivery.ack().await {
                tracing::warn!(%error, "acknowledge a delivery; it will come again and find nothing to claim");
            }
        }
        // The delivery comes again; a job that is still claimed by then is the reaper's.
        Err(error) => {
            tracing::error!(%error, "the database failed while a delivery was worked on");
            tokio::time::sleep(Duration::from_secs_f64(ctx.config.worker.retry_base_s)).await;
        }
    }
}

async fn work(ctx: &WorkerContext, ids: &[JobId], stop: &CancellationToken) -> Result<(), DbErr> {
    let lease = ctx.config.worker.lease();
    let Some(Claim { id, jobs }) = claim(&ctx.db, &owner(), ids, lease).await? else {
        tracing::debug!(jobs = ids.len(), "nothing to claim: doubled, cancelled or not due");
        return Ok(());
    };
    let mut beat = tokio::time::interval(Duration::from_secs_f64(ctx.config.worker.heartbeat_s));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat.reset();
    let mut jobs = jobs.into_iter();
    while let Some(job) = jobs.next() {
        let began = Instant::now();
        let end = tokio::select! {
            end = attempt(ctx, &job) => end,
            end = interrupted(ctx, id, job.job.id, &mut beat) => end,
            () = grace_over(ctx, stop) => End::Stopping,
        };
        if matches!(end, End::Lost) {
            tracing::warn!(job.id = %job.job.id, "the claim was taken away, nothing is written");
            return Ok(());
        }
        if matches!(end, End::Stopping) {
            let left: Vec<JobId> = std::iter::once(&job).chain(jobs.as_slice()).map(|j| j.job.id).collect();
            tracing::info!(jobs = left.len(), "the grace period is over, jobs are given back");
            return release(&ctx.db, id, &left).await;
        }
        settle(ctx, id, &job, end, began.elapsed()).await?;
    }
    Ok(())
}

/// Runs the job's own code; a panic or a timeout in it is an error of this job only.
async fn attempt(ctx: &WorkerContext, claimed: &ClaimedJob) -> End {
    let args = match &claimed.args {
        Ok(args) => args,
        Err(error) => {
            let detail = format!("its arguments cannot be read by this version: {error}");
            return End::Error(JobError::Failed(Problem::new("internal", detail)));
        }
    };
    let limit = Duration::from_secs_f64(ctx.config.worker.job_timeout_s);
    let run = AssertUnwindSafe(jobs::run(ctx, &claimed.job, args)).catch_unwind();
    match tokio::time::timeout(limit, run).await {
        Ok(Ok(Ok(done))) => End::Done(done),
        Ok(Ok(Err(error))) => End::Error(error),
        Ok(Err(_)) => End::Error(JobError::Transient(anyhow::anyhow!("the job's code panicked"))),
        Err(_) => End::Error(JobError::Transient(anyhow::anyhow!("no answer within {} s", limit.as_secs_f64()))),
    }
}

/// Renews the claim until a client cancels the job or the claim is gone.
async fn interrupted(ctx: &WorkerContext, claim: ClaimId, job: JobId, beat: &mut Interval) -> End {
    loop {
        beat.tick().await;
        match heartbeat(&ctx.db, claim, ctx.config.worker.lease()).await {
            Ok(Heartbeat::Held(cancelled)) if cancelled.contains(&job) => return End::Cancelled,
            Ok(Heartbeat::Held(_)) => {}
            Ok(Heartbeat::Lost) => return End::Lost,
            // The fence decides at the end whether the claim has outlived the gap.
            Err(error) => tracing::warn!(%error, "renew a claim"),
        }
    }
}

async fn grace_over(ctx: &WorkerContext, stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(Duration::from_secs_f64(ctx.config.worker.grace_s)).await;
}

/// Records how the attempt ended.
async fn settle(
    ctx: &WorkerContext,
    claim: ClaimId,
    claimed: &ClaimedJob,
    end: End,
    took: Duration,
) -> Result<(), DbErr> {
    let job = &claimed.job;
    let outcome = match end {
        End::Done(done) => match record(ctx, claim, claimed, &done).await {
            Ok(outcome) => outcome,
            Err(error) => {
                let error = anyhow::Error::new(error).context("record the result");
                match retry_or_give_up(ctx, claim, claimed, &error).await? {
                    Some(outcome) => Some(outcome),
                    None => return Ok(()),
                }
            }
        },
        End::Error(JobError::Rejected(problem)) => Some(Outcome::Rejected(problem)),
        End::Error(JobError::Failed(problem)) => Some(Outcome::Failed(problem)),
        End::Error(JobError::Transient(error)) => match retry_or_give_up(ctx, claim, claimed, &error).await? {
            Some(outcome) => Some(outcome),
            None => return Ok(()),
        },
        End::Cancelled => Some(Outcome::Cancelled),
        End::Lost | End::Stopping => None,
    };
    let Some(outcome) = outcome else {
        tracing::warn!(job.id = %job.id, "the claim was taken away, nothing is written");
        return Ok(());
    };
    if !matches!(outcome, Outcome::Succeeded(_)) {
        let txn = ctx.db.begin().await?;
        // A client that cancelled gets that answer, whatever else the attempt came to.
        let held = fence(&txn, claim, job.id).await?;
        let outcome = if held == Fence::Cancelled { Outcome::Cancelled } else { outcome.clone() };
        finish(&txn, claim, job.id, &outcome).await?;
        txn.commit().await?;
    }
    #[expect(clippy::cast_possible_truncation, reason = "a job is over long before 2^64 ms")]
    let duration_ms = took.as_millis() as u64;
    let state = outcome_name(&outcome);
    tracing::info!(job.id = %job.id, job.kind = job.kind.as_str(), collection.id = %job.collection_id, attempt = job.attempt, state, duration_ms, "job ended");
    ctx.finished.announce(job.id);
    Ok(())
}

/// Writes the result rows and the end of the job in one transaction. A rejection that only the database could tell is
/// returned for the caller to write, without the rows; `None` when the claim is gone.
async fn record(
    ctx: &WorkerContext,
    claim: ClaimId,
    claimed: &ClaimedJob,
    done: &Done,
) -> Result<Option<Outcome>, DbErr> {
    let job = &claimed.job;
    let txn = ctx.db.begin().await?;
    match fence(&txn, claim, job.id).await? {
        Fence::Lost => return Ok(None),
        Fence::Cancelled => return Ok(Some(Outcome::Cancelled)),
        Fence::Held => {}
    }
    let outcome = match done.record(&txn, job).await? {
        Ok(answer) => Outcome::Succeeded(answer),
        Err(problem) => return Ok(Some(Outcome::Rejected(problem))),
    };
    if !finish(&txn, claim, job.id, &outcome).await? {
        return Ok(None);
    }
    txn.commit().await?;
    Ok(Some(outcome))
}

/// Puts the job back for another attempt; the outcome that gives up, after the last one.
async fn retry_or_give_up(
    ctx: &WorkerContext,
    claim: ClaimId,
    claimed: &ClaimedJob,
    error: &anyhow::Error,
) -> Result<Option<Outcome>, DbErr> {
    let job = &claimed.job;
    let worker = &ctx.config.worker;
    let error = format!("{error:#}");
    if job.attempt >= worker.max_attempts {
        tracing::error!(job.id = %job.id, job.kind = job.kind.as_str(), attempt = job.attempt, error, "the last attempt failed");
        let detail = format!("gave up after {} attempts, the last one: {error}", job.attempt);
        return Ok(Some(Outcome::Failed(Problem::new("attempts_exhausted", detail))));
    }
    let delay = retry::delay(worker, job.attempt);
    let retry_in_s = delay.as_secs_f64();
    tracing::warn!(job.id = %job.id, job.kind = job.kind.as_str(), attempt = job.attempt, retry_in_s, error, "the attempt failed");
    let problem = Problem::new("attempt_failed", format!("attempt {} failed: {error}", job.attempt));
    if !retry(&ctx.db, claim, job.id, delay, &problem).await? {
        ctx.finished.announce(job.id);
    }
    Ok(None)
}

fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded(_) => "succeeded",
        Outcome::Rejected(_) => "rejected",
        Outcome::Failed(_) => "failed",
        Outcome::Cancelled => "cancelled",
    }
}

/// Who holds a claim, for an operator who looks at the table.
fn owner() -> String {
    format!("pid {}", std::process::id())
}
