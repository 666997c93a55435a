//! Embeddings, and on `SQLite` the log from which the in-memory face index learns what changed.

use sea_orm_migration::prelude::*;

use crate::statements::{is_sqlite, run};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, &UP).await?;
        if is_sqlite(manager) { run(manager, &UP_SQLITE).await } else { Ok(()) }
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if is_sqlite(manager) {
            run(manager, &DOWN_SQLITE).await?;
        }
        run(manager, &["DROP TABLE embeddings"]).await
    }
}

const UP: [&str; 2] = [
    "CREATE TABLE embeddings (
        pipeline text NOT NULL,
        face_id uuid NOT NULL REFERENCES faces (id) ON DELETE CASCADE,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        vector {blob} NOT NULL,
        PRIMARY KEY (pipeline, face_id)
    )",
    "CREATE INDEX embeddings_by_collection ON embeddings (collection_id, pipeline, face_id)",
];

// Triggers and not calls: a cascade that deletes a face must reach the index too.
const UP_SQLITE: [&str; 5] = [
    "CREATE TABLE face_index_log (
        seq integer PRIMARY KEY AUTOINCREMENT,
        collection_id uuid NOT NULL,
        pipeline text NOT NULL,
        face_id uuid NOT NULL
    )",
    "CREATE INDEX face_index_log_by_collection ON face_index_log (collection_id, pipeline, seq)",
    "CREATE TRIGGER embeddings_inserted AFTER INSERT ON embeddings BEGIN
        INSERT INTO face_index_log (collection_id, pipeline, face_id)
        VALUES (NEW.collection_id, NEW.pipeline, NEW.face_id);
    END",
    "CREATE TRIGGER embeddings_deleted AFTER DELETE ON embeddings BEGIN
        INSERT INTO face_index_log (collection_id, pipeline, face_id)
        VALUES (OLD.collection_id, OLD.pipeline, OLD.face_id);
    END",
    "CREATE TRIGGER faces_reassigned AFTER UPDATE OF person_id, assigned_by ON faces BEGIN
        INSERT INTO face_index_log (collection_id, pipeline, face_id)
        SELECT e.collection_id, e.pipeline, e.face_id FROM embeddings e WHERE e.face_id = NEW.id;
    END",
];

const DOWN_SQLITE: [&str; 4] = [
    "DROP TRIGGER faces_reassigned",
    "DROP TRIGGER embeddings_deleted",
    "DROP TRIGGER embeddings_inserted",
    "DROP TABLE face_index_log",
];
