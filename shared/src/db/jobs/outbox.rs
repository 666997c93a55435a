//! Which queued jobs the queue has not been told of, and the mark that says it has.

use std::collections::HashMap;
use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::transition::are_locked;
use crate::db::entity::job::Model;
use crate::db::{Db, count, execute, is_postgres, statement};
use crate::ids::{CollectionId, EpochId, JobId};
use crate::job::{JobKind, Lane};

/// A job that is due and not dispatched.
#[derive(Clone, Debug, FromQueryResult)]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct DueJob {
    pub id: JobId,
    /// Whose turn it waited for.
    pub source_id: Option<Uuid>,
    pub collection_id: CollectionId,
    pub kind: JobKind,
    pub lane: Lane,
    pub pipeline: String,
    /// Grows with every change of the job's state.
    pub version: i64,
    pub alone: i32,
    pub traceparent: Option<String>,
    /// The queue's epoch when the job was read; a mark of an older epoch means nothing.
    pub epoch: Option<EpochId>,
    /// For how long it has been due, in microseconds, by the database's clock.
    pub overdue_us: i64,
}

impl DueJob {
    /// For how long it has been due.
    pub fn overdue(&self) -> Duration {
        Duration::from_micros(u64::try_from(self.overdue_us).unwrap_or_default())
    }

    /// A job that was committed just now, to be dispatched at once.
    pub async fn submitted(db: &Db, job: &Model) -> Result<Self, DbErr> {
        Ok(Self {
            id: job.id,
            source_id: job.source_id,
            collection_id: job.collection_id,
            kind: job.kind,
            lane: job.lane,
            pipeline: job.pipeline.clone(),
            version: job.version,
            alone: job.alone,
            traceparent: job.traceparent.clone(),
            epoch: epoch(db).await?,
            overdue_us: 0,
        })
    }
}

/// The pipelines of a lane that have jobs which are not dispatched.
pub async fn pipelines(db: &Db, lane: Lane) -> Result<Vec<String>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        pipeline: String,
    }
    // From one to the next through the index: a million waiting jobs of one pipeline are not looked at.
    let next = |after: &str| {
        format!(
            "SELECT pipeline FROM jobs WHERE state = 'queued' AND dispatched_at IS NULL AND lane = $1 {after}
             ORDER BY pipeline LIMIT 1"
        )
    };
    let sql = format!(
        "WITH RECURSIVE p (pipeline) AS (
            SELECT pipeline FROM ({}) AS first
            UNION ALL SELECT ({}) FROM p WHERE p.pipeline IS NOT NULL)
         SELECT pipeline FROM p WHERE pipeline IS NOT NULL",
        next(""),
        next("AND jobs.pipeline > p.pipeline")
    );
    let rows = Row::find_by_statement(statement(&db.read, &sql, [lane.to_value().into()])).all(&db.read).await?;
    Ok(rows.into_iter().map(|r| r.pipeline).collect())
}

/// Up to `limit` sources (batches, and for jobs of no batch collections) of a lane and pipeline that have jobs to
/// dispatch, in the order of their ids, those after `after`. A batch that is held or has ended is none.
pub async fn sources(db: &Db, lane: Lane, pipeline: &str, after: Option<Uuid>, limit: u64) -> Result<Vec<Uuid>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        source_id: Uuid,
    }
    // From one to the next through the index, as above: not even a million jobs of a source that is held are looked at.
    let next = |after: &str| {
        format!(
            "SELECT source_id FROM jobs WHERE state = 'queued' AND dispatched_at IS NULL AND lane = $1 AND pipeline = $2
             AND source_id > {after} ORDER BY source_id LIMIT 1"
        )
    };
    let sql = format!(
        "WITH RECURSIVE s (source_id) AS (
            SELECT source_id FROM ({}) AS first
            UNION ALL SELECT ({}) FROM s WHERE s.source_id IS NOT NULL)
         SELECT source_id FROM s WHERE source_id IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.id = s.source_id AND b.state <> 'running')
         ORDER BY source_id LIMIT {limit}",
        next("$3"),
        next("s.source_id")
    );
    let values = [lane.to_value().into(), pipeline.into(), after.unwrap_or(Uuid::nil()).into()];
    let rows = Row::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await?;
    Ok(rows.into_iter().map(|r| r.source_id).collect())
}

/// What is read of a due job.
const DUE: &str = "id, source_id, collection_id, kind, lane, pipeline, version, alone, traceparent,
    (SELECT epoch FROM queue_epochs) AS epoch, {now} - run_at AS overdue_us";

/// Up to `limit` jobs of a source that need the pipeline's models, are due and not dispatched, those that have been due
/// longest first.
pub async fn due(db: &Db, lane: Lane, pipeline: &str, source: Uuid, limit: u64) -> Result<Vec<DueJob>, DbErr> {
    // The time as a sub-select, or jobs that are not due yet would be read one by one and left.
    let sql = format!(
        "SELECT {DUE} FROM jobs
         WHERE state = 'queued' AND dispatched_at IS NULL AND lane = $1 AND pipeline = $2 AND source_id = $3
            AND run_at <= (SELECT {{now}}) AND kind <> 'rematch'
         ORDER BY run_at, id LIMIT {limit}"
    );
    let values = [lane.to_value().into(), pipeline.into(), source.into()];
    DueJob::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await
}

