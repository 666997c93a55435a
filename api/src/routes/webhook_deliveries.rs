//! What webhook endpoints were told, and telling it again.

use std::time::UNIX_EPOCH;

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use shared::db::webhooks::endpoints::EndpointState;
use shared::db::webhooks::log::{self, AttemptRow, Delivery, DeliveryState, MOST_RECOVERED, Redelivery};
use shared::ids::{WebhookDeliveryId, WebhookEndpointId, WebhookEventId};
use utoipa::{IntoParams, ToSchema};

use super::{instant, webhooks};
use crate::auth::Administrator;
use crate::cursor::{Page, PageQuery};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Json, Path, Query};
use crate::state::AppState;

/// Which deliveries to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DeliveryQuery {
    /// In this state.
    state: Option<DeliveryState>,
    /// Rows of the page, 1 to 500; 50 where absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// The telling of one event to one endpoint.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeliveryView {
    id: WebhookDeliveryId,
    endpoint_id: WebhookEndpointId,
    /// The `webhook-id` header.
    event_id: WebhookEventId,
    event_type: String,
    state: DeliveryState,
    /// The exact body that is sent.
    body: String,
    created_at: String,
    /// When it is tried next; null once it has ended.
    next_attempt_at: Option<String>,
    finished_at: Option<String>,
    /// Oldest first.
    attempts: Vec<AttemptView>,
}

/// One attempt.
#[derive(Debug, Serialize, ToSchema)]
pub struct AttemptView {
    attempt: i32,
    at: String,
    /// The answer's status; null where there was none.
    status: Option<i32>,
    /// A stable code, a colon, and what happened; null where it was told.
    error: Option<String>,
    latency_ms: i64,
    /// The first kilobyte of the answer's body.
    response: Option<String>,
}

/// Since when to send again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Recovery {
    /// RFC 3339, in UTC: `2026-11-26T00:00:00Z`.
    #[schema(format = DateTime)]
    since: String,
}

/// How much is sent again.
#[derive(Debug, Serialize, ToSchema)]
pub struct Recovered {
    deliveries: u64,
    /// There may be more: call it again.
    more: bool,
}

/// Lists what a webhook endpoint was told, newest first.
#[utoipa::path(get, path = "/v1/webhook-endpoints/{endpoint}/deliveries", operation_id = "list_deliveries", tag = "webhooks", security(("api_key" = ["admin"])),
    params(("endpoint" = WebhookEndpointId, Path), DeliveryQuery), responses(
    (status = 200, body = Page<DeliveryView>)))]
pub async fn list(
    State(state): State<AppState>,
    _: Administrator,
    Path(endpoint): Path<WebhookEndpointId>,
    Query(query): Query<DeliveryQuery>,
) -> ApiResult<axum::Json<Page<DeliveryView>>> {
    webhooks::find(&state, endpoint).await?;
    let filters = (endpoint, query.state);
    let page = PageQuery::new(query.limit, query.cursor).of(&state.secret_key, "webhook deliveries", &filters)?;
    let before = page.after()?.map(WebhookDeliveryId);
    let rows = log::list(&state.db, endpoint, query.state, before, page.rows()).await?;
    Ok(axum::Json(page.page(rows, |delivery| delivery.row.id.0, view)))
}

/// Shows a delivery.
#[utoipa::path(get, path = "/v1/webhook-deliveries/{delivery}", operation_id = "get_delivery", tag = "webhooks", security(("api_key" = ["admin"])),
    params(("delivery" = WebhookDeliveryId, Path)), responses(
    (status = 200, body = DeliveryView)))]
pub async fn get(
    State(state): State<AppState>,
    _: Administrator,
    Path(id): Path<WebhookDeliveryId>,
) -> ApiResult<axum::Json<DeliveryView>> {
    Ok(axum::Json(view(log::find(&state.db, id).await?.ok_or_else(|| not_found(id))?)))
}

/// Sends a delivery again that has ended, with the same id and body.
#[utoipa::path(post, path = "/v1/webhook-deliveries/{delivery}/redeliver", tag = "webhooks", security(("api_key" = ["admin"])),
    params(("delivery" = WebhookDeliveryId, Path)), responses(
    (status = 202, body = DeliveryView)))]
pub async fn redeliver(
    State(state): State<AppState>,
    _: Administrator,
    Path(id): Path<WebhookDeliveryId>,
) -> ApiResult<(StatusCode, axum::Json<DeliveryView>)> {
    match log::redeliver(&state.db, id).await? {
        Redelivery::Begun => {}
        Redelivery::Missing => return Err(not_found(id)),
        Redelivery::Disabled => return Err(webhooks::disabled()),
        Redelivery::Pending => {
            return Err(ApiError::conflict(
                "webhook_delivery_pending",
                "the delivery has not ended; it is tried again",
            ));
        }
    }
    let delivery = log::find(&state.db, id).await?.ok_or_else(|| not_found(id))?;
    Ok((StatusCode::ACCEPTED, axum::Json(view(delivery))))
}

/// Sends everything again that an endpoint was not told since a moment: what failed, and what was dropped when it was
/// disabled. The oldest ten thousand at once.
#[utoipa::path(post, path = "/v1/webhook-endpoints/{endpoint}/recover", tag = "webhooks", security(("api_key" = ["admin"])),
    params(("endpoint" = WebhookEndpointId, Path)), request_body = Recovery, responses(
    (status = 202, body = Recovered)))]
pub async fn recover(
    State(state): State<AppState>,
    _: Administrator,
    Path(endpoint): Path<WebhookEndpointId>,
    Json(recovery): Json<Recovery>,
) -> ApiResult<(StatusCode, axum::Json<Recovered>)> {
    let since = since(&recovery.since)?;
    if webhooks::find(&state, endpoint).await?.state == EndpointState::Disabled {
        return Err(webhooks::disabled());
    }
    let deliveries = log::recover(&state.db, endpoint, since).await?;
    tracing::info!(webhook.endpoint.id = %endpoint, deliveries, "webhook deliveries are sent again");
    Ok((StatusCode::ACCEPTED, axum::Json(Recovered { deliveries, more: deliveries >= MOST_RECOVERED })))
}

/// Microseconds since the epoch.
fn since(text: &str) -> ApiResult<i64> {
    let wrong = || ApiError::invalid("#/since", "must be an instant in UTC like 2026-11-26T00:00:00Z");
    let at = humantime::parse_rfc3339(text).map_err(|_| wrong())?;
    let micros = at.duration_since(UNIX_EPOCH).map_err(|_| wrong())?.as_micros();
    i64::try_from(micros).map_err(|_| wrong())
}

fn not_found(id: WebhookDeliveryId) -> ApiError {
    ApiError::not_found("webhook_delivery_not_found", format!("there is no webhook delivery {id}"))
}

fn view(Delivery { row, attempts }: Delivery) -> DeliveryView {
    DeliveryView {
        id: row.id,
        endpoint_id: row.endpoint_id,
        event_id: row.event_id,
        event_type: row.event_type,
        state: row.state,
        body: row.body,
        created_at: instant(row.created_at),
        next_attempt_at: (row.state == DeliveryState::Pending).then(|| instant(row.run_at)),
        finished_at: row.finished_at.map(instant),
        attempts: attempts.into_iter().map(attempt).collect(),
    }
}

fn attempt(row: AttemptRow) -> AttemptView {
    AttemptView {
        attempt: row.attempt,
        at: instant(row.at),
        status: row.status,
        error: row.error,
        latency_ms: row.latency_ms,
        response: row.response,
    }
}
