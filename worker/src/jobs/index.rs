//! Index: every good face of a picture is stored, each with the persons it looks like.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Instant;

use sea_orm::{DatabaseTransaction, DbErr};
use serde_json::{Value, json};
use shared::db::entity::face;
use shared::db::entity::job::Model as Job;
use shared::db::erasures::fence::{Fence, Stored};
use shared::db::erasures::places;
use shared::db::faces::{FirstFace, NewFace, Origin};
use shared::db::images::ImageSource;
use shared::db::reprocess::pending;
use shared::db::{faces, images, persons, rejections, uploads};
use shared::ids::{FaceId, ImageId, PersonId};
use shared::job::{FaceBox, ImageRef};

use super::identify::{By, matched};
use super::pictures::{analysed, fetched, keeps, new_faces, upload_source};
use super::second_stage::SecondStage;
use super::{
    ClaimCollections, Done, JobError, Recorded, Refused, calibration_json, collection_of, recorded_alone, settings,
    terms,
};
use crate::context::WorkerContext;
use crate::vision::quality::Gate;

/// The faces of a picture that are to be stored.
#[derive(Debug)]
pub struct Indexing {
    image: ImageSource,
    size: [u32; 2],
    detector_revision: String,
    faces: Vec<NewFace>,
    /// What the answer says of each.
    answers: Vec<Value>,
    /// And of what their thresholds come from.
    calibration: Value,
}

pub(super) async fn run(
    ctx: &WorkerContext,
    job: &Job,
    collections: &ClaimCollections,
    image: &ImageRef,
) -> Result<Done, JobError> {
    let began = Instant::now();
    let engine = ctx.engine(job).await?;
    let detector_revision = engine.pipeline().detector_revision();
    // What an upload holds is known before it is read.
    if let Some(upload) = image.upload()
        && let Some((image, answer)) = already_indexed(ctx, job, &upload.sha256, &detector_revision).await?
    {
        return Ok(Done::Known(Box::new(Known { source: upload_source(upload), image, answer })));
    }
    let fetched = fetched(ctx, image).await?;
    if image.upload().is_none()
        && let Some((image, answer)) = already_indexed(ctx, job, &fetched.source.sha256, &detector_revision).await?
    {
        return Ok(Done::Known(Box::new(Known { source: fetched.source, image, answer })));
    }
    let keep = keeps(&settings(ctx, &*collection_of(ctx, collections, job).await?, job).await?);
    let (analysis, source) = analysed(ctx, job, &engine, fetched, keep).await?;
    // Not before: a picture may wait for its turn for longer than a rematch waits for those that go by old terms.
    let collection = collection_of(ctx, collections, job).await?;
    let terms = terms(ctx, &collection, job, engine.pipeline()).await?;
    let gate = Gate::identify(engine.pipeline().detector.match_score);
    let by = By { gate: &gate, terms: &terms, second: SecondStage::of(&engine) };
    let (answers, _) = matched(ctx, job, &by, &analysis.faces, terms.settings.max_matches, began).await?;
    Ok(Done::Index(Box::new(Indexing {
        image: source,
        size: analysis.size,
        faces: new_faces(ctx, job, &analysis.faces, engine.pipeline()).await?,
        detector_revision,
        answers,
        calibration: calibration_json(&terms),
    })))
}

/// A picture whose bytes were indexed before, perhaps under another name.
#[derive(Debug)]
pub struct Known {
    source: ImageSource,
    image: ImageId,
    /// The answer.
    pub(super) answer: Value,
}

/// Remembers where those pictures were found.
///
/// # Errors
/// The database fails, or an image was deleted since it was found: the job has to look again.
pub(super) async fn record_known(txn: &DatabaseTransaction, known: &[(&Job, &Known)]) -> Result<(), DbErr> {
    let Some((job, _)) = known.first() else { return Ok(()) };
    let images: Vec<ImageId> = known.iter().map(|(_, known)| known.image).collect();
    if !images::returned(txn, &images).await? {
        return Err(DbErr::RecordNotFound("an image that was known was deleted meanwhile".to_owned()));
    }
    let found: Vec<_> = known.iter().map(|(_, known)| (&known.source, known.image)).collect();
    images::remember_found(txn, job.collection_id, &found).await
}

