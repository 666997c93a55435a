//! Where faces of pictures that stay were erased: a detector that looks at the picture again, by another model or because the
//! same bytes came once more, finds nobody there.

use std::collections::{BTreeSet, HashMap};

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use crate::db::faces::{self, PlacedFace, SAME_FACE_IOU, intersection, iou};
use crate::db::rows::{self, Column, Rows};
use crate::db::{execute, statement};
use crate::ids::ImageId;
use crate::job::FaceBox;

/// Detectors do not agree on how much of a head is its face: boxes that overlap by this much, intersection over union, or of
/// which one holds so much of the other, may be one face. What was erased is rather not found than found once more.
const MAY_BE_SAME_IOU: f32 = 0.3;
const HELD: f32 = 0.8;

#[derive(FromQueryResult)]
struct Place {
    x: f32,
    y: f32,
    width: f32,
    height: f32,
    erased_at: i64,
}

impl Place {
    fn face_box(&self) -> FaceBox {
        FaceBox { x: self.x, y: self.y, width: self.width, height: self.height }
    }

    fn covers(&self, face: &FaceBox) -> bool {
        is_same(&self.face_box(), face)
    }
}

/// Whether a face at this place of the same picture may be the one that was erased.
pub(in crate::db) fn is_same(erased: &FaceBox, face: &FaceBox) -> bool {
    let smaller = (erased.width * erased.height).min(face.width * face.height);
    iou(erased, face) > MAY_BE_SAME_IOU || intersection(erased, face) > HELD * smaller
}

fn is_known(known: &[PlacedFace], face: &FaceBox) -> bool {
    known.iter().any(|known| iou(&known.geometry.face_box(), face) > SAME_FACE_IOU)
}

/// Where faces of these locked images were erased since that instant.
pub(in crate::db) async fn since(
    txn: &impl ConnectionTrait,
    images: &[ImageId],
    since: i64,
) -> Result<HashMap<ImageId, Vec<FaceBox>>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        image_id: ImageId,
        x: f32,
        y: f32,
        width: f32,
        height: f32,
    }
    let mut places: HashMap<ImageId, Vec<FaceBox>> = HashMap::new();
    let images: BTreeSet<ImageId> = images.iter().copied().collect();
    if images.is_empty() {
        return Ok(places);
    }
    let row = |image: ImageId| serde_json::json!({ "id": rows::id(image.0) });
    let asked = Rows::new(&[("id", Column::Id)], images.into_iter().map(row).collect());
    let sql = format!(
        "SELECT p.image_id, p.x, p.y, p.width, p.height FROM {} CROSS JOIN erased_places p
         WHERE p.image_id = r.id AND p.erased_at >= $2",
        asked.table(txn)
    );
    for Row { image_id, x, y, width, height } in
        Row::find_by_statement(statement(txn, &sql, [asked.value(), since.into()])).all(txn).await?
    {
        places.entry(image_id).or_default().push(FaceBox { x, y, width, height });
    }
    Ok(places)
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
    Ok(found.iter().map(|face| is_known(&known, face) || !erased.iter().any(|place| place.covers(face))).collect())
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
/// face is after it was erased, and from then on detectors find it again. Whose face is known is none that was erased.
pub async fn may_enroll(txn: &impl ConnectionTrait, image: ImageId, face: &FaceBox, since: i64) -> Result<bool, DbErr> {
    let erased = of_image(txn, image).await?;
    if erased.is_empty() || is_known(&faces::seen_on_image(txn, image).await?, face) {
        return Ok(true);
    }
    if erased.iter().any(|place| place.covers(face) && place.erased_at >= since) {
        return Ok(false);
    }
    // One that is only near by may be somebody else's.
    for place in erased.iter().filter(|place| iou(&place.face_box(), face) > SAME_FACE_IOU) {
        let Place { x, y, width, height, .. } = *place;
        let sql = "DELETE FROM erased_places WHERE image_id = $1 AND x = $2 AND y = $3 AND width = $4 AND height = $5";
        execute(txn, sql, [image.into(), x.into(), y.into(), width.into(), height.into()]).await?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_detectors_box_of_a_face_is_the_same_place() {
        let at = |x: f32, y: f32, width: f32, height: f32| FaceBox { x, y, width, height };
        let erased = at(100.0, 100.0, 50.0, 50.0);
        // The same, moved by a third, the head around it, and the eyes and mouth in it.
        for face in [erased, at(115.0, 100.0, 50.0, 50.0), at(80.0, 70.0, 100.0, 110.0), at(112.0, 112.0, 25.0, 25.0)] {
            assert!(is_same(&erased, &face) && is_same(&face, &erased), "{face:?}");
        }
        for face in [at(130.0, 100.0, 50.0, 50.0), at(150.0, 100.0, 50.0, 50.0), at(140.0, 140.0, 20.0, 20.0)] {
            assert!(!is_same(&erased, &face) && !is_same(&face, &erased), "{face:?}");
        }
    }
}
