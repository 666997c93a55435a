//! `face-id migrate`: brings the PostgreSQL database to this version's schema, and registers the catalogue's models.

use anyhow::Context as _;
use migrations::{Migrator, MigratorTrait};
use shared::backends::connect;
use shared::catalogue::Catalogue;
use shared::config::Config;
use shared::db::schema;
use shared::models;

/// Runs what is missing; a second time does nothing.
#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(crate) async fn run(config: &Config) -> anyhow::Result<()> {
    let entries = Catalogue::entries(config.models.catalogue_dir())?;
    let db = connect(config).await?;
    schema::check_server(&db).await?;
    let pending = Migrator::get_pending_migrations(&db.write).await.context("look for pending migrations")?.len();
    Migrator::up(&db.write, None).await.context("migrate the database")?;
    println!("{pending} migrations run; the database is at {}", schema::LAST_MIGRATION);
    models::register(&db, &entries).await?;
    println!("{} models of the catalogue are registered, with places for their vectors", entries.len());
    db.close().await.context("close the database")
}
