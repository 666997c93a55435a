//! The end of an attempt. The caller's own rows (faces, vectors) go into the same transaction, between
//! [`fence`] and [`finish`].

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::transition::{Move, transition};
use crate::access::{Grant, Scope};
use crate::db::erasures::erased_problem;
use crate::db::erasures::traces::NO_ARGS;
use crate::db::rows::{self, Column, Rows};
use crate::db::{Db, count, execute, placeholders, scoped, statement, uploads};
use crate::ids::{ClaimId, JobId};
use crate::job::{JobArgs, JobState, Problem};

/// Whether an attempt may still write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// It may.
    Held,
    /// A client cancelled the job: finish it as [`Outcome::Cancelled`].
    Cancelled,
    /// The claim was taken away: write nothing.
    Lost,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// With this result.
    Succeeded(serde_json::Value),
    /// With a true negative answer about its input.
    Rejected(Problem),
    /// Without an answer.
    Failed(Problem),
    /// Because a client asked for it.
    Cancelled,
    /// Because what it is about was erased since it was accepted: nothing of it stays.
    Discarded,
}

impl Outcome {
    /// The state of a job that ended so.
    pub fn state(&self) -> JobState {
        match self {
            Self::Succeeded(_) => JobState::Succeeded,
            Self::Rejected(_) => JobState::Rejected,
            Self::Failed(_) => JobState::Failed,
            Self::Cancelled | Self::Discarded => JobState::Cancelled,
        }
    }

    /// Why the job has no result.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Rejected(problem) | Self::Failed(problem) => Some(problem),
            Self::Succeeded(_) | Self::Cancelled | Self::Discarded => None,
        }
    }
}

/// What became of a job that was to be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It waits for its next attempt.
    Requeued,
    /// A client had cancelled it: it has ended.
    Cancelled,
    /// The claim was taken away: nothing was written.
    Lost,
}

/// What a client's wish to cancel did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// The job was waiting and is cancelled.
    Done,
    /// The job is running; its worker has been told.
    Requested,
    /// The job had ended before.
    AlreadyFinished,
    /// The grant allows it for none but its own jobs, and this is none; or there is no such job.
    NotAllowed,
}

/// Locks the job and its claim until the transaction ends, and says whether the attempt may still write; a claim that is
/// being taken away is waited for.
pub async fn fence(txn: &impl ConnectionTrait, claim: ClaimId, job: JobId) -> Result<Fence, DbErr> {
    Ok(fences(txn, claim, &[job]).await?.remove(&job).unwrap_or(Fence::Lost))
}

/// The same for several jobs of a claim; one that is not in the answer is lost.
pub async fn fences(
    txn: &impl ConnectionTrait,
    claim: ClaimId,
    jobs: &[JobId],
) -> Result<HashMap<JobId, Fence>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: JobId,
        cancel_requested: bool,
    }
    hold(txn, claim).await?;
    let sql = format!(
        "SELECT id, cancel_requested FROM jobs WHERE claim_id = $1 AND state = 'running' AND id IN ({})
         ORDER BY id {{for update}}",
        placeholders(2, jobs.len())
    );
    let values = std::iter::once(claim.into()).chain(jobs.iter().map(|id| Value::from(*id)));
    let rows = Row::find_by_statement(statement(txn, &sql, values)).all(txn).await?;
    let fence = |row: &Row| if row.cancel_requested { Fence::Cancelled } else { Fence::Held };
    Ok(rows.iter().map(|row| (row.id, fence(row))).collect())
}

/// Ends the job; false (and nothing written) when the claim was taken away.
pub async fn finish(txn: &impl ConnectionTrait, claim: ClaimId, job: JobId, outcome: &Outcome) -> Result<bool, DbErr> {
    Ok(!finish_all(txn, claim, &[(job, outcome)]).await?.is_empty())
}

