//! Faces that are matched again: what asks for it, the one job of a collection that does it, and what that reads and writes.
//!
//! A change of templates adds a request in its own transaction. One leader makes a job of a collection's requests, which
//! takes them when it begins: whatever was committed before is seen by all that it reads afterwards.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use sea_orm::prelude::*;
use sea_orm::{FromQueryResult, SqlErr};
use serde_json::json;

use super::embeddings::StoredVector;
use super::entity::{collection, job};
use super::jobs::submit::{NewJob, Submitted, submit};
use super::rows::{self, Column, Rows};
use super::{Db, collections, count, execute, is_postgres, micros, persons, placeholders, statement};
use crate::access::Grant;
use crate::embedding::Embedding;
use crate::ids::{CollectionId, FaceId, JobId, PersonId};
use crate::job::{JobArgs, RematchScope};

/// A request waits this long: a job that looked its faces up before the change has stored them by then.
const SETTLE: Duration = Duration::from_secs(2);
/// After a job that failed or was cancelled this long: whatever ended it should not end the next one at once, for ever.
const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// More changes than these, faces and persons together, and every face is looked at.
const MAX_TOUCHED: usize = 64;
/// Collections of one round.
const ROUND: u32 = 64;
/// Tries to find or make the job that waits: each loses only to another that does the same.
const TRIES: u32 = 5;
/// Rows of one statement.
const ROWS: usize = 1000;

/// Asks for what a change of templates concerns to be matched again: `face` and what is near it, where it was added or
/// freed, and the faces that were matched to `person`, which has lost a template. Neither: every face.
pub async fn request(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    face: Option<FaceId>,
    person: Option<PersonId>,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO rematch_requests (collection_id, face_id, person_id, requested_at)
        VALUES ($1, $2, $3, {now})";
    execute(txn, sql, [collection.into(), face.into(), person.into()]).await?;
    Ok(())
}

/// Asks for every face, a while from now, in place of what a job took that did not do it.
pub(super) async fn request_again(txn: &impl ConnectionTrait, collection: CollectionId) -> Result<(), DbErr> {
    let sql = "INSERT INTO rematch_requests (collection_id, requested_at) VALUES ($1, {now} + $2)";
    execute(txn, sql, [collection.into(), micros(AGAIN_AFTER).into()]).await?;
    Ok(())
}

/// Has jobs that have ended forget how far they were: nobody asks, and whom they began with may be erased.
pub(super) async fn forget_progress(txn: &impl ConnectionTrait, jobs: &[JobId]) -> Result<(), DbErr> {
    if jobs.is_empty() {
        return Ok(());
    }
    let rest = if is_postgres(txn) { "(args::jsonb - 'progress')::text" } else { "json_remove(args, '$.progress')" };
    let sql = format!("UPDATE job_payloads SET args = {rest} WHERE job_id IN ({})", placeholders(1, jobs.len()));
    execute(txn, &sql, jobs.iter().map(|job| Value::from(*job))).await?;
    Ok(())
}

/// The job that will match all faces of the collection again: the one that waits, or a new one.
pub async fn enqueue(db: &Db, collection: &collection::Model, traceparent: Option<String>) -> Result<Submitted, DbErr> {
    // For a job that waits already and would look at less; old enough to be taken at once.
    let sql = "INSERT INTO rematch_requests (collection_id, requested_at) VALUES ($1, 0)";
    execute(&db.write, sql, [collection.id.into()]).await?;
    find_or_submit(db, collection, true, traceparent).await
}

