//! Analyses of images, faces and where they lie.

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

const UP: [&str; 6] = [
    "CREATE TABLE image_analyses (
        image_id uuid NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        detector_revision text NOT NULL,
        faces integer NOT NULL,
        analysed_at bigint NOT NULL,
        PRIMARY KEY (image_id, detector_revision)
    )",
    "CREATE TABLE faces (
        id uuid NOT NULL PRIMARY KEY,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        image_id uuid NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        person_id uuid REFERENCES persons (id) ON DELETE SET NULL,
        assigned_by text CHECK (assigned_by IN ('enrolled', 'user', 'auto', 'cluster')),
        created_at bigint NOT NULL,
        CHECK ((person_id IS NULL) OR (assigned_by IS NOT NULL))
    )",
    "CREATE INDEX faces_by_collection ON faces (collection_id, id)",
    "CREATE INDEX faces_by_image ON faces (image_id)",
    "CREATE INDEX faces_by_person ON faces (person_id, id) WHERE person_id IS NOT NULL",
    "CREATE TABLE face_geometry (
        face_id uuid NOT NULL REFERENCES faces (id) ON DELETE CASCADE,
        detector_revision text NOT NULL,
        x real NOT NULL,
        y real NOT NULL,
        width real NOT NULL,
        height real NOT NULL,
        landmarks text NOT NULL,
        score real NOT NULL,
        quality text NOT NULL,
        PRIMARY KEY (face_id, detector_revision)
    )",
];

const DOWN: [&str; 3] = ["DROP TABLE face_geometry", "DROP TABLE faces", "DROP TABLE image_analyses"];
