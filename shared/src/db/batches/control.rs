//! What clients do with a batch that is there: pause, resume, cancel, retry; and its end.
//!
//! A wish is one change of the batch's row. What has to happen to its jobs, be they a million, happens afterwards in
//! slices, by the worker that leads.

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use crate::access::Grant;
use crate::db::entity::batch::Model;
use crate::db::jobs::transition::{Move, transition};
use crate::db::webhooks::events;
use crate::db::{Db, execute, is_postgres, placeholders, scoped, statement};
use crate::ids::{BatchId, JobId};

/// Jobs of one slice: a transaction of some ten milliseconds.
const SLICE: u32 = 1000;
/// A pace is measured over at least this long, in microseconds.
const PACE_OVER: i64 = 2_000_000;

/// What a client wants of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Begin no more jobs for now.
    Pause,
    /// Go on.
    Resume,
    /// End it: what has not ended is cancelled.
    Cancel,
    /// Try again what failed, the listing too.
    Retry,
}

/// Does it; false when the batch is in no state for it, or none that the grant holds for.
pub async fn change(db: &Db, grant: &Grant, batch: BatchId, wish: Wish) -> Result<bool, DbErr> {
    let (changes, guard) = match wish {
        Wish::Pause => ("state = 'paused', pace = NULL", "state = 'running'"),
        Wish::Resume => (
            "state = 'running', pace = NULL, paced_at = {now}, paced_jobs = succeeded + rejected + failed + cancelled",
            "state = 'paused'",
        ),
        Wish::Cancel => ("state = 'cancelled', pace = NULL, reopen_before = NULL", "state IN ('running', 'paused')"),
        Wish::Retry => (
            "state = 'running', round = round + 1, finished_at = NULL, reopen_before = {now},
             listed_at = CASE WHEN listing_failed THEN NULL ELSE listed_at END, list_after = {now}, listing_tries = 0,
             listing_failed = FALSE, problem = CASE WHEN listing_failed THEN NULL ELSE problem END,
             sweep = CASE WHEN sweep IS NOT NULL THEN 'waits' END, pace = NULL",
            "state IN ('running', 'completed', 'failed')",
        ),
    };
    let (reached, collections) = scoped::sql(grant, "collection_id", 2);
    let sql = format!("UPDATE batches SET {changes}, version = version + 1 WHERE id = $1 AND {guard} AND {reached}");
    Ok(execute(&db.write, &sql, std::iter::once(batch.into()).chain(collections)).await? > 0)
}

/// Batches that were cancelled and have jobs that have not ended.
pub async fn being_cancelled(db: &Db) -> Result<Vec<BatchId>, DbErr> {
    ids(db, "SELECT id FROM batches WHERE state = 'cancelled' AND finished_at IS NULL ORDER BY id").await
}

/// Batches whose failed jobs are being put back.
pub async fn being_retried(db: &Db) -> Result<Vec<BatchId>, DbErr> {
    ids(db, "SELECT id FROM batches WHERE reopen_before IS NOT NULL AND state IN ('running', 'paused') ORDER BY id")
        .await
}

/// What a slice of a cancelled batch's jobs came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CancelledSlice {
    /// Jobs that were waiting and have ended.
    pub ended: Vec<JobId>,
    /// The last item of the slice; `None` when there was nothing left.
    pub last_item: Option<i64>,
}

/// Cancels the next jobs of a batch, those after `after`: at once what waits, by asking its worker what runs. After one
/// pass over a cancelled batch every job has ended or has been asked to: no new ones are made.
pub async fn cancel_slice(db: &Db, batch: BatchId, after: i64) -> Result<CancelledSlice, DbErr> {
    let sql = format!(
        "SELECT id, item_no FROM jobs WHERE batch_id = $1 AND item_no > $2 AND state IN ('queued', 'running')
         ORDER BY item_no LIMIT {SLICE}"
    );
    let rows = Item::find_by_statement(statement(&db.read, &sql, [batch.into(), after.into()])).all(&db.read).await?;
    let Some(last_item) = rows.last().map(|row| row.item_no) else { return Ok(CancelledSlice::default()) };
    let jobs: Vec<JobId> = rows.into_iter().map(|row| row.id).collect();
    let txn = db.begin().await?;
    let named = || jobs.iter().map(|id| Value::from(*id));
    // Locked, so that none can go from running to waiting between the two looks.
    let lock = format!("SELECT id FROM jobs WHERE id IN ({}) ORDER BY id {{for update}}", placeholders(1, jobs.len()));
    txn.query_all_raw(statement(&txn, &lock, named())).await?;
    let ended = transition(&txn, &jobs, Move::CancelQueued).await?;
    if !ended.is_empty() {
        forget_problems(&txn, &ended).await?;
    }
    let sql = format!(
        "UPDATE jobs SET cancel_requested = TRUE, version = version + 1
         WHERE state = 'running' AND NOT cancel_requested AND id IN ({})",
        placeholders(1, jobs.len())
    );
    execute(&txn, &sql, named()).await?;
    txn.commit().await?;
    Ok(CancelledSlice { ended, last_item: Some(last_item) })
}

