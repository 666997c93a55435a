//! From a picture's bytes to its faces: the pure steps of `crate::vision` strung together with the engine's runs.

use std::sync::Arc;

use shared::catalogue::{Detector, Pipeline};
use shared::embedding::Embedding;
use shared::failpoints::failpoint;

use crate::cores::BrokenOff;
use crate::inference::{Engine, InferenceError, OnCore};
use crate::vision::align::aligned_crop;
use crate::vision::crops::{Keep, face_crops};
use crate::vision::decode::photo::Photo;
use crate::vision::decode::{DecodeError, DecodeLimits, decode};
use crate::vision::detect::{self, DetectError, Pass};
use crate::vision::margin::MarginCrop;
use crate::vision::quality::Quality;
use crate::vision::tensor::{Range, Tensor};
use crate::vision::{BoundingBox, Detection, Landmarks};

/// A face with all that a pipeline knows of it.
#[derive(Clone, Debug)]
pub struct AnalysedFace {
    /// Where it is.
    pub detection: Detection,
    /// How fit it is for recognition.
    pub quality: Quality,
    /// Its vector.
    pub embedding: Embedding,
    /// The crop that is to be kept, where that is wanted.
    pub crop: Option<MarginCrop>,
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

/// Decodes the bytes, finds the faces and makes their vectors, and the crops that are to be kept.
pub async fn analyse(
    engine: &Engine,
    bytes: Vec<u8>,
    limits: DecodeLimits,
    keep: Keep,
) -> Result<Analysis, AnalysisError> {
    let work = |core: OnCore| async move {
        let detector = &core.pipeline().detector;
        let photo = core.step(|| decode(bytes, &limits, detect::overview_side(detector))).await?;
        let found = found(&core, detector, &photo, &[]).await?;
        failpoint("mid_inference");
        let faces = embedded(&core, &photo, found, keep).await?;
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
    engine.on_core(|core| async move { found(&core, &detector, &photo, &[]).await }).await?
}

/// Quality and vector of each detection. One whose landmarks or vector are degenerate is no face and left out.
pub async fn embed_faces(
    engine: &Engine,
    photo: &Arc<Photo>,
    detections: Vec<Detection>,
) -> Result<Vec<AnalysedFace>, AnalysisError> {
    let photo = Arc::clone(photo);
    engine.on_core(|core| async move { embedded(&core, &photo, detections, Keep::Nothing).await }).await?
}

/// A face that is known of a picture, and whether its crop is to be kept.
pub type Place = (Detection, Keep);

/// What a detector is to look for where faces are known already, and whether crops of what it finds are kept.
#[derive(Debug)]
pub struct Search {
    /// Where others have seen faces: there, less is asked of the detector.
    pub known: Vec<BoundingBox>,
    /// Whether crops are kept.
    pub keep: Keep,
}

/// What another pipeline makes of a picture whose faces are known.
#[derive(Debug)]
pub struct Reanalysis {
    /// What the detector found, where it was asked.
    pub detected: Option<Analysis>,
    /// Of each place, in their order; none of one whose landmarks or vector are degenerate.
    pub embedded: Vec<Option<(Embedding, Option<MarginCrop>)>>,
}

/// Decodes the bytes and makes the vectors of faces that are known, after the detector has looked, where that is wanted:
/// `places` says which, knowing what was found.
pub async fn reanalyse(
    engine: &Engine,
    bytes: Vec<u8>,
    limits: DecodeLimits,
    search: Option<Search>,
    places: impl FnOnce(Option<&[AnalysedFace]>) -> Vec<Place> + Send + 'static,
) -> Result<Reanalysis, AnalysisError> {
    let work = |core: OnCore| async move {
        let detector = &core.pipeline().detector;
        let photo = core.step(|| decode(bytes, &limits, detect::overview_side(detector))).await?;
        let detected = match search {
            Some(search) => {
                let found = found(&core, detector, &photo, &search.known).await?;
                let faces = embedded(&core, &photo, found, search.keep).await?;
                Some(Analysis { size: photo.size, captured_at: photo.captured_at.clone(), faces })
            }
            None => None,
        };
        let places = places(detected.as_ref().map(|analysis| analysis.faces.as_slice()));
        let mut vectors = Vec::with_capacity(places.len());
        for (place, keep) in places {
            let face = embedded(&core, &photo, vec![place], keep).await?.pop();
            vectors.push(face.map(|face| (face.embedding, face.crop)));
        }
        Ok(Reanalysis { detected, embedded: vectors })
    };
    engine.on_core(work).await?
}

/// The vectors of faces from the crops that were kept of them, in their order; none of one that is no picture any more, or
/// whose points or vector are degenerate.
pub async fn embed_crops(
    engine: &Engine,
    crops: Vec<(Vec<u8>, Landmarks)>,
    limits: DecodeLimits,
) -> Result<Vec<Option<Embedding>>, AnalysisError> {
    let work = |core: OnCore| async move {
        let inputs = core.pipeline().clone();
        let mut vectors = Vec::with_capacity(crops.len());
        for (file, landmarks) in crops {
            let input = core.step(|| crop_input(&inputs, file, &landmarks, &limits)).await;
            vectors.push(match input {
                Some(input) => left_out(Embedding::normalised(core.embed(input).await?)),
                None => None,
            });
        }
        Ok(vectors)
    };
    engine.on_core(work).await?
}

fn crop_input(pipeline: &Pipeline, file: Vec<u8>, landmarks: &Landmarks, limits: &DecodeLimits) -> Option<Tensor> {
    let photo = left_out(decode(file, limits, u32::MAX))?;
    let (alignment, recognizer) = (&pipeline.alignment, &pipeline.recognizer);
    let size = [alignment.width, alignment.height];
    let crop = left_out(aligned_crop(&photo.overview.picture, landmarks, &alignment.points, size))?;
    Some(Range { channels: recognizer.channels, mean: recognizer.mean, scale: recognizer.scale }.tensor(&crop))
}

fn left_out<T, E: std::fmt::Display>(made: Result<T, E>) -> Option<T> {
    made.inspect_err(|error| tracing::warn!(%error, "a face was left out")).ok()
}

async fn found(
    core: &OnCore,
    detector: &Detector,
    photo: &Photo,
    known: &[BoundingBox],
) -> Result<Vec<Detection>, AnalysisError> {
    let passes = core.step(|| detect::passes(&photo.overview.picture, detector)).await;
    let run = |pass: Pass| {
        let core = core.clone();
        async move { Ok((pass.view, core.detect(pass.input).await?)) }
    };
    let answers = core.all(passes.into_iter().map(run)).await?;
    let places = |detector: &Detector| -> Result<Vec<Detection>, DetectError> {
        let found = detect::merge(detector, &answers)?;
        Ok(found.iter().map(|face| photo.overview.to_original(face)).collect())
    };
    let found = places(detector)?;
    if known.is_empty() {
        return Ok(found);
    }
    let unsure = places(&detect::less_sure(detector))?;
    Ok(detect::with_known(found, unsure, known))
}

async fn embedded(
    core: &OnCore,
    photo: &Photo,
    detections: Vec<Detection>,
    keep: Keep,
) -> Result<Vec<AnalysedFace>, AnalysisError> {
    let crops = core.step(|| crops(core.pipeline(), photo, detections, keep)).await?;
    let run = |cut: CutFace| {
        let core = core.clone();
        async move { Ok((cut.detection, cut.quality, cut.margin, Embedding::normalised(core.embed(cut.input).await?))) }
    };
    let vectors = core.all(crops.into_iter().map(run)).await?;
    Ok(vectors
        .into_iter()
        .filter_map(|(detection, quality, crop, vector)| {
            Some(AnalysedFace { detection, quality, embedding: left_out(vector)?, crop })
        })
        .collect())
}

struct CutFace {
    detection: Detection,
    quality: Quality,
    input: Tensor,
    margin: Option<MarginCrop>,
}

fn crops(
    pipeline: &Pipeline,
    photo: &Photo,
    detections: Vec<Detection>,
    keep: Keep,
) -> Result<Vec<CutFace>, DecodeError> {
    let recognizer = &pipeline.recognizer;
    let range = Range { channels: recognizer.channels, mean: recognizer.mean, scale: recognizer.scale };
    let crops = face_crops(photo, &detections, &pipeline.alignment, keep)?;
    let faces = detections.into_iter().zip(crops).filter_map(|(detection, crops)| {
        let crops = crops.inspect_err(|error| tracing::debug!(%error, "a detection was left out")).ok()?;
        let quality = Quality::measure(&detection, &crops.aligned);
        Some(CutFace { detection, quality, input: range.tensor(&crops.aligned), margin: crops.margin })
    });
    Ok(faces.collect())
}
