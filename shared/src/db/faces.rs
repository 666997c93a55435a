//! Queries on faces, where they lie, and their embeddings.

use std::collections::{HashMap, HashSet};

use sea_orm::prelude::*;
use sea_orm::{ActiveValue::Set, FromQueryResult, QueryOrder, QuerySelect};
use serde_json::json;

use super::entity::{face, face_geometry};
use super::rows::{self, Column, Rows};
use super::{
    Db, crops, embeddings, execute, images, now, placeholders, rejections, rematches, statement, through_deadlocks,
};
use crate::embedding::Embedding;
use crate::ids::{CollectionId, FaceId, ImageId, PersonId};
use crate::job::FaceBox;

pub use super::crops::NewCrop;
pub use super::entity::face::AssignedBy;

/// A face as a worker found it, to be stored.
#[derive(Clone, Debug)]
pub struct NewFace {
    /// Where it lies, in upright original pixels.
    pub face_box: FaceBox,
    /// Five points as JSON, upright original pixels.
    pub landmarks: String,
    /// The detector's score in 0..1.
    pub score: f32,
    /// The quality figures as JSON.
    pub quality: String,
    /// The vector; `None` where the face is too poor to have one.
    pub embedding: Option<Embedding>,
    /// The crop that is kept of it, if any.
    pub crop: Option<NewCrop>,
}

/// Which image, detector revision and pipeline new faces belong to.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Origin<'a> {
    pub collection: CollectionId,
    pub image: ImageId,
    pub detector_revision: &'a str,
    pub pipeline: &'a str,
}

/// A face with one place where it was seen.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct PlacedFace {
    pub face: face::Model,
    pub geometry: face_geometry::Model,
}

/// Which of `faces f` with their `collections c` are shown: those that the detector knows which the collection goes by, and
/// those that somebody has named, whoever knows them.
pub(super) const SHOWN: &str = "((c.hidden_revision IS NULL AND c.shown_revision IS NULL) OR f.locked
    OR f.assigned_by IN ('enrolled', 'user', 'cluster') OR EXISTS (SELECT 1 FROM face_geometry g WHERE g.face_id = f.id
        AND COALESCE(g.detector_revision = c.shown_revision, g.detector_revision <> c.hidden_revision)))";
/// The order of `face_geometry g` of which the first row of a face is shown: the active detector's, and among revisions of it
/// the latest.
pub(super) const PREFERRED: &str = "CASE WHEN g.detector_revision = c.shown_revision THEN 0
    WHEN g.detector_revision = c.hidden_revision THEN 2 ELSE 1 END, g.detector_revision DESC";

/// Two boxes of one image that overlap by more than this (intersection over union) are one face.
pub const SAME_FACE_IOU: f32 = 0.5;

/// The area that two boxes share.
pub(super) fn intersection(a: &FaceBox, b: &FaceBox) -> f32 {
    let width = (a.x + a.width).min(b.x + b.width) - a.x.max(b.x);
    let height = (a.y + a.height).min(b.y + b.height) - a.y.max(b.y);
    width.max(0.0) * height.max(0.0)
}

/// Intersection over union of two boxes, 0..1.
pub fn iou(a: &FaceBox, b: &FaceBox) -> f32 {
    let both = intersection(a, b);
    if both <= 0.0 { 0.0 } else { both / (a.width * a.height + b.width * b.height - both) }
}

/// The face of that id in that collection.
pub async fn find(
    conn: &impl ConnectionTrait,
    collection: CollectionId,
    id: FaceId,
) -> Result<Option<PlacedFace>, DbErr> {
    let row = face::Entity::find_by_id(id).filter(face::Column::CollectionId.eq(collection)).one(conn).await?;
    Ok(with_geometry(conn, row.into_iter().collect()).await?.pop())
}

/// Which faces of a collection to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaceFilter {
    /// Of this person.
    pub person: Option<PersonId>,
    /// Those that are hidden, in place of those that are not.
    pub hidden: bool,
}

/// The faces of those ids, in the order of their ids.
pub(super) async fn find_many(conn: &impl ConnectionTrait, ids: &[FaceId]) -> Result<Vec<PlacedFace>, DbErr> {
    let named = face::Column::Id.is_in(ids.iter().copied());
    with_geometry(conn, face::Entity::find().filter(named).order_by_asc(face::Column::Id).all(conn).await?).await
}

/// Faces that are read at once at least.
const STEP: u64 = 100;

