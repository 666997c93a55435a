//! The one function that changes a job's state.

use std::time::Duration;

use sea_orm::prelude::*;
use sea_orm::{ActiveEnum, FromQueryResult};

use super::settle::Outcome;
use crate::db::batches::deltas::{self, Delta};
use crate::db::webhooks::events::{self, LISTENED};
use crate::db::{micros, placeholders, rematches, statement};
use crate::ids::{BatchId, ClaimId, CollectionId, JobId};
use crate::job::{JobKind, JobState};

/// Every way in which a job changes its state. `docs/JOB_STATES.md` draws them.
#[derive(Clone, Copy, Debug)]
pub(in crate::db) enum Move<'a> {
    /// queued -> running: a worker begins the next attempt. Not before `run_at`, nor less alone than the job has to run,
    /// nor while its batch is held.
    Claim(ClaimId, i32),
    /// queued -> cancelled: a client no longer wants it.
    CancelQueued,
    /// running -> a terminal state: the attempt ended, perhaps with a problem of this code. The outcomes are what is told of
    /// the jobs, these and perhaps others.
    Finish(ClaimId, JobState, Option<&'a str>, &'a [(JobId, &'a Outcome)]),
    /// running -> queued: the attempt failed in a way that may pass.
    Retry(ClaimId, Duration),
    /// running -> queued: the attempt has done a part of the job. The next one counts as its first.
    GoOn(ClaimId),
    /// running -> queued: the worker stops; the attempt does not count.
    Release(ClaimId),
    /// running -> queued: the worker went silent. The next attempt runs more alone.
    LoseLease(ClaimId, Duration),
    /// running -> queued: the process that ran it is gone. The attempt does not count, but the next one runs more alone.
    LoseProcess(ClaimId),
    /// failed -> queued: a client wants what failed in a batch tried again, as if it were new.
    Reopen,
}

/// Moves those of `jobs` whose row allows it and returns them; a job that somebody else moved first is left alone. What
/// moved is added to its batch's account, and its end is an event for the webhook endpoints that want to know.
pub(in crate::db) async fn transition(
    txn: &impl ConnectionTrait,
    jobs: &[JobId],
    step: Move<'_>,
) -> Result<Vec<JobId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Moved {
        id: JobId,
        batch_id: Option<BatchId>,
        problem_code: Option<String>,
        kind: JobKind,
        collection_id: CollectionId,
        started_at: Option<i64>,
        /// Whether there is anybody to tell; asked here, so that where nobody is, it costs no question of its own.
        is_listened: bool,
    }
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let (sql, values) = update(jobs, step);
    let sql = format!(
        "{sql} RETURNING id, batch_id, problem_code, kind, collection_id, started_at, {LISTENED} AS is_listened"
    );
    let mut moved = Moved::find_by_statement(statement(txn, &sql, values)).all(txn).await?;
    moved.sort_unstable_by_key(|m| m.id);
    let (from, to) = step.states();
    let of_batches = moved.iter().filter_map(|m| {
        let code = m
            .problem_code
            .clone()
            .filter(|_| [from, to].iter().any(|s| *s == JobState::Failed || *s == JobState::Rejected));
        Some(Delta { batch: m.batch_id?, from: Some(from), to: Some(to), code })
    });
    deltas::append(txn, of_batches).await?;
    let has_begun = |m: &&Moved| m.kind == JobKind::Rematch && m.started_at.is_some();
    let ended: Vec<&Moved> = moved.iter().filter(|_| to.is_terminal()).filter(has_begun).collect();
    rematches::forget_progress(txn, &ended.iter().map(|rematch| rematch.id).collect::<Vec<_>>()).await?;
    if matches!(to, JobState::Failed | JobState::Cancelled) {
        for rematch in ended {
            rematches::request_again(txn, rematch.collection_id).await?;
        }
    }
    let is_listened = to.is_terminal() && moved.iter().any(|m| m.is_listened);
    let moved: Vec<JobId> = moved.into_iter().map(|m| m.id).collect();
    if is_listened {
        let outcomes = if let Move::Finish(_, _, _, outcomes) = step { outcomes } else { &[] };
        events::jobs_ended(txn, &moved, outcomes).await?;
    }
    Ok(moved)
}

impl Move<'_> {
    /// The states that it leads from and to.
    pub(super) fn states(self) -> (JobState, JobState) {
        match self {
            Self::Claim(..) => (JobState::Queued, JobState::Running),
            Self::CancelQueued => (JobState::Queued, JobState::Cancelled),
            Self::Finish(_, state, ..) => (JobState::Running, state),
            Self::GoOn(_) | Self::Retry(..) | Self::Release(_) | Self::LoseLease(..) | Self::LoseProcess(_) => {
                (JobState::Running, JobState::Queued)
            }
            Self::Reopen => (JobState::Failed, JobState::Queued),
        }
    }
}

