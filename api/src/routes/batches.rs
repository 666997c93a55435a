//! Batches: many pictures in one request.

use std::path::Path as FilePath;

use axum::extract::{FromRequest as _, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use shared::access::Grant;
use shared::batch::BatchSource;
use shared::db::batches::control::{self, Wish};
use shared::db::batches::read::{self, BatchWithCounts, ItemFilter};
use shared::db::batches::submit::{NewBatch, Submitted, submit};
use shared::db::entity::batch::{BatchState, OnGone};
use shared::db::entity::collection;
use shared::db::jobs::read::JobWithAnswer;
use shared::ids::{BatchId, CollectionId, WebhookEndpointId};
use shared::job::{JobKind, JobState, Problem};
use shared::objects::ImportRoots;
use utoipa::{IntoParams, ToSchema};

use super::instant;
use super::jobs::JobView;
use super::models::check_runnable;
use super::submit::{check_text, key_reused, promise};
use super::webhooks::check_endpoints;
use crate::auth::{Caller, Read, Write};
use crate::cursor::{Page, PageQuery};
use crate::error::{ApiError, ApiResult};
use crate::etag::Version;
use crate::extract::{self, Json, Path, Query, SubmitHeaders, media_type};
use crate::manifest;
use crate::state::AppState;

/// The media type of a manifest.
pub(super) const NDJSON: &str = "application/x-ndjson";

/// Pictures of a place, to be worked on as jobs.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchRequest {
    /// The collection, by id or name.
    collection: String,
    /// What is done with each picture: `index`.
    #[schema(value_type = String, pattern = "^index$")]
    kind: JobKind,
    /// Where the pictures are.
    #[serde(deserialize_with = "shared::object::only")]
    source: SourceInput,
    /// What becomes of images that lay there and of which no place is left: they are kept and marked (`gone_at`), or
    /// deleted with their faces.
    #[serde(default)]
    gone: OnGone,
    /// Given back with the batch and each of its jobs.
    #[schema(max_length = 256)]
    tag: Option<String>,
    /// The only webhook endpoints that are told of it and its jobs; all that want to know where absent.
    #[schema(max_items = 100)]
    webhook_endpoint_ids: Option<Vec<WebhookEndpointId>>,
}

/// One of the two; a list of pictures is sent as a manifest.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceInput {
    /// `s3://bucket/prefix` in a bucket that the operator allows: every .jpg, .jpeg, .png and .webp below it.
    s3: Option<String>,
    /// The absolute path of a folder of the server, below one that the operator allows; with `face-id serve` only.
    folder: Option<String>,
}

/// What a manifest's request says beside its lines.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ManifestQuery {
    /// With a manifest: the collection, by id or name.
    collection: Option<String>,
    /// With a manifest: what is done with each picture, `index`.
    #[param(value_type = Option<String>, pattern = "^index$")]
    kind: Option<JobKind>,
    /// With a manifest: given back with the batch and each of its jobs.
    tag: Option<String>,
    /// With a manifest: the only webhook endpoints that are told of it and its jobs, with commas between them.
    webhook_endpoint_ids: Option<String>,
}

/// Where a batch stands, as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BatchStateView {
    /// Its pictures are being listed; jobs of those that are run already.
    Listing,
    /// Every picture is listed.
    Running,
    /// No picture is listed and no job begun until it is resumed.
    Paused,
    /// A client cancelled it; once it has ended, `finished_at` says when.
    Cancelled,
    /// Every job has ended.
    Completed,
    /// Its pictures could not all be listed; the jobs of those that could have ended.
    Failed,
}