/// Ends jobs of one claim; returns those that ended: the claim was taken away from the others.
pub async fn finish_all(
    txn: &impl ConnectionTrait,
    claim: ClaimId,
    ended: &[(JobId, &Outcome)],
) -> Result<Vec<JobId>, DbErr> {
    // First, so that the events of their ends have no tags; the attempts hold their jobs.
    let discarded = ended.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Discarded)).map(|(job, _)| *job);
    forget_args(txn, claim, discarded).await?;
    let mut alike: BTreeMap<(JobState, Option<&str>), Vec<JobId>> = BTreeMap::new();
    for (job, outcome) in ended {
        let code = outcome.problem().map(|p| p.code.as_str());
        alike.entry((outcome.state(), code)).or_default().push(*job);
    }
    let mut finished = Vec::with_capacity(ended.len());
    for ((state, code), jobs) in alike {
        finished.extend(transition(txn, &jobs, Move::Finish(claim, state, code, ended)).await?);
    }
    if finished.is_empty() {
        return Ok(finished);
    }
    let rows = ended.iter().filter(|(job, _)| finished.contains(job)).map(|(job, outcome)| answer(*job, outcome));
    let rows = Rows::new(&ANSWER, rows.collect::<Result<_, _>>()?);
    let sql = format!(
        "UPDATE job_payloads SET result = r.result, problem = r.problem FROM {} WHERE job_payloads.job_id = r.job_id",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value()]).await?;
    uploads::drop_inline_of_jobs(txn, &finished).await?;
    close_if_empty(txn, claim).await?;
    Ok(finished)
}

/// What a job's payload says at its end.
const ANSWER: [(&str, Column); 3] = [("job_id", Column::Id), ("result", Column::Text), ("problem", Column::Text)];

fn answer(job: JobId, outcome: &Outcome) -> Result<serde_json::Value, DbErr> {
    let result = match outcome {
        Outcome::Succeeded(result) => Some(result.to_string()),
        Outcome::Rejected(_) | Outcome::Failed(_) | Outcome::Cancelled | Outcome::Discarded => None,
    };
    let erased = matches!(outcome, Outcome::Discarded).then(erased_problem);
    let problem = outcome.problem().or(erased.as_ref()).map(problem_json).transpose()?;
    Ok(serde_json::json!({ "job_id": rows::id(job.0), "result": result, "problem": problem }))
}

/// Forgets what discarded jobs of a claim were to do.
async fn forget_args(
    txn: &impl ConnectionTrait,
    claim: ClaimId,
    jobs: impl Iterator<Item = JobId>,
) -> Result<(), DbErr> {
    for job in jobs {
        let sql = "UPDATE jobs SET tag = NULL WHERE id = $1 AND claim_id = $2";
        if execute(txn, sql, [job.into(), claim.into()]).await? > 0 {
            let sql = "UPDATE job_payloads SET args = $2 WHERE job_id = $1";
            execute(txn, sql, [job.into(), NO_ARGS.into()]).await?;
        }
    }
    Ok(())
}

/// Puts a job back that has done a part of its work, with arguments that say how far it is; false (and nothing written)
/// when the claim was taken away.
pub async fn go_on(txn: &impl ConnectionTrait, claim: ClaimId, job: JobId, args: &JobArgs) -> Result<bool, DbErr> {
    if transition(txn, &[job], Move::GoOn(claim)).await?.is_empty() {
        return Ok(false);
    }
    let args = serde_json::to_string(args).map_err(|e| DbErr::Json(e.to_string()))?;
    execute(txn, "UPDATE job_payloads SET args = $1, problem = NULL WHERE job_id = $2", [args.into(), job.into()])
        .await?;
    close_if_empty(txn, claim).await?;
    Ok(true)
}

