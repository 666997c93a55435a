//! The outermost layer: every request gets an id, a log line, and an answer even where a handler panics.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::FutureExt;
use tracing::Instrument;
use uuid::Uuid;

use crate::error::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Runs the request.
pub(crate) async fn observe(request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let method = request.method().clone();
    // The pattern and not the path: a path may hold a name.
    let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!("request", request.id = %id, http.method = %method, http.route = path);
    async move {
        let began = Instant::now();
        let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
        let mut response = match answer {
            Ok(response) => with_problem(response, &id),
            Err(_) => ApiError::internal(&std::io::Error::other("a handler panicked")).render(&id),
        };
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        let status = response.status().as_u16();
        tracing::debug!(http.status = status, duration_ms = began.elapsed().as_secs_f64() * 1e3, "answered");
        response
    }
    .instrument(span)
    .await
}

/// The client's id where it is sane, else a new one.
fn request_id(request: &Request) -> String {
    let sane = |id: &&str| {
        (1..=64).contains(&id.len()) && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let given = request.headers().get(REQUEST_ID).and_then(|v| v.to_str().ok()).filter(sane);
    given.map_or_else(|| Uuid::now_v7().to_string(), str::to_owned)
}

/// Writes the body of a failed request, the router's own failures among them.
fn with_problem(mut response: Response, id: &str) -> Response {
    let status = response.status();
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        return error.render(id);
    }
    let is_ours = response.headers().get("content-type").is_some_and(|t| t.as_bytes().starts_with(b"application/"));
    if (status.is_client_error() || status.is_server_error()) && !is_ours {
        let mut problem = ApiError::of_status(status).render(id);
        if let Some(allow) = response.headers_mut().remove("allow") {
            problem.headers_mut().insert("allow", allow);
        }
        return problem;
    }
    response
}
