//! A new job: its row, its arguments and its idempotency key in one transaction.

use std::time::Duration;

use sea_orm::ActiveValue::Set;
use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use crate::db::entity::job::{ActiveModel, Entity, Model};
use crate::db::{Db, execute, micros, now, statement, uploads};
use crate::ids::{CollectionId, JobId};
use crate::job::{ImageRef, JobArgs, JobState};

/// What a client asks for.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct NewJob {
    pub collection: CollectionId,
    /// The pipeline, pinned here so that a later change of the collection's model leaves the job alone.
    pub pipeline: String,
    pub args: JobArgs,
    pub tag: Option<String>,
    /// The W3C trace context of the request.
    pub traceparent: Option<String>,
    pub idempotency: Option<Idempotency>,
    /// Uploads that come with this very request, to be recorded together with it.
    pub inline_uploads: Vec<uploads::NewUpload>,
}

/// A client's promise that requests with the same key are the same request.
#[derive(Clone, Debug)]
pub struct Idempotency {
    /// The method and path the key was sent to.
    pub route: String,
    /// The client's key.
    pub key: String,
    /// A digest of the parsed arguments and the pictures' bytes.
    pub fingerprint: String,
    /// How long the key is remembered.
    pub keep: Duration,
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
}

/// The job that this key made before, if any, so that a repeat need not store its picture again.
pub async fn find_repeated(db: &Db, idempotency: &Idempotency) -> Result<Option<Submitted>, DbErr> {
    repeated(&db.read, idempotency).await
}

/// Stores the job; it is durable when this returns.
pub async fn submit(db: &Db, new: NewJob) -> Result<Submitted, DbErr> {
    let txn = db.begin().await?;
    if let Some(idempotency) = &new.idempotency
        && let Some(found) = repeated(&txn, idempotency).await?
    {
        return Ok(found);
    }
    for upload in new.inline_uploads.clone() {
        uploads::create(&txn, upload).await?;
    }
    let job = insert(&txn, &new).await?;
    if let Some(idempotency) = new.idempotency
        && !remember(&txn, &idempotency, job.id).await?
    {
        // Another request with this key committed since it was looked for.
        txn.rollback().await?;
        return repeated(&db.write, &idempotency).await?.ok_or_else(|| {
            DbErr::Custom("an idempotency key was taken and released within one request; send it again".to_owned())
        });
    }
    txn.commit().await?;
    Ok(Submitted::New(job))
}

/// Forgets up to `limit` idempotency keys whose time is over.
pub async fn forget_expired_keys(db: &Db, limit: u64) -> Result<u64, DbErr> {
    let sql = format!(
        "DELETE FROM idempotency_keys WHERE expires_at < {{now}} AND (route, key) IN
         (SELECT route, key FROM idempotency_keys WHERE expires_at < {{now}} LIMIT {limit})"
    );
    execute(&db.write, &sql, []).await
}

async fn insert(txn: &impl ConnectionTrait, new: &NewJob) -> Result<Model, DbErr> {
    let created_at = now(txn).await?;
    let job = ActiveModel {
        id: Set(JobId::new()),
        collection_id: Set(new.collection),
        kind: Set(new.args.kind()),
        lane: Set(new.args.kind().lane()),
        pipeline: Set(new.pipeline.clone()),
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

/// False when the key stands for another job. Waits for a request with the same key that is under way.
async fn remember(txn: &impl ConnectionTrait, idempotency: &Idempotency, job: JobId) -> Result<bool, DbErr> {
    // An expired key that was not swept yet is free again.
    let sql = "INSERT INTO idempotency_keys (route, key, fingerprint, job_id, expires_at)
        VALUES ($1, $2, $3, $4, {now} + $5)
        ON CONFLICT (route, key) DO UPDATE SET fingerprint = excluded.fingerprint, job_id = excluded.job_id,
            expires_at = excluded.expires_at
        WHERE idempotency_keys.expires_at <= {now}";
    let values = [
        idempotency.route.as_str().into(),
        idempotency.key.as_str().into(),
        idempotency.fingerprint.as_str().into(),
        job.into(),
        micros(idempotency.keep).into(),
    ];
    Ok(execute(txn, sql, values).await? > 0)
}

async fn repeated(conn: &impl ConnectionTrait, idempotency: &Idempotency) -> Result<Option<Submitted>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        fingerprint: String,
        job_id: JobId,
    }
    let sql = "SELECT fingerprint, job_id FROM idempotency_keys
        WHERE route = $1 AND key = $2 AND expires_at > {now}";
    let values = [idempotency.route.as_str().into(), idempotency.key.as_str().into()];
    let Some(row) = Row::find_by_statement(statement(conn, sql, values)).one(conn).await? else { return Ok(None) };
    if row.fingerprint != idempotency.fingerprint {
        return Ok(Some(Submitted::KeyReused));
    }
    Ok(Entity::find_by_id(row.job_id).one(conn).await?.map(Submitted::Existing))
}