/// A batch.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchView {
    id: BatchId,
    collection_id: CollectionId,
    kind: JobKind,
    pipeline: String,
    source: BatchSource,
    state: BatchStateView,
    /// 1, and one more each time that what failed is tried again.
    round: i32,
    /// Pictures listed so far.
    items: i64,
    /// Of these, known to the collection with the same fingerprint: no job was made for them.
    unchanged: i64,
    /// Jobs by state.
    jobs: JobCounts,
    /// Faces found that were not known before.
    faces: i64,
    /// What becomes of images that are gone.
    on_gone: OnGone,
    /// Places known from before that are gone, while their pictures lie at places that are new. Counted once every job has
    /// ended, as is `gone`; of a manifest there are none.
    moved: i64,
    /// Images of which no place is left: marked by this batch, or deleted by it.
    gone: i64,
    /// Jobs that end in a second; null while it is not measured.
    jobs_per_second: Option<f64>,
    /// Seconds until the jobs listed so far have ended, at this pace.
    eta_s: Option<f64>,
    /// Rejected and failed jobs by their problem's code, most first.
    problems: Vec<ProblemCount>,
    /// Why the listing does not go on, was given up, or passed places over.
    problem: Option<Problem>,
    tag: Option<String>,
    /// Grows as it is worked on; with the jobs' counts the `ETag`, and the id of an event.
    version: i64,
    created_at: String,
    /// When every picture was listed.
    listed_at: Option<String>,
    finished_at: Option<String>,
}

impl BatchView {
    pub(super) fn version(&self) -> Version {
        let jobs = &self.jobs;
        // What has ended is counted before it is added to the batch's own row.
        Version::of(&[self.version, jobs.running, jobs.succeeded, jobs.rejected, jobs.failed, jobs.cancelled])
    }

    pub(super) fn has_ended(&self) -> bool {
        self.finished_at.is_some()
    }
}

/// Jobs by state.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobCounts {
    queued: i64,
    running: i64,
    succeeded: i64,
    rejected: i64,
    failed: i64,
    cancelled: i64,
}

/// How many jobs ended with a problem.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProblemCount {
    state: JobState,
    code: String,
    jobs: i64,
}

/// Which batches to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct BatchQuery {
    /// Of this collection, by id or name.
    collection: Option<String>,
    /// Rows of the page, 1 to 500; 50 where absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Which jobs of a batch to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ItemQuery {
    /// In this state.
    state: Option<JobState>,
    /// Rows of the page, 1 to 500; 50 where absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Makes a batch: of a place, named in JSON, or of a manifest, one JSON object a line (`application/x-ndjson`, of any
/// length, each line as `ManifestLine`), with `collection` and `kind` in the query.
#[utoipa::path(post, path = "/v1/batches", tag = "batches", security(("api_key" = ["write"])),
    request_body(content((BatchRequest = "application/json"), (String = "application/x-ndjson"))),
    params(ManifestQuery,
        ("Idempotency-Key" = String, Header, description = "Repeats with the same key give the same batch",
            pattern = r#"^("([ !#-\[\]-~]|\\["\\]){1,253}"|[!#-~]([ -~]{0,253}[!-~])?)$"#)),
    responses((status = 202, body = BatchView, headers(("Location" = String, description = "The batch's path")))))]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Query(query): Query<ManifestQuery>,
    headers: SubmitHeaders,
    request: Request,
) -> ApiResult<Response> {
    let key = headers.required_key()?.to_owned();
    let asked = if media_type(request.headers()).eq_ignore_ascii_case(NDJSON) {
        of_manifest(&state, &caller, query, request).await?
    } else {
        of_place(&state, &caller, Json::from_request(request, &state).await?).await?
    };
    let Asked { collection, kind, source, on_gone, identity, tag, webhook_endpoints } = asked;
    let manifest = match &source {
        BatchSource::Manifest(manifest) => Some(manifest.clone()),
        BatchSource::S3(_) | BatchSource::Folder(_) => None,
    };
    let mut text = serde_json::json!([identity, kind, tag, on_gone]).to_string();
    if let Some(only) = &webhook_endpoints {
        text.push_str(&serde_json::json!(only).to_string());
    }
    let idempotency = Some(promise(&state, &caller, (collection.id, "batches"), key, &text));
    let new = NewBatch {
        collection: collection.id,
        kind,
        pipeline: collection.pipeline,
        source,
        on_gone,
        tag,
        webhook_endpoints,
        traceparent: Some(headers.trace.as_str().to_owned()),
        idempotency,
    };
    let submitted = submit(&state.db, &caller, new).await?;
    if let (Some(manifest), Submitted::Existing(_) | Submitted::KeyReused | Submitted::KeyInFlight) =
        (manifest, &submitted)
    {
        manifest::delete(&state, collection.id, &manifest).await;
    }
    let id = match submitted {
        Submitted::New(id) => {
            tracing::info!(batch.id = %id, collection.id = %collection.id, "batch accepted");
            id
        }
        Submitted::Existing(id) => id,
        Submitted::KeyReused => return Err(key_reused()),
        Submitted::KeyInFlight => return Err(ApiError::key_in_flight()),
    };
    let headers = [(header::LOCATION, format!("/v1/batches/{id}")), (header::RETRY_AFTER, "1".to_owned())];
    Ok((StatusCode::ACCEPTED, headers, axum::Json(load(&state, &caller, id).await?)).into_response())
}

