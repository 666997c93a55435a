//! Claims: a worker's hold on the jobs of one delivery, for as long as it renews it.

use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use sea_orm::{QueryFilter, QueryOrder};

use super::transition::{Move, transition};
use crate::db::entity::job::{Column, Entity, Model};
use crate::db::{Db, execute, micros, placeholders, statement};
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

/// Begins an attempt of those of `jobs` that are queued and due; `None` when there is none (a doubled or late message).
pub async fn claim(db: &Db, owner: &str, jobs: &[JobId], lease: Duration) -> Result<Option<Claim>, DbErr> {
    let id = ClaimId::new();
    let txn = db.begin().await?;
    let claimed = transition(&txn, jobs, Move::Claim(id)).await?;
    if claimed.len() < jobs.len() {
        unmark(&txn, jobs).await?;
    }
    if claimed.is_empty() {
        txn.commit().await?;
        return Ok(None);
    }
    let sql = "INSERT INTO claims (id, owner, lease_expires_at) VALUES ($1, $2, {now} + $3)";
    execute(&txn, sql, [id.into(), owner.into(), micros(lease).into()]).await?;
    let jobs = load(&txn, id).await?;
    txn.commit().await?;
    Ok(Some(Claim { id, jobs }))
}

/// Renews a claim and says which of its jobs a client has cancelled.
pub async fn heartbeat(db: &Db, claim: ClaimId, lease: Duration) -> Result<Heartbeat, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: JobId,
    }
    let sql = "UPDATE claims SET lease_expires_at = {now} + $1 WHERE id = $2";
    if execute(&db.write, sql, [micros(lease).into(), claim.into()]).await? == 0 {
        return Ok(Heartbeat::Lost);
    }
    let sql = "SELECT id FROM jobs WHERE claim_id = $1 AND cancel_requested";
    let rows = Row::find_by_statement(statement(&db.read, sql, [claim.into()])).all(&db.read).await?;
    Ok(Heartbeat::Held(rows.into_iter().map(|r| r.id).collect()))
}

/// Clears the mark of jobs that this message came too early for, so that they are dispatched again when they are due.
async fn unmark(txn: &impl ConnectionTrait, jobs: &[JobId]) -> Result<(), DbErr> {
    let sql = format!(
        "UPDATE jobs SET dispatched_at = NULL WHERE state = 'queued' AND run_at > {{now}} AND id IN ({})",
        placeholders(1, jobs.len())
    );
    execute(txn, &sql, jobs.iter().map(|id| Value::from(*id))).await?;
    Ok(())
}

async fn load(txn: &impl ConnectionTrait, claim: ClaimId) -> Result<Vec<ClaimedJob>, DbErr> {
    #[derive(FromQueryResult)]
    struct Args {
        args: String,
    }
    let rows = Entity::find().filter(Column::ClaimId.eq(claim)).order_by_asc(Column::Id).all(txn).await?;
    let mut jobs = Vec::with_capacity(rows.len());
    for job in rows {
        let sql = "SELECT args FROM job_payloads WHERE job_id = $1";
        let row = Args::find_by_statement(statement(txn, sql, [job.id.into()])).one(txn).await?;
        let args = serde_json::from_str(&row.map(|r| r.args).unwrap_or_default());
        jobs.push(ClaimedJob { job, args });
    }
    Ok(jobs)
}
