//! What was told to whom, as clients see it; and telling it again.

use std::collections::HashMap;
use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::db::{Db, execute, micros, placeholders, statement};
use crate::ids::{WebhookDeliveryId, WebhookEndpointId, WebhookEventId};

/// Deliveries that one call sends again.
pub const MOST_RECOVERED: u64 = 10_000;

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, EnumIter, DeriveActiveEnum, ToSchema)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It is sent, or waits to be.
    #[sea_orm(string_value = "pending")]
    Pending,
    /// The endpoint has answered with a 2xx.
    #[sea_orm(string_value = "delivered")]
    Delivered,
    /// Every attempt has failed.
    #[sea_orm(string_value = "failed")]
    Failed,
    /// The endpoint was disabled before it was told.
    #[sea_orm(string_value = "dropped")]
    Dropped,
}

/// A delivery with its event and its attempts.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Delivery {
    pub row: DeliveryRow,
    pub attempts: Vec<AttemptRow>,
}

/// A row of `webhook_deliveries` with its event.
#[derive(Clone, Debug, FromQueryResult)]
#[expect(missing_docs, reason = "the names say it")]
pub struct DeliveryRow {
    pub id: WebhookDeliveryId,
    pub event_id: WebhookEventId,
    pub endpoint_id: WebhookEndpointId,
    pub state: DeliveryState,
    pub attempt: i32,
    /// When it is tried next, while it is pending.
    pub run_at: i64,
    pub created_at: i64,
    pub finished_at: Option<i64>,
    pub event_type: String,
    pub body: String,
}

/// A row of `webhook_attempts`.
#[derive(Clone, Debug, FromQueryResult)]
#[expect(missing_docs, reason = "the names say it")]
pub struct AttemptRow {
    pub delivery_id: WebhookDeliveryId,
    pub attempt: i32,
    pub at: i64,
    pub status: Option<i32>,
    pub error: Option<String>,
    pub latency_ms: i64,
    pub response: Option<String>,
}

/// What became of the wish to send a delivery again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redelivery {
    /// It waits to be sent.
    Begun,
    /// It is pending anyway.
    Pending,
    /// Its endpoint is disabled.
    Disabled,
    /// There is no such delivery.
    Missing,
}

const DELIVERY: &str =
    "SELECT d.id, d.event_id, d.endpoint_id, d.state, d.attempt, d.run_at, d.created_at, d.finished_at,
        e.type AS event_type, e.body
    FROM webhook_deliveries d JOIN webhook_events e ON e.id = d.event_id";

/// Up to `limit` deliveries of an endpoint that were made before `before`, newest first.
pub async fn list(
    db: &Db,
    endpoint: WebhookEndpointId,
    state: Option<DeliveryState>,
    before: Option<WebhookDeliveryId>,
    limit: u64,
) -> Result<Vec<Delivery>, DbErr> {
    // There may be few of these among millions; said so, they are found by their own index.
    let is_undelivered = matches!(state, Some(DeliveryState::Failed | DeliveryState::Dropped));
    let undelivered = if is_undelivered { "AND d.state IN ('failed', 'dropped')" } else { "" };
    let sql = format!(
        "{DELIVERY} WHERE d.endpoint_id = $1 AND d.id < $2 AND ($3 IS NULL OR d.state = $3) {undelivered}
         ORDER BY d.id DESC LIMIT {limit}"
    );
    let before = before.unwrap_or(WebhookDeliveryId(Uuid::max()));
    let state: Option<String> = state.as_ref().map(ActiveEnum::to_value);
    let values = [endpoint.into(), before.into(), state.into()];
    let rows = DeliveryRow::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await?;
    with_attempts(db, rows).await
}

/// The delivery of that id.
pub async fn find(db: &Db, id: WebhookDeliveryId) -> Result<Option<Delivery>, DbErr> {
    let sql = format!("{DELIVERY} WHERE d.id = $1");
    let rows = DeliveryRow::find_by_statement(statement(&db.read, &sql, [id.into()])).all(&db.read).await?;
    Ok(with_attempts(db, rows).await?.pop())
}

async fn with_attempts(db: &Db, rows: Vec<DeliveryRow>) -> Result<Vec<Delivery>, DbErr> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT * FROM webhook_attempts WHERE delivery_id IN ({}) ORDER BY delivery_id, attempt",
        placeholders(1, rows.len())
    );
    let ids = rows.iter().map(|row| Value::from(row.id));
    let mut attempts: HashMap<WebhookDeliveryId, Vec<AttemptRow>> = HashMap::new();
    for row in AttemptRow::find_by_statement(statement(&db.read, &sql, ids)).all(&db.read).await? {
        attempts.entry(row.delivery_id).or_default().push(row);
    }
    Ok(rows.into_iter().map(|row| Delivery { attempts: attempts.remove(&row.id).unwrap_or_default(), row }).collect())
}

/// What begins a round anew: the schedule of attempts from its start.
const AGAIN: &str = "UPDATE webhook_deliveries SET state = 'pending', finished_at = NULL, run_at = {now},
    begun_at_attempt = attempt";

/// Sends a delivery again that has ended, however it did.
pub async fn redeliver(db: &Db, id: WebhookDeliveryId) -> Result<Redelivery, DbErr> {
    let sql = format!(
        "{AGAIN} WHERE id = $1 AND state <> 'pending'
         AND EXISTS (SELECT 1 FROM webhook_endpoints e WHERE e.id = endpoint_id AND e.state <> 'disabled')"
    );
    if execute(&db.write, &sql, [id.into()]).await? > 0 {
        return Ok(Redelivery::Begun);
    }
    Ok(match find(db, id).await? {
        None => Redelivery::Missing,
        Some(delivery) if delivery.row.state == DeliveryState::Pending => Redelivery::Pending,
        Some(_) => Redelivery::Disabled,
    })
}

/// Sends the endpoint's oldest deliveries again that failed or were dropped, of events since `since`; how many. As many as
/// [`MOST_RECOVERED`]: there may be more.
pub async fn recover(db: &Db, endpoint: WebhookEndpointId, since: i64) -> Result<u64, DbErr> {
    let sql = format!(
        "{AGAIN} WHERE id IN (SELECT id FROM webhook_deliveries WHERE endpoint_id = $1 AND created_at >= $2
            AND state IN ('failed', 'dropped') ORDER BY id LIMIT {MOST_RECOVERED})
         AND EXISTS (SELECT 1 FROM webhook_endpoints e WHERE e.id = $1 AND e.state <> 'disabled')"
    );
    execute(&db.write, &sql, [endpoint.into(), since.into()]).await
}

/// Deletes up to `limit` events that happened more than `keep` ago, with their deliveries. What an enabled endpoint has yet to
/// be told stays; what waits for one that is paused does not.
pub async fn delete_old(db: &Db, keep: Duration, limit: u64) -> Result<u64, DbErr> {
    let sql = format!(
        "DELETE FROM webhook_events WHERE id IN
            (SELECT id FROM webhook_events v WHERE created_at < {{now}} - $1 AND NOT EXISTS
                (SELECT 1 FROM webhook_deliveries d JOIN webhook_endpoints e ON e.id = d.endpoint_id
                 WHERE d.event_id = v.id AND d.state = 'pending' AND e.state = 'enabled')
             ORDER BY created_at LIMIT {limit})"
    );
    execute(&db.write, &sql, [micros(keep).into()]).await
}
