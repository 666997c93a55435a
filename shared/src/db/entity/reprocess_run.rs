//! A run that gives a collection another pipeline.

use sea_orm::entity::prelude::*;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{ApiKeyId, CollectionId, ImageId, ReprocessRunId};

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, EnumIter, DeriveActiveEnum, ToSchema)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// The collection's images get what the new pipeline makes of them, beside what they have.
    #[sea_orm(string_value = "filling")]
    Filling,
    /// They have it, and the collection still goes by the old pipeline.
    #[sea_orm(string_value = "ready")]
    Ready,
    /// The collection goes by the new pipeline; what the old one made is kept.
    #[sea_orm(string_value = "active")]
    Active,
    /// What the old pipeline made is being deleted.
    #[sea_orm(string_value = "pruning")]
    Pruning,
    /// What the new pipeline made is being deleted.
    #[sea_orm(string_value = "cancelling")]
    Cancelling,
    /// The collection goes by the new pipeline and has nothing of the old one. Final.
    #[sea_orm(string_value = "pruned")]
    Pruned,
    /// The collection goes by the old pipeline and has nothing of the new one. Final.
    #[sea_orm(string_value = "cancelled")]
    Cancelled,
}

/// A row of `reprocess_runs`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "reprocess_runs")]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: ReprocessRunId,
    pub collection_id: CollectionId,
    /// The pipeline that the collection went by when the run was made, and its detector revision.
    pub from_pipeline: String,
    pub from_revision: String,
    /// The new one.
    pub pipeline: String,
    pub revision: String,
    pub state: RunState,
    /// No further image is begun.
    pub paused: bool,
    /// Since when what the other pipeline made may go.
    pub prune_after: Option<i64>,
    /// What lacks something of the new pipeline then goes with the old one's.
    pub lacking_accepted: bool,
    /// The setting of that name for the pipeline that is not active.
    pub match_cosine: Option<f64>,
    /// The last image that was listed, or at the end deleted of.
    pub checkpoint: Option<ImageId>,
    /// When every image was listed.
    pub listed_at: Option<i64>,
    /// Images that are done in a second, a moving average.
    pub pace: Option<f64>,
    /// When that was measured last, and how many images were left then.
    pub paced_at: i64,
    pub paced_images: i64,
    pub tag: Option<String>,
    pub traceparent: Option<String>,
    /// The first key of the line that asked for it.
    pub api_key_id: Option<ApiKeyId>,
    pub version: i64,
    pub created_at: i64,
    /// When every image was done for the first time.
    pub completed_at: Option<i64>,
    /// When the collection went over last.
    pub activated_at: Option<i64>,
    pub ended_at: Option<i64>,
    /// What it has done when its end began, as JSON.
    pub figures: Option<String>,
}

/// Joins are written as named queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
