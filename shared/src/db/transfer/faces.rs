//! The faces of a file in a collection: which of them are there, and what those that are there lack.

use std::collections::{BTreeMap, HashMap, HashSet};

use sea_orm::ActiveEnum as _;
use sea_orm::prelude::*;
use serde_json::json;

use super::export::ExportedImage;
use super::images::StoredImage;
use super::persons::{Persons, person_of, substitute, taken};
use crate::db::entity::face::{self, AssignedBy};
use crate::db::erasures::places;
use crate::db::faces::{self, Origin, PlacedFace, SAME_FACE_IOU, iou};
use crate::db::rows::{self, Column, Rows};
use crate::db::{embeddings, execute};
use crate::ids::{CollectionId, FaceId, ImageId};
use crate::job::FaceBox;
use crate::transfer::{Counts, FaceLine, GeometryLine, Vector};

/// A face of the file, and what it is here.
pub(super) struct Placed<'a> {
    pub(super) line: &'a FaceLine,
    pub(super) id: FaceId,
    image: ImageId,
    /// As it was; `None` where it is new.
    known: Option<face::Model>,
}

/// Finds each face by its id, or else at its place on the picture; those that are not there get an id.
pub(super) async fn place_faces<'a>(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    lines: &'a [ExportedImage],
    ids: &[StoredImage],
) -> Result<Vec<Placed<'a>>, DbErr> {
    let mut placed = Vec::new();
    // Read once the pictures are held: a job may have added one, with its faces, since this transaction looked for them.
    let with_faces = taken(txn, "(SELECT image_id AS id FROM faces)", ids.iter().map(|stored| stored.id.0)).await?;
    for ((_, _, of_image), stored) in lines.iter().zip(ids) {
        let has_faces = with_faces.contains(&stored.id.0);
        let mut known = if has_faces { faces::seen_on_image(txn, stored.id).await? } else { Vec::new() };
        // By their ids first: a place that is nearly the same must not be taken by another face.
        let mut by_id: HashMap<FaceId, face::Model> = HashMap::new();
        for line in of_image {
            let ours = [line.id, FaceId(substitute(collection, line.id.0))];
            if let Some(at) = known.iter().position(|face| ours.contains(&face.face.id)) {
                by_id.insert(line.id, take(&mut known, at));
            }
        }
        for line in of_image {
            let found = by_id.remove(&line.id).or_else(|| take_at(&mut known, line));
            let id = found.as_ref().map_or(line.id, |face| face.id);
            placed.push(Placed { line, id, image: stored.id, known: found });
        }
    }
    let other = |face: &Placed<'_>| FaceId(substitute(collection, face.id.0));
    let new = placed.iter().filter(|face| face.known.is_none()).flat_map(|face| [face.id.0, other(face).0]);
    let used = taken(txn, "faces", new).await?;
    for face in placed.iter_mut().filter(|face| face.known.is_none() && used.contains(&face.id.0)) {
        face.id = FaceId(substitute(collection, face.id.0));
    }
    // A file that names a face twice was not written by an export; the first counts.
    let mut seen = HashSet::new();
    placed.retain(|face| seen.insert(face.id) && (face.known.is_some() || !used.contains(&face.id.0)));
    Ok(placed)
}

/// Takes out those new faces that lie where a face of their picture was erased since `begun_at`; says what they have.
pub(super) async fn take_erased(
    txn: &impl ConnectionTrait,
    faces: &mut Vec<Placed<'_>>,
    begun_at: i64,
) -> Result<Counts, DbErr> {
    let images: Vec<ImageId> = faces.iter().filter(|face| face.known.is_none()).map(|face| face.image).collect();
    let places = places::since(txn, &images, begun_at).await?;
    let mut erased = Counts::default();
    faces.retain(|face| {
        let lies_there =
            |place: &FaceBox| face.line.geometry.values().any(|seen| places::is_same(place, &seen.face_box));
        let is_erased = face.known.is_none() && places.get(&face.image).is_some_and(|of| of.iter().any(lies_there));
        if is_erased {
            erased.faces += 1;
            erased.vectors += face.line.vectors.len() as u64;
        }
        !is_erased
    });
    Ok(erased)
}

