//! How the end of an attempt is written: its results, a retry, or that it is given up. Through an outage of the database
//! too: work that is done is not done twice for that.

use std::time::Duration;

use sea_orm::DbErr;
use shared::db::jobs::claims::{ClaimedJob, heartbeat};
use shared::db::jobs::settle::{Fence, Outcome, Retry, fence, finish, retry};
use shared::db::{is_deadlock, is_outage};
use shared::failpoints::failpoint;
use shared::ids::ClaimId;
use shared::job::{JobState, Problem};
use shared::telemetry::metrics;
use tokio::time::Instant;

use crate::context::WorkerContext;
use crate::jobs::{Done, JobError};
use crate::retry as backoff;
use crate::stop::Stop;

/// How long a delivery, or the result of an attempt, is kept while the database is out of reach. Far below the half hour
/// after which a broker takes a delivery back.
const PATIENCE: Duration = Duration::from_secs(300);

/// How an attempt ended.
pub(crate) enum End {
    Done(Done),
    Error(JobError),
    /// A client no longer wants the job.
    Cancelled,
    /// The claim was taken away.
    Lost,
    /// The worker stops and the grace period is over.
    Stopping,
}

/// What became of a job when its attempt was written.
enum Written {
    Ended(JobState),
    /// It waits for its next attempt.
    Requeued,
    /// The claim was taken away: nothing was written.
    Nothing,
}

/// Waits for a database that is out of reach, for one delivery or one result.
pub(crate) struct Outage {
    since: Instant,
    tries: i32,
}

impl Outage {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), tries: 0 }
    }

    /// True when it is time to try again, false when waiting makes no sense: the error is none of the connection's, it
    /// has lasted too long, or the process stops.
    pub(crate) async fn wait(&mut self, ctx: &WorkerContext, error: &DbErr, stop: &Stop) -> bool {
        if !(is_outage(error) || is_deadlock(error)) || self.since.elapsed() > PATIENCE {
            return false;
        }
        self.tries += 1;
        tracing::warn!(%error, tries = self.tries, "the database is out of reach, waiting for it");
        tokio::select! {
            () = stop.over() => false,
            () = tokio::time::sleep(backoff::outage_delay(&ctx.config.worker, self.tries)) => true,
        }
    }
}

/// Records how the attempt that took `run` ended.
pub(crate) async fn settle(
    ctx: &WorkerContext,
    claim: ClaimId,
    claimed: &ClaimedJob,
    end: &End,
    run: Duration,
    stop: &Stop,
) -> Result<(), DbErr> {
    let mut outage = Outage::new();
    let written = loop {
        match write(ctx, claim, claimed, end).await {
            Ok(written) => break written,
            Err(error) if outage.wait(ctx, &error, stop).await => {
                // Once the database is back the claim must not look dead. Whether it still stands the fence decides.
                let _ = heartbeat(&ctx.db, claim, ctx.config.worker.lease()).await;
            }
            Err(error) => return Err(error),
        }
    };
    let job = &claimed.job;
    match written {
        Written::Ended(state) => {
            failpoint("after_commit");
            let duration_ms = run.as_secs_f64() * 1e3;
            let (kind, state_name) = (job.kind.as_str(), state.as_str());
            tracing::info!(job.id = %job.id, job.kind = kind, collection.id = %job.collection_id, attempt = job.attempt, state = state_name, duration_ms, "job ended");
            metrics::job_ended(job.kind, job.lane, state, run);
            ctx.finished.announce(job.id);
        }
        Written::Requeued => metrics::attempt_failed(job.kind),
        Written::Nothing => {
            metrics::stale_write_refused();
            tracing::warn!(job.id = %job.id, "the claim was taken away, nothing is written");
        }
    }
    Ok(())
}

