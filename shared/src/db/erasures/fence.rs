//! What was accepted before an erasure must not bring back what was erased: whoever records a job looks here, in the same
//! transaction and after it has locked what it writes to.

use std::collections::{BTreeSet, HashMap, HashSet};

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde_json::{Value as Json, json};
use tokio::sync::OnceCell;

use super::redact::{Redacted, redact, uuids_of};
use super::{Name, Term, hash};
use crate::db::entity::job::Model as Job;
use crate::db::rows::{Column, Rows};
use crate::db::{placeholders, statement};
use crate::ids::{BatchId, CollectionId, JobId, PersonId};
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

impl Stored<'_> {
    fn name(&self) -> Name {
        match self {
            Self::OfPerson(PersonRef::Id { id }) => (Term::Id, id.to_string()),
            Self::OfPerson(PersonRef::External { external_id, .. }) => (Term::ExternalId, external_id.clone()),
            Self::OfPicture(sha256) => (Term::Sha256, (*sha256).to_owned()),
        }
    }
}

/// The erasures of a collection, as far as they concern jobs that are recorded in one transaction. Read with the first question,
/// which is asked once the transaction holds what it writes to: an erasure that comes later waits for it, and looks through
/// what it has written. One look is enough, since a job that locks more only later (to enroll, it takes a person) is recorded
/// alone: whatever its transaction has asked, it asked after that lock.
#[derive(Debug)]
pub struct Fence<'a> {
    key: &'a SecretKey,
    collection: CollectionId,
    batches: BTreeSet<BatchId>,
    read: OnceCell<Read>,
}

#[derive(Debug)]
struct Read {
    /// When the latest one was done; the end of time while one is under way.
    latest: Option<i64>,
    /// When the batches of the jobs were accepted, where there was any erasure.
    batches: HashMap<BatchId, i64>,
}

