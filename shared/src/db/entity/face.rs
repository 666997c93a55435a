//! A face on an image.

use sea_orm::entity::prelude::*;

use crate::ids::{CollectionId, FaceId, ImageId, PersonId};

/// Who said whose face it is.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    EnumIter,
    DeriveActiveEnum,
    serde::Serialize,
    serde::Deserialize,
    utoipa::ToSchema,
)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum AssignedBy {
    /// An enroll job.
    #[sea_orm(string_value = "enrolled")]
    Enrolled,
    /// A user, by hand.
    #[sea_orm(string_value = "user")]
    User,
    /// A match; such faces form no template, so that a wrong match cannot spread.
    #[sea_orm(string_value = "auto")]
    Auto,
    /// A cluster of unknown faces.
    #[sea_orm(string_value = "cluster")]
    Cluster,
}

/// A row of `faces`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "faces")]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: FaceId,
    pub collection_id: CollectionId,
    pub image_id: ImageId,
    pub person_id: Option<PersonId>,
    pub assigned_by: Option<AssignedBy>,
    pub created_at: i64,
    /// Nothing automatic changes whose it is.
    pub locked: bool,
    /// Left out of lists, matching and clusters.
    pub hidden: bool,
}

impl Model {
    /// Whose template it is.
    pub fn template_of(&self) -> Option<PersonId> {
        let is_template = matches!(self.assigned_by, Some(AssignedBy::Enrolled | AssignedBy::User)) && !self.hidden;
        self.person_id.filter(|_| is_template)
    }

    /// Whether a match may say whose it is: nobody did by hand, and it takes part in matching.
    pub fn is_matchable(&self) -> bool {
        let by_hand = self.person_id.is_some() && self.assigned_by != Some(AssignedBy::Auto);
        !(self.locked || self.hidden || by_hand)
    }
}

/// Joins are written as named queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
