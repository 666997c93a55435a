//! Is the process alive, and can it do its work?

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::state::AppState;

/// Longest time one check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// How the server is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok` or `unavailable`.
    status: &'static str,
    /// What was tried.
    checks: Vec<CheckView>,
}

/// One thing that was tried.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckView {
    /// What.
    name: &'static str,
    /// Whether it works.
    ok: bool,
    /// What is wrong.
    detail: Option<String>,
}

/// Says that the process answers.
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, body = Health)))]
pub async fn healthz() -> axum::Json<Health> {
    axum::Json(Health { status: "ok", checks: Vec::new() })
}

/// Tries the database, the object store and the models.
#[utoipa::path(get, path = "/readyz", tag = "health", responses(
    (status = 200, body = Health), (status = 503, body = Health)))]
pub async fn readyz(State(state): State<AppState>) -> (StatusCode, axum::Json<Health>) {
    let database = async { state.db.ping().await.map_err(|e| e.to_string()) };
    let mut checks = vec![view("database", within_time(database).await)];
    for check in &state.checks {
        checks.push(view(check.name, within_time((check.run)()).await));
    }
    if checks.iter().all(|c| c.ok) {
        return (StatusCode::OK, axum::Json(Health { status: "ok", checks }));
    }
    (StatusCode::SERVICE_UNAVAILABLE, axum::Json(Health { status: "unavailable", checks }))
}

async fn within_time(check: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let late = || format!("no answer within {} s", CHECK_TIMEOUT.as_secs());
    tokio::time::timeout(CHECK_TIMEOUT, check).await.unwrap_or_else(|_| Err(late()))
}

fn view(name: &'static str, found: Result<(), String>) -> CheckView {
    CheckView { name, ok: found.is_ok(), detail: found.err() }
}
