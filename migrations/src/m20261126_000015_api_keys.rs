//! API keys, the collections that they hold for, what they have taken of their limits, and whose jobs are.

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

const UP: [&str; 8] = [
    // A key that is rotated goes on as another one of the same line; the first one's id is the line's. A limit that is null is
    // the configured one.
    "CREATE TABLE api_keys (
        id uuid NOT NULL PRIMARY KEY,
        line_id uuid NOT NULL,
        name text NOT NULL,
        prefix text NOT NULL UNIQUE,
        secret_hash text NOT NULL,
        scopes text NOT NULL,
        all_collections boolean NOT NULL,
        requests_per_minute bigint CHECK (requests_per_minute >= 0),
        jobs_in_flight bigint CHECK (jobs_in_flight >= 0),
        images_per_day bigint CHECK (images_per_day >= 0),
        created_at bigint NOT NULL,
        expires_at bigint,
        revoked_at bigint,
        last_used_at bigint,
        successor_id uuid
    )",
    // Without a row of it, a key that is not one of all collections sees none.
    "CREATE TABLE api_key_collections (
        api_key_id uuid NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        PRIMARY KEY (api_key_id, collection_id)
    )",
    "CREATE INDEX api_key_collections_by_collection ON api_key_collections (collection_id)",
    // Of each line of keys: which minute and day (since the epoch) it was last counted in, and how much was taken of it.
    "CREATE TABLE api_key_usage (
        line_id uuid NOT NULL PRIMARY KEY,
        minute bigint NOT NULL,
        requests bigint NOT NULL,
        day bigint NOT NULL,
        images bigint NOT NULL
    )",
    // No reference: a job outlives its key. The jobs of a batch are the batch's.
    "ALTER TABLE jobs ADD COLUMN api_key_id uuid",
    "ALTER TABLE batches ADD COLUMN api_key_id uuid",
    "CREATE INDEX jobs_by_key ON jobs (api_key_id, id) WHERE api_key_id IS NOT NULL",
    "CREATE INDEX jobs_in_flight_by_key ON jobs (api_key_id)
        WHERE api_key_id IS NOT NULL AND state IN ('queued', 'running')",
];

const DOWN: [&str; 7] = [
    "DROP INDEX jobs_in_flight_by_key",
    "DROP INDEX jobs_by_key",
    "ALTER TABLE batches DROP COLUMN api_key_id",
    "ALTER TABLE jobs DROP COLUMN api_key_id",
    "DROP TABLE api_key_usage",
    "DROP TABLE api_key_collections",
    "DROP TABLE api_keys",
];