/// Up to `limit` faces of the collection whose id comes after `after`.
pub async fn list(
    db: &Db,
    collection: CollectionId,
    filter: FaceFilter,
    after: Option<FaceId>,
    limit: u64,
) -> Result<Vec<PlacedFace>, DbErr> {
    let mut after = after;
    let mut found = Vec::new();
    loop {
        // Of many that are not shown, not one by one.
        let missing = (limit - found.len() as u64).max(STEP);
        let mut query = face::Entity::find()
            .filter(face::Column::CollectionId.eq(collection))
            .filter(face::Column::Hidden.eq(filter.hidden))
            .order_by_asc(face::Column::Id)
            .limit(missing);
        if let Some(person) = filter.person {
            query = query.filter(face::Column::PersonId.eq(person));
        }
        if let Some(after) = after {
            query = query.filter(face::Column::Id.gt(after));
        }
        let rows = query.all(&db.read).await?;
        let is_end = (rows.len() as u64) < missing;
        after = rows.last().map(|face| face.id);
        // One that was deleted between the two reads must not make the page look like the last.
        found.extend(with_geometry(&db.read, rows).await?);
        if is_end || found.len() as u64 >= limit {
            found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
            return Ok(found);
        }
    }
}

/// The faces of an image.
pub async fn of_image(conn: &impl ConnectionTrait, image: ImageId) -> Result<Vec<PlacedFace>, DbErr> {
    let rows =
        face::Entity::find().filter(face::Column::ImageId.eq(image)).order_by_asc(face::Column::Id).all(conn).await?;
    with_geometry(conn, rows).await
}

/// The faces of a person on some images, those that are hidden left out.
pub async fn of_person_on(
    conn: &impl ConnectionTrait,
    person: PersonId,
    images: &[ImageId],
) -> Result<Vec<PlacedFace>, DbErr> {
    let query = face::Entity::find()
        .filter(face::Column::PersonId.eq(person))
        .filter(face::Column::Hidden.eq(false))
        .filter(face::Column::ImageId.is_in(images.iter().copied()))
        .order_by_asc(face::Column::Id);
    with_geometry(conn, query.all(conn).await?).await
}

/// The face that already lies at this place on the image (see [`SAME_FACE_IOU`]).
pub async fn find_at(
    conn: &impl ConnectionTrait,
    image: ImageId,
    place: &FaceBox,
) -> Result<Option<face::Model>, DbErr> {
    let known = seen_on_image(conn, image).await?;
    Ok(best_at(&known, place).map(|at| known[at].face.clone()))
}

/// The faces of an image, each once for every detector revision that has seen it, shown or not.
pub async fn seen_on_image(conn: &impl ConnectionTrait, image: ImageId) -> Result<Vec<PlacedFace>, DbErr> {
    let faces = face::Entity::find().filter(face::Column::ImageId.eq(image)).all(conn).await?;
    let faces: HashMap<FaceId, face::Model> = faces.into_iter().map(|face| (face.id, face)).collect();
    let sql = "SELECT g.* FROM face_geometry g JOIN faces f ON f.id = g.face_id
        WHERE f.image_id = $1 ORDER BY g.face_id, g.detector_revision";
    let seen = face_geometry::Model::find_by_statement(statement(conn, sql, [image.into()])).all(conn).await?;
    let placed =
        |geometry: face_geometry::Model| Some(PlacedFace { face: faces.get(&geometry.face_id)?.clone(), geometry });
    Ok(seen.into_iter().filter_map(placed).collect())
}

/// Those of the faces that are there.
pub(super) async fn present(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    wanted: impl Iterator<Item = FaceId>,
) -> Result<HashSet<FaceId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: FaceId,
    }
    let ids: Vec<_> = wanted.map(|face| json!({ "face_id": rows::id(face.0) })).collect();
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    let wanted = Rows::new(&[("face_id", Column::Id)], ids);
    let sql = format!(
        "SELECT f.id FROM {} CROSS JOIN faces f WHERE f.collection_id = $2 AND f.id = r.face_id",
        wanted.table(txn)
    );
    let found = Row::find_by_statement(statement(txn, &sql, [wanted.value(), collection.into()])).all(txn).await?;
    Ok(found.into_iter().map(|row| row.id).collect())
}

fn best_at(known: &[PlacedFace], place: &FaceBox) -> Option<usize> {
    let overlap = |at: &usize| iou(&known[*at].geometry.face_box(), place);
    (0..known.len()).max_by(|a, b| overlap(a).total_cmp(&overlap(b))).filter(|at| overlap(at) > SAME_FACE_IOU)
}

/// The ids of a person's faces, in the order of their images.
pub(super) async fn ids_of_person(conn: &impl ConnectionTrait, person: PersonId) -> Result<Vec<FaceId>, DbErr> {
    let query = face::Entity::find().filter(face::Column::PersonId.eq(person)).order_by_asc(face::Column::ImageId);
    Ok(query.all(conn).await?.into_iter().map(|r| r.id).collect())
}

/// The embeddings that one pipeline made of those faces; one without is missing.
pub async fn embeddings_of(
    conn: &impl ConnectionTrait,
    pipeline: &str,
    faces: &[FaceId],
) -> Result<HashMap<FaceId, Embedding>, DbErr> {
    embeddings::of_faces(conn, pipeline, faces).await
}