/// A request for a batch that passed its checks.
struct Asked {
    collection: collection::Model,
    kind: JobKind,
    source: BatchSource,
    on_gone: OnGone,
    /// What tells its pictures from another request's.
    identity: String,
    tag: Option<String>,
    webhook_endpoints: Option<Vec<WebhookEndpointId>>,
}

async fn of_place(state: &AppState, grant: &Grant, Json(request): Json<BatchRequest>) -> ApiResult<Asked> {
    check_kind("#/kind", request.kind)?;
    request.tag.as_ref().map_or(Ok(()), |tag| check_text("#/tag", tag))?;
    let collection = extract::collection(state, grant, &request.collection).await?;
    check_runnable(state, &collection.pipeline).await?;
    state.backlog.check_bulk(&collection.pipeline)?;
    let source = match (request.source.s3, request.source.folder) {
        (Some(prefix), None) => {
            let checked = state.objects.check_prefix(&prefix);
            checked.map_err(|e| ApiError::invalid("#/source/s3", e.to_string()))?;
            BatchSource::S3(prefix)
        }
        (None, Some(folder)) => {
            check_folder(state, folder.clone()).await?;
            BatchSource::Folder(folder)
        }
        _ => {
            let detail = format!("needs exactly one of s3 and folder; a list of pictures is sent as {NDJSON}");
            return Err(ApiError::invalid("#/source", detail));
        }
    };
    let identity = serde_json::json!(&source).to_string();
    check_endpoints(state, collection.id, "#/webhook_endpoint_ids", request.webhook_endpoint_ids.as_deref()).await?;
    let (kind, on_gone, tag, webhook_endpoints) =
        (request.kind, request.gone, request.tag, request.webhook_endpoint_ids);
    Ok(Asked { collection, kind, source, on_gone, identity, tag, webhook_endpoints })
}

async fn of_manifest(state: &AppState, grant: &Grant, query: ManifestQuery, request: Request) -> ApiResult<Asked> {
    let absent = |name: &str| ApiError::invalid(name, "is missing in the query; a manifest needs it");
    let kind = query.kind.ok_or_else(|| absent("kind"))?;
    check_kind("kind", kind)?;
    query.tag.as_ref().map_or(Ok(()), |tag| check_text("tag", tag))?;
    let collection = extract::collection(state, grant, &query.collection.ok_or_else(|| absent("collection"))?).await?;
    check_runnable(state, &collection.pipeline).await?;
    state.backlog.check_bulk(&collection.pipeline)?;
    let webhook_endpoints = query.webhook_endpoint_ids.as_deref().map(endpoint_ids).transpose()?;
    check_endpoints(state, collection.id, "webhook_endpoint_ids", webhook_endpoints.as_deref()).await?;
    let intake = manifest::take_in(state, collection.id, request.into_body()).await?;
    let source = BatchSource::Manifest(intake.manifest);
    let on_gone = OnGone::default();
    Ok(Asked { collection, kind, source, on_gone, identity: intake.sha256, tag: query.tag, webhook_endpoints })
}

fn endpoint_ids(text: &str) -> ApiResult<Vec<WebhookEndpointId>> {
    let ids = text.split(',').map(|id| id.trim().parse()).collect::<Result<_, _>>();
    ids.map_err(|_| {
        ApiError::invalid("webhook_endpoint_ids", "must be ids of webhook endpoints with commas between them")
    })
}

