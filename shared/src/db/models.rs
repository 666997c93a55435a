//! Models as they are registered: a name, and what the catalogue says of it.

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::{count, execute, is_postgres, now, statement};
use crate::catalogue::{Entry, Origin};
use crate::ids::ApiKeyId;

/// A registered entry.
#[derive(Clone, Debug, PartialEq, FromQueryResult)]
pub struct Model {
    /// Its name, which is the pipeline's.
    pub name: String,
    /// The entry's text.
    pub entry: String,
    /// SHA-256 of it.
    pub digest: String,
    origin: String,
    /// When the name was registered first.
    pub registered_at: i64,
    /// When its text or origin changed last.
    pub changed_at: i64,
}

impl Model {
    /// Who said it; what an older program does not know counts as added.
    pub fn origin(&self) -> Origin {
        Origin::of(&self.origin).unwrap_or(Origin::Added)
    }

    /// By what it is told whether it was read.
    pub(crate) fn version(&self) -> Digest {
        Digest { name: self.name.clone(), digest: self.digest.clone(), origin: self.origin.clone() }
    }
}

/// By what a process tells which entries it has not read yet.
#[derive(Clone, Debug, PartialEq, Eq, FromQueryResult)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Digest {
    pub name: String,
    pub digest: String,
    pub origin: String,
}

const COLUMNS: &str = "name, entry, digest, origin, registered_at, changed_at";

/// Keeps others from registering or removing entries until the transaction ends; they wait briefly, then fail.
pub(crate) async fn lock(txn: &impl ConnectionTrait) -> Result<(), DbErr> {
    if is_postgres(txn) {
        execute(txn, "SET LOCAL lock_timeout = '2s'", []).await?;
        execute(txn, "LOCK TABLE models IN SHARE ROW EXCLUSIVE MODE", []).await?;
    }
    Ok(())
}

/// Keeps the model from being removed or replaced until the transaction ends, which is about to use it. False: there is none.
pub(crate) async fn hold(txn: &impl ConnectionTrait, name: &str) -> Result<bool, DbErr> {
    locked(txn, name, if is_postgres(txn) { "FOR SHARE" } else { "" }).await
}

/// Waits for those that [`hold`] the model, so that what uses it is seen afterwards, and keeps others from it.
pub(crate) async fn hold_alone(txn: &impl ConnectionTrait, name: &str) -> Result<(), DbErr> {
    locked(txn, name, "{for update}").await.map(drop)
}

async fn locked(txn: &impl ConnectionTrait, name: &str, lock: &str) -> Result<bool, DbErr> {
    let sql = format!("SELECT count(*) AS n FROM (SELECT name FROM models WHERE name = $1 {lock}) AS locked");
    Ok(count(txn, &sql, [name.into()]).await? > 0)
}

/// What each entry is now, by name.
pub async fn digests(conn: &impl ConnectionTrait) -> Result<Vec<Digest>, DbErr> {
    let sql = "SELECT name, digest, origin FROM models ORDER BY name";
    Digest::find_by_statement(statement(conn, sql, [])).all(conn).await
}

/// All entries, by name.
pub async fn all(conn: &impl ConnectionTrait) -> Result<Vec<Model>, DbErr> {
    Model::find_by_statement(statement(conn, &format!("SELECT {COLUMNS} FROM models ORDER BY name"), []))
        .all(conn)
        .await
}

/// Up to `limit` entries whose name comes after `after`, by name.
pub async fn list(conn: &impl ConnectionTrait, after: Option<&str>, limit: u64) -> Result<Vec<Model>, DbErr> {
    let sql = format!("SELECT {COLUMNS} FROM models WHERE name > $1 ORDER BY name LIMIT {limit}");
    Model::find_by_statement(statement(conn, &sql, [after.unwrap_or_default().into()])).all(conn).await
}

/// The entry of that name.
pub async fn find(conn: &impl ConnectionTrait, name: &str) -> Result<Option<Model>, DbErr> {
    let sql = format!("SELECT {COLUMNS} FROM models WHERE name = $1");
    Model::find_by_statement(statement(conn, &sql, [name.into()])).one(conn).await
}

/// Writes an entry, in the place of one of its name.
pub(crate) async fn put(txn: &impl ConnectionTrait, entry: &Entry, key: Option<ApiKeyId>) -> Result<(), DbErr> {
    let sql = "INSERT INTO models (name, entry, digest, origin, api_key_id, registered_at, changed_at)
        VALUES ($1, $2, $3, $4, $5, $6, $6)
        ON CONFLICT (name) DO UPDATE SET entry = excluded.entry, digest = excluded.digest, origin = excluded.origin,
            api_key_id = excluded.api_key_id, changed_at = excluded.changed_at";
    let values = [
        entry.pipeline.name.as_str().into(),
        entry.text.as_str().into(),
        entry.digest().into(),
        entry.origin.as_str().into(),
        key.into(),
        now(txn).await?.into(),
    ];
    execute(txn, sql, values).await?;
    Ok(())
}

/// Deletes an entry.
pub(crate) async fn delete(txn: &impl ConnectionTrait, name: &str) -> Result<(), DbErr> {
    execute(txn, "DELETE FROM models WHERE name = $1", [name.into()]).await?;
    Ok(())
}

/// What a pipeline is used by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A collection goes by it, or is about to.
    Collection,
    /// Vectors that it made are stored.
    Vectors,
    /// Jobs that are pinned to it have not ended.
    Jobs,
}

impl Use {
    /// What has it, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Collection => "a collection goes by it, or has a reprocess run with it",
            Self::Vectors => "vectors that it made are stored",
            Self::Jobs => "jobs with it have not ended",
        }
    }
}

/// What uses the pipeline, if anything does.
pub(crate) async fn in_use(conn: &impl ConnectionTrait, pipeline: &str) -> Result<Option<Use>, DbErr> {
    let uses = [
        (Use::Collection, "collections WHERE pipeline = $1"),
        (Use::Collection, "reprocess_runs WHERE ended_at IS NULL AND (pipeline = $1 OR from_pipeline = $1)"),
        (Use::Vectors, "embeddings WHERE pipeline = $1"),
        (Use::Jobs, "jobs WHERE pipeline = $1 AND state IN ('queued', 'running')"),
    ];
    for (found, rows) in uses {
        let sql = format!("SELECT count(*) AS n FROM (SELECT 1 FROM {rows} LIMIT 1) AS one");
        if count(conn, &sql, [pipeline.into()]).await? > 0 {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Registers a name, with an entry that nobody reads.
#[cfg(test)]
pub(crate) async fn put_name(db: &super::Db, name: &str) {
    let sql = "INSERT INTO models (name, entry, digest, origin, registered_at, changed_at) VALUES ($1, '', '', 'added', 1, 1)";
    execute(&db.write, sql, [name.into()]).await.expect("put a name");
}
