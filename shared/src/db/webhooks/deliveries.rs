//! Deliveries: one event to be told to one endpoint. A worker claims one for an attempt under a lease, and what it writes of
//! the attempt is fenced on that claim. All times are the database's.

use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::{endpoints, events, lock_endpoint};
use crate::db::{Db, count, execute, is_postgres, micros, placeholders, statement};
use crate::ids::{ClaimId, WebhookDeliveryId, WebhookEndpointId, WebhookEventId};

/// Endpoints that are looked at in one round.
const ROUND: i64 = endpoints::MOST;
/// Failures in a row after which the other endpoints are told.
const FAILING_AFTER: i32 = 4;
/// Leases that are ended in one round.
const REAPED: u32 = 1000;
/// Attempts of a round after which a delivery has failed whose worker went silent once more: far more than any schedule has.
const LOST: i32 = 50;
/// Deliveries that are dropped in one transaction.
const DROPPED: u32 = 5000;
/// What is counted at most: more is shown as this.
const COUNTED: u32 = 100_000;

/// How much may be under way.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// To one endpoint, in all workers.
    pub per_endpoint: u32,
    /// How long a claim stands: longer than any attempt takes.
    pub lease: Duration,
}

/// A delivery whose attempt has begun.
#[derive(Clone, Debug, FromQueryResult)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Claimed {
    pub id: WebhookDeliveryId,
    pub event_id: WebhookEventId,
    pub endpoint_id: WebhookEndpointId,
    /// What is written of the attempt is fenced on this.
    pub claim_id: ClaimId,
    /// Attempts so far, this one included.
    pub attempt: i32,
    /// Of these, how many belong to an earlier round: it was given up and is sent again.
    pub begun_at_attempt: i32,
    pub body: String,
    /// When the attempt began.
    pub now: i64,
}

/// What an attempt came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempt {
    /// The answer's status, where there was one.
    pub status: Option<u16>,
    /// Why there was none, or what was wrong with it: a stable code and a text.
    pub error: Option<String>,
    /// How long it took.
    pub latency: Duration,
    /// The beginning of the answer's body.
    pub response: Option<String>,
}

/// What follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The endpoint knows.
    Delivered,
    /// It is tried again after this long.
    Retry(Duration),
    /// It was tried often enough.
    Failed,
    /// The endpoint says that it is gone for good.
    Gone,
}

/// What a record of an attempt did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It was written.
    Written,
    /// So it was, and the endpoint is not told any more.
    EndpointDisabled,
    /// The claim was taken away: nothing was written.
    Lost,
}

/// The enabled endpoints for which something is due, in the order of what has waited longest.
pub async fn due_endpoints(db: &Db) -> Result<Vec<WebhookEndpointId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: WebhookEndpointId,
    }
    let sql = format!(
        "SELECT id FROM (SELECT e.id, (SELECT min(d.run_at) FROM webhook_deliveries d
            WHERE d.endpoint_id = e.id AND d.state = 'pending' AND d.claim_id IS NULL) AS due
            FROM webhook_endpoints e WHERE e.state = 'enabled') AS waiting
         WHERE due <= {{now}} ORDER BY due LIMIT {ROUND}"
    );
    let rows = Row::find_by_statement(statement(&db.read, &sql, [])).all(&db.read).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// Begins attempts of up to `room` due deliveries of an endpoint, as far as the bound on what is under way to it allows.
