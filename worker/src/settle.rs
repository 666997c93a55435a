//! How the end of an attempt is written: its results, a retry, or that it is given up. Through an outage of the database
//! too: work that is done is not done twice for that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sea_orm::{DatabaseTransaction, DbErr};
use shared::db::batches::deltas;
use shared::db::entity::job::Model as Job;
use shared::db::jobs::claims::{ClaimedJob, heartbeat};
use shared::db::jobs::settle::{Fence, Outcome, Retry, fence, fences, finish, finish_all, go_on, retry};
use shared::db::{images, is_deadlock, is_outage};
use shared::failpoints::failpoint;
use shared::ids::{BatchId, ClaimId, JobId};
use shared::job::{JobArgs, JobState, Problem};
use shared::telemetry::metrics;
use shared::telemetry::trace::TraceContext;
use tokio::time::Instant;

use crate::context::WorkerContext;
use crate::jobs::{self, Done, JobError, Recorded, Refused};
use crate::retry as backoff;
use crate::stop::Stop;
use crate::stored::{StoredCrops, discard, try_discard};

/// How long a delivery, or the result of an attempt, is kept while the database is out of reach. Far below the half hour
/// after which a broker takes a delivery back.
const PATIENCE: Duration = Duration::from_secs(300);

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum End {
    Done(Done),
    Error(JobError),
    /// A client no longer wants the job.
    Cancelled,
}

/// An attempt that ended and is to be written.
pub(crate) struct Ended {
    pub(crate) claimed: Arc<ClaimedJob>,
    /// What it has stored.
    pub(crate) crops: StoredCrops,
    pub(crate) end: End,
    /// How long it took.
    pub(crate) run: Duration,
}

/// What became of a job when its attempt was written.
enum Written {
    Ended(JobState),
    /// It waits for its next attempt.
    Requeued,
    /// It has done a part of its work and waits for the next.
    GoesOn,
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

/// Records how attempts of one claim ended: together where that is possible, else each by itself, so that what is wrong
/// with one of them costs the others nothing.
pub(crate) async fn settle(ctx: &WorkerContext, claim: ClaimId, ended: &[Ended], stop: &Stop) -> Result<(), DbErr> {
    discard_of_failed(ctx, ended).await;
    // What is tried again, may be rejected by its rows, or goes on has a transaction of its own.
    let by_itself = |ended: &&Ended| match &ended.end {
        End::Error(JobError::Transient(_)) => true,
        End::Done(done) => done.is_recorded_alone(),
        _ => false,
    };
    let (single, together): (Vec<&Ended>, Vec<&Ended>) = ended.iter().partition(by_itself);
    if together.len() > 1 {
        match write_through_outages(ctx, claim, &together, stop).await {
            Ok(written) => {
                report(ctx, &together, &written);
            }
            Err(error) if is_outage(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, jobs = together.len(), "record results together; each is recorded by itself");
                for ended in &together {
                    settle_one(ctx, claim, ended, stop).await?;
                }
            }
        }
    } else if let Some(ended) = together.first() {
        settle_one(ctx, claim, ended, stop).await?;
    }
    for ended in single {
        settle_one(ctx, claim, ended, stop).await?;
    }
    Ok(())
}

async fn settle_one(ctx: &WorkerContext, claim: ClaimId, ended: &Ended, stop: &Stop) -> Result<(), DbErr> {
    let one = [ended];
    let written = match write_through_outages(ctx, claim, &one, stop).await {
        Err(error) if !is_outage(&error) && matches!(ended.end, End::Done(_)) => {
            let error = anyhow::Error::new(error).context("record the result");
            try_discard(&ctx.db.write, &[&ended.crops]).await;
            vec![try_again(ctx, claim, &ended.claimed, &error).await?]
        }
        written => written?,
    };
    report(ctx, &one, &written);
    Ok(())
}

/// Leaves the crops to the sweeper that were stored for what is not recorded. Before the ends of the jobs are written: who
/// waits for these, to erase somebody, finds the crops then.
async fn discard_of_failed(ctx: &WorkerContext, ended: &[Ended]) {
    let failed = ended.iter().filter(|ended| !matches!(ended.end, End::Done(_)));
    try_discard(&ctx.db.write, &failed.map(|ended| &ended.crops).collect::<Vec<_>>()).await;
}

