//! Reading batches, with what their accounts say at this moment.

use std::collections::BTreeMap;

use sea_orm::prelude::*;
use sea_orm::sea_query::Expr;
use sea_orm::{FromQueryResult, QueryFilter, QueryOrder, QuerySelect};

use super::deltas::{self, Sum};
use crate::access::Grant;
use crate::db::entity::batch::{Column, Entity, Model};
use crate::db::entity::job;
use crate::db::jobs::read::{JobWithAnswer, with_answers};
use crate::db::{Db, placeholders, scoped, statement};
use crate::ids::{BatchId, CollectionId};
use crate::job::JobState;

/// A batch with its counts as of now.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchWithCounts {
    /// The row, its counts with what is not folded yet.
    pub batch: Model,
    /// How many jobs were rejected or failed with which code.
    pub problems: BTreeMap<(JobState, String), i64>,
}

/// The batch of that id, if the grant holds for its collection.
pub async fn find(db: &Db, grant: &Grant, id: BatchId) -> Result<Option<BatchWithCounts>, DbErr> {
    let query = Entity::find_by_id(id).filter(scoped::filter(grant, Column::CollectionId));
    // The row first: what is folded between the two reads would else be counted in neither.
    Ok(with_counts(db, query).await?.pop())
}

/// Up to `limit` batches of the grant's collections that were made before `before`, newest first.
pub async fn list(
    db: &Db,
    grant: &Grant,
    collection: Option<CollectionId>,
    before: Option<BatchId>,
    limit: u64,
) -> Result<Vec<BatchWithCounts>, DbErr> {
    let reached = scoped::filter(grant, Column::CollectionId);
    let mut query = Entity::find().filter(reached).order_by_desc(Column::Id).limit(limit);
    if let Some(collection) = collection {
        query = query.filter(Column::CollectionId.eq(collection));
    }
    if let Some(before) = before {
        query = query.filter(Column::Id.lt(before));
    }
    with_counts(db, query).await
}

/// Which jobs of a batch a list shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct ItemFilter {
    /// In this state.
    pub state: Option<JobState>,
    /// Those after this item.
    pub after: Option<i64>,
}

/// Up to `limit` jobs of the batch in the order of its items, if the grant holds for its collection.
pub async fn jobs(
    db: &Db,
    grant: &Grant,
    batch: BatchId,
    ItemFilter { state, after }: ItemFilter,
    limit: u64,
) -> Result<Vec<JobWithAnswer>, DbErr> {
    let mut query = job::Entity::find()
        .filter(job::Column::BatchId.eq(batch))
        .filter(scoped::filter(grant, job::Column::CollectionId))
        .order_by_asc(job::Column::ItemNo)
        .limit(limit);
    if let Some(state) = state {
        query = query.filter(job::Column::State.eq(state));
        if matches!(state, JobState::Rejected | JobState::Failed | JobState::Cancelled) {
            // For SQLite, which else does not see that the partial index serves.
            query = query.filter(Expr::cust("state IN ('rejected', 'failed', 'cancelled')"));
        }
    }
    if let Some(after) = after {
        query = query.filter(job::Column::ItemNo.gt(after));
    }
    with_answers(db, query.all(&db.read).await?).await
}

/// One snapshot for the rows and for what is not folded into them.
async fn with_counts(db: &Db, query: Select<Entity>) -> Result<Vec<BatchWithCounts>, DbErr> {
    let txn = db.snapshot().await?;
    let batches = query.all(&txn).await?;
    if batches.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<BatchId> = batches.iter().map(|b| b.id).collect();
    let mut unfolded = deltas::unfolded(&txn, &ids).await?;
    let mut problems = problems(&txn, &ids).await?;
    txn.commit().await?;
    let counted = |batch: Model| {
        let sum = unfolded.remove(&batch.id).unwrap_or_default();
        let mut problems = problems.remove(&batch.id).unwrap_or_default();
        for (key, jobs) in &sum.problems {
            *problems.entry(key.clone()).or_default() += jobs;
        }
        problems.retain(|_, jobs| *jobs > 0);
        BatchWithCounts { batch: add(batch, &sum), problems }
    };
    Ok(batches.into_iter().map(counted).collect())
}

async fn problems(
    conn: &impl ConnectionTrait,
    batches: &[BatchId],
) -> Result<BTreeMap<BatchId, BTreeMap<(JobState, String), i64>>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        batch_id: BatchId,
        state: JobState,
        code: String,
        jobs: i64,
    }
    let sql = format!(
        "SELECT batch_id, state, code, jobs FROM batch_problems WHERE batch_id IN ({})",
        placeholders(1, batches.len())
    );
    let values = batches.iter().map(|batch| Value::from(*batch));
    let rows = Row::find_by_statement(statement(conn, &sql, values)).all(conn).await?;
    let mut problems: BTreeMap<BatchId, BTreeMap<(JobState, String), i64>> = BTreeMap::new();
    for row in rows {
        problems.entry(row.batch_id).or_default().insert((row.state, row.code), row.jobs);
    }
    Ok(problems)
}

fn add(mut batch: Model, sum: &Sum) -> Model {
    for (state, jobs) in &sum.jobs {
        let count = match state {
            JobState::Queued => &mut batch.queued,
            JobState::Running => &mut batch.running,
            JobState::Succeeded => &mut batch.succeeded,
            JobState::Rejected => &mut batch.rejected,
            JobState::Failed => &mut batch.failed,
            JobState::Cancelled => &mut batch.cancelled,
        };
        *count += jobs;
    }
    batch.faces += sum.faces;
    batch
}
