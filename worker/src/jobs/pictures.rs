//! Steps that several kinds of job share: from a stored picture to its faces, and faces as answers show them.

use serde_json::{Value, json};
use shared::catalogue::Pipeline;
use shared::db::faces::NewFace;
use shared::job::{FaceBox, FaceChoice, ImageRef, Problem};
use shared::objects::ObjectError;

use super::JobError;
use crate::analysis::{AnalysedFace, Analysis, analyse};
use crate::context::WorkerContext;
use crate::inference::Engine;
use crate::vision::Detection;
use crate::vision::choose::{ChooseError, choose_face};
use crate::vision::quality::{Gate, Quality, QualityReason};

/// Fetches the picture and finds its faces.
pub(super) async fn analysed(ctx: &WorkerContext, engine: &Engine, image: &ImageRef) -> Result<Analysis, JobError> {
    let bytes = match ctx.objects.get(&image.object_key, ctx.config.vision.max_image_bytes).await {
        Ok(bytes) => bytes,
        Err(ObjectError::NotFound(_)) => {
            return Err(JobError::rejected(
                "source_gone",
                "the picture is no longer in the object store; send it again",
            ));
        }
        Err(error @ ObjectError::TooLarge { .. }) => {
            return Err(JobError::rejected("image_too_large", error.to_string()));
        }
        Err(error) => return Err(JobError::Transient(anyhow::Error::new(error).context("fetch the picture"))),
    };
    Ok(analyse(engine, bytes, ctx.decode_limits()).await?)
}

/// The face of the picture that is meant, if it passes the gate.
pub(super) fn chosen(analysis: &Analysis, choice: FaceChoice, gate: &Gate) -> Result<AnalysedFace, JobError> {
    // What the detector is unsure of is often no face at all: it neither makes `only` ambiguous nor is it chosen while
    // there are better ones, unless a box points at it.
    let sure: Vec<&AnalysedFace> = analysis.faces.iter().filter(|f| f.quality.score >= gate.min_score).collect();
    let is_pointed_at = matches!(choice, FaceChoice::Box(_));
    let faces = if sure.is_empty() || is_pointed_at { analysis.faces.iter().collect() } else { sure };
    let detections: Vec<Detection> = faces.iter().map(|f| f.detection).collect();
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
    json!({
        "box": FaceBox::from(face.detection.bounding_box),
        "landmarks": face.detection.landmarks,
        "score": face.detection.score,
        "quality": quality_json(&face.quality, gate),
    })
}

/// A face as it is stored.
pub(super) fn new_face(face: &AnalysedFace, pipeline: &Pipeline) -> NewFace {
    let gate = Gate::identify(pipeline.detector.match_score);
    NewFace {
        face_box: face.detection.bounding_box.into(),
        landmarks: json!(face.detection.landmarks).to_string(),
        score: face.detection.score,
        quality: quality_json(&face.quality, &gate).to_string(),
        embedding: Some(face.embedding.clone()),
    }
}
