//! What a reembed job reads of its images, and what it writes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use sea_orm::{QueryFilter, QueryOrder};
use serde_json::json;

use super::{KEPT_UP, Run, Side};
use crate::db::crops::{self, Crop, NewCrop};
use crate::db::entity::{face, face_geometry, image};
use crate::db::faces::{self, AssignedBy, NewFace, Origin, PlacedFace, SAME_FACE_IOU, iou};
use crate::db::rows::{self, Column, Rows};
use crate::db::{Db, embeddings, erasures, execute, images, is_postgres, placeholders, rematches, statement};
use crate::embedding::Embedding;
use crate::ids::{CollectionId, FaceId, ImageId, JobId, ReprocessRunId};
use crate::job::FaceBox;

/// A face that is known of an image, with each place at which it was seen.
#[derive(Clone, Debug)]
pub struct KnownFace {
    /// The face.
    pub face: face::Model,
    /// By which detector revision it was seen where, in the order of the revisions.
    pub seen: Vec<face_geometry::Model>,
    /// Its crops.
    pub crops: Vec<Crop>,
    /// Whether it has the pipeline's vector.
    pub is_embedded: bool,
}

/// An image with what is known of it.
#[derive(Clone, Debug)]
pub struct KnownImage {
    /// The image.
    pub image: image::Model,
    /// The detector revisions that have analysed it; of an image of which only faces were enrolled there are none.
    pub analysed_by: BTreeSet<String>,
    /// Its faces.
    pub faces: Vec<KnownFace>,
}

impl KnownFace {
    /// Whether it stays what it is said to be, whatever a detector makes of it.
    pub fn is_labelled(&self) -> bool {
        self.face.locked || self.face.assigned_by.as_ref().is_some_and(|by| *by != AssignedBy::Auto)
    }

    /// Whether that revision saw it.
    pub fn is_seen_by(&self, revision: &str) -> bool {
        self.seen.iter().any(|seen| seen.detector_revision == revision)
    }

    /// Where that revision saw it, or else another one.
    pub fn seen_by(&self, revision: &str) -> Option<&face_geometry::Model> {
        self.seen.iter().find(|seen| seen.detector_revision == revision).or(self.seen.last())
    }

    /// How far it covers that place, at best.
    fn overlap(&self, place: &FaceBox) -> f32 {
        self.seen.iter().map(|seen| iou(&seen.face_box(), place)).fold(0.0, f32::max)
    }
}

impl KnownImage {
    /// Whether a detector of that revision has not looked at the picture.
    pub fn lacks_detection(&self, revision: &str) -> bool {
        if self.analysed_by.is_empty() {
            return !self.faces.iter().all(|face| face.is_seen_by(revision));
        }
        !self.analysed_by.contains(revision)
    }
}

/// Which of the faces lie at which of these places, as [`faces::place`] will find them: each once, the places in their order.
pub fn found_again<'a>(known: &'a [KnownFace], places: &[FaceBox]) -> HashSet<FaceId> {
    let mut left: Vec<&'a KnownFace> = known.iter().collect();
    let mut found = HashSet::new();
    for place in places {
        let best = (0..left.len()).max_by(|a, b| left[*a].overlap(place).total_cmp(&left[*b].overlap(place)));
        if let Some(at) = best.filter(|at| left[*at].overlap(place) > SAME_FACE_IOU) {
            found.insert(left.swap_remove(at).face.id);
        }
    }
    found
}

