//! From a picture's bytes to its faces: the pure steps of `crate::vision` strung together with the engine's runs.

use std::sync::Arc;

use futures_util::future::try_join_all;
use shared::catalogue::{Detector, Pipeline};
use shared::embedding::Embedding;
use shared::failpoints::failpoint;

use crate::inference::{Engine, InferenceError};
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
    #[error("a step of the analysis broke off")]
    Broken(#[from] tokio::task::JoinError),
}

/// Decodes the bytes, finds the faces and makes their vectors.
pub async fn analyse(engine: &Engine, bytes: Vec<u8>, limits: DecodeLimits) -> Result<Analysis, AnalysisError> {
    let detector = &engine.pipeline().detector;
    let side = detect::overview_side(detector);
    let photo = Arc::new(engine.on_core(move || decode(bytes, &limits, side)).await??);
    let found = find_faces(engine, detector, &photo).await?;
    failpoint("mid_inference");
    let faces = embed_faces(engine, &photo, found).await?;
    Ok(Analysis { size: photo.size, captured_at: photo.captured_at.clone(), faces })
}

/// The faces that `detector`, the engine's with scores of the caller's choice, finds, best first.
pub async fn find_faces(
    engine: &Engine,
    detector: &Detector,
    photo: &Arc<Photo>,
) -> Result<Vec<Detection>, AnalysisError> {
    let (shown, settings) = (Arc::clone(photo), detector.clone());
    let [main, small] = engine.on_core(move || detect::passes(&shown.overview.picture, &settings)).await?;
    let run = |pass: Pass| async move { Ok::<_, InferenceError>((pass.view, engine.detect(pass.input).await?)) };
    let (main, small) = tokio::try_join!(run(main), run(small))?;
    let found = detect::merge(detector, [(main.0, &main.1), (small.0, &small.1)])?;
    Ok(found.iter().map(|face| photo.overview.to_original(face)).collect())
}

/// Quality and vector of each detection. One whose landmarks or vector are degenerate is no face and left out.
pub async fn embed_faces(
    engine: &Engine,
    photo: &Arc<Photo>,
    detections: Vec<Detection>,
) -> Result<Vec<AnalysedFace>, AnalysisError> {
    let (shown, settings) = (Arc::clone(photo), engine.clone());
    let crops = engine.on_core(move || crops(settings.pipeline(), &shown, detections)).await??;
    let vectors = try_join_all(crops.into_iter().map(|(detection, quality, input)| async move {
        let values = engine.embed(input).await?;
        Ok::<_, InferenceError>((detection, quality, Embedding::normalised(values)))
    }))
    .await?;
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
