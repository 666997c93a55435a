//! The second stage: what a search has found is scored once more, by vectors or by crops. A match needs both.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::try_join_all;
use serde_json::{Value, json};
use shared::catalogue::{self, Pipeline, SecondStageKind};
use shared::db::entity::job::Model as Job;
use shared::db::{crops, faces};
use shared::embedding::Embedding;
use shared::face_index::matches::Match;
use shared::ids::FaceId;
use shared::job::Decision;
use shared::joint_bayes::{DimensionError, JointBayes};

use super::JobError;
use crate::analysis::{AnalysedFace, AnalysisError, aligned_of_crops};
use crate::assets::AssetError;
use crate::context::WorkerContext;
use crate::inference::{Engine, EngineError};
use crate::vision::margin::MAX_CROP_BYTES;
use crate::vision::{Landmarks, Picture};

/// Crops that are fetched side by side.
const FETCHED_AT_ONCE: usize = 16;

/// What checks the persons that a search has found.
pub(super) struct SecondStage<'a> {
    stage: &'a catalogue::SecondStage,
    scorer: Scorer,
}

enum Scorer {
    Joint(Arc<JointBayes>),
    Pair(Engine),
}

/// A face that is looked up.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) embedding: &'a Embedding,
    /// Its aligned crop, where the pipeline has a pair network.
    pub(super) aligned: Option<&'a Picture>,
}

impl<'a> From<&'a AnalysedFace> for Asked<'a> {
    fn from(face: &'a AnalysedFace) -> Self {
        Self { embedding: &face.embedding, aligned: face.aligned.as_ref() }
    }
}

/// What the second stage says of one pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checked {
    kind: SecondStageKind,
    threshold: f32,
    outcome: Outcome,
}

/// The score of a pair, or why it has none.
type Outcome = Result<f64, Unchecked>;

/// The file of the second stage is missing, or is not what its entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Missing;

/// Why a pair has no score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unchecked {
    /// It is beyond the candidates that are checked.
    NotACandidate,
    /// The other face, or its vector, went meanwhile.
    FaceGone,
    /// There is no crop of the other face for a network to see.
    NoCrop,
}

impl Unchecked {
    /// The name used in answers.
    fn as_str(self) -> &'static str {
        match self {
            Self::NotACandidate => "not_a_candidate",
            Self::FaceGone => "face_gone",
            Self::NoCrop => "no_crop",
        }
    }
}

impl Checked {
    /// Whether both faces are one person's by the second stage; nothing is where it has no score.
    pub(super) fn is_match(&self) -> bool {
        self.outcome.is_ok_and(|score| score >= f64::from(self.threshold))
    }

    pub(super) fn json(&self) -> Value {
        let mut value = json!({
            "kind": self.kind,
            "score": self.outcome.ok(),
            "threshold": self.threshold,
            "is_match": self.is_match(),
        });
        if let Err(why) = self.outcome {
            value["reason"] = json!(why.as_str());
        }
        value
    }

    /// The decision of both stages: a match of the first that the second does not confirm is uncertain.
    pub(super) fn decide(checked: Option<&Self>, first: Decision) -> Decision {
        match checked {
            Some(checked) if first == Decision::Match && !checked.is_match() => Decision::Uncertain,
            _ => first,
        }
    }
}

impl<'a> SecondStage<'a> {
    /// That of the models that a job runs; `None` where its pipeline has none.
    pub(super) fn of(engine: &'a Engine) -> Option<Self> {
        let stage = engine.pipeline().second_stage.as_ref()?;
        let scorer = match engine.joint_bayes() {
            Some(model) => Scorer::Joint(Arc::clone(model)),
            None => Scorer::Pair(engine.clone()),
        };
        Some(Self { stage, scorer })
    }

    /// The one that needs no other model of the pipeline; `None` of a pair network, and where there is none.
    pub(super) async fn without_models(
        ctx: &WorkerContext,
        pipeline: &'a Pipeline,
    ) -> Result<Result<Option<Self>, Missing>, JobError> {
        let Some(stage) = &pipeline.second_stage else { return Ok(Ok(None)) };
        let error = match ctx.engines.joint_bayes(pipeline).await {
            Ok(model) => return Ok(Ok(model.map(|model| Self { stage, scorer: Scorer::Joint(model) }))),
            Err(error) => error,
        };
        let may_pass = matches!(error, EngineError::Broken(_) | EngineError::Asset(AssetError::Broken(_)));
        let error = anyhow::Error::new(error).context("load the second stage");
        if may_pass {
            return Err(JobError::Transient(error));
        }
        // Each change of templates has faces matched again: an operator reads it once.
        if ctx.engines.is_first_miss(&stage.file).await {
            tracing::warn!(pipeline = pipeline.name, error = format!("{error:#}"), "no face can be matched again");
        }
        Ok(Err(Missing))
    }

