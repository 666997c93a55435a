//! Deletes jobs and batches that ended long ago, in slices. What they stored stays.

use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use crate::db::{Db, execute, micros, placeholders, statement};
use crate::ids::JobId;

/// Jobs of one slice: a transaction of some ten milliseconds.
const SLICE: usize = 1000;

/// What one slice came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Jobs that were deleted.
    pub deleted: u64,
    /// The last job that was looked at; `None` when none that is old enough comes after it.
    pub last: Option<JobId>,
}

/// Looks at the next jobs after `after`, oldest first, and deletes those that ended more than `keep` ago. Those of a batch
/// stay until the batch has ended: it may be told to try them again.
pub async fn delete_ended(db: &Db, after: Option<JobId>, keep: Duration) -> Result<Slice, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: JobId,
        created_at: i64,
        now: i64,
    }
    let after = after.unwrap_or(JobId(Uuid::nil()));
    let sql = format!("SELECT id, created_at, {{now}} AS now FROM jobs WHERE id > $1 ORDER BY id LIMIT {SLICE}");
    let mut rows = Row::find_by_statement(statement(&db.read, &sql, [after.into()])).all(&db.read).await?;
    // Ids are in the order of their making: behind the first young one nothing is old.
    rows.truncate(rows.partition_point(|row| row.created_at < row.now - micros(keep)));
    let Some(last) = rows.last().map(|row| row.id) else { return Ok(Slice::default()) };
    let sql = format!(
        "DELETE FROM jobs WHERE finished_at < {{now}} - $1 AND id IN ({})
         AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.id = jobs.batch_id AND b.finished_at IS NULL)",
        placeholders(2, rows.len())
    );
    let values = std::iter::once(micros(keep).into()).chain(rows.iter().map(|row| row.id.into()));
    let deleted = execute(&db.write, &sql, values).await?;
    Ok(Slice { deleted, last: (rows.len() == SLICE).then_some(last) })
}

/// Deletes up to `limit` batches that ended more than `keep` ago and have no job any more.
pub async fn delete_ended_batches(db: &Db, keep: Duration, limit: u64) -> Result<u64, DbErr> {
    let sql = format!(
        "DELETE FROM batches WHERE id IN (
            SELECT b.id FROM batches b WHERE b.finished_at < {{now}} - $1
                AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.batch_id = b.id)
            ORDER BY b.id LIMIT {limit})"
    );
    execute(&db.write, &sql, [micros(keep).into()]).await
}
