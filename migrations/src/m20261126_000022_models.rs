//! Models as they are registered, which workers run them, and what a run's two models say of the same faces.

use sea_orm_migration::prelude::*;

use crate::statements::run;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    /// All of it or nothing, on `SQLite` too.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, &UP).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let tables = ["reprocess_disagreements", "reprocess_comparisons", "workers", "models"];
        let drops = tables.map(|table| format!("DROP TABLE {table}"));
        run(manager, &drops.each_ref().map(String::as_str)).await
    }
}

const UP: [&str; 7] = [
    // The entry is TOML, the digest its SHA-256: by name and digest a process sees what it has not read yet.
    "CREATE TABLE models (
        name text NOT NULL PRIMARY KEY,
        entry text NOT NULL,
        digest text NOT NULL,
        origin text NOT NULL CHECK (origin IN ('built_in', 'folder', 'added')),
        api_key_id uuid,
        registered_at bigint NOT NULL,
        changed_at bigint NOT NULL
    )",
    // A worker that is alive says so again and again. Pipelines: a JSON array; left out: a JSON object, names to reasons.
    "CREATE TABLE workers (
        id uuid NOT NULL PRIMARY KEY,
        pipelines text NOT NULL,
        left_out text NOT NULL,
        seen_at bigint NOT NULL
    )",
    "CREATE TABLE reprocess_comparisons (
        run_id uuid NOT NULL PRIMARY KEY REFERENCES reprocess_runs (id) ON DELETE CASCADE,
        wanted_at bigint NOT NULL,
        made_at bigint,
        report text
    )",
    // Beside the report, so that what is deleted of persons and faces goes from here too.
    "CREATE TABLE reprocess_disagreements (
        run_id uuid NOT NULL REFERENCES reprocess_comparisons (run_id) ON DELETE CASCADE,
        position integer NOT NULL,
        face_id uuid NOT NULL REFERENCES faces (id) ON DELETE CASCADE,
        from_outcome text NOT NULL,
        from_score double precision NOT NULL,
        from_person_id uuid REFERENCES persons (id) ON DELETE SET NULL,
        to_outcome text NOT NULL,
        to_score double precision NOT NULL,
        to_person_id uuid REFERENCES persons (id) ON DELETE SET NULL,
        PRIMARY KEY (run_id, position)
    )",
    "CREATE INDEX reprocess_disagreements_by_face ON reprocess_disagreements (face_id)",
    "CREATE INDEX reprocess_disagreements_by_from_person ON reprocess_disagreements (from_person_id)",
    "CREATE INDEX reprocess_disagreements_by_to_person ON reprocess_disagreements (to_person_id)",
];
