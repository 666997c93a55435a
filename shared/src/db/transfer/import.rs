//! Writes a file's people and faces into a collection, some lines in one transaction. What is there stays, what it lacks is
//! added, so that the same lines a second time change nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sea_orm::ActiveEnum as _;
use sea_orm::prelude::*;
use serde_json::json;

use super::export::ExportedImage;
use super::persons::{self, resolve_and_hold, substitute, taken};
use crate::db::entity::face::{self, AssignedBy};
use crate::db::faces::{self, Origin, PlacedFace, SAME_FACE_IOU, iou};
use crate::db::rows::{self, Column, Rows};
use crate::db::{Db, clusters, embeddings, execute, images, is_postgres, rematches, through_deadlocks};
use crate::ids::{ClusterId, CollectionId, FaceId, ImageId, PersonId};
use crate::transfer::{Counts, FaceLine, ImageLine, MergeLine, PersonKey, PersonLine, Vector};

/// Adds persons; counts those that are new.
pub async fn add_persons(db: &Db, collection: CollectionId, lines: &[PersonLine]) -> Result<Counts, DbErr> {
    through_deadlocks(|| async {
        let txn = db.begin().await?;
        let persons = persons::write(&txn, collection, lines).await?;
        txn.commit().await?;
        Ok(Counts { persons, ..Counts::default() })
    })
    .await
}

/// Adds who was merged into whom; the persons must be there. Counts those that are new.
pub async fn add_merges(db: &Db, collection: CollectionId, lines: &[MergeLine]) -> Result<Counts, DbErr> {
    through_deadlocks(|| async {
        let txn = db.begin().await?;
        let merges = persons::write_merges(&txn, collection, lines).await?;
        txn.commit().await?;
        Ok(Counts { merges, ..Counts::default() })
    })
    .await
}

/// Adds pictures with their places and faces; the persons must be there. Counts what is new.
pub async fn add_images(db: &Db, collection: CollectionId, lines: &[ExportedImage]) -> Result<Counts, DbErr> {
    through_deadlocks(|| add_images_once(db, collection, lines)).await
}

/// Has the collection's faces matched again, once all lines are written.
pub async fn finish(db: &Db, collection: CollectionId) -> Result<(), DbErr> {
    rematches::request(&db.write, collection, None, None).await
}

async fn add_images_once(db: &Db, collection: CollectionId, lines: &[ExportedImage]) -> Result<Counts, DbErr> {
    let txn = db.begin().await?;
    let all_faces = || lines.iter().flat_map(|(_, _, faces)| faces);
    if all_faces().any(|face| face.cluster.is_some()) {
        clusters::move_on(&txn, collection).await?;
    }
    let ids = write_images(&txn, collection, lines).await?;
    let persons = resolve_and_hold(&txn, collection, all_faces().flat_map(persons_of)).await?;
    let mut counts = Counts { images: ids.iter().filter(|image| image.is_new).count() as u64, ..Counts::default() };
    counts.places = write_places(&txn, collection, lines, &ids).await?;
    let faces = place_faces(&txn, collection, lines, &ids).await?;
    counts.faces = insert_faces(&txn, collection, &faces, &persons).await?;
    insert_geometry(&txn, &faces).await?;
    counts.vectors = insert_vectors(&txn, collection, &faces).await?;
    assign_known(&txn, &faces, &persons).await?;
    reject(&txn, &faces, &persons).await?;
    separate(&txn, collection, &faces).await?;
    cluster(&txn, collection, &faces, &persons).await?;
    txn.commit().await?;
    Ok(counts)
}

fn persons_of(face: &FaceLine) -> impl Iterator<Item = &PersonKey> {
    face.person.iter().chain(&face.not).chain(face.cluster.iter().flat_map(|cluster| &cluster.person))
}

/// A picture of the file as it is stored.
struct StoredImage {
    id: ImageId,
    is_new: bool,
}

