//! Reading jobs.

use sea_orm::prelude::*;
use sea_orm::{Condition, FromQueryResult, QueryFilter, QueryOrder, QuerySelect};

use crate::access::{Grant, Scope};
use crate::db::entity::job::{Column, Entity, Model};
use crate::db::{Db, placeholders, scoped, statement};
use crate::ids::{CollectionId, JobId};
use crate::job::{JobArgs, JobKind, JobState, Problem};

/// A job with its answer.
#[derive(Clone, Debug)]
pub struct JobWithAnswer {
    /// The row.
    pub job: Model,
    /// Its arguments; `None` where the stored text is none of this version.
    pub args: Option<JobArgs>,
    /// The result of a job that succeeded.
    pub result: Option<serde_json::Value>,
    /// Why a job was rejected or failed, or why the last attempt of a queued one did.
    pub problem: Option<Problem>,
}

/// Which jobs a list shows.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct JobFilter {
    pub collection: Option<CollectionId>,
    pub kind: Option<JobKind>,
    pub state: Option<JobState>,
}

/// The job of that id, if the grant shows it.
pub async fn find(db: &Db, grant: &Grant, id: JobId) -> Result<Option<JobWithAnswer>, DbErr> {
    let rows = Entity::find_by_id(id).filter(shown(grant)).all(&db.read).await?;
    Ok(with_answers(db, rows).await?.pop())
}

/// Up to `limit` jobs that the grant shows and that were made before `before`, newest first.
pub async fn list(
    db: &Db,
    grant: &Grant,
    filter: JobFilter,
    before: Option<JobId>,
    limit: u64,
) -> Result<Vec<JobWithAnswer>, DbErr> {
    let mut query = Entity::find().filter(shown(grant)).order_by_desc(Column::Id).limit(limit);
    if let Some(collection) = filter.collection {
        query = query.filter(Column::CollectionId.eq(collection));
    }
    if let Some(kind) = filter.kind {
        query = query.filter(Column::Kind.eq(kind));
    }
    if let Some(state) = filter.state {
        query = query.filter(Column::State.eq(state));
    }
    if let Some(before) = before {
        query = query.filter(Column::Id.lt(before));
    }
    let rows = query.all(&db.read).await?;
    with_answers(db, rows).await
}

/// Whoever may not read at all sees the jobs that it made.
fn shown(grant: &Grant) -> Condition {
    let reached = scoped::filter(grant, Column::CollectionId);
    if grant.has(Scope::Read) { reached } else { reached.add(Column::ApiKeyId.eq(grant.owner())) }
}

/// The jobs with what their payloads say.
pub(in crate::db) async fn with_answers(db: &Db, jobs: Vec<Model>) -> Result<Vec<JobWithAnswer>, DbErr> {
    #[derive(FromQueryResult)]
    struct Answer {
        job_id: JobId,
        args: String,
        result: Option<String>,
        problem: Option<String>,
    }
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT job_id, args, result, problem FROM job_payloads WHERE job_id IN ({})",
        placeholders(1, jobs.len())
    );
    let ids = jobs.iter().map(|j| j.id.into());
    let answers = Answer::find_by_statement(statement(&db.read, &sql, ids)).all(&db.read).await?;
    let mut by_job: std::collections::HashMap<_, _> = answers.into_iter().map(|a| (a.job_id, a)).collect();
    jobs.into_iter()
        .map(|job| {
            let answer = by_job.remove(&job.id);
            let args = answer.as_ref().and_then(|a| serde_json::from_str(&a.args).ok());
            let (result, problem) = answer.map_or((None, None), |a| (a.result, a.problem));
            Ok(JobWithAnswer {
                job,
                args,
                result: result.map(|text| parse(&text)).transpose()?,
                problem: problem.map(|text| parse(&text)).transpose()?,
            })
        })
        .collect()
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, DbErr> {
    serde_json::from_str(text).map_err(|e| DbErr::Json(e.to_string()))
}
