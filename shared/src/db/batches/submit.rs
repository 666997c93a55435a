//! A new batch: its row and its idempotency key in one transaction.

use sea_orm::ActiveValue::Set;
use sea_orm::prelude::*;

use crate::access::Grant;
use crate::batch::BatchSource;
use crate::db::entity::batch::{ActiveModel, BatchState, Model, OnGone};
use crate::db::idempotency::{self, Idempotency, OF_BATCHES, Used};
use crate::db::webhooks::endpoints;
use crate::db::{Db, now};
use crate::ids::{BatchId, CollectionId, WebhookEndpointId};
use crate::job::JobKind;

/// What a client asks for.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct NewBatch {
    pub collection: CollectionId,
    pub kind: JobKind,
    /// The pipeline, pinned here for all its jobs.
    pub pipeline: String,
    pub source: BatchSource,
    pub on_gone: OnGone,
    pub tag: Option<String>,
    /// The only webhook endpoints that are told of it and its jobs; `None`: all that want to know.
    pub webhook_endpoints: Option<Vec<WebhookEndpointId>>,
    /// The W3C trace context of the request.
    pub traceparent: Option<String>,
    pub idempotency: Option<Idempotency>,
}

/// What became of a submission.
#[derive(Clone, Debug)]
pub enum Submitted {
    /// A new batch.
    New(BatchId),
    /// The batch that the same key and fingerprint made before.
    Existing(BatchId),
    /// The key was used for another request.
    KeyReused,
    /// A request with the key is being committed.
    KeyInFlight,
}

/// What a request with that key was answered before, if there was one, so that a repeat is answered whatever went meanwhile.
pub async fn find_repeated(db: &Db, key: &Idempotency) -> Result<Option<Submitted>, DbErr> {
    repeated(&db.read, key).await
}

/// Stores the batch as one of the grant's own; it is durable when this returns, and its listing is due.
pub async fn submit(db: &Db, grant: &Grant, new: NewBatch) -> Result<Submitted, DbErr> {
    let idempotency = new.idempotency.clone();
    let txn = db.begin().await?;
    if let Some(idempotency) = &idempotency {
        if !idempotency::try_lock(&txn, idempotency).await? {
            return Ok(Submitted::KeyInFlight);
        }
        if let Some(found) = repeated(&txn, idempotency).await? {
            // At once, and not when the connection is used next: a repeat would find the key held.
            txn.rollback().await?;
            return Ok(found);
        }
    }
    let batch = insert(&txn, grant, new).await?;
    if let Some(idempotency) = &idempotency
        && !idempotency::remember(&txn, OF_BATCHES, idempotency, batch.id.0).await?
    {
        // Another request with this key committed since it was looked for.
        txn.rollback().await?;
        return repeated(&db.write, idempotency).await?.ok_or_else(idempotency::released);
    }
    txn.commit().await?;
    Ok(Submitted::New(batch.id))
}

async fn insert(txn: &impl ConnectionTrait, grant: &Grant, new: NewBatch) -> Result<Model, DbErr> {
    let created_at = now(txn).await?;
    ActiveModel {
        id: Set(BatchId::new()),
        collection_id: Set(new.collection),
        kind: Set(new.kind),
        pipeline: Set(new.pipeline),
        source: Set(serde_json::to_string(&new.source).map_err(|e| DbErr::Json(e.to_string()))?),
        state: Set(BatchState::Running),
        round: Set(1),
        checkpoint: Set(None),
        listed_at: Set(None),
        list_after: Set(created_at),
        listing_tries: Set(0),
        listing_failed: Set(false),
        reopen_before: Set(None),
        problem: Set(None),
        items: Set(0),
        unchanged: Set(0),
        queued: Set(0),
        running: Set(0),
        succeeded: Set(0),
        rejected: Set(0),
        failed: Set(0),
        cancelled: Set(0),
        faces: Set(0),
        pace: Set(None),
        paced_at: Set(created_at),
        paced_jobs: Set(0),
        tag: Set(new.tag),
        traceparent: Set(new.traceparent),
        version: Set(0),
        created_at: Set(created_at),
        finished_at: Set(None),
        on_gone: Set(new.on_gone),
        sweep: Set(None),
        moved: Set(0),
        gone: Set(0),
        api_key_id: Set(grant.owner()),
        webhook_endpoint_ids: Set(endpoints::to_text(new.webhook_endpoints.as_deref())?),
    }
    .insert(txn)
    .await
}

async fn repeated(conn: &impl ConnectionTrait, key: &Idempotency) -> Result<Option<Submitted>, DbErr> {
    let used = idempotency::used(conn, OF_BATCHES, key).await?;
    Ok(used.map(|used| match used {
        Used::Same(id) => Submitted::Existing(BatchId(id)),
        Used::Otherwise => Submitted::KeyReused,
    }))
}
