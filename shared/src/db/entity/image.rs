//! An image of a collection; the same bytes are one image.

use sea_orm::entity::prelude::*;

use crate::ids::{CollectionId, ImageId};

/// A row of `images`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "images")]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: ImageId,
    pub collection_id: CollectionId,
    pub sha256: String,
    /// Its key in our object store.
    pub object_key: Option<String>,
    /// Where it lies, when not in our object store.
    pub uri: Option<String>,
    pub width: i32,
    pub height: i32,
    pub created_at: i64,
    /// What a clock at the place showed when it was taken: `YYYY-MM-DDTHH:MM:SS`, with `+HH:MM` behind it where known.
    pub captured_at: Option<String>,
    /// When the last place that it lay at was found to be gone.
    pub gone_at: Option<i64>,
}

/// Joins are written as named queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
