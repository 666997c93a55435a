//! Jobs, their payloads, the claims on them, and idempotency keys.

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

const UP: [&str; 10] = [
    "CREATE TABLE claims (
        id uuid NOT NULL PRIMARY KEY,
        owner text NOT NULL,
        lease_expires_at bigint NOT NULL
    )",
    "CREATE TABLE jobs (
        id uuid NOT NULL PRIMARY KEY,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        kind text NOT NULL,
        lane text NOT NULL,
        pipeline text NOT NULL,
        state text NOT NULL,
        attempt integer NOT NULL,
        run_at bigint NOT NULL,
        dispatched_at bigint,
        claim_id uuid,
        alone integer NOT NULL,
        cancel_requested boolean NOT NULL,
        tag text,
        version bigint NOT NULL,
        created_at bigint NOT NULL,
        started_at bigint,
        finished_at bigint,
        CHECK (state IN ('queued', 'running', 'succeeded', 'rejected', 'failed', 'cancelled')),
        CHECK (state = 'queued' OR dispatched_at IS NULL),
        CHECK ((state = 'running') = (claim_id IS NOT NULL)),
        CHECK ((state IN ('queued', 'running')) = (finished_at IS NULL)),
        CHECK (alone BETWEEN 0 AND 2)
    )",
    "CREATE INDEX jobs_to_dispatch ON jobs (lane, id) WHERE state = 'queued' AND dispatched_at IS NULL",
    "CREATE INDEX jobs_dispatched ON jobs (lane) WHERE dispatched_at IS NOT NULL",
    "CREATE INDEX jobs_by_claim ON jobs (claim_id) WHERE claim_id IS NOT NULL",
    "CREATE INDEX jobs_by_collection ON jobs (collection_id, id)",
    "CREATE TABLE job_payloads (
        job_id uuid NOT NULL PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
        args text NOT NULL,
        result text,
        problem text
    )",
    "CREATE TABLE job_uploads (
        job_id uuid NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        upload_id uuid NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
        PRIMARY KEY (upload_id, job_id)
    )",
    "CREATE TABLE idempotency_keys (
        route text NOT NULL,
        key text NOT NULL,
        fingerprint text NOT NULL,
        job_id uuid NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        expires_at bigint NOT NULL,
        PRIMARY KEY (route, key)
    )",
    "CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (expires_at)",
];

const DOWN: [&str; 5] = [
    "DROP TABLE idempotency_keys",
    "DROP TABLE job_uploads",
    "DROP TABLE job_payloads",
    "DROP TABLE jobs",
    "DROP TABLE claims",
];
