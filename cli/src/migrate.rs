//! `face-id migrate`: brings the PostgreSQL database to this version's schema.

use anyhow::Context as _;
use migrations::{Migrator, MigratorTrait};
use shared::backends::connect;
use shared::catalogue::Catalogue;
use shared::config::Config;
use shared::db::schema;
use shared::face_index::pgvector::create_partition;

/// Tries to get the short lock that a new partition needs.
const TRIES: u32 = 10;

/// Runs what is missing; a second time does nothing.
#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(crate) async fn run(config: &Config) -> anyhow::Result<()> {
    let catalogue = Catalogue::load(config.models.catalogue_dir())?;
    let db = connect(config).await?;
    schema::check_server(&db).await?;
    let pending = Migrator::get_pending_migrations(&db.write).await.context("look for pending migrations")?.len();
    Migrator::up(&db.write, None).await.context("migrate the database")?;
    println!("{pending} migrations run; the database is at {}", schema::LAST_MIGRATION);
    for pipeline in catalogue.pipelines() {
        let mut tries = 1;
        let made = loop {
            match create_partition(&db, &pipeline.name, pipeline.recognizer.dimension).await {
                Err(error) if tries < TRIES => {
                    tries += 1;
                    println!("the place for vectors of {} is busy, trying again: {error}", pipeline.name);
                }
                made => break made.with_context(|| format!("make a place for vectors of {}", pipeline.name))?,
            }
        };
        println!("vectors of {}: {}", pipeline.name, if made { "place made" } else { "place is there" });
    }
    db.close().await.context("close the database")
}
