//! Runs a migration's statements, with the few type names in which the two databases differ filled in.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DatabaseBackend;

/// Runs each statement in turn; `{blob}` stands for the backend's type of raw bytes.
pub(crate) async fn run(manager: &SchemaManager<'_>, statements: &[&str]) -> Result<(), DbErr> {
    let blob = match manager.get_database_backend() {
        DatabaseBackend::Postgres => "bytea",
        _ => "blob",
    };
    for statement in statements {
        manager.get_connection().execute_unprepared(&statement.replace("{blob}", blob)).await?;
    }
    Ok(())
}

/// Whether the database is `SQLite`.
pub(crate) fn is_sqlite(manager: &SchemaManager<'_>) -> bool {
    manager.get_database_backend() == DatabaseBackend::Sqlite
}