fn check_kind(pointer: &str, kind: JobKind) -> ApiResult<()> {
    if kind == JobKind::Index {
        Ok(())
    } else {
        Err(ApiError::invalid(pointer, "must be index; other kinds go one by one"))
    }
}

async fn check_folder(state: &AppState, folder: String) -> ApiResult<()> {
    if state.config.has_services() {
        let detail = "is read by `face-id serve` only; put the pictures into a bucket and name it by s3";
        return Err(ApiError::invalid("#/source/folder", detail));
    }
    let roots = ImportRoots::new(state.config.import.roots.clone());
    let looked = tokio::task::spawn_blocking(move || {
        roots.resolve(FilePath::new(&folder)).map(|real| real.is_dir()).map_err(|e| e.to_string())
    });
    match looked.await.map_err(|error| ApiError::internal(&error))? {
        Ok(true) => Ok(()),
        Ok(false) => Err(ApiError::invalid("#/source/folder", "is no folder")),
        Err(why) => Err(ApiError::invalid("#/source/folder", why)),
    }
}

/// Lists batches, newest first.
#[utoipa::path(get, path = "/v1/batches", tag = "batches", security(("api_key" = ["read"])), params(BatchQuery), responses(
    (status = 200, body = Page<BatchView>)))]
pub async fn list(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Query(query): Query<BatchQuery>,
) -> ApiResult<axum::Json<Page<BatchView>>> {
    let collection = match &query.collection {
        Some(named) => Some(extract::collection(&state, &caller, named).await?.id),
        None => None,
    };
    let page = PageQuery::new(query.limit, query.cursor).of(&state.secret_key, "batches", &collection)?;
    let rows = read::list(&state.db, &caller, collection, page.after()?.map(BatchId), page.rows()).await?;
    let Page { items, next_cursor } = page.page(rows, |r| r.batch.id.0, |r| r);
    let items = items.into_iter().map(view).collect::<ApiResult<_>>()?;
    Ok(axum::Json(Page { items, next_cursor }))
}

/// Shows a batch.
#[utoipa::path(get, path = "/v1/batches/{batch}", tag = "batches", security(("api_key" = ["read"])), params(
        ("batch" = BatchId, Path),
        ("If-None-Match" = Option<String>, Header, description = "The ETag of the version that is known")), responses(
    (status = 200, body = BatchView, headers(("ETag" = String, description = "The version"))),
    (status = 304, description = "It is that version still")))]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path(id): Path<BatchId>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let view = load(&state, &caller, id).await?;
    Ok(view.version().answer(&headers, view))
}

/// Lists a batch's jobs in the order of its pictures.
#[utoipa::path(get, path = "/v1/batches/{batch}/jobs", tag = "batches", security(("api_key" = ["read"])), params(("batch" = BatchId, Path), ItemQuery),
    responses((status = 200, body = Page<JobView>)))]
pub async fn jobs(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path(id): Path<BatchId>,
    Query(query): Query<ItemQuery>,
) -> ApiResult<axum::Json<Page<JobView>>> {
    load(&state, &caller, id).await?;
    let page = PageQuery::new(query.limit, query.cursor).of(&state.secret_key, "batch jobs", &(id, query.state))?;
    let filter = ItemFilter { state: query.state, after: page.token()?.map(i64::from_be_bytes) };
    let rows = read::jobs(&state.db, &caller, id, filter, page.rows()).await?;
    let number = |row: &JobWithAnswer| row.job.item_no.unwrap_or_default().to_be_bytes();
    Ok(axum::Json(page.page_after(rows, number, JobView::from)))
}

/// Begins no more jobs of a batch until it is resumed; those that run end.
#[utoipa::path(post, path = "/v1/batches/{batch}/pause", tag = "batches", security(("api_key" = ["write"])), params(("batch" = BatchId, Path)),
    responses((status = 200, body = BatchView)))]
pub async fn pause(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path(id): Path<BatchId>,
) -> ApiResult<axum::Json<BatchView>> {
    wish(&state, &caller, id, Wish::Pause, "only a running batch can be paused").await
}

/// Goes on with a paused batch.
#[utoipa::path(post, path = "/v1/batches/{batch}/resume", tag = "batches", security(("api_key" = ["write"])), params(("batch" = BatchId, Path)),
    responses((status = 200, body = BatchView)))]
