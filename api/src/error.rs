//! What a client is told when a request fails: RFC 9457 problems with stable codes. The only place of error statuses.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use shared::access::Scope;
use shared::db::api_keys::usage::OverLimit;
use utoipa::ToSchema;

/// When a client with too many jobs may try again: an interactive one takes less.
const ENDED_SOON: Duration = Duration::from_secs(1);

/// A failed request. A handler returns it; the outermost layer writes the body, since only that knows the request's id.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    detail: String,
    errors: Vec<FieldError>,
    retry_after_s: Option<u64>,
}

/// One field that a request has wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// Which one: a JSON pointer into the body, or the name of a parameter.
    pub pointer: String,
    /// What is wrong with it and what would be right.
    pub detail: String,
}

/// The body of an error answer, `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemBody {
    /// `urn:face-id:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// A stable code for programs.
    pub code: String,
    /// What happened and what to do about it, for people.
    pub detail: String,
    /// The request's id, also in `X-Request-Id` and in the server's log.
    pub request_id: String,
    /// The fields that are wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// What a handler returns.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), errors: Vec::new(), retry_after_s: None }
    }

    /// 400: the request cannot be read.
    pub fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 401, whatever is wrong with the key: who has none learns nothing of those that there are.
    pub fn unauthenticated() -> Self {
        let detail = "send an API key that is valid: Authorization: Bearer fid_...";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
    }

    /// 403: the key is good, and not for this.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// 403: the key has none of these scopes.
    pub fn lacks(any_of: &[Scope]) -> Self {
        let names: Vec<_> = any_of.iter().map(|scope| scope.as_str()).collect();
        Self::forbidden(format!("the key does not have the scope {}, which this needs", names.join(" or ")))
    }

    /// 429: not now.
    pub fn too_many(code: &'static str, detail: impl Into<String>, wait: Duration) -> Self {
        // Up to the next second: who comes a moment too early would be refused again.
        let retry_after_s = Some(wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
        Self { retry_after_s, ..Self::new(StatusCode::TOO_MANY_REQUESTS, code, detail) }
    }

    /// 503: more is asked for than is done.
    pub fn overloaded(code: &'static str, detail: impl Into<String>, wait: Duration) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, ..Self::too_many(code, detail, wait) }
    }

    /// 404: what the path or body names is not there.
    pub fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// 409: another request with the same key is being answered.
    pub fn key_in_flight() -> Self {
        let detail =
            "a request with this Idempotency-Key is being answered; send it again, and it is given that answer";
        Self { retry_after_s: Some(1), ..Self::new(StatusCode::CONFLICT, "idempotency_key_in_flight", detail) }
    }

    /// 409: it cannot be done in the present state.
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    /// 410: what the path or body names was there, and something else took its place.
    pub fn gone(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, code, detail)
    }

    /// 412: it was changed since the client looked.
    pub fn precondition_failed() -> Self {
        let detail = "it was changed since that ETag was given; read it again and decide anew";
        Self::new(StatusCode::PRECONDITION_FAILED, "version_mismatch", detail)
    }

    /// 422: one field is wrong.
    pub fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        let (pointer, detail) = (pointer.into(), detail.into());
        let text = format!("{pointer} {detail}");
        let errors = vec![FieldError { pointer, detail }];
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", text) }
    }

    /// 422 with a code of its own.
    pub fn unprocessable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    /// 413.
    pub fn body_too_large(limit: usize) -> Self {
        let detail = format!("the body is longer than {limit} bytes; send a smaller picture");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    }

    /// 408.
    pub fn body_timeout(seconds: u64) -> Self {
        let detail = format!("the body did not arrive within {seconds} s; send it again");
        Self::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
    }

    /// 415.
    pub fn unsupported_media_type(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, code, detail)
    }

    /// 503: try again.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self { retry_after_s: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail) }
    }

    /// 500: logged here in full; the client is told nothing of it.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        tracing::error!(error = text, "a request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the server failed; try again, and look for the request's id in its log",
        )
    }

    /// The problem for a status that the router itself answered.
    pub(crate) fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => {
                Self::new(status, "no_such_route", "there is no such path; /openapi.json lists all")
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                Self::new(status, "method_not_allowed", "this path has other methods; the Allow header lists them")
            }
            _ => Self::new(status, "bad_request", "the request could not be read"),
        }
    }

    /// Whether it says that what was asked for is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// The code and the detail of what the request itself has wrong.
    ///
    /// # Errors
    /// It is another failure, or one of limits: this again.
    pub(crate) fn told(self) -> Result<(String, String), Self> {
        if self.status.is_client_error() && self.status != StatusCode::TOO_MANY_REQUESTS {
            return Ok((self.code.to_owned(), self.detail));
        }
        Err(self)
    }

    /// The answer, with its body.
    pub(crate) fn render(self, request_id: &str) -> Response {
        let body = ProblemBody {
            kind: format!("urn:face-id:problem:{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            code: self.code.to_owned(),
            detail: self.detail,
            request_id: request_id.to_owned(),
            errors: self.errors,
        };
        let mut response = (self.status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<sea_orm::DbErr> for ApiError {
    fn from(error: sea_orm::DbErr) -> Self {
        if shared::db::is_outage(&error) {
            tracing::warn!(%error, "the database is out of reach or busy");
            return Self::unavailable("the server is busy or its database out of reach; try again in a second");
        }
        if matches!(error.sql_err(), Some(sea_orm::SqlErr::ForeignKeyConstraintViolation(_))) {
            return Self::conflict(
                "gone_meanwhile",
                "what the request names was deleted while it was answered; look again",
            );
        }
        Self::internal(&error)
    }
}

impl From<OverLimit> for ApiError {
    fn from(over: OverLimit) -> Self {
        match over {
            OverLimit::JobsInFlight(limit) => {
                let detail =
                    format!("{limit} jobs of this key have not ended, and more it may not have; wait for one of them");
                Self::too_many("too_many_jobs", detail, ENDED_SOON)
            }
            OverLimit::ImagesOfDay(limit, rest) => {
                let detail =
                    format!("this key may have {limit} pictures looked at in a day (UTC), and these are spent");
                Self::too_many("daily_images_spent", detail, rest)
            }
        }
    }
}

impl From<shared::objects::ObjectError> for ApiError {
    fn from(error: shared::objects::ObjectError) -> Self {
        if error.is_transient() {
            tracing::warn!(%error, "the object store is out of reach");
            return Self::unavailable("the object store is out of reach; try again in a second");
        }
        Self::internal(&error)
    }
}
