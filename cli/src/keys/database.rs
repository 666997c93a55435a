//! The database that keys are in: that of the services, or a data folder's. Whether a server holds the folder or not: a
//! key is a row or two, and SQLite has others wait that long.

use anyhow::Context as _;
use migrations::{Migrator, MigratorTrait as _};
use shared::backends::connect;
use shared::config::Config;
use shared::db::{Db, schema};

use crate::serve::Lock;

pub(super) struct Opened {
    pub(super) db: Db,
    /// Held where no server holds it.
    _lock: Option<Lock>,
}

impl Opened {
    pub(super) async fn close(self) -> anyhow::Result<()> {
        self.db.close().await.context("close the database")
    }
}

/// Refuses where there is none.
pub(super) async fn open(config: &Config) -> anyhow::Result<Opened> {
    let path = config.data_dir.join("face-id.sqlite");
    anyhow::ensure!(
        config.has_services() || path.is_file(),
        "there is no database in {}; `--data-dir` names another folder",
        config.data_dir.display()
    );
    open_or_make(config).await
}

/// Makes a data folder where there is none.
pub(super) async fn open_or_make(config: &Config) -> anyhow::Result<Opened> {
    if config.has_services() {
        let db = connect(config).await?;
        schema::check(&db).await?;
        return Ok(Opened { db, _lock: None });
    }
    let lock = Lock::take_if_free(&config.data_dir)?;
    let path = config.data_dir.join("face-id.sqlite");
    let db = Db::open_sqlite(&path, config.database.synchronous, 1)
        .await
        .with_context(|| format!("open the database in {}", config.data_dir.display()))?;
    if lock.is_some() {
        Migrator::up(&db.write, None).await.context("migrate the database")?;
    } else {
        schema::check(&db).await.context("a server of another version holds the data folder, or is just starting")?;
    }
    Ok(Opened { db, _lock: lock })
}
