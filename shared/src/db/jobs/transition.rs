//! The one function that changes a job's state.

use std::time::Duration;

use sea_orm::prelude::*;
use sea_orm::{ActiveEnum, FromQueryResult};

use crate::db::{micros, placeholders, statement};
use crate::ids::{ClaimId, JobId};
use crate::job::JobState;

/// Every way in which a job changes its state. `docs/JOB_STATES.md` draws them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Move {
    /// queued -> running: a worker begins the next attempt. Not before `run_at`, nor less alone than the job has to run.
    Claim(ClaimId, i32),
    /// queued -> cancelled: a client no longer wants it.
    CancelQueued,
    /// running -> a terminal state: the attempt ended.
    Finish(ClaimId, JobState),
    /// running -> queued: the attempt failed in a way that may pass.
    Retry(ClaimId, Duration),
    /// running -> queued: the worker stops; the attempt does not count.
    Release(ClaimId),
    /// running -> queued: the worker went silent. The next attempt runs more alone.
    LoseLease(ClaimId, Duration),
    /// running -> queued: the process that ran it is gone. The attempt does not count, but the next one runs more alone.
    LoseProcess(ClaimId),
}

/// Moves those of `jobs` whose row allows it and returns them; a job that somebody else moved first is left alone.
pub(super) async fn transition(txn: &impl ConnectionTrait, jobs: &[JobId], step: Move) -> Result<Vec<JobId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Moved {
        id: JobId,
    }
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let (sql, values) = update(jobs, step);
    let sql = format!("{sql} RETURNING id");
    let mut moved: Vec<JobId> =
        Moved::find_by_statement(statement(txn, &sql, values)).all(txn).await?.into_iter().map(|m| m.id).collect();
    moved.sort_unstable();
    Ok(moved)
}

/// The statement of a move, to be ended with `RETURNING`, and its values, `$1` first.
pub(super) fn update(jobs: &[JobId], step: Move) -> (String, Vec<Value>) {
    let (changes, guard, mut values) = parts(step);
    // Rows are locked in the order of their ids, so that two moves of several jobs never wait for each other in a circle.
    let sql = format!(
        "UPDATE jobs SET {changes}, dispatched_at = NULL, version = version + 1
         WHERE {guard} AND id IN (SELECT id FROM jobs WHERE id IN ({}) ORDER BY id {{for update}})",
        placeholders(values.len() + 1, jobs.len())
    );
    values.extend(jobs.iter().map(|id| Value::from(*id)));
    (sql, values)
}

/// The assignments, the condition and their values, `$1` first.
fn parts(step: Move) -> (&'static str, &'static str, Vec<Value>) {
    const REQUEUE: &str = "state = 'running' AND claim_id = $1 AND NOT cancel_requested";
    match step {
        Move::Claim(claim, alone) => (
            "state = 'running', claim_id = $1, attempt = attempt + 1, started_at = COALESCE(started_at, {now})",
            "state = 'queued' AND run_at <= {now} AND alone <= $2",
            vec![claim.into(), alone.into()],
        ),
        Move::CancelQueued => {
            ("state = 'cancelled', cancel_requested = TRUE, finished_at = {now}", "state = 'queued'", vec![])
        }
        Move::Finish(claim, state) => (
            "state = $2, claim_id = NULL, finished_at = {now}",
            "state = 'running' AND claim_id = $1",
            vec![claim.into(), state.to_value().into()],
        ),
        Move::Retry(claim, after) => (
            "state = 'queued', claim_id = NULL, run_at = {now} + $2",
            REQUEUE,
            vec![claim.into(), micros(after).into()],
        ),
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
    }
}
