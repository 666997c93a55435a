//! Crops that are kept of faces, runs that give a collection another pipeline, and what is left of them to do.

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

const UP: [&str; 16] = [
    "CREATE TABLE crops (
        face_id uuid NOT NULL REFERENCES faces (id) ON DELETE CASCADE,
        detector_revision text NOT NULL,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        object_key text NOT NULL UNIQUE,
        points text NOT NULL,
        PRIMARY KEY (face_id, detector_revision)
    )",
    "CREATE INDEX crops_by_collection ON crops (collection_id)",
    // While a run looks for faces again: what this detector revision saw is not shown, or nothing but that.
    "ALTER TABLE collections ADD COLUMN hidden_revision text",
    "ALTER TABLE collections ADD COLUMN shown_revision text",
    "CREATE TABLE reprocess_runs (
        id uuid NOT NULL PRIMARY KEY,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        from_pipeline text NOT NULL,
        from_revision text NOT NULL,
        pipeline text NOT NULL,
        revision text NOT NULL,
        state text NOT NULL,
        paused boolean NOT NULL,
        prune_after bigint,
        lacking_accepted boolean NOT NULL,
        match_cosine double precision,
        checkpoint uuid,
        listed_at bigint,
        pace double precision,
        paced_at bigint NOT NULL,
        paced_images bigint NOT NULL,
        tag text,
        traceparent text,
        api_key_id uuid,
        version bigint NOT NULL,
        created_at bigint NOT NULL,
        completed_at bigint,
        activated_at bigint,
        ended_at bigint,
        CHECK (state IN ('filling', 'ready', 'active', 'pruning', 'cancelling', 'pruned', 'cancelled'))
    )",
    "CREATE INDEX reprocess_runs_by_collection ON reprocess_runs (collection_id, id)",
    "CREATE UNIQUE INDEX reprocess_runs_open ON reprocess_runs (collection_id)
        WHERE state IN ('filling', 'ready', 'active', 'pruning', 'cancelling')",
    // Images that lack what a pipeline makes of them; with a job once one was made, with a problem once that gave up.
    "CREATE TABLE reprocess_pending (
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        pipeline text NOT NULL,
        image_id uuid NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        job_id uuid,
        tries integer NOT NULL DEFAULT 0,
        problem text,
        PRIMARY KEY (collection_id, pipeline, image_id)
    )",
    "CREATE INDEX reprocess_pending_without_job ON reprocess_pending (collection_id, pipeline, image_id)
        WHERE job_id IS NULL AND problem IS NULL",
    "CREATE INDEX reprocess_pending_by_job ON reprocess_pending (collection_id, job_id) WHERE job_id IS NOT NULL",
    "CREATE INDEX reprocess_pending_given_up ON reprocess_pending (collection_id, pipeline) WHERE problem IS NOT NULL",
    "CREATE INDEX reprocess_pending_by_image ON reprocess_pending (image_id)",
    "CREATE TABLE reprocess_differences (
        run_id uuid NOT NULL REFERENCES reprocess_runs (id) ON DELETE CASCADE,
        face_id uuid NOT NULL REFERENCES faces (id) ON DELETE CASCADE,
        difference text NOT NULL CHECK (difference IN ('lost', 'new')),
        PRIMARY KEY (run_id, face_id)
    )",
    "CREATE INDEX reprocess_differences_by_face ON reprocess_differences (face_id)",
    "CREATE INDEX jobs_open ON jobs (collection_id, pipeline, kind) WHERE state IN ('queued', 'running')",
    "CREATE INDEX faces_templates ON faces (collection_id, id)
        WHERE person_id IS NOT NULL AND assigned_by IN ('enrolled', 'user') AND NOT hidden",
];

const DOWN: [&str; 9] = [
    "DROP INDEX jobs_open",
    "DELETE FROM jobs WHERE kind = 'reembed'",
    "DROP TABLE reprocess_differences",
    "DROP TABLE reprocess_pending",
    "DROP TABLE reprocess_runs",
    "DROP INDEX faces_templates",
    "ALTER TABLE collections DROP COLUMN shown_revision",
    "ALTER TABLE collections DROP COLUMN hidden_revision",
    "DROP TABLE crops",
];

// A crop that goes with its face leaves an object to delete. An unknown face's vector matters to its cluster only where the
// collection goes by that pipeline.
const UP_SQLITE: &[&str] = &[
    "CREATE TRIGGER crops_deleted AFTER DELETE ON crops BEGIN
        INSERT INTO orphaned_objects (object_key) VALUES (OLD.object_key) ON CONFLICT DO NOTHING;
    END",
    "DROP TRIGGER cluster_embeddings_inserted",
    "CREATE TRIGGER cluster_embeddings_inserted AFTER INSERT ON embeddings
        WHEN (SELECT f.person_id FROM faces f WHERE f.id = NEW.face_id) IS NULL
            AND NEW.pipeline = (SELECT c.pipeline FROM collections c WHERE c.id = NEW.collection_id) BEGIN
        INSERT INTO cluster_queue (collection_id, face_id) VALUES (NEW.collection_id, NEW.face_id);
    END",
];

const DOWN_SQLITE: &[&str] = &[
    "DROP TRIGGER cluster_embeddings_inserted",
    "CREATE TRIGGER cluster_embeddings_inserted AFTER INSERT ON embeddings
        WHEN (SELECT f.person_id FROM faces f WHERE f.id = NEW.face_id) IS NULL BEGIN
        INSERT INTO cluster_queue (collection_id, face_id) VALUES (NEW.collection_id, NEW.face_id);
    END",
    "DROP TRIGGER crops_deleted",
];

const UP_POSTGRES: &[&str] = &[
    "CREATE FUNCTION crops_deleted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO orphaned_objects (object_key) SELECT o.object_key FROM old_rows o ON CONFLICT DO NOTHING;
        RETURN NULL;
    END $$",
    "CREATE TRIGGER crops_deleted AFTER DELETE ON crops REFERENCING OLD TABLE AS old_rows
        FOR EACH STATEMENT EXECUTE FUNCTION crops_deleted()",
    "CREATE OR REPLACE FUNCTION cluster_embeddings_inserted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO cluster_queue (collection_id, face_id)
        SELECT n.collection_id, n.face_id FROM new_rows n JOIN faces f ON f.id = n.face_id
        JOIN collections c ON c.id = n.collection_id WHERE f.person_id IS NULL AND c.pipeline = n.pipeline;
        RETURN NULL;
    END $$",
];

const DOWN_POSTGRES: &[&str] = &[
    "CREATE OR REPLACE FUNCTION cluster_embeddings_inserted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO cluster_queue (collection_id, face_id)
        SELECT n.collection_id, n.face_id FROM new_rows n JOIN faces f ON f.id = n.face_id WHERE f.person_id IS NULL;
        RETURN NULL;
    END $$",
    "DROP TRIGGER crops_deleted ON crops",
    "DROP FUNCTION crops_deleted()",
];
