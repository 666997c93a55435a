//! Erasures: what became of deleting a person, face, image or collection.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use shared::db::erasures::{self, Erasure, ErasureSubject};
use shared::ids::{CollectionId, ErasureId};
use utoipa::ToSchema;

use super::instant;
use crate::auth::{Caller, Write};
use crate::cursor::{Page, PageQuery};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Path, Query};
use crate::state::AppState;

/// How far an erasure is.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErasureState {
    /// No answer has it any more; jobs, events and objects are looked through.
    Erasing,
    /// Nothing of it is left, but for what a worker whose process was killed had stored and not recorded: the sweeper deletes
    /// such objects a day later.
    Erased,
}

/// The receipt of an erasure. It does not say who or what was erased.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErasureView {
    id: ErasureId,
    subject: ErasureSubject,
    /// Of a person, face or image, as long as the collection is there.
    collection_id: Option<CollectionId>,
    state: ErasureState,
    removed: RemovedView,
    requested_at: String,
    finished_at: Option<String>,
}

/// How much was deleted so far.
#[derive(Debug, Serialize, ToSchema)]
pub struct RemovedView {
    persons: i64,
    faces: i64,
    images: i64,
    /// Of all pipelines.
    vectors: i64,
    crops: i64,
    /// Pictures and crops in the object store.
    objects: i64,
    /// Jobs that were cancelled, or of whose arguments, answers or tags something was removed.
    jobs: i64,
    /// Webhook events that named it, told or not.
    events: i64,
}

impl From<Erasure> for ErasureView {
    fn from(row: Erasure) -> Self {
        Self {
            id: row.id,
            subject: row.subject,
            collection_id: row.collection_id,
            state: if row.finished_at.is_some() { ErasureState::Erased } else { ErasureState::Erasing },
            removed: RemovedView {
                persons: row.persons,
                faces: row.faces,
                images: row.images,
                vectors: row.vectors,
                crops: row.crops,
                objects: row.objects,
                jobs: row.jobs,
                events: row.events,
            },
            requested_at: instant(row.requested_at),
            finished_at: row.finished_at.map(instant),
        }
    }
}

/// The answer to the wish to erase something: its receipt.
pub(super) fn accepted(erasure: Erasure) -> Response {
    tracing::info!(erasure.id = %erasure.id, "erasure accepted");
    let headers = [(header::LOCATION, format!("/v1/erasures/{}", erasure.id)), (header::RETRY_AFTER, "1".to_owned())];
    (StatusCode::ACCEPTED, headers, axum::Json(ErasureView::from(erasure))).into_response()
}

/// Does the work of a request to its end, even where its client gives up.
pub(crate) async fn to_its_end<T: Send + 'static>(
    state: &AppState,
    work: impl Future<Output = Result<T, sea_orm::DbErr>> + Send + 'static,
) -> ApiResult<T> {
    let done = state.tasks.spawn(work).await.map_err(|error| ApiError::internal(&error))?;
    Ok(done?)
}

/// Lists erasures, newest first. Those of collections, and of what was in collections that are gone, are for keys of all
/// collections.
#[utoipa::path(get, path = "/v1/erasures", tag = "erasures", security(("api_key" = ["write"])), params(PageQuery), responses(
    (status = 200, body = Page<ErasureView>)))]
pub async fn list(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Query(page): Query<PageQuery>,
) -> ApiResult<axum::Json<Page<ErasureView>>> {
    let page = page.of(&state.secret_key, "erasures", &())?;
    let rows = erasures::list(&state.db, &caller, page.after()?.map(ErasureId), page.rows()).await?;
    Ok(axum::Json(page.page(rows, |row| row.id.0, ErasureView::from)))
}

/// Shows an erasure.
#[utoipa::path(get, path = "/v1/erasures/{erasure}", tag = "erasures", security(("api_key" = ["write"])),
    params(("erasure" = ErasureId, Path)), responses((status = 200, body = ErasureView)))]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path(id): Path<ErasureId>,
) -> ApiResult<axum::Json<ErasureView>> {
    let found = erasures::find(&state.db.read, &caller, id).await?;
    let missing = || ApiError::not_found("erasure_not_found", format!("there is no erasure {id}"));
    Ok(axum::Json(found.ok_or_else(missing)?.into()))
}