/// What is known of those images that are there, in the order of their ids.
pub async fn known(
    db: &Db,
    collection: CollectionId,
    pipeline: &str,
    wanted: &[ImageId],
) -> Result<Vec<KnownImage>, DbErr> {
    #[derive(FromQueryResult)]
    struct Analysis {
        image_id: ImageId,
        detector_revision: String,
    }
    let query = image::Entity::find()
        .filter(image::Column::CollectionId.eq(collection))
        .filter(image::Column::Id.is_in(wanted.iter().copied()))
        .order_by_asc(image::Column::Id);
    let found = query.all(&db.read).await?;
    let list = placeholders(1, found.len().max(1));
    let ids = || if found.is_empty() { vec![Uuid::nil().into()] } else { found.iter().map(|i| i.id.into()).collect() };
    let sql = format!("SELECT image_id, detector_revision FROM image_analyses WHERE image_id IN ({list})");
    let analyses = Analysis::find_by_statement(statement(&db.read, &sql, ids())).all(&db.read).await?;
    let sql = format!(
        "SELECT g.* FROM face_geometry g JOIN faces f ON f.id = g.face_id WHERE f.image_id IN ({list})
         ORDER BY g.detector_revision"
    );
    let places = face_geometry::Model::find_by_statement(statement(&db.read, &sql, ids())).all(&db.read).await?;
    let sql = format!("SELECT * FROM faces WHERE image_id IN ({list}) ORDER BY id");
    let rows = face::Model::find_by_statement(statement(&db.read, &sql, ids())).all(&db.read).await?;
    let faces: Vec<FaceId> = rows.iter().map(|face| face.id).collect();
    let embedded = embeddings::having(&db.read, pipeline, &faces).await?;
    let mut crops_of: HashMap<FaceId, Vec<Crop>> = HashMap::new();
    for crop in crops::of_faces(&db.read, &faces).await? {
        crops_of.entry(crop.face_id).or_default().push(crop);
    }
    let mut seen_at: HashMap<FaceId, Vec<face_geometry::Model>> = HashMap::new();
    for place in places {
        seen_at.entry(place.face_id).or_default().push(place);
    }
    let mut of_image: HashMap<ImageId, Vec<KnownFace>> = HashMap::new();
    for face in rows {
        let known = KnownFace {
            seen: seen_at.remove(&face.id).unwrap_or_default(),
            crops: crops_of.remove(&face.id).unwrap_or_default(),
            is_embedded: embedded.contains(&face.id),
            face,
        };
        of_image.entry(known.face.image_id).or_default().push(known);
    }
    let known = |image: image::Model| KnownImage {
        analysed_by: analyses.iter().filter(|a| a.image_id == image.id).map(|a| a.detector_revision.clone()).collect(),
        faces: of_image.remove(&image.id).unwrap_or_default(),
        image,
    };
    Ok(found.into_iter().map(known).collect())
}

/// A crop of a face as a detector revision saw it.
pub type CropOf = (String, NewCrop);

/// The vector of a face that is there, with a crop where there was none of that revision.
pub type VectorOf = (FaceId, Embedding, Option<CropOf>);

/// What a job adds to an image.
#[derive(Clone, Debug, Default)]
pub struct Addition {
    /// What the pipeline's detector found, where it looked; all that was stored for an image of which others looked for
    /// every face, and only what is there already for one of which single faces were enrolled.
    pub detected: Option<Vec<NewFace>>,
    /// Vectors of faces that are there.
    pub vectors: Vec<VectorOf>,
    /// The code of why the image lacks some: nobody tries again until a client wants it.
    pub problem: Option<String>,
}

/// Writes what was added to an image, unless the image, or the run that wanted it, is gone. The image must not have
/// been waiting since it was read: else another job will look at it again.
pub async fn record(
    txn: &impl ConnectionTrait,
    (collection, job): (CollectionId, JobId),
    side: Side<'_>,
    added: &[(ImageId, Addition)],
) -> Result<usize, DbErr> {
    #[derive(FromQueryResult)]
    struct Wanted {
        run_id: ReprocessRunId,
        /// Whether it is the new side.
        is_new: bool,
        /// Whether the collection goes by it.
        is_active: bool,
    }
    let sql = format!(
        "SELECT k.run_id, k.pipeline = run.pipeline AS is_new, k.pipeline = c.pipeline AS is_active FROM {KEPT_UP} AS k
         JOIN reprocess_runs run ON run.id = k.run_id JOIN collections c ON c.id = k.collection_id
         WHERE k.collection_id = $1 AND k.pipeline = $2"
    );
    let wanted = Wanted::find_by_statement(statement(txn, &sql, [collection.into(), side.pipeline.into()]));
    let Some(Wanted { run_id, is_new, is_active }) = wanted.one(txn).await? else { return Ok(0) };
    let ids: Vec<ImageId> = added.iter().map(|(image, _)| *image).collect();
    let locked: HashSet<ImageId> = images::lock_all(txn, &ids).await?;
    let on = |image| Origin { collection, image, detector_revision: side.revision, pipeline: side.pipeline };
    let mut faces = Vec::new();
    for (image, addition) in added.iter().filter(|(image, _)| locked.contains(image)) {
        if let Some(detected) = &addition.detected {
            // What only the new detector finds, or no longer finds, is of interest, and not the other way round.
            faces.extend(add_detected(txn, is_new.then_some(run_id), on(*image), detected, &addition.vectors).await?);
        }
    }
    let known = added.iter().filter(|(image, addition)| locked.contains(image) && addition.detected.is_none());
    let vectors: Vec<&VectorOf> = known.flat_map(|(_, addition)| &addition.vectors).collect();
    faces.extend(add_vectors(txn, on(ImageId(Uuid::nil())), &vectors).await?);
    if is_active {
        // They came too late for the match after the switch.
        for face in &faces {
            rematches::request(txn, collection, Some(*face), None).await?;
        }
    }
    // An image that is given up stays, when those that are done go.
    let problems = added.iter().filter_map(|(image, addition)| Some((*image, addition.problem.clone()?)));
    give_up(txn, (collection, job), side.pipeline, &problems.collect::<Vec<_>>()).await?;
    give_up_templates(txn, (collection, job), side.pipeline, &ids).await?;
    let done = Rows::new(
        &[("image_id", Column::Id)],
        ids.iter().map(|image| json!({ "image_id": rows::id(image.0) })).collect(),
    );
    let sql = format!(
        "DELETE FROM reprocess_pending WHERE collection_id = $2 AND pipeline = $3 AND job_id = $4
            AND image_id IN (SELECT r.image_id FROM {})",
        done.table(txn)
    );
    execute(txn, &sql, [done.value(), collection.into(), side.pipeline.into(), job.into()]).await?;
    Ok(faces.len())
}

