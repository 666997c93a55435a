//! The endpoints that are told of events.

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{deliveries, lock_endpoint};
use crate::db::rows::{self, Column, Rows};
use crate::db::{Db, count, execute, micros, placeholders, statement};
use crate::ids::{CollectionId, WebhookEndpointId};
use crate::secret_key::SecretKey;
use crate::webhooks::EventType;
use crate::webhooks::secret::{EndpointSecret, SealedWithAnother};

/// Endpoints of an installation: every event is compared with each.
pub const MOST: i64 = 100;
/// Deliveries that are deleted in one transaction.
const SLICE: u64 = 5000;

/// Whether an endpoint is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, EnumIter, DeriveActiveEnum, ToSchema)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum EndpointState {
    /// It is.
    #[sea_orm(string_value = "enabled")]
    Enabled,
    /// What it would be told of waits.
    #[sea_orm(string_value = "paused")]
    Paused,
    /// It is not, and nothing waits for it.
    #[sea_orm(string_value = "disabled")]
    Disabled,
}

/// A row of `webhook_endpoints`, with its collections.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Endpoint {
    pub id: WebhookEndpointId,
    pub url: String,
    pub description: String,
    /// What it is told of; empty: everything.
    pub event_types: Vec<EventType>,
    /// The collections whose events it is told of; `None`: all.
    pub collections: Option<Vec<CollectionId>>,
    pub state: EndpointState,
    /// Why it was disabled, a stable code.
    pub state_reason: Option<String>,
    /// Since when every attempt has failed.
    pub failing_since: Option<i64>,
    pub version: i64,
    pub created_at: i64,
    secret: String,
    previous_secret: Option<String>,
    previous_secret_until: Option<i64>,
}

#[derive(FromQueryResult)]
struct Row {
    id: WebhookEndpointId,
    url: String,
    description: String,
    event_types: String,
    all_collections: bool,
    state: EndpointState,
    state_reason: Option<String>,
    failing_since: Option<i64>,
    version: i64,
    created_at: i64,
    secret: String,
    previous_secret: Option<String>,
    previous_secret_until: Option<i64>,
}

/// What a client asks for.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct NewEndpoint {
    pub url: String,
    pub description: String,
    pub event_types: Vec<EventType>,
    pub collections: Option<Vec<CollectionId>>,
    pub secret: EndpointSecret,
}

/// What a client changes; `None` leaves it as it is.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Changes {
    pub url: Option<String>,
    pub description: Option<String>,
    pub event_types: Option<Vec<EventType>>,
    /// `Some(None)`: all.
    pub collections: Option<Option<Vec<CollectionId>>>,
    pub state: Option<EndpointState>,
}

impl Endpoint {
    /// What its messages are signed with at `now`: the secret, and the one before it while that is still accepted.
    ///
    /// # Errors
    /// They were encrypted with another key.
    pub fn secrets(&self, key: &SecretKey, now: i64) -> Result<Vec<EndpointSecret>, SealedWithAnother> {
        let previous =
            self.previous_secret.as_ref().filter(|_| self.previous_secret_until.is_some_and(|end| now < end));
        std::iter::once(&self.secret).chain(previous).map(|sealed| EndpointSecret::open(sealed, key, self.id)).collect()
    }
}

/// Makes an endpoint; `None` when there are as many as there may be.
pub async fn create(db: &Db, key: &SecretKey, new: NewEndpoint) -> Result<Option<Endpoint>, DbErr> {
    let txn = db.begin().await?;
    if count(&txn, "SELECT count(*) AS n FROM webhook_endpoints", []).await? >= MOST {
        txn.rollback().await?;
        return Ok(None);
    }
    let id = WebhookEndpointId::new();
    let sql =
        "INSERT INTO webhook_endpoints (id, url, description, event_types, all_collections, state, secret, failures,
            version, created_at)
        VALUES ($1, $2, $3, $4, $5, 'enabled', $6, 0, 1, {now})";
    let values = [
        id.into(),
        new.url.into(),
        new.description.into(),
        json(&new.event_types)?.into(),
        new.collections.is_none().into(),
        new.secret.seal(key, id).into(),
    ];
    execute(&txn, sql, values).await?;
    add_collections(&txn, id, new.collections.as_deref().unwrap_or_default()).await?;
    let made = find(&txn, id).await?;
    txn.commit().await?;
    Ok(made)
}

