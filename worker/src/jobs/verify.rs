//! Verify: is this face the same person's as that one?

use std::cmp::Reverse;

use serde_json::{Value, json};
use shared::catalogue::{Calibration, Metric};
use shared::db::entity::collection;
use shared::db::entity::job::Model as Job;
use shared::db::{faces, persons};
use shared::embedding::Embedding;
use shared::face_index::matches::{self, Match};
use shared::ids::{FaceId, PersonId};
use shared::job::{FaceChoice, ImageRef, VerifyTarget};
use shared::template::{self, Template};

use super::pictures::{analysed, chosen, face_json, fetched};
use super::second_stage::{Asked, Checked, SecondStage};
use super::{Done, JobError, calibration_json, no_person, terms};
use crate::analysis::AnalysedFace;
use crate::context::WorkerContext;
use crate::inference::Engine;
use crate::thresholds::Thresholds;
use crate::vision::crops::Keep;
use crate::vision::quality::Gate;

/// The pairs of so many faces are compared within a millisecond.
const FEW_FACES: usize = 32;

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
    let thresholds = |comparisons| {
        Thresholds::verify(&terms, comparisons).map_err(|e| JobError::failed("no_calibration", e.to_string()))
    };
    let second = SecondStage::of(&engine);
    let (score, thresholds, compared, checked) = match other {
        VerifyTarget::Image(image) => {
            let two = face_of(ctx, job, &engine, image, face).await?;
            let checked = match &second {
                Some(second) => Some(second.pair(Asked::from(&one), Asked::from(&two)).await?),
                None => None,
            };
            (one.embedding.score(&two.embedding, terms.metric), thresholds(1)?, face_json(&two, &gate), checked)
        }
        VerifyTarget::Person(person) => {
            let faces = faces_of_person(ctx, job, *person).await?;
            let thresholds = thresholds(template::comparisons(faces.len()))?;
            let by = (thresholds.calibration().cloned(), terms.metric);
            let found = like_person(one.embedding.clone(), *person, faces, by).await?;
            let other = json!({ "person_id": person, "face_id": found.face, "face_score": found.face_score });
            let checked = match &second {
                Some(second) => {
                    second.check(ctx, job, &[Asked::from(&one)], &[vec![found]]).await?.into_iter().flatten().next()
                }
                None => None,
            };
            (found.score, thresholds, other, checked)
        }
    };
    let rate = thresholds.false_positive_rate(score);
    let mut answer: Value = json!({
        "score": score,
        "decision": Checked::decide(checked.as_ref(), thresholds.decide(score)),
        "threshold": thresholds.match_cosine,
        "threshold_extrapolated": thresholds.extrapolated,
        "false_accept_rate": rate.map(|rate| rate.value),
        "false_accept_rate_extrapolated": rate.map(|rate| rate.extrapolated),
        "calibration": calibration_json(&terms),
        "image": face_json(&one, &gate),
        "other": compared,
    });
    if let Some(checked) = checked {
        answer["second_stage"] = checked.json();
    }
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

/// The person's templates, the newest first.
async fn faces_of_person(
    ctx: &WorkerContext,
    job: &Job,
    person: PersonId,
) -> Result<Vec<(FaceId, Embedding)>, JobError> {
    if persons::find(&ctx.db.read, job.collection_id, person).await?.is_none() {
        return Err(JobError::Rejected(no_person(&ctx.db.read, job.collection_id, person).await?));
    }
    let mut enrolled = faces::embeddings_of_person(&ctx.db.read, person, &job.pipeline).await?;
    enrolled.sort_unstable_by_key(|(face, _)| Reverse(*face));
    Ok(enrolled)
}

/// How like a person a face is, as a search would say it. Many faces are compared in a thread that keeps no other job waiting.
async fn like_person(
    face: Embedding,
    person: PersonId,
    faces: Vec<(FaceId, Embedding)>,
    (calibration, metric): (Option<Calibration>, Metric),
) -> Result<Match, JobError> {
    let is_short = faces.len() <= FEW_FACES;
    let compare = move || {
        let mut found = Match::of(matches::nearest(&face, person, &faces, metric)?);
        found.judge(&face, calibration.and_then(|calibration| Template::of(faces, &calibration, metric)).as_ref());
        Some(found)
    };
    let found = if is_short {
        compare()
    } else {
        let compared = tokio::task::spawn_blocking(compare).await;
        compared.map_err(|e| JobError::Transient(anyhow::Error::new(e).context("compare faces")))?
    };
    found.ok_or_else(|| {
        JobError::rejected("person_has_no_faces", format!("person {person} has no enrolled face; enroll one first"))
    })
}
