//! Requests for reprocess runs that are sent again, and what a run came to.

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
        run(manager, &DOWN).await
    }
}

const UP: [&str; 3] = [
    "CREATE TABLE reprocess_idempotency_keys (
        route text NOT NULL,
        key text NOT NULL,
        fingerprint text NOT NULL,
        run_id uuid NOT NULL REFERENCES reprocess_runs (id) ON DELETE CASCADE,
        expires_at bigint NOT NULL,
        PRIMARY KEY (route, key)
    )",
    "CREATE INDEX reprocess_idempotency_keys_by_run ON reprocess_idempotency_keys (run_id)",
    // What it has done when its end begins, as JSON: what that was counted by goes then.
    "ALTER TABLE reprocess_runs ADD COLUMN figures text",
];

const DOWN: [&str; 2] = ["ALTER TABLE reprocess_runs DROP COLUMN figures", "DROP TABLE reprocess_idempotency_keys"];
