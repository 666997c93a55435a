//! From a photograph to its faces and their points: the detector's showings or a cascade's stages, then the landmark model.

use shared::catalogue::{AlignmentKind, Detector, DetectorFamily, LandmarkModel};

use crate::analysis::AnalysisError;
use crate::inference::{InferenceError, OnCore};
use crate::vision::decode::photo::Photo;
use crate::vision::detect::{self, DetectError, Pass, View};
use crate::vision::landmark_network;
use crate::vision::mtcnn::{self, Candidate};
use crate::vision::tensor::{Range, Tensor};
use crate::vision::{BoundingBox, Detection, Landmarks, Picture};

/// Pixels of no picture.
const FARTHEST: f32 = 1e6;
/// The smallest face of an entry that says none, in pixels as shown.
const SMALLEST_FACE: u32 = 20;

/// The faces that `detector` finds, best first, with their points; where faces are `known`, less is asked of it.
pub(crate) async fn found(
    core: &OnCore,
    detector: &Detector,
    photo: &Photo,
    known: &[BoundingBox],
) -> Result<Vec<Detection>, AnalysisError> {
    let to_original = |faces: Vec<Detection>| faces.iter().map(|face| photo.overview.to_original(face)).collect();
    let picture = &photo.overview.picture;
    let least = if known.is_empty() { detector.clone() } else { detect::less_sure(detector) };
    let (found, unsure): (Vec<_>, Vec<_>) = if detector.family == DetectorFamily::Mtcnn {
        let seen = cascade(core, &least, picture).await?;
        let sure = seen.iter().filter(|face| face.score >= detector.store_score).cloned().collect();
        (to_original(sure), to_original(seen))
    } else {
        let answers = answers(core, detector, picture).await?;
        let unsure = if known.is_empty() { Vec::new() } else { detect::merge(&least, &answers)? };
        (to_original(detect::merge(detector, &answers)?), to_original(unsure))
    };
    let mut found = if known.is_empty() { found } else { detect::with_known(found, unsure, known) };
    found.retain(|face| has_place(&face.bounding_box));
    placed(core, photo, found).await
}

/// Whether a box is one at all: a damaged file may give scores that look right.
fn has_place(place: &BoundingBox) -> bool {
    [place.x, place.y, place.width, place.height].iter().all(|number| number.abs() < FARTHEST)
}

/// What the detector answers to each showing of the picture.
async fn answers(
    core: &OnCore,
    detector: &Detector,
    picture: &Picture,
) -> Result<Vec<(View, Vec<Tensor>)>, InferenceError> {
    let passes = core.step(|| detect::passes(picture, detector)).await;
    let run = |pass: Pass| {
        let core = core.clone();
        async move { Ok((pass.view, core.detect(pass.input).await?)) }
    };
    core.all(passes.into_iter().map(run)).await
}

/// Leads a picture through the three networks of MTCNN; faces in its own pixels, best first.
async fn cascade(core: &OnCore, detector: &Detector, picture: &Picture) -> Result<Vec<Detection>, AnalysisError> {
    let range = Range { channels: detector.channels, mean: detector.mean, scale: detector.scale };
    let (shown, to_picture) = core.step(|| detect::cascade_view(picture, detector)).await;
    let levels = core.step(|| mtcnn::levels(&shown, detector.min_face.unwrap_or(SMALLEST_FACE), &range)).await;
    let mut proposed = Vec::new();
    for mut level in levels {
        let outputs = core.stage(0, level.take_input()).await?;
        proposed.extend(core.step(|| mtcnn::proposals(&level, &outputs)).await?);
    }
    let [refine, output] = mtcnn::SIDES;
    let largest = (2 * shown.width.max(shown.height)) as f32;
    let candidates = core.step(|| mtcnn::after_first(proposed, largest)).await;
    let refined = seen(core, 1, candidates, |at| mtcnn::crop(&shown, at, refine, &range)).await?;
    let refined = core.step(|| mtcnn::after_second(refined, largest)).await?;
    let faces = seen(core, 2, refined, |at| mtcnn::crop(&shown, at, output, &range)).await?;
    let faces = core.step(|| mtcnn::after_third(faces, detector.store_score)).await?;
    Ok(faces.into_iter().map(|face| face.placed(to_picture, [0.0; 2])).collect())
}

/// What a stage of the cascade answers to each candidate.
async fn seen(
    core: &OnCore,
    stage: usize,
    candidates: Vec<Candidate>,
    crop: impl Fn(&Candidate) -> Tensor,
) -> Result<Vec<(Candidate, Vec<Tensor>)>, InferenceError> {
    let inputs = core.step(|| candidates.iter().map(crop).collect::<Vec<_>>()).await;
    let run = |(candidate, input): (Candidate, Tensor)| {
        let core = core.clone();
        async move { Ok((candidate, core.stage(stage, input).await?)) }
    };
    core.all(candidates.into_iter().zip(inputs).map(run)).await
}

/// The faces with the points that the pipeline's landmark model places on them, where it has one; one that has no extent is
/// left out.
async fn placed(core: &OnCore, photo: &Photo, faces: Vec<Detection>) -> Result<Vec<Detection>, AnalysisError> {
    let Some(model) = &core.pipeline().landmarks else { return Ok(faces) };
    let mut placed = Vec::with_capacity(faces.len());
    for face in faces {
        if let Some(landmarks) = landmarks(core, model, photo, &face).await? {
            placed.push(Detection { landmarks, ..face });
        }
    }
    Ok(placed)
}

async fn landmarks(
    core: &OnCore,
    model: &LandmarkModel,
    photo: &Photo,
    face: &Detection,
) -> Result<Option<Landmarks>, AnalysisError> {
    let area = photo.overview.face(face).bounding_box;
    let Some(input) = &model.input else {
        let predictor = core.shape_predictor()?;
        let area = model.square.map_or(area, |side| area.squared(side * area.width));
        let points = core.step(|| predictor.place(&photo.overview.picture, &area)).await;
        let points = points.map(|points| Landmarks::of(model.scheme, points)).transpose().map_err(DetectError::from)?;
        let points = points.map(|points| photo.overview.landmarks_to_original(&points));
        return Ok(points.filter(Landmarks::is_finite));
    };
    let Some(mut shown) = core.step(|| landmark_network::shown(&photo.overview.picture, &area, input)).await else {
        return Ok(None);
    };
    let answer = core.place(shown.take_input()).await?;
    let points = shown.points(model.scheme, &answer).map_err(DetectError::from)?;
    // As a detector's points, and not as a pixel's middle: so the network was trained.
    let placed = Detection { landmarks: points, ..face.clone() };
    Ok(Some(photo.overview.to_original(&placed).landmarks).filter(Landmarks::is_finite))
}

/// The faces with points that the pipeline aligns by: of a face that another detector has found, its own landmark model may
/// have to place them.
pub(crate) async fn aligned(
    core: &OnCore,
    photo: &Photo,
    faces: Vec<Detection>,
) -> Result<Vec<Detection>, AnalysisError> {
    let alignment = &core.pipeline().alignment;
    let wanted = alignment.scheme;
    if alignment.kind == AlignmentKind::Margin || faces.iter().all(|face| face.landmarks.scheme().gives(wanted)) {
        return Ok(faces);
    }
    let mut aligned = Vec::with_capacity(faces.len());
    for face in faces {
        let has = face.landmarks.scheme().gives(wanted);
        aligned.extend(if has { vec![face] } else { placed(core, photo, vec![face]).await? });
    }
    Ok(aligned)
}
