//! Jobs: read, wait for, list, cancel.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use shared::access::{Grant, Scope};
use shared::db::entity::job;
use shared::db::jobs::read::{self, JobFilter, JobWithAnswer};
use shared::db::jobs::settle::{self, Cancel};
use shared::ids::{BatchId, CollectionId, JobId, UploadId};
use shared::job::{ImageRef, JobArgs, JobKind, JobState, Problem};
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};

use super::instant;
use crate::auth::{Caller, Identify, ReadJobs};
use crate::cursor::{Page, PageQuery};
use crate::error::{ApiError, ApiResult};
use crate::etag::Version;
use crate::extract::{self, Path, Query};
use crate::state::AppState;

/// How often a waiting request looks for itself, whatever it is told.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A job.
#[derive(Debug, Serialize, ToSchema)]
#[expect(missing_docs, reason = "the names say it")]
pub struct JobView {
    pub id: JobId,
    collection_id: CollectionId,
    kind: JobKind,
    pub(crate) state: JobState,
    /// Attempts begun so far.
    attempt: i32,
    pipeline: String,
    /// The batch that made it, and its place in it.
    batch_id: Option<BatchId>,
    item_no: Option<i64>,
    /// The picture it works on; of a verify, the first one.
    image: Option<ImageView>,
    tag: Option<String>,
    cancel_requested: bool,
    /// Grows with every change; also the `ETag`, and the id of an event.
    version: i64,
    created_at: String,
    started_at: Option<String>,
    finished_at: Option<String>,
    /// Of a job that succeeded; its form depends on the kind. Of an identify, an index and a verify, thresholds and rates that
    /// belong to a false accept rate of one comparison outside what was measured, or below 1e-5, are marked: by
    /// `threshold_extrapolated`, `false_positive_rate_extrapolated` and `false_accept_rate_extrapolated`. Where the model has a second
    /// stage, each match and a verify have `second_stage` (`kind`, `score`, `threshold`, `is_match`, and a `reason` where `score` is null), and what
    /// it does not confirm is `uncertain` at most. Where the collection looks for pictures of faces, faces have a `live_score`.
    pub(crate) result: Option<serde_json::Value>,
    /// Why it was rejected or failed, or why the last attempt of a queued job did.
    pub(crate) problem: Option<Problem>,
}

impl JobView {
    pub(super) fn version(&self) -> Version {
        Version::of(&[self.version])
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.state.is_terminal()
    }
}

/// Where a picture lies, named in one way.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImageView {
    /// An upload.
    #[serde(skip_serializing_if = "Option::is_none")]
    upload_id: Option<UploadId>,
    /// `s3://bucket/key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    s3: Option<String>,
    /// A file of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

impl ImageView {
    /// By the address that a row names; `None` where the picture lies in our own store.
    pub(super) fn of_uri(uri: Option<&str>) -> Option<Self> {
        let uri = uri?;
        let nothing = Self { upload_id: None, s3: None, file: None };
        Some(match uri.strip_prefix("file://") {
            Some(file) => Self { file: Some(file.to_owned()), ..nothing },
            None => Self { s3: Some(uri.to_owned()), ..nothing },
        })
    }
}

impl From<&ImageRef> for ImageView {
    fn from(image: &ImageRef) -> Self {
        let nothing = Self { upload_id: None, s3: None, file: None };
        match image {
            ImageRef::Upload(upload) => Self { upload_id: Some(upload.upload_id), ..nothing },
            ImageRef::Reference { s3, .. } => Self { s3: Some(s3.clone()), ..nothing },
            ImageRef::File { file, .. } => Self { file: Some(file.clone()), ..nothing },
        }
    }
}

impl From<JobWithAnswer> for JobView {
    fn from(JobWithAnswer { job, args, result, problem }: JobWithAnswer) -> Self {
        Self {
            id: job.id,
            collection_id: job.collection_id,
            kind: job.kind,
            state: job.state,
            attempt: job.attempt,
            pipeline: job.pipeline,
            batch_id: job.batch_id,
            item_no: job.item_no,
            image: args.and_then(|args| args.images().first().map(|image| ImageView::from(*image))),
            tag: job.tag,
            cancel_requested: job.cancel_requested,
            version: job.version,
            created_at: instant(job.created_at),
            started_at: job.started_at.map(instant),
            finished_at: job.finished_at.map(instant),
            result,
            problem,
        }
    }
}

/// A job that was just made.
pub(super) fn fresh_view(job: job::Model, args: JobArgs) -> JobView {
    JobWithAnswer { job, args: Some(args), result: None, problem: None }.into()
}

/// Which jobs to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct JobQuery {
    /// Of this collection, by id or name.
    collection: Option<String>,
    /// Of this kind.
    kind: Option<JobKind>,
    /// In this state.
    state: Option<JobState>,
    /// Rows of the page, 1 to 500; 50 where absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// The job of that id, if the grant shows it.
pub(super) async fn load(state: &AppState, grant: &Grant, id: JobId) -> ApiResult<JobView> {
    let found = read::find(&state.db, grant, id).await?;
    found.map(Into::into).ok_or_else(|| ApiError::not_found("job_not_found", format!("there is no job {id}")))
}

