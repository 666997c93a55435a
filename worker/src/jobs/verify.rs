//! Verify: is this face the same person's as that one?

use serde_json::{Value, json};
use shared::db::entity::collection;
use shared::db::entity::job::Model as Job;
use shared::db::{faces, persons};
use shared::ids::{FaceId, PersonId};
use shared::job::{FaceChoice, ImageRef, VerifyTarget};

use super::pictures::{analysed, chosen, face_json, fetched};
use super::{Done, JobError, calibration_json, no_person, terms};
use crate::analysis::AnalysedFace;
use crate::context::WorkerContext;
use crate::inference::Engine;
use crate::thresholds::Thresholds;
use crate::vision::crops::Keep;
use crate::vision::quality::Gate;

pub(super) async fn run(
    ctx: &WorkerContext,
    job: &Job,
    collection: &collection::Model,
    image: &ImageRef,
    other: &VerifyTarget,
    face: FaceChoice,
) -> Result<Done, JobError> {
    let engine = ctx.engine(job).await?;
    let terms = terms(ctx, collection, job, engine.pipeline()).await?;
    let gate = Gate::identify(engine.pipeline().detector.match_score);
    let one = face_of(ctx, job, &engine, image, face).await?;
    let (score, comparisons, compared) = match other {
        VerifyTarget::Image(image) => {
            let two = face_of(ctx, job, &engine, image, face).await?;
            (one.embedding.cosine(&two.embedding), 1, face_json(&two, &gate))
        }
        VerifyTarget::Person(person) => {
            let (score, face_id, faces) = nearest_of_person(ctx, job, *person, &one).await?;
            (score, faces, json!({ "person_id": person, "face_id": face_id }))
        }
    };
    let thresholds =
        Thresholds::verify(&terms, comparisons).map_err(|e| JobError::failed("no_calibration", e.to_string()))?;
    let rate = thresholds.false_positive_rate(score);
    let answer: Value = json!({
        "score": score,
        "decision": thresholds.decide(score),
        "threshold": thresholds.match_cosine,
        "threshold_extrapolated": thresholds.extrapolated,
        "false_accept_rate": rate.map(|rate| rate.value),
        "false_accept_rate_extrapolated": rate.map(|rate| rate.extrapolated),
        "calibration": calibration_json(&terms),
        "image": face_json(&one, &gate),
        "other": compared,
    });
    Ok(Done::Answer(answer))
}

async fn face_of(
    ctx: &WorkerContext,
    job: &Job,
    engine: &Engine,
    image: &ImageRef,
    face: FaceChoice,
) -> Result<AnalysedFace, JobError> {
    let gate = Gate::identify(engine.pipeline().detector.match_score);
    let (analysis, _) = analysed(ctx, job, engine, fetched(ctx, image).await?, Keep::Nothing).await?;
    chosen(&analysis, face, &gate)
}

/// The best score against the person's enrolled faces, which face gave it, and of how many.
async fn nearest_of_person(
    ctx: &WorkerContext,
    job: &Job,
    person: PersonId,
    face: &AnalysedFace,
) -> Result<(f32, FaceId, usize), JobError> {
    if persons::find(&ctx.db.read, job.collection_id, person).await?.is_none() {
        return Err(JobError::Rejected(no_person(&ctx.db.read, job.collection_id, person).await?));
    }
    let enrolled = faces::embeddings_of_person(&ctx.db.read, person, &job.pipeline).await?;
    enrolled
        .iter()
        .map(|(id, embedding)| (face.embedding.cosine(embedding), *id, enrolled.len()))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .ok_or_else(|| {
            JobError::rejected("person_has_no_faces", format!("person {person} has no enrolled face; enroll one first"))
        })
}
