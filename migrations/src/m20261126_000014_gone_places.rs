//! Places and images that are gone, and what a batch found of them.

use sea_orm_migration::prelude::*;

use crate::statements::{is_sqlite, run};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    /// All of it or nothing, on `SQLite` too.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, &UP).await?;
        run(manager, if is_sqlite(manager) { &[] } else { UP_POSTGRES }).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, if is_sqlite(manager) { &[] } else { DOWN_POSTGRES }).await?;
        run(manager, &DOWN).await
    }
}

const UP: [&str; 7] = [
    "ALTER TABLE images ADD COLUMN gone_at bigint",
    "CREATE INDEX images_gone ON images (collection_id, id) WHERE gone_at IS NOT NULL",
    "ALTER TABLE batches ADD COLUMN on_gone text NOT NULL DEFAULT 'keep' CHECK (on_gone IN ('keep', 'delete'))",
    // Null: there is nothing to sweep.
    "ALTER TABLE batches ADD COLUMN sweep text CHECK (sweep IN ('waits', 'done'))",
    "ALTER TABLE batches ADD COLUMN moved bigint NOT NULL DEFAULT 0",
    "ALTER TABLE batches ADD COLUMN gone bigint NOT NULL DEFAULT 0",
    // Places that the collection knows and a batch's listing did not meet, until they are judged.
    "CREATE TABLE batch_missing (
        batch_id uuid NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
        uri text NOT NULL,
        PRIMARY KEY (batch_id, uri)
    )",
];

const DOWN: [&str; 7] = [
    "DROP TABLE batch_missing",
    "ALTER TABLE batches DROP COLUMN gone",
    "ALTER TABLE batches DROP COLUMN moved",
    "ALTER TABLE batches DROP COLUMN sweep",
    "ALTER TABLE batches DROP COLUMN on_gone",
    "DROP INDEX images_gone",
    "ALTER TABLE images DROP COLUMN gone_at",
];

// In the order of their bytes, as listings are, and as SQLite has them anyway: known places are compared with a page by
// their range.
const UP_POSTGRES: &[&str] = &[
    "ALTER TABLE image_sources ALTER COLUMN uri TYPE text COLLATE \"C\"",
    "ALTER TABLE batch_missing ALTER COLUMN uri TYPE text COLLATE \"C\"",
];

const DOWN_POSTGRES: &[&str] = &["ALTER TABLE image_sources ALTER COLUMN uri TYPE text COLLATE \"default\""];
