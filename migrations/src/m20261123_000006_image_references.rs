//! Images that lie outside the installation's own object store. Only set-ups with an S3 store have them, and so only
//! `PostgreSQL`: on `SQLite` every image has a key still.

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
        run(manager, &["ALTER TABLE images ADD COLUMN uri text"]).await?;
        if is_sqlite(manager) { Ok(()) } else { run(manager, &UP_POSTGRES).await }
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if !is_sqlite(manager) {
            run(manager, &DOWN_POSTGRES).await?;
        }
        run(manager, &["ALTER TABLE images DROP COLUMN uri"]).await
    }
}

const UP_POSTGRES: [&str; 2] = [
    "ALTER TABLE images ALTER COLUMN object_key DROP NOT NULL",
    "ALTER TABLE images ADD CONSTRAINT images_lie_somewhere CHECK ((object_key IS NULL) <> (uri IS NULL))",
];

const DOWN_POSTGRES: [&str; 3] = [
    "ALTER TABLE images DROP CONSTRAINT images_lie_somewhere",
    "DELETE FROM images WHERE object_key IS NULL",
    "ALTER TABLE images ALTER COLUMN object_key SET NOT NULL",
];