    /// Two faces of pictures at hand.
    pub(super) async fn pair(&self, one: Asked<'_>, other: Asked<'_>) -> Result<Checked, JobError> {
        let outcome = match (&self.scorer, one.aligned, other.aligned) {
            (Scorer::Joint(model), ..) => Ok(joint(model, one.embedding, other.embedding)?),
            (Scorer::Pair(engine), Some(one), Some(other)) => Ok(network(engine, one, other).await?),
            (Scorer::Pair(_), ..) => Err(Unchecked::NoCrop),
        };
        Ok(self.checked(outcome))
    }

    /// Whom a search has found for each face, in the same order; each with the nearest of the person's faces.
    pub(super) async fn check(
        &self,
        ctx: &WorkerContext,
        job: &Job,
        asked: &[Asked<'_>],
        found: &[Vec<Match>],
    ) -> Result<Vec<Vec<Checked>>, JobError> {
        let candidates =
            |found: &Vec<Match>| found.iter().take(self.stage.candidates).map(|m| m.face).collect::<Vec<_>>();
        let candidates: Vec<Vec<FaceId>> = found.iter().map(candidates).collect();
        let mut wanted: Vec<FaceId> = candidates.iter().flatten().copied().collect();
        wanted.sort_unstable();
        wanted.dedup();
        let outcomes = match &self.scorer {
            Scorer::Joint(model) => {
                let known = faces::embeddings_of(&ctx.db.read, &job.pipeline, &wanted).await?;
                by_vectors(model, asked, candidates, known).await?
            }
            Scorer::Pair(engine) => by_crops(engine, asked, &candidates, &kept(ctx, engine, &wanted).await?).await?,
        };
        let of_face = |(found, outcomes): (&Vec<Match>, Vec<Outcome>)| {
            let beyond = std::iter::repeat(Err(Unchecked::NotACandidate));
            let outcomes = outcomes.into_iter().chain(beyond).take(found.len());
            outcomes.map(|outcome| self.checked(outcome)).collect::<Vec<_>>()
        };
        Ok(found.iter().zip(outcomes).map(of_face).collect())
    }

    fn checked(&self, outcome: Outcome) -> Checked {
        Checked { kind: self.stage.kind, threshold: self.stage.threshold, outcome }
    }
}

/// What Joint Bayesian says of each face and its candidates. Of a rematch these are thousands of pairs: a thread does it that
/// keeps no other job waiting.
async fn by_vectors(
    model: &Arc<JointBayes>,
    asked: &[Asked<'_>],
    candidates: Vec<Vec<FaceId>>,
    known: HashMap<FaceId, Embedding>,
) -> Result<Vec<Vec<Outcome>>, JobError> {
    let model = Arc::clone(model);
    let asked: Vec<Embedding> = asked.iter().map(|asked| asked.embedding.clone()).collect();
    let scored = tokio::task::spawn_blocking(move || joint_scores(&model, &asked, &candidates, &known)).await;
    let scored = scored.map_err(|e| JobError::Transient(anyhow::Error::new(e).context("score faces")))?;
    scored.map_err(|error| mismatch(&error))
}

fn joint_scores(
    model: &JointBayes,
    asked: &[Embedding],
    candidates: &[Vec<FaceId>],
    known: &HashMap<FaceId, Embedding>,
) -> Result<Vec<Vec<Outcome>>, DimensionError> {
    let mut prepared = HashMap::with_capacity(known.len());
    for (face, vector) in known {
        prepared.insert(*face, model.prepared(vector)?);
    }
    let mut scores = Vec::with_capacity(asked.len());
    for (asked, candidates) in asked.iter().zip(candidates) {
        let asked = model.prepared(asked)?;
        let score = |face: &FaceId| {
            let other = prepared.get(face);
            other.map(|other| model.score_of(&asked, other)).ok_or(Unchecked::FaceGone)
        };
        scores.push(candidates.iter().map(score).collect());
    }
    Ok(scores)
}

/// What the pair network says of each face and its candidates.
async fn by_crops(
    engine: &Engine,
    asked: &[Asked<'_>],
    candidates: &[Vec<FaceId>],
    crops: &HashMap<FaceId, Picture>,
) -> Result<Vec<Vec<Outcome>>, JobError> {
    let mut scores = Vec::with_capacity(asked.len());
    for (asked, candidates) in asked.iter().zip(candidates) {
        let mut of_face = Vec::with_capacity(candidates.len());
        for face in candidates {
            of_face.push(match asked.aligned.zip(crops.get(face)) {
                Some((one, other)) => Ok(network(engine, one, other).await?),
                None => Err(Unchecked::NoCrop),
            });
        }
        scores.push(of_face);
    }
    Ok(scores)
}

fn joint(model: &JointBayes, one: &Embedding, other: &Embedding) -> Result<f64, JobError> {
    model.score(one, other).map_err(|error| mismatch(&error))
}

fn mismatch(error: &DimensionError) -> JobError {
    JobError::failed("model_mismatch", error.to_string())
}

async fn network(engine: &Engine, one: &Picture, other: &Picture) -> Result<f64, JobError> {
    let (one, other) = (one.clone(), other.clone());
    let score = engine.on_core(|core| async move { core.pair(&one, &other).await }).await;
    Ok(f64::from(score.map_err(AnalysisError::from)?.map_err(AnalysisError::from)?))
}

/// The aligned crops of those faces that have one by the pipeline's detector, whose points the alignment needs.
async fn kept(ctx: &WorkerContext, engine: &Engine, faces: &[FaceId]) -> Result<HashMap<FaceId, Picture>, JobError> {
    if !engine.pipeline().reads_crops() {
        return Ok(HashMap::new());
    }
    let revision = engine.pipeline().detector_revision();
    let mut crops = crops::of_faces(&ctx.db.read, faces).await?;
    crops.retain(|crop| crop.detector_revision == revision);
    let mut fetched: Vec<(FaceId, (Vec<u8>, Landmarks))> = Vec::with_capacity(crops.len());
    for some in crops.chunks(FETCHED_AT_ONCE) {
        let fetch = some.iter().map(|crop| async {
            let Ok(landmarks) = serde_json::from_str::<Landmarks>(&crop.points) else { return Ok(None) };
            match ctx.objects.get(&crop.object_key, MAX_CROP_BYTES).await {
                Ok(file) => Ok(Some((crop.face_id, (file, landmarks)))),
                Err(error) if error.is_transient() => Err(JobError::from(error)),
                Err(error) => {
                    tracing::warn!(face.id = %crop.face_id, %error, "a kept crop cannot be read");
                    Ok(None)
                }
            }
        });
        fetched.extend(try_join_all(fetch).await?.into_iter().flatten());
    }
    let (ids, files): (Vec<_>, Vec<_>) = fetched.into_iter().unzip();
    let pictures = aligned_of_crops(engine, files, ctx.decode_limits()).await?;
    Ok(ids.into_iter().zip(pictures).filter_map(|(id, picture)| Some((id, picture?))).collect())
}

#[cfg(test)]
mod tests {
    use shared::joint_bayes::Matrix;

    use super::*;

    #[test]
    fn candidates_are_scored_in_their_order() {
        // A score of -|x - y|^2.
        let model = JointBayes::new(vec![0.0; 2], Matrix::diagonal(2, -1.0), Matrix::diagonal(2, -1.0)).unwrap();
        let vector = |numbers: &[f32]| Embedding::as_given(numbers.to_vec()).unwrap();
        let [same, other, gone] = [FaceId::new(), FaceId::new(), FaceId::new()];
        let known = HashMap::from([(same, vector(&[1.0, 0.0])), (other, vector(&[0.0, 1.0]))]);
        let asked = [vector(&[1.0, 0.0]), vector(&[0.0, 1.0])];
        let scores = joint_scores(&model, &asked, &[vec![same, gone, other], vec![same]], &known).unwrap();
        assert_eq!(scores, [vec![Ok(0.0), Err(Unchecked::FaceGone), Ok(-2.0)], vec![Ok(-2.0)]]);
        assert!(joint_scores(&model, &[vector(&[1.0])], &[vec![same]], &known).is_err());
    }

    fn checked(outcome: Outcome) -> Checked {
        Checked { kind: SecondStageKind::JointBayesian, threshold: -3.5, outcome }
    }

    #[test]
    fn a_match_needs_both_stages() {
        let (yes, no, none) = (checked(Ok(-3.5)), checked(Ok(-3.6)), checked(Err(Unchecked::NoCrop)));
        assert_eq!(Checked::decide(Some(&yes), Decision::Match), Decision::Match);
        assert_eq!(Checked::decide(None, Decision::Match), Decision::Match, "a pipeline of one stage");
        for failed in [&no, &none] {
            assert_eq!(Checked::decide(Some(failed), Decision::Match), Decision::Uncertain);
        }
        for first in [Decision::Uncertain, Decision::Unknown] {
            assert_eq!(Checked::decide(Some(&yes), first), first, "it lifts nobody");
        }
    }

    #[test]
    fn answers_of_the_second_stage_say_why_there_is_no_score() {
        assert_eq!(
            checked(Ok(2.25)).json(),
            json!({ "kind": "joint-bayesian", "score": 2.25, "threshold": -3.5, "is_match": true })
        );
        assert_eq!(
            checked(Err(Unchecked::NotACandidate)).json(),
            json!({ "kind": "joint-bayesian", "score": null, "threshold": -3.5, "is_match": false, "reason": "not_a_candidate" })
        );
    }
}