/// Makes a job for each collection that wants one and has none that is not done; returns how many.
pub async fn begin_wanted(db: &Db) -> Result<usize, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        collection_id: CollectionId,
    }
    let sql = format!(
        "SELECT DISTINCT r.collection_id FROM rematch_requests r WHERE r.requested_at <= {{now}} - $1 AND NOT EXISTS
            (SELECT 1 FROM jobs j WHERE j.collection_id = r.collection_id
             AND j.kind = 'rematch' AND j.state IN ('queued', 'running')) LIMIT {ROUND}"
    );
    let wanting = Row::find_by_statement(statement(&db.write, &sql, [micros(SETTLE).into()])).all(&db.write).await?;
    let mut made = 0;
    for Row { collection_id } in wanting {
        // Where there is nothing to match, as with galleries of enrolled faces only, there is nothing to do.
        let sql = format!(
            "DELETE FROM rematch_requests WHERE collection_id = $1 AND requested_at <= {{now}} - $2
             AND NOT EXISTS (SELECT 1 FROM faces f WHERE f.collection_id = $1 AND {MATCHABLE})"
        );
        if execute(&db.write, &sql, [collection_id.into(), micros(SETTLE).into()]).await? > 0 {
            continue;
        }
        if let Some(collection) = collections::find(&db.write, &Grant::everything(), collection_id).await? {
            find_or_submit(db, &collection, false, None).await?;
            made += 1;
        }
    }
    Ok(made)
}

async fn find_or_submit(
    db: &Db,
    collection: &collection::Model,
    all: bool,
    traceparent: Option<String>,
) -> Result<Submitted, DbErr> {
    let waiting = "SELECT * FROM jobs WHERE collection_id = $1 AND kind = 'rematch' AND state = 'queued'
        AND started_at IS NULL";
    for _ in 0..TRIES {
        let found = statement(&db.write, waiting, [collection.id.into()]);
        if let Some(job) = job::Model::find_by_statement(found).one(&db.write).await? {
            return Ok(Submitted::Existing(job));
        }
        let new = NewJob {
            collection: collection.id,
            args: JobArgs::Rematch { all, progress: None },
            tag: None,
            traceparent: traceparent.clone(),
            idempotency: None,
            inline_uploads: Vec::new(),
            webhook_endpoints: None,
        };
        // It is the collection's, whoever asked for it.
        match submit(db, &Grant::everything(), new).await {
            Err(error) if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) => {}
            submitted => return submitted,
        }
    }
    Err(DbErr::RecordNotInserted)
}

/// Takes a collection's requests: what a job that begins now has to look at. `None`: nothing.
pub async fn take_requests(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    all: bool,
) -> Result<Option<RematchScope>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        face_id: Option<FaceId>,
        person_id: Option<PersonId>,
    }
    let sql = "DELETE FROM rematch_requests WHERE collection_id = $1 AND requested_at <= {now} - $2
        RETURNING face_id, person_id";
    let values = [collection.into(), micros(SETTLE).into()];
    let taken = Row::find_by_statement(statement(txn, sql, values)).all(txn).await?;
    let wants_all = all || taken.iter().any(|row| row.face_id.is_none() && row.person_id.is_none());
    let faces: BTreeSet<FaceId> = taken.iter().filter_map(|row| row.face_id).collect();
    let persons: BTreeSet<PersonId> = taken.iter().filter_map(|row| row.person_id).collect();
    if wants_all || faces.len() + persons.len() > MAX_TOUCHED {
        return Ok(Some(RematchScope::All));
    }
    let (faces, persons) = (Vec::from_iter(faces), Vec::from_iter(persons));
    Ok((!taken.is_empty()).then_some(RematchScope::Touched { faces, persons }))
}

/// A face that may be matched.
#[derive(Clone, Debug)]
pub struct Matchable {
    /// Its id.
    pub id: FaceId,
    /// Whom it is matched to.
    pub person: Option<PersonId>,
    /// The quality figures as JSON.
    pub quality: String,
    /// Its vector.
    pub embedding: Embedding,
}

/// Which faces of `faces f` may be matched, word for word as in their index.
const MATCHABLE: &str = "NOT f.hidden AND NOT f.locked AND (f.person_id IS NULL OR f.assigned_by = 'auto')";