/// The condition that a row of `jobs` is one of `count` given by their ids, `$first ..`.
///
/// They are locked in the order of their ids, so that two statements on several jobs never wait for each other in a circle.
/// That they are named outside of the sub-select too has `PostgreSQL` look them up one by one, whatever it knows of the
/// table: among a million waiting jobs it would else read them all.
pub(super) fn are_locked(first: usize, count: usize) -> String {
    let ids = placeholders(first, count);
    format!("id IN ({ids}) AND id IN (SELECT id FROM jobs WHERE id IN ({ids}) ORDER BY id {{for update}})")
}

/// The statement of a move, to be ended with `RETURNING`, and its values, `$1` first.
pub(super) fn update(jobs: &[JobId], step: Move<'_>) -> (String, Vec<Value>) {
    let (changes, guard, mut values) = parts(step);
    let sql = format!(
        "UPDATE jobs SET {changes}, dispatched_at = NULL, version = version + 1 WHERE {guard} AND {}",
        are_locked(values.len() + 1, jobs.len())
    );
    values.extend(jobs.iter().map(|id| Value::from(*id)));
    (sql, values)
}

/// The assignments, the condition and their values, `$1` first.
fn parts(step: Move<'_>) -> (&'static str, &'static str, Vec<Value>) {
    const REQUEUE: &str = "state = 'running' AND claim_id = $1 AND NOT cancel_requested";
    match step {
        Move::Claim(claim, alone) => (
            "state = 'running', claim_id = $1, attempt = attempt + 1, started_at = COALESCE(started_at, {now})",
            "state = 'queued' AND run_at <= {now} AND alone <= $2 AND (batch_id IS NULL OR EXISTS
                (SELECT 1 FROM batches b WHERE b.id = jobs.batch_id AND b.state = 'running'))",
            vec![claim.into(), alone.into()],
        ),
        Move::CancelQueued => {
            ("state = 'cancelled', cancel_requested = TRUE, finished_at = {now}", "state = 'queued'", vec![])
        }
        Move::Finish(claim, state, code, _) => (
            "state = $2, claim_id = NULL, finished_at = {now}, problem_code = $3",
            "state = 'running' AND claim_id = $1",
            vec![claim.into(), state.to_value().into(), code.into()],
        ),
        Move::Retry(claim, after) => (
            "state = 'queued', claim_id = NULL, run_at = {now} + $2",
            REQUEUE,
            vec![claim.into(), micros(after).into()],
        ),
        Move::GoOn(claim) => {
            ("state = 'queued', claim_id = NULL, attempt = 0, run_at = {now}", REQUEUE, vec![claim.into()])
        }
        Move::Release(claim) => {
            ("state = 'queued', claim_id = NULL, attempt = attempt - 1, run_at = {now}", REQUEUE, vec![claim.into()])
        }
        Move::LoseLease(claim, after) => (
            "state = 'queued', claim_id = NULL, alone = alone + 1, run_at = {now} + $2",
            "state = 'running' AND claim_id = $1 AND NOT cancel_requested AND alone < 2",
            vec![claim.into(), micros(after).into()],
        ),
        Move::LoseProcess(claim) => (
            "state = 'queued', claim_id = NULL, alone = alone + 1, attempt = attempt - 1, run_at = {now}",
            "state = 'running' AND claim_id = $1 AND NOT cancel_requested AND alone < 2",
            vec![claim.into()],
        ),
        // The code stays until the next end writes its own: the account needs it.
        Move::Reopen => (
            "state = 'queued', attempt = 0, alone = 0, run_at = {now}, started_at = NULL, finished_at = NULL",
            "state = 'failed' AND batch_id IS NOT NULL",
            vec![],
        ),
    }
}
