//! Erasures: the end of a person, face, image or collection, in every table, object and queue. In reading order:
//!
//! - [`request`]: takes the subject away from every later answer, and writes the receipt
//! - [`rows`]: deletes what is left of it, a slice in a transaction
//! - [`fence`]: keeps what was accepted before from bringing it back, and [`places`] detectors
//! - [`traces`]: looks for it in jobs, events and the rest, by [`redact`]
//!
//! A receipt names no subject: what stays of it are hashes with the secret key, by which it is known again.

pub mod fence;
pub mod places;
pub mod redact;
pub mod request;
pub mod rows;
pub mod traces;

#[cfg(test)]
mod tests;

use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::rows::{self as many, Column, Rows};
use super::webhooks::events;
use super::{Db, execute, is_postgres, scoped, statement};
use crate::access::Grant;
use crate::digest::hex;
use crate::ids::{CollectionId, ErasureId};
use crate::job::Problem;
use crate::secret_key::SecretKey;

/// What is erased.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    EnumIter,
    DeriveActiveEnum,
    ToSchema,
)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum ErasureSubject {
    /// A person with all faces.
    #[sea_orm(string_value = "person")]
    Person,
    /// One face.
    #[sea_orm(string_value = "face")]
    Face,
    /// An image with all faces on it.
    #[sea_orm(string_value = "image")]
    Image,
    /// A collection with all that it holds.
    #[sea_orm(string_value = "collection")]
    Collection,
}

/// A row of `erasures`: the receipt, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, FromQueryResult)]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct Erasure {
    pub id: ErasureId,
    pub subject: ErasureSubject,
    /// Of a person, face or image, as long as the collection is there.
    pub collection_id: Option<CollectionId>,
    /// The subject, until it is erased.
    pub target: Option<Uuid>,
    /// Whether every picture that shows the person goes with it.
    pub all_images: bool,
    pub persons: i64,
    pub faces: i64,
    pub images: i64,
    pub vectors: i64,
    pub crops: i64,
    /// Pictures and crops that were deleted from the object store.
    pub objects: i64,
    /// Jobs that were cancelled, or of whose arguments, answers or tags something was removed.
    pub jobs: i64,
    /// Webhook events that named it.
    pub events: i64,
    pub requested_at: i64,
    pub finished_at: Option<i64>,
}

const COLUMNS: &str =
    "id, subject, collection_id, target, all_images, persons, faces, images, vectors, crops, objects, jobs,
    events, requested_at, finished_at";

/// What erasures look for. The same text in hashes, so that it must not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::db) enum Term {
    Id,
    ExternalId,
    Sha256,
    /// A place of a picture.
    Uri,
    /// An object to be deleted.
    Object,
    /// The beginning of the keys of objects to be deleted.
    Prefix,
    /// A collection's name; only hashed.
    Name,
}

/// A name of something, as it is looked for.
pub(in crate::db) type Name = (Term, String);

impl Term {
    fn as_str(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::ExternalId => "external_id",
            Self::Sha256 => "sha256",
            Self::Uri => "uri",
            Self::Object => "object",
            Self::Prefix => "prefix",
            Self::Name => "name",
        }
    }
}

/// What the hashes' key is derived by.
const PURPOSE: &str = "erasure";

/// What a subject is known again by. A collection is of none.
fn hash(key: &SecretKey, collection: Option<CollectionId>, term: Term, text: &str) -> String {
    let collection = collection.map_or(Uuid::nil(), |id| id.0);
    hex(&key.code(PURPOSE, &[term.as_str().as_bytes(), collection.as_bytes(), text.as_bytes()]))
}

/// What a job is told that was discarded, or of which something was removed, because of an erasure.
pub(super) fn erased_problem() -> Problem {
    Problem::new("subject_erased", "what it is about was erased; send it again if it is to be stored all the same")
}

/// The erasure of that id, if the grant shows it: those of a collection that is gone are shown to grants for all.
pub async fn find(conn: &impl ConnectionTrait, grant: &Grant, id: ErasureId) -> Result<Option<Erasure>, DbErr> {
    let (reached, values) = scoped::sql(grant, "collection_id", 2);
    let sql = format!("SELECT {COLUMNS} FROM erasures WHERE id = $1 AND {reached}");
    let values = std::iter::once(id.into()).chain(values);
    Erasure::find_by_statement(statement(conn, &sql, values)).one(conn).await
}

/// Up to `limit` erasures that the grant shows and that were requested before `before`, newest first.
pub async fn list(db: &Db, grant: &Grant, before: Option<ErasureId>, limit: u64) -> Result<Vec<Erasure>, DbErr> {
    let (reached, values) = scoped::sql(grant, "collection_id", 2);
    let sql = format!("SELECT {COLUMNS} FROM erasures WHERE id < $1 AND {reached} ORDER BY id DESC LIMIT {limit}");
    let before = before.unwrap_or(ErasureId(Uuid::max()));
    let values = std::iter::once(before.into()).chain(values);
    Erasure::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await
}

