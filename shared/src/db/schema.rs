//! Whether the database has the tables that this version was written for.

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::{Db, is_postgres, statement};

/// The last migration that this version knows.
pub const LAST_MIGRATION: &str = "m20261126_000024_reprocess_requests";

/// Oldest pgvector that is known to work.
const MIN_PGVECTOR: (u32, u32) = (0, 6);

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Migrations are missing, or all of them.
    #[error("the database is at {found}, this version needs {LAST_MIGRATION}: run `face-id migrate` first")]
    Behind {
        /// The last migration that has run, or that there is none.
        found: String,
    },
    /// A newer version has migrated it.
    #[error(
        "the database was migrated by a newer version (to {found}, this one knows {LAST_MIGRATION}): update this program"
    )]
    Ahead {
        /// The last migration that has run.
        found: String,
    },
    /// The server cannot store vectors.
    #[error(
        "the PostgreSQL server offers no pgvector: install the extension on the server (Debian: postgresql-16-pgvector) \
         or use an image that has it (pgvector/pgvector)"
    )]
    NoPgvector,
    /// The server's pgvector is too old.
    #[error("the PostgreSQL server offers pgvector {0}, at least 0.6 is needed: update the extension on the server")]
    OldPgvector(String),
    /// The database does not answer.
    #[error("look at the database's schema: {0}")]
    Db(#[from] DbErr),
}

/// Refuses a database that is not at this version's schema.
pub async fn check(db: &Db) -> Result<(), SchemaError> {
    match last_migration(db).await? {
        Some(found) if found == LAST_MIGRATION => Ok(()),
        // Names begin with their date.
        Some(found) if found.as_str() > LAST_MIGRATION => Err(SchemaError::Ahead { found }),
        Some(found) => Err(SchemaError::Behind { found }),
        None => Err(SchemaError::Behind { found: "no migration".to_owned() }),
    }
}

/// Refuses a `PostgreSQL` server on which the migrations could not run. `SQLite` needs nothing.
pub async fn check_server(db: &Db) -> Result<(), SchemaError> {
    #[derive(FromQueryResult)]
    struct Row {
        version: Option<String>,
    }
    if !is_postgres(&db.read) {
        return Ok(());
    }
    let sql = "SELECT COALESCE(installed_version, default_version) AS version
        FROM pg_available_extensions WHERE name = 'vector'";
    let row = Row::find_by_statement(statement(&db.read, sql, [])).one(&db.read).await?;
    judge(row.and_then(|r| r.version))
}

/// Whether vectors can be stored by that version of pgvector, the installed or else the offered one.
fn judge(pgvector: Option<String>) -> Result<(), SchemaError> {
    let version = pgvector.ok_or(SchemaError::NoPgvector)?;
    match parse(&version) {
        Some(found) if found >= MIN_PGVECTOR => Ok(()),
        _ => Err(SchemaError::OldPgvector(version)),
    }
}

fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

async fn last_migration(db: &Db) -> Result<Option<String>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        version: Option<String>,
    }
    let exists = if is_postgres(&db.read) {
        "SELECT count(*) AS n FROM information_schema.tables
         WHERE table_name = 'seaql_migrations' AND table_schema = current_schema()"
    } else {
        "SELECT count(*) AS n FROM sqlite_master WHERE name = 'seaql_migrations'"
    };
    if super::count(&db.read, exists, []).await? == 0 {
        return Ok(None);
    }
    let sql = "SELECT MAX(version) AS version FROM seaql_migrations";
    let row = Row::find_by_statement(statement(&db.read, sql, [])).one(&db.read).await?;
    Ok(row.and_then(|r| r.version))
}

#[cfg(test)]
mod tests {
    use migrations::MigratorTrait;

    use super::*;

    #[tokio::test]
    async fn knows_the_migrations() {
        let folder = tempfile::tempdir().unwrap();
        for db in [crate::testing::database(folder.path()).await, crate::testing::postgres_database().await] {
            follows_the_migrations(&db).await;
        }
    }

    async fn follows_the_migrations(db: &Db) {
        check_server(db).await.unwrap();
        assert!(matches!(check(db).await, Err(SchemaError::Behind { .. })), "without tables");
        let last = u32::try_from(migrations::Migrator::migrations().len()).unwrap();
        migrations::Migrator::up(&db.write, Some(last - 1)).await.unwrap();
        assert!(matches!(check(db).await, Err(SchemaError::Behind { .. })), "one migration behind");
        migrations::Migrator::up(&db.write, None).await.unwrap();
        check(db).await.unwrap();
        migrations::Migrator::down(&db.write, Some(1)).await.unwrap();
        assert!(matches!(check(db).await, Err(SchemaError::Behind { .. })), "one migration back");
        migrations::Migrator::up(&db.write, None).await.unwrap();
        check(db).await.unwrap();
        let newer = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m29991231_000001_x', 0)";
        super::super::execute(&db.write, newer, []).await.unwrap();
        assert!(matches!(check(db).await, Err(SchemaError::Ahead { .. })));
    }

    #[test]
    fn judges_what_the_server_offers() {
        let judged = |version: Option<&str>| judge(version.map(str::to_owned));
        for good in ["0.6.0", "0.6", "0.10.1", "1.0.0"] {
            assert!(judged(Some(good)).is_ok(), "{good}");
        }
        assert!(matches!(judged(None), Err(SchemaError::NoPgvector)));
        for old in ["0.5.1", "0.4", "what"] {
            assert!(matches!(judged(Some(old)), Err(SchemaError::OldPgvector(version)) if version == old), "{old}");
        }
    }

    #[test]
    fn reads_versions() {
        assert_eq!(parse("0.6.2"), Some((0, 6)));
        assert!(parse("0.10.0").unwrap() > MIN_PGVECTOR, "versions are compared as numbers");
        assert_eq!(parse("x"), None);
    }
}