/// Gives images up of which a face by which people are recognised has no vector after all: its crop, its points or its vector
/// make no sense.
async fn give_up_templates(
    txn: &impl ConnectionTrait,
    (collection, job): (CollectionId, JobId),
    pipeline: &str,
    images: &[ImageId],
) -> Result<(), DbErr> {
    let rows = Rows::new(
        &[("image_id", Column::Id)],
        images.iter().map(|image| json!({ "image_id": rows::id(image.0) })).collect(),
    );
    let sql = format!(
        "UPDATE reprocess_pending SET job_id = NULL, problem = 'no_vector'
         WHERE collection_id = $2 AND pipeline = $3 AND job_id = $4 AND image_id IN
            (SELECT f.image_id FROM faces f WHERE f.image_id IN (SELECT r.image_id FROM {})
             AND f.person_id IS NOT NULL AND f.assigned_by IN ('enrolled', 'user') AND NOT f.hidden
             AND NOT EXISTS (SELECT 1 FROM embeddings e WHERE e.pipeline = $3 AND e.face_id = f.id))",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value(), collection.into(), pipeline.into(), job.into()]).await?;
    Ok(())
}

/// Adds what a detector found to one locked image, and vectors of faces that it did not find; returns the faces that have a
/// vector then.
async fn add_detected(
    txn: &impl ConnectionTrait,
    run: Option<ReprocessRunId>,
    origin: Origin<'_>,
    detected: &[NewFace],
    vectors: &[VectorOf],
) -> Result<Vec<FaceId>, DbErr> {
    let before = faces::seen_on_image(txn, origin.image).await?;
    let present: HashSet<FaceId> = before.iter().map(|known| known.face.id).collect();
    let detected = not_erased(txn, origin.image, detected).await?;
    let detected = if images::is_analysed_by_any(txn, origin.image).await? {
        images::record_analyses(txn, origin.detector_revision, &[(origin.image, detected.len())]).await?;
        detected
    } else {
        at_known_places(&before, &detected)
    };
    let placed = faces::place(txn, origin, &detected).await?;
    let mut added: Vec<FaceId> = placed.iter().map(|face| face.id).collect();
    let found: HashSet<FaceId> = added.iter().copied().collect();
    let is_seen = |face: &FaceId| {
        before.iter().any(|b| b.face.id == *face && b.geometry.detector_revision == origin.detector_revision)
    };
    let new = found.iter().filter(|face| !present.contains(face)).map(|face| (*face, "new"));
    let lost = present.iter().filter(|face| !found.contains(face) && !is_seen(face)).map(|face| (*face, "lost"));
    if let Some(run) = run {
        note_differences(txn, run, new.chain(lost)).await?;
    }
    added.extend(add_vectors(txn, origin, &vectors.iter().collect::<Vec<_>>()).await?);
    Ok(added)
}

/// Adds vectors to those of the faces that are there, with their crops; returns which. The origin's image is not looked at.
async fn add_vectors(
    txn: &impl ConnectionTrait,
    origin: Origin<'_>,
    vectors: &[&VectorOf],
) -> Result<Vec<FaceId>, DbErr> {
    let present = faces::present(txn, origin.collection, vectors.iter().map(|(face, ..)| *face)).await?;
    let of_present = vectors.iter().filter(|(face, ..)| present.contains(face));
    let rows: Vec<_> = of_present.clone().map(|(face, embedding, _)| (*face, embedding)).collect();
    embeddings::insert_all(txn, origin, &rows).await?;
    let mut crops_by: BTreeMap<&str, Vec<(FaceId, &NewCrop)>> = BTreeMap::new();
    for (face, _, crop) in of_present {
        if let Some((revision, crop)) = crop {
            crops_by.entry(revision).or_default().push((*face, crop));
        }
    }
    for (revision, crops) in crops_by {
        crops::insert_all(txn, Origin { detector_revision: revision, ..origin }, &crops).await?;
    }
    Ok(rows.into_iter().map(|(face, _)| face).collect())
}

/// Those of the detections that do not lie where a face was erased.
async fn not_erased(txn: &impl ConnectionTrait, image: ImageId, detected: &[NewFace]) -> Result<Vec<NewFace>, DbErr> {
    let boxes: Vec<FaceBox> = detected.iter().map(|face| face.face_box).collect();
    let are_open = erasures::places::are_open(txn, image, &boxes).await?;
    Ok(detected.iter().zip(are_open).filter(|(_, is_open)| *is_open).map(|(face, _)| face.clone()).collect())
}

/// Those of the detections that lie where a face is known.
fn at_known_places(known: &[PlacedFace], detected: &[NewFace]) -> Vec<NewFace> {
    let is_known = |new: &&NewFace| known.iter().any(|k| iou(&k.geometry.face_box(), &new.face_box) > SAME_FACE_IOU);
    detected.iter().filter(is_known).cloned().collect()
}

async fn note_differences(
    txn: &impl ConnectionTrait,
    run: ReprocessRunId,
    differences: impl Iterator<Item = (FaceId, &'static str)>,
) -> Result<(), DbErr> {
    let row = |(face, difference): (FaceId, &str)| json!({ "face_id": rows::id(face.0), "difference": difference });
    let found: Vec<_> = differences.map(row).collect();
    if found.is_empty() {
        return Ok(());
    }
    let found = Rows::new(&[("face_id", Column::Id), ("difference", Column::Text)], found);
    let sql = format!(
        "INSERT INTO reprocess_differences (run_id, face_id, difference) SELECT $2, r.face_id, r.difference FROM {}
         WHERE TRUE ON CONFLICT DO NOTHING",
        found.table(txn)
    );
    execute(txn, &sql, [found.value(), run.into()]).await?;
    Ok(())
}

/// Notes why images were not done.
pub(super) async fn give_up(
    txn: &impl ConnectionTrait,
    (collection, job): (CollectionId, JobId),
    pipeline: &str,
    problems: &[(ImageId, String)],
) -> Result<(), DbErr> {
    for (image, code) in problems {
        let sql = "UPDATE reprocess_pending SET job_id = NULL, problem = $1
            WHERE collection_id = $2 AND pipeline = $3 AND image_id = $4 AND job_id = $5";
        let values = [code.as_str().into(), collection.into(), pipeline.into(), (*image).into(), job.into()];
        execute(txn, sql, values).await?;
    }
    Ok(())
}

/// A face that only one of a run's detectors found.
#[derive(Clone, Debug, FromQueryResult)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Difference {
    pub face_id: FaceId,
    pub difference: String,
    pub image_id: ImageId,
    pub x: f32,
    pub y: f32,
    pub width: f32,
    pub height: f32,
}

/// Up to `limit` faces that only one of the run's detectors found, in the order of their ids, those after `after`, with where
/// it did.
pub async fn differences(
    db: &Db,
    run: &Run,
    difference: Option<&str>,
    after: Option<FaceId>,
    limit: u64,
) -> Result<Vec<Difference>, DbErr> {
    let kind = if is_postgres(&db.read) { "$3::text" } else { "$3" };
    let sql = format!(
        "SELECT d.face_id, d.difference, f.image_id, g.x, g.y, g.width, g.height FROM reprocess_differences d
         JOIN faces f ON f.id = d.face_id JOIN face_geometry g ON g.face_id = d.face_id
            AND g.detector_revision = (SELECT max(o.detector_revision) FROM face_geometry o WHERE o.face_id = d.face_id)
         WHERE d.run_id = $1 AND d.face_id > $2 AND ({kind} IS NULL OR d.difference = $3)
         ORDER BY d.face_id LIMIT {limit}"
    );
    let after = after.map_or(Uuid::nil(), |face| face.0);
    let values = [run.id.into(), after.into(), difference.into()];
    Difference::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await
}