async fn write_through_outages(
    ctx: &WorkerContext,
    claim: ClaimId,
    ended: &[&Ended],
    stop: &Stop,
) -> Result<Vec<Written>, DbErr> {
    let mut outage = Outage::new();
    loop {
        match write(ctx, claim, ended).await {
            Err(error) if outage.wait(ctx, &error, stop).await => {
                // Once the database is back the claim must not look dead. Whether it still stands the fence decides.
                let _ = heartbeat(&ctx.db, claim, ctx.config.worker.lease()).await;
            }
            written => return written,
        }
    }
}

/// Writes the ends in one transaction, with the result rows of those that have any. One that is to be tried again, or
/// that has to roll back what it wrote, comes alone.
async fn write(ctx: &WorkerContext, claim: ClaimId, ended: &[&Ended]) -> Result<Vec<Written>, DbErr> {
    if let [Ended { claimed, end: End::Error(JobError::Transient(error)), .. }] = ended {
        return Ok(vec![try_again(ctx, claim, claimed, error).await?]);
    }
    let txn = ctx.db.begin().await?;
    let ids: Vec<JobId> = ended.iter().map(|e| e.claimed.job.id).collect();
    let fences = fences(&txn, claim, &ids).await?;
    let fence = |ended: &Ended| fences.get(&ended.claimed.job.id).copied().unwrap_or(Fence::Lost);
    let held = ended.iter().filter(|e| fence(e) == Fence::Held);
    let done: Vec<_> = held
        .filter_map(|e| match &e.end {
            End::Done(done) => Some((&e.claimed.job, done)),
            _ => None,
        })
        .collect();
    let recorded = jobs::record(&txn, &ctx.secret_key, &done).await?;
    if let [Recorded { answer: Err(refused), .. }] = recorded.as_slice() {
        // The rows written so far go, the refusal stays.
        let outcome = refusal(refused.clone());
        txn.rollback().await?;
        let [ended] = ended else { return Err(jobs::recorded_alone()) };
        try_discard(&ctx.db.write, &[&ended.crops]).await;
        return Ok(vec![conclude(ctx, claim, &ended.claimed, outcome).await?]);
    }
    if let ([Recorded { goes_on: Some(args), .. }], [ended]) = (recorded.as_slice(), ended) {
        if !go_on(&txn, claim, ended.claimed.job.id, args).await? {
            return Ok(vec![Written::Nothing]);
        }
        failpoint("before_commit");
        txn.commit().await?;
        return Ok(vec![Written::GoesOn]);
    }
    append_faces(&txn, &done, &recorded).await?;
    let mut recorded = recorded.into_iter();
    let outcomes: Vec<(JobId, Outcome)> = ended
        .iter()
        .filter_map(|e| {
            let outcome = match (fence(e), &e.end) {
                // What is to be tried again came alone, above.
                (Fence::Lost, _) | (Fence::Held, End::Error(JobError::Transient(_))) => return None,
                // A client that cancelled gets that answer, whatever else the attempt came to.
                (Fence::Cancelled, _) | (_, End::Cancelled) => Outcome::Cancelled,
                (Fence::Held, End::Done(_)) => match recorded.next()?.answer {
                    Ok(answer) => Outcome::Succeeded(answer),
                    Err(refused) => refusal(refused),
                },
                (Fence::Held, End::Error(JobError::Rejected(problem))) => Outcome::Rejected(problem.clone()),
                (Fence::Held, End::Error(JobError::Failed(problem))) => Outcome::Failed(problem.clone()),
            };
            Some((e.claimed.job.id, outcome))
        })
        .collect();
    remember_no_pictures(&txn, ended, &outcomes).await?;
    let finished = finish_all(&txn, claim, &outcomes.iter().map(|(id, o)| (*id, o)).collect::<Vec<_>>()).await?;
    // In the same transaction, for the same reason as what failed.
    discard(&txn, &left_over(ended, &outcomes)).await?;
    failpoint("before_commit");
    txn.commit().await?;
    let state = |id: &JobId| outcomes.iter().find(|(job, _)| job == id).map(|(_, outcome)| outcome.state());
    let written = |id: &JobId| state(id).filter(|_| finished.contains(id)).map_or(Written::Nothing, Written::Ended);
    Ok(ids.iter().map(written).collect())
}

/// The crops of what was done of which the record may have left some out, or that is not recorded after all.
fn left_over<'e>(ended: &[&'e Ended], outcomes: &[(JobId, Outcome)]) -> Vec<&'e StoredCrops> {
    let has_all = |e: &Ended| {
        let succeeded = |(id, o): &(JobId, Outcome)| *id == e.claimed.job.id && matches!(o, Outcome::Succeeded(_));
        // A reembed may leave some of them out, as of faces that are nobody's of an image of which single ones were enrolled.
        outcomes.iter().any(succeeded) && !matches!(e.end, End::Done(Done::Reembed(_)))
    };
    let done = ended.iter().filter(|e| matches!(e.end, End::Done(_)) && !has_all(e));
    done.map(|e| &e.crops).collect()
}

