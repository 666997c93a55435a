//! Embeddings: on `SQLite` with the log from which the in-memory face index learns what changed, on `PostgreSQL` one
//! partition a pipeline, made by `face-id migrate` when the catalogue's pipelines are known.

use sea_orm_migration::prelude::*;

use crate::statements::{is_sqlite, run};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    /// All of it or nothing, on `SQLite` too.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, if is_sqlite(manager) { UP_SQLITE } else { UP_POSTGRES }).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, if is_sqlite(manager) { DOWN_SQLITE } else { DOWN_POSTGRES }).await
    }
}

// Triggers and not calls: a cascade that deletes a face must reach the index too.
const UP_SQLITE: &[&str] = &[
    "CREATE TABLE embeddings (
        pipeline text NOT NULL,
        face_id uuid NOT NULL REFERENCES faces (id) ON DELETE CASCADE,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        vector blob NOT NULL,
        PRIMARY KEY (pipeline, face_id)
    )",
    "CREATE INDEX embeddings_by_collection ON embeddings (collection_id, pipeline, face_id)",
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

const DOWN_SQLITE: &[&str] = &[
    "DROP TRIGGER faces_reassigned",
    "DROP TRIGGER embeddings_deleted",
    "DROP TRIGGER embeddings_inserted",
    "DROP TABLE face_index_log",
    "DROP TABLE embeddings",
];

// `template_of` repeats whose template the face is, so that a search reads one table. The trigger on faces keeps it, and
// the one on embeddings sets it where a vector comes to a face that has its person already.
const UP_POSTGRES: &[&str] = &[
    "CREATE EXTENSION IF NOT EXISTS vector",
    "CREATE TABLE embeddings (
        pipeline text NOT NULL,
        face_id uuid NOT NULL REFERENCES faces (id) ON DELETE CASCADE,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        template_of uuid,
        vector vector NOT NULL,
        PRIMARY KEY (pipeline, face_id)
    ) PARTITION BY LIST (pipeline)",
    "CREATE INDEX embeddings_by_collection ON embeddings (collection_id, face_id)",
    "CREATE INDEX embeddings_by_face ON embeddings (face_id)",
    "CREATE INDEX embeddings_templates ON embeddings (collection_id, template_of) WHERE template_of IS NOT NULL",
    // Which galleries have an approximate index, and up to which face: newer ones are scanned.
    "CREATE TABLE hnsw_indexes (
        pipeline text NOT NULL,
        collection_id uuid NOT NULL,
        name text NOT NULL,
        last_face uuid NOT NULL,
        faces bigint NOT NULL,
        PRIMARY KEY (pipeline, collection_id)
    )",
    "CREATE FUNCTION template_of(person uuid, assigned_by text) RETURNS uuid LANGUAGE sql IMMUTABLE AS
        $$ SELECT CASE WHEN assigned_by IN ('enrolled', 'user') THEN person END $$",
    "CREATE FUNCTION embeddings_set_template() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        SELECT template_of(f.person_id, f.assigned_by) INTO NEW.template_of FROM faces f WHERE f.id = NEW.face_id
            FOR SHARE;
        RETURN NEW;
    END $$",
    "CREATE TRIGGER embeddings_inserted BEFORE INSERT ON embeddings
        FOR EACH ROW EXECUTE FUNCTION embeddings_set_template()",
    "CREATE FUNCTION faces_set_template() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE embeddings SET template_of = template_of(NEW.person_id, NEW.assigned_by) WHERE face_id = NEW.id;
        RETURN NULL;
    END $$",
    "CREATE TRIGGER faces_reassigned AFTER UPDATE OF person_id, assigned_by ON faces
        FOR EACH ROW EXECUTE FUNCTION faces_set_template()",
];

const DOWN_POSTGRES: &[&str] = &[
    "DROP TRIGGER faces_reassigned ON faces",
    "DROP TABLE hnsw_indexes",
    "DROP TABLE embeddings",
    "DROP FUNCTION faces_set_template()",
    "DROP FUNCTION embeddings_set_template()",
    "DROP FUNCTION template_of(uuid, text)",
];
