//! Persons have a description; undelivered webhook messages are found without reading the others.

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
        let undelivered = "CREATE INDEX webhook_deliveries_undelivered ON webhook_deliveries (endpoint_id, id)
            WHERE state IN ('failed', 'dropped')";
        run(manager, &["ALTER TABLE persons ADD COLUMN description text", undelivered]).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, &["DROP INDEX webhook_deliveries_undelivered", "ALTER TABLE persons DROP COLUMN description"])
            .await
    }
}
