//! Runs a migration's statements.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DatabaseBackend;

/// Until the migration's transaction ends: an index over millions of rows takes as long as it takes, whatever the
/// connection's own limit is; only the wait for a table that others use has an end.
const NO_LIMITS: [&str; 2] = ["SET LOCAL statement_timeout = 0", "SET LOCAL lock_timeout = '30s'"];

/// Runs each statement in turn.
pub(crate) async fn run(manager: &SchemaManager<'_>, statements: &[&str]) -> Result<(), DbErr> {
    let limits: &[&str] = if is_sqlite(manager) { &[] } else { &NO_LIMITS };
    for statement in limits.iter().chain(statements) {
        manager.get_connection().execute_unprepared(statement).await?;
    }
    Ok(())
}

/// Whether the database is `SQLite`.
pub(crate) fn is_sqlite(manager: &SchemaManager<'_>) -> bool {
    manager.get_database_backend() == DatabaseBackend::Sqlite
}
