//! An index by which it is cheap to tell how many single jobs wait, and for how long.

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
        // Without those of batches, of which there may be millions: these make their own way through the queue.
        let index = "CREATE INDEX jobs_waiting ON jobs (pipeline, lane, run_at)
            WHERE state = 'queued' AND batch_id IS NULL";
        run(manager, &[index]).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, &["DROP INDEX jobs_waiting"]).await
    }
}
