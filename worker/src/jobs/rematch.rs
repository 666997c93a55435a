//! Rematch: faces that nobody was named for, or only by a match, are looked up again. A collection has many: an attempt
//! does a slice of them, and the job goes on with the next one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sea_orm::{DatabaseTransaction, DbErr};
use serde_json::{Value, json};
use shared::catalogue::{Metric, Pipeline};
use shared::db::collections;
use shared::db::entity::collection;
use shared::db::entity::job::Model as Job;
use shared::db::rematches::{self, Matchable, Rematch};
use shared::db::{self, rejections};
use shared::embedding::Embedding;
use shared::face_index::matches::{self, Match};
use shared::face_index::{Found, Gallery};
use shared::ids::{FaceId, PersonId};
use shared::job::{JobArgs, RematchProgress, RematchScope};
use shared::template::least_for;

use super::second_stage::{Asked, SecondStage};
use super::{Done, JobError, Recorded, terms};
use crate::context::WorkerContext;
use crate::thresholds::{Terms, Thresholds};
use crate::vision::quality::{Gate, Quality};

/// Faces that are read and looked up in one step.
const STEP: u64 = 500;
/// Faces of a slice at most: what is kept of those that change fits into a transaction.
const SLICE: u64 = 50_000;
/// A slice ends with the step that is under way then: far below the time that an attempt may take.
const SLICE_TIME: Duration = Duration::from_secs(10);

/// What is left to write.
#[derive(Debug)]
pub enum Rematching {
    /// The job begins: it takes what was asked for.
    Begin {
        /// Every face, whatever was asked for.
        all: bool,
    },
    /// A slice was looked up.
    Slice(Slice),
}

/// The faces that were looked up by one attempt.
#[derive(Debug)]
pub struct Slice {
    /// How far the job is after it.
    progress: RematchProgress,
    changes: Vec<Rematch>,
    is_last: bool,
    /// Why all faces are left as they are, as the answer says it.
    reason: Option<&'static str>,
}

pub(super) async fn run(
    ctx: &WorkerContext,
    job: &Job,
    collection: &collection::Model,
    all: bool,
    progress: Option<&RematchProgress>,
) -> Result<Done, JobError> {
    let Some(progress) = progress else { return Ok(Done::Rematch(Rematching::Begin { all })) };
    let pipeline = ctx.engines.pipeline(&job.pipeline).await?;
    let terms = terms(ctx, collection, job, &pipeline).await?;
    let mut slice = Slice { progress: progress.clone(), changes: Vec::new(), is_last: false, reason: None };
    if pipeline.has_pair_network() {
        // It needs no models, and what such a network says of two crops takes some: whom a face matches stays as it is.
        slice.is_last = true;
        return Ok(Done::Rematch(Rematching::Slice(slice)));
    }
    let Ok(second) = SecondStage::without_models(ctx, &pipeline).await? else {
        // A failure would ask for the same again, for as long as the file is missing.
        (slice.is_last, slice.reason) = (true, Some("second_stage_missing"));
        return Ok(Done::Rematch(Rematching::Slice(slice)));
    };
    let looking = Looking::begin(ctx, job, (&pipeline, second), &terms, &progress.scope).await?;
    let (began, revision) = (Instant::now(), pipeline.detector_revision());
    for _ in 0..SLICE / STEP {
        let from = (job.pipeline.as_str(), revision.as_str());
        let faces = rematches::matchable(&ctx.db, job.collection_id, from, slice.progress.after, STEP).await?;
        slice.is_last = (faces.len() as u64) < STEP;
        slice.progress.after = faces.last().map(|face| face.id).or(slice.progress.after);
        let wanted = looking.concerned(faces).await?;
        slice.progress.faces += wanted.len();
        slice.changes.extend(looking.up(ctx, job, wanted).await?);
        if slice.is_last || began.elapsed() >= SLICE_TIME {
            break;
        }
    }
    Ok(Done::Rematch(Rematching::Slice(slice)))
}

