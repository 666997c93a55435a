//! What a worker leaves behind that went silent or died.

use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::settle::{Outcome, close_if_empty, finish, finish_cancelled};
use super::transition::{Move, transition};
use crate::db::webhooks::deliveries;
use crate::db::{Db, execute, statement};
use crate::ids::{ClaimId, JobId};
use crate::job::Problem;

/// What recovery did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Jobs that wait again.
    pub requeued: Vec<JobId>,
    /// Jobs that ended: poison, or cancelled while they ran.
    pub ended: Vec<JobId>,
}

/// Ends up to `limit` claims whose lease is over, each in a transaction of its own. The attempt counts, and the next one
/// starts after `delay`.
pub async fn reap(db: &Db, delay: Duration, limit: u64) -> Result<Recovered, DbErr> {
    let sql = format!("SELECT id FROM claims WHERE lease_expires_at < {{now}} ORDER BY lease_expires_at LIMIT {limit}");
    let mut recovered = Recovered::default();
    for claim in claim_ids(&db.read, &sql).await? {
        let txn = db.begin().await?;
        // The holder may have renewed it since the list was read.
        let take = "UPDATE claims SET lease_expires_at = lease_expires_at WHERE id = $1 AND lease_expires_at < {now}";
        if execute(&txn, take, [claim.into()]).await? > 0 {
            end_claim(&txn, claim, Move::LoseLease(claim, delay), &mut recovered).await?;
        }
        txn.commit().await?;
    }
    Ok(recovered)
}

/// Ends every claim and forgets every dispatch: for a process that holds the data folder's lock and so knows that all
/// earlier workers and their queue are gone.
pub async fn recover_all(db: &Db) -> Result<Recovered, DbErr> {
    let mut recovered = Recovered::default();
    let txn = db.begin().await?;
    for claim in claim_ids(&txn, "SELECT id FROM claims ORDER BY id").await? {
        end_claim(&txn, claim, Move::LoseProcess(claim), &mut recovered).await?;
    }
    execute(&txn, "UPDATE jobs SET dispatched_at = NULL WHERE dispatched_at IS NOT NULL", []).await?;
    execute(&txn, "DELETE FROM leaders", []).await?;
    deliveries::recover_all(&txn).await?;
    txn.commit().await?;
    Ok(recovered)
}

async fn end_claim(
    txn: &impl ConnectionTrait,
    claim: ClaimId,
    requeue: Move<'_>,
    recovered: &mut Recovered,
) -> Result<(), DbErr> {
    let jobs = jobs_of(txn, claim).await?;
    recovered.ended.extend(finish_cancelled(txn, claim, &jobs).await?);
    let requeued = transition(txn, &jobs, requeue).await?;
    for job in jobs.iter().filter(|j| !requeued.contains(j)) {
        // What is neither cancelled nor requeued was alone in its process when that went silent.
        let poison = Problem::new(
            "poison",
            "the job ended its process each time it ran, last with nothing else in it; look at the picture before sending it again",
        );
        if finish(txn, claim, *job, &Outcome::Failed(poison)).await? {
            recovered.ended.push(*job);
        }
    }
    recovered.requeued.extend(requeued);
    close_if_empty(txn, claim).await
}

async fn claim_ids(conn: &impl ConnectionTrait, sql: &str) -> Result<Vec<ClaimId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: ClaimId,
    }
    Ok(Row::find_by_statement(statement(conn, sql, [])).all(conn).await?.into_iter().map(|r| r.id).collect())
}

async fn jobs_of(conn: &impl ConnectionTrait, claim: ClaimId) -> Result<Vec<JobId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: JobId,
    }
    // Locked, so that a client cannot cancel one between the looks at it.
    let sql = "SELECT id FROM jobs WHERE claim_id = $1 ORDER BY id {for update}";
    let rows = Row::find_by_statement(statement(conn, sql, [claim.into()])).all(conn).await?;
    Ok(rows.into_iter().map(|r| r.id).collect())
}