/// Lists jobs, newest first.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", security(("api_key" = ["read"]), ("api_key" = ["identify"])), params(JobQuery), responses(
    (status = 200, body = Page<JobView>)))]
pub async fn list(
    State(state): State<AppState>,
    caller: Caller<ReadJobs>,
    Query(query): Query<JobQuery>,
) -> ApiResult<axum::Json<Page<JobView>>> {
    let collection = match &query.collection {
        Some(named) => Some(extract::collection(&state, &caller, named).await?.id),
        None => None,
    };
    let filters = (collection, query.kind, query.state);
    let page = PageQuery::new(query.limit, query.cursor).of(&state.secret_key, "jobs", &filters)?;
    let filter = JobFilter { collection, kind: query.kind, state: query.state };
    let rows = read::list(&state.db, &caller, filter, page.after()?.map(JobId), page.rows()).await?;
    Ok(axum::Json(page.page(rows, |r| r.job.id.0, JobView::from)))
}

/// Shows a job. With `Prefer: wait=N` the answer comes when the job ends, or after N seconds; with `If-None-Match` too, when
/// it is another version than that, or 304 after N seconds.
#[utoipa::path(get, path = "/v1/jobs/{job}", tag = "jobs", security(("api_key" = ["read"]), ("api_key" = ["identify"])),
    params(("job" = JobId, Path), ("Prefer" = Option<String>, Header, description = "wait=N, in seconds (RFC 7240)"),
        ("If-None-Match" = Option<String>, Header, description = "The ETag of the version that is known")),
    responses((status = 200, body = JobView, headers(("ETag" = String, description = "The version"))),
    (status = 304, description = "It is that version still")))]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller<ReadJobs>,
    Path(id): Path<JobId>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let wait = preferred_wait(&headers).map(|w| w.min(Duration::from_secs(state.config.server.max_wait_s)));
    let view = wait_for(&state, &caller, id, wait.unwrap_or_default(), &headers).await?;
    let mut answer = HeaderMap::from_iter([view.version().header()]);
    if let Some(wait) = wait
        && let Ok(value) = HeaderValue::from_str(&format!("wait={}", wait.as_secs()))
    {
        answer.insert(HeaderName::from_static("preference-applied"), value);
    }
    if view.version().is_known(&headers) {
        return Ok((StatusCode::NOT_MODIFIED, answer).into_response());
    }
    if !view.has_ended() {
        answer.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    Ok((answer, axum::Json(view)).into_response())
}

/// Cancels a job: at once while it waits, else as soon as its worker hears of it.
#[utoipa::path(delete, path = "/v1/jobs/{job}", tag = "jobs", security(("api_key" = ["identify"])), params(("job" = JobId, Path)), responses(
    (status = 200, body = JobView, description = "It is cancelled"),
    (status = 202, body = JobView, description = "It runs; its worker has been told")))]
pub async fn cancel(
    State(state): State<AppState>,
    caller: Caller<Identify>,
    Path(id): Path<JobId>,
) -> ApiResult<Response> {
    load(&state, &caller, id).await?;
    let status = match settle::cancel(&state.db, &caller, id).await? {
        Cancel::Done => {
            state.finished.announce(id);
            StatusCode::OK
        }
        Cancel::Requested => StatusCode::ACCEPTED,
        Cancel::NotAllowed => return Err(ApiError::lacks(&[Scope::Write])),
        Cancel::AlreadyFinished => {
            return Err(ApiError::conflict("job_already_finished", "the job has ended; there is nothing to cancel"));
        }
    };
    Ok((status, axum::Json(load(&state, &caller, id).await?)).into_response())
}

/// The job when it has ended, or is not what the client knows by an `If-None-Match`, or as it is after `wait`.
pub(crate) async fn wait_for(
    state: &AppState,
    grant: &Grant,
    id: JobId,
    wait: Duration,
    headers: &HeaderMap,
) -> ApiResult<JobView> {
    let deadline = Instant::now() + wait;
    let knows_one = headers.contains_key(header::IF_NONE_MATCH);
    let mut listener = state.finished.listen();
    loop {
        let view = load(state, grant, id).await?;
        let is_news = knows_one && !view.version().is_known(headers);
        if view.has_ended() || is_news || Instant::now() >= deadline || state.stop.is_cancelled() {
            return Ok(view);
        }
        tokio::select! {
            () = listener.wait_for(id) => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = state.stop.cancelled() => {}
        }
    }
}

/// N of a `Prefer: wait=N` among other preferences; one that makes no sense is ignored, as RFC 7240 wants it.
fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let preferences = headers.get_all("prefer").iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    preferences
        .filter_map(|p| p.split(';').next()?.trim().split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"))
        .and_then(|(_, seconds)| seconds.trim().trim_matches('"').parse().ok())
        .map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_is_found_among_preferences() {
        let wait = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", HeaderValue::from_static(value));
            preferred_wait(&headers).map(|d| d.as_secs())
        };
        assert_eq!(wait("wait=20"), Some(20));
        assert_eq!(wait("respond-async, wait=5"), Some(5));
        assert_eq!(wait("Wait = \"7\"; x=y"), Some(7));
        assert_eq!(wait("wait=soon"), None);
        assert_eq!(wait("return=minimal"), None);
    }
}
