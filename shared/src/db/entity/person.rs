//! A person of a collection.

use sea_orm::entity::prelude::*;

use crate::ids::{CollectionId, PersonId};

/// A row of `persons`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "persons")]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: PersonId,
    pub collection_id: CollectionId,
    pub external_id: Option<String>,
    pub name: Option<String>,
    pub description: Option<String>,
    pub created_at: i64,
    /// When its erasure was requested: from then on nobody finds it, and its faces are left alone until they are gone.
    pub erased_at: Option<i64>,
}

/// Joins are written as named queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