/// The embeddings that one pipeline made of a person's templates: enrolled or assigned by a user, and not hidden.
pub async fn embeddings_of_person(
    conn: &impl ConnectionTrait,
    person: PersonId,
    pipeline: &str,
) -> Result<Vec<(FaceId, Embedding)>, DbErr> {
    embeddings::of_person(conn, person, pipeline).await
}

/// Stores each face, or finds the one that already lies at its place on the image (see [`SAME_FACE_IOU`]); returns
/// the faces in the order given. A face that is there keeps its person; what it lacks (vector, geometry, crop) is added.
pub async fn place(txn: &impl ConnectionTrait, origin: Origin<'_>, new: &[NewFace]) -> Result<Vec<face::Model>, DbErr> {
    let mut known = seen_on_image(txn, origin.image).await?;
    let mut placed = Vec::with_capacity(new.len());
    for candidate in new {
        let face = match best_at(&known, &candidate.face_box) {
            Some(at) => known[at].face.clone(),
            None => insert(txn, origin).await?,
        };
        known.retain(|other| other.face.id != face.id);
        add(txn, origin, face.id, candidate).await?;
        placed.push(face);
    }
    Ok(placed)
}

/// Adds to a face what it lacks of this: its place as the origin's detector saw it, vector and crop.
pub(super) async fn add(
    txn: &impl ConnectionTrait,
    origin: Origin<'_>,
    face: FaceId,
    new: &NewFace,
) -> Result<(), DbErr> {
    insert_geometry(txn, origin, face, new).await?;
    if let Some(embedding) = &new.embedding {
        embeddings::insert(txn, origin, face, embedding).await?;
    }
    if let Some(crop) = &new.crop {
        crops::insert_all(txn, origin, &[(face, crop)]).await?;
    }
    Ok(())
}

/// A face of an image that has none yet, and whose it looks like.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct FirstFace<'a> {
    pub id: FaceId,
    pub image: ImageId,
    pub face: &'a NewFace,
    pub auto: Option<PersonId>,
}