/// The answer about a picture, if its bytes were indexed before.
async fn already_indexed(
    ctx: &WorkerContext,
    job: &Job,
    sha256: &str,
    detector_revision: &str,
) -> Result<Option<(ImageId, Value)>, JobError> {
    let Some(image) = images::find_by_sha256(&ctx.db.read, job.collection_id, sha256).await? else { return Ok(None) };
    if !images::is_analysed(&ctx.db.read, image.id, detector_revision).await? {
        return Ok(None);
    }
    let known = faces::of_image(&ctx.db.read, image.id).await?;
    let faces: Vec<Value> = known
        .iter()
        .filter(|f| !f.face.hidden)
        .map(|f| json!({ "face_id": f.face.id, "box": f.geometry.face_box(), "score": f.geometry.score, "person_id": f.face.person_id }))
        .collect();
    Ok(Some((image.id, json!({ "image_id": image.id, "faces": faces, "already_indexed": true }))))
}

/// Writes what jobs of one collection and pipeline found. New images go in together; one that
/// is known already, or is twice among them, takes the longer way.
pub(super) async fn record_all(
    txn: &DatabaseTransaction,
    fence: &Fence<'_>,
    indexed: &[(&Job, &Indexing)],
) -> Result<Vec<Recorded>, DbErr> {
    let Some((job, indexing)) = indexed.first() else { return Ok(Vec::new()) };
    let (collection, revision) = (job.collection_id, indexing.detector_revision.as_str());
    let mut place_of: HashMap<&str, usize> = HashMap::new();
    for (_, indexing) in indexed {
        let next = place_of.len();
        place_of.entry(&indexing.image.sha256).or_insert(next);
    }
    let mut wanted: Vec<Option<(&ImageSource, [u32; 2])>> = vec![None; place_of.len()];
    for (_, indexing) in indexed {
        wanted[place_of[indexing.image.sha256.as_str()]].get_or_insert((&indexing.image, indexing.size));
    }
    let wanted: Vec<_> = wanted.into_iter().flatten().collect();
    let mut images = images::find_or_create_all(txn, collection, &wanted).await?;
    let wanted: BTreeSet<PersonId> =
        indexed.iter().flat_map(|(_, i)| i.answers.iter().flat_map(alike).filter_map(person)).collect();
    let persons = persons::hold(txn, collection, &wanted).await?;
    let missing: Vec<PersonId> = wanted.difference(&persons).copied().collect();
    // Now that images and persons are held: an erasure that was not waited for is seen.
    let stored = indexed.iter().map(|(job, indexing)| (*job, Stored::OfPicture(&indexing.image.sha256)));
    if !fence.held_back(txn, &stored.collect::<Vec<_>>()).await?.is_empty() {
        return refused(indexed.len());
    }
    let jobs: Vec<&Job> = indexed.iter().map(|(job, _)| *job).collect();
    let gone = fence.gone(txn, &jobs, &missing).await?;

    let (mut first, mut later) = (Vec::new(), Vec::new());
    let mut recorded = vec![Recorded::answer(Value::Null); indexed.len()];
    let (mut analysed, mut seen) = (Vec::new(), Vec::new());
    for (at, ((_, indexing), gone)) in indexed.iter().zip(gone).enumerate() {
        let (image, is_new) = &mut images[place_of[indexing.image.sha256.as_str()]];
        seen.push((&indexing.image, image.id));
        if !std::mem::take(is_new) || indexing.shows(&gone) {
            later.push((at, gone));
            continue;
        }
        let new = indexing.first_faces(image.id, &persons);
        let ids: Vec<FaceId> = new.iter().map(|f| f.id).collect();
        let answer = indexing.answer(image.id, indexing.answers.clone(), &ids, false);
        recorded[at] = Recorded { faces: new.len(), ..Recorded::answer(answer) };
        analysed.push((image.id, new.len()));
        first.extend(new);
    }
    images::record_analyses(txn, revision, &analysed).await?;
    let origin = Origin { collection, image: images[0].0.id, detector_revision: revision, pipeline: &job.pipeline };
    faces::insert_first(txn, origin, &first).await?;
    for (at, gone) in later {
        let (job, indexing) = indexed[at];
        let image = images[place_of[indexing.image.sha256.as_str()]].0.id;
        recorded[at] = indexing.add(txn, job, image, (&persons, &gone)).await?;
    }
    images::remember_found(txn, collection, &seen).await?;
    let ids: Vec<ImageId> = seen.iter().map(|(_, image)| *image).collect();
    pending::note(txn, collection, Some(&job.pipeline), &ids).await?;
    Ok(recorded)
}

