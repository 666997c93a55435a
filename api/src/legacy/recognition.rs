//! `/api/recognition/`: whose face is this? An identify job.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::db::entity::collection;
use shared::db::{faces, images};
use shared::ids::{FaceId, PersonId};
use shared::job::{Decision, FaceBox};

use super::answer::{self, EMPTY, FOUND, NOT_FOUND, NOT_RECOGNISED};
use super::{deadline, ended, found, input};
use crate::auth::{Caller, Identify};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Json, SubmitHeaders};
use crate::pictures::{self, BASE64};
use crate::routes::submit::{Identification, identify_picture};
use crate::state::AppState;

/// A box means the face that it overlaps best, by more than this (intersection over union), as an enroll job has it.
const MIN_OVERLAP: f32 = 0.3;

/// What the front end sends.
#[derive(Debug, Deserialize)]
pub(super) struct RecognitionRequest {
    picture: String,
    boundingbox: Option<Value>,
    /// Of another model's scale.
    threshold: Option<Value>,
}

/// What it reads where a person was found.
#[derive(Serialize)]
struct Recognition {
    /// The registered picture; null where it cannot be read any more.
    picture: Option<String>,
    similarity: f32,
    detail: &'static str,
    #[serde(rename = "ID")]
    id: String,
    name: Option<String>,
}

/// The part of an identify job's result that matters here.
#[derive(Deserialize)]
struct Identified {
    faces: Vec<IdentifiedFace>,
    gallery: Gallery,
}

#[derive(Deserialize)]
struct IdentifiedFace {
    #[serde(rename = "box")]
    face_box: FaceBox,
    decision: Decision,
    matches: Vec<Match>,
}

#[derive(Deserialize)]
struct Match {
    person_id: PersonId,
    external_id: Option<String>,
    name: Option<String>,
    face_id: FaceId,
    score: f32,
}

#[derive(Deserialize)]
struct Gallery {
    faces: usize,
}

pub(super) async fn recognise(
    State(state): State<AppState>,
    caller: Caller<Identify>,
    headers: SubmitHeaders,
    Json(request): Json<RecognitionRequest>,
) -> ApiResult<Response> {
    let wanted = input::face_box(request.boundingbox.as_ref())?;
    let picture = input::picture(&request.picture)?;
    drop(request.picture);
    let ignored = input::is_given(request.threshold.as_ref()).then_some("threshold");
    let Some(collection) = found(&state, &caller).await? else {
        return Ok(answer::ignoring(ignored, answer::told(EMPTY)));
    };
    let until = deadline(&state);
    let identification = Identification { picture, max_matches: Some(1), tag: None, webhook_endpoints: None };
    let job = identify_picture(&state, &caller, &collection, &headers, identification).await?;
    let mut job = ended(&state, &caller, job.id, until).await?;
    let response = match job.result.take() {
        None => answer::unsuccessful(NOT_RECOGNISED, &job),
        Some(result) => {
            let identified = serde_json::from_value(result).map_err(|error| ApiError::internal(&error))?;
            translated(&state, &collection, identified, wanted).await?
        }
    };
    Ok(answer::ignoring(ignored, response))
}

async fn translated(
    state: &AppState,
    collection: &collection::Model,
    identified: Identified,
    wanted: Option<FaceBox>,
) -> ApiResult<Response> {
    if identified.gallery.faces == 0 {
        return Ok(answer::told(EMPTY));
    }
    if identified.faces.is_empty() {
        return Ok(answer::refused(NOT_RECOGNISED, "no_face", "there is no face on the picture"));
    }
    let Some(face) = chosen(identified.faces, wanted) else {
        return Ok(answer::refused(NOT_RECOGNISED, "no_such_face", "no face lies in the box that was given"));
    };
    match face.matches.into_iter().next() {
        Some(best) if face.decision == Decision::Match => {
            let picture = registered_picture(state, collection, best.face_id).await?;
            Ok(axum::Json(Recognition {
                picture: picture.map(|bytes| BASE64.encode(bytes)),
                similarity: best.score,
                detail: FOUND,
                id: best.external_id.unwrap_or_else(|| best.person_id.to_string()),
                name: best.name,
            })
            .into_response())
        }
        _ => Ok(answer::told(NOT_FOUND)),
    }
}

/// The face that overlaps the box best, or without one the largest.
fn chosen(faces: Vec<IdentifiedFace>, wanted: Option<FaceBox>) -> Option<IdentifiedFace> {
    let value = |face: &IdentifiedFace| match wanted {
        Some(wanted) => overlap(face.face_box, wanted),
        None => face.face_box.width * face.face_box.height,
    };
    let best = faces.into_iter().max_by(|a, b| value(a).total_cmp(&value(b)))?;
    (wanted.is_none() || value(&best) > MIN_OVERLAP).then_some(best)
}

/// Intersection over union.
fn overlap(a: FaceBox, b: FaceBox) -> f32 {
    let shared = |a: f32, a_length: f32, b: f32, b_length: f32| ((a + a_length).min(b + b_length) - a.max(b)).max(0.0);
    let both = shared(a.x, a.width, b.x, b.width) * shared(a.y, a.height, b.y, b.height);
    both / (a.width * a.height + b.width * b.height - both)
}

/// The picture on which that face was registered.
async fn registered_picture(
    state: &AppState,
    collection: &collection::Model,
    face: FaceId,
) -> ApiResult<Option<Vec<u8>>> {
    let Some(face) = faces::find(&state.db.read, collection.id, face).await? else { return Ok(None) };
    match images::find(&state.db.read, collection.id, face.face.image_id).await? {
        Some(image) => pictures::stored(state, &image).await,
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn face(x: f32, side: f32) -> IdentifiedFace {
        let face_box = FaceBox { x, y: 0.0, width: side, height: side };
        IdentifiedFace { face_box, decision: Decision::Unknown, matches: Vec::new() }
    }

    #[test]
    fn a_box_means_the_face_in_it_and_none_the_largest() {
        let faces = || vec![face(0.0, 50.0), face(100.0, 90.0), face(300.0, 40.0)];
        let x = |wanted| chosen(faces(), wanted).map(|face| face.face_box.x.to_string());
        let square = |x, side| Some(FaceBox { x, y: 0.0, width: side, height: side });
        assert_eq!(x(None).as_deref(), Some("100"));
        assert_eq!(x(square(295.0, 50.0)).as_deref(), Some("300"));
        assert_eq!(x(square(200.0, 50.0)), None, "it lies between two");
        assert_eq!(x(square(0.0, 400.0)), None, "the whole picture is no face");
        assert!(chosen(Vec::new(), None).is_none());
    }
}
