//! Indexes for what a deletion looks for (without them each deleted job or face reads a whole table), and for what the
//! dispatcher looks for, pipeline by pipeline.

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
        if is_sqlite(manager) {
            run(manager, &["CREATE INDEX embeddings_by_face ON embeddings (face_id)"]).await
        } else {
            Ok(())
        }
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if is_sqlite(manager) {
            run(manager, &["DROP INDEX embeddings_by_face"]).await?;
        }
        run(manager, &DOWN).await
    }
}

const UP: [&str; 6] = [
    "DROP INDEX jobs_to_dispatch",
    "DROP INDEX jobs_dispatched",
    "CREATE INDEX jobs_to_dispatch ON jobs (lane, pipeline, id) WHERE state = 'queued' AND dispatched_at IS NULL",
    "CREATE INDEX jobs_dispatched ON jobs (lane, pipeline) WHERE dispatched_at IS NOT NULL",
    "CREATE INDEX job_uploads_by_job ON job_uploads (job_id)",
    "CREATE INDEX idempotency_keys_by_job ON idempotency_keys (job_id)",
];

const DOWN: [&str; 6] = [
    "DROP INDEX idempotency_keys_by_job",
    "DROP INDEX job_uploads_by_job",
    "DROP INDEX jobs_dispatched",
    "DROP INDEX jobs_to_dispatch",
    "CREATE INDEX jobs_to_dispatch ON jobs (lane, id) WHERE state = 'queued' AND dispatched_at IS NULL",
    "CREATE INDEX jobs_dispatched ON jobs (lane) WHERE dispatched_at IS NOT NULL",
];