pub async fn resume(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path(id): Path<BatchId>,
) -> ApiResult<axum::Json<BatchView>> {
    wish(&state, &caller, id, Wish::Resume, "only a paused batch can be resumed").await
}

/// Cancels a batch: what waits is cancelled, what runs is asked to end. What was stored stays.
#[utoipa::path(post, path = "/v1/batches/{batch}/cancel", tag = "batches", security(("api_key" = ["write"])), params(("batch" = BatchId, Path)),
    responses((status = 200, body = BatchView)))]
pub async fn cancel(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path(id): Path<BatchId>,
) -> ApiResult<axum::Json<BatchView>> {
    wish(&state, &caller, id, Wish::Cancel, "only a batch that has not ended, nor is being cancelled, can be cancelled")
        .await
}

/// Tries again what failed in a batch, and nothing else; its listing too, where that was given up.
#[utoipa::path(post, path = "/v1/batches/{batch}/retry", tag = "batches", security(("api_key" = ["write"])), params(("batch" = BatchId, Path)),
    responses((status = 200, body = BatchView)))]
pub async fn retry(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path(id): Path<BatchId>,
) -> ApiResult<axum::Json<BatchView>> {
    wish(&state, &caller, id, Wish::Retry, "a paused batch is resumed first, and a cancelled one is over").await
}

async fn wish(
    state: &AppState,
    grant: &Grant,
    id: BatchId,
    wish: Wish,
    otherwise: &str,
) -> ApiResult<axum::Json<BatchView>> {
    load(state, grant, id).await?;
    if !control::change(&state.db, grant, id, wish).await? {
        return Err(ApiError::conflict("batch_state", otherwise));
    }
    tracing::info!(batch.id = %id, ?wish, "batch changed");
    Ok(axum::Json(load(state, grant, id).await?))
}

pub(super) async fn load(state: &AppState, grant: &Grant, id: BatchId) -> ApiResult<BatchView> {
    let found = read::find(&state.db, grant, id).await?;
    view(found.ok_or_else(|| ApiError::not_found("batch_not_found", format!("there is no batch {id}")))?)
}

fn view(BatchWithCounts { batch, problems }: BatchWithCounts) -> ApiResult<BatchView> {
    let stored = |error: serde_json::Error| ApiError::internal(&error);
    let open = batch.queued + batch.running;
    let pace = batch.pace.filter(|pace| *pace > 0.0);
    let mut problems: Vec<ProblemCount> =
        problems.into_iter().map(|((state, code), jobs)| ProblemCount { state, code, jobs }).collect();
    problems.sort_by_key(|p| std::cmp::Reverse(p.jobs));
    Ok(BatchView {
        id: batch.id,
        collection_id: batch.collection_id,
        kind: batch.kind,
        pipeline: batch.pipeline,
        source: serde_json::from_str(&batch.source).map_err(stored)?,
        state: match batch.state {
            BatchState::Running if batch.listed_at.is_none() => BatchStateView::Listing,
            BatchState::Running => BatchStateView::Running,
            BatchState::Paused => BatchStateView::Paused,
            BatchState::Cancelled => BatchStateView::Cancelled,
            BatchState::Completed => BatchStateView::Completed,
            BatchState::Failed => BatchStateView::Failed,
        },
        round: batch.round,
        items: batch.items,
        unchanged: batch.unchanged,
        jobs: JobCounts {
            queued: batch.queued,
            running: batch.running,
            succeeded: batch.succeeded,
            rejected: batch.rejected,
            failed: batch.failed,
            cancelled: batch.cancelled,
        },
        faces: batch.faces,
        on_gone: batch.on_gone,
        moved: batch.moved,
        gone: batch.gone,
        jobs_per_second: pace,
        eta_s: pace.map(|pace| open as f64 / pace),
        problems,
        problem: batch.problem.as_deref().map(serde_json::from_str).transpose().map_err(stored)?,
        tag: batch.tag,
        version: batch.version,
        created_at: instant(batch.created_at),
        listed_at: batch.listed_at.map(instant),
        finished_at: batch.finished_at.map(instant),
    })
}
