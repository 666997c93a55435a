//! Erasures: the receipt of each, what nothing accepted before may bring back, and what is left to look for.

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
        run(manager, &DOWN).await
    }
}

const UP: [&str; 13] = [
    // An erased collection is there until all that it holds is gone, and nobody finds it.
    "ALTER TABLE collections ADD COLUMN erased_at bigint",
    "CREATE INDEX collections_erased ON collections (id) WHERE erased_at IS NOT NULL",
    // So is an erased person, until all faces are gone.
    "ALTER TABLE persons ADD COLUMN erased_at bigint",
    // The target is known as long as there is something left to do; what stays of it is a hash with the secret key.
    "CREATE TABLE erasures (
        id uuid NOT NULL PRIMARY KEY,
        subject text NOT NULL CHECK (subject IN ('person', 'face', 'image', 'collection')),
        subject_hash text NOT NULL,
        collection_id uuid REFERENCES collections (id) ON DELETE SET NULL,
        target uuid,
        all_images boolean NOT NULL,
        persons bigint NOT NULL DEFAULT 0,
        faces bigint NOT NULL DEFAULT 0,
        images bigint NOT NULL DEFAULT 0,
        vectors bigint NOT NULL DEFAULT 0,
        crops bigint NOT NULL DEFAULT 0,
        objects bigint NOT NULL DEFAULT 0,
        jobs bigint NOT NULL DEFAULT 0,
        events bigint NOT NULL DEFAULT 0,
        requested_at bigint NOT NULL,
        finished_at bigint,
        CHECK ((finished_at IS NULL) = (target IS NOT NULL))
    )",
    "CREATE INDEX erasures_by_subject ON erasures (subject_hash)",
    "CREATE INDEX erasures_by_collection ON erasures (collection_id, finished_at)",
    "CREATE INDEX erasures_open ON erasures (id) WHERE finished_at IS NULL",
    // Ids, external ids and pictures' digests, hashed with the secret key.
    "CREATE TABLE erased_subjects (
        hash text NOT NULL,
        erasure_id uuid NOT NULL REFERENCES erasures (id) ON DELETE CASCADE,
        erased_at bigint NOT NULL,
        PRIMARY KEY (hash, erasure_id)
    )",
    "CREATE INDEX erased_subjects_by_erasure ON erased_subjects (erasure_id)",
    // What jobs, events and objects are looked through for, until that is done.
    "CREATE TABLE erasure_terms (
        erasure_id uuid NOT NULL REFERENCES erasures (id) ON DELETE CASCADE,
        kind text NOT NULL CHECK (kind IN ('id', 'external_id', 'sha256', 'uri', 'object', 'prefix')),
        term text NOT NULL,
        PRIMARY KEY (erasure_id, kind, term)
    )",
    // Where a face of a picture that stays was erased: no detector finds it there again.
    "CREATE TABLE erased_places (
        image_id uuid NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        x real NOT NULL,
        y real NOT NULL,
        width real NOT NULL,
        height real NOT NULL,
        erased_at bigint NOT NULL
    )",
    "CREATE INDEX erased_places_by_image ON erased_places (image_id)",
    "CREATE INDEX uploads_by_sha256 ON uploads (collection_id, sha256)",
];

const DOWN: [&str; 11] = [
    "DROP INDEX uploads_by_sha256",
    "DROP TABLE erased_places",
    "DROP TABLE erasure_terms",
    "DROP TABLE erased_subjects",
    "DROP TABLE erasures",
    "DELETE FROM faces WHERE person_id IN (SELECT id FROM persons WHERE erased_at IS NOT NULL)",
    "DELETE FROM persons WHERE erased_at IS NOT NULL",
    "ALTER TABLE persons DROP COLUMN erased_at",
    "DELETE FROM collections WHERE erased_at IS NOT NULL",
    "DROP INDEX collections_erased",
    "ALTER TABLE collections DROP COLUMN erased_at",
];
