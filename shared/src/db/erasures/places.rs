//! Where faces of pictures that stay were erased: a detector that looks at the picture again, by another model or because the
//! same bytes came once more, finds nobody there.

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use crate::db::faces::{self, SAME_FACE_IOU, iou};
use crate::db::{execute, statement};
use crate::ids::ImageId;
use crate::job::FaceBox;

#[derive(FromQueryResult)]
struct Place {
    x: f32,
    y: f32,
    width: f32,
    height: f32,
    erased_at: i64,
}

impl Place {
    fn covers(&self, face: &FaceBox) -> bool {
        let place = FaceBox { x: self.x, y: self.y, width: self.width, height: self.height };
        iou(&place, face) > SAME_FACE_IOU
    }
}

async fn of_image(conn: &impl ConnectionTrait, image: ImageId) -> Result<Vec<Place>, DbErr> {
    let sql = "SELECT x, y, width, height, erased_at FROM erased_places WHERE image_id = $1";
    Place::find_by_statement(statement(conn, sql, [image.into()])).all(conn).await
}

/// Which of the faces that were found on a locked image may be stored: not those at a place where one was erased, unless a
/// face is known there since.
pub async fn are_open(txn: &impl ConnectionTrait, image: ImageId, found: &[FaceBox]) -> Result<Vec<bool>, DbErr> {
    let erased = of_image(txn, image).await?;
    if erased.is_empty() {
        return Ok(vec![true; found.len()]);
    }
    let known = faces::seen_on_image(txn, image).await?;
    let is_known = |face: &FaceBox| known.iter().any(|known| iou(&known.geometry.face_box(), face) > SAME_FACE_IOU);
    Ok(found.iter().map(|face| is_known(face) || !erased.iter().any(|place| place.covers(face))).collect())
}

/// Notes that who lies at these places of a locked image was erased before any face was stored there.
pub async fn close(txn: &impl ConnectionTrait, image: ImageId, faces: &[FaceBox]) -> Result<(), DbErr> {
    for FaceBox { x, y, width, height } in faces {
        let sql = "INSERT INTO erased_places (image_id, x, y, width, height, erased_at)
            VALUES ($1, $2, $3, $4, $5, {now})";
        execute(txn, sql, [image.into(), (*x).into(), (*y).into(), (*width).into(), (*height).into()]).await?;
    }
    Ok(())
}

/// Whether a job that was accepted at `since` may store a face at this place of a locked image: somebody may say whose the
/// face is after it was erased, and from then on detectors find it again.
pub async fn may_enroll(txn: &impl ConnectionTrait, image: ImageId, face: &FaceBox, since: i64) -> Result<bool, DbErr> {
    let covering: Vec<Place> = of_image(txn, image).await?.into_iter().filter(|place| place.covers(face)).collect();
    if covering.iter().any(|place| place.erased_at >= since) {
        return Ok(false);
    }
    for Place { x, y, width, height, .. } in covering {
        let sql = "DELETE FROM erased_places WHERE image_id = $1 AND x = $2 AND y = $3 AND width = $4 AND height = $5";
        execute(txn, sql, [image.into(), x.into(), y.into(), width.into(), height.into()]).await?;
    }
    Ok(true)
}
