//! Thresholds that were measured for a pipeline.

use sea_orm::entity::prelude::*;

use crate::ids::{CalibrationId, CollectionId};

/// A row of `calibrations`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "calibrations")]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: CalibrationId,
    pub pipeline: String,
    /// The collection that it holds for; all where there is none.
    pub collection_id: Option<CollectionId>,
    pub measured_on: String,
    /// Rates, thresholds and bounds, as JSON.
    pub points: String,
    /// The lowest rate that comparisons were counted for.
    pub measured_far: f64,
    pub people: i64,
    pub faces: i64,
    pub comparisons: i64,
    /// How sure the bounds are, 0 to 1.
    pub confidence: f64,
    pub created_at: i64,
}

/// Joins are written as named queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
