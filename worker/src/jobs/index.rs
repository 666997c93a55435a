//! Index: every good face of a picture is stored, each with the persons it looks like.

use sea_orm::{DatabaseTransaction, DbErr};
use serde_json::{Value, json};
use shared::db::entity::collection;
use shared::db::entity::job::Model as Job;
use shared::db::faces::{AssignedBy, NewFace, Origin};
use shared::db::images::ImageSource;
use shared::db::{faces, images, persons};
use shared::ids::PersonId;
use shared::job::{Decision, ImageRef};

use super::identify::matched;
use super::pictures::{Fetched, analysed, fetched, new_face};
use super::{Done, JobError, settings};
use crate::context::WorkerContext;

/// The faces of a picture that are to be stored.
#[derive(Debug)]
pub struct Indexing {
    image: ImageSource,
    size: [u32; 2],
    detector_revision: String,
    faces: Vec<NewFace>,
    /// What the answer says of each.
    answers: Vec<Value>,
}

pub(super) async fn run(
    ctx: &WorkerContext,
    job: &Job,
    collection: &collection::Model,
    image: &ImageRef,
) -> Result<Done, JobError> {
    let engine = ctx.engines.get(&job.pipeline).await?;
    let detector_revision = engine.pipeline().detector_revision();
    // What an upload holds is known before it is read.
    if let Some(upload) = image.upload()
        && let Some(answer) = already_indexed(ctx, job, &upload.sha256, &detector_revision).await?
    {
        return Ok(Done::Answer(answer));
    }
    let Fetched { bytes, source } = fetched(ctx, image).await?;
    if image.upload().is_none()
        && let Some(answer) = already_indexed(ctx, job, &source.sha256, &detector_revision).await?
    {
        return Ok(Done::Answer(answer));
    }
    let settings = settings(collection)?;
    let analysis = analysed(ctx, &engine, bytes).await?;
    let (answers, _) = matched(ctx, job, engine.pipeline(), &settings, &analysis.faces, settings.max_matches).await?;
    Ok(Done::Index(Box::new(Indexing {
        image: source,
        size: analysis.size,
        faces: analysis.faces.iter().map(|f| new_face(f, engine.pipeline())).collect(),
        detector_revision,
        answers,
    })))
}

/// The answer about a picture, if its bytes were indexed before.
async fn already_indexed(
    ctx: &WorkerContext,
    job: &Job,
    sha256: &str,
    detector_revision: &str,
) -> Result<Option<Value>, JobError> {
    let Some(image) = images::find_by_sha256(&ctx.db.read, job.collection_id, sha256).await? else { return Ok(None) };
    if !images::is_analysed(&ctx.db.read, image.id, detector_revision).await? {
        return Ok(None);
    }
    let known = faces::of_image(&ctx.db.read, image.id).await?;
    let faces: Vec<Value> = known
        .iter()
        .map(|f| json!({ "face_id": f.face.id, "box": f.geometry.face_box(), "score": f.geometry.score, "person_id": f.face.person_id }))
        .collect();
    Ok(Some(json!({ "image_id": image.id, "faces": faces, "already_indexed": true })))
}

impl Indexing {
    pub(super) async fn record(&self, txn: &DatabaseTransaction, job: &Job) -> Result<Value, DbErr> {
        let collection = job.collection_id;
        let image = images::find_or_create(txn, collection, &self.image, self.size.into()).await?;
        let first = images::record_analysis(txn, image.id, &self.detector_revision, self.faces.len()).await?;
        let origin =
            Origin { collection, image: image.id, detector_revision: &self.detector_revision, pipeline: &job.pipeline };
        // `place` finds the faces that another job of the same picture stored in the meantime.
        let placed = faces::place(txn, origin, &self.faces).await?;
        let mut answers = self.answers.clone();
        for (answer, face) in answers.iter_mut().zip(&placed) {
            answer["face_id"] = json!(face.id);
            if let Some(person) = best_match(answer).filter(|_| face.person_id.is_none())
                && persons::find(txn, collection, person).await?.is_some()
            {
                faces::assign(txn, face.id, person, AssignedBy::Auto).await?;
            }
        }
        Ok(json!({ "image_id": image.id, "faces": answers, "already_indexed": !first }))
    }
}

/// The person that a face was decided to be.
fn best_match(answer: &Value) -> Option<PersonId> {
    let is_match = answer["decision"] == json!(Decision::Match);
    is_match.then(|| serde_json::from_value(answer["matches"][0]["person_id"].clone()).ok()).flatten()
}
