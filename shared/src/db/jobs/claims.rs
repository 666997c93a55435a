//! Claims: a worker's hold on the jobs of one delivery, for as long as it renews it.

use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::transition::{Move, are_locked, transition, update};
use crate::db::entity::job::Model;
use crate::db::{Db, execute, is_postgres, micros, statement};
use crate::ids::{ClaimId, JobId};
use crate::job::JobArgs;

/// The jobs of a delivery that a worker may now run.
#[derive(Debug)]
pub struct Claim {
    /// What every later write of these attempts is fenced on.
    pub id: ClaimId,
    /// The jobs, oldest first.
    pub jobs: Vec<ClaimedJob>,
}

/// A job whose attempt has begun.
#[derive(Debug)]
pub struct ClaimedJob {
    /// The row, as the claim left it.
    pub job: Model,
    /// Its arguments; an error where the stored text is none of this version.
    pub args: Result<JobArgs, serde_json::Error>,
}

/// What a renewal found.
#[derive(Debug, PartialEq, Eq)]
pub enum Heartbeat {
    /// The claim stands for another lease; these of its jobs shall be cancelled.
    Held(Vec<JobId>),
    /// The claim is gone: write nothing more, stop.
    Lost,
}

/// The jobs of a message that a worker wants to begin.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The claim's id, the same for every try to make it: one whose answer was lost is found again.
    pub id: ClaimId,
    /// The jobs.
    pub jobs: &'a [JobId],
    /// How much alone the message lets them run; a job that has to run more alone by now is left.
    pub alone: i32,
    /// Who wants them, for an operator who looks at the table.
    pub owner: &'a str,
}

/// Begins an attempt of those of the jobs that are queued and due; `None` when there is none (a doubled or late message).
pub async fn claim(db: &Db, wanted: Wanted<'_>, lease: Duration) -> Result<Option<Claim>, DbErr> {
    let id = wanted.id;
    if is_postgres(&db.write) {
        take_in_one_statement(db, wanted, lease).await?;
    } else {
        take_in_steps(db, wanted, lease).await?;
    }
    // By a statement of its own: it sees what an erasure took out of the arguments while the first one waited for the rows, and
    // what an earlier try has claimed of which only the answer was lost.
    let claimed = claimed_by(db, id).await?;
    if claimed.len() < wanted.jobs.len() {
        unmark(db, wanted.jobs).await?;
    }
    Ok((!claimed.is_empty()).then_some(Claim { id, jobs: claimed }))
}

async fn take_in_one_statement(db: &Db, wanted: Wanted<'_>, lease: Duration) -> Result<(), DbErr> {
    let (update, mut values) = update(wanted.jobs, Move::Claim(wanted.id, wanted.alone));
    let next = values.len() + 1;
    let sql = format!(
        "WITH moved AS ({update} RETURNING id, batch_id), counted AS (
             INSERT INTO batch_deltas (batch_id, state_from, state_to, jobs, faces)
             SELECT batch_id, 'queued', 'running', count(*), 0 FROM moved WHERE batch_id IS NOT NULL GROUP BY batch_id)
         INSERT INTO claims (id, owner, lease_expires_at)
         SELECT $1, ${next}, {{now}} + ${} WHERE EXISTS (SELECT 1 FROM moved)
         ON CONFLICT (id) DO UPDATE SET lease_expires_at = excluded.lease_expires_at",
        next + 1
    );
    values.extend([wanted.owner.into(), micros(lease).into()]);
    execute(&db.write, &sql, values).await?;
    Ok(())
}

async fn take_in_steps(db: &Db, wanted: Wanted<'_>, lease: Duration) -> Result<(), DbErr> {
    let txn = db.begin().await?;
    if transition(&txn, wanted.jobs, Move::Claim(wanted.id, wanted.alone)).await?.is_empty() {
        return Ok(());
    }
    let sql = "INSERT INTO claims (id, owner, lease_expires_at) VALUES ($1, $2, {now} + $3)
        ON CONFLICT (id) DO UPDATE SET lease_expires_at = excluded.lease_expires_at";
    execute(&txn, sql, [wanted.id.into(), wanted.owner.into(), micros(lease).into()]).await?;
    txn.commit().await
}

/// The jobs of a claim with their arguments.
async fn claimed_by(db: &Db, claim: ClaimId) -> Result<Vec<ClaimedJob>, DbErr> {
    let sql =
        "SELECT j.*, p.args FROM jobs j JOIN job_payloads p ON p.job_id = j.id WHERE j.claim_id = $1 ORDER BY j.id";
    let rows = db.write.query_all_raw(statement(&db.write, sql, [claim.into()])).await?;
    rows.iter()
        .map(|row| {
            let args: String = row.try_get("", "args")?;
            Ok(ClaimedJob { job: Model::from_query_result(row, "")?, args: serde_json::from_str(&args) })
        })
        .collect()
}

/// Renews a claim and says which of its jobs a client has cancelled.
pub async fn heartbeat(db: &Db, claim: ClaimId, lease: Duration) -> Result<Heartbeat, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: Option<JobId>,
    }
    let values = [micros(lease).into(), claim.into()];
    if is_postgres(&db.write) {
        let sql = "WITH held AS (UPDATE claims SET lease_expires_at = {now} + $1 WHERE id = $2 RETURNING id)
            SELECT j.id FROM held LEFT JOIN jobs j ON j.claim_id = held.id AND j.cancel_requested ORDER BY j.id";
        let rows = Row::find_by_statement(statement(&db.write, sql, values)).all(&db.write).await?;
        let lost = rows.is_empty();
        let cancelled = rows.into_iter().filter_map(|r| r.id).collect();
        return Ok(if lost { Heartbeat::Lost } else { Heartbeat::Held(cancelled) });
    }
    let sql = "UPDATE claims SET lease_expires_at = {now} + $1 WHERE id = $2";
    if execute(&db.write, sql, values).await? == 0 {
        return Ok(Heartbeat::Lost);
    }
    let sql = "SELECT id FROM jobs WHERE claim_id = $1 AND cancel_requested ORDER BY id";
    let rows = Row::find_by_statement(statement(&db.read, sql, [claim.into()])).all(&db.read).await?;
    Ok(Heartbeat::Held(rows.into_iter().filter_map(|r| r.id).collect()))
}

/// Clears the mark of jobs that this message came for and that still wait, be it that it came too early or would let them
/// run too little alone, so that they are dispatched again. Their version changes too: a mark of this very message that is
/// still to come would stand for a message that is used up.
async fn unmark(db: &Db, jobs: &[JobId]) -> Result<(), DbErr> {
    let sql = format!(
        "UPDATE jobs SET dispatched_at = NULL, version = version + 1 WHERE state = 'queued' AND {}",
        are_locked(1, jobs.len())
    );
    execute(&db.write, &sql, jobs.iter().map(|id| Value::from(*id))).await?;
    Ok(())
}