async fn write(ctx: &WorkerContext, claim: ClaimId, claimed: &ClaimedJob, end: &End) -> Result<Written, DbErr> {
    match end {
        End::Done(done) => match record(ctx, claim, claimed, done).await {
            Ok(written) => Ok(written),
            Err(error) if is_outage(&error) || is_deadlock(&error) => Err(error),
            Err(error) => {
                let error = anyhow::Error::new(error).context("record the result");
                try_again(ctx, claim, claimed, &error).await
            }
        },
        End::Error(JobError::Rejected(problem)) => {
            conclude(ctx, claim, claimed, Outcome::Rejected(problem.clone())).await
        }
        End::Error(JobError::Failed(problem)) => conclude(ctx, claim, claimed, Outcome::Failed(problem.clone())).await,
        End::Error(JobError::Transient(error)) => try_again(ctx, claim, claimed, error).await,
        End::Cancelled => conclude(ctx, claim, claimed, Outcome::Cancelled).await,
        End::Lost | End::Stopping => Ok(Written::Nothing),
    }
}

/// Writes the result rows and the end of the job in one transaction.
async fn record(ctx: &WorkerContext, claim: ClaimId, claimed: &ClaimedJob, done: &Done) -> Result<Written, DbErr> {
    let job = &claimed.job;
    let txn = ctx.db.begin().await?;
    match fence(&txn, claim, job.id).await? {
        Fence::Lost => return Ok(Written::Nothing),
        Fence::Cancelled => {
            txn.rollback().await?;
            return conclude(ctx, claim, claimed, Outcome::Cancelled).await;
        }
        Fence::Held => {}
    }
    let outcome = match done.record(&txn, job).await? {
        Ok(answer) => Outcome::Succeeded(answer),
        Err(problem) => {
            // What only the database could tell: the rows written so far go, the rejection stays.
            txn.rollback().await?;
            return conclude(ctx, claim, claimed, Outcome::Rejected(problem)).await;
        }
    };
    if !finish(&txn, claim, job.id, &outcome).await? {
        return Ok(Written::Nothing);
    }
    failpoint("before_commit");
    txn.commit().await?;
    Ok(Written::Ended(JobState::Succeeded))
}

/// Ends the job without results.
async fn conclude(
    ctx: &WorkerContext,
    claim: ClaimId,
    claimed: &ClaimedJob,
    outcome: Outcome,
) -> Result<Written, DbErr> {
    let txn = ctx.db.begin().await?;
    // A client that cancelled gets that answer, whatever else the attempt came to.
    let outcome = match fence(&txn, claim, claimed.job.id).await? {
        Fence::Lost => return Ok(Written::Nothing),
        Fence::Cancelled => Outcome::Cancelled,
        Fence::Held => outcome,
    };
    if !finish(&txn, claim, claimed.job.id, &outcome).await? {
        return Ok(Written::Nothing);
    }
    txn.commit().await?;
    Ok(Written::Ended(outcome.state()))
}

/// Puts the job back for another attempt, or gives it up after the last one.
async fn try_again(
    ctx: &WorkerContext,
    claim: ClaimId,
    claimed: &ClaimedJob,
    error: &anyhow::Error,
) -> Result<Written, DbErr> {
    let job = &claimed.job;
    let worker = &ctx.config.worker;
    let error = format!("{error:#}");
    if job.attempt >= worker.max_attempts {
        tracing::error!(job.id = %job.id, job.kind = job.kind.as_str(), attempt = job.attempt, error, "the last attempt failed");
        let detail = format!("gave up after {} attempts, the last one: {error}", job.attempt);
        return conclude(ctx, claim, claimed, Outcome::Failed(Problem::new("attempts_exhausted", detail))).await;
    }
    let delay = backoff::delay(worker, job.attempt);
    let retry_in_s = delay.as_secs_f64();
    tracing::warn!(job.id = %job.id, job.kind = job.kind.as_str(), attempt = job.attempt, retry_in_s, error, "the attempt failed");
    let problem = Problem::new("attempt_failed", format!("attempt {} failed: {error}", job.attempt));
    Ok(match retry(&ctx.db, claim, job.id, delay, &problem).await? {
        Retry::Requeued => Written::Requeued,
        Retry::Cancelled => Written::Ended(JobState::Cancelled),
        Retry::Lost => Written::Nothing,
    })
}
