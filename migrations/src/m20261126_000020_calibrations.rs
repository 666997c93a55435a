//! Thresholds that were measured for a pipeline, in general or for one collection.

use sea_orm_migration::prelude::*;

use crate::statements::run;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    /// All of it or nothing, on `SQLite` too.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, &UP).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, &["DROP TABLE calibrations"]).await
    }
}

const UP: [&str; 3] = [
    "CREATE TABLE calibrations (
        id uuid NOT NULL PRIMARY KEY,
        pipeline text NOT NULL,
        collection_id uuid REFERENCES collections (id) ON DELETE CASCADE,
        measured_on text NOT NULL,
        points text NOT NULL,
        measured_far double precision NOT NULL,
        people bigint NOT NULL,
        faces bigint NOT NULL,
        comparisons bigint NOT NULL,
        confidence double precision NOT NULL,
        created_at bigint NOT NULL
    )",
    "CREATE INDEX calibrations_by_pipeline ON calibrations (pipeline, collection_id, created_at, id)",
    "CREATE INDEX calibrations_by_collection ON calibrations (collection_id) WHERE collection_id IS NOT NULL",
];
