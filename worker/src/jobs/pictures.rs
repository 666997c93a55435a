//! Steps that several kinds of job share: from a stored picture to its faces, and faces as answers show them.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::try_join_all;
use serde_json::{Value, json};
use shared::catalogue::Pipeline;
use shared::db::collections::{AntiSpoofingMode, CollectionSettings};
use shared::db::crops;
use shared::db::entity::job::Model as Job;
use shared::db::faces::{NewCrop, NewFace};
use shared::db::images::ImageSource;
use shared::digest::sha256_hex;
use shared::job::{FaceBox, FaceChoice, ImageRef, Problem, UploadedImage};
use shared::objects::ObjectError;
use shared::telemetry::metrics;

use super::JobError;
use crate::analysis::{AnalysedFace, Analysis, Wishes, analyse};
use crate::context::WorkerContext;
use crate::inference::Engine;
use crate::liveness::LiveNetworks;
use crate::stored::StoredCrops;
use crate::vision::Detection;
use crate::vision::choose::{ChooseError, choose_face};
use crate::vision::crops::Keep;
use crate::vision::margin::MarginCrop;
use crate::vision::quality::{Gate, Quality, QualityReason};

/// A picture's bytes, and what its row says of them.
pub(super) struct Fetched {
    pub(super) source: ImageSource,
    pub(super) bytes: Vec<u8>,
}

/// Where a picture's bytes lie.
pub(super) enum Place<'a> {
    /// Under this key of our object store.
    Object(&'a str),
    /// `s3://bucket/key`.
    Reference(&'a str),
    /// An absolute path.
    File(&'a str),
}

impl Place<'_> {
    /// As a metric's label.
    fn name(&self) -> &'static str {
        match self {
            Self::Object(_) => "object",
            Self::Reference(_) => "reference",
            Self::File(_) => "file",
        }
    }
}

/// Fetches a picture's bytes.
pub(super) async fn bytes_of(ctx: &WorkerContext, place: &Place<'_>) -> Result<Vec<u8>, JobError> {
    let max_bytes = ctx.config.vision.max_image_bytes;
    metrics::image_read(place.name());
    Ok(match place {
        Place::Object(key) => ctx.objects.get(key, max_bytes).await?,
        Place::Reference(s3) => ctx.objects.get_reference(s3, max_bytes).await?,
        Place::File(file) => {
            let (roots, file) = (ctx.import_roots.clone(), PathBuf::from(file));
            tokio::task::spawn_blocking(move || roots.read(&file, max_bytes))
                .await
                .map_err(|e| JobError::Transient(anyhow::Error::new(e).context("read the picture")))??
        }
    })
}

/// Fetches the picture.
pub(super) async fn fetched(ctx: &WorkerContext, image: &ImageRef) -> Result<Fetched, JobError> {
    let bytes = match image {
        ImageRef::Upload(upload) => bytes_of(ctx, &Place::Object(&upload.object_key)).await?,
        ImageRef::Reference { s3, .. } => bytes_of(ctx, &Place::Reference(s3)).await?,
        ImageRef::File { file, .. } => bytes_of(ctx, &Place::File(file)).await?,
    };
    let source = match image {
        ImageRef::Upload(upload) => upload_source(upload),
        ImageRef::Reference { .. } | ImageRef::File { .. } => outside_source(image, &bytes),
    };
    Ok(Fetched { source, bytes })
}

/// What the row of a picture will say that stays where it is.
fn outside_source(image: &ImageRef, bytes: &[u8]) -> ImageSource {
    ImageSource {
        sha256: sha256_hex(bytes),
        object_key: None,
        uri: image.uri(),
        fingerprint: image.fingerprint().map(str::to_owned),
        captured_at: None,
    }
}

/// What an upload's row will say.
pub(super) fn upload_source(upload: &UploadedImage) -> ImageSource {
    ImageSource { sha256: upload.sha256.clone(), object_key: Some(upload.object_key.clone()), ..ImageSource::default() }
}

/// Finds the picture's faces, as soon as there is room for its pixels.
pub(super) async fn analysed(
    ctx: &WorkerContext,
    job: &Job,
    engine: &Engine,
    fetched: Fetched,
    wishes: impl Into<Wishes>,
) -> Result<(Analysis, ImageSource), JobError> {
    let Fetched { source, bytes } = fetched;
    let _pixels = ctx.stages.decode(job.lane).await;
    let analysis = analyse(engine, bytes, ctx.decode_limits(), wishes).await?;
    let source = ImageSource { captured_at: analysis.captured_at.clone(), ..source };
    Ok((analysis, source))
}

impl From<ObjectError> for JobError {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::NotFound(_) => {
                Self::rejected("source_gone", "the picture is no longer in the object store; send it again")
            }
            ObjectError::TooLarge { .. } => Self::rejected("image_too_large", error.to_string()),
            ObjectError::BucketNotAllowed(_) => Self::rejected("bucket_not_allowed", error.to_string()),
            ObjectError::NotImportable(_) => Self::rejected("not_importable", error.to_string()),
            ObjectError::BadReference(_) | ObjectError::BadKey(_) | ObjectError::NoReferences => {
                Self::rejected("bad_reference", error.to_string())
            }
            ObjectError::Refused { .. } => {
                // Clients need not know the store's own words.
                tracing::error!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "the object store refuses a picture"
                );
                let detail =
                    "the object store refuses to give out the picture; the operator has to grant face-id access";
                Self::failed("source_refused", detail)
            }
            ObjectError::Store { .. } => Self::Transient(anyhow::Error::new(error).context("fetch the picture")),
        }
    }
}

