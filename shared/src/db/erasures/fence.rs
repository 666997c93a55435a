//! What was accepted before an erasure must not bring back what was erased: whoever records a job looks here, in the same
//! transaction and after it has locked what it writes to.

use std::collections::HashSet;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde_json::{Value as Json, json};

use super::redact::{Redacted, redact, uuids_of};
use super::{Term, hash};
use crate::db::entity::job::Model as Job;
use crate::db::rows::{Column, Rows};
use crate::db::{count, statement};
use crate::ids::{CollectionId, PersonId};
use crate::job::PersonRef;
use crate::secret_key::SecretKey;

/// What an attempt is about to store.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    /// A face of a person, named as the job names it.
    OfPerson(&'a PersonRef),
    /// Faces of a picture, by the SHA-256 of its bytes.
    OfPicture(&'a str),
}

/// The erasures of a collection, as far as they concern jobs that are being recorded.
#[derive(Debug)]
pub struct Fence<'a> {
    key: &'a SecretKey,
    collection: CollectionId,
    /// When the latest one was done; the end of time while one is under way.
    latest: Option<i64>,
}

impl<'a> Fence<'a> {
    /// Reads when something of the collection was erased last: most often never, and there is nothing else to ask.
    pub async fn read(txn: &impl ConnectionTrait, key: &'a SecretKey, collection: CollectionId) -> Result<Self, DbErr> {
        Ok(Self { key, collection, latest: latest(txn, collection).await? })
    }

    /// When the job was accepted, if an erasure was under way since.
    async fn since(&self, txn: &impl ConnectionTrait, job: &Job) -> Result<Option<i64>, DbErr> {
        let Some(latest) = self.latest else { return Ok(None) };
        if job.batch_id.is_none() && latest < job.created_at {
            return Ok(None);
        }
        Ok(Some(accepted_at(txn, job).await?).filter(|since| *since <= latest))
    }

    /// Whether one of the things was erased since the job was accepted.
    pub async fn holds_back(
        &self,
        txn: &impl ConnectionTrait,
        job: &Job,
        stored: &[Stored<'_>],
    ) -> Result<bool, DbErr> {
        let Some(since) = self.since(txn, job).await? else { return Ok(false) };
        let name = |stored: &Stored<'_>| match stored {
            Stored::OfPerson(PersonRef::Id { id }) => (Term::Id, id.to_string()),
            Stored::OfPerson(PersonRef::External { external_id, .. }) => (Term::ExternalId, external_id.clone()),
            Stored::OfPicture(sha256) => (Term::Sha256, (*sha256).to_owned()),
        };
        let names: Vec<_> = stored.iter().map(name).collect();
        Ok(self.erased(txn, &names).await?.iter().any(|found| found.requested_at >= since))
    }

    /// Which of the persons were erased since the job was accepted.
    pub async fn gone(
        &self,
        txn: &impl ConnectionTrait,
        job: &Job,
        persons: &[PersonId],
    ) -> Result<HashSet<PersonId>, DbErr> {
        if persons.is_empty() {
            return Ok(HashSet::new());
        }
        let Some(since) = self.since(txn, job).await? else { return Ok(HashSet::new()) };
        let names: Vec<_> = persons.iter().map(|person| (Term::Id, person.to_string())).collect();
        let erased = self.erased(txn, &names).await?.into_iter().filter(|found| found.requested_at >= since);
        Ok(erased.map(|found| persons[found.at]).collect())
    }

