//! Database migrations: one change a file, up and down, written in the SQL that `SQLite` and `PostgreSQL` share.
//!
//! This crate depends on nothing else of the workspace: an old migration must not change its meaning with newer code.

pub use sea_orm_migration::MigratorTrait;
use sea_orm_migration::prelude::*;

mod m20261123_000001_collections;
mod m20261123_000002_faces;
mod m20261123_000003_embeddings;
mod m20261123_000004_jobs;
mod m20261123_000005_leaders;
mod m20261123_000006_image_references;
mod m20261123_000007_reference_indexes;
mod m20261124_000008_batches;
mod m20261126_000009_library;
mod m20261126_000010_clusters;
mod m20261126_000011_rematches;
mod m20261126_000012_person_merges;
mod m20261126_000013_capture_times;
mod m20261126_000014_gone_places;
mod m20261126_000015_api_keys;
mod m20261126_000016_webhooks;
mod m20261126_000017_waiting_jobs;
mod m20261126_000018_found_missing;
mod m20261126_000019_reprocess;
mod m20261126_000020_calibrations;
mod m20261126_000021_erasures;
mod m20261126_000022_models;
mod m20261126_000023_person_templates;
mod m20261126_000024_reprocess_requests;
mod statements;

/// All migrations in order.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261123_000001_collections::Migration),
            Box::new(m20261123_000002_faces::Migration),
            Box::new(m20261123_000003_embeddings::Migration),
            Box::new(m20261123_000004_jobs::Migration),
            Box::new(m20261123_000005_leaders::Migration),
            Box::new(m20261123_000006_image_references::Migration),
            Box::new(m20261123_000007_reference_indexes::Migration),
            Box::new(m20261124_000008_batches::Migration),
            Box::new(m20261126_000009_library::Migration),
            Box::new(m20261126_000010_clusters::Migration),
            Box::new(m20261126_000011_rematches::Migration),
            Box::new(m20261126_000012_person_merges::Migration),
            Box::new(m20261126_000013_capture_times::Migration),
            Box::new(m20261126_000014_gone_places::Migration),
            Box::new(m20261126_000015_api_keys::Migration),
            Box::new(m20261126_000016_webhooks::Migration),
            Box::new(m20261126_000017_waiting_jobs::Migration),
            Box::new(m20261126_000018_found_missing::Migration),
            Box::new(m20261126_000019_reprocess::Migration),
            Box::new(m20261126_000020_calibrations::Migration),
            Box::new(m20261126_000021_erasures::Migration),
            Box::new(m20261126_000022_models::Migration),
            Box::new(m20261126_000023_person_templates::Migration),
            Box::new(m20261126_000024_reprocess_requests::Migration),
        ]
    }
}
