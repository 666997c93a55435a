//! One delivery through claim and work; `settle` writes how each attempt ended.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::OptionFuture;
use sea_orm::DbErr;
use shared::db::jobs::claims::{Claim, ClaimedJob, Heartbeat, Wanted, claim, heartbeat};
use shared::db::jobs::settle::release;
use shared::failpoints::failpoint;
use shared::ids::{ClaimId, JobId};
use shared::job::{JobArgs, Problem};
use shared::queue::{Delivery, Message};
use shared::telemetry::metrics;
use shared::telemetry::trace::TraceContext;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};
use tokio::task::{self, AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::Instrument as _;

use crate::context::WorkerContext;
use crate::jobs::{self, ClaimCollections, JobError};
use crate::settle::{End, Ended, Outage, settle, span};
use crate::stop::Stop;
use crate::stored::{StoredCrops, try_discard};

/// Jobs that have ended their process before run while nothing else does.
pub type Solitude = Arc<RwLock<()>>;

/// The level of `jobs.alone` at which a job runs with nothing else in the process.
const ALONE_IN_PROCESS: i32 = 2;

/// Ends of attempts that are recorded together at most: a transaction costs a database as much as the rows of ten jobs.
const GROUP: usize = 64;
/// How long the first of them waits for others.
const RECORD_WITHIN: Duration = Duration::from_millis(500);

/// Who may run beside a delivery's jobs.
enum Beside {
    /// Nobody: the solitude is held until the delivery is settled.
    Nobody(#[expect(dead_code, reason = "it is held, not read")] OwnedRwLockWriteGuard<()>),
    /// Others: each attempt holds its part of the solitude while it runs.
    Others(Solitude),
}

/// Takes a delivery to its end: every job of it settled, or given back because the worker stops.
pub async fn handle(ctx: &WorkerContext, delivery: Box<dyn Delivery>, solitude: &Solitude, stop: &Stop) {
    let message = delivery.message().clone();
    let beside = async {
        if message.alone >= ALONE_IN_PROCESS {
            Beside::Nobody(Arc::clone(solitude).write_owned().await)
        } else {
            Beside::Others(Arc::clone(solitude))
        }
    };
    let beside = tokio::select! {
        biased;
        // Dropped unsettled, the delivery is the queue's again.
        () = stop.asked() => return,
        beside = beside => beside,
    };
    failpoint("before_claim");
    let trace = message.traceparent.as_deref().and_then(TraceContext::parse);
    let span = tracing::info_span!("delivery", trace.id = trace.as_ref().map(TraceContext::trace_id));
    let settled = work(ctx, &message, &beside, stop).instrument(span).await;
    drop(beside);
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

async fn work(ctx: &WorkerContext, message: &Message, beside: &Beside, stop: &Stop) -> Result<(), DbErr> {
    let Some(Claim { id, jobs }) = claim_through_outages(ctx, message, stop).await? else {
        tracing::debug!(jobs = message.jobs.len(), "nothing to claim: doubled, cancelled or not due");
        return Ok(());
    };
    failpoint("after_claim");
    for claimed in &jobs {
        if claimed.job.attempt == 1 && !claimed.args.as_ref().is_ok_and(JobArgs::goes_on) {
            metrics::job_started(claimed.job.lane, waited(claimed));
        }
    }
    Attempts::begin(ctx, id, jobs, beside, stop).run_to_the_end(stop).await
}

/// The attempts of one claim, all under way at once; `stages` says how far each may go.
struct Attempts<'a> {
    ctx: &'a WorkerContext,
    claim: ClaimId,
    /// `None` of one that was not begun.
    tasks: JoinSet<Option<(End, Duration)>>,
    running: HashMap<task::Id, Running>,
    /// Jobs that were not begun because the worker stops.
    left: Vec<JobId>,
    /// What has ended and is not recorded.
    ended: Vec<Ended>,
    /// When the first of these has to be recorded.
    record_by: Instant,
}

/// An attempt that is under way.
struct Running {
    claimed: Arc<ClaimedJob>,
    crops: StoredCrops,
    handle: AbortHandle,
}

/// What a look at the claim or at the clock says.
enum Next {
    GoOn,
    /// The claim was taken away.
    Lost,
    /// The grace period is over.
    Stopping,
}

impl<'a> Attempts<'a> {
    fn begin(ctx: &'a WorkerContext, claim: ClaimId, jobs: Vec<ClaimedJob>, beside: &Beside, stop: &Stop) -> Self {
        let mut tasks = JoinSet::new();
        let mut running = HashMap::new();
        let collections = ClaimCollections::default();
        for claimed in jobs {
            let (ctx, claimed, stop) = (ctx.clone(), Arc::new(claimed), stop.clone());
            let collections = collections.clone();
            let (job, span) = (Arc::clone(&claimed), span(&claimed));
            let crops = StoredCrops::default();
            let noted = crops.clone();
            let solitude = match beside {
                Beside::Nobody(_) => None,
                Beside::Others(solitude) => Some(Arc::clone(solitude)),
            };
            let run = async move {
                let room = async {
                    let beside = OptionFuture::from(solitude.map(RwLock::read_owned)).await;
                    (ctx.stages.begin(job.job.lane).await, beside)
                };
                let _room = tokio::select! {
                    biased;
                    () = stop.asked() => return None,
                    room = room => room,
                };
                let began = Instant::now();
                Some((noted.during(attempt(&ctx, &collections, &job)).await, began.elapsed()))
            };
            let handle = tasks.spawn(run.instrument(span));
            running.insert(handle.id(), Running { claimed, crops, handle });
        }
        Self { ctx, claim, tasks, running, left: Vec::new(), ended: Vec::new(), record_by: Instant::now() }
    }

    async fn run_to_the_end(mut self, stop: &Stop) -> Result<(), DbErr> {
        let mut beat = tokio::time::interval(Duration::from_secs_f64(self.ctx.config.worker.heartbeat_s));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beat.reset();
        while !self.running.is_empty() || !self.ended.is_empty() {
            let next = tokio::select! {
                biased;
                () = stop.over() => Next::Stopping,
                _ = beat.tick() => self.renew().await,
                Some(joined) = self.tasks.join_next_with_id() => self.take(joined),
                () = tokio::time::sleep_until(self.record_by), if !self.ended.is_empty() => Next::GoOn,
            };
            match next {
                Next::Lost => {
                    metrics::stale_write_refused();
                    let jobs = self.running.len() + self.ended.len();
                    tracing::warn!(jobs, "the claim was taken away, nothing is written");
                    self.tasks.abort_all();
                    let ended = self.ended.iter().map(|ended| &ended.crops);
                    let crops: Vec<_> = self.running.values().map(|running| &running.crops).chain(ended).collect();
                    try_discard(&self.ctx.db.write, &crops).await;
                    return Ok(());
                }
                Next::Stopping => return self.give_back(stop).await,
                Next::GoOn => {}
            }
            let is_due = self.running.is_empty() || self.ended.len() >= GROUP || Instant::now() >= self.record_by;
            if !self.ended.is_empty() && is_due {
                let group: Vec<Ended> = self.ended.drain(..self.ended.len().min(GROUP)).collect();
                settle(self.ctx, self.claim, &group, stop).await?;
            }
            self.give_up_left().await?;
        }
        Ok(())
    }

    /// Gives back what was not begun, as soon as that is known.
    async fn give_up_left(&mut self) -> Result<(), DbErr> {
        let left = std::mem::take(&mut self.left);
        if left.is_empty() { Ok(()) } else { release(&self.ctx.db, self.claim, &left).await }
    }

    /// Takes the attempt that ended, and those that did so meanwhile.
    fn take(&mut self, joined: Result<(task::Id, Option<(End, Duration)>), JoinError>) -> Next {
        let mut joined = Some(joined);
        while let Some(one) = joined.take().or_else(|| self.tasks.try_join_next_with_id()) {
            let (id, end, run) = match one {
                Ok((id, Some((end, run)))) => (id, end, run),
                Ok((id, None)) => {
                    self.left.extend(self.running.remove(&id).map(|left| left.claimed.job.id));
                    continue;
                }
                // One that was cancelled is in `ended` already.
                Err(error) if error.is_cancelled() => continue,
                Err(error) => {
                    let panicked = JobError::Transient(anyhow::anyhow!("the job's task panicked"));
                    (error.id(), End::Error(panicked), Duration::ZERO)
                }
            };
            if let Some(Running { claimed, crops, .. }) = self.running.remove(&id) {
                self.add(Ended { claimed, crops, end, run });
            }
        }
        Next::GoOn
    }

    fn add(&mut self, ended: Ended) {
        if self.ended.is_empty() {
            self.record_by = Instant::now() + RECORD_WITHIN;
        }
        self.ended.push(ended);
    }

    /// Renews the claim, and ends what clients have cancelled.
    async fn renew(&mut self) -> Next {
        match heartbeat(&self.ctx.db, self.claim, self.ctx.config.worker.lease()).await {
            Ok(Heartbeat::Held(cancelled)) => {
                let is_cancelled = |c: &ClaimedJob| cancelled.contains(&c.job.id);
                let gone = self.running.extract_if(|_, running| is_cancelled(&running.claimed)).collect::<Vec<_>>();
                for (_, Running { claimed, crops, handle }) in gone {
                    handle.abort();
                    self.add(Ended { claimed, crops, end: End::Cancelled, run: Duration::ZERO });
                }
                Next::GoOn
            }
            Ok(Heartbeat::Lost) => Next::Lost,
            Err(error) => {
                // The fence decides at the end whether the claim has outlived the gap.
                tracing::warn!(%error, "renew a claim");
                Next::GoOn
            }
        }
    }

    /// Records what has ended and gives the rest back, for another worker.
    async fn give_back(mut self, stop: &Stop) -> Result<(), DbErr> {
        self.tasks.abort_all();
        if !self.ended.is_empty() {
            settle(self.ctx, self.claim, &std::mem::take(&mut self.ended), stop).await?;
        }
        let crops: Vec<_> = self.running.values().map(|running| &running.crops).collect();
        try_discard(&self.ctx.db.write, &crops).await;
        let running = self.running.values().map(|running| running.claimed.job.id);
        let left: Vec<JobId> = running.chain(self.left).collect();
        if left.is_empty() {
            return Ok(());
        }
        tracing::info!(jobs = left.len(), "the grace period is over, jobs are given back");
        release(&self.ctx.db, self.claim, &left).await
    }
}

/// Runs the job's own code; a panic or a timeout in it is an error of this job only.
async fn attempt(ctx: &WorkerContext, collections: &ClaimCollections, claimed: &ClaimedJob) -> End {
    let args = match &claimed.args {
        Ok(args) => args,
        Err(error) => {
            let detail = format!("its arguments cannot be read by this version: {error}");
            return End::Error(JobError::Failed(Problem::new("internal", detail)));
        }
    };
    let limit = Duration::from_secs_f64(ctx.config.worker.job_timeout_s);
    let run = AssertUnwindSafe(jobs::run(ctx, collections, &claimed.job, args)).catch_unwind();
    match tokio::time::timeout(limit, run).await {
        Ok(Ok(Ok(done))) => End::Done(done),
        Ok(Ok(Err(error))) => End::Error(error),
        Ok(Err(_)) => End::Error(JobError::Transient(anyhow::anyhow!("the job's code panicked"))),
        Err(_) => End::Error(JobError::Transient(anyhow::anyhow!("no answer within {} s", limit.as_secs_f64()))),
    }
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
