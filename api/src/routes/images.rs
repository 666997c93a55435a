//! Images.

use axum::extract::State;
use axum::response::Response;
use shared::db::erasures::request;
use shared::ids::ImageId;

use super::erasures::{ErasureView, accepted};
use crate::auth::{Caller, Write};
use crate::error::{ApiError, ApiResult};
use crate::extract::{self, Path};
use crate::state::AppState;

/// Erases an image with all faces on it: their vectors and crops, the picture where it was sent, and every trace in jobs and
/// events. A file or object of a library stays where it lies, and is a new picture to whoever indexes it again.
#[utoipa::path(delete, path = "/v1/collections/{collection}/images/{image}", tag = "images", security(("api_key" = ["write"])),
    params(("collection" = String, Path, description = "Its id or name"), ("image" = ImageId, Path)), responses(
    (status = 202, body = ErasureView, description = "No answer has it any more; the receipt, the same each time",
        headers(("Location" = String, description = "The receipt's path")))))]
pub async fn delete(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path((collection, image)): Path<(String, ImageId)>,
) -> ApiResult<Response> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let erasure = request::image(&state.db, &state.secret_key, collection.id, image).await?;
    let missing = || ApiError::not_found("image_not_found", format!("there is no image {image} in this collection"));
    erasure.map(accepted).ok_or_else(missing)
}
