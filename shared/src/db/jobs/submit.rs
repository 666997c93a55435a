//! A new job: its row, its arguments and its idempotency key in one transaction.

use sea_orm::ActiveValue::Set;
use sea_orm::prelude::*;

use crate::access::Grant;
use crate::db::api_keys::usage::{OverLimit, count_job};
use crate::db::entity::job::{ActiveModel, Entity, Model};
use crate::db::idempotency::{self, Idempotency, OF_JOBS, Used};
use crate::db::webhooks::endpoints;
use crate::db::{Db, collections, execute, micros, now, uploads};
use crate::ids::{CollectionId, JobId, WebhookEndpointId};
use crate::job::{ImageRef, JobArgs, JobState};

/// What a client asks for.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct NewJob {
    pub collection: CollectionId,
    pub args: JobArgs,
    pub tag: Option<String>,
    /// The W3C trace context of the request.
    pub traceparent: Option<String>,
    pub idempotency: Option<Idempotency>,
    /// Uploads that come with this very request, to be recorded together with it.
    pub inline_uploads: Vec<uploads::NewUpload>,
    /// The only webhook endpoints that are told of it; `None`: all that want to know.
    pub webhook_endpoints: Option<Vec<WebhookEndpointId>>,
}

/// What became of a submission.
#[derive(Clone, Debug)]
pub enum Submitted {
    /// A new job.
    New(Model),
    /// The job that the same key and fingerprint made before.
    Existing(Model),
    /// The key was used for another request.
    KeyReused,
    /// A request with the key is being committed.
    KeyInFlight,
    /// The grant's limits allow no further job.
    OverLimit(OverLimit),
}

/// The job that this key made before, if any, so that a repeat need not store its picture again.
pub async fn find_repeated(db: &Db, idempotency: &Idempotency) -> Result<Option<Submitted>, DbErr> {
    repeated(&db.read, idempotency).await
}

/// Stores the job as one of the grant's own; it is durable when this returns.
pub async fn submit(db: &Db, grant: &Grant, new: NewJob) -> Result<Submitted, DbErr> {
    let txn = db.begin().await?;
    if let Some(idempotency) = &new.idempotency {
        if !idempotency::try_lock(&txn, idempotency).await? {
            return Ok(Submitted::KeyInFlight);
        }
        if let Some(found) = repeated(&txn, idempotency).await? {
            // At once, and not when the connection is used next: a repeat would find the key held.
            txn.rollback().await?;
            return Ok(found);
        }
    }
    if let Some(over) = count_job(&txn, grant, new.args.images().len()).await? {
        return Ok(Submitted::OverLimit(over));
    }
    for upload in new.inline_uploads.clone() {
        uploads::create(&txn, upload).await?;
    }
    let job = insert(&txn, grant, &new).await?;
    if let Some(idempotency) = new.idempotency
        && !idempotency::remember(&txn, OF_JOBS, &idempotency, job.id.0).await?
    {
        // Another request with this key committed since it was looked for.
        txn.rollback().await?;
        return repeated(&db.write, &idempotency).await?.ok_or_else(idempotency::released);
    }
    txn.commit().await?;
    Ok(Submitted::New(job))
}

async fn insert(txn: &impl ConnectionTrait, grant: &Grant, new: &NewJob) -> Result<Model, DbErr> {
    // Pinned here, so that a later change of the collection's pipeline leaves the job alone.
    let pipeline = collections::hold_pipeline(txn, new.collection).await?;
    let created_at = now(txn).await?;
    let job = ActiveModel {
        id: Set(JobId::new()),
        collection_id: Set(new.collection),
        kind: Set(new.args.kind()),
        lane: Set(new.args.kind().lane()),
        // Of a collection that is gone there is none: its key is refused below.
        pipeline: Set(pipeline.unwrap_or_default()),
        state: Set(JobState::Queued),
        attempt: Set(0),
        run_at: Set(created_at),
        dispatched_at: Set(None),
        claim_id: Set(None),
        alone: Set(0),
        cancel_requested: Set(false),
        tag: Set(new.tag.clone()),
        version: Set(0),
        created_at: Set(created_at),
        started_at: Set(None),
        finished_at: Set(None),
        traceparent: Set(new.traceparent.clone()),
        batch_id: Set(None),
        item_no: Set(None),
        source_id: Set(Some(new.collection.0)),
        problem_code: Set(None),
        api_key_id: Set(grant.owner()),
        webhook_endpoint_ids: Set(endpoints::to_text(new.webhook_endpoints.as_deref())?),
    }
    .insert(txn)
    .await?;
    let args = serde_json::to_string(&new.args).map_err(|e| DbErr::Json(e.to_string()))?;
    execute(txn, "INSERT INTO job_payloads (job_id, args) VALUES ($1, $2)", [job.id.into(), args.into()]).await?;
    for image in new.args.images().into_iter().filter_map(ImageRef::upload) {
        // The same upload may be on both sides of a verify.
        let sql = "INSERT INTO job_uploads (job_id, upload_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        execute(txn, sql, [job.id.into(), image.upload_id.into()]).await?;
        if let Some(idempotency) = &new.idempotency {
            // A repeat with this key must find the upload that it names.
            let sql = "UPDATE uploads SET expires_at = {now} + $1 WHERE id = $2 AND expires_at < {now} + $1";
            execute(txn, sql, [micros(idempotency.keep).into(), image.upload_id.into()]).await?;
        }
    }
    Ok(job)
}

async fn repeated(conn: &impl ConnectionTrait, key: &Idempotency) -> Result<Option<Submitted>, DbErr> {
    match idempotency::used(conn, OF_JOBS, key).await? {
        None => Ok(None),
        Some(Used::Otherwise) => Ok(Some(Submitted::KeyReused)),
        Some(Used::Same(id)) => Ok(Entity::find_by_id(JobId(id)).one(conn).await?.map(Submitted::Existing)),
    }
}
