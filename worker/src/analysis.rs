//! From a picture's bytes to its faces: the pure steps of `crate::vision` strung together with the engine's runs.

use std::sync::Arc;

use shared::catalogue::{Detector, Pipeline};
use shared::embedding::{Embedding, EmbeddingError};
use shared::failpoints::failpoint;

use crate::cores::BrokenOff;
use crate::detection::{aligned, found};
use crate::inference::{Engine, InferenceError, OnCore};
use crate::liveness::LiveNetworks;
use crate::vision::align::{Affine, aligned_crop};
use crate::vision::crops::{Keep, face_crops};
use crate::vision::decode::photo::Photo;
use crate::vision::decode::{DecodeError, DecodeLimits, decode};
use crate::vision::detect::{self, DetectError};
use crate::vision::margin::MarginCrop;
use crate::vision::quality::Quality;
use crate::vision::recognize;
use crate::vision::{BoundingBox, Detection, Landmarks, Picture};

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
    /// Its aligned crop, where the pipeline has a pair network that is to see it.
    pub aligned: Option<Picture>,
    /// How likely it is live, 0..1, where that was asked.
    pub live_score: Option<f32>,
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

/// What is wanted of faces beside their vectors.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// Whether crops are made to be kept.
    pub keep: Keep,
    /// What looks whether they are live.
    pub live: Option<Arc<LiveNetworks>>,
}

impl From<Keep> for Wishes {
    fn from(keep: Keep) -> Self {
        Self { keep, live: None }
    }
}

/// Decodes the bytes, finds the faces and makes their vectors, and what else is wanted of them.
pub async fn analyse(
    engine: &Engine,
    bytes: Vec<u8>,
    limits: DecodeLimits,
    wishes: impl Into<Wishes>,
) -> Result<Analysis, AnalysisError> {
    let Wishes { keep, live } = wishes.into();
    let work = |core: OnCore| async move {
        let detector = &core.pipeline().detector;
        let photo = core.step(|| decode(bytes, &limits, detect::overview_side(detector))).await?;
        let found = found(&core, detector, &photo, &[]).await?;
        failpoint("mid_inference");
        let mut faces = embedded(&core, &photo, found, keep).await?;
        if let Some(live) = live {
            let scores = live.scores(&core, &photo, &faces).await?;
            for (face, score) in faces.iter_mut().zip(scores) {
                face.live_score = Some(score);
            }
        }
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
            // With points of this pipeline's own model, a crop would not be what the detector that has found the face keeps of it.
            let has_points = place.landmarks.scheme().gives(core.pipeline().alignment.scheme);
            let keep = if has_points { keep } else { Keep::Nothing };
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
        let mut vectors = Vec::with_capacity(crops.len());
        for (file, landmarks) in crops {
            let aligned = core.step(|| aligned_of_crop(core.pipeline(), file, landmarks, &limits)).await;
            vectors.push(match aligned {
                Some(aligned) => left_out(vector(&core, &aligned).await?),
                None => None,
            });
        }
        Ok(vectors)
    };
    engine.on_core(work).await?
}

/// The aligned crops of faces from the crops that were kept of them, in their order; none of one that is no picture any more, or
/// whose points are degenerate.
pub async fn aligned_of_crops(
    engine: &Engine,
    crops: Vec<(Vec<u8>, Landmarks)>,
    limits: DecodeLimits,
) -> Result<Vec<Option<Picture>>, AnalysisError> {
    let work = |core: OnCore| async move {
        let mut aligned = Vec::with_capacity(crops.len());
        for (file, landmarks) in crops {
            aligned.push(core.step(|| aligned_of_crop(core.pipeline(), file, landmarks, &limits)).await);
        }
        aligned
    };
    Ok(engine.on_core(work).await?)
}

fn aligned_of_crop(pipeline: &Pipeline, file: Vec<u8>, landmarks: Landmarks, limits: &DecodeLimits) -> Option<Picture> {
    let photo = left_out(decode(file, limits, u32::MAX))?;
    let picture = &photo.overview.picture;
    // What a margin is cut around is not kept: those pipelines read pictures.
    let all = BoundingBox { x: 0.0, y: 0.0, width: picture.width as f32, height: picture.height as f32 };
    let face = Detection { bounding_box: all, landmarks, score: 1.0 };
    let placing = left_out(Affine::placing(&face, &pipeline.alignment))?;
    Some(aligned_crop(picture, &placing, pipeline.alignment.size()))
}

/// A face's vector from all that its recognizer is to be shown of it, one after the other: of many faces, that would be much.
async fn vector(core: &OnCore, crop: &Picture) -> Result<Result<Embedding, EmbeddingError>, InferenceError> {
    let recognizer = &core.pipeline().recognizer;
    let mut answers = Vec::new();
    for run in 0..recognize::runs(recognizer) {
        answers.push(core.embed(recognize::input(recognizer, crop, run)).await?);
    }
    Ok(recognize::vector(recognizer, answers))
}

fn left_out<T, E: std::fmt::Display>(made: Result<T, E>) -> Option<T> {
    made.inspect_err(|error| tracing::warn!(%error, "a face was left out")).ok()
}

async fn embedded(
    core: &OnCore,
    photo: &Photo,
    detections: Vec<Detection>,
    keep: Keep,
) -> Result<Vec<AnalysedFace>, AnalysisError> {
    let detections = aligned(core, photo, detections).await?;
    let crops = core.step(|| crops(core.pipeline(), photo, detections, keep)).await?;
    let run = |cut: CutFace| {
        let core = core.clone();
        async move {
            let CutFace { detection, quality, margin: crop, aligned } = cut;
            let vector = left_out(vector(&core, &aligned).await?);
            let aligned = core.pipeline().has_pair_network().then_some(aligned);
            let face = |embedding| AnalysedFace { detection, quality, embedding, crop, aligned, live_score: None };
            Ok(vector.map(face))
        }
    };
    Ok(core.all(crops.into_iter().map(run)).await?.into_iter().flatten().collect())
}

struct CutFace {
    detection: Detection,
    quality: Quality,
    margin: Option<MarginCrop>,
    aligned: Picture,
}

fn crops(
    pipeline: &Pipeline,
    photo: &Photo,
    detections: Vec<Detection>,
    keep: Keep,
) -> Result<Vec<CutFace>, DecodeError> {
    let crops = face_crops(photo, &detections, &pipeline.alignment, keep)?;
    let faces = detections.into_iter().zip(crops).filter_map(|(detection, crops)| {
        let crops = crops.inspect_err(|error| tracing::debug!(%error, "a detection was left out")).ok()?;
        let quality = Quality::measure(&detection, &crops.aligned);
        Some(CutFace { detection, quality, margin: crops.margin, aligned: crops.aligned })
    });
    Ok(faces.collect())
}