fn refusal(refused: Refused) -> Outcome {
    match refused {
        Refused::Rejected(problem) => Outcome::Rejected(problem),
        Refused::Erased => Outcome::Discarded,
    }
}

/// Remembers the places that were listed and hold no picture, so that a batch which lists them again leaves them.
async fn remember_no_pictures(
    txn: &DatabaseTransaction,
    ended: &[&Ended],
    outcomes: &[(JobId, Outcome)],
) -> Result<(), DbErr> {
    let is_no_picture = |job: JobId| {
        let outcome = outcomes.iter().find(|(id, _)| *id == job).map(|(_, outcome)| outcome);
        matches!(outcome, Some(Outcome::Rejected(problem)) if problem.code.starts_with("image_"))
    };
    let listed = ended.iter().filter(|e| is_no_picture(e.claimed.job.id)).filter_map(|e| match &e.claimed.args {
        Ok(JobArgs::Index { image }) => Some((image.uri()?, image.fingerprint()?)),
        _ => None,
    });
    let places: Vec<(String, &str)> = listed.collect();
    let Some(first) = ended.first() else { return Ok(()) };
    let seen = places.iter().map(|(uri, fingerprint)| (Some(uri.as_str()), Some(*fingerprint), None));
    images::remember_sources(txn, first.claimed.job.collection_id, seen).await
}

/// Adds the faces that were found to the accounts of their jobs' batches.
async fn append_faces(txn: &DatabaseTransaction, done: &[(&Job, &Done)], recorded: &[Recorded]) -> Result<(), DbErr> {
    let mut faces: BTreeMap<BatchId, usize> = BTreeMap::new();
    for ((job, _), recorded) in done.iter().zip(recorded) {
        if let Some(batch) = job.batch_id {
            *faces.entry(batch).or_default() += recorded.faces;
        }
    }
    for (batch, faces) in faces {
        deltas::append_faces(txn, batch, faces).await?;
    }
    Ok(())
}

/// Tells of what was written: the log, the metrics, and whoever waits.
fn report(ctx: &WorkerContext, ended: &[&Ended], written: &[Written]) {
    if written.iter().any(|w| matches!(w, Written::Ended(_))) {
        failpoint("after_commit");
    }
    for (Ended { claimed, run, .. }, written) in ended.iter().zip(written) {
        let job = &claimed.job;
        let _span = span(claimed).entered();
        match written {
            Written::Ended(state) => {
                let duration_ms = run.as_secs_f64() * 1e3;
                let (kind, state_name) = (job.kind.as_str(), state.as_str());
                // A million lines of a batch would hide everything else.
                if job.batch_id.is_some() {
                    tracing::debug!(job.id = %job.id, job.kind = kind, collection.id = %job.collection_id, attempt = job.attempt, state = state_name, duration_ms, "job ended");
                } else {
                    tracing::info!(job.id = %job.id, job.kind = kind, collection.id = %job.collection_id, attempt = job.attempt, state = state_name, duration_ms, "job ended");
                }
                metrics::job_ended(job.kind, job.lane, *state, *run);
                ctx.finished.announce(job.id);
            }
            Written::Requeued => metrics::attempt_failed(job.kind),
            Written::GoesOn => {
                let duration_ms = run.as_secs_f64() * 1e3;
                tracing::debug!(job.id = %job.id, collection.id = %job.collection_id, duration_ms, "a part of a job is done");
            }
            Written::Nothing => {
                metrics::stale_write_refused();
                tracing::warn!(job.id = %job.id, "the claim was taken away, nothing is written");
            }
        }
    }
}

/// The span of an attempt: all that is logged in it shows which request it answers.
pub(crate) fn span(claimed: &ClaimedJob) -> tracing::Span {
    let job = &claimed.job;
    let trace = job.traceparent.as_deref().and_then(TraceContext::parse);
    let trace = trace.as_ref().map(TraceContext::trace_id);
    tracing::info_span!("job", job.id = %job.id, job.kind = job.kind.as_str(), attempt = job.attempt, trace.id = trace)
}

/// Ends the job without results.
async fn conclude(
    ctx: &WorkerContext,
    claim: ClaimId,
    claimed: &ClaimedJob,
    outcome: Outcome,
) -> Result<Written, DbErr> {
    let txn = ctx.db.begin().await?;
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
