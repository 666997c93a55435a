//! Collections.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::access::Reach;
use shared::catalogue::Metric;
use shared::db::clusters::queue;
use shared::db::collections::{self, CollectionSettings, Created};
use shared::db::entity::collection;
use shared::db::erasures::request;
use shared::ids::CollectionId;
use utoipa::ToSchema;

use super::erasures::{ErasureView, accepted};
use super::instant;
use super::models::{check_pipeline, named};
use super::reprocess::registered;
use crate::auth::{Admin, Caller, Read};
use crate::cursor::{Page, PageQuery};
use crate::error::{ApiError, ApiResult};
use crate::etag::Version;
use crate::extract::{self, Json, Path, Query};
use crate::state::AppState;

/// A collection to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCollection {
    /// 1 to 64 letters, digits, `.`, `_` or `-`; no UUID.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,64}$")]
    name: String,
    /// A pipeline of the catalogue; the server's default where absent.
    pipeline: Option<String>,
    /// How it decides.
    #[serde(default, deserialize_with = "shared::object::only")]
    settings: CollectionSettings,
}

/// Changes to a collection.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CollectionChanges {
    /// Replaces all settings; those left out take their defaults.
    #[serde(deserialize_with = "shared::object::only")]
    settings: CollectionSettings,
}

/// A gallery of persons and their images.
#[derive(Debug, Serialize, ToSchema)]
pub struct CollectionView {
    id: CollectionId,
    name: String,
    pipeline: String,
    settings: CollectionSettings,
    persons: i64,
    faces: i64,
    images: i64,
    /// Faces that are nobody's, less those that are hidden.
    unknown_faces: i64,
    /// Clusters of at least two such faces.
    clusters: i64,
    created_at: String,
}

async fn view(state: &AppState, row: collection::Model) -> ApiResult<CollectionView> {
    let counts = collections::counts(&state.db, row.id).await?;
    Ok(CollectionView {
        id: row.id,
        settings: row.settings()?,
        name: row.name,
        pipeline: row.pipeline,
        persons: counts.persons,
        faces: counts.faces,
        images: counts.images,
        unknown_faces: counts.unknown_faces,
        clusters: counts.clusters,
        created_at: instant(row.created_at),
    })
}

fn check_settings(settings: &CollectionSettings, metric: Metric) -> ApiResult<()> {
    settings.check(metric).map_err(|(field, why)| ApiError::invalid(format!("#/settings/{field}"), why))
}

fn check_name(name: &str) -> ApiResult<()> {
    if collections::is_collection_name(name) {
        return Ok(());
    }
    Err(ApiError::invalid("#/name", "must be 1 to 64 letters, digits, '.', '_' or '-', and no UUID"))
}

/// Makes a collection.
#[utoipa::path(post, path = "/v1/collections", tag = "collections", security(("api_key" = ["admin"])), request_body = NewCollection, responses(
    (status = 201, body = CollectionView)))]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Json(new): Json<NewCollection>,
) -> ApiResult<impl IntoResponse> {
    if caller.reach() != &Reach::All {
        return Err(ApiError::forbidden("a key of single collections makes no others"));
    }
    check_name(&new.name)?;
    let pipeline = new.pipeline.unwrap_or_else(|| state.config.models.default_pipeline.clone());
    check_settings(&new.settings, named(&state, &pipeline).await?.recognizer.metric)?;
    let made = make(&state, &new.name, &pipeline, &new.settings).await?;
    let row =
        made.ok_or_else(|| ApiError::conflict("collection_exists", format!("there is a collection {}", new.name)))?;
    let location = [(header::LOCATION, format!("/v1/collections/{}", row.id))];
    Ok((StatusCode::CREATED, location, axum::Json(view(&state, row).await?)))
}

/// Makes a collection of checked settings; `None` when its name is taken.
pub(crate) async fn make(
    state: &AppState,
    name: &str,
    pipeline: &str,
    settings: &CollectionSettings,
) -> ApiResult<Option<collection::Model>> {
    check_pipeline(state, pipeline).await?;
    match collections::create_of_registered(&state.db, name, pipeline, settings).await? {
        Created::New(made) => Ok(Some(*made)),
        Created::Taken => Ok(None),
        Created::NoModel => Err(ApiError::invalid("#/pipeline", format!("the model {pipeline} was deleted meanwhile"))),
    }
}

/// Lists collections.
#[utoipa::path(get, path = "/v1/collections", tag = "collections", security(("api_key" = ["read"])), params(PageQuery), responses(
    (status = 200, body = Page<CollectionView>)))]
