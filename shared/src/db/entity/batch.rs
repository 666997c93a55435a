//! A batch: many jobs that a client asked for in one request.

use sea_orm::entity::prelude::*;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{ApiKeyId, BatchId, CollectionId};
use crate::job::JobKind;

/// Where a batch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, EnumIter, DeriveActiveEnum, ToSchema)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum BatchState {
    /// Its items are listed and its jobs run.
    #[sea_orm(string_value = "running")]
    Running,
    /// No item is listed and no job begun until it is resumed.
    #[sea_orm(string_value = "paused")]
    Paused,
    /// A client no longer wants it: what has not ended is being cancelled, or was.
    #[sea_orm(string_value = "cancelled")]
    Cancelled,
    /// Every item was listed, and every job has ended.
    #[sea_orm(string_value = "completed")]
    Completed,
    /// Its items cannot be listed; the jobs of those that could have ended.
    #[sea_orm(string_value = "failed")]
    Failed,
}

/// What becomes of images that no place is left of.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, EnumIter, DeriveActiveEnum, ToSchema,
)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum OnGone {
    /// They and their faces stay, and are marked.
    #[default]
    #[sea_orm(string_value = "keep")]
    Keep,
    /// They are deleted with their faces.
    #[sea_orm(string_value = "delete")]
    Delete,
}

/// Whether the places that a batch's listing did not meet are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Text")]
pub enum Sweep {
    /// Once every job has ended.
    #[sea_orm(string_value = "waits")]
    Waits,
    /// As far as they can be in this round.
    #[sea_orm(string_value = "done")]
    Done,
}

/// A row of `batches`. The counts are behind by what `batch_deltas` holds.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "batches")]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: BatchId,
    pub collection_id: CollectionId,
    pub kind: JobKind,
    /// Pinned when the batch was made.
    pub pipeline: String,
    /// What is listed, as JSON.
    pub source: String,
    pub state: BatchState,
    /// 1, and one more each time that what failed is tried again.
    pub round: i32,
    /// Where the listing goes on.
    pub checkpoint: Option<String>,
    /// When every item was listed.
    pub listed_at: Option<i64>,
    /// The listing goes on not before this time.
    pub list_after: i64,
    /// How often in a row the listing has failed.
    pub listing_tries: i32,
    /// The listing was given up.
    pub listing_failed: bool,
    /// Jobs that failed before this time are being put back.
    pub reopen_before: Option<i64>,
    /// Why it failed, or why the listing does not go on at the moment, as JSON.
    pub problem: Option<String>,
    /// Items listed so far.
    pub items: i64,
    /// Of these, known to the collection already: no job was made for them.
    pub unchanged: i64,
    pub queued: i64,
    pub running: i64,
    pub succeeded: i64,
    pub rejected: i64,
    pub failed: i64,
    pub cancelled: i64,
    /// Faces that its jobs found.
    pub faces: i64,
    /// Jobs that end in a second, a moving average.
    pub pace: Option<f64>,
    /// When that was measured last, and how many jobs had ended by then.
    pub paced_at: i64,
    pub paced_jobs: i64,
    pub tag: Option<String>,
    pub traceparent: Option<String>,
    pub version: i64,
    pub created_at: i64,
    pub finished_at: Option<i64>,
    pub on_gone: OnGone,
    /// `None`: there is nothing to sweep, or not yet.
    pub sweep: Option<Sweep>,
    /// Places that are gone, their pictures being at places that are new.
    pub moved: i64,
    /// Images of which no place is left.
    pub gone: i64,
    /// The first key of the line that asked for it.
    pub api_key_id: Option<ApiKeyId>,
    /// Only these endpoints are told of it and its jobs, a JSON list of their ids; `None`: all that want to know.
    pub webhook_endpoint_ids: Option<String>,
}

/// Joins are written as named queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