impl<'a> Fence<'a> {
    /// That of jobs which are recorded together.
    pub fn of<'j>(key: &'a SecretKey, collection: CollectionId, jobs: impl IntoIterator<Item = &'j Job>) -> Self {
        let batches = jobs.into_iter().filter_map(|job| job.batch_id).collect();
        Self { key, collection, batches, read: OnceCell::new() }
    }

    /// Most often nothing was ever erased, and there is nothing else to ask.
    async fn read(&self, txn: &impl ConnectionTrait) -> Result<&Read, DbErr> {
        let read = async || {
            let latest = latest(txn, self.collection).await?;
            let is_asked = latest.is_some() && !self.batches.is_empty();
            let batches = if is_asked { accepted(txn, &self.batches).await? } else { HashMap::new() };
            Ok(Read { latest, batches })
        };
        self.read.get_or_try_init(read).await
    }

    /// When the client was told that the job, or its batch, is accepted; `None` where nothing of the collection was ever erased.
    pub async fn accepted_at(&self, txn: &impl ConnectionTrait, job: &Job) -> Result<Option<i64>, DbErr> {
        let read = self.read(txn).await?;
        Ok(read.latest.map(|_| read.accepted_at(job)))
    }

    /// Those of the jobs which are about to store what was erased since they were accepted.
    pub async fn held_back(
        &self,
        txn: &impl ConnectionTrait,
        stored: &[(&Job, Stored<'_>)],
    ) -> Result<HashSet<JobId>, DbErr> {
        let read = self.read(txn).await?;
        let concerned = stored.iter().filter_map(|(job, stored)| Some((job.id, read.since(job)?, stored.name())));
        let concerned: Vec<_> = concerned.collect();
        let erased = self.erased(txn, concerned.iter().map(|(.., name)| name.clone()).collect()).await?;
        let is_erased = |since, name| erased.get(name).is_some_and(|when| when.requested_at >= since);
        Ok(concerned.iter().filter(|(_, since, name)| is_erased(*since, name)).map(|(job, ..)| *job).collect())
    }

    /// Which of the persons were erased since each of the jobs was accepted, in the order of the jobs.
    pub async fn gone(
        &self,
        txn: &impl ConnectionTrait,
        jobs: &[&Job],
        persons: &[PersonId],
    ) -> Result<Vec<HashSet<PersonId>>, DbErr> {
        let read = self.read(txn).await?;
        let since: Vec<Option<i64>> = jobs.iter().map(|job| read.since(job)).collect();
        if persons.is_empty() || since.iter().all(Option::is_none) {
            return Ok(vec![HashSet::new(); jobs.len()]);
        }
        let name = |person: &PersonId| (Term::Id, person.to_string());
        let erased = self.erased(txn, persons.iter().map(name).collect()).await?;
        let is_gone =
            |person: &PersonId, since| erased.get(&name(person)).is_some_and(|when| when.requested_at >= since);
        let gone = |since: Option<i64>| {
            let gone = |since| persons.iter().filter(|person| is_gone(person, since)).copied().collect();
            since.map(gone).unwrap_or_default()
        };
        Ok(since.into_iter().map(gone).collect())
    }

    /// Takes out of answers who was erased since their jobs were accepted, or is being erased: a job may have seen them before
    /// the last of their rows was gone. `None` where nothing of an answer may stay. In the order given.
    pub async fn redacted(
        &self,
        txn: &impl ConnectionTrait,
        answers: Vec<(&Job, Json)>,
    ) -> Result<Vec<Option<Json>>, DbErr> {
        let read = self.read(txn).await?;
        let named =
            answers.iter().filter(|(job, _)| read.since(job).is_some()).flat_map(|(_, answer)| uuids_of(answer));
        let name = |id: Uuid| (Term::Id, id.to_string());
        let erased = self.erased(txn, named.map(name).collect()).await?;
        let redacted = |(job, mut answer): (&Job, Json)| {
            let Some(since) = read.since(job) else { return Some(answer) };
            let is_erased = |id| erased.get(&name(id)).is_some_and(|when| when.done_at >= since);
            match redact(&mut answer, &is_erased) {
                Redacted::Untouched | Redacted::Changed => Some(answer),
                Redacted::Nothing => None,
            }
        };
        Ok(answers.into_iter().map(redacted).collect())
    }

    /// Which of the names were erased since that instant.
    pub(in crate::db) async fn erased_since(
        &self,
        txn: &impl ConnectionTrait,
        since: i64,
        names: impl FnOnce() -> HashSet<Name>,
    ) -> Result<HashSet<Name>, DbErr> {
        if self.read(txn).await?.latest.is_none_or(|latest| latest < since) {
            return Ok(HashSet::new());
        }
        let erased = self.erased(txn, names()).await?;
        Ok(erased.into_iter().filter(|(_, when)| when.requested_at >= since).map(|(name, _)| name).collect())
    }

    /// Those of the names that were erased, and when.
    async fn erased(&self, txn: &impl ConnectionTrait, names: HashSet<Name>) -> Result<HashMap<Name, When>, DbErr> {
        #[derive(FromQueryResult)]
        struct Row {
            hash: String,
            requested_at: i64,
            done_at: i64,
        }
        if names.is_empty() {
            return Ok(HashMap::new());
        }
        let hashed = |name: Name| (hash(self.key, Some(self.collection), name.0, &name.1), name);
        let mut names: HashMap<String, Name> = names.into_iter().map(hashed).collect();
        let row = |hash: &String| json!({ "hash": hash });
        let asked = Rows::new(&[("hash", Column::Text)], names.keys().map(row).collect());
        let sql = format!(
            "SELECT s.hash, max(s.erased_at) AS requested_at, max(COALESCE(e.finished_at, {NEVER})) AS done_at
             FROM erased_subjects s JOIN erasures e ON e.id = s.erasure_id WHERE s.hash IN (SELECT r.hash FROM {}) GROUP BY s.hash",
            asked.table(txn)
        );
        let rows = Row::find_by_statement(statement(txn, &sql, [asked.value()])).all(txn).await?;
        let found = |row: Row| {
            let when = When { requested_at: row.requested_at, done_at: row.done_at };
            Some((names.remove(&row.hash)?, when))
        };
        Ok(rows.into_iter().filter_map(found).collect())
    }
}

impl Read {
    fn accepted_at(&self, job: &Job) -> i64 {
        job.batch_id.and_then(|batch| self.batches.get(&batch)).copied().unwrap_or(job.created_at)
    }

    /// When the job was accepted, if an erasure was under way since. An erasure of the same instant counts as later: on `SQLite`
    /// an instant lasts a millisecond, and what was erased must not come back.
    fn since(&self, job: &Job) -> Option<i64> {
        let latest = self.latest?;
        Some(self.accepted_at(job)).filter(|since| *since <= latest)
    }
}

/// When a name was erased.
#[derive(Clone, Copy, Debug)]
struct When {
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

/// When those batches were accepted.
async fn accepted(conn: &impl ConnectionTrait, batches: &BTreeSet<BatchId>) -> Result<HashMap<BatchId, i64>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: BatchId,
        created_at: i64,
    }
    let sql = format!("SELECT id, created_at FROM batches WHERE id IN ({})", placeholders(1, batches.len()));
    let found = statement(conn, &sql, batches.iter().map(|batch| Value::from(*batch)));
    let rows = Row::find_by_statement(found).all(conn).await?;
    Ok(rows.into_iter().map(|row| (row.id, row.created_at)).collect())
}