/// The face that lies at the line's place by the same detector or another.
fn take_at(known: &mut Vec<PlacedFace>, line: &FaceLine) -> Option<face::Model> {
    let overlap = |face: &PlacedFace| {
        let box_here = face.geometry.face_box();
        line.geometry.values().map(|theirs| iou(&theirs.face_box, &box_here)).fold(0.0, f32::max)
    };
    let best = (0..known.len()).max_by(|a, b| overlap(&known[*a]).total_cmp(&overlap(&known[*b])))?;
    (overlap(&known[best]) > SAME_FACE_IOU).then(|| take(known, best))
}

/// Takes a face out, at all the places at which it was seen.
fn take(known: &mut Vec<PlacedFace>, at: usize) -> face::Model {
    let taken = known.swap_remove(at).face;
    known.retain(|other| other.face.id != taken.id);
    taken
}

pub(super) async fn insert_faces(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    faces: &[Placed<'_>],
    persons: &Persons,
) -> Result<u64, DbErr> {
    let row = |face: &Placed<'_>| {
        let (line, person) = (face.line, person_of(face.line.person.as_ref(), persons));
        // The person may have been deleted since the file's persons were written.
        let lost = line.person.is_some() && person.is_none();
        json!({
            "id": rows::id(face.id.0), "image_id": rows::id(face.image.0), "person_id": rows::id(person.map(|p| p.0)),
            "assigned_by": person.and(line.assigned_by).map(|by| by.to_value()), "created_at": line.created_at,
            "locked": i32::from(line.locked && !lost), "hidden": i32::from(line.hidden),
        })
    };
    let columns = &[
        ("id", Column::Id),
        ("image_id", Column::Id),
        ("person_id", Column::Id),
        ("assigned_by", Column::Text),
        ("created_at", Column::Integer),
        ("locked", Column::Integer),
        ("hidden", Column::Integer),
    ];
    let rows = Rows::new(columns, new_faces(faces).map(row).collect());
    let sql = format!(
        "INSERT INTO faces (id, collection_id, image_id, person_id, assigned_by, created_at, locked, hidden)
         SELECT r.id, $2, r.image_id, r.person_id, r.assigned_by, r.created_at, r.locked = 1, r.hidden = 1 FROM {}",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value(), collection.into()]).await
}

pub(super) fn new_faces<'a>(faces: &'a [Placed<'a>]) -> impl Iterator<Item = &'a Placed<'a>> {
    faces.iter().filter(|face| face.known.is_none())
}

pub(super) async fn insert_geometry(txn: &impl ConnectionTrait, faces: &[Placed<'_>]) -> Result<(), DbErr> {
    let of_face = |face: &Placed<'_>| {
        let id = rows::id(face.id.0);
        let row = |(revision, seen): (&String, &GeometryLine)| {
            let b = seen.face_box;
            json!({
                "face_id": id, "revision": revision, "x": b.x, "y": b.y, "width": b.width, "height": b.height,
                "landmarks": seen.landmarks.to_string(), "score": seen.score, "quality": seen.quality.to_string(),
            })
        };
        face.line.geometry.iter().map(row).collect::<Vec<_>>()
    };
    let columns = &[
        ("face_id", Column::Id),
        ("revision", Column::Text),
        ("x", Column::Real),
        ("y", Column::Real),
        ("width", Column::Real),
        ("height", Column::Real),
        ("landmarks", Column::Text),
        ("score", Column::Real),
        ("quality", Column::Text),
    ];
    let rows = Rows::new(columns, faces.iter().flat_map(of_face).collect());
    let sql = format!(
        "INSERT INTO face_geometry (face_id, detector_revision, x, y, width, height, landmarks, score, quality)
         SELECT r.face_id, r.revision, r.x, r.y, r.width, r.height, r.landmarks, r.score, r.quality FROM {} WHERE TRUE
         ON CONFLICT DO NOTHING",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value()]).await?;
    Ok(())
}

pub(super) async fn insert_vectors(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    faces: &[Placed<'_>],
) -> Result<u64, DbErr> {
    let mut by_pipeline: BTreeMap<&str, Vec<(&Placed<'_>, &Vector)>> = BTreeMap::new();
    for face in faces {
        for (pipeline, vector) in &face.line.vectors {
            by_pipeline.entry(pipeline).or_default().push((face, vector));
        }
    }
    let mut added = 0;
    for (pipeline, vectors) in by_pipeline {
        let known = vectors.iter().filter(|(face, _)| face.known.is_some()).map(|(face, _)| face.id);
        let have = embeddings::having(txn, pipeline, &known.collect::<Vec<_>>()).await?;
        let lacking = vectors.iter().filter(|(face, _)| !have.contains(&face.id));
        let lacking: Vec<_> = lacking.map(|(face, vector)| (face.id, &vector.0)).collect();
        // The image and the detector are not asked for here.
        let origin = Origin { collection, image: ImageId(Uuid::nil()), detector_revision: "", pipeline };
        embeddings::insert_all(txn, origin, &lacking).await?;
        added += lacking.len() as u64;
    }
    Ok(added)
}

/// Gives faces that were there and nobody's to whom somebody said they are, unless they are held back or it was said here
/// that they are not; returns how many.
pub(super) async fn assign_known(
    txn: &impl ConnectionTrait,
    faces: &[Placed<'_>],
    persons: &Persons,
) -> Result<u64, DbErr> {
    let by_hand = |line: &FaceLine| matches!(line.assigned_by, Some(AssignedBy::Enrolled | AssignedBy::User));
    let row = |face: &Placed<'_>| {
        let person = person_of(face.line.person.as_ref(), persons)?;
        Some(json!({
            "face_id": rows::id(face.id.0), "person_id": rows::id(person.0),
            "assigned_by": face.line.assigned_by.map(|by| by.to_value()), "locked": i32::from(face.line.locked),
        }))
    };
    let free = faces.iter().filter(|f| f.known.as_ref().is_some_and(|known| known.person_id.is_none()));
    let rows: Vec<_> = free.filter(|face| by_hand(face.line)).filter_map(row).collect();
    if rows.is_empty() {
        return Ok(0);
    }
    let columns = &[
        ("face_id", Column::Id),
        ("person_id", Column::Id),
        ("assigned_by", Column::Text),
        ("locked", Column::Integer),
    ];
    let rows = Rows::new(columns, rows);
    let sql = format!(
        "UPDATE faces SET person_id = r.person_id, assigned_by = r.assigned_by, locked = (r.locked = 1) FROM {}
         WHERE faces.id = r.face_id AND faces.person_id IS NULL AND NOT faces.locked AND NOT faces.hidden
            AND NOT EXISTS (SELECT 1 FROM face_rejections x WHERE x.face_id = faces.id AND x.person_id = r.person_id)",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value()]).await
}

/// Remembers whose faces are not, except where they are that person's here.
pub(super) async fn reject(txn: &impl ConnectionTrait, faces: &[Placed<'_>], persons: &Persons) -> Result<(), DbErr> {
    let of_face = |face: &Placed<'_>| {
        let id = rows::id(face.id.0);
        let not = face.line.not.iter().filter_map(|key| persons.get(&key.id));
        not.map(|person| json!({ "face_id": id, "person_id": rows::id(person.0) })).collect::<Vec<_>>()
    };
    let rows: Vec<_> = faces.iter().flat_map(of_face).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let rows = Rows::new(&[("face_id", Column::Id), ("person_id", Column::Id)], rows);
    let sql = format!(
        "INSERT INTO face_rejections (face_id, person_id, created_at) SELECT r.face_id, r.person_id, {{now}} FROM {}
         JOIN faces f ON f.id = r.face_id WHERE f.person_id IS DISTINCT FROM r.person_id ON CONFLICT DO NOTHING",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value()]).await?;
    Ok(())
}