pub async fn claim(db: &Db, endpoint: WebhookEndpointId, room: usize, bounds: Bounds) -> Result<Vec<Claimed>, DbErr> {
    let txn = db.begin().await?;
    let skip = if is_postgres(&txn) { "SKIP LOCKED" } else { "" };
    let lock = format!(
        "SELECT count(*) AS n FROM (SELECT id FROM webhook_endpoints WHERE id = $1 AND state = 'enabled' {} {skip}) AS held",
        lock_endpoint(&txn)
    );
    // Who holds it claims, or ends an attempt; the next round comes soon.
    if count(&txn, &lock, [endpoint.into()]).await? == 0 {
        txn.rollback().await?;
        return Ok(Vec::new());
    }
    let sql = "SELECT count(*) AS n FROM webhook_deliveries WHERE endpoint_id = $1 AND claim_id IS NOT NULL";
    let under_way = count(&txn, sql, [endpoint.into()]).await?;
    let free = (i64::from(bounds.per_endpoint) - under_way).min(i64::try_from(room).unwrap_or(i64::MAX));
    if free <= 0 {
        // Dropped, it would hold the lock until its connection is used again.
        txn.rollback().await?;
        return Ok(Vec::new());
    }
    let claim = ClaimId::new();
    let sql = "UPDATE webhook_deliveries SET claim_id = $2, lease_expires_at = {now} + $3, attempt = attempt + 1
        WHERE id IN (SELECT id FROM webhook_deliveries WHERE endpoint_id = $1 AND state = 'pending' AND claim_id IS NULL
            AND run_at <= {now} ORDER BY run_at, id LIMIT $4)";
    let values = [endpoint.into(), claim.into(), micros(bounds.lease).into(), free.into()];
    execute(&txn, sql, values).await?;
    let sql = "SELECT d.id, d.event_id, d.endpoint_id, d.claim_id, d.attempt, d.begun_at_attempt, e.body, {now} AS now
        FROM webhook_deliveries d JOIN webhook_events e ON e.id = d.event_id
        WHERE d.endpoint_id = $2 AND d.claim_id = $1 ORDER BY d.run_at, d.id";
    let claimed = Claimed::find_by_statement(statement(&txn, sql, [claim.into(), endpoint.into()])).all(&txn).await?;
    txn.commit().await?;
    Ok(claimed)
}

/// Writes what an attempt came to, and what that means for its endpoint: disabled when it is gone, or has failed at every
/// attempt for `disable_after`.
pub async fn record(
    db: &Db,
    claimed: &Claimed,
    attempt: &Attempt,
    verdict: Verdict,
    disable_after: Duration,
) -> Result<Recorded, DbErr> {
    let txn = db.begin().await?;
    let lock = format!(
        "SELECT count(*) AS n FROM (SELECT id FROM webhook_endpoints WHERE id = $1 {}) AS held",
        lock_endpoint(&txn)
    );
    count(&txn, &lock, [claimed.endpoint_id.into()]).await?;
    if !settle(&txn, claimed, verdict).await? {
        txn.rollback().await?;
        return Ok(Recorded::Lost);
    }
    log(&txn, claimed, attempt).await?;
    let disabled = match verdict {
        Verdict::Delivered => {
            succeeded(&txn, claimed.endpoint_id).await?;
            None
        }
        Verdict::Gone => Some("gone"),
        Verdict::Retry(_) | Verdict::Failed => failed(&txn, claimed.endpoint_id, disable_after).await?,
    };
    if let Some(why) = disabled {
        endpoints::disable(&txn, claimed.endpoint_id, why).await?;
        events::endpoint_failing(&txn, claimed.endpoint_id, Some(why)).await?;
    }
    txn.commit().await?;
    Ok(if disabled.is_some() { Recorded::EndpointDisabled } else { Recorded::Written })
}

/// False when the claim was taken away.
async fn settle(txn: &impl ConnectionTrait, claimed: &Claimed, verdict: Verdict) -> Result<bool, DbErr> {
    let (changes, delay) = match verdict {
        Verdict::Delivered => ("state = 'delivered', finished_at = {now}", Duration::ZERO),
        Verdict::Failed | Verdict::Gone => ("state = 'failed', finished_at = {now}", Duration::ZERO),
        Verdict::Retry(delay) => ("state = 'pending'", delay),
    };
    let sql = format!(
        "UPDATE webhook_deliveries SET {changes}, run_at = {{now}} + $3, claim_id = NULL, lease_expires_at = NULL
         WHERE id = $1 AND claim_id = $2"
    );
    let values = [claimed.id.into(), claimed.claim_id.into(), micros(delay).into()];
    Ok(execute(txn, &sql, values).await? > 0)
}

async fn log(txn: &impl ConnectionTrait, claimed: &Claimed, attempt: &Attempt) -> Result<(), DbErr> {
    let sql = "INSERT INTO webhook_attempts (delivery_id, attempt, at, status, error, latency_ms, response)
        VALUES ($1, $2, $3, $4, $5, $6, $7)";
    let values = [
        claimed.id.into(),
        claimed.attempt.into(),
        claimed.now.into(),
        attempt.status.map(i32::from).into(),
        attempt.error.clone().into(),
        i64::try_from(attempt.latency.as_millis()).unwrap_or(i64::MAX).into(),
        attempt.response.clone().into(),
    ];
    execute(txn, sql, values).await?;
    Ok(())
}

