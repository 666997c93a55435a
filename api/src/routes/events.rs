//! Streams of events (Server-Sent Events): where a job or a batch stands, each time that it changes, until it has ended.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use shared::access::Grant;
use shared::finished::FinishedListener;
use shared::ids::{BatchId, JobId};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::{batches, jobs};
use crate::auth::{Caller, Read, ReadJobs};
use crate::error::{ApiError, ApiResult};
use crate::etag::Version;
use crate::extract::Path;
use crate::state::AppState;

/// How often a stream looks for itself, whatever it is told.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a stream on which nothing happens says that it stands.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a stream stands: a client that comes back goes on where it was, as far as its key still allows.
const LONGEST: Duration = Duration::from_secs(60);

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What is watched.
#[derive(Clone, Copy)]
enum Subject {
    Job(JobId),
    Batch(BatchId),
}

/// One event of a stream, by its fields.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "it describes what is written piece by piece")]
pub struct StreamedEvent {
    /// `job` or `batch`; `gone` where that was deleted meanwhile.
    event: String,
    /// The version.
    id: Option<String>,
    /// As its own route shows it, in JSON.
    data: String,
}

/// Where it stands.
struct Seen {
    version: Version,
    has_ended: bool,
    /// As its own route shows it, in JSON.
    data: String,
}

/// A stream under way.
struct Watch {
    state: AppState,
    grant: Arc<Grant>,
    subject: Subject,
    ends: FinishedListener,
    /// The version that the client has.
    told: Option<String>,
    over: bool,
    /// A batch that was just told has changed again at the next look.
    pauses: bool,
    until: Instant,
    _place: OwnedSemaphorePermit,
}

/// Streams a job: an event `job` now and at each change, with its version as `id`, until it has ended; `gone` where it was
/// deleted meanwhile. The stream closes after a minute, for the client to come back. One that does so
/// with `Last-Event-ID` is told what is newer, and nothing more (204) where it knows the end.
#[utoipa::path(get, path = "/v1/jobs/{job}/events", tag = "jobs",
    security(("api_key" = ["read"]), ("api_key" = ["identify"])), params(("job" = JobId, Path),
    ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that came")), responses(
    (status = 200, body = StreamedEvent, content_type = "text/event-stream"),
    (status = 204, description = "It has ended, and the client knows")))]
pub async fn of_job(
    State(state): State<AppState>,
    caller: Caller<ReadJobs>,
    Path(id): Path<JobId>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    open(state, caller.into_grant(), Subject::Job(id), &headers).await
}

/// Streams a batch: an event `batch` now and at each change, at most one a second, until it has ended. See the events of
/// a job.
#[utoipa::path(get, path = "/v1/batches/{batch}/events", tag = "batches",
    security(("api_key" = ["read"])), params(("batch" = BatchId, Path),
    ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that came")), responses(
    (status = 200, body = StreamedEvent, content_type = "text/event-stream"),
    (status = 204, description = "It has ended, and the client knows")))]
pub async fn of_batch(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path(id): Path<BatchId>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    open(state, caller.into_grant(), Subject::Batch(id), &headers).await
}

async fn open(state: AppState, grant: Arc<Grant>, subject: Subject, headers: &HeaderMap) -> ApiResult<Response> {
    let seen = look(&state, &grant, subject).await?;
    let told = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
    if seen.has_ended && told.as_deref() == Some(seen.version.as_str()) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let place = state.places.event_streams.clone().try_acquire_owned().map_err(|_| {
        ApiError::unavailable("as many streams of events as this server allows are open; poll, or try again later")
    })?;
    let ends = state.finished.listen();
    let until = Instant::now() + LONGEST;
    let watch = Watch { state, grant, subject, ends, told, over: false, pauses: false, until, _place: place };
    let headers = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // For proxies that would collect events until a buffer is full.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    let stream = Sse::new(events(watch)).keep_alive(KeepAlive::new().interval(HEARTBEAT));
    Ok((headers, stream).into_response())
}

fn events(watch: Watch) -> impl Stream<Item = Result<Event, Infallible>> {
    futures_util::stream::unfold(watch, |mut watch| async move {
        let event = watch.next().await?;
        Some((Ok(event), watch))
    })
}

impl Watch {
    /// The next change; none once it has ended, or the process stops.
    async fn next(&mut self) -> Option<Event> {
        if std::mem::take(&mut self.pauses) {
            self.wait().await;
        }
        while !self.over && !self.state.stop.is_cancelled() && Instant::now() < self.until {
            match look(&self.state, &self.grant, self.subject).await {
                Ok(seen) if self.told.as_deref() != Some(seen.version.as_str()) => return Some(self.tell(&seen)),
                Ok(seen) => self.over = seen.has_ended,
                // Deleted while it was watched.
                Err(error) if error.is_not_found() => {
                    self.over = true;
                    return Some(Event::default().event("gone").data("{}"));
                }
                Err(error) => tracing::debug!(?error, "look at what is watched"),
            }
            if !self.over {
                self.wait().await;
            }
        }
        None
    }

    fn tell(&mut self, seen: &Seen) -> Event {
        self.told = Some(seen.version.as_str().to_owned());
        self.over = seen.has_ended;
        let name = match self.subject {
            Subject::Job(_) => "job",
            Subject::Batch(_) => "batch",
        };
        self.pauses = matches!(self.subject, Subject::Batch(_)) && !self.over;
        Event::default().event(name).id(seen.version.as_str()).data(&seen.data)
    }

    /// Until it may have changed.
    async fn wait(&mut self) {
        let ended = async {
            match self.subject {
                Subject::Job(job) => self.ends.wait_for(job).await,
                Subject::Batch(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ended => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = self.state.stop.cancelled() => {}
        }
    }
}

async fn look(state: &AppState, grant: &Grant, subject: Subject) -> ApiResult<Seen> {
    let (version, has_ended, data) = match subject {
        Subject::Job(id) => {
            let job = jobs::load(state, grant, id).await?;
            (job.version(), job.has_ended(), serde_json::to_string(&job))
        }
        Subject::Batch(id) => {
            let batch = batches::load(state, grant, id).await?;
            (batch.version(), batch.has_ended(), serde_json::to_string(&batch))
        }
    };
    Ok(Seen { version, has_ended, data: data.map_err(|error| ApiError::internal(&error))? })
}