/// One of so many pictures was erased since its job was accepted.
fn refused(jobs: usize) -> Result<Vec<Recorded>, DbErr> {
    if jobs > 1 {
        return Err(recorded_alone());
    }
    Ok(vec![Recorded { answer: Err(Refused::Erased), faces: 0, goes_on: None }])
}

impl Indexing {
    fn first_faces(&self, image: ImageId, persons: &BTreeSet<PersonId>) -> Vec<FirstFace<'_>> {
        let auto = |answer| best_match(answer, |person| persons.contains(person));
        let faces = self.faces.iter().zip(&self.answers);
        faces.map(|(face, answer)| FirstFace { id: FaceId::new(), image, face, auto: auto(answer) }).collect()
    }

    /// Whether a face looks most like one of these persons.
    fn shows(&self, persons: &HashSet<PersonId>) -> bool {
        self.answers.iter().any(|answer| is_of(answer, persons))
    }

    /// Adds the faces to an image that is there. Those that another job stored are found at their places.
    async fn add(
        &self,
        txn: &DatabaseTransaction,
        job: &Job,
        image: ImageId,
        (persons, gone): (&BTreeSet<PersonId>, &HashSet<PersonId>),
    ) -> Result<Recorded, DbErr> {
        let revision = self.detector_revision.as_str();
        let (new, answers) = self.open(txn, image, gone).await?;
        let known = images::record_analyses(txn, revision, &[(image, new.len())]).await?;
        let origin =
            Origin { collection: job.collection_id, image, detector_revision: revision, pipeline: &job.pipeline };
        let placed = faces::place(txn, origin, &new).await?;
        let unknown = |face: &face::Model| face.person_id.is_none() && face.is_matchable();
        let faces: Vec<_> = answers.iter().zip(&placed).filter(|(_, face)| unknown(face)).collect();
        let ids: Vec<FaceId> = faces.iter().map(|(_, face)| face.id).collect();
        let rejected = rejections::of_faces(txn, &ids).await?;
        for (answer, face) in faces {
            let is_open = |person: &PersonId| persons.contains(person) && !rejected.contains(&(face.id, *person));
            if let Some(person) = best_match(answer, is_open) {
                faces::assign_match(txn, face.id, person).await?;
            }
        }
        let is_known = !known.is_empty();
        let answer = self.answer(image, answers, &placed.iter().map(|f| f.id).collect::<Vec<_>>(), is_known);
        Ok(Recorded { faces: if is_known { 0 } else { placed.len() }, ..Recorded::answer(answer) })
    }

    /// The faces that may be stored on an image that is there, with what the answer says of them: not those of a place where
    /// one was erased, and not those of a person that was erased meanwhile. Their crops go.
    async fn open(
        &self,
        txn: &DatabaseTransaction,
        image: ImageId,
        gone: &HashSet<PersonId>,
    ) -> Result<(Vec<NewFace>, Vec<Value>), DbErr> {
        let shown = self.faces.iter().zip(&self.answers).filter(|(_, answer)| is_of(answer, gone));
        places::close(txn, image, &shown.map(|(face, _)| face.face_box).collect::<Vec<_>>()).await?;
        let boxes: Vec<FaceBox> = self.faces.iter().map(|face| face.face_box).collect();
        let are_open = places::are_open(txn, image, &boxes).await?;
        let mut open = (Vec::new(), Vec::new());
        for ((face, answer), is_open) in self.faces.iter().zip(&self.answers).zip(are_open) {
            if is_open {
                open.0.push(face.clone());
                open.1.push(answer.clone());
            } else if let Some(crop) = &face.crop {
                uploads::orphan(txn, &crop.object_key).await?;
            }
        }
        Ok(open)
    }

    fn answer(&self, image: ImageId, mut answers: Vec<Value>, faces: &[FaceId], already_indexed: bool) -> Value {
        for (answer, face) in answers.iter_mut().zip(faces) {
            answer["face_id"] = json!(face);
        }
        json!({
            "image_id": image,
            "faces": answers,
            "already_indexed": already_indexed,
            "calibration": self.calibration,
        })
    }
}