/// The face of the picture that is meant, if it passes the gate.
pub(super) fn chosen(analysis: &Analysis, choice: FaceChoice, gate: &Gate) -> Result<AnalysedFace, JobError> {
    // What the detector is unsure of is often no face at all: it neither makes `only` ambiguous nor is it chosen while
    // there are better ones, unless a box points at it.
    let sure: Vec<&AnalysedFace> = analysis.faces.iter().filter(|f| f.quality.score >= gate.min_score).collect();
    let is_pointed_at = matches!(choice, FaceChoice::Box(_));
    let faces = if sure.is_empty() || is_pointed_at { analysis.faces.iter().collect() } else { sure };
    let detections: Vec<Detection> = faces.iter().map(|f| f.detection.clone()).collect();
    let face = match choose_face(&detections, choice, analysis.size) {
        Ok(at) => faces[at].clone(),
        Err(error) => {
            let boxes = match &error {
                ChooseError::MultipleFaces { boxes } => boxes.iter().map(|b| FaceBox::from(*b)).collect(),
                _ => Vec::new(),
            };
            return Err(JobError::Rejected(Problem { faces: boxes, ..Problem::new(error.code(), error.to_string()) }));
        }
    };
    let reasons = face.quality.reasons(gate);
    if reasons.is_empty() {
        return Ok(face);
    }
    let detail = format!("the face cannot be used: {}; send a better picture of it", names(&reasons).join(", "));
    Err(JobError::Rejected(Problem {
        faces: vec![face.detection.bounding_box.into()],
        ..Problem::new("low_quality", detail)
    }))
}

/// The serialised names of the reasons.
fn names(reasons: &[QualityReason]) -> Vec<String> {
    reasons.iter().map(|r| json!(r).as_str().unwrap_or_default().to_owned()).collect()
}

/// A face's quality with what keeps it from being matched.
pub(super) fn quality_json(quality: &Quality, gate: &Gate) -> Value {
    let reasons = quality.reasons(gate);
    let mut value = json!(quality);
    value["usable"] = json!(reasons.is_empty());
    value["reasons"] = json!(reasons);
    value
}

/// Where a face is and how good it is, as every answer shows it.
pub(super) fn face_json(face: &AnalysedFace, gate: &Gate) -> Value {
    let mut answer = json!({
        "box": FaceBox::from(face.detection.bounding_box),
        "landmarks": face.detection.landmarks,
        "score": face.detection.score,
        "quality": quality_json(&face.quality, gate),
    });
    if let Some(score) = face.live_score {
        answer["live_score"] = json!(score);
    }
    answer
}

/// What the collection wants its faces looked at with, loaded.
pub(super) async fn live_networks(
    ctx: &WorkerContext,
    settings: &CollectionSettings,
) -> Result<Option<Arc<LiveNetworks>>, JobError> {
    if settings.anti_spoofing == AntiSpoofingMode::Off {
        return Ok(None);
    }
    let loaded = ctx.liveness.get().await;
    // As with a pipeline's models: the operator may put the weights in their place.
    let failed = |e| JobError::Transient(anyhow::Error::new(e).context("load the anti-spoofing networks"));
    let networks = loaded.map_err(failed)?;
    ctx.engines.count_beside(&networks.files()).await;
    Ok(Some(networks))
}

/// Whether the collection takes the face for a picture of one.
pub(super) fn is_spoof(face: &AnalysedFace, settings: &CollectionSettings) -> bool {
    let is_required = settings.anti_spoofing == AntiSpoofingMode::Require;
    is_required && face.live_score.is_some_and(|score| score < settings.min_live_score)
}

/// Whether a collection keeps crops of its faces.
pub(super) fn keeps(settings: &CollectionSettings) -> Keep {
    if settings.keep_crops { Keep::Crops } else { Keep::Nothing }
}

/// Faces as they are stored, once the crops that are kept of them lie in the object store.
pub(super) async fn new_faces(
    ctx: &WorkerContext,
    job: &Job,
    faces: &[AnalysedFace],
    pipeline: &Pipeline,
) -> Result<Vec<NewFace>, JobError> {
    let stored = faces.iter().map(async |face| {
        let crop = match &face.crop {
            Some(crop) => Some(stored(ctx, job, crop).await?),
            None => None,
        };
        Ok::<_, JobError>(new_face(face, pipeline, crop))
    });
    try_join_all(stored).await
}

/// Puts a crop into the object store.
pub(super) async fn stored(ctx: &WorkerContext, job: &Job, crop: &MarginCrop) -> Result<NewCrop, JobError> {
    let object_key = crops::new_key(job.collection_id);
    let transient = |e| JobError::Transient(anyhow::Error::new(e).context("store the crop of a face"));
    StoredCrops::note(&object_key);
    ctx.objects.put(&object_key, &crop.file).await.map_err(transient)?;
    Ok(NewCrop { object_key, points: json!(crop.landmarks).to_string() })
}

fn new_face(face: &AnalysedFace, pipeline: &Pipeline, crop: Option<NewCrop>) -> NewFace {
    let gate = Gate::identify(pipeline.detector.match_score);
    NewFace {
        crop,
        face_box: face.detection.bounding_box.into(),
        landmarks: json!(face.detection.landmarks).to_string(),
        score: face.detection.score,
        quality: quality_json(&face.quality, &gate).to_string(),
        embedding: Some(face.embedding.clone()),
    }
}
