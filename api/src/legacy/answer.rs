//! Answers in the old words, with statuses that tell the truth. What has gone wrong is told beside them, in fields that the
//! front end does not look at.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use shared::job::JobState;

use crate::routes::jobs::JobView;

/// The one face of a picture is that person's.
pub(super) const FOUND: &str = "find result!";
/// It is nobody's for certain.
pub(super) const NOT_FOUND: &str = "no result!";
/// Nobody is registered.
pub(super) const EMPTY: &str = "No face in database!";
/// The picture could not be looked at.
pub(super) const NOT_RECOGNISED: &str = "recognition failed!";
/// The face is stored.
pub(super) const SAVED: &str = "new face has been saved!";
/// It is not.
pub(super) const NOT_SAVED: &str = "Database Info saved Error!";
/// The person is gone.
pub(super) const DELETED: &str = "delete success!";
/// Every picture of the folder is registered.
pub(super) const ALL_SAVED: &str = "all face has been saved!";
/// Everybody is gone.
pub(super) const CLEARED: &str = "all data has been cleaned!";

/// Names the fields of a request that were not used.
const IGNORED: HeaderName = HeaderName::from_static("x-face-id-ignored");

/// What is told when something is wrong.
#[derive(Debug, Serialize)]
pub(super) struct Trouble {
    pub(super) detail: &'static str,
    /// A stable code: of `docs/API.md`, or `not_ended` or `source_empty`.
    pub(super) code: String,
    /// What happened, for people.
    pub(super) reason: String,
    /// Of many pictures: which of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) problems: Vec<PictureTrouble>,
}

/// What is wrong with one of many pictures.
#[derive(Debug, Serialize)]
pub(super) struct PictureTrouble {
    pub(super) file: String,
    pub(super) code: String,
    pub(super) reason: String,
}

/// All went well.
pub(super) fn told(detail: &'static str) -> Response {
    axum::Json(serde_json::json!({ "detail": detail })).into_response()
}

/// The request was understood, and cannot be done: 422.
pub(super) fn refused(detail: &'static str, code: &str, reason: impl Into<String>) -> Response {
    let trouble = Trouble { detail, code: code.to_owned(), reason: reason.into(), problems: Vec::new() };
    (StatusCode::UNPROCESSABLE_ENTITY, axum::Json(trouble)).into_response()
}

/// The same of many pictures, some of which cannot be taken.
pub(super) fn many_refused(trouble: Trouble) -> Response {
    (StatusCode::UNPROCESSABLE_ENTITY, axum::Json(trouble)).into_response()
}

/// It is not done yet, and goes on: 503 with `Retry-After`.
pub(super) fn not_ended(detail: &'static str, reason: impl Into<String>) -> Response {
    let trouble = Trouble { detail, code: "not_ended".to_owned(), reason: reason.into(), problems: Vec::new() };
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], axum::Json(trouble)).into_response()
}

/// A job that did not succeed: 422 where that is due to the picture, 503 where it has not ended, else 500.
pub(super) fn unsuccessful(detail: &'static str, job: &JobView) -> Response {
    if !job.has_ended() {
        return not_ended(detail, format!("job {} has not ended; it goes on", job.id));
    }
    let (code, reason) = cause(job);
    let trouble = Trouble { detail, code, reason, problems: Vec::new() };
    let status = match job.state {
        JobState::Rejected => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, axum::Json(trouble)).into_response()
}

/// Why a job that has ended did not succeed: code and text.
pub(super) fn cause(job: &JobView) -> (String, String) {
    match &job.problem {
        Some(problem) => (problem.code.clone(), problem.detail.clone()),
        None => (job.state.as_str().to_owned(), format!("job {} was {}", job.id, job.state.as_str())),
    }
}

/// Tells that a field of the request was not used.
pub(super) fn ignoring(field: Option<&'static str>, mut response: Response) -> Response {
    if let Some(field) = field {
        response.headers_mut().insert(IGNORED, HeaderValue::from_static(field));
    }
    response
}
