//! Faces.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use shared::db::faces::{self, AssignedBy, PlacedFace};
use shared::ids::{FaceId, ImageId, PersonId};
use shared::job::FaceBox;
use utoipa::ToSchema;

use super::instant;
use crate::cursor::{Page, PageQuery};
use crate::error::{ApiError, ApiResult, ProblemBody};
use crate::extract::{self, Path, Query};
use crate::state::AppState;

/// A stored face.
#[derive(Debug, Serialize, ToSchema)]
pub struct FaceView {
    id: FaceId,
    image_id: ImageId,
    /// Whose it is; null where that is not known.
    person_id: Option<PersonId>,
    /// Who said so.
    assigned_by: Option<AssignedBy>,
    #[serde(rename = "box")]
    face_box: FaceBox,
    /// Five points in upright pixels: image-left eye, image-right eye, nose, image-left and image-right mouth corner.
    landmarks: serde_json::Value,
    /// The detector's, 0 to 1.
    score: f32,
    quality: serde_json::Value,
    created_at: String,
}

impl From<PlacedFace> for FaceView {
    fn from(PlacedFace { face, geometry }: PlacedFace) -> Self {
        Self {
            id: face.id,
            image_id: face.image_id,
            person_id: face.person_id,
            assigned_by: face.assigned_by.filter(|_| face.person_id.is_some()),
            face_box: geometry.face_box(),
            landmarks: serde_json::from_str(&geometry.landmarks).unwrap_or_default(),
            score: geometry.score,
            quality: serde_json::from_str(&geometry.quality).unwrap_or_default(),
            created_at: instant(face.created_at),
        }
    }
}

fn not_found(id: FaceId) -> ApiError {
    ApiError::not_found("face_not_found", format!("there is no face {id} in this collection"))
}

/// Lists faces.
#[utoipa::path(get, path = "/v1/collections/{collection}/faces", tag = "faces",
    params(("collection" = String, Path, description = "Its id or name"), PageQuery), responses(
    (status = 200, body = Page<FaceView>),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn list(
    State(state): State<AppState>,
    Path(collection): Path<String>,
    Query(page): Query<PageQuery>,
) -> ApiResult<axum::Json<Page<FaceView>>> {
    let collection = extract::collection(&state, &collection).await?;
    let limit = page.limit()?;
    let rows = faces::list(&state.db, collection.id, None, page.after()?.map(FaceId), limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |r| r.face.id.0, FaceView::from)))
}

/// Shows a face.
#[utoipa::path(get, path = "/v1/collections/{collection}/faces/{face}", tag = "faces",
    params(("collection" = String, Path, description = "Its id or name"), ("face" = FaceId, Path)), responses(
    (status = 200, body = FaceView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn get(
    State(state): State<AppState>,
    Path((collection, face)): Path<(String, FaceId)>,
) -> ApiResult<axum::Json<FaceView>> {
    let collection = extract::collection(&state, &collection).await?;
    let found = faces::find(&state.db.read, collection.id, face).await?;
    found.map(|f| axum::Json(f.into())).ok_or_else(|| not_found(face))
}

/// Deletes a face with its vectors.
#[utoipa::path(delete, path = "/v1/collections/{collection}/faces/{face}", tag = "faces",
    params(("collection" = String, Path, description = "Its id or name"), ("face" = FaceId, Path)), responses(
    (status = 204),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn delete(
    State(state): State<AppState>,
    Path((collection, face)): Path<(String, FaceId)>,
) -> ApiResult<StatusCode> {
    let collection = extract::collection(&state, &collection).await?;
    if faces::delete(&state.db, collection.id, face).await? { Ok(StatusCode::NO_CONTENT) } else { Err(not_found(face)) }
}