    /// Takes out of an answer who was erased since the job was accepted, or is being erased: the job may have seen them before
    /// the last of their rows was gone. `None` where nothing of it may stay.
    pub async fn redacted(
        &self,
        txn: &impl ConnectionTrait,
        job: &Job,
        mut answer: Json,
    ) -> Result<Option<Json>, DbErr> {
        let Some(since) = self.since(txn, job).await? else { return Ok(Some(answer)) };
        let named: HashSet<Uuid> = uuids_of(&answer).into_iter().collect();
        let named: Vec<Uuid> = named.into_iter().collect();
        let names: Vec<_> = named.iter().map(|id| (Term::Id, id.to_string())).collect();
        let erased = self.erased(txn, &names).await?.into_iter().filter(|found| found.done_at >= since);
        let erased: HashSet<Uuid> = erased.map(|found| named[found.at]).collect();
        Ok(match redact(&mut answer, &|id| erased.contains(&id)) {
            Redacted::Untouched | Redacted::Changed => Some(answer),
            Redacted::Nothing => None,
        })
    }

    /// Which of the names were erased, and when.
    async fn erased(&self, txn: &impl ConnectionTrait, names: &[(Term, String)]) -> Result<Vec<Found>, DbErr> {
        #[derive(FromQueryResult)]
        struct Row {
            hash: String,
            requested_at: i64,
            done_at: i64,
        }
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let hashes: Vec<String> =
            names.iter().map(|(term, text)| hash(self.key, Some(self.collection), *term, text)).collect();
        let row = |hash: &String| json!({ "hash": hash });
        let asked = Rows::new(&[("hash", Column::Text)], hashes.iter().map(row).collect());
        let sql = format!(
            "SELECT s.hash, max(s.erased_at) AS requested_at, max(COALESCE(e.finished_at, {NEVER})) AS done_at
             FROM erased_subjects s JOIN erasures e ON e.id = s.erasure_id WHERE s.hash IN (SELECT r.hash FROM {}) GROUP BY s.hash",
            asked.table(txn)
        );
        let rows = Row::find_by_statement(statement(txn, &sql, [asked.value()])).all(txn).await?;
        let found = |row: Row| {
            let at = hashes.iter().position(|hash| *hash == row.hash)?;
            Some(Found { at, requested_at: row.requested_at, done_at: row.done_at })
        };
        Ok(rows.into_iter().filter_map(found).collect())
    }
}

/// A name that was erased.
struct Found {
    /// Its place among those that were asked about.
    at: usize,
    requested_at: i64,
    done_at: i64,
}

/// When an erasure is done that is under way.
const NEVER: i64 = i64::MAX;

async fn latest(conn: &impl ConnectionTrait, collection: CollectionId) -> Result<Option<i64>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        latest: Option<i64>,
    }
    let sql = format!(
        "SELECT CASE WHEN EXISTS (SELECT 1 FROM erasures WHERE collection_id = $1 AND finished_at IS NULL) THEN {NEVER}
            ELSE (SELECT max(finished_at) FROM erasures WHERE collection_id = $1) END AS latest"
    );
    let row = Row::find_by_statement(statement(conn, &sql, [collection.into()])).one(conn).await?;
    Ok(row.and_then(|row| row.latest))
}

/// When the client was told that the job, or its batch, is accepted. An erasure of the same instant counts as later: on
/// `SQLite` an instant lasts a millisecond, and what was erased must not come back.
pub async fn accepted_at(conn: &impl ConnectionTrait, job: &Job) -> Result<i64, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        created_at: i64,
    }
    let Some(batch) = job.batch_id else { return Ok(job.created_at) };
    let sql = "SELECT created_at FROM batches WHERE id = $1";
    let row = Row::find_by_statement(statement(conn, sql, [batch.into()])).one(conn).await?;
    Ok(row.map_or(job.created_at, |row| row.created_at))
}

/// Whether something of the collection was erased since that instant: what an import read before may be part of it.
pub async fn has_erased_since(
    conn: &impl ConnectionTrait,
    collection: CollectionId,
    since: i64,
) -> Result<bool, DbErr> {
    let sql =
        "SELECT count(*) AS n FROM (SELECT 1 FROM erasures WHERE collection_id = $1 AND requested_at >= $2 LIMIT 1)
        AS one";
    Ok(count(conn, sql, [collection.into(), since.into()]).await? > 0)
}