/// What the faces of a slice are looked up with.
struct Looking<'a> {
    gallery: Gallery,
    /// `None` where every face is looked up.
    changed: Option<Arc<Changed>>,
    thresholds: Thresholds<'a>,
    second: Option<SecondStage<'a>>,
    gate: Gate,
}

/// What has changed, and may change whom a face matches.
struct Changed {
    faces: Vec<FaceId>,
    /// Whose templates they are.
    persons: Vec<PersonId>,
    /// All templates of these.
    vectors: Vec<Embedding>,
    metric: Metric,
    /// The score from which one of them may decide something.
    enough: f32,
}

impl Changed {
    fn concerns(&self, face: &Matchable) -> bool {
        face.person.is_some_and(|person| self.persons.contains(&person))
            || self.faces.contains(&face.id)
            || self.vectors.iter().any(|vector| vector.score(&face.embedding, self.metric) >= self.enough)
    }
}

impl<'a> Looking<'a> {
    async fn begin(
        ctx: &WorkerContext,
        job: &Job,
        (pipeline, second): (&Pipeline, Option<SecondStage<'a>>),
        terms: &'a Terms,
        scope: &RematchScope,
    ) -> Result<Self, JobError> {
        let (collection, metric) = (job.collection_id, terms.metric);
        let gallery = Gallery { collection, pipeline: job.pipeline.clone(), metric };
        let size = ctx.face_index.search(&gallery, Vec::new(), 1).await?.size;
        let thresholds = Thresholds::identify(terms, size.comparisons())
            .map_err(|e| JobError::failed("no_calibration", e.to_string()))?;
        let mut changed = None;
        if let RematchScope::Touched { faces, persons } = scope {
            let found = db::templates::concerned(&ctx.db.read, &job.pipeline, faces, persons).await?;
            let enough = least_for(thresholds.match_cosine, metric);
            let of = |vectors| Changed { faces: faces.clone(), persons: found.persons, vectors, metric, enough };
            changed = found.vectors.map(of).map(Arc::new);
        }
        let gate = Gate::identify(pipeline.detector.match_score);
        Ok(Self { gallery, changed, thresholds, second, gate })
    }

    /// Those of the faces of which what has changed may change whom they match. Each is compared with up to thousands of vectors:
    /// a thread does it that keeps no other job waiting.
    async fn concerned(&self, faces: Vec<Matchable>) -> Result<Vec<Matchable>, JobError> {
        let Some(changed) = self.changed.clone() else { return Ok(faces) };
        let compare = move || faces.into_iter().filter(|face| changed.concerns(face)).collect();
        let compared = tokio::task::spawn_blocking(compare).await;
        compared.map_err(|e| JobError::Transient(anyhow::Error::new(e).context("compare faces")))
    }

    /// Those of the faces that match somebody else than before.
    async fn up(&self, ctx: &WorkerContext, job: &Job, faces: Vec<Matchable>) -> Result<Vec<Rematch>, JobError> {
        let ids: Vec<FaceId> = faces.iter().map(|face| face.id).collect();
        let rejected = rejections::of_faces(&ctx.db.read, &ids).await?;
        // So many persons that one of them is left whatever a face is not.
        let k = 1 + ids.iter().map(|id| rejected.iter().filter(|(face, _)| face == id).count()).max().unwrap_or(0);
        let usable: Vec<&Matchable> = faces.iter().filter(|face| self.is_usable(face)).collect();
        let queries: Vec<Embedding> = usable.iter().map(|face| face.embedding.clone()).collect();
        let mut matches = if queries.is_empty() {
            Vec::new()
        } else {
            let _place = ctx.stages.search(job.lane).await;
            let search = ctx.face_index.search(&self.gallery, queries.clone(), matches::candidates(k));
            let Found { hits, .. } = search.await?;
            let by = (self.thresholds.calibration(), self.thresholds.match_cosine);
            matches::judged(&ctx.db.read, &self.gallery, queries, hits, by).await?
        };
        // Before the second stage is asked: whom a face is not must not stand between it and the next one.
        for (face, found) in usable.iter().zip(&mut matches) {
            found.retain(|found| !rejected.contains(&(face.id, found.person)));
        }
        let mut matches = self.confirmed(ctx, job, &usable, matches).await?.into_iter();
        let rematch = |face: &Matchable| {
            let found = if self.is_usable(face) { matches.next().unwrap_or_default() } else { Vec::new() };
            Rematch { face: face.id, from: face.person, to: found.first().map(|found| found.person) }
        };
        Ok(faces.iter().map(rematch).filter(|rematch| rematch.from != rematch.to).collect())
    }

    /// Those of whom a search has found for each usable face who match it, by both stages where there are two.
    async fn confirmed(
        &self,
        ctx: &WorkerContext,
        job: &Job,
        usable: &[&Matchable],
        mut matches: Vec<Vec<Match>>,
    ) -> Result<Vec<Vec<Match>>, JobError> {
        let first = self.thresholds.match_cosine;
        for found in &mut matches {
            found.truncate(found.partition_point(|found| found.score >= first));
        }
        let Some(second) = &self.second else { return Ok(matches) };
        let asked: Vec<Asked<'_>> =
            usable.iter().map(|face| Asked { embedding: &face.embedding, aligned: None }).collect();
        let checked = second.check(ctx, job, &asked, &matches).await?;
        for (found, checked) in matches.iter_mut().zip(checked) {
            found.truncate(checked.iter().take_while(|checked| checked.is_match()).count());
        }
        Ok(matches)
    }

    /// Whether an index would look it up.
    fn is_usable(&self, face: &Matchable) -> bool {
        serde_json::from_str::<Quality>(&face.quality).is_ok_and(|quality| quality.reasons(&self.gate).is_empty())
    }
}

impl Rematching {
    /// Writes what the attempt did, and says how the job goes on.
    pub(super) async fn record(&self, txn: &DatabaseTransaction, job: &Job) -> Result<Recorded, DbErr> {
        let collection = job.collection_id;
        // The collection went over to another pipeline: what this one says of its faces counts no more. Another job takes what
        // was asked for.
        if collections::hold_pipeline(txn, collection).await?.as_ref() != Some(&job.pipeline) {
            let progress = match self {
                Self::Begin { .. } => None,
                Self::Slice(slice) => {
                    rematches::request(txn, collection, None, None).await?;
                    Some(&slice.progress)
                }
            };
            return Ok(Recorded::answer(progress.map_or_else(nothing, answer)));
        }
        match self {
            Self::Begin { all } => Ok(match rematches::take_requests(txn, collection, *all).await? {
                Some(scope) => {
                    let progress = RematchProgress { scope, after: None, faces: 0, assigned: 0, unassigned: 0 };
                    going_on(*all, progress)
                }
                None => Recorded::answer(nothing()),
            }),
            Self::Slice(Slice { progress, changes, is_last, reason }) => {
                let written = rematches::apply(txn, collection, changes).await?;
                let mut progress = progress.clone();
                progress.assigned += written.assigned;
                progress.unassigned += written.unassigned;
                let all = progress.scope == RematchScope::All;
                if !is_last {
                    return Ok(going_on(all, progress));
                }
                let mut answer = answer(&progress);
                if let Some(reason) = reason {
                    answer["reason"] = json!(reason);
                }
                Ok(Recorded::answer(answer))
            }
        }
    }
}

fn nothing() -> Value {
    json!({ "faces": 0, "assigned": 0, "unassigned": 0 })
}

fn answer(progress: &RematchProgress) -> Value {
    json!({ "faces": progress.faces, "assigned": progress.assigned, "unassigned": progress.unassigned })
}

fn going_on(all: bool, progress: RematchProgress) -> Recorded {
    let next = JobArgs::Rematch { all, progress: Some(progress) };
    Recorded { goes_on: Some(Box::new(next)), ..Recorded::answer(Value::Null) }
}
