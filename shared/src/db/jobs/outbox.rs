//! Which queued jobs the queue has not been told of, and the mark that says it has.

use std::collections::HashMap;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use crate::db::entity::job::Model;
use crate::db::{Db, count, execute, statement};
use crate::ids::{CollectionId, JobId};
use crate::job::{JobKind, Lane};

/// A job that is due and not dispatched.
#[derive(Clone, Debug, FromQueryResult)]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct DueJob {
    pub id: JobId,
    pub collection_id: CollectionId,
    pub kind: JobKind,
    pub lane: Lane,
    pub pipeline: String,
    pub attempt: i32,
    pub alone: i32,
}

impl From<&Model> for DueJob {
    fn from(job: &Model) -> Self {
        Self {
            id: job.id,
            collection_id: job.collection_id,
            kind: job.kind,
            lane: job.lane,
            pipeline: job.pipeline.clone(),
            attempt: job.attempt,
            alone: job.alone,
        }
    }
}

/// Up to `limit` jobs of a lane that are due and not dispatched, oldest first.
pub async fn due(db: &Db, lane: Lane, limit: u64) -> Result<Vec<DueJob>, DbErr> {
    let sql = format!(
        "SELECT id, collection_id, kind, lane, pipeline, attempt, alone FROM jobs
         WHERE state = 'queued' AND dispatched_at IS NULL AND lane = $1 AND run_at <= {{now}}
         ORDER BY id LIMIT {limit}"
    );
    DueJob::find_by_statement(statement(&db.read, &sql, [lane.to_value().into()])).all(&db.read).await
}

/// How many jobs of a lane are dispatched and not yet claimed.
pub async fn dispatched(db: &Db, lane: Lane) -> Result<i64, DbErr> {
    let sql = "SELECT count(*) AS n FROM jobs WHERE dispatched_at IS NOT NULL AND lane = $1";
    count(&db.read, sql, [lane.to_value().into()]).await
}

/// Marks jobs as dispatched. A job that was claimed since, even if it is queued again by now, is left alone: the mark
/// would say that a message is on its way which is used up already.
pub async fn mark_dispatched(db: &Db, jobs: &[DueJob]) -> Result<(), DbErr> {
    let mut by_attempt: HashMap<i32, Vec<JobId>> = HashMap::new();
    for job in jobs {
        by_attempt.entry(job.attempt).or_default().push(job.id);
    }
    for (attempt, ids) in by_attempt {
        let sql = format!(
            "UPDATE jobs SET dispatched_at = {{now}}
             WHERE state = 'queued' AND dispatched_at IS NULL AND attempt = $1 AND id IN ({})",
            crate::db::placeholders(2, ids.len())
        );
        let values = std::iter::once(attempt.into()).chain(ids.into_iter().map(Into::into));
        execute(&db.write, &sql, values).await?;
    }
    Ok(())
}