/// Whether the face looks most like one of these persons, whatever a second stage says.
fn is_of(answer: &Value, persons: &HashSet<PersonId>) -> bool {
    alike(answer).next().and_then(person).is_some_and(|person| persons.contains(&person))
}

/// Whom of those that are open a face was found to match best: by both stages, where there are two. Who is not open does not
/// stand between the face and the next one.
fn best_match(answer: &Value, is_open: impl Fn(&PersonId) -> bool) -> Option<PersonId> {
    let mut open = alike(answer).filter_map(|found| Some((found, person(found).filter(&is_open)?)));
    let (found, person) = open.next()?;
    found.get("second_stage").is_none_or(|second| second["is_match"] == json!(true)).then_some(person)
}

/// What is said of those whose score reaches the threshold, best first.
fn alike(answer: &Value) -> impl Iterator<Item = &Value> {
    let threshold = answer["threshold"].as_f64().unwrap_or(f64::INFINITY);
    let found = answer["matches"].as_array().map(Vec::as_slice).unwrap_or_default();
    found.iter().take_while(move |m| m["score"].as_f64().is_some_and(|score| score >= threshold))
}

fn person(found: &Value) -> Option<PersonId> {
    serde_json::from_value(found["person_id"].clone()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_assigned_whom_the_second_stage_does_not_confirm() {
        let persons = [(); 3].map(|()| PersonId::new());
        let found = |n: usize, score: f32, second: Option<bool>| {
            let mut found = json!({ "person_id": persons[n], "score": score });
            if let Some(is_match) = second {
                found["second_stage"] = json!({ "is_match": is_match });
            }
            found
        };
        let answer = |second: [Option<bool>; 3]| {
            let matches = [found(0, 0.9, second[0]), found(1, 0.6, second[1]), found(2, 0.4, second[2])];
            json!({ "threshold": 0.5, "matches": matches })
        };
        let [first, second, third] = persons;
        let matching = |answer: &Value, closed: &[PersonId]| best_match(answer, |person| !closed.contains(person));
        assert_eq!(matching(&answer([None; 3]), &[]), Some(first));
        assert_eq!(matching(&answer([None; 3]), &[first]), Some(second));
        assert_eq!(matching(&answer([None; 3]), &[first, second]), None, "{third} is not like it");
        assert_eq!(matching(&answer([Some(true), Some(false), Some(true)]), &[]), Some(first));
        assert_eq!(matching(&answer([Some(true), Some(false), Some(true)]), &[first]), None);
        let refused = answer([Some(false), Some(true), Some(true)]);
        assert_eq!(matching(&refused, &[]), None, "as the decision, which is uncertain");
        assert_eq!(matching(&refused, &[first]), Some(second), "whom it is not does not stand before the next one");
        assert!(is_of(&refused, &HashSet::from([persons[0]])), "an erasure goes by the likeness alone");
    }
}
