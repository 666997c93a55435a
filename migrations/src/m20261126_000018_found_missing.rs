//! What was found missing: a description of persons, whose own a key is, and an index of what was not delivered.

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
        // Until now a command's key was told by its name alone.
        let of_command = "ALTER TABLE api_keys ADD COLUMN of_command boolean NOT NULL DEFAULT FALSE";
        let named = "UPDATE api_keys SET of_command = TRUE WHERE name LIKE 'a command, process %'";
        run(manager, &["ALTER TABLE persons ADD COLUMN description text", undelivered, of_command, named]).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let of_command = "ALTER TABLE api_keys DROP COLUMN of_command";
        run(
            manager,
            &[of_command, "DROP INDEX webhook_deliveries_undelivered", "ALTER TABLE persons DROP COLUMN description"],
        )
        .await
    }
}
