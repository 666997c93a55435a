//! Queries on uploads and on objects that nothing refers to any more.

use std::time::Duration;

use sea_orm::prelude::*;
use sea_orm::{ActiveValue::Set, FromQueryResult};

use super::batches::listing::needs_manifest;
use super::entity::upload::{ActiveModel, Column, Entity, Model};
use super::{Db, execute, micros, now, placeholders, scoped, statement};
use crate::access::Grant;
use crate::batch::Manifest;
use crate::ids::{CollectionId, JobId, UploadId};

/// A verify has two.
const INLINE_OF_A_JOB: u64 = 16;

/// What is known of a picture that was just stored.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct NewUpload {
    pub id: UploadId,
    pub collection: CollectionId,
    pub object_key: String,
    pub sha256: String,
    pub size_bytes: i64,
    pub content_type: String,
    pub inline: bool,
    /// How long it is kept when no job stores it.
    pub keep: Duration,
}

/// Records an upload.
pub async fn create(conn: &impl ConnectionTrait, new: NewUpload) -> Result<Model, DbErr> {
    let created_at = now(conn).await?;
    ActiveModel {
        id: Set(new.id),
        collection_id: Set(new.collection),
        object_key: Set(new.object_key),
        sha256: Set(new.sha256),
        size_bytes: Set(new.size_bytes),
        content_type: Set(new.content_type),
        inline: Set(new.inline),
        created_at: Set(created_at),
        expires_at: Set(created_at + micros(new.keep)),
    }
    .insert(conn)
    .await
}

/// The upload of that id in that collection, if the grant holds for it.
pub async fn find(
    conn: &impl ConnectionTrait,
    grant: &Grant,
    collection: CollectionId,
    id: UploadId,
) -> Result<Option<Model>, DbErr> {
    let reached = scoped::filter(grant, Column::CollectionId);
    Entity::find_by_id(id).filter(Column::CollectionId.eq(collection)).filter(reached).one(conn).await
}

/// Drops the pictures that came inside a job's own request, once no unfinished job needs them. An object that an image
/// refers to stays, any other is left to the sweeper.
pub async fn drop_inline_of_jobs(txn: &impl ConnectionTrait, jobs: &[JobId]) -> Result<(), DbErr> {
    let of_jobs = format!(
        "u.inline AND u.id IN (SELECT l.upload_id FROM job_uploads l WHERE l.job_id IN ({}))
         AND NOT EXISTS (SELECT 1 FROM job_uploads l JOIN jobs j ON j.id = l.job_id
            WHERE l.upload_id = u.id AND j.state IN ('queued', 'running'))",
        placeholders(1, jobs.len())
    );
    let most = INLINE_OF_A_JOB * jobs.len() as u64;
    drop_where(txn, &of_jobs, jobs.iter().map(|id| Value::from(*id)).collect(), most).await?;
    Ok(())
}

/// Drops up to `limit` uploads that expired and that no unfinished job needs; returns how many.
pub async fn drop_expired(db: &Db, limit: u64) -> Result<u64, DbErr> {
    let txn = db.begin().await?;
    let expired = "u.expires_at < {now} AND NOT EXISTS (
            SELECT 1 FROM job_uploads l JOIN jobs j ON j.id = l.job_id
            WHERE l.upload_id = u.id AND j.state IN ('queued', 'running'))";
    let dropped = drop_where(&txn, expired, vec![], limit).await?;
    txn.commit().await?;
    Ok(dropped)
}

/// Drops up to `limit` uploads of which the condition is true.
async fn drop_where(txn: &impl ConnectionTrait, condition: &str, values: Vec<Value>, limit: u64) -> Result<u64, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: UploadId,
    }
    let first = values.len() + 1;
    // Locked before they are looked at: a job that begins to need one at this moment is waited for, and seen below.
    let lock = format!("SELECT u.id FROM uploads u WHERE {condition} ORDER BY u.id LIMIT {limit} {{for update}}");
    let locked = Row::find_by_statement(statement(txn, &lock, values.clone())).all(txn).await?;
    if locked.is_empty() {
        return Ok(0);
    }
    let condition = format!("{condition} AND u.id IN ({})", placeholders(first, locked.len()));
    let values: Vec<Value> = values.into_iter().chain(locked.into_iter().map(|row| row.id.into())).collect();
    let orphan = format!(
        "INSERT INTO orphaned_objects (object_key) SELECT u.object_key FROM uploads u
         WHERE {condition} AND NOT EXISTS (SELECT 1 FROM images i WHERE i.object_key = u.object_key)
         ON CONFLICT DO NOTHING"
    );
    execute(txn, &orphan, values.clone()).await?;
    let delete = format!("DELETE FROM uploads WHERE id IN (SELECT u.id FROM uploads u WHERE {condition})");
    execute(txn, &delete, values).await
}

/// Up to `limit` keys of objects below a prefix that nothing refers to any more.
pub async fn orphaned_objects(db: &Db, prefix: &str, limit: u64) -> Result<Vec<String>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        object_key: String,
    }
    let sql = format!(
        "SELECT object_key FROM orphaned_objects WHERE substr(object_key, 1, length($1)) = $1
         ORDER BY object_key LIMIT {limit}"
    );
    let rows = Row::find_by_statement(statement(&db.read, &sql, [prefix.into()])).all(&db.read).await?;
    Ok(rows.into_iter().map(|r| r.object_key).collect())
}

/// Marks an object for deletion by the sweeper.
pub async fn orphan(conn: &impl ConnectionTrait, object_key: &str) -> Result<(), DbErr> {
    let sql = "INSERT INTO orphaned_objects (object_key) VALUES ($1) ON CONFLICT DO NOTHING";
    execute(conn, sql, [object_key.into()]).await?;
    Ok(())
}

/// Forgets an orphaned object, once it is deleted.
pub async fn forget_orphan(db: &Db, object_key: &str) -> Result<(), DbErr> {
    execute(&db.write, "DELETE FROM orphaned_objects WHERE object_key = $1", [object_key.into()]).await?;
    Ok(())
}

/// Whether a row refers to this object.
pub async fn is_referenced(db: &Db, object_key: &str) -> Result<bool, DbErr> {
    if let Some(manifest) = Manifest::of_key(object_key) {
        return needs_manifest(db, manifest).await;
    }
    let sql = "SELECT (SELECT count(*) FROM uploads WHERE object_key = $1)
        + (SELECT count(*) FROM images WHERE object_key = $1)
        + (SELECT count(*) FROM crops WHERE object_key = $1) AS n";
    Ok(super::count(&db.read, sql, [object_key.into()]).await? > 0)
}
