//! What people say of faces by hand: whose a face is not, which faces are to be left out, and which are settled.

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
        run(manager, &UP).await?;
        run(manager, if is_sqlite(manager) { UP_SQLITE } else { UP_POSTGRES }).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, if is_sqlite(manager) { DOWN_SQLITE } else { DOWN_POSTGRES }).await?;
        run(manager, &DOWN).await
    }
}

const UP: [&str; 4] = [
    "ALTER TABLE faces ADD COLUMN locked boolean NOT NULL DEFAULT FALSE",
    "ALTER TABLE faces ADD COLUMN hidden boolean NOT NULL DEFAULT FALSE",
    "CREATE TABLE face_rejections (
        face_id uuid NOT NULL REFERENCES faces (id) ON DELETE CASCADE,
        person_id uuid NOT NULL REFERENCES persons (id) ON DELETE CASCADE,
        created_at bigint NOT NULL,
        PRIMARY KEY (face_id, person_id)
    )",
    "CREATE INDEX face_rejections_by_person ON face_rejections (person_id, face_id)",
];

const DOWN: [&str; 3] =
    ["DROP TABLE face_rejections", "ALTER TABLE faces DROP COLUMN hidden", "ALTER TABLE faces DROP COLUMN locked"];

// A hidden face forms no template: the index has to hear of it.
const UP_SQLITE: &[&str] = &[
    "DROP TRIGGER faces_reassigned",
    "CREATE TRIGGER faces_reassigned AFTER UPDATE OF person_id, assigned_by, hidden ON faces BEGIN
        INSERT INTO face_index_log (collection_id, pipeline, face_id)
        SELECT e.collection_id, e.pipeline, e.face_id FROM embeddings e WHERE e.face_id = NEW.id;
    END",
];

const DOWN_SQLITE: &[&str] = &[
    "DROP TRIGGER faces_reassigned",
    "CREATE TRIGGER faces_reassigned AFTER UPDATE OF person_id, assigned_by ON faces BEGIN
        INSERT INTO face_index_log (collection_id, pipeline, face_id)
        SELECT e.collection_id, e.pipeline, e.face_id FROM embeddings e WHERE e.face_id = NEW.id;
    END",
];

const UP_POSTGRES: &[&str] = &[
    "DROP TRIGGER faces_reassigned ON faces",
    "CREATE FUNCTION template_of(person uuid, assigned_by text, hidden boolean) RETURNS uuid LANGUAGE sql IMMUTABLE AS
        $$ SELECT CASE WHEN assigned_by IN ('enrolled', 'user') AND NOT hidden THEN person END $$",
    "CREATE OR REPLACE FUNCTION embeddings_set_template() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        SELECT template_of(f.person_id, f.assigned_by, f.hidden) INTO NEW.template_of FROM faces f
            WHERE f.id = NEW.face_id FOR SHARE;
        RETURN NEW;
    END $$",
    "CREATE OR REPLACE FUNCTION faces_set_template() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE embeddings SET template_of = template_of(NEW.person_id, NEW.assigned_by, NEW.hidden)
            WHERE face_id = NEW.id
            AND template_of IS DISTINCT FROM template_of(NEW.person_id, NEW.assigned_by, NEW.hidden);
        RETURN NULL;
    END $$",
    "CREATE TRIGGER faces_reassigned AFTER UPDATE OF person_id, assigned_by, hidden ON faces
        FOR EACH ROW EXECUTE FUNCTION faces_set_template()",
    "DROP FUNCTION template_of(uuid, text)",
];

const DOWN_POSTGRES: &[&str] = &[
    "DROP TRIGGER faces_reassigned ON faces",
    "CREATE FUNCTION template_of(person uuid, assigned_by text) RETURNS uuid LANGUAGE sql IMMUTABLE AS
        $$ SELECT CASE WHEN assigned_by IN ('enrolled', 'user') THEN person END $$",
    "CREATE OR REPLACE FUNCTION embeddings_set_template() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        SELECT template_of(f.person_id, f.assigned_by) INTO NEW.template_of FROM faces f WHERE f.id = NEW.face_id
            FOR SHARE;
        RETURN NEW;
    END $$",
    "CREATE OR REPLACE FUNCTION faces_set_template() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE embeddings SET template_of = template_of(NEW.person_id, NEW.assigned_by) WHERE face_id = NEW.id;
        RETURN NULL;
    END $$",
    "CREATE TRIGGER faces_reassigned AFTER UPDATE OF person_id, assigned_by ON faces
        FOR EACH ROW EXECUTE FUNCTION faces_set_template()",
    "DROP FUNCTION template_of(uuid, text, boolean)",
];
