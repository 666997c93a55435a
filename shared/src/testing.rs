//! Fixtures that the tests of every crate use.

use std::path::Path;

use crate::config::Synchronous;
use crate::db::Db;

/// A database in `folder` that waits for no disk; without tables until the migrations have run.
///
/// # Panics
/// The file cannot be opened.
pub async fn database(folder: &Path) -> Db {
    Db::open_sqlite(&folder.join("face-id.sqlite"), Synchronous::Normal, 3).await.expect("open a database for a test")
}

/// A secret key that only a test has.
#[cfg(test)]
pub(crate) fn secret_key(byte: u8) -> crate::secret_key::SecretKey {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode([byte; 32]);
    let variables = std::collections::HashMap::from([("FACE_ID_SERVER__SECRET_KEY".to_owned(), text)]);
    let config = crate::config::Config::from_sources(None, variables).expect("settings of a test");
    crate::secret_key::SecretKey::configured(&config).expect("32 bytes in base64")
}

/// A migrated database in `folder`, and a migrated one on a `PostgreSQL` server: what is tested on one is tested on both.
#[cfg(test)]
pub(crate) async fn databases(folder: &Path) -> [Db; 2] {
    use migrations::MigratorTrait as _;
    let databases = [database(folder).await, postgres_database().await];
    for db in &databases {
        migrations::Migrator::up(&db.write, None).await.expect("migrate a database for a test");
    }
    databases
}

/// A database of its own on a real `PostgreSQL` server, without tables until the migrations have run.
#[cfg(test)]
pub(crate) async fn postgres_database() -> Db {
    let name = format!("test_{}", uuid::Uuid::now_v7().simple());
    let url = services::postgres::shared().await.create_database(&name).await.expect("make a database for a test");
    Db::open_postgres(&url, 8).await.expect("connect to a database for a test")
}