/// Puts the job back for another attempt after `delay`, with the reason of this one's failure.
pub async fn retry(db: &Db, claim: ClaimId, job: JobId, delay: Duration, problem: &Problem) -> Result<Retry, DbErr> {
    let txn = db.begin().await?;
    hold(&txn, claim).await?;
    let moved = !transition(&txn, &[job], Move::Retry(claim, delay)).await?.is_empty();
    if moved {
        let sql = "UPDATE job_payloads SET problem = $1 WHERE job_id = $2";
        execute(&txn, sql, [problem_json(problem)?.into(), job.into()]).await?;
    }
    let cancelled = finish_cancelled(&txn, claim, &[job]).await?;
    close_if_empty(&txn, claim).await?;
    txn.commit().await?;
    Ok(match (moved, cancelled.is_empty()) {
        (true, _) => Retry::Requeued,
        (false, false) => Retry::Cancelled,
        (false, true) => Retry::Lost,
    })
}

/// Gives jobs back because the worker stops; the attempt does not count.
pub async fn release(db: &Db, claim: ClaimId, jobs: &[JobId]) -> Result<(), DbErr> {
    let txn = db.begin().await?;
    hold(&txn, claim).await?;
    transition(&txn, jobs, Move::Release(claim)).await?;
    finish_cancelled(&txn, claim, jobs).await?;
    close_if_empty(&txn, claim).await?;
    txn.commit().await
}

/// Cancels a job: at once while it waits, by asking its worker while it runs. Whoever may not write cancels its own.
pub async fn cancel(db: &Db, grant: &Grant, job: JobId) -> Result<Cancel, DbErr> {
    let txn = db.begin().await?;
    let (mut allowed, collections) = scoped::sql(grant, "collection_id", 2);
    let mut values = vec![job.into()];
    values.extend(collections);
    if !grant.has(Scope::Write) {
        values.push(grant.owner().into());
        allowed = format!("{allowed} AND api_key_id = ${}", values.len());
    }
    // Locked, so that it cannot go from running to waiting between the two looks.
    let lock =
        format!("SELECT count(*) AS n FROM (SELECT id FROM jobs WHERE id = $1 AND {allowed} {{for update}}) AS locked");
    if count(&txn, &lock, values).await? == 0 {
        return Ok(Cancel::NotAllowed);
    }
    let cancelled = transition(&txn, &[job], Move::CancelQueued).await?;
    if !cancelled.is_empty() {
        execute(&txn, "UPDATE job_payloads SET problem = NULL WHERE job_id = $1", [job.into()]).await?;
        uploads::drop_inline_of_jobs(&txn, &[job]).await?;
        txn.commit().await?;
        return Ok(Cancel::Done);
    }
    let sql = "UPDATE jobs SET cancel_requested = TRUE, version = version + 1 WHERE id = $1 AND state = 'running'";
    let asked = execute(&txn, sql, [job.into()]).await? > 0;
    txn.commit().await?;
    Ok(if asked { Cancel::Requested } else { Cancel::AlreadyFinished })
}

/// Ends those of `jobs` that a client wanted cancelled while they ran; returns them.
pub(super) async fn finish_cancelled(
    txn: &impl ConnectionTrait,
    claim: ClaimId,
    jobs: &[JobId],
) -> Result<Vec<JobId>, DbErr> {
    let mut ended = Vec::new();
    for job in jobs {
        if fence(txn, claim, *job).await? == Fence::Cancelled && finish(txn, claim, *job, &Outcome::Cancelled).await? {
            ended.push(*job);
        }
    }
    Ok(ended)
}

/// Locks the claim. Whoever changes jobs that run locks their claim first, so that nobody waits in a circle.
async fn hold(txn: &impl ConnectionTrait, claim: ClaimId) -> Result<(), DbErr> {
    let sql = "SELECT count(*) AS n FROM (SELECT id FROM claims WHERE id = $1 {for update}) AS held";
    count(txn, sql, [claim.into()]).await?;
    Ok(())
}

pub(super) async fn close_if_empty(txn: &impl ConnectionTrait, claim: ClaimId) -> Result<(), DbErr> {
    let sql = "DELETE FROM claims WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM jobs WHERE claim_id = $1)";
    execute(txn, sql, [claim.into()]).await?;
    Ok(())
}

fn problem_json(problem: &Problem) -> Result<String, DbErr> {
    serde_json::to_string(problem).map_err(|e| DbErr::Json(e.to_string()))
}
