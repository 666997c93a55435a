//! What each kind of job does: one file a kind, and the steps that they share.

mod collections;
mod enroll;
pub(crate) mod identify;
mod index;
mod pictures;
mod reembed;
mod rematch;
mod second_stage;
mod verify;

use std::sync::Arc;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr};
use serde_json::json;
use shared::catalogue::Pipeline;
use shared::db::collections::CollectionSettings;
use shared::db::entity::collection;
use shared::db::entity::job::Model as Job;
use shared::db::erasures::fence::Fence;
use shared::db::reprocess;
use shared::ids::{CollectionId, PersonId};
use shared::job::{JobArgs, PersonRef, Problem};
use shared::models::ModelsError;
use shared::secret_key::SecretKey;

pub use self::collections::ClaimCollections;
use crate::analysis::AnalysisError;
use crate::calibrations::InUse;
use crate::context::WorkerContext;
use crate::engines::EnginesError;
use crate::inference::EngineError;
use crate::thresholds::Terms;

/// A job that did its work, with what is left to write.
#[derive(Debug)]
pub enum Done {
    /// Stores nothing but its answer.
    Answer(serde_json::Value),
    /// Stores a face under a person.
    Enroll(Box<enroll::Enrollment>),
    /// Stores the faces of an image.
    Index(Box<index::Indexing>),
    /// Found that the faces of the image are stored.
    Known(Box<index::Known>),
    /// Looked faces up again.
    Rematch(rematch::Rematching),
    /// Made of images what another pipeline makes of them.
    Reembed(Box<reembed::Reembedding>),
}

/// Why a job has no answer.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A true negative answer about its input.
    #[error("rejected: {}", .0.code)]
    Rejected(Problem),
    /// It cannot work, now or later.
    #[error("failed for good: {}", .0.code)]
    Failed(Problem),
    /// It may work later.
    #[error(transparent)]
    Transient(anyhow::Error),
}

/// Runs the job up to the point where it has something to record.
pub async fn run(
    ctx: &WorkerContext,
    collections: &ClaimCollections,
    job: &Job,
    args: &JobArgs,
) -> Result<Done, JobError> {
    let collection = collection_of(ctx, collections, job).await?;
    match args {
        JobArgs::Enroll { image, person, face } => enroll::run(ctx, job, &collection, image, (person, *face)).await,
        JobArgs::Index { image } => index::run(ctx, job, collections, image).await,
        JobArgs::Identify { image, max_matches } => identify::run(ctx, job, &collection, image, *max_matches).await,
        JobArgs::Verify { image, other, face } => verify::run(ctx, job, &collection, image, other, *face).await,
        JobArgs::Rematch { all, progress } => rematch::run(ctx, job, &collection, *all, progress.as_ref()).await,
        JobArgs::Reembed { images, detects } => reembed::run(ctx, job, &collection, (images, *detects)).await,
    }
}

async fn collection_of(
    ctx: &WorkerContext,
    collections: &ClaimCollections,
    job: &Job,
) -> Result<Arc<collection::Model>, JobError> {
    let found = collections.find(&ctx.db, job).await?;
    found.ok_or_else(|| JobError::failed("collection_gone", "the collection was deleted while the job waited"))
}

/// What the record of a job came to.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its result, or why there is none after all; after that the transaction is to be rolled back.
    pub answer: Result<serde_json::Value, Refused>,
    /// Faces that were stored and not known before, of a job that indexes.
    pub faces: usize,
    /// The arguments with which a job goes on that has done only a part; its answer says nothing yet.
    pub goes_on: Option<Box<JobArgs>>,
}

/// What only the record of a job could tell.
#[derive(Clone, Debug)]
pub enum Refused {
    /// A rejection.
    Rejected(Problem),
    /// What it is about was erased since it was accepted.
    Erased,
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self::Rejected(problem)
    }
}

impl Recorded {
    fn answer(answer: serde_json::Value) -> Self {
        Self { answer: Ok(answer), faces: 0, goes_on: None }
    }
}

/// Writes what jobs of one collection and pipeline did, inside the transaction that ends them. What was erased since they
/// were accepted is neither stored nor named.
///
/// # Errors
/// The database fails, or one of several has to be recorded by itself.
pub async fn record(
    txn: &DatabaseTransaction,
    key: &SecretKey,
    done: &[(&Job, &Done)],
) -> Result<Vec<Recorded>, DbErr> {
    let Some((first, _)) = done.first() else { return Ok(Vec::new()) };
    let fence = Fence::of(key, first.collection_id, done.iter().map(|(job, _)| *job));
    let mut recorded: Vec<Option<Recorded>> = vec![None; done.len()];
    let (mut indexed, mut known) = (Vec::new(), Vec::new());
    for (at, (job, done)) in done.iter().enumerate() {
        match done {
            Done::Answer(answer) => recorded[at] = Some(Recorded::answer(answer.clone())),
            Done::Enroll(enrollment) => {
                let answer = enrollment.record(txn, &fence, job).await?;
                recorded[at] = Some(Recorded { answer, faces: 0, goes_on: None });
            }
            Done::Rematch(rematching) => recorded[at] = Some(rematching.record(txn, job).await?),
            Done::Reembed(reembedding) => recorded[at] = Some(reembedding.record(txn, job).await?),
            Done::Index(indexing) => indexed.push((*job, &**indexing)),
            Done::Known(image) => {
                known.push((*job, &**image));
                recorded[at] = Some(Recorded::answer(image.answer.clone()));
            }
        }
    }
    // Images are locked before any row that refers to one.
    let mut rest = index::record_all(txn, &fence, &indexed).await?.into_iter();
    index::record_known(txn, &known).await?;
    // Only what was indexed is not recorded yet, in the same order.
    let mut recorded: Vec<Recorded> = recorded.into_iter().filter_map(|one| one.or_else(|| rest.next())).collect();
    let answers = done.iter().zip(&mut recorded);
    let answers = answers.filter_map(|((job, _), one)| one.answer.as_mut().ok().map(|answer| (*job, answer.take())));
    let mut redacted = fence.redacted(txn, answers.collect()).await?.into_iter();
    for one in recorded.iter_mut().filter(|one| one.answer.is_ok()) {
        one.answer = redacted.next().flatten().ok_or(Refused::Erased);
    }
    let is_erased = recorded.iter().any(|one| matches!(one.answer, Err(Refused::Erased)));
    if is_erased && recorded.len() > 1 {
        return Err(recorded_alone());
    }
    Ok(recorded)
}