async fn succeeded(txn: &impl ConnectionTrait, endpoint: WebhookEndpointId) -> Result<(), DbErr> {
    let sql = "UPDATE webhook_endpoints SET failures = 0, failing_since = NULL, last_failure_at = NULL
        WHERE id = $1 AND failures > 0";
    execute(txn, sql, [endpoint.into()]).await?;
    Ok(())
}

/// Counts the failure; the reason where the endpoint has to be disabled. Failures that lie further apart than half of
/// `disable_after` are none in a row: nothing was tried between them.
async fn failed(
    txn: &impl ConnectionTrait,
    endpoint: WebhookEndpointId,
    disable_after: Duration,
) -> Result<Option<&'static str>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        failures: i32,
        failing_since: i64,
        now: i64,
        is_told: bool,
    }
    let sql = "UPDATE webhook_endpoints SET
            failures = CASE WHEN last_failure_at >= {now} - $2 THEN failures + 1 ELSE 1 END,
            failing_since = CASE WHEN last_failure_at >= {now} - $2 THEN failing_since ELSE {now} END,
            last_failure_at = {now}
        WHERE id = $1 RETURNING failures, failing_since, {now} AS now, state <> 'disabled' AS is_told";
    let values = [endpoint.into(), micros(disable_after / 2).into()];
    let Some(row) = Row::find_by_statement(statement(txn, sql, values)).one(txn).await? else { return Ok(None) };
    if row.is_told && row.now - row.failing_since >= micros(disable_after) {
        return Ok(Some("failing"));
    }
    if row.is_told && row.failures == FAILING_AFTER {
        events::endpoint_failing(txn, endpoint, None).await?;
    }
    Ok(None)
}

/// Drops a part of what waits for a disabled endpoint, or of what was written for one while it was disabled; what is under way
/// ends without being written. How many; [`drop_disabled`] drops the rest.
pub(super) async fn drop_pending(conn: &impl ConnectionTrait, endpoint: WebhookEndpointId) -> Result<u64, DbErr> {
    let sql = format!(
        "UPDATE webhook_deliveries SET state = 'dropped', finished_at = {{now}}, claim_id = NULL, lease_expires_at = NULL
         WHERE id IN (SELECT id FROM webhook_deliveries WHERE endpoint_id = $1 AND state = 'pending' LIMIT {DROPPED})
         AND state = 'pending'"
    );
    execute(conn, &sql, [endpoint.into()]).await
}

/// Drops a part of what waits for each disabled endpoint. An event that was being written while its endpoint was disabled has
/// a delivery that nobody would send.
pub async fn drop_disabled(db: &Db) -> Result<(), DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: WebhookEndpointId,
    }
    let sql = format!(
        "SELECT id FROM webhook_endpoints e WHERE state = 'disabled' AND EXISTS
            (SELECT 1 FROM webhook_deliveries d WHERE d.endpoint_id = e.id AND d.state = 'pending') LIMIT {ROUND}"
    );
    for row in Row::find_by_statement(statement(&db.read, &sql, [])).all(&db.read).await? {
        let txn = db.begin().await?;
        let lock = format!(
            "SELECT count(*) AS n FROM (SELECT id FROM webhook_endpoints WHERE id = $1 AND state = 'disabled' {}) AS held",
            lock_endpoint(&txn)
        );
        if count(&txn, &lock, [row.id.into()]).await? > 0 {
            drop_pending(&txn, row.id).await?;
        }
        txn.commit().await?;
    }
    Ok(())
}

/// Gives claims back that a worker made and will not use. The attempt does not count.
pub async fn release(db: &Db, claimed: &Claimed) -> Result<(), DbErr> {
    let sql = "UPDATE webhook_deliveries SET claim_id = NULL, lease_expires_at = NULL, attempt = attempt - 1
        WHERE id = $1 AND claim_id = $2";
    execute(&db.write, sql, [claimed.id.into(), claimed.claim_id.into()]).await?;
    Ok(())
}

