//! Uploads: pictures that are sent once and used by jobs.

use axum::body::Bytes;
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;
use shared::db::entity::upload;
use shared::db::uploads;
use shared::ids::UploadId;
use utoipa::ToSchema;

use super::instant;
use crate::auth::{Caller, Identify};
use crate::buffered::NoRoom;
use crate::error::{ApiError, ApiResult};
use crate::extract::{self, Body, Path, is_without_room};
use crate::pictures::InlinePicture;
use crate::state::AppState;

/// An uploaded picture.
#[derive(Debug, Serialize, ToSchema)]
pub struct UploadView {
    id: UploadId,
    /// Of the bytes, lower-case hex.
    sha256: String,
    size_bytes: i64,
    /// As its first bytes say.
    content_type: String,
    created_at: String,
    /// It is deleted then, unless a job has stored it.
    expires_at: String,
}

impl From<upload::Model> for UploadView {
    fn from(row: upload::Model) -> Self {
        Self {
            id: row.id,
            sha256: row.sha256,
            size_bytes: row.size_bytes,
            content_type: row.content_type,
            created_at: instant(row.created_at),
            expires_at: instant(row.expires_at),
        }
    }
}

/// The bytes of a picture.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "it describes what is read as it comes")]
pub struct PictureBytes(Vec<u8>);

/// A form with a picture.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what is read part by part")]
pub struct UploadForm {
    /// The picture; the part may be named `image` as well.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Takes in a picture: its bytes as the body, or a `multipart/form-data` part named `file` or `image`.
#[utoipa::path(post, path = "/v1/collections/{collection}/uploads", tag = "uploads", security(("api_key" = ["identify"])),
    params(("collection" = String, Path, description = "Its id or name")),
    request_body(content((PictureBytes = "application/octet-stream"), (UploadForm = "multipart/form-data"))), responses(
    (status = 201, body = UploadView)))]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller<Identify>,
    Path(collection): Path<String>,
    request: Request,
) -> ApiResult<impl IntoResponse> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let media_type = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let bytes = if media_type.to_ascii_lowercase().starts_with("multipart/form-data") {
        part(&state, request).await?
    } else {
        Body::from_request(request, &state).await?.0
    };
    let stored = InlinePicture::new(bytes)?.store(&state, collection.id, false).await?;
    let row = uploads::create(&state.db.write, stored).await?;
    let location = [(header::LOCATION, format!("/v1/collections/{}/uploads/{}", collection.id, row.id))];
    Ok((StatusCode::CREATED, location, axum::Json(UploadView::from(row))))
}

async fn part(state: &AppState, request: Request) -> ApiResult<Bytes> {
    let server = &state.config.server;
    let broken = |e: axum::extract::multipart::MultipartError| {
        if e.status() == StatusCode::PAYLOAD_TOO_LARGE {
            ApiError::body_too_large(server.max_body_bytes)
        } else if is_without_room(&e) {
            ApiError::unavailable(NoRoom.to_string())
        } else {
            ApiError::bad_request(
                "malformed_multipart",
                format!("the multipart body cannot be read: {}", e.body_text()),
            )
        }
    };
    let read = async {
        let mut multipart = Multipart::from_request(state.places.bodies.admit(request), state)
            .await
            .map_err(|e| ApiError::bad_request("malformed_multipart", e.body_text()))?;
        while let Some(field) = multipart.next_field().await.map_err(broken)? {
            if matches!(field.name(), Some("file" | "image")) {
                return field.bytes().await.map_err(broken);
            }
        }
        Err(ApiError::bad_request("malformed_multipart", "the form has no part named file or image"))
    };
    let limit = std::time::Duration::from_secs(server.body_timeout_s);
    tokio::time::timeout(limit, read).await.map_err(|_| ApiError::body_timeout(server.body_timeout_s))?
}

/// Shows an upload.
#[utoipa::path(get, path = "/v1/collections/{collection}/uploads/{upload}", tag = "uploads", security(("api_key" = ["identify"])),
    params(("collection" = String, Path, description = "Its id or name"), ("upload" = UploadId, Path)), responses(
    (status = 200, body = UploadView)))]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller<Identify>,
    Path((collection, upload)): Path<(String, UploadId)>,
) -> ApiResult<axum::Json<UploadView>> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let row = uploads::find(&state.db.read, &caller, collection.id, upload).await?;
    let row = row.ok_or_else(|| ApiError::not_found("upload_not_found", "there is no such upload (uploads expire)"))?;
    Ok(axum::Json(row.into()))
}
