//! Queries on images and on which detector revisions have analysed them.

use sea_orm::prelude::*;
use sea_orm::{FromQueryResult as _, QueryFilter};

use super::entity::image::{Column, Entity, Model};
use super::{count, execute, statement};
use crate::ids::{CollectionId, ImageId};

/// The image of that id in that collection.
pub async fn find(conn: &impl ConnectionTrait, collection: CollectionId, id: ImageId) -> Result<Option<Model>, DbErr> {
    Entity::find_by_id(id).filter(Column::CollectionId.eq(collection)).one(conn).await
}

/// The image with those bytes in that collection.
pub async fn find_by_sha256(
    conn: &impl ConnectionTrait,
    collection: CollectionId,
    sha256: &str,
) -> Result<Option<Model>, DbErr> {
    Entity::find().filter(Column::CollectionId.eq(collection)).filter(Column::Sha256.eq(sha256)).one(conn).await
}

/// A picture's bytes, and where they lie.
#[derive(Clone, Debug)]
pub struct ImageSource {
    /// SHA-256 of the bytes, lower-case hex.
    pub sha256: String,
    /// Its key in our object store; `None` where it lies elsewhere.
    pub object_key: Option<String>,
    /// Where it lies, when not in our object store.
    pub uri: Option<String>,
    /// What stood for its bytes there when it was listed.
    pub fingerprint: Option<String>,
}

/// The image with those bytes, made where it is new; its size is in upright pixels. Until the
/// transaction ends, others that want the same image wait: what is read of its faces stays true.
pub async fn find_or_create(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    source: &ImageSource,
    (width, height): (u32, u32),
) -> Result<Model, DbErr> {
    let sql = "INSERT INTO images (id, collection_id, sha256, object_key, uri, width, height, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, {now})
        ON CONFLICT (collection_id, sha256) DO UPDATE SET sha256 = excluded.sha256
        RETURNING id, collection_id, sha256, object_key, uri, width, height, created_at";
    let side = |side: u32| i32::try_from(side).unwrap_or(i32::MAX);
    let values = [
        ImageId::new().into(),
        collection.into(),
        source.sha256.as_str().into(),
        source.object_key.clone().into(),
        source.uri.clone().into(),
        side(width).into(),
        side(height).into(),
    ];
    let row = Model::find_by_statement(statement(txn, sql, values)).one(txn).await?;
    row.ok_or_else(|| DbErr::RecordNotInserted)
}

/// Notes that a detector revision has analysed the image; false when that was noted before.
pub async fn record_analysis(
    txn: &impl ConnectionTrait,
    image: ImageId,
    detector_revision: &str,
    faces: usize,
) -> Result<bool, DbErr> {
    let sql = "INSERT INTO image_analyses (image_id, detector_revision, faces, analysed_at)
        VALUES ($1, $2, $3, {now}) ON CONFLICT DO NOTHING";
    let faces = i32::try_from(faces).unwrap_or(i32::MAX);
    Ok(execute(txn, sql, [image.into(), detector_revision.into(), faces.into()]).await? > 0)
}

/// Whether a detector revision has analysed the image.
pub async fn is_analysed(conn: &impl ConnectionTrait, image: ImageId, detector_revision: &str) -> Result<bool, DbErr> {
    let sql = "SELECT count(*) AS n FROM image_analyses WHERE image_id = $1 AND detector_revision = $2";
    Ok(count(conn, sql, [image.into(), detector_revision.into()]).await? > 0)
}

/// Locks the image: a job that stores faces of it at this moment is waited for.
pub(super) async fn lock(txn: &impl ConnectionTrait, image: ImageId) -> Result<(), DbErr> {
    let sql = "SELECT count(*) AS n FROM (SELECT id FROM images WHERE id = $1 {for update}) AS locked";
    count(txn, sql, [image.into()]).await?;
    Ok(())
}

/// Deletes the locked image if no face and no analysis is left of it, and leaves its object to the sweeper.
pub(super) async fn delete_if_empty(txn: &impl ConnectionTrait, image: ImageId) -> Result<(), DbErr> {
    let empty = "id = $1 AND NOT EXISTS (SELECT 1 FROM faces f WHERE f.image_id = images.id)
        AND NOT EXISTS (SELECT 1 FROM image_analyses a WHERE a.image_id = images.id)";
    let orphan = format!(
        "INSERT INTO orphaned_objects (object_key) SELECT object_key FROM images
         WHERE {empty} AND object_key IS NOT NULL AND NOT EXISTS (SELECT 1 FROM uploads u WHERE u.object_key = images.object_key)
         ON CONFLICT DO NOTHING"
    );
    execute(txn, &orphan, [image.into()]).await?;
    execute(txn, &format!("DELETE FROM images WHERE {empty}"), [image.into()]).await?;
    Ok(())
}
