//! Collections, their persons, uploads and images.

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

const UP: [&str; 8] = [
    "CREATE TABLE collections (
        id uuid NOT NULL PRIMARY KEY,
        name text NOT NULL UNIQUE,
        pipeline text NOT NULL,
        settings text NOT NULL,
        created_at bigint NOT NULL
    )",
    "CREATE TABLE persons (
        id uuid NOT NULL PRIMARY KEY,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        external_id text,
        name text,
        created_at bigint NOT NULL,
        UNIQUE (collection_id, external_id)
    )",
    "CREATE INDEX persons_by_collection ON persons (collection_id, id)",
    "CREATE TABLE images (
        id uuid NOT NULL PRIMARY KEY,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        sha256 text NOT NULL,
        object_key text NOT NULL UNIQUE,
        width integer NOT NULL,
        height integer NOT NULL,
        created_at bigint NOT NULL,
        UNIQUE (collection_id, sha256)
    )",
    "CREATE TABLE uploads (
        id uuid NOT NULL PRIMARY KEY,
        collection_id uuid NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        object_key text NOT NULL UNIQUE,
        sha256 text NOT NULL,
        size_bytes bigint NOT NULL,
        content_type text NOT NULL,
        inline boolean NOT NULL,
        created_at bigint NOT NULL,
        expires_at bigint NOT NULL
    )",
    "CREATE INDEX uploads_by_expiry ON uploads (expires_at)",
    "CREATE INDEX uploads_by_collection ON uploads (collection_id, id)",
    // A table and not a column of images: an image of a deleted collection still has an object to delete.
    "CREATE TABLE orphaned_objects (
        object_key text NOT NULL PRIMARY KEY
    )",
];

const DOWN: [&str; 5] = [
    "DROP TABLE orphaned_objects",
    "DROP TABLE uploads",
    "DROP TABLE images",
    "DROP TABLE persons",
    "DROP TABLE collections",
];
