//! A job; this row is the truth about it.

use sea_orm::entity::prelude::*;

use sea_orm::prelude::Uuid;

use crate::ids::{ApiKeyId, BatchId, ClaimId, CollectionId, JobId};
use crate::job::{JobKind, JobState, Lane};

/// A row of `jobs`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "jobs")]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: JobId,
    pub collection_id: CollectionId,
    pub kind: JobKind,
    pub lane: Lane,
    /// Pinned when the job was made.
    pub pipeline: String,
    pub state: JobState,
    /// How many attempts have begun.
    pub attempt: i32,
    /// Not before this time.
    pub run_at: i64,
    /// When it was last handed to the queue and not yet claimed.
    pub dispatched_at: Option<i64>,
    pub claim_id: Option<ClaimId>,
    /// 0: with others; 1: in a message of its own; 2: with nothing else in the process.
    pub alone: i32,
    pub cancel_requested: bool,
    pub tag: Option<String>,
    pub version: i64,
    pub created_at: i64,
    pub started_at: Option<i64>,
    pub finished_at: Option<i64>,
    /// The W3C trace context of the request that made the job.
    pub traceparent: Option<String>,
    /// The batch that made it.
    pub batch_id: Option<BatchId>,
    /// Its place in the batch, from 0.
    pub item_no: Option<i64>,
    /// Whose turn it waits for: its batch's, or its collection's.
    pub source_id: Option<Uuid>,
    /// The code of its problem, once it is rejected or failed.
    pub problem_code: Option<String>,
    /// The first key of the line that made it; of a single job only.
    pub api_key_id: Option<ApiKeyId>,
    /// Only these endpoints are told of it, a JSON list of their ids; `None`: all that want to know.
    pub webhook_endpoint_ids: Option<String>,
}

/// Joins are written as named queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
