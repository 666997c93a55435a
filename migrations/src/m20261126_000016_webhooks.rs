//! Webhooks: who is told, what happened, and how far the telling is.

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
        run(manager, &DOWN).await
    }
}

const UP: [&str; 14] = [
    // What the installation's secret key makes of a known text, so that a wrong key shows at the start.
    "CREATE TABLE secret_key_check (
        id integer NOT NULL PRIMARY KEY CHECK (id = 1),
        fingerprint text NOT NULL
    )",
    "CREATE TABLE webhook_endpoints (
        id uuid NOT NULL PRIMARY KEY,
        url text NOT NULL,
        description text NOT NULL,
        event_types text NOT NULL,
        all_collections boolean NOT NULL,
        state text NOT NULL CHECK (state IN ('enabled', 'paused', 'disabled')),
        state_reason text,
        secret text NOT NULL,
        previous_secret text,
        previous_secret_until bigint,
        failures integer NOT NULL,
        failing_since bigint,
        last_failure_at bigint,
        version bigint NOT NULL,
        created_at bigint NOT NULL
    )",
    "CREATE TABLE webhook_endpoint_collections (
        endpoint_id uuid NOT NULL REFERENCES webhook_endpoints (id) ON DELETE CASCADE,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        PRIMARY KEY (endpoint_id, collection_id)
    )",
    "CREATE INDEX webhook_endpoint_collections_by_collection ON webhook_endpoint_collections (collection_id)",
    // What an event is about may be gone before it is told.
    "CREATE TABLE webhook_events (
        id uuid NOT NULL PRIMARY KEY,
        type text NOT NULL,
        collection_id uuid,
        job_id uuid,
        batch_id uuid,
        body text NOT NULL,
        created_at bigint NOT NULL
    )",
    "CREATE INDEX webhook_events_by_age ON webhook_events (created_at)",
    "CREATE TABLE webhook_deliveries (
        id uuid NOT NULL PRIMARY KEY,
        event_id uuid NOT NULL REFERENCES webhook_events (id) ON DELETE CASCADE,
        endpoint_id uuid NOT NULL REFERENCES webhook_endpoints (id) ON DELETE CASCADE,
        state text NOT NULL CHECK (state IN ('pending', 'delivered', 'failed', 'dropped')),
        attempt integer NOT NULL,
        begun_at_attempt integer NOT NULL,
        run_at bigint NOT NULL,
        claim_id uuid,
        lease_expires_at bigint,
        created_at bigint NOT NULL,
        finished_at bigint,
        UNIQUE (event_id, endpoint_id),
        CHECK ((state = 'pending') = (finished_at IS NULL)),
        CHECK (claim_id IS NULL OR state = 'pending'),
        CHECK ((claim_id IS NULL) = (lease_expires_at IS NULL))
    )",
    "CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint_id, run_at)
        WHERE state = 'pending' AND claim_id IS NULL",
    "CREATE INDEX webhook_deliveries_claimed ON webhook_deliveries (lease_expires_at) WHERE claim_id IS NOT NULL",
    "CREATE INDEX webhook_deliveries_by_endpoint ON webhook_deliveries (endpoint_id, id)",
    "CREATE TABLE webhook_attempts (
        delivery_id uuid NOT NULL REFERENCES webhook_deliveries (id) ON DELETE CASCADE,
        attempt integer NOT NULL,
        at bigint NOT NULL,
        status integer,
        error text,
        latency_ms bigint NOT NULL,
        response text,
        PRIMARY KEY (delivery_id, attempt)
    )",
    // Only these endpoints are told of the job, a JSON list; null: all that want to know. Not a table: an endpoint that
    // was deleted must not become all the others.
    "ALTER TABLE jobs ADD COLUMN webhook_endpoint_ids text",
    "ALTER TABLE batches ADD COLUMN webhook_endpoint_ids text",
    "CREATE INDEX webhook_deliveries_pending ON webhook_deliveries (endpoint_id, created_at) WHERE state = 'pending'",
];

const UP_POSTGRES: &[&str] = &["ALTER TABLE webhook_deliveries SET (autovacuum_vacuum_scale_factor = 0.01)"];

const DOWN: [&str; 8] = [
    "ALTER TABLE batches DROP COLUMN webhook_endpoint_ids",
    "ALTER TABLE jobs DROP COLUMN webhook_endpoint_ids",
    "DROP TABLE webhook_attempts",
    "DROP TABLE webhook_deliveries",
    "DROP TABLE webhook_events",
    "DROP TABLE webhook_endpoint_collections",
    "DROP TABLE webhook_endpoints",
    "DROP TABLE secret_key_check",
];