/// The error of jobs that are recorded together, one of which has to take back what it wrote.
pub(crate) fn recorded_alone() -> DbErr {
    DbErr::Custom("what one of these jobs is about was erased".to_owned())
}

impl Done {
    /// Whether it is recorded by itself: its rows may meet a rejection that only the database can tell, or the job goes on.
    pub(crate) fn is_recorded_alone(&self) -> bool {
        matches!(self, Self::Enroll(_) | Self::Rematch(_))
    }
}

impl JobError {
    fn rejected(code: &str, detail: impl Into<String>) -> Self {
        Self::Rejected(Problem::new(code, detail))
    }

    fn failed(code: &str, detail: impl Into<String>) -> Self {
        Self::Failed(Problem::new(code, detail))
    }
}

impl From<DbErr> for JobError {
    fn from(error: DbErr) -> Self {
        Self::Transient(anyhow::Error::new(error).context("the database"))
    }
}

impl From<EnginesError> for JobError {
    /// A missing model may be put right by the operator, so the job is tried again until its attempts end.
    fn from(error: EnginesError) -> Self {
        match error {
            EnginesError::Models(ModelsError::Db(error)) => error.into(),
            EnginesError::Models(error) => Self::failed("unknown_pipeline", error.to_string()),
            // A worker among others does not take such a job.
            EnginesError::Engine(error @ EngineError::Processor { .. }) => {
                Self::failed("pipeline_not_runnable", error.to_string())
            }
            EnginesError::Engine(error) => Self::Transient(anyhow::Error::new(error).context("load the models")),
        }
    }
}

impl From<AnalysisError> for JobError {
    fn from(error: AnalysisError) -> Self {
        match error {
            AnalysisError::Decode(error) => Self::rejected(error.code(), error.to_string()),
            AnalysisError::Detect(error) => Self::failed("model_mismatch", error.to_string()),
            error => Self::Transient(anyhow::Error::new(error).context("analyse the picture")),
        }
    }
}

impl From<shared::face_index::FaceIndexError> for JobError {
    fn from(error: shared::face_index::FaceIndexError) -> Self {
        Self::Transient(anyhow::Error::new(error).context("search the faces"))
    }
}

/// Why a job cannot have that person: merged into another, or not there.
async fn no_person(conn: &impl ConnectionTrait, collection: CollectionId, id: PersonId) -> Result<Problem, DbErr> {
    let named = PersonRef::Id { id };
    if let Some(into) = shared::db::merges::merged_into(conn, collection, &named).await? {
        return Ok(merged(into));
    }
    let detail = format!("there is no person {id} in the collection; enroll with an external_id to make one");
    Ok(Problem::new("person_not_found", detail))
}

fn merged(into: PersonId) -> Problem {
    Problem::new("person_merged", format!("the person was merged into person {into}; name that one"))
}

/// The collection's own settings, with the threshold that holds for the job's pipeline; a row that cannot be read is nobody's
/// input error.
async fn settings(
    ctx: &WorkerContext,
    collection: &collection::Model,
    job: &Job,
) -> Result<CollectionSettings, JobError> {
    let settings = collection.settings()?;
    if collection.pipeline == job.pipeline {
        return Ok(settings);
    }
    // A threshold says nothing of another model's scores. The collection may have gone over since it was read.
    let cosines = reprocess::match_cosines(&ctx.db, collection.id).await?;
    let match_cosine = cosines.and_then(|cosines| cosines.of(&job.pipeline));
    Ok(CollectionSettings { match_cosine, ..settings })
}

/// What a job of this pipeline decides by. Read once a job: all that it compares is judged alike.
async fn terms(
    ctx: &WorkerContext,
    collection: &collection::Model,
    job: &Job,
    pipeline: &Pipeline,
) -> Result<Terms, JobError> {
    let settings = settings(ctx, collection, job).await?;
    let calibration = ctx.calibrations.of(&ctx.db, pipeline, collection.id).await?;
    Ok(Terms { pipeline: pipeline.name.clone(), metric: pipeline.recognizer.metric, settings, calibration })
}

/// What an answer says of the calibration that its thresholds and rates come from.
fn calibration_json(terms: &Terms) -> serde_json::Value {
    let of = |in_use: &InUse| json!({ "id": in_use.id, "measured_on": in_use.calibration.measured_on });
    terms.calibration.as_deref().map_or(serde_json::Value::Null, of)
}