/// How many jobs of a lane and pipeline that need its models are dispatched and not yet claimed.
pub async fn dispatched(db: &Db, lane: Lane, pipeline: &str) -> Result<i64, DbErr> {
    let sql = "SELECT count(*) AS n FROM jobs WHERE dispatched_at IS NOT NULL AND lane = $1 AND pipeline = $2
        AND kind <> 'rematch'";
    count(&db.read, sql, [lane.to_value().into(), pipeline.into()]).await
}

/// Which jobs are rematches that have not ended, word for word as in their index; of all collections, since `SQLite` would
/// take another index that has all open jobs where nothing is said of them.
const REMATCHES: &str = "kind = 'rematch' AND state IN ('queued', 'running') AND collection_id > $1 AND pipeline = $2";

/// Rematches of a pipeline that are due and not dispatched, those that have been due longest first: so many that with them
/// no more than `most` are dispatched and not yet claimed. They need no models.
pub async fn due_rematches(db: &Db, pipeline: &str, most: u64) -> Result<Vec<DueJob>, DbErr> {
    let values = || [Uuid::nil().into(), pipeline.into()];
    let sql = format!("SELECT count(*) AS n FROM jobs WHERE {REMATCHES} AND dispatched_at IS NOT NULL");
    let dispatched = u64::try_from(count(&db.read, &sql, values()).await?).unwrap_or_default();
    let room = most.saturating_sub(dispatched);
    let sql = format!(
        "SELECT {DUE} FROM jobs WHERE {REMATCHES} AND state = 'queued' AND dispatched_at IS NULL
            AND run_at <= (SELECT {{now}})
         ORDER BY run_at, id LIMIT {room}"
    );
    DueJob::find_by_statement(statement(&db.read, &sql, values())).all(&db.read).await
}

/// Marks jobs as dispatched. A job that was claimed since, even if it is queued again by now, is left as it is: the mark
/// would say that a message is on its way which is used up already. So is one that was published in an epoch that is over.
pub async fn mark_dispatched(db: &Db, jobs: &[DueJob]) -> Result<(), DbErr> {
    let lock = if is_postgres(&db.write) { "FOR KEY SHARE" } else { "" };
    let mut groups: HashMap<(i64, Option<EpochId>), Vec<JobId>> = HashMap::new();
    for job in jobs {
        groups.entry((job.version, job.epoch)).or_default().push(job.id);
    }
    for ((version, epoch), ids) in groups {
        let sql = format!(
            "UPDATE jobs SET dispatched_at = {{now}}
             WHERE state = 'queued' AND dispatched_at IS NULL AND version = $1
               AND (SELECT epoch FROM queue_epochs {lock}) IS NOT DISTINCT FROM $2
               AND {}",
            are_locked(3, ids.len())
        );
        let values = [version.into(), epoch.into()].into_iter().chain(ids.into_iter().map(Into::into));
        execute(&db.write, &sql, values).await?;
    }
    Ok(())
}

/// Clears the marks of jobs whose message the queue gave up, and has them sent alone: whatever made their deliveries fail
/// shall not take others along. Their state is left as it is: that is for an attempt to decide.
pub async fn return_dead(db: &Db, jobs: &[JobId]) -> Result<u64, DbErr> {
    let sql = format!(
        "UPDATE jobs SET dispatched_at = NULL, alone = CASE WHEN alone < 1 THEN 1 ELSE alone END, version = version + 1
         WHERE state = 'queued' AND {}",
        are_locked(1, jobs.len())
    );
    execute(&db.write, &sql, jobs.iter().map(|id| Value::from(*id))).await
}

/// The queue's epoch; `None` before the first.
pub async fn epoch(db: &Db) -> Result<Option<EpochId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        epoch: Option<EpochId>,
    }
    let row = Row::find_by_statement(statement(&db.read, "SELECT epoch FROM queue_epochs", [])).one(&db.read).await?;
    Ok(row.and_then(|r| r.epoch))
}

/// Begins a new epoch after `old` and forgets every mark, as the queue has lost the messages. `None` when somebody else
/// began one before, else how many jobs will be sent again.
pub async fn begin_epoch(db: &Db, old: Option<EpochId>, new: EpochId) -> Result<Option<u64>, DbErr> {
    let txn = db.begin().await?;
    // The row is locked in full, so that no mark of the old epoch can be under way beside this.
    let sql = "SELECT count(*) AS n FROM
        (SELECT singleton FROM queue_epochs WHERE epoch IS NOT DISTINCT FROM $1 {for update}) AS current";
    if count(&txn, sql, [old.into()]).await? == 0 {
        return Ok(None);
    }
    execute(&txn, "UPDATE queue_epochs SET epoch = $1", [new.into()]).await?;
    let sql = "UPDATE jobs SET dispatched_at = NULL
        WHERE id IN (SELECT id FROM jobs WHERE dispatched_at IS NOT NULL ORDER BY id {for update})";
    let cleared = execute(&txn, sql, []).await?;
    txn.commit().await?;
    Ok(Some(cleared))
}