/// Adds the pictures that are not there, and holds all of them: nobody else adds faces to them until the transaction ends.
async fn write_images(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    lines: &[ExportedImage],
) -> Result<Vec<StoredImage>, DbErr> {
    let known = known_images(txn, collection, lines).await?;
    let new = || lines.iter().map(|(image, ..)| image).filter(|image| !known.contains_key(&image.sha256));
    let used = taken(txn, "images", new().map(|image| image.id.0)).await?;
    let id = |image: &ImageLine| match known.get(&image.sha256) {
        // What is there stops the row before its id counts.
        Some(_) => ImageId::new(),
        None if used.contains(&image.id.0) => ImageId(substitute(collection, image.id.0)),
        None => image.id,
    };
    // Only `PostgreSQL` set-ups have pictures that lie elsewhere; the others, and those that lay in the exporter's own
    // store, have a key under which nothing lies.
    let keeps_uri = is_postgres(txn);
    let row = |image: &ImageLine| {
        let id = id(image);
        let uri = image.uri.as_ref().filter(|_| keeps_uri);
        let key = format!("collections/{collection}/imported/{id}");
        json!({
            "id": rows::id(id.0), "sha256": image.sha256, "object_key": uri.is_none().then_some(key), "uri": uri,
            "width": image.width, "height": image.height, "captured_at": image.captured_at,
            "gone_at": image.gone_at, "created_at": image.created_at,
        })
    };
    let mut sorted: Vec<&ImageLine> = lines.iter().map(|(image, ..)| image).collect();
    // As whoever else locks several does.
    sorted.sort_unstable_by(|a, b| a.sha256.cmp(&b.sha256));
    sorted.dedup_by(|a, b| a.sha256 == b.sha256);
    let rows = Rows::new(&IMAGE, sorted.iter().map(|image| row(image)).collect());
    let sql = format!(
        "INSERT INTO images (id, collection_id, sha256, object_key, uri, width, height, captured_at, gone_at, created_at)
         SELECT r.id, $2, r.sha256, r.object_key, r.uri, r.width, r.height, r.captured_at, r.gone_at, r.created_at
         FROM {} WHERE TRUE
         ON CONFLICT (collection_id, sha256) DO UPDATE
            SET captured_at = COALESCE(images.captured_at, excluded.captured_at)",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value(), collection.into()]).await?;
    // Who came first between the two statements counts.
    let stored = known_images(txn, collection, lines).await?;
    let mut seen = HashSet::new();
    let image = |(line, ..): &ExportedImage| {
        let id = *stored.get(&line.sha256).ok_or(DbErr::RecordNotInserted)?;
        let is_new = !known.contains_key(&line.sha256) && seen.insert(id);
        Ok(StoredImage { id, is_new })
    };
    let ids: Vec<StoredImage> = lines.iter().map(image).collect::<Result<_, DbErr>>()?;
    write_analyses(txn, lines, &ids).await?;
    Ok(ids)
}

const IMAGE: [(&str, Column); 9] = [
    ("id", Column::Id),
    ("sha256", Column::Text),
    ("object_key", Column::Text),
    ("uri", Column::Text),
    ("width", Column::Integer),
    ("height", Column::Integer),
    ("captured_at", Column::Text),
    ("gone_at", Column::Integer),
    ("created_at", Column::Integer),
];

async fn known_images(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    lines: &[ExportedImage],
) -> Result<HashMap<String, ImageId>, DbErr> {
    use crate::db::entity::image::{Column, Entity};
    let digests = lines.iter().map(|(image, ..)| image.sha256.as_str());
    let query = Entity::find().filter(Column::CollectionId.eq(collection)).filter(Column::Sha256.is_in(digests));
    Ok(query.all(txn).await?.into_iter().map(|image| (image.sha256, image.id)).collect())
}

async fn write_analyses(txn: &impl ConnectionTrait, lines: &[ExportedImage], ids: &[StoredImage]) -> Result<(), DbErr> {
    let mut by_revision: BTreeMap<&str, Vec<(ImageId, usize)>> = BTreeMap::new();
    for ((image, ..), stored) in lines.iter().zip(ids) {
        for (revision, faces) in &image.analyses {
            let faces = usize::try_from(*faces).unwrap_or_default();
            by_revision.entry(revision).or_default().push((stored.id, faces));
        }
    }
    for (revision, analysed) in by_revision {
        images::record_analyses(txn, revision, &analysed).await?;
    }
    Ok(())
}

/// Notes the places of pictures, where nothing is known of what lies there.
async fn write_places(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    lines: &[ExportedImage],
    ids: &[StoredImage],
) -> Result<u64, DbErr> {
    let of_image = |((_, places, _), stored): (&ExportedImage, &StoredImage)| {
        let image = rows::id(stored.id.0);
        let row = |place: &crate::transfer::PlaceLine| json!({ "uri": place.uri, "fingerprint": place.fingerprint, "image_id": image });
        places.iter().map(row).collect::<Vec<_>>()
    };
    let columns = &[("uri", Column::Text), ("fingerprint", Column::Text), ("image_id", Column::Id)];
    let rows = Rows::new(columns, lines.iter().zip(ids).flat_map(of_image).collect());
    let sql = format!(
        "INSERT INTO image_sources (collection_id, uri, fingerprint, image_id, seen_at)
         SELECT $2, r.uri, r.fingerprint, r.image_id, {{now}} FROM {} WHERE TRUE ON CONFLICT DO NOTHING",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value(), collection.into()]).await
}

/// A face of the file, and what it is here.
struct Placed<'a> {
    line: &'a FaceLine,
    id: FaceId,
    image: ImageId,
    /// As it was; `None` where it is new.
    known: Option<face::Model>,
}

/// Finds each face by its id, or else at its place on the picture; those that are not there get an id.
async fn place_faces<'a>(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    lines: &'a [ExportedImage],
    ids: &[StoredImage],
) -> Result<Vec<Placed<'a>>, DbErr> {
    let mut placed = Vec::new();
    for ((_, _, of_image), stored) in lines.iter().zip(ids) {
        let mut known = if stored.is_new { Vec::new() } else { faces::of_image(txn, stored.id).await? };
        // By their ids first: a place that is nearly the same must not be taken by another face.
        let mut by_id: HashMap<FaceId, face::Model> = HashMap::new();
        for line in of_image {
            let ours = [line.id, FaceId(substitute(collection, line.id.0))];
            if let Some(at) = known.iter().position(|face| ours.contains(&face.face.id)) {
                by_id.insert(line.id, known.swap_remove(at).face);
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

/// The face that lies at the line's place by the same detector or another.
fn take_at(known: &mut Vec<PlacedFace>, line: &FaceLine) -> Option<face::Model> {
    let overlap = |face: &PlacedFace| {
        let box_here = face.geometry.face_box();
        line.geometry.values().map(|theirs| iou(&theirs.face_box, &box_here)).fold(0.0, f32::max)
    };
    let best = (0..known.len()).max_by(|a, b| overlap(&known[*a]).total_cmp(&overlap(&known[*b])))?;
    (overlap(&known[best]) > SAME_FACE_IOU).then(|| known.swap_remove(best).face)
}

type Persons = HashMap<PersonId, PersonId>;

fn person_of(key: Option<&PersonKey>, persons: &Persons) -> Option<PersonId> {
    key.and_then(|key| persons.get(&key.id)).copied()
}

async fn insert_faces(
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

fn new_faces<'a>(faces: &'a [Placed<'a>]) -> impl Iterator<Item = &'a Placed<'a>> {
    faces.iter().filter(|face| face.known.is_none())
}

async fn insert_geometry(txn: &impl ConnectionTrait, faces: &[Placed<'_>]) -> Result<(), DbErr> {
    let of_face = |face: &Placed<'_>| {
        let id = rows::id(face.id.0);
        let row = |(revision, seen): (&String, &crate::transfer::GeometryLine)| {
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

async fn insert_vectors(
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
/// that they are not.
async fn assign_known(txn: &impl ConnectionTrait, faces: &[Placed<'_>], persons: &Persons) -> Result<(), DbErr> {
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
        return Ok(());
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
    execute(txn, &sql, [rows.value()]).await?;
    Ok(())
}

/// Remembers whose faces are not, except where they are that person's here.
async fn reject(txn: &impl ConnectionTrait, faces: &[Placed<'_>], persons: &Persons) -> Result<(), DbErr> {
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

/// Keeps new faces apart that a user took apart. Their separations get ids of this collection, since the changes that made
/// them are not part of the file.
async fn separate(txn: &impl ConnectionTrait, collection: CollectionId, faces: &[Placed<'_>]) -> Result<(), DbErr> {
    let of_face = |face: &Placed<'_>| {
        let id = rows::id(face.id.0);
        let row = |(separation, side): (&Uuid, &i32)| json!({ "id": rows::id(substitute(collection, *separation)), "face_id": id, "side": side });
        face.line.sides.iter().map(row).collect::<Vec<_>>()
    };
    let rows: Vec<_> = new_faces(faces).flat_map(of_face).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let rows = Rows::new(&[("id", Column::Id), ("face_id", Column::Id), ("side", Column::Integer)], rows);
    let sql = format!(
        "INSERT INTO cluster_separations (id, face_id, side) SELECT r.id, r.face_id, r.side FROM {} WHERE TRUE
         ON CONFLICT DO NOTHING",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value()]).await?;
    Ok(())
}

/// Puts new faces into the clusters in which they were, which are made where they are missing.
async fn cluster(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    faces: &[Placed<'_>],
    persons: &Persons,
) -> Result<(), DbErr> {
    let wanted: Vec<_> = new_faces(faces).filter_map(|face| Some((face.id, face.line.cluster.as_ref()?))).collect();
    let theirs: BTreeMap<ClusterId, Option<PersonId>> =
        wanted.iter().map(|(_, key)| (key.id, person_of(key.person.as_ref(), persons))).collect();
    if theirs.is_empty() {
        return Ok(());
    }
    let here = clusters_here(txn, collection, theirs.keys().copied()).await?;
    let row = |(id, person): (&ClusterId, &Option<PersonId>)| json!({ "id": rows::id(here[id].0), "person_id": rows::id(person.map(|p| p.0)) });
    let rows = Rows::new(&[("id", Column::Id), ("person_id", Column::Id)], theirs.iter().map(row).collect());
    let sql = format!(
        "INSERT INTO clusters (id, collection_id, person_id, faces, created_at)
         SELECT r.id, $2, r.person_id, 0, {{now}} FROM {} WHERE TRUE ON CONFLICT DO NOTHING",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value(), collection.into()]).await?;
    let row = |(face, key): &(FaceId, &crate::transfer::ClusterKey)| json!({ "face_id": rows::id(face.0), "cluster_id": rows::id(here[&key.id].0) });
    let rows = Rows::new(&[("face_id", Column::Id), ("cluster_id", Column::Id)], wanted.iter().map(row).collect());
    let sql = format!(
        "INSERT INTO cluster_faces (face_id, collection_id, cluster_id) SELECT r.face_id, $2, r.cluster_id FROM {}
         WHERE TRUE ON CONFLICT DO NOTHING",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value(), collection.into()]).await?;
    clusters::recount(txn, &here.into_values().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()).await
}

/// The ids that clusters of the file have here.
async fn clusters_here(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    ids: impl Iterator<Item = ClusterId> + Clone,
) -> Result<HashMap<ClusterId, ClusterId>, DbErr> {
    let others = format!("(SELECT id FROM clusters WHERE collection_id <> '{collection}')");
    let others = if is_postgres(txn) {
        others
    } else {
        format!("(SELECT id FROM clusters WHERE collection_id <> unhex('{}'))", collection.0.simple())
    };
    let used = taken(txn, &others, ids.clone().map(|id| id.0)).await?;
    let here = |id: ClusterId| if used.contains(&id.0) { ClusterId(substitute(collection, id.0)) } else { id };
    Ok(ids.map(|id| (id, here(id))).collect())
}
