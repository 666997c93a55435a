//! Where one detector revision saw a face.

use sea_orm::entity::prelude::*;

use crate::ids::FaceId;

/// A row of `face_geometry`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "face_geometry")]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub face_id: FaceId,
    #[sea_orm(primary_key, auto_increment = false)]
    pub detector_revision: String,
    pub x: f32,
    pub y: f32,
    pub width: f32,
    pub height: f32,
    /// Five points as JSON, upright original pixels.
    pub landmarks: String,
    pub score: f32,
    /// The worker's quality figures as JSON.
    pub quality: String,
}

/// Joins are written as named queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
