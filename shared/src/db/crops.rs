//! Queries on the crops that are kept of faces.

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde_json::json;

use super::faces::Origin;
use super::rows::{self, Column, Rows};
use super::{execute, statement};
use crate::ids::{CollectionId, FaceId};

/// A crop that lies in the object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCrop {
    /// Its key, which no other crop has.
    pub object_key: String,
    /// Where the face's five points lie, as JSON, in pixels of the crop.
    pub points: String,
}

/// A new key for a crop.
pub fn new_key(collection: CollectionId) -> String {
    format!("collections/{collection}/crops/{}", Uuid::now_v7())
}

/// Notes the crops of faces, as the origin's detector revision saw them. The object of one that has a crop of that revision
/// is left to the sweeper.
pub(super) async fn insert_all(
    txn: &impl ConnectionTrait,
    origin: Origin<'_>,
    crops: &[(FaceId, &NewCrop)],
) -> Result<(), DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        object_key: String,
    }
    if crops.is_empty() {
        return Ok(());
    }
    let row = |(face, crop): &(FaceId, &NewCrop)| json!({ "face_id": rows::id(face.0), "object_key": crop.object_key, "points": crop.points });
    let columns = &[("face_id", Column::Id), ("object_key", Column::Text), ("points", Column::Text)];
    let rows = Rows::new(columns, crops.iter().map(row).collect());
    let sql = format!(
        "INSERT INTO crops (face_id, detector_revision, collection_id, object_key, points)
         SELECT r.face_id, $2, $3, r.object_key, r.points FROM {} WHERE TRUE
         ON CONFLICT DO NOTHING RETURNING object_key",
        rows.table(txn)
    );
    let values = [rows.value(), origin.detector_revision.into(), origin.collection.into()];
    let kept = Row::find_by_statement(statement(txn, &sql, values)).all(txn).await?;
    let is_kept = |key: &str| kept.iter().any(|row| row.object_key == key);
    for (_, crop) in crops.iter().filter(|(_, crop)| !is_kept(&crop.object_key)) {
        super::uploads::orphan(txn, &crop.object_key).await?;
    }
    Ok(())
}

/// A kept crop.
#[derive(Clone, Debug, PartialEq, FromQueryResult)]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct Crop {
    pub face_id: FaceId,
    pub detector_revision: String,
    pub object_key: String,
    pub points: String,
}

/// The crops of those faces.
pub async fn of_faces(conn: &impl ConnectionTrait, faces: &[FaceId]) -> Result<Vec<Crop>, DbErr> {
    if faces.is_empty() {
        return Ok(Vec::new());
    }
    let ids = faces.iter().map(|face| json!({ "face_id": rows::id(face.0) })).collect();
    let wanted = Rows::new(&[("face_id", Column::Id)], ids);
    let sql = format!(
        "SELECT c.face_id, c.detector_revision, c.object_key, c.points FROM {} CROSS JOIN crops c WHERE c.face_id = r.face_id",
        wanted.table(conn)
    );
    Crop::find_by_statement(statement(conn, &sql, [wanted.value()])).all(conn).await
}

/// Leaves the objects of crops that no face got to the sweeper.
pub async fn discard(conn: &impl ConnectionTrait, keys: &[String]) -> Result<(), DbErr> {
    if keys.is_empty() {
        return Ok(());
    }
    let rows =
        Rows::new(&[("object_key", Column::Text)], keys.iter().map(|key| json!({ "object_key": key })).collect());
    let sql = format!(
        "INSERT INTO orphaned_objects (object_key) SELECT r.object_key FROM {}
         WHERE NOT EXISTS (SELECT 1 FROM crops c WHERE c.object_key = r.object_key) ON CONFLICT DO NOTHING",
        rows.table(conn)
    );
    execute(conn, &sql, [rows.value()]).await?;
    Ok(())
}