/// The endpoint of that id.
pub async fn find(conn: &impl ConnectionTrait, id: WebhookEndpointId) -> Result<Option<Endpoint>, DbErr> {
    let found = statement(conn, "SELECT * FROM webhook_endpoints WHERE id = $1", [id.into()]);
    let row = Row::find_by_statement(found).one(conn).await?;
    match row {
        Some(row) => Ok(Some(with_collections(conn, row).await?)),
        None => Ok(None),
    }
}

/// Up to `limit` endpoints whose id comes after `after`, in the order of their ids.
pub async fn list(db: &Db, after: Option<WebhookEndpointId>, limit: u64) -> Result<Vec<Endpoint>, DbErr> {
    let sql = format!("SELECT * FROM webhook_endpoints WHERE id > $1 ORDER BY id LIMIT {limit}");
    let after = after.unwrap_or(WebhookEndpointId(Uuid::nil()));
    let mut endpoints = Vec::new();
    for row in Row::find_by_statement(statement(&db.read, &sql, [after.into()])).all(&db.read).await? {
        endpoints.push(with_collections(&db.read, row).await?);
    }
    Ok(endpoints)
}

/// Which of these are no endpoint that is told of the collection.
pub async fn missing(
    db: &Db,
    collection: CollectionId,
    ids: &[WebhookEndpointId],
) -> Result<Vec<WebhookEndpointId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Found {
        id: WebhookEndpointId,
    }
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT id FROM webhook_endpoints e WHERE id IN ({}) AND (all_collections OR EXISTS
            (SELECT 1 FROM webhook_endpoint_collections c WHERE c.endpoint_id = e.id AND c.collection_id = $1))",
        placeholders(2, ids.len())
    );
    let values = std::iter::once(collection.into()).chain(ids.iter().map(|id| Value::from(*id)));
    let found = statement(&db.read, &sql, values);
    let found: Vec<_> = Found::find_by_statement(found).all(&db.read).await?.into_iter().map(|row| row.id).collect();
    Ok(ids.iter().copied().filter(|id| !found.contains(id)).collect())
}

/// Changes an endpoint; false when it is not there.
pub async fn change(db: &Db, id: WebhookEndpointId, changes: &Changes) -> Result<bool, DbErr> {
    let txn = db.begin().await?;
    let sql = "UPDATE webhook_endpoints SET url = COALESCE($2, url), description = COALESCE($3, description),
            event_types = COALESCE($4, event_types), all_collections = COALESCE($5, all_collections),
            version = version + 1
        WHERE id = $1";
    let values = [
        id.into(),
        changes.url.clone().into(),
        changes.description.clone().into(),
        changes.event_types.as_ref().map(json).transpose()?.into(),
        changes.collections.as_ref().map(Option::is_none).into(),
    ];
    if execute(&txn, sql, values).await? == 0 {
        txn.rollback().await?;
        return Ok(false);
    }
    if let Some(collections) = &changes.collections {
        execute(&txn, "DELETE FROM webhook_endpoint_collections WHERE endpoint_id = $1", [id.into()]).await?;
        add_collections(&txn, id, collections.as_deref().unwrap_or_default()).await?;
    }
    match changes.state {
        Some(EndpointState::Disabled) => disable(&txn, id, "by_client").await?,
        Some(state) => {
            // What was wrong before says nothing of what comes.
            let sql =
                "UPDATE webhook_endpoints SET state = $2, state_reason = NULL, failures = 0, failing_since = NULL,
                    last_failure_at = NULL
                WHERE id = $1 AND state <> $2";
            execute(&txn, sql, [id.into(), state.to_value().into()]).await?;
        }
        None => {}
    }
    txn.commit().await?;
    Ok(true)
}

/// Tells an endpoint no more, and drops what waits for it.
pub(super) async fn disable(txn: &impl ConnectionTrait, id: WebhookEndpointId, why: &str) -> Result<(), DbErr> {
    // The first reason is the one that helps.
    let sql = "UPDATE webhook_endpoints SET state = 'disabled', state_reason = $2, version = version + 1
        WHERE id = $1 AND state <> 'disabled'";
    execute(txn, sql, [id.into(), why.into()]).await?;
    deliveries::drop_pending(txn, id).await?;
    Ok(())
}