/// Up to `limit` faces that may be matched, of which this pipeline and detector revision know all that it takes, in the
/// order of their ids, those after `after`.
pub async fn matchable(
    db: &Db,
    collection: CollectionId,
    (pipeline, detector_revision): (&str, &str),
    after: Option<FaceId>,
    limit: u64,
) -> Result<Vec<Matchable>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: FaceId,
        person_id: Option<PersonId>,
        quality: String,
        vector: StoredVector,
    }
    let sql = format!(
        "SELECT f.id, f.person_id, g.quality, e.vector FROM faces f
         JOIN embeddings e ON e.pipeline = $2 AND e.face_id = f.id
         JOIN face_geometry g ON g.face_id = f.id AND g.detector_revision = $3
         WHERE f.collection_id = $1 AND f.id > $4 AND {MATCHABLE} ORDER BY f.id LIMIT {limit}"
    );
    let after = after.map_or(Uuid::nil(), |face| face.0);
    let values = [collection.into(), pipeline.into(), detector_revision.into(), after.into()];
    let rows = Row::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await?;
    let face =
        |row: Row| Matchable { id: row.id, person: row.person_id, quality: row.quality, embedding: row.vector.0 };
    Ok(rows.into_iter().map(face).collect())
}

/// A face that matches somebody else than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rematch {
    /// The face.
    pub face: FaceId,
    /// Whom it was matched to.
    pub from: Option<PersonId>,
    /// Whom it matches now.
    pub to: Option<PersonId>,
}

/// How many faces changed their persons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rematched {
    /// They match a person that they did not match before.
    pub assigned: usize,
    /// They match nobody any more.
    pub unassigned: usize,
}

/// Writes whom faces match now. One that was changed since it was read, or was said not to be that person, is left; so is
/// one of a person that is being erased, with whom it goes.
pub async fn apply(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    rematches: &[Rematch],
) -> Result<Rematched, DbErr> {
    let wanted: BTreeSet<PersonId> = rematches.iter().filter_map(|r| r.to).collect();
    let mut held = BTreeSet::new();
    for some in Vec::from_iter(wanted).chunks(ROWS) {
        held.extend(persons::hold(txn, collection, &some.iter().copied().collect()).await?);
    }
    let mut written = Rematched::default();
    let possible: Vec<&Rematch> = rematches.iter().filter(|r| r.to.is_none_or(|to| held.contains(&to))).collect();
    for some in possible.chunks(ROWS) {
        let to = apply_some(txn, some).await?;
        let assigned = to.iter().flatten().count();
        written.assigned += assigned;
        written.unassigned += to.len() - assigned;
    }
    Ok(written)
}

/// Writes some of them and returns the new persons of those that were written.
async fn apply_some(txn: &impl ConnectionTrait, rematches: &[&Rematch]) -> Result<Vec<Option<PersonId>>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        person_id: Option<PersonId>,
    }
    const COLUMNS: [(&str, Column); 3] = [("face_id", Column::Id), ("was", Column::Id), ("is_now", Column::Id)];
    let row = |r: &&Rematch| {
        json!({
            "face_id": rows::id(r.face.0), "was": rows::id(r.from.map(|p| p.0)), "is_now": rows::id(r.to.map(|p| p.0)),
        })
    };
    let rows = || Rows::new(&COLUMNS, rematches.iter().map(row).collect());
    // Locked by a statement of its own: the next one sees what was said of them by hand until then.
    let lock = format!(
        "SELECT count(*) AS n FROM (SELECT id FROM faces WHERE id IN (SELECT r.face_id FROM {}) ORDER BY id
         {{for update}}) AS locked",
        rows().table(txn)
    );
    count(txn, &lock, [rows().value()]).await?;
    let sql = format!(
        "UPDATE faces SET person_id = r.is_now, assigned_by = CASE WHEN r.is_now IS NOT NULL THEN 'auto' END FROM {}
         WHERE faces.id = r.face_id AND faces.person_id IS NOT DISTINCT FROM r.was AND NOT faces.hidden
            AND NOT faces.locked AND (faces.person_id IS NULL OR faces.assigned_by = 'auto')
            AND NOT EXISTS (SELECT 1 FROM face_rejections x WHERE x.face_id = r.face_id AND x.person_id = r.is_now)
            AND NOT EXISTS (SELECT 1 FROM persons p WHERE p.id = r.was AND p.erased_at IS NOT NULL)
         RETURNING person_id",
        rows().table(txn)
    );
    let written = Row::find_by_statement(statement(txn, &sql, [rows().value()])).all(txn).await?;
    Ok(written.into_iter().map(|row| row.person_id).collect())
}
