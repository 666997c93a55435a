//! Clusters of unknown faces: which faces lie together, what people changed of it, and which faces are to be looked at.

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
        run(manager, if is_sqlite(manager) { UP_SQLITE } else { UP_POSTGRES }).await?;
        run(manager, &[ENQUEUE_ALL]).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, if is_sqlite(manager) { DOWN_SQLITE } else { DOWN_POSTGRES }).await?;
        run(manager, &DOWN).await
    }
}

const UP: [&str; 16] = [
    "CREATE TABLE clusters (
        id uuid NOT NULL PRIMARY KEY,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        person_id uuid REFERENCES persons (id) ON DELETE SET NULL,
        faces bigint NOT NULL,
        created_at bigint NOT NULL
    )",
    "CREATE INDEX clusters_by_size ON clusters (collection_id, faces, id)",
    "CREATE INDEX clusters_by_person ON clusters (person_id) WHERE person_id IS NOT NULL",
    // Every face that was looked at; without a cluster it lies alone.
    "CREATE TABLE cluster_faces (
        face_id uuid NOT NULL PRIMARY KEY REFERENCES faces (id) ON DELETE CASCADE,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        cluster_id uuid REFERENCES clusters (id) ON DELETE SET NULL
    )",
    "CREATE INDEX cluster_faces_by_cluster ON cluster_faces (cluster_id, face_id) WHERE cluster_id IS NOT NULL",
    "CREATE INDEX cluster_faces_by_collection ON cluster_faces (collection_id, face_id)",
    // Grows with every change, so that whoever works on a copy in memory sees that it is old.
    "CREATE TABLE cluster_versions (
        collection_id uuid NOT NULL PRIMARY KEY REFERENCES collections (id) ON DELETE CASCADE,
        version bigint NOT NULL
    )",
    // Faces on two sides of a separation never come into one cluster.
    "CREATE TABLE cluster_separations (
        id uuid NOT NULL,
        face_id uuid NOT NULL REFERENCES faces (id) ON DELETE CASCADE,
        side integer NOT NULL,
        PRIMARY KEY (face_id, id)
    )",
    "CREATE INDEX cluster_separations_by_id ON cluster_separations (id)",
    "CREATE TABLE cluster_changes (
        id uuid NOT NULL PRIMARY KEY,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        kind text NOT NULL CHECK (kind IN ('merge', 'split', 'name')),
        cluster_id uuid NOT NULL,
        person_id uuid,
        created_at bigint NOT NULL,
        undone_at bigint
    )",
    "CREATE INDEX cluster_changes_by_collection ON cluster_changes (collection_id, id)",
    // Where each face that a change touched was before, and whose.
    "CREATE TABLE cluster_change_faces (
        change_id uuid NOT NULL REFERENCES cluster_changes (id) ON DELETE CASCADE,
        face_id uuid NOT NULL REFERENCES faces (id) ON DELETE CASCADE,
        from_cluster uuid NOT NULL,
        cluster_person uuid,
        from_person uuid,
        from_assigned_by text,
        from_locked boolean NOT NULL,
        PRIMARY KEY (change_id, face_id)
    )",
    "CREATE INDEX cluster_change_faces_by_face ON cluster_change_faces (face_id)",
    // For persons that are merged.
    "CREATE INDEX cluster_changes_by_person ON cluster_changes (person_id) WHERE person_id IS NOT NULL",
    "CREATE INDEX cluster_change_faces_by_person ON cluster_change_faces (from_person) WHERE from_person IS NOT NULL",
    "CREATE INDEX cluster_change_faces_by_cluster_person ON cluster_change_faces (cluster_person)
        WHERE cluster_person IS NOT NULL",
];

const DOWN: [&str; 7] = [
    "DROP TABLE cluster_change_faces",
    "DROP TABLE cluster_changes",
    "DROP TABLE cluster_separations",
    "DROP TABLE cluster_versions",
    "DROP TABLE cluster_queue",
    "DROP TABLE cluster_faces",
    "DROP TABLE clusters",
];