/// Gives an endpoint a new secret; the one before is used beside it for `grace`. False when it is not there.
pub async fn rotate_secret(
    db: &Db,
    key: &SecretKey,
    id: WebhookEndpointId,
    secret: &EndpointSecret,
    grace: std::time::Duration,
) -> Result<bool, DbErr> {
    let sql = "UPDATE webhook_endpoints SET previous_secret = secret, previous_secret_until = {now} + $3, secret = $2,
            version = version + 1
        WHERE id = $1";
    Ok(execute(&db.write, sql, [id.into(), secret.seal(key, id).into(), micros(grace).into()]).await? > 0)
}

/// Forgets secrets whose grace is over.
pub async fn forget_secrets(db: &Db) -> Result<u64, DbErr> {
    let sql = "UPDATE webhook_endpoints SET previous_secret = NULL, previous_secret_until = NULL
        WHERE previous_secret_until < {now}";
    execute(&db.write, sql, []).await
}

/// Deletes an endpoint and what it was told of. False when it is not there.
pub async fn delete(db: &Db, id: WebhookEndpointId) -> Result<bool, DbErr> {
    // Nothing new is written for it, so that the slices come to an end.
    let paused = db.begin().await?;
    let lock = format!(
        "SELECT count(*) AS n FROM (SELECT id FROM webhook_endpoints WHERE id = $1 {}) AS locked",
        lock_endpoint(&paused)
    );
    count(&paused, &lock, [id.into()]).await?;
    execute(&paused, "UPDATE webhook_endpoints SET state = 'disabled' WHERE id = $1", [id.into()]).await?;
    paused.commit().await?;
    let sql = format!(
        "DELETE FROM webhook_deliveries WHERE id IN
            (SELECT id FROM webhook_deliveries WHERE endpoint_id = $1 ORDER BY id LIMIT {SLICE})"
    );
    while execute(&db.write, &sql, [id.into()]).await? >= SLICE {}
    Ok(execute(&db.write, "DELETE FROM webhook_endpoints WHERE id = $1", [id.into()]).await? > 0)
}

/// Those that are still there: what was deleted in between is none of the endpoint's any more.
async fn add_collections(
    txn: &impl ConnectionTrait,
    id: WebhookEndpointId,
    collections: &[CollectionId],
) -> Result<(), DbErr> {
    if collections.is_empty() {
        return Ok(());
    }
    let named = collections.iter().map(|c| serde_json::json!({ "collection_id": rows::id(c.0) })).collect();
    let named = Rows::new(&[("collection_id", Column::Id)], named);
    let sql = format!(
        "INSERT INTO webhook_endpoint_collections (endpoint_id, collection_id)
         SELECT $2, r.collection_id FROM {} JOIN collections c ON c.id = r.collection_id WHERE TRUE ON CONFLICT DO NOTHING",
        named.table(txn)
    );
    execute(txn, &sql, [named.value(), id.into()]).await?;
    Ok(())
}

async fn with_collections(conn: &impl ConnectionTrait, row: Row) -> Result<Endpoint, DbErr> {
    #[derive(FromQueryResult)]
    struct Of {
        collection_id: CollectionId,
    }
    let collections = if row.all_collections {
        None
    } else {
        let sql =
            "SELECT collection_id FROM webhook_endpoint_collections WHERE endpoint_id = $1 ORDER BY collection_id";
        let of = Of::find_by_statement(statement(conn, sql, [row.id.into()])).all(conn).await?;
        Some(of.into_iter().map(|of| of.collection_id).collect())
    };
    Ok(Endpoint {
        id: row.id,
        url: row.url,
        description: row.description,
        event_types: types(&row.event_types)?,
        collections,
        state: row.state,
        state_reason: row.state_reason,
        failing_since: row.failing_since,
        version: row.version,
        created_at: row.created_at,
        secret: row.secret,
        previous_secret: row.previous_secret,
        previous_secret_until: row.previous_secret_until,
    })
}

/// The types as a row has them.
pub(super) fn types(text: &str) -> Result<Vec<EventType>, DbErr> {
    serde_json::from_str(text).map_err(|e| DbErr::Json(e.to_string()))
}

/// The only endpoints that are told of a job or batch, as its row has them.
pub(in crate::db) fn to_text(only: Option<&[WebhookEndpointId]>) -> Result<Option<String>, DbErr> {
    only.map(json).transpose()
}

fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, DbErr> {
    serde_json::to_string(value).map_err(|e| DbErr::Json(e.to_string()))
}
