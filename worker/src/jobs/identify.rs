//! Identify: whose faces are these? Stores nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shared::db::entity::job::Model as Job;
use shared::db::entity::{collection, person};
use shared::db::persons;
use shared::embedding::Embedding;
use shared::face_index::matches::{self, Match};
use shared::face_index::{Found, Gallery, GallerySize};
use shared::ids::PersonId;
use shared::job::{Decision, ImageRef};

use super::pictures::{analysed, face_json, fetched, is_spoof, live_networks};
use super::second_stage::{Asked, Checked, SecondStage};
use super::{Done, JobError, calibration_json, terms};
use crate::analysis::{AnalysedFace, Wishes};
use crate::context::WorkerContext;
use crate::thresholds::{Terms, Thresholds};
use crate::vision::crops::Keep;
use crate::vision::quality::Gate;

/// A job sees the gallery at least as it was when it began, and no older than this: what it misses for that, the rematch finds
/// that each change of templates asks for, and which waits longer.
const MAX_AGE: Duration = Duration::from_millis(250);
/// So many persons are looked up at least: the second one says how sure the first one is.
pub(crate) const RUNNER_UP: usize = 2;

pub(super) async fn run(
    ctx: &WorkerContext,
    job: &Job,
    collection: &collection::Model,
    image: &ImageRef,
    max_matches: Option<usize>,
) -> Result<Done, JobError> {
    let began = Instant::now();
    let engine = ctx.engine(job).await?;
    let terms = terms(ctx, collection, job, engine.pipeline()).await?;
    let wishes = Wishes { keep: Keep::Nothing, live: live_networks(ctx, &terms.settings).await? };
    let (analysis, _) = analysed(ctx, job, &engine, fetched(ctx, image).await?, wishes).await?;
    let k = max_matches.unwrap_or(terms.settings.max_matches);
    let gate = Gate::identify(engine.pipeline().detector.match_score);
    let by = By { gate: &gate, terms: &terms, second: SecondStage::of(&engine) };
    let (faces, size) = matched(ctx, job, &by, &analysis.faces, k, began).await?;
    Ok(Done::Answer(json!({
        "faces": faces,
        "gallery": { "persons": size.persons, "faces": size.faces },
        "calibration": calibration_json(&terms),
    })))
}

/// What faces are looked up by.
pub(super) struct By<'a> {
    pub(super) gate: &'a Gate,
    pub(super) terms: &'a Terms,
    pub(super) second: Option<SecondStage<'a>>,
}

/// Each face with the persons nearest to it and a decision. A face that fails the gate, or is taken for a picture of one, is not
/// looked up: it is unknown.
pub(super) async fn matched(
    ctx: &WorkerContext,
    job: &Job,
    by: &By<'_>,
    faces: &[AnalysedFace],
    k: usize,
    began: Instant,
) -> Result<(Vec<Value>, GallerySize), JobError> {
    let By { gate, terms, second } = by;
    let usable = |f: &&AnalysedFace| f.quality.reasons(gate).is_empty() && !is_spoof(f, &terms.settings);
    let gallery = Gallery { collection: job.collection_id, pipeline: job.pipeline.clone(), metric: terms.metric };
    let queries: Vec<Embedding> = faces.iter().filter(usable).map(|f| f.embedding.clone()).collect();
    let place = ctx.stages.search(job.lane).await;
    let max_age = began.elapsed().min(MAX_AGE);
    let wanted = k.max(RUNNER_UP);
    let search = ctx.face_index.search_within(&gallery, queries.clone(), matches::candidates(wanted), max_age);
    let Found { size, hits } = search.await?;
    let thresholds = Thresholds::identify(terms, size.comparisons())
        .map_err(|e| JobError::failed("no_calibration", e.to_string()))?;
    let judges = (thresholds.calibration(), thresholds.uncertain_cosine);
    let mut matches = matches::judged(&ctx.db.read, &gallery, queries, hits, judges).await?;
    for matches in &mut matches {
        matches.truncate(wanted);
    }
    drop(place);
    let checked = match second {
        Some(second) => {
            let asked: Vec<Asked<'_>> = faces.iter().filter(usable).map(Asked::from).collect();
            second.check(ctx, job, &asked, &matches).await?
        }
        None => Vec::new(),
    };
    let named = names(ctx, job, &matches).await?;
    let (mut matches, mut checked) = (matches.into_iter(), checked.into_iter());
    let answers = faces
        .iter()
        .map(|face| {
            let (found, checked) = if usable(&face) {
                (matches.next().unwrap_or_default(), checked.next().unwrap_or_default())
            } else {
                (Vec::new(), Vec::new())
            };
            let best = found.first().map(|m| m.score);
            let mut answer = face_json(face, gate);
            if face.live_score.is_some() {
                answer["spoof_suspected"] = json!(is_spoof(face, &terms.settings));
            }
            let shown = found.iter().enumerate().take(k);
            answer["matches"] = shown.map(|(n, m)| match_json(m, named.get(&m.person), checked.get(n))).collect();
            answer["margin"] = json!(found.get(1).map(|second| found[0].score - second.score));
            answer["decision"] = json!(
                best.map_or(Decision::Unknown, |score| { Checked::decide(checked.first(), thresholds.decide(score)) })
            );
            answer["threshold"] = json!(thresholds.match_cosine);
            answer["threshold_extrapolated"] = json!(thresholds.extrapolated);
            let rate = best.and_then(|score| thresholds.false_positive_rate(score));
            answer["false_positive_rate"] = json!(rate.map(|rate| rate.value));
            answer["false_positive_rate_extrapolated"] = json!(rate.map(|rate| rate.extrapolated));
            answer
        })
        .collect();
    Ok((answers, size))
}

async fn names(
    ctx: &WorkerContext,
    job: &Job,
    matches: &[Vec<Match>],
) -> Result<HashMap<PersonId, person::Model>, JobError> {
    let mut ids: Vec<PersonId> = matches.iter().flatten().map(|m| m.person).collect();
    ids.sort_unstable();
    ids.dedup();
    let persons = persons::find_many(&ctx.db.read, job.collection_id, &ids).await?;
    Ok(persons.into_iter().map(|p| (p.id, p)).collect())
}

fn match_json(found: &Match, person: Option<&person::Model>, checked: Option<&Checked>) -> Value {
    let mut answer = json!({
        "person_id": found.person,
        "external_id": person.and_then(|p| p.external_id.as_deref()),
        "name": person.and_then(|p| p.name.as_deref()),
        "score": found.score,
        "face_id": found.face,
        "face_score": found.face_score,
    });
    if let Some(checked) = checked {
        answer["second_stage"] = checked.json();
    }
    answer
}
