//! Batches of jobs, what their jobs' states add up to, and which places of pictures a collection knows.

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
        run(manager, if is_sqlite(manager) { UP_SQLITE } else { UP_POSTGRES }).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, &DOWN).await
    }
}

const UP: [&str; 17] = [
    // The counts are folded from batch_deltas, so that no job's end waits for another's.
    "CREATE TABLE batches (
        id uuid NOT NULL PRIMARY KEY,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        kind text NOT NULL,
        pipeline text NOT NULL,
        source text NOT NULL,
        state text NOT NULL,
        round integer NOT NULL,
        checkpoint text,
        listed_at bigint,
        list_after bigint NOT NULL,
        listing_tries integer NOT NULL,
        listing_failed boolean NOT NULL,
        reopen_before bigint,
        problem text,
        items bigint NOT NULL,
        unchanged bigint NOT NULL,
        queued bigint NOT NULL,
        running bigint NOT NULL,
        succeeded bigint NOT NULL,
        rejected bigint NOT NULL,
        failed bigint NOT NULL,
        cancelled bigint NOT NULL,
        faces bigint NOT NULL,
        pace double precision,
        paced_at bigint NOT NULL,
        paced_jobs bigint NOT NULL,
        tag text,
        traceparent text,
        version bigint NOT NULL,
        created_at bigint NOT NULL,
        finished_at bigint,
        CHECK (state IN ('running', 'paused', 'cancelled', 'completed', 'failed'))
    )",
    "CREATE INDEX batches_by_collection ON batches (collection_id, id)",
    "CREATE INDEX batches_open ON batches (id) WHERE finished_at IS NULL",
    "CREATE TABLE batch_problems (
        batch_id uuid NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
        state text NOT NULL,
        code text NOT NULL,
        jobs bigint NOT NULL,
        PRIMARY KEY (batch_id, state, code)
    )",
    // What a collection knows of a place is only true for the bytes that the fingerprint stands for. Without an image: that
    // they are no picture.
    "CREATE TABLE image_sources (
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        uri text NOT NULL,
        fingerprint text NOT NULL,
        image_id uuid REFERENCES images (id) ON DELETE CASCADE,
        seen_at bigint NOT NULL,
        PRIMARY KEY (collection_id, uri)
    )",
    "CREATE INDEX image_sources_by_image ON image_sources (image_id)",
    "ALTER TABLE jobs ADD COLUMN batch_id uuid REFERENCES batches (id) ON DELETE CASCADE",
    "ALTER TABLE jobs ADD COLUMN item_no bigint",
    // Whose turn it is: the batch's, or for a job of no batch its collection's.
    "ALTER TABLE jobs ADD COLUMN source_id uuid",
    "ALTER TABLE jobs ADD COLUMN problem_code text",
    "UPDATE jobs SET source_id = collection_id WHERE state IN ('queued', 'running')",
    "DROP INDEX jobs_to_dispatch",
    "CREATE INDEX jobs_to_dispatch ON jobs (lane, pipeline, source_id, run_at, id)
        WHERE state = 'queued' AND dispatched_at IS NULL",
    "CREATE UNIQUE INDEX jobs_by_batch ON jobs (batch_id, item_no) WHERE batch_id IS NOT NULL",
    "CREATE INDEX jobs_unsuccessful ON jobs (batch_id, state, item_no)
        WHERE batch_id IS NOT NULL AND state IN ('rejected', 'failed', 'cancelled')",
    "CREATE TABLE batch_idempotency_keys (
        route text NOT NULL,
        key text NOT NULL,
        fingerprint text NOT NULL,
        batch_id uuid NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
        expires_at bigint NOT NULL,
        PRIMARY KEY (route, key)
    )",
    "CREATE INDEX batch_idempotency_keys_by_batch ON batch_idempotency_keys (batch_id)",
];

const UP_SQLITE: &[&str] = &[
    // A picture that stays where it is has no object of ours. This is how SQLite's manual (lang_altertable, section 8)
    // takes a constraint away; to make the table anew would take the faces with it.
    "PRAGMA writable_schema = ON",
    "UPDATE sqlite_schema SET sql = replace(sql, 'object_key text NOT NULL UNIQUE', 'object_key text UNIQUE')
     WHERE type = 'table' AND name = 'images'",
    "PRAGMA writable_schema = RESET",
    "CREATE TABLE batch_deltas (
        id integer PRIMARY KEY AUTOINCREMENT,
        batch_id uuid NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
        state_from text,
        state_to text,
        code text,
        jobs bigint NOT NULL,
        faces bigint NOT NULL
    )",
];

const UP_POSTGRES: &[&str] = &[
    "CREATE TABLE batch_deltas (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        batch_id uuid NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
        state_from text,
        state_to text,
        code text,
        jobs bigint NOT NULL,
        faces bigint NOT NULL
    )",
    "ALTER TABLE batch_deltas SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_cost_delay = 0)",
];

const DOWN: [&str; 14] = [
    "DROP TABLE batch_idempotency_keys",
    "DROP INDEX jobs_unsuccessful",
    "DROP INDEX jobs_by_batch",
    "DROP INDEX jobs_to_dispatch",
    "CREATE INDEX jobs_to_dispatch ON jobs (lane, pipeline, id) WHERE state = 'queued' AND dispatched_at IS NULL",
    "DELETE FROM jobs WHERE batch_id IS NOT NULL",
    "ALTER TABLE jobs DROP COLUMN problem_code",
    "ALTER TABLE jobs DROP COLUMN source_id",
    "ALTER TABLE jobs DROP COLUMN item_no",
    "ALTER TABLE jobs DROP COLUMN batch_id",
    "DROP TABLE image_sources",
    "DROP TABLE batch_deltas",
    "DROP TABLE batch_problems",
    "DROP TABLE batches",
];
