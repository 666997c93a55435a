//! The database: connections, and every query by name. Nothing outside this folder and the face indexes writes SQL.

pub mod api_keys;
pub mod batches;
pub mod calibrations;
pub mod clusters;
pub mod collections;
pub mod crops;
pub(crate) mod embeddings;
pub mod entity;
pub mod erasures;
pub mod faces;
pub mod faces_by_hand;
pub mod idempotency;
pub mod images;
pub mod jobs;
pub mod leaders;
pub mod merges;
pub mod models;
pub mod persons;
pub mod rejections;
pub mod rematches;
pub mod reprocess;
pub(crate) mod rows;
pub mod schema;
pub(crate) mod scoped;
pub mod secret_key;
pub mod templates;
pub mod transfer;
pub mod uploads;
pub mod webhooks;
pub mod workers;

use std::path::Path;
use std::time::Duration;

use sea_orm::{
    AccessMode, ConnectOptions, ConnectionTrait, DatabaseBackend, DatabaseConnection, DatabaseTransaction, DbErr,
    FromQueryResult, IsolationLevel, RuntimeErr, SqliteTransactionMode, Statement, TransactionOptions,
    TransactionTrait, Value,
};

use crate::config::Synchronous;

/// How long a query may wait for `SQLite`'s one writer.
const SQLITE_ACQUIRE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a statement may wait for another process to let go of the `SQLite` file.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a query may wait for a connection to `PostgreSQL`, the time to make one included.
const POSTGRES_ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection that lay idle is taken to work still.
const POSTGRES_TRUSTED_FOR: Duration = Duration::from_secs(1);
/// Every query of the service is a matter of milliseconds; what takes this long hangs.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections of one database: one writer on `SQLite`, whose writers would only wait for each other, and several
/// readers; on `PostgreSQL` one pool for both.
#[derive(Clone, Debug)]
pub struct Db {
    /// For everything that writes. Never hold a transaction of it across a call that takes another.
    pub write: DatabaseConnection,
    /// For reads; sees what is committed.
    pub read: DatabaseConnection,
}

impl Db {
    /// Connects to the `PostgreSQL` database at `url`.
    pub async fn open_postgres(url: &str, connections: u32) -> Result<Self, DbErr> {
        let pool = sea_orm::Database::connect(postgres(url, connections)).await?;
        Ok(Self { write: pool.clone(), read: pool })
    }

    /// Opens the `SQLite` file at `path`, making it where there is none.
    pub async fn open_sqlite(path: &Path, synchronous: Synchronous, readers: u32) -> Result<Self, DbErr> {
        let write = sea_orm::Database::connect(sqlite(path, 1, synchronous)).await?;
        let read = sea_orm::Database::connect(sqlite(path, readers, synchronous)).await?;
        Ok(Self { write, read })
    }

    /// Begins a write transaction.
    pub async fn begin(&self) -> Result<DatabaseTransaction, DbErr> {
        // On `SQLite` a transaction that begins with a read and then writes does not wait for another process's: it fails.
        let sqlite_transaction_mode = (!is_postgres(&self.write)).then_some(SqliteTransactionMode::Immediate);
        self.write
            .begin_with_options(TransactionOptions { sqlite_transaction_mode, ..TransactionOptions::default() })
            .await
    }