/// Puts the next jobs of a batch back that failed before the retry was wanted; true when there may be more.
pub async fn reopen_slice(db: &Db, batch: BatchId) -> Result<bool, DbErr> {
    #[derive(FromQueryResult)]
    struct Wanted {
        reopen_before: i64,
    }
    let txn = db.begin().await?;
    // Locked, so that neither a cancel nor another retry comes between.
    let sql = "SELECT reopen_before FROM batches
        WHERE id = $1 AND reopen_before IS NOT NULL AND state IN ('running', 'paused') {for update}";
    let wanted = Wanted::find_by_statement(statement(&txn, sql, [batch.into()])).one(&txn).await?;
    let Some(Wanted { reopen_before }) = wanted else { return Ok(false) };
    // The list of states is for SQLite, which else does not see that the partial index serves.
    let sql = format!(
        "SELECT id, item_no FROM jobs WHERE batch_id = $1 AND state = 'failed' AND finished_at <= $2
            AND state IN ('rejected', 'failed', 'cancelled') ORDER BY item_no LIMIT {SLICE}"
    );
    let values = [batch.into(), reopen_before.into()];
    let rows = Item::find_by_statement(statement(&txn, &sql, values)).all(&txn).await?;
    let jobs: Vec<JobId> = rows.into_iter().map(|row| row.id).collect();
    if jobs.is_empty() {
        let sql = "UPDATE batches SET reopen_before = NULL, paced_at = {now},
                paced_jobs = succeeded + rejected + failed + cancelled
            WHERE id = $1";
        execute(&txn, sql, [batch.into()]).await?;
    } else {
        transition(&txn, &jobs, Move::Reopen).await?;
        forget_problems(&txn, &jobs).await?;
        go_by_present_pipeline(&txn, batch, &jobs).await?;
    }
    txn.commit().await?;
    Ok(!jobs.is_empty())
}

/// The collection may have gone over to another pipeline since the jobs failed, and have nothing of theirs any more.
async fn go_by_present_pipeline(txn: &impl ConnectionTrait, batch: BatchId, jobs: &[JobId]) -> Result<(), DbErr> {
    let lock = if is_postgres(txn) { "FOR KEY SHARE OF c" } else { "" };
    let sql =
        format!("SELECT c.pipeline FROM collections c JOIN batches b ON b.collection_id = c.id WHERE b.id = $1 {lock}");
    let Some(row) = txn.query_one_raw(statement(txn, &sql, [batch.into()])).await? else { return Ok(()) };
    let pipeline: String = row.try_get("", "pipeline")?;
    let sql = format!("UPDATE jobs SET pipeline = $1 WHERE pipeline <> $1 AND id IN ({})", placeholders(2, jobs.len()));
    execute(txn, &sql, std::iter::once(pipeline.into()).chain(jobs.iter().map(|id| Value::from(*id)))).await?;
    Ok(())
}

/// Why an earlier attempt failed says nothing of a job that is as new, or cancelled.
async fn forget_problems(txn: &impl ConnectionTrait, jobs: &[JobId]) -> Result<(), DbErr> {
    let sql = format!(
        "UPDATE job_payloads SET problem = NULL WHERE problem IS NOT NULL AND job_id IN ({})",
        placeholders(1, jobs.len())
    );
    execute(txn, &sql, jobs.iter().map(|id| Value::from(*id))).await?;
    Ok(())
}

/// A job of a batch.
#[derive(FromQueryResult)]
struct Item {
    id: JobId,
    item_no: i64,
}

/// Ends the batches of which every item was listed, every job has ended and every missing place is judged, each once a
/// round, and says so to the webhook endpoints that want to know; returns them.
pub async fn finish(db: &Db) -> Result<Vec<BatchId>, DbErr> {
    let sql = "UPDATE batches SET finished_at = {now}, pace = NULL, version = version + 1,
            state = CASE WHEN state = 'cancelled' THEN state WHEN listing_failed THEN 'failed' ELSE 'completed' END
        WHERE finished_at IS NULL AND reopen_before IS NULL AND queued = 0 AND running = 0
            AND (state = 'cancelled' OR (state = 'running' AND listed_at IS NOT NULL
                AND (listing_failed OR sweep IS DISTINCT FROM 'waits')))
            AND succeeded + rejected + failed + cancelled = items - unchanged
            AND NOT EXISTS (SELECT 1 FROM batch_deltas d WHERE d.batch_id = batches.id)
        RETURNING *";
    let txn = db.begin().await?;
    let ended = Model::find_by_statement(statement(&txn, sql, [])).all(&txn).await?;
    events::batches_ended(&txn, &ended).await?;
    txn.commit().await?;
    Ok(ended.into_iter().map(|batch| batch.id).collect())
}

/// Measures how many jobs of each running batch end in a second.
pub async fn measure_pace(db: &Db) -> Result<(), DbErr> {
    let sql = "UPDATE batches SET
            pace = CASE WHEN pace IS NULL THEN 1.0 ELSE 0.3 END
                * CAST(succeeded + rejected + failed + cancelled - paced_jobs AS double precision)
                * 1000000.0 / ({now} - paced_at) + 0.7 * COALESCE(pace, 0.0),
            paced_at = {now}, paced_jobs = succeeded + rejected + failed + cancelled
        WHERE finished_at IS NULL AND state = 'running' AND reopen_before IS NULL AND paced_at <= {now} - $1";
    execute(&db.write, sql, [PACE_OVER.into()]).await?;
    Ok(())
}

#[derive(FromQueryResult)]
struct Row {
    id: BatchId,
}

async fn ids(db: &Db, sql: &str) -> Result<Vec<BatchId>, DbErr> {
    Ok(Row::find_by_statement(statement(&db.read, sql, [])).all(&db.read).await?.into_iter().map(|r| r.id).collect())
}
