//! The worker's own small HTTP server: is it alive, can it take work, what has it done?

use std::sync::Arc;

use anyhow::Context as _;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use shared::health::{Check, Health};
use shared::telemetry::metrics;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Answers `/healthz`, `/readyz` and `/metrics` on `listener` until `stop`.
///
/// # Errors
/// The listener fails.
pub async fn serve(listener: TcpListener, checks: Vec<Check>, stop: CancellationToken) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/healthz", get(async || Json(Health::alive())))
        .route("/readyz", get(readyz))
        .route("/metrics", get(async || ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::render())))
        .with_state(Arc::new(checks));
    let stopped = async move { stop.cancelled().await };
    axum::serve(listener, router).with_graceful_shutdown(stopped).await.context("serve the probes")
}

async fn readyz(State(checks): State<Arc<Vec<Check>>>) -> impl IntoResponse {
    let health = Health::of(&checks).await;
    let status = if health.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health))
}
