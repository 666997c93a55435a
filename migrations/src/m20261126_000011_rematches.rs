//! What has changed since a collection's faces were last matched, and the indexes to match them again.

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
        run(manager, if is_sqlite(manager) { UP_SQLITE } else { UP_POSTGRES }).await?;
        run(manager, &UP).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, &DOWN).await
    }
}

// Rows are only added, so that no enroll waits for another's. The face or the person may be gone by the time it is read.
const UP_SQLITE: &[&str] = &["CREATE TABLE rematch_requests (
        id integer PRIMARY KEY AUTOINCREMENT,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        face_id uuid,
        person_id uuid,
        requested_at bigint NOT NULL
    )"];

const UP_POSTGRES: &[&str] = &[
    "CREATE TABLE rematch_requests (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        face_id uuid,
        person_id uuid,
        requested_at bigint NOT NULL
    )",
    "ALTER TABLE rematch_requests SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_cost_delay = 0)",
];

const UP: [&str; 4] = [
    "CREATE INDEX rematch_requests_by_collection ON rematch_requests (collection_id, requested_at)",
    "CREATE INDEX faces_matchable ON faces (collection_id, id)
        WHERE NOT hidden AND NOT locked AND (person_id IS NULL OR assigned_by = 'auto')",
    // A job that has begun never counts as waiting again, whatever its state: no move of it can meet this.
    "CREATE UNIQUE INDEX jobs_rematch_waiting ON jobs (collection_id)
        WHERE kind = 'rematch' AND state = 'queued' AND started_at IS NULL",
    "CREATE INDEX jobs_rematch_open ON jobs (collection_id) WHERE kind = 'rematch' AND state IN ('queued', 'running')",
];

const DOWN: [&str; 5] = [
    "DELETE FROM jobs WHERE kind = 'rematch'",
    "DROP INDEX jobs_rematch_open",
    "DROP INDEX jobs_rematch_waiting",
    "DROP INDEX faces_matchable",
    "DROP TABLE rematch_requests",
];