/// Up to `limit` erasures that are not done and come after `after`, oldest first.
pub async fn open(db: &Db, after: Option<ErasureId>, limit: u64) -> Result<Vec<Erasure>, DbErr> {
    let sql = format!("SELECT {COLUMNS} FROM erasures WHERE finished_at IS NULL AND id > $1 ORDER BY id LIMIT {limit}");
    let after = after.unwrap_or(ErasureId(Uuid::nil()));
    Erasure::find_by_statement(statement(&db.read, &sql, [after.into()])).all(&db.read).await
}

/// Whether faces of a person that was to be erased are still there.
pub(super) async fn takes_a_person(conn: &impl ConnectionTrait, collection: CollectionId) -> Result<bool, DbErr> {
    let sql = "SELECT count(*) AS n FROM (SELECT 1 FROM persons WHERE collection_id = $1 AND erased_at IS NOT NULL
        LIMIT 1) AS one";
    Ok(crate::db::count(conn, sql, [collection.into()]).await? > 0)
}

/// The latest erasure of that subject.
async fn latest(conn: &impl ConnectionTrait, subject_hash: &str) -> Result<Option<Erasure>, DbErr> {
    let sql = format!("SELECT {COLUMNS} FROM erasures WHERE subject_hash = $1 ORDER BY id DESC LIMIT 1");
    Erasure::find_by_statement(statement(conn, &sql, [subject_hash.into()])).one(conn).await
}

/// Remembers what is to be looked for.
async fn add_terms(
    txn: &impl ConnectionTrait,
    erasure: ErasureId,
    terms: impl IntoIterator<Item = (Term, String)>,
) -> Result<(), DbErr> {
    let row = |(kind, term): (Term, String)| json!({ "kind": kind.as_str(), "term": term });
    let terms: Vec<_> = terms.into_iter().map(row).collect();
    if terms.is_empty() {
        return Ok(());
    }
    let terms = Rows::new(&[("kind", Column::Text), ("term", Column::Text)], terms);
    let sql = format!(
        "INSERT INTO erasure_terms (erasure_id, kind, term) SELECT $2, r.kind, r.term FROM {} WHERE TRUE
         ON CONFLICT DO NOTHING",
        terms.table(txn)
    );
    execute(txn, &sql, [terms.value(), erasure.into()]).await?;
    Ok(())
}

/// Keeps what was accepted before this moment from storing anything under these names.
async fn add_subjects(
    txn: &impl ConnectionTrait,
    key: &SecretKey,
    erasure: &Erasure,
    names: &[(Term, String)],
) -> Result<(), DbErr> {
    for (term, text) in names {
        let of = erasure.collection_id.filter(|_| erasure.subject != ErasureSubject::Collection);
        let sql = "INSERT INTO erased_subjects (hash, erasure_id, erased_at) VALUES ($1, $2, {now})
            ON CONFLICT DO NOTHING";
        execute(txn, sql, [hash(key, of, *term, text).into(), erasure.id.into()]).await?;
    }
    Ok(())
}

/// What a transaction has deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Removed {
    pub persons: u64,
    pub faces: u64,
    pub images: u64,
    pub vectors: u64,
    pub crops: u64,
    pub objects: u64,
    pub jobs: u64,
    pub events: u64,
}

/// Adds to the counts of a receipt.
pub async fn add_counts(conn: &impl ConnectionTrait, erasure: ErasureId, removed: Removed) -> Result<(), DbErr> {
    if removed == Removed::default() {
        return Ok(());
    }
    let sql = "UPDATE erasures SET persons = persons + $2, faces = faces + $3, images = images + $4,
        vectors = vectors + $5, crops = crops + $6, objects = objects + $7, jobs = jobs + $8, events = events + $9
        WHERE id = $1";
    let n = |count: u64| Value::from(i64::try_from(count).unwrap_or(i64::MAX));
    let Removed { persons, faces, images, vectors, crops, objects, jobs, events } = removed;
    let values = [persons, faces, images, vectors, crops, objects, jobs, events].map(n);
    execute(conn, sql, std::iter::once(erasure.into()).chain(values)).await?;
    Ok(())
}

