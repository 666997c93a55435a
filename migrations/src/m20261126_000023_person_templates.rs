//! A person's enrolled faces are read with each search that comes near them: without the many that were only matched.

use sea_orm_migration::prelude::*;

use crate::statements::run;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, &UP).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, &["DROP INDEX faces_templates_by_person"]).await
    }
}

const UP: [&str; 1] = ["CREATE INDEX faces_templates_by_person ON faces (person_id, id)
    WHERE person_id IS NOT NULL AND assigned_by IN ('enrolled', 'user') AND NOT hidden"];