/// Ends claims whose lease is over: whoever made them went silent. Nobody knows whether the endpoint was told, so it is told
/// again. The attempt counts, so that one that kills its worker comes to an end: after fifty attempts the delivery has
/// failed. How many claims were ended.
pub async fn reap(db: &Db) -> Result<u64, DbErr> {
    let over = "SELECT count(*) AS n FROM (SELECT 1 FROM webhook_deliveries
        WHERE claim_id IS NOT NULL AND lease_expires_at < {now} LIMIT 1) AS over";
    // Looked at often, and nearly always there is nothing to write.
    if count(&db.read, over, []).await? == 0 {
        return Ok(0);
    }
    let txn = db.begin().await?;
    let skip = if is_postgres(&txn) { "FOR UPDATE SKIP LOCKED" } else { "" };
    let ended = end_claims(&txn, &format!("lease_expires_at < {{now}} LIMIT {REAPED} {skip}")).await?;
    txn.commit().await?;
    Ok(ended)
}

/// Ends every claim: for a process that knows that all earlier workers are gone.
pub(in crate::db) async fn recover_all(txn: &impl ConnectionTrait) -> Result<(), DbErr> {
    end_claims(txn, "TRUE").await?;
    Ok(())
}

async fn end_claims(txn: &impl ConnectionTrait, which: &str) -> Result<u64, DbErr> {
    #[derive(FromQueryResult)]
    struct Lost {
        id: WebhookDeliveryId,
    }
    let sql = format!("SELECT id FROM webhook_deliveries WHERE claim_id IS NOT NULL AND {which}");
    let lost = Lost::find_by_statement(statement(txn, &sql, [])).all(txn).await?;
    for chunk in lost.chunks(REAPED as usize) {
        let ids: Vec<Value> = chunk.iter().map(|lost| lost.id.into()).collect();
        let these = placeholders(1, ids.len());
        let log = format!(
            "INSERT INTO webhook_attempts (delivery_id, attempt, at, error, latency_ms)
             SELECT id, attempt, {{now}}, 'worker_lost: the worker went silent; perhaps the endpoint was told', 0
             FROM webhook_deliveries WHERE id IN ({these}) ON CONFLICT DO NOTHING"
        );
        execute(txn, &log, ids.clone()).await?;
        let end = format!(
            "UPDATE webhook_deliveries SET claim_id = NULL, lease_expires_at = NULL,
                state = CASE WHEN attempt - begun_at_attempt < {LOST} THEN 'pending' ELSE 'failed' END,
                finished_at = CASE WHEN attempt - begun_at_attempt < {LOST} THEN NULL ELSE {{now}} END
             WHERE id IN ({these})"
        );
        execute(txn, &end, ids).await?;
    }
    Ok(lost.len() as u64)
}

/// How much waits to be told to endpoints that are enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Deliveries; at most 100,000 are counted.
    pub pending: i64,
    /// How long the oldest of them has waited.
    pub oldest: Duration,
    /// Endpoints that are disabled.
    pub disabled: i64,
}

/// Counts what waits. What waits because somebody wants it so is none of it.
pub async fn backlog(db: &Db) -> Result<Backlog, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        oldest: Option<i64>,
        now: i64,
    }
    let pending = format!(
        "SELECT count(*) AS n FROM (SELECT 1 FROM webhook_endpoints e JOIN webhook_deliveries d ON d.endpoint_id = e.id
            WHERE e.state = 'enabled' AND d.state = 'pending' LIMIT {COUNTED}) AS waiting"
    );
    let pending = count(&db.read, &pending, []).await?;
    let oldest = "SELECT min(oldest) AS oldest, {now} AS now FROM (SELECT (SELECT min(d.created_at)
            FROM webhook_deliveries d WHERE d.endpoint_id = e.id AND d.state = 'pending') AS oldest
        FROM webhook_endpoints e WHERE e.state = 'enabled') AS waiting";
    let row = Row::find_by_statement(statement(&db.read, oldest, [])).one(&db.read).await?;
    let age = row.and_then(|row| Some(row.now - row.oldest?)).unwrap_or_default();
    let disabled = "SELECT count(*) AS n FROM webhook_endpoints WHERE state = 'disabled'";
    let disabled = count(&db.read, disabled, []).await?;
    Ok(Backlog { pending, oldest: Duration::from_micros(u64::try_from(age).unwrap_or_default()), disabled })
}