// Faces that wait to be looked at: triggers and not calls, so that whatever changes a face reaches its cluster. The
// queue refers to no table: a deleted face's row says which cluster it left.
const UP_SQLITE: &[&str] = &[
    "CREATE TABLE cluster_queue (
        seq integer PRIMARY KEY AUTOINCREMENT,
        collection_id uuid NOT NULL,
        face_id uuid NOT NULL,
        cluster_id uuid
    )",
    "CREATE INDEX cluster_queue_by_collection ON cluster_queue (collection_id, seq)",
    "CREATE TRIGGER cluster_embeddings_inserted AFTER INSERT ON embeddings
        WHEN (SELECT f.person_id FROM faces f WHERE f.id = NEW.face_id) IS NULL BEGIN
        INSERT INTO cluster_queue (collection_id, face_id) VALUES (NEW.collection_id, NEW.face_id);
    END",
    "CREATE TRIGGER cluster_faces_changed AFTER UPDATE OF person_id, assigned_by, hidden ON faces
        WHEN NEW.hidden OR NEW.assigned_by IS NULL OR NEW.assigned_by <> 'cluster' BEGIN
        INSERT INTO cluster_queue (collection_id, face_id, cluster_id)
        VALUES (NEW.collection_id, NEW.id, (SELECT c.cluster_id FROM cluster_faces c WHERE c.face_id = NEW.id));
    END",
    "CREATE TRIGGER cluster_faces_deleted BEFORE DELETE ON faces
        WHEN EXISTS (SELECT 1 FROM cluster_faces c WHERE c.face_id = OLD.id) BEGIN
        INSERT INTO cluster_queue (collection_id, face_id, cluster_id)
        VALUES (OLD.collection_id, OLD.id, (SELECT c.cluster_id FROM cluster_faces c WHERE c.face_id = OLD.id));
    END",
];

const DOWN_SQLITE: &[&str] = &[
    "DROP TRIGGER cluster_faces_deleted",
    "DROP TRIGGER cluster_faces_changed",
    "DROP TRIGGER cluster_embeddings_inserted",
];

const UP_POSTGRES: &[&str] = &[
    "CREATE TABLE cluster_queue (
        seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        collection_id uuid NOT NULL,
        face_id uuid NOT NULL,
        cluster_id uuid
    )",
    "ALTER TABLE cluster_queue SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_cost_delay = 0)",
    "CREATE INDEX cluster_queue_by_collection ON cluster_queue (collection_id, seq)",
    // Once a statement: faces come by the hundred.
    "CREATE FUNCTION cluster_embeddings_inserted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO cluster_queue (collection_id, face_id)
        SELECT n.collection_id, n.face_id FROM new_rows n JOIN faces f ON f.id = n.face_id WHERE f.person_id IS NULL;
        RETURN NULL;
    END $$",
    "CREATE TRIGGER cluster_embeddings_inserted AFTER INSERT ON embeddings REFERENCING NEW TABLE AS new_rows
        FOR EACH STATEMENT EXECUTE FUNCTION cluster_embeddings_inserted()",
    "CREATE FUNCTION cluster_faces_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO cluster_queue (collection_id, face_id, cluster_id)
        VALUES (NEW.collection_id, NEW.id, (SELECT c.cluster_id FROM cluster_faces c WHERE c.face_id = NEW.id));
        RETURN NULL;
    END $$",
    "CREATE TRIGGER cluster_faces_changed AFTER UPDATE OF person_id, assigned_by, hidden ON faces
        FOR EACH ROW WHEN (NEW.hidden OR NEW.assigned_by IS DISTINCT FROM 'cluster')
        EXECUTE FUNCTION cluster_faces_changed()",
    "CREATE FUNCTION cluster_faces_deleted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO cluster_queue (collection_id, face_id, cluster_id)
        SELECT OLD.collection_id, OLD.id, c.cluster_id FROM cluster_faces c WHERE c.face_id = OLD.id;
        RETURN OLD;
    END $$",
    "CREATE TRIGGER cluster_faces_deleted BEFORE DELETE ON faces
        FOR EACH ROW EXECUTE FUNCTION cluster_faces_deleted()",
];

const DOWN_POSTGRES: &[&str] = &[
    "DROP TRIGGER cluster_faces_deleted ON faces",
    "DROP TRIGGER cluster_faces_changed ON faces",
    "DROP TRIGGER cluster_embeddings_inserted ON embeddings",
    "DROP FUNCTION cluster_faces_deleted()",
    "DROP FUNCTION cluster_faces_changed()",
    "DROP FUNCTION cluster_embeddings_inserted()",
];

/// The unknown faces of before are looked at as if they were new.
const ENQUEUE_ALL: &str = "INSERT INTO cluster_queue (collection_id, face_id)
    SELECT f.collection_id, f.id FROM faces f WHERE f.person_id IS NULL ORDER BY f.id";