/// Ends an erasure of which nothing is left to do: its receipt no longer knows what was erased, and webhook endpoints that want
/// to know are told.
pub async fn finish(db: &Db, erasure: ErasureId) -> Result<(), DbErr> {
    let txn = db.begin().await?;
    execute(&txn, "DELETE FROM erasure_terms WHERE erasure_id = $1", [erasure.into()]).await?;
    let sql = format!(
        "UPDATE erasures SET finished_at = {{now}}, target = NULL WHERE id = $1 AND finished_at IS NULL RETURNING {COLUMNS}"
    );
    let done = Erasure::find_by_statement(statement(&txn, &sql, [erasure.into()])).one(&txn).await?;
    if let Some(done) = done {
        events::erasure_completed(&txn, &done).await?;
    }
    txn.commit().await
}

/// Up to `limit` keys, or beginnings of keys, of objects that are to be deleted.
pub async fn objects(db: &Db, erasure: ErasureId, limit: u64) -> Result<Vec<ErasedObject>, DbErr> {
    let sql = format!(
        "SELECT term AS key, kind = 'prefix' AS is_prefix FROM erasure_terms
         WHERE erasure_id = $1 AND kind IN ('object', 'prefix') ORDER BY kind, term LIMIT {limit}"
    );
    ErasedObject::find_by_statement(statement(&db.read, &sql, [erasure.into()])).all(&db.read).await
}

/// An object to be deleted.
#[derive(Clone, Debug, PartialEq, Eq, FromQueryResult)]
pub struct ErasedObject {
    /// Its key.
    pub key: String,
    /// Whether every object goes whose key begins so.
    pub is_prefix: bool,
}

/// Orphans that are forgotten in one transaction.
const ORPHANS: u64 = 5000;

/// Forgets the orphans below a prefix under which nothing lies any more.
pub async fn forget_orphans(db: &Db, prefix: &str) -> Result<(), DbErr> {
    let sql = format!(
        "DELETE FROM orphaned_objects WHERE object_key IN
            (SELECT object_key FROM orphaned_objects WHERE substr(object_key, 1, length($1)) = $1 LIMIT {ORPHANS})"
    );
    while execute(&db.write, &sql, [prefix.into()]).await? >= ORPHANS {}
    Ok(())
}

/// Notes that some objects are gone; where they were all of one term, that too is done.
pub async fn objects_deleted(
    db: &Db,
    erasure: ErasureId,
    keys: &[String],
    done: Option<&ErasedObject>,
) -> Result<(), DbErr> {
    let txn = db.begin().await?;
    if !keys.is_empty() {
        let gone = Rows::new(&[("key", Column::Text)], keys.iter().map(|key| json!({ "key": key })).collect());
        let sql = format!("DELETE FROM orphaned_objects WHERE object_key IN (SELECT r.key FROM {})", gone.table(&txn));
        execute(&txn, &sql, [gone.value()]).await?;
    }
    if let Some(done) = done {
        let kind = if done.is_prefix { Term::Prefix } else { Term::Object };
        let sql = "DELETE FROM erasure_terms WHERE erasure_id = $1 AND kind = $2 AND term = $3";
        execute(&txn, sql, [erasure.into(), kind.as_str().into(), done.key.as_str().into()]).await?;
    }
    add_counts(&txn, erasure, Removed { objects: keys.len() as u64, ..Removed::default() }).await?;
    txn.commit().await
}

/// How long a reader is waited for.
const JOURNAL_TIMEOUT: Duration = Duration::from_millis(50);

/// Has the database's own files forget what was deleted: on `SQLite` the journal, whose pages hold it until they are written
/// over. False while somebody reads what was before. `PostgreSQL` clears its pages by itself (autovacuum).
pub async fn forget_journal(db: &Db) -> Result<bool, DbErr> {
    if is_postgres(&db.write) {
        return Ok(true);
    }
    let failed = |error: sqlx::Error| DbErr::Exec(sea_orm::RuntimeErr::SqlxError(error.into()));
    // One connection, for which all other writers wait.
    let mut connection = db.write.get_sqlite_connection_pool().acquire().await.map_err(failed)?;
    let short = format!("PRAGMA busy_timeout = {}", JOURNAL_TIMEOUT.as_millis());
    sqlx::query(sqlx::AssertSqlSafe(short)).execute(&mut *connection).await.map_err(failed)?;
    let checkpoint: Result<(i64, i64, i64), _> =
        sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut *connection).await;
    let restore = format!("PRAGMA busy_timeout = {}", super::SQLITE_BUSY_TIMEOUT.as_millis());
    sqlx::query(sqlx::AssertSqlSafe(restore)).execute(&mut *connection).await.map_err(failed)?;
    Ok(checkpoint.is_ok_and(|(busy, ..)| busy == 0))
}

/// The rows of one column of ids, to be read as `r`.
fn ids(column: &'static [(&'static str, Column); 1], ids: impl IntoIterator<Item = Uuid>) -> Rows {
    Rows::new(column, ids.into_iter().map(|id| json!({ column[0].0: many::id(id) })).collect())
}

const ID: [(&str, Column); 1] = [("id", Column::Id)];
