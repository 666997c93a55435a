//! Batches: many pictures in one request.

use axum::extract::{FromRequest as _, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use shared::access::Grant;
use shared::batch::BatchSource;
use shared::db::batches::control::{self, Wish};
use shared::db::batches::read::{self, BatchWithCounts, ItemFilter};
use shared::db::batches::submit::{Submitted, find_repeated, submit};
use shared::db::entity::batch::{BatchState, OnGone};
use shared::db::jobs::read::JobWithAnswer;
use shared::ids::{BatchId, CollectionId};
use shared::job::{JobKind, JobState, Problem};
use utoipa::{IntoParams, ToSchema};

use super::instant;
use super::jobs::JobView;
use super::new_batch::{BatchRequest, ManifestQuery, of_manifest, of_place};
use super::submit::key_reused;
use crate::auth::{Caller, Read, Write};
use crate::cursor::{Page, PageQuery};
use crate::error::{ApiError, ApiResult};
use crate::etag::Version;
use crate::extract::{self, Json, Path, Query, SubmitHeaders, media_type};
use crate::state::AppState;

/// The media type of a manifest.
pub(super) const NDJSON: &str = "application/x-ndjson";

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
        of_manifest(&state, &caller, query, request, &key).await?
    } else {
        of_place(&state, &caller, Json::from_request(request, &state).await?).await?
    };
    let idempotency = asked.promise(&state, &caller, key);
    let submitted = if let Some(repeated) = find_repeated(&state.db, &idempotency).await? {
        repeated
    } else {
        if let Err(refused) = asked.check_admitted(&state).await {
            asked.forget(&state).await;
            return Err(refused);
        }
        submit(&state.db, &caller, asked.batch(&headers, idempotency)).await?
    };
    if !matches!(submitted, Submitted::New(_)) {
        asked.forget(&state).await;
    }
    let id = match submitted {
        Submitted::New(id) => {
            tracing::info!(batch.id = %id, collection.id = %asked.collection.id, "batch accepted");
            id
        }
        Submitted::Existing(id) => id,
        Submitted::KeyReused => return Err(key_reused()),
        Submitted::KeyInFlight => return Err(ApiError::key_in_flight()),
    };
    let headers = [(header::LOCATION, format!("/v1/batches/{id}")), (header::RETRY_AFTER, "1".to_owned())];
    Ok((StatusCode::ACCEPTED, headers, axum::Json(load(&state, &caller, id).await?)).into_response())
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