    /// Begins a transaction whose reads all see the same moment.
    pub(crate) async fn snapshot(&self) -> Result<DatabaseTransaction, DbErr> {
        // On `SQLite` every read transaction is one.
        let isolation = is_postgres(&self.read).then_some(IsolationLevel::RepeatableRead);
        let access = is_postgres(&self.read).then_some(AccessMode::ReadOnly);
        self.read.begin_with_config(isolation, access).await
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
        .acquire_timeout(SQLITE_ACQUIRE_TIMEOUT)
        .connect_timeout(SQLITE_ACQUIRE_TIMEOUT)
        // Nothing can break it while it waits.
        .test_before_acquire(false)
        .sqlx_logging(false)
        .map_sqlx_sqlite_opts(move |options| {
            options
                .in_memory(false)
                .shared_cache(false)
                .filename(&file)
                .create_if_missing(true)
                .busy_timeout(SQLITE_BUSY_TIMEOUT)
                .foreign_keys(true)
                .pragma("journal_mode", "WAL")
                .pragma("synchronous", synchronous)
                .pragma("secure_delete", "ON")
        });
    options
}

fn postgres(url: &str, connections: u32) -> ConnectOptions {
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(connections)
        .min_connections(1)
        .acquire_timeout(POSTGRES_ACQUIRE_TIMEOUT)
        .connect_timeout(POSTGRES_ACQUIRE_TIMEOUT)
        // A connection is tried when it is given back too; a third question for each one that is meant costs a worker more
        // than its own work for the job.
        .test_before_acquire_if_idle_for(POSTGRES_TRUSTED_FOR)
        .set_application_name("face-id")
        .sqlx_logging(false)
        .map_sqlx_postgres_opts(|options| {
            // A process that stands still, or whose machine vanished, must not hold its locks for long.
            options.options([
                ("statement_timeout", format!("{}s", STATEMENT_TIMEOUT.as_secs())),
                ("idle_in_transaction_session_timeout", "15s".to_owned()),
                ("tcp_keepalives_idle", "15".to_owned()),
                ("tcp_keepalives_interval", "5".to_owned()),
                ("tcp_keepalives_count", "3".to_owned()),
            ])
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

/// A statement in which `{now}` stands for the database's clock, `{for update}` for the lock on the rows that a `SELECT`
/// finds (`SQLite`'s one writer needs none) and `$1 ..` for `values`.
pub(crate) fn statement(conn: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    let backend = conn.get_database_backend();
    let lock = if is_postgres(conn) { "FOR UPDATE" } else { "" };
    let sql = sql.replace("{now}", now_sql(backend)).replace("{for update}", lock);
    Statement::from_sql_and_values(backend, sql, values)
}

/// Whether the connection speaks to `PostgreSQL`.
pub(crate) fn is_postgres(conn: &impl ConnectionTrait) -> bool {
    conn.get_database_backend() == DatabaseBackend::Postgres
}

/// Whether the error says that the database is out of reach for the moment, and nothing of what was asked of it.
pub fn is_outage(error: &DbErr) -> bool {
    let (DbErr::Exec(inner) | DbErr::Query(inner) | DbErr::Conn(inner)) = error else {
        return matches!(error, DbErr::ConnectionAcquire(_));
    };
    let RuntimeErr::SqlxError(error) = inner else { return matches!(error, DbErr::Conn(_)) };
    match error.as_ref() {
        sqlx::Error::Database(error) => error.code().is_some_and(|code| is_outage_code(&code)),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

/// `PostgreSQL` (Appendix A of its manual): connection exceptions, operator intervention (shutdown, crash, start-up, a
/// terminated session), resources, a session that was idle in its transaction, read-only while it recovers. `SQLite`: busy, the disk full or failing.
fn is_outage_code(code: &str) -> bool {
    // SQLITE_BUSY, SQLITE_IOERR, SQLITE_FULL; an extended code has the plain one in its lowest byte.
    const SQLITE: [u32; 3] = [5, 10, 13];
    let classes = ["08", "57", "53", "25006", "25P03", "25P04", "58"];
    let is_sqlite = || code.parse::<u32>().is_ok_and(|code| SQLITE.contains(&(code & 0xff)));
    if code.len() == 5 { classes.iter().any(|class| code.starts_with(class)) } else { is_sqlite() }
}

/// Tries of a transaction that meets others in another order than they lock what they need.
const DEADLOCK_TRIES: u32 = 5;

/// Runs a transaction again when it was given up so that another one could go on.
pub(crate) async fn through_deadlocks<T, F>(run: impl Fn() -> F) -> Result<T, DbErr>
where
    F: Future<Output = Result<T, DbErr>>,
{
    let mut tries = 1;
    loop {
        match run().await {
            Err(error) if is_deadlock(&error) && tries < DEADLOCK_TRIES => tries += 1,
            done => return done,
        }
    }
}

/// Whether the transaction was given up so that another one could go on; the same again will do.
pub fn is_deadlock(error: &DbErr) -> bool {
    let (DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))) = error else {
        return false;
    };
    // deadlock_detected, serialization_failure
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| code == "40P01" || code == "40001")
}

/// Whether a lock was not to be had in the time that the transaction gave it.
pub fn is_lock_timeout(error: &DbErr) -> bool {
    let (DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))) = error else {
        return false;
    };
    // lock_not_available
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code == "55P03")
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
