//! Persons that were merged into others, so that their ids are answered for.

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
        run(manager, &["DROP TABLE person_merges"]).await
    }
}

const UP: [&str; 3] = [
    "CREATE TABLE person_merges (
        person_id uuid NOT NULL PRIMARY KEY,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        into_id uuid NOT NULL REFERENCES persons (id) ON DELETE CASCADE,
        external_id text,
        merged_at bigint NOT NULL
    )",
    "CREATE INDEX person_merges_by_person ON person_merges (into_id)",
    "CREATE INDEX person_merges_by_external_id ON person_merges (collection_id, external_id)
        WHERE external_id IS NOT NULL",
];