pub async fn list(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Query(page): Query<PageQuery>,
) -> ApiResult<axum::Json<Page<CollectionView>>> {
    let page = page.of(&state.secret_key, "collections", &())?;
    let rows = collections::list(&state.db, &caller, page.after()?.map(CollectionId), page.rows()).await?;
    let Page { items, next_cursor } = page.page(rows, |r| r.id.0, |r| r);
    let mut views = Vec::with_capacity(items.len());
    for row in items {
        views.push(view(&state, row).await?);
    }
    Ok(axum::Json(Page { items: views, next_cursor }))
}

/// Shows a collection.
#[utoipa::path(get, path = "/v1/collections/{collection}", tag = "collections", security(("api_key" = ["read"])),
    params(("collection" = String, Path, description = "Its id or name")), responses(
    (status = 200, body = CollectionView, headers(("ETag" = String, description = "The version of its settings and pipeline")))))]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path(collection): Path<String>,
) -> ApiResult<impl IntoResponse> {
    let row = extract::collection(&state, &caller, &collection).await?;
    Ok(([version(&row)?.header()], axum::Json(view(&state, row).await?)))
}

/// Changes a collection's settings; with `If-Match` only where nobody else did since they were read.
#[utoipa::path(patch, path = "/v1/collections/{collection}", tag = "collections", security(("api_key" = ["admin"])),
    request_body = CollectionChanges, params(("collection" = String, Path, description = "Its id or name"),
        ("If-Match" = Option<String>, Header, description = "The ETag that was read")), responses(
    (status = 200, body = CollectionView, headers(("ETag" = String, description = "The version of its settings and pipeline")))))]
pub async fn update(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(collection): Path<String>,
    headers: HeaderMap,
    Json(changes): Json<CollectionChanges>,
) -> ApiResult<impl IntoResponse> {
    let row = extract::collection(&state, &caller, &collection).await?;
    // Only a threshold takes a pipeline that this version knows.
    let metric = match changes.settings.match_cosine {
        Some(_) => registered(&state, &row.pipeline).await?.recognizer.metric,
        None => Metric::default(),
    };
    check_settings(&changes.settings, metric)?;
    let had_clusters = row.settings()?.clustering;
    // A threshold is one of the pipeline that it was checked for.
    let is_checked = |now: &collection::Model| changes.settings.match_cosine.is_none() || now.pipeline == row.pipeline;
    let is_expected =
        |now: &collection::Model| is_checked(now) && version(now).is_ok_and(|version| version.may_change(&headers));
    if !collections::update_settings(&state.db, row.id, &changes.settings, is_expected).await? {
        let now = extract::collection(&state, &caller, &row.id.to_string()).await?;
        let detail =
            "it went over to another pipeline meanwhile, whose scores are others: read it again and decide anew";
        let changed = || ApiError::conflict("collection_changed", detail);
        return Err(if is_checked(&now) { ApiError::precondition_failed() } else { changed() });
    }
    if changes.settings.clustering && !had_clusters {
        queue::enqueue_all(&state.db.write, row.id).await?;
    }
    let row = extract::collection(&state, &caller, &row.id.to_string()).await?;
    Ok(([version(&row)?.header()], axum::Json(view(&state, row).await?)))
}

/// The version of what can be changed of a collection, and of the pipeline that it goes by, whose its threshold is.
fn version(row: &collection::Model) -> ApiResult<Version> {
    Ok(Version::of_content(&json!({ "settings": row.settings()?, "pipeline": row.pipeline })))
}

/// Erases a collection with all persons, images, faces, vectors, crops, uploads, jobs and events. Its name is free at once.
#[utoipa::path(delete, path = "/v1/collections/{collection}", tag = "collections", security(("api_key" = ["admin"])),
    params(("collection" = String, Path, description = "Its id or name")), responses(
    (status = 202, body = ErasureView, description = "Nobody finds it any more; the receipt, the same each time",
        headers(("Location" = String, description = "The receipt's path")))))]
pub async fn delete(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(collection): Path<String>,
) -> ApiResult<Response> {
    let found = extract::collection(&state, &caller, &collection).await;
    let erasure = match &found {
        Ok(row) => request::collection(&state.db, &state.secret_key, row.id, false).await?,
        // Who may see only some collections is not told which others there were.
        Err(error) if error.is_not_found() && caller.reach() == &Reach::All => {
            request::of_collection(&state.db, &state.secret_key, &collection).await?
        }
        Err(_) => None,
    };
    match (erasure, found) {
        (Some(erasure), _) => Ok(accepted(erasure)),
        (None, Err(error)) => Err(error),
        (None, Ok(_)) => Err(ApiError::not_found("collection_not_found", "there is no such collection")),
    }
}
