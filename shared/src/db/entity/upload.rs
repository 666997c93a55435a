//! A picture that was sent and waits to be used by a job.

use sea_orm::entity::prelude::*;

use crate::ids::{CollectionId, UploadId};

/// A row of `uploads`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "uploads")]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: UploadId,
    pub collection_id: CollectionId,
    pub object_key: String,
    pub sha256: String,
    pub size_bytes: i64,
    pub content_type: String,
    /// Came as base64 inside a job's request: goes with that job.
    pub inline: bool,
    pub created_at: i64,
    pub expires_at: i64,
}

/// Joins are written as named queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
