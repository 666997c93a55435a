//! From a picture's bytes to its faces: the pure steps of `crate::vision` strung together with the engine's runs.

use std::sync::Arc;

use shared::catalogue::{Detector, Pipeline};
use shared::embedding::Embedding;
use shared::failpoints::failpoint;

use crate::cores::BrokenOff;
use crate::inference::{Engine, InferenceError, OnCore};
use crate::vision::Detection;
use crate::vision::crops::aligned_crops;
use crate::vision::decode::photo::Photo;
use crate::vision::decode::{DecodeError, DecodeLimits, decode};
use crate::vision::detect::{self, DetectError, Pass};
use crate::vision::quality::Quality;
use crate::vision::tensor::{Range, Tensor};

/// A face with all that a pipeline knows of it.
#[derive(Clone, Debug)]
pub struct AnalysedFace {
    /// Where it is.
    pub detection: Detection,
    /// How fit it is for recognition.
    pub quality: Quality,
    /// Its vector.
    pub embedding: Embedding,
}

/// What a pipeline found on a picture.
#[derive(Clone, Debug)]
pub struct Analysis {
    /// Size in upright pixels.
    pub size: [u32; 2],
    /// When it was taken, as `image::Model::captured_at` has it.
    pub captured_at: Option<String>,
    /// Faces of at least the detector's `store_score`, best first.
    pub faces: Vec<AnalysedFace>,
}

/// Why a picture was not analysed.
#[derive(Debug, thiserror::Error)]
pub enum AnalysisError {
    /// The bytes are no picture: a true answer about the input.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A model gave no answer.
    #[error(transparent)]
    Inference(#[from] InferenceError),
    /// A model's answer makes no sense.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// A step on the processor broke off.
    #[error(transparent)]
    BrokenOff(#[from] BrokenOff),
}

/// Decodes the bytes, finds the faces and makes their vectors.
pub async fn analyse(engine: &Engine, bytes: Vec<u8>, limits: DecodeLimits) -> Result<Analysis, AnalysisError> {
    let work = |core: OnCore| async move {
        let detector = &core.pipeline().detector;
        let photo = core.step(|| decode(bytes, &limits, detect::overview_side(detector))).await?;
        let found = found(&core, detector, &photo).await?;
        failpoint("mid_inference");
        let faces = embedded(&core, &photo, found).await?;
        Ok(Analysis { size: photo.size, captured_at: photo.captured_at, faces })
    };
    engine.on_core(work).await?
}

/// The faces that `detector`, the engine's with scores of the caller's choice, finds, best first.
pub async fn find_faces(
    engine: &Engine,
    detector: &Detector,
    photo: &Arc<Photo>,
) -> Result<Vec<Detection>, AnalysisError> {
    let (photo, detector) = (Arc::clone(photo), detector.clone());
    engine.on_core(|core| async move { found(&core, &detector, &photo).await }).await?
}

/// Quality and vector of each detection. One whose landmarks or vector are degenerate is no face and left out.
pub async fn embed_faces(
    engine: &Engine,
    photo: &Arc<Photo>,
    detections: Vec<Detection>,
) -> Result<Vec<AnalysedFace>, AnalysisError> {
    let photo = Arc::clone(photo);
    engine.on_core(|core| async move { embedded(&core, &photo, detections).await }).await?
}

async fn found(core: &OnCore, detector: &Detector, photo: &Photo) -> Result<Vec<Detection>, AnalysisError> {
    let passes = core.step(|| detect::passes(&photo.overview.picture, detector)).await;
    let run = |pass: Pass| {
        let core = core.clone();
        async move { Ok((pass.view, core.detect(pass.input).await?)) }
    };
    let answers = core.all(passes.into_iter().map(run)).await?;
    let found = detect::merge(detector, &answers)?;
    Ok(found.iter().map(|face| photo.overview.to_original(face)).collect())
}

async fn embedded(
    core: &OnCore,
    photo: &Photo,
    detections: Vec<Detection>,
) -> Result<Vec<AnalysedFace>, AnalysisError> {
    let crops = core.step(|| crops(core.pipeline(), photo, detections)).await?;
    let run = |(detection, quality, input)| {
        let core = core.clone();
        async move { Ok((detection, quality, Embedding::normalised(core.embed(input).await?))) }
    };
    let vectors = core.all(crops.into_iter().map(run)).await?;
    Ok(vectors
        .into_iter()
        .filter_map(|(detection, quality, vector)| match vector {
            Ok(embedding) => Some(AnalysedFace { detection, quality, embedding }),
            Err(error) => {
                tracing::warn!(%error, "a detection was left out");
                None
            }
        })
        .collect())
}

fn crops(
    pipeline: &Pipeline,
    photo: &Photo,
    detections: Vec<Detection>,
) -> Result<Vec<(Detection, Quality, Tensor)>, DecodeError> {
    let recognizer = &pipeline.recognizer;
    let range = Range { channels: recognizer.channels, mean: recognizer.mean, scale: recognizer.scale };
    let crops = aligned_crops(photo, &detections, &pipeline.alignment)?;
    let faces = detections.into_iter().zip(crops).filter_map(|(detection, crop)| {
        let crop = crop.inspect_err(|error| tracing::debug!(%error, "a detection was left out")).ok()?;
        Some((detection, Quality::measure(&detection, &crop), range.tensor(&crop)))
    });
    Ok(faces.collect())
}
