//! Fixtures that the tests of every crate use.

use std::path::Path;

use crate::config::{DatabaseConfig, Synchronous};
use crate::db::Db;

/// A database in `folder` that waits for no disk; without tables until the migrations have run.
///
/// # Panics
/// The file cannot be opened.
pub async fn database(folder: &Path) -> Db {
    let config = DatabaseConfig { synchronous: Synchronous::Normal, read_connections: 3 };
    Db::open_sqlite(&folder.join("face-id.sqlite"), &config).await.expect("open a database for a test")
}