/// Stores the first faces of new images; the persons must be held. `origin` says what is the same for all of them, and its
/// image is not looked at.
pub async fn insert_first(txn: &impl ConnectionTrait, origin: Origin<'_>, new: &[FirstFace<'_>]) -> Result<(), DbErr> {
    if new.is_empty() {
        return Ok(());
    }
    let face = |new: &FirstFace<'_>| json!({ "id": rows::id(new.id.0), "image_id": rows::id(new.image.0), "person_id": rows::id(new.auto.map(|p| p.0)) });
    let columns = &[("id", Column::Id), ("image_id", Column::Id), ("person_id", Column::Id)];
    let rows = Rows::new(columns, new.iter().map(face).collect());
    let sql = format!(
        "INSERT INTO faces (id, collection_id, image_id, person_id, assigned_by, created_at)
         SELECT r.id, $2, r.image_id, r.person_id, CASE WHEN r.person_id IS NOT NULL THEN 'auto' END, {{now}} FROM {}",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value(), origin.collection.into()]).await?;
    let rows = Rows::new(&GEOMETRY, new.iter().map(geometry).collect());
    let sql = format!(
        "INSERT INTO face_geometry (face_id, detector_revision, x, y, width, height, landmarks, score, quality)
         SELECT r.face_id, $2, r.x, r.y, r.width, r.height, r.landmarks, r.score, r.quality FROM {}",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value(), origin.detector_revision.into()]).await?;
    let vectors = new.iter().filter_map(|new| Some((new.id, new.face.embedding.as_ref()?))).collect::<Vec<_>>();
    embeddings::insert_all(txn, origin, &vectors).await?;
    let crops = new.iter().filter_map(|new| Some((new.id, new.face.crop.as_ref()?))).collect::<Vec<_>>();
    crops::insert_all(txn, origin, &crops).await
}

const GEOMETRY: [(&str, Column); 8] = [
    ("face_id", Column::Id),
    ("x", Column::Real),
    ("y", Column::Real),
    ("width", Column::Real),
    ("height", Column::Real),
    ("landmarks", Column::Text),
    ("score", Column::Real),
    ("quality", Column::Text),
];

fn geometry(new: &FirstFace<'_>) -> serde_json::Value {
    let (face, place) = (new.face, new.face.face_box);
    json!({
        "face_id": rows::id(new.id.0), "x": place.x, "y": place.y, "width": place.width, "height": place.height,
        "landmarks": face.landmarks, "score": face.score, "quality": face.quality,
    })
}

/// Gives a face that is nobody's to the person that it was matched to, unless a user said otherwise.
pub async fn assign_match(txn: &impl ConnectionTrait, face: FaceId, person: PersonId) -> Result<(), DbErr> {
    let sql = "UPDATE faces SET person_id = $1, assigned_by = 'auto'
        WHERE id = $2 AND person_id IS NULL AND NOT locked AND NOT hidden
            AND NOT EXISTS (SELECT 1 FROM face_rejections x WHERE x.face_id = $2 AND x.person_id = $1)";
    execute(txn, sql, [person.into(), face.into()]).await?;
    Ok(())
}

/// Says whose face it is.
pub async fn assign(
    txn: &impl ConnectionTrait,
    face: FaceId,
    person: PersonId,
    assigned_by: AssignedBy,
) -> Result<(), DbErr> {
    let sql = "UPDATE faces SET person_id = $1, assigned_by = $2 WHERE id = $3";
    execute(txn, sql, [person.into(), assigned_by.to_value().into(), face.into()]).await?;
    Ok(())
}

/// Makes the face a person's template: what was said of it before no longer counts.
pub async fn enroll(txn: &impl ConnectionTrait, face: FaceId, person: PersonId) -> Result<(), DbErr> {
    let sql = "UPDATE faces SET person_id = $1, assigned_by = 'enrolled', locked = FALSE, hidden = FALSE WHERE id = $2";
    execute(txn, sql, [person.into(), face.into()]).await?;
    rejections::remove(txn, face, person).await
}

/// Deletes the face with its vectors, at once and without a receipt. False when it is not there.
pub async fn delete(db: &Db, collection: CollectionId, id: FaceId) -> Result<bool, DbErr> {
    through_deadlocks(|| delete_once(db, collection, id)).await
}

async fn delete_once(db: &Db, collection: CollectionId, id: FaceId) -> Result<bool, DbErr> {
    let txn = db.begin().await?;
    let Some(PlacedFace { face, .. }) = find(&txn, collection, id).await? else { return Ok(false) };
    delete_within(&txn, id).await?;
    if let Some(person) = face.template_of() {
        rematches::request(&txn, collection, None, Some(person)).await?;
    }
    txn.commit().await?;
    Ok(true)
}

pub(super) async fn delete_within(txn: &impl ConnectionTrait, id: FaceId) -> Result<(), DbErr> {
    let Some(row) = face::Entity::find_by_id(id).one(txn).await? else { return Ok(()) };
    // The image before its faces, as jobs do.
    images::lock(txn, row.image_id).await?;
    face::Entity::delete_by_id(id).exec(txn).await?;
    images::delete_if_empty(txn, row.image_id).await
}

async fn insert(txn: &impl ConnectionTrait, origin: Origin<'_>) -> Result<face::Model, DbErr> {
    face::ActiveModel {
        id: Set(FaceId::new()),
        collection_id: Set(origin.collection),
        image_id: Set(origin.image),
        person_id: Set(None),
        assigned_by: Set(None),
        created_at: Set(now(txn).await?),
        locked: Set(false),
        hidden: Set(false),
    }
    .insert(txn)
    .await
}

async fn insert_geometry(
    txn: &impl ConnectionTrait,
    origin: Origin<'_>,
    face: FaceId,
    new: &NewFace,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO face_geometry (face_id, detector_revision, x, y, width, height, landmarks, score, quality)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING";
    let values = [
        face.into(),
        origin.detector_revision.into(),
        new.face_box.x.into(),
        new.face_box.y.into(),
        new.face_box.width.into(),
        new.face_box.height.into(),
        new.landmarks.clone().into(),
        new.score.into(),
        new.quality.clone().into(),
    ];
    execute(txn, sql, values).await?;
    Ok(())
}

/// Each of the faces that is shown, with the place at which the active pipeline's detector saw it, or where it was said to
/// be a person's.
async fn with_geometry(conn: &impl ConnectionTrait, faces: Vec<face::Model>) -> Result<Vec<PlacedFace>, DbErr> {
    if faces.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT g.* FROM face_geometry g JOIN faces f ON f.id = g.face_id JOIN collections c ON c.id = f.collection_id
         WHERE g.face_id IN ({}) AND {SHOWN}
         ORDER BY {PREFERRED}",
        placeholders(1, faces.len())
    );
    let ids = faces.iter().map(|f| f.id.into());
    let rows = face_geometry::Model::find_by_statement(statement(conn, &sql, ids)).all(conn).await?;
    let mut by_face: HashMap<FaceId, face_geometry::Model> = HashMap::new();
    for row in rows {
        by_face.entry(row.face_id).or_insert(row);
    }
    Ok(faces
        .into_iter()
        .filter_map(|face| by_face.remove(&face.id).map(|geometry| PlacedFace { face, geometry }))
        .collect())
}

impl face_geometry::Model {
    /// The stored box.
    pub fn face_box(&self) -> FaceBox {
        FaceBox { x: self.x, y: self.y, width: self.width, height: self.height }
    }
}
