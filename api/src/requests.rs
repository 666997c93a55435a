//! The outermost layer: every request gets an id, a log line, and an answer even where a handler panics.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use shared::telemetry::metrics;
use shared::telemetry::trace::TraceContext;
use tracing::Instrument;
use uuid::Uuid;

use crate::auth::RATE_LIMIT;
use crate::buffered::HeldRoom;
use crate::error::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Runs the request.
pub(crate) async fn observe(mut request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let method = request.method().clone();
    // The pattern and not the path: a path may hold a name.
    let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let trace = trace_of(&request);
    request.extensions_mut().insert(trace.clone());
    let room = HeldRoom::default();
    request.extensions_mut().insert(room.clone());
    let span = tracing::info_span!("request", request.id = %id, trace.id = trace.trace_id(), http.method = %method, http.route = path.as_str());
    async move {
        let began = Instant::now();
        // No name or id holds one, and databases differ in what they make of it.
        let answer = if request.uri().to_string().contains("%00") {
            Ok(ApiError::bad_request("bad_request", "the path or query holds a NUL character").into_response())
        } else {
            AssertUnwindSafe(next.run(request)).catch_unwind().await
        };
        drop(room);
        let mut response = match answer {
            Ok(response) => with_problem(response, &id),
            Err(_) => ApiError::internal(&std::io::Error::other("a handler panicked")).render(&id),
        };
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        let status = response.status().as_u16();
        let took = began.elapsed();
        metrics::http_answered(path, method_name(&method), status, took);
        tracing::debug!(http.status = status, duration_ms = took.as_secs_f64() * 1e3, "answered");
        response
    }
    .instrument(span)
    .await
}

/// The caller's trace, or a new one.
fn trace_of(request: &Request) -> TraceContext {
    let header = request.headers().get("traceparent").and_then(|v| v.to_str().ok());
    header.and_then(TraceContext::continued).unwrap_or_default()
}

/// A label of few values: what a client invents is one of them.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
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
        let mut problem = error.render(id);
        for name in RATE_LIMIT {
            if let Some(value) = response.headers_mut().remove(&name) {
                problem.headers_mut().insert(name, value);
            }
        }
        return problem;
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
