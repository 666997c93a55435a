//! What the housekeeping of several workers agrees on: who leads, and since when the queue has lost nothing.

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
        if is_sqlite(manager) { Ok(()) } else { run(manager, &UP_POSTGRES).await }
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, &DOWN).await
    }
}

const UP: [&str; 4] = [
    "CREATE TABLE leaders (
        role text NOT NULL PRIMARY KEY,
        owner uuid NOT NULL,
        generation bigint NOT NULL,
        expires_at bigint NOT NULL
    )",
    "CREATE TABLE queue_epochs (
        singleton integer NOT NULL PRIMARY KEY CHECK (singleton = 1),
        epoch uuid
    )",
    // One row from the start: whoever marks a job locks it, and a lock needs a row.
    "INSERT INTO queue_epochs (singleton) VALUES (1)",
    "ALTER TABLE jobs ADD COLUMN traceparent text",
];

// Rows of these tables change several times in a job's short life: room on the page for the new version, and a vacuum
// after a fixed number of dead rows however many finished jobs the table holds.
const UP_POSTGRES: [&str; 2] = [
    "ALTER TABLE jobs SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000, autovacuum_vacuum_cost_delay = 0)",
    "ALTER TABLE claims SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500,
        autovacuum_vacuum_cost_delay = 0)",
];

const DOWN: [&str; 3] = ["ALTER TABLE jobs DROP COLUMN traceparent", "DROP TABLE queue_epochs", "DROP TABLE leaders"];
