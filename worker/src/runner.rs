//! One delivery through claim and work; `settle` writes how each attempt ended.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use sea_orm::DbErr;
use shared::db::jobs::claims::{Claim, ClaimedJob, Heartbeat, Wanted, claim, heartbeat};
use shared::db::jobs::settle::release;
use shared::failpoints::failpoint;
use shared::ids::{ClaimId, JobId};
use shared::job::Problem;
use shared::queue::{Delivery, Message};
use shared::telemetry::metrics;
use shared::telemetry::trace::TraceContext;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tracing::Instrument as _;

use crate::context::WorkerContext;
use crate::jobs::{self, JobError};
use crate::settle::{End, Outage, settle};
use crate::stop::Stop;

/// Jobs that have ended their process before run while nothing else does.
pub type Solitude = Arc<RwLock<()>>;

/// The level of `jobs.alone` at which a job runs with nothing else in the process.
const ALONE_IN_PROCESS: i32 = 2;

/// Who may run beside this delivery's jobs, for as long as it is held.
enum Turn<'a> {
    Alone(#[expect(dead_code, reason = "it is held, not read")] RwLockWriteGuard<'a, ()>),
    BesideOthers(#[expect(dead_code, reason = "it is held, not read")] RwLockReadGuard<'a, ()>),
}

/// Takes a delivery to its end: every job of it settled, or given back because the worker stops.
pub async fn handle(ctx: &WorkerContext, delivery: Box<dyn Delivery>, solitude: &Solitude, stop: &Stop) {
    let message = delivery.message().clone();
    let turn = async {
        if message.alone >= ALONE_IN_PROCESS {
            Turn::Alone(solitude.write().await)
        } else {
            Turn::BesideOthers(solitude.read().await)
        }
    };
    let turn = tokio::select! {
        biased;
        // Dropped unsettled, the delivery is the queue's again.
        () = stop.asked() => return,
        turn = turn => turn,
    };
    failpoint("before_claim");
    let settled = work(ctx, &message, stop).await;
    drop(turn);
    match settled {
        Ok(()) => {
            failpoint("before_ack");
            if let Err(error) = delivery.ack().await {
                tracing::warn!(%error, "acknowledge a delivery; it will come again and find nothing to claim");
            }
        }
        // The delivery comes again; a job that is still claimed by then is the reaper's.
        Err(error) => {
            tracing::error!(%error, "the database failed while a delivery was worked on; it will come again");
            tokio::time::sleep(Duration::from_secs_f64(ctx.config.worker.retry_base_s)).await;
        }
    }
}

async fn claim_through_outages(ctx: &WorkerContext, message: &Message, stop: &Stop) -> Result<Option<Claim>, DbErr> {
    let mut outage = Outage::new();
    let id = ClaimId::new();
    loop {
        let wanted = Wanted { id, jobs: &message.jobs, alone: message.alone, owner: &owner() };
        match claim(&ctx.db, wanted, ctx.config.worker.lease()).await {
            Err(error) if outage.wait(ctx, &error, stop).await => {}
            claimed => return claimed,
        }
    }
}

async fn work(ctx: &WorkerContext, message: &Message, stop: &Stop) -> Result<(), DbErr> {
    let Some(Claim { id, jobs }) = claim_through_outages(ctx, message, stop).await? else {
        tracing::debug!(jobs = message.jobs.len(), "nothing to claim: doubled, cancelled or not due");
        return Ok(());
    };
    failpoint("after_claim");
    let mut beat = tokio::time::interval(Duration::from_secs_f64(ctx.config.worker.heartbeat_s));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat.reset();
    let mut jobs = jobs.into_iter();
    while let Some(job) = jobs.next() {
        if job.job.attempt == 1 {
            metrics::job_started(job.job.lane, waited(&job));
        }
        let began = Instant::now();
        let end = tokio::select! {
            end = attempt(ctx, &job).instrument(span(&job)) => end,
            end = interrupted(ctx, id, job.job.id, &mut beat) => end,
            () = stop.over() => End::Stopping,
        };
        if matches!(end, End::Lost) {
            metrics::stale_write_refused();
            tracing::warn!(job.id = %job.job.id, "the claim was taken away, nothing is written");
            return Ok(());
        }
        if matches!(end, End::Stopping) {
            let left: Vec<JobId> = std::iter::once(&job).chain(jobs.as_slice()).map(|j| j.job.id).collect();
            tracing::info!(jobs = left.len(), "the grace period is over, jobs are given back");
            return release(&ctx.db, id, &left).await;
        }
        settle(ctx, id, &job, &end, began.elapsed(), stop).instrument(span(&job)).await?;
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

/// The span of an attempt: all that is logged in it shows which request it answers.
fn span(claimed: &ClaimedJob) -> tracing::Span {
    let job = &claimed.job;
    let trace = job.traceparent.as_deref().and_then(TraceContext::parse);
    let trace = trace.as_ref().map(TraceContext::trace_id);
    tracing::info_span!("job", job.id = %job.id, job.kind = job.kind.as_str(), attempt = job.attempt, trace.id = trace)
}

/// From the job's creation to its first attempt, by the database's clock.
fn waited(claimed: &ClaimedJob) -> Duration {
    let micros = claimed.job.started_at.unwrap_or(claimed.job.created_at) - claimed.job.created_at;
    Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

/// Who holds a claim, for an operator who looks at the table.
fn owner() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{} pid {}", host.trim(), std::process::id())
}
