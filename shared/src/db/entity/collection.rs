//! A gallery of persons and their images.

use sea_orm::entity::prelude::*;

use crate::ids::CollectionId;

/// A row of `collections`.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "collections")]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: CollectionId,
    pub name: String,
    pub pipeline: String,
    pub settings: String,
    pub created_at: i64,
    /// While a run looks for faces again: what this detector revision saw is not shown.
    pub hidden_revision: Option<String>,
    /// Once the collection went over: only what this one saw is shown, and faces that somebody named.
    pub shown_revision: Option<String>,
    /// Since when it is being erased: nobody finds it any more.
    pub erased_at: Option<i64>,
}

/// Joins are written as named queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
