//! The database: connections, and every query by name. Nothing outside this folder writes SQL.

pub mod collections;
pub mod entity;
pub mod faces;
pub mod images;
pub mod jobs;
pub mod persons;
pub mod uploads;

use std::path::Path;
use std::time::Duration;

use sea_orm::{
    ConnectOptions, ConnectionTrait, DatabaseBackend, DatabaseConnection, DatabaseTransaction, DbErr, FromQueryResult,
    Statement, TransactionTrait, Value,
};

use crate::config::{DatabaseConfig, Synchronous};

/// How long a query may wait for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(20);

/// Connections of one database: one writer on `SQLite`, whose writers would only wait for each other, and several readers.
#[derive(Clone, Debug)]
pub struct Db {
    /// For everything that writes. Never hold a transaction of it across a call that takes another.
    pub write: DatabaseConnection,
    /// For reads; sees what is committed.
    pub read: DatabaseConnection,
}

impl Db {
    /// Opens the `SQLite` file at `path`, making it where there is none.
    pub async fn open_sqlite(path: &Path, config: &DatabaseConfig) -> Result<Self, DbErr> {
        let write = sea_orm::Database::connect(sqlite(path, 1, config.synchronous)).await?;
        let read = sea_orm::Database::connect(sqlite(path, config.read_connections, config.synchronous)).await?;
        Ok(Self { write, read })
    }

    /// Begins a write transaction.
    pub async fn begin(&self) -> Result<DatabaseTransaction, DbErr> {
        self.write.begin().await
    }

    /// Closes all connections; what is committed is on disk afterwards.
    pub async fn close(self) -> Result<(), DbErr> {
        self.read.close().await?;
        self.write.close().await
    }

    /// Runs the cheapest query on both pools.
    pub async fn ping(&self) -> Result<(), DbErr> {
        self.read.ping().await?;
        self.write.ping().await
    }
}

fn sqlite(path: &Path, connections: u32, synchronous: Synchronous) -> ConnectOptions {
    let synchronous = match synchronous {
        Synchronous::Full => "FULL",
        Synchronous::Normal => "NORMAL",
    };
    // The path travels outside the URL, so that no character of it needs escaping.
    let file = path.to_owned();
    let mut options = ConnectOptions::new("sqlite::memory:");
    options
        .max_connections(connections)
        .min_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_timeout(ACQUIRE_TIMEOUT)
        .sqlx_logging(false)
        .map_sqlx_sqlite_opts(move |options| {
            options
                .in_memory(false)
                .shared_cache(false)
                .filename(&file)
                .create_if_missing(true)
                .busy_timeout(Duration::from_secs(10))
                .foreign_keys(true)
                .pragma("journal_mode", "WAL")
                .pragma("synchronous", synchronous)
                .pragma("secure_delete", "ON")
        });
    options
}

/// The SQL of the database's own clock, in microseconds since the epoch.
pub(crate) fn now_sql(backend: DatabaseBackend) -> &'static str {
    match backend {
        // `subsec` gives milliseconds.
        DatabaseBackend::Sqlite => "CAST(unixepoch('subsec') * 1000000 AS INTEGER)",
        _ => "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
    }
}

/// A statement in which `{now}` stands for the database's clock and `$1 ..` for `values`.
pub(crate) fn statement(conn: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    let backend = conn.get_database_backend();
    Statement::from_sql_and_values(backend, sql.replace("{now}", now_sql(backend)), values)
}

/// Runs a statement and returns how many rows it touched.
pub(crate) async fn execute(
    conn: &impl ConnectionTrait,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
) -> Result<u64, DbErr> {
    Ok(conn.execute_raw(statement(conn, sql, values)).await?.rows_affected())
}

/// The database's clock, in microseconds since the epoch.
pub async fn now(conn: &impl ConnectionTrait) -> Result<i64, DbErr> {
    #[derive(FromQueryResult)]
    struct Now {
        now: i64,
    }
    let row = Now::find_by_statement(statement(conn, "SELECT {now} AS now", [])).one(conn).await?;
    row.map(|r| r.now).ok_or_else(|| DbErr::RecordNotFound("the database did not tell its time".to_owned()))
}

/// `$n, $n+1, ..` for `count` values.
pub(crate) fn placeholders(first: usize, count: usize) -> String {
    (first..first + count).map(|n| format!("${n}")).collect::<Vec<_>>().join(", ")
}

/// A duration in the unit of stored instants.
pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 4)
}

/// A row that holds one count.
#[derive(FromQueryResult)]
pub(crate) struct Count {
    pub(crate) n: i64,
}

/// The one count that a statement selects as `n`.
pub(crate) async fn count(
    conn: &impl ConnectionTrait,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
) -> Result<i64, DbErr> {
    let row = Count::find_by_statement(statement(conn, sql, values)).one(conn).await?;
    Ok(row.map_or(0, |r| r.n))
}
