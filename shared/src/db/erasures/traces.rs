//! Looks for what is erased where it is only named: the arguments and answers of jobs, webhook events, the queue of the
//! clusters. One pass serves all erasures of a collection that wait for one; it may be repeated at any time.

use std::collections::{BTreeMap, HashMap};

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde_json::Value as Json;

use super::redact::{Redacted, redact, uuids};
use super::{Erasure, Removed, Term, add_counts, erased_problem};
use crate::db::jobs::transition::{Move, transition};
use crate::db::rows::{self, Column, Rows};
use crate::db::{Db, count, execute, is_postgres, now, placeholders, statement, uploads};
use crate::ids::{CollectionId, ErasureId, FaceId, JobId, PersonId, WebhookEventId};
use crate::job::{ImageRef, JobArgs, JobKind, JobState, PersonRef, RematchProgress, RematchScope, VerifyTarget};

/// Jobs that are read at once.
const JOBS: u64 = 500;
/// Events that are read at once.
const EVENTS: u64 = 1000;
/// Arguments of which nothing is left.
pub(in crate::db) const NO_ARGS: &str = "{}";

/// What the erasures of one collection look for, and which of them does.
#[derive(Clone, Debug)]
pub struct Traces {
    collection: CollectionId,
    /// When their rows were gone: what begins afterwards cannot see them.
    gone_at: i64,
    ids: HashMap<Uuid, ErasureId>,
    /// External ids and digests, by kind, with when they were to be erased: whatever comes later is another.
    texts: HashMap<(&'static str, String), (ErasureId, i64)>,
    places: HashMap<String, Vec<Place>>,
}

/// Where a picture lay that is erased.
#[derive(Clone, Debug)]
struct Place {
    /// What stood for its bytes there; other bytes may lie there since, or have lain before.
    fingerprint: Option<String>,
    erasure: ErasureId,
    requested_at: i64,
}

/// A place as a term, with what stood for the picture's bytes there.
pub(super) fn place_term(uri: &str, fingerprint: Option<&str>) -> String {
    format!("{}\n{uri}", fingerprint.unwrap_or_default())
}

fn place_of_term(term: &str) -> (&str, Option<&str>) {
    let (fingerprint, uri) = term.split_once('\n').unwrap_or(("", term));
    (uri, Some(fingerprint).filter(|fingerprint| !fingerprint.is_empty()))
}

/// What a slice of jobs came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// The last job that was looked at; `None` after the last of all.
    pub last: Option<JobId>,
    /// Jobs that were cancelled.
    pub cancelled: Vec<JobId>,
    /// Jobs that name it and run: to be looked at again once they have ended.
    pub running: Vec<JobId>,
}

#[derive(FromQueryResult)]
struct Row {
    id: JobId,
    kind: JobKind,
    state: JobState,
    started_at: Option<i64>,
    /// See [`ACCEPTED_AT`].
    accepted_at: i64,
    tag: Option<String>,
    args: String,
    result: Option<String>,
    problem: Option<String>,
}

/// When what a job `j` is a part of was accepted: its batch `b`, the latest run that began before it, or itself.
const ACCEPTED_AT: &str =
    "COALESCE(b.created_at, CASE WHEN j.kind = 'reembed' THEN (SELECT max(r.created_at) FROM reprocess_runs r
        WHERE r.collection_id = j.collection_id AND r.created_at <= j.created_at) END, j.created_at)";

fn read() -> String {
    format!(
        "SELECT j.id, j.kind, j.state, j.started_at, j.tag, {ACCEPTED_AT} AS accepted_at, p.args, p.result, p.problem
         FROM jobs j JOIN job_payloads p ON p.job_id = j.id LEFT JOIN batches b ON b.id = j.batch_id"
    )
}

impl Traces {
    /// Reads what erasures of one collection look for, of which no row is left.
    pub async fn of(db: &Db, collection: CollectionId, erasures: &[Erasure]) -> Result<Self, DbErr> {
        #[derive(FromQueryResult)]
        struct Row {
            kind: String,
            term: String,
        }
        let gone_at = now(&db.read).await?;
        let mut traces =
            Self { collection, gone_at, ids: HashMap::new(), texts: HashMap::new(), places: HashMap::new() };
        for erasure in erasures {
            traces.ids.extend(erasure.target.map(|id| (id, erasure.id)));
            let sql = "SELECT kind, term FROM erasure_terms WHERE erasure_id = $1
                AND kind IN ('id', 'external_id', 'sha256', 'uri')";
            let terms = Row::find_by_statement(statement(&db.read, sql, [erasure.id.into()])).all(&db.read).await?;
            for Row { kind, term } in terms {
                traces.add(erasure, &kind, term);
            }
        }
        Ok(traces)
    }

    fn add(&mut self, erasure: &Erasure, kind: &str, term: String) {
        let (id, requested_at) = (erasure.id, erasure.requested_at);
        if kind == Term::Uri.as_str() {
            let (uri, fingerprint) = place_of_term(&term);
            let place = Place { fingerprint: fingerprint.map(str::to_owned), erasure: id, requested_at };
            self.places.entry(uri.to_owned()).or_default().push(place);
        } else if let Some(text) = [Term::ExternalId, Term::Sha256].into_iter().find(|text| text.as_str() == kind) {
            self.texts.insert((text.as_str(), term), (id, requested_at));
        } else if let Ok(named) = term.parse() {
            self.ids.insert(named, id);
        }
    }

    /// Whether a job that began before still runs: what it found may name what is erased, and a crop that it has stored may show
    /// it. A rematch goes on for long and has neither; see `will_name`.
    pub async fn wait_for_jobs(&self, db: &Db) -> Result<bool, DbErr> {
        let sql = "SELECT count(*) AS n FROM jobs WHERE collection_id = $1 AND state = 'running' AND started_at <= $2
            AND kind <> 'rematch'";
        Ok(count(&db.read, sql, [self.collection.into(), self.gone_at.into()]).await? > 0)
    }

    /// Looks through the next jobs of the collection after `after`.
    pub async fn jobs(&self, db: &Db, after: Option<JobId>) -> Result<Slice, DbErr> {
        let sql = format!("{} WHERE j.collection_id = $1 AND j.id > $2 ORDER BY j.id LIMIT {JOBS}", read());
        let values = [self.collection.into(), after.unwrap_or(JobId(Uuid::nil())).into()];
        let rows = Row::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await?;
        let last = rows.last().map(|row| row.id).filter(|_| rows.len() as u64 == JOBS);
        let concerned: Vec<JobId> = rows.iter().filter(|row| self.concerns(row)).map(|row| row.id).collect();
        Ok(Slice { last, ..self.clean_all(db, &concerned).await? })
    }

    /// Looks at jobs again that ran.
    pub async fn jobs_again(&self, db: &Db, jobs: &[JobId]) -> Result<Slice, DbErr> {
        self.clean_all(db, jobs).await
    }

    fn concerns(&self, row: &Row) -> bool {
        let texts = [Some(&row.args), row.result.as_ref(), row.problem.as_ref()];
        let has_id = texts.into_iter().flatten().any(|text| uuids(text).any(|id| self.ids.contains_key(&id)));
        has_id
            || self.will_name(row)
            || self.by_tag(row.tag.as_deref(), row.accepted_at).is_some()
            || self.by_args(row).is_some()
    }

    /// Whether a job may yet note what is erased: a rematch that began before keeps the last face that it looked at.
    fn will_name(&self, row: &Row) -> bool {
        let began_before = row.started_at.is_some_and(|started_at| started_at <= self.gone_at);
        row.kind == JobKind::Rematch && row.state == JobState::Running && began_before
    }

    /// Which erasure a job is about, by its arguments or by the image that it stored.
    fn by_args(&self, row: &Row) -> Option<ErasureId> {
        let text = |term: Term, text: &str| {
            let (erasure, requested_at) = self.texts.get(&(term.as_str(), text.to_owned()))?;
            (row.accepted_at <= *requested_at).then_some(*erasure)
        };
        let id = |id: Uuid| self.ids.get(&id).copied();
        let of_image = |image: &ImageRef| match image {
            ImageRef::Upload(upload) => id(upload.upload_id.0).or_else(|| text(Term::Sha256, &upload.sha256)),
            ImageRef::Reference { .. } | ImageRef::File { .. } => self.by_place(image, row.accepted_at),
        };
        let args: JobArgs = serde_json::from_str(&row.args).ok()?;
        let of_person = match &args {
            JobArgs::Enroll { person: PersonRef::Id { id: person }, .. }
            | JobArgs::Verify { other: VerifyTarget::Person(person), .. } => id(person.0),
            JobArgs::Enroll { person: PersonRef::External { external_id, .. }, .. } => {
                text(Term::ExternalId, external_id)
            }
            _ => None,
        };
        of_person.or_else(|| args.images().into_iter().find_map(of_image)).or_else(|| self.by_stored_image(row))
    }

    /// Which erasure is of the picture that lay at a place when the job was accepted. Where the job does not say what was to lie
    /// there, it is taken for what is known to.
    fn by_place(&self, image: &ImageRef, accepted_at: i64) -> Option<ErasureId> {
        let is_meant = |place: &&Place| {
            let is_same = image.fingerprint().is_none_or(|theirs| place.fingerprint.as_deref() == Some(theirs));
            is_same && accepted_at <= place.requested_at
        };
        self.places.get(&image.uri()?)?.iter().find(is_meant).map(|place| place.erasure)
    }

    fn by_stored_image(&self, row: &Row) -> Option<ErasureId> {
        let result = row.result.as_deref().filter(|result| self.names(result))?;
        let result: Json = serde_json::from_str(result).ok()?;
        self.ids.get(&result["image_id"].as_str()?.parse().ok()?).copied()
    }

    /// Which erased person's external id a tag is. Later ones are another's.
    fn by_tag(&self, tag: Option<&str>, accepted_at: i64) -> Option<ErasureId> {
        let (erasure, requested_at) = self.texts.get(&(Term::ExternalId.as_str(), tag?.to_owned()))?;
        (accepted_at <= *requested_at).then_some(*erasure)
    }

    async fn clean_all(&self, db: &Db, jobs: &[JobId]) -> Result<Slice, DbErr> {
        let mut slice = Slice::default();
        if jobs.is_empty() {
            return Ok(slice);
        }
        let txn = db.begin().await?;
        let list = placeholders(1, jobs.len());
        let named = || jobs.iter().map(|id| Value::from(*id));
        // Locked, so that none begins or ends meanwhile.
        let sql = format!("SELECT id FROM jobs WHERE id IN ({list}) ORDER BY id {{for update}}");
        txn.query_all_raw(statement(&txn, &sql, named())).await?;
        let sql = format!("{} WHERE j.id IN ({list}) ORDER BY j.id", read());
        let mut counts: BTreeMap<ErasureId, u64> = BTreeMap::new();
        for row in Row::find_by_statement(statement(&txn, &sql, named())).all(&txn).await? {
            if let Some(erasure) = self.clean(&txn, &row, &mut slice).await? {
                *counts.entry(erasure).or_default() += 1;
            }
        }
        for (erasure, jobs) in counts {
            add_counts(&txn, erasure, Removed { jobs, ..Removed::default() }).await?;
        }
        txn.commit().await?;
        Ok(slice)
    }

    /// Cleans a locked job; for which erasure, where there was anything to do.
    async fn clean(
        &self,
        txn: &impl ConnectionTrait,
        row: &Row,
        slice: &mut Slice,
    ) -> Result<Option<ErasureId>, DbErr> {
        let by_args = self.by_args(row);
        let by_tag = self.by_tag(row.tag.as_deref(), row.accepted_at);
        if by_tag.is_some() {
            execute(txn, "UPDATE jobs SET tag = NULL, version = version + 1 WHERE id = $1", [row.id.into()]).await?;
        }
        match row.state {
            JobState::Running if by_args.is_some() || self.names(&row.args) || self.will_name(row) => {
                slice.running.push(row.id);
                if by_args.is_some() {
                    let sql = "UPDATE jobs SET cancel_requested = TRUE, tag = NULL, version = version + 1
                        WHERE id = $1 AND NOT cancel_requested";
                    execute(txn, sql, [row.id.into()]).await?;
                }
                // It is counted once it is looked at again.
                Ok(None)
            }
            JobState::Running => Ok(by_tag),
            JobState::Queued if by_args.is_some() => {
                // First, so that the event of its end has no tag.
                empty(txn, row.id).await?;
                uploads::drop_inline_of_jobs(txn, &transition(txn, &[row.id], Move::CancelQueued).await?).await?;
                slice.cancelled.push(row.id);
                Ok(by_args)
            }
            _ if by_args.is_some() => {
                empty(txn, row.id).await?;
                Ok(by_args)
            }
            _ => Ok(self.clean_payload(txn, row).await?.or(by_tag)),
        }
    }

    /// Takes what is named out of a job that is about something else.
    async fn clean_payload(&self, txn: &impl ConnectionTrait, row: &Row) -> Result<Option<ErasureId>, DbErr> {
        let args = self.args_without(&row.args);
        let (result, is_gone) = self.result_without(row.result.as_deref());
        let has_problem = row.problem.as_ref().is_some_and(|problem| self.names(problem));
        let erased = erased_problem();
        let problem = match (is_gone || has_problem, row.state) {
            (false, _) => row.problem.clone(),
            // Of an attempt; there will be another.
            (true, JobState::Queued) => None,
            (true, _) => Some(serde_json::to_string(&erased).map_err(|e| DbErr::Json(e.to_string()))?),
        };
        if args == row.args && result == row.result && problem == row.problem {
            return Ok(None);
        }
        let sql = "UPDATE job_payloads SET args = $2, result = $3, problem = $4 WHERE job_id = $1";
        execute(txn, sql, [row.id.into(), args.into(), result.into(), problem.into()]).await?;
        execute(txn, "UPDATE jobs SET version = version + 1 WHERE id = $1", [row.id.into()]).await?;
        let texts = [Some(&row.args), row.result.as_ref(), row.problem.as_ref()];
        Ok(texts.into_iter().flatten().flat_map(|text| uuids(text)).find_map(|id| self.ids.get(&id).copied()))
    }

    fn names(&self, text: &str) -> bool {
        uuids(text).any(|id| self.ids.contains_key(&id))
    }

    /// The arguments of a job for many images or faces, without those that are gone.
    fn args_without(&self, text: &str) -> String {
        if !self.names(text) {
            return text.to_owned();
        }
        let gone = |id: Uuid| self.ids.contains_key(&id);
        let args = match serde_json::from_str(text) {
            Ok(JobArgs::Reembed { images, detects }) => {
                JobArgs::Reembed { images: images.into_iter().filter(|image| !gone(image.0)).collect(), detects }
            }
            Ok(JobArgs::Rematch { all, progress: Some(progress) }) => {
                let scope = match progress.scope {
                    RematchScope::All => RematchScope::All,
                    RematchScope::Touched { faces, persons } => RematchScope::Touched {
                        faces: faces.into_iter().filter(|face| !gone(face.0)).collect(),
                        persons: persons.into_iter().filter(|person: &PersonId| !gone(person.0)).collect(),
                    },
                };
                // The next face begins behind the one before it as well.
                let before =
                    |face: FaceId| if gone(face.0) { FaceId(Uuid::from_u128(face.0.as_u128() - 1)) } else { face };
                let after = progress.after.map(before);
                JobArgs::Rematch { all, progress: Some(RematchProgress { scope, after, ..progress }) }
            }
            _ => return NO_ARGS.to_owned(),
        };
        serde_json::to_string(&args).unwrap_or_else(|_| NO_ARGS.to_owned())
    }

    /// The result, and whether nothing of it may stay.
    fn result_without(&self, text: Option<&str>) -> (Option<String>, bool) {
        let Some(text) = text else { return (None, false) };
        if !self.names(text) {
            return (Some(text.to_owned()), false);
        }
        let Ok(mut result) = serde_json::from_str::<Json>(text) else { return (None, true) };
        match redact(&mut result, &|id| self.ids.contains_key(&id)) {
            Redacted::Untouched => (Some(text.to_owned()), false),
            Redacted::Changed => (Some(result.to_string()), false),
            Redacted::Nothing => (None, true),
        }
    }

    /// Deletes those of the next events of the collection after `after` that tell of a face or person that is erased, or have
    /// their external id as a tag, told or not; the last that was looked at, `None` after the last of all.
    pub async fn events(&self, db: &Db, after: Option<WebhookEventId>) -> Result<Option<WebhookEventId>, DbErr> {
        #[derive(FromQueryResult)]
        struct Event {
            id: WebhookEventId,
            body: String,
            created_at: i64,
        }
        let sql = format!(
            "SELECT id, body, created_at FROM webhook_events WHERE id > $2 AND collection_id = $1 ORDER BY id LIMIT {EVENTS}"
        );
        let values = [self.collection.into(), after.unwrap_or(WebhookEventId(Uuid::nil())).into()];
        let events = Event::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await?;
        let last = events.last().map(|event| event.id).filter(|_| events.len() as u64 == EVENTS);
        let mut of: BTreeMap<ErasureId, Vec<WebhookEventId>> = BTreeMap::new();
        for event in &events {
            let by_id = uuids(&event.body).find_map(|id| self.ids.get(&id).copied());
            let erasure = match by_id {
                None => self.by_tag_of(db, &event.body, event.created_at).await?,
                found => found,
            };
            if let Some(erasure) = erasure {
                of.entry(erasure).or_default().push(event.id);
            }
        }
        for (erasure, told) in of {
            let txn = db.begin().await?;
            let sql = format!("DELETE FROM webhook_events WHERE id IN ({})", placeholders(1, told.len()));
            let events = execute(&txn, &sql, told.into_iter().map(Value::from)).await?;
            add_counts(&txn, erasure, Removed { events, ..Removed::default() }).await?;
            txn.commit().await?;
        }
        Ok(last)
    }

    /// Which erasure the tag in an event's body names. What had the tag when somebody was to be erased may end later.
    async fn by_tag_of(&self, db: &Db, body: &str, told_at: i64) -> Result<Option<ErasureId>, DbErr> {
        let Ok(body) = serde_json::from_str::<Json>(body) else { return Ok(None) };
        let data = &body["data"];
        // Most have none of these tags, and nothing is asked.
        let Some(tag) = data["tag"].as_str().filter(|tag| self.by_tag(Some(tag), i64::MIN).is_some()) else {
            return Ok(None);
        };
        let accepted_at = accepted_at(db, data).await?.unwrap_or(told_at);
        Ok(self.by_tag(Some(tag), accepted_at))
    }

    /// Takes external ids away that are tags of batches and reprocess runs; jobs that these make from now on have none.
    pub async fn tags(&self, db: &Db) -> Result<(), DbErr> {
        for ((kind, external_id), (_, requested_at)) in &self.texts {
            if *kind != Term::ExternalId.as_str() {
                continue;
            }
            for table in ["batches", "reprocess_runs"] {
                let sql = format!(
                    "UPDATE {table} SET tag = NULL, version = version + 1
                     WHERE collection_id = $1 AND tag = $2 AND created_at <= $3"
                );
                let values = [self.collection.into(), external_id.as_str().into(), (*requested_at).into()];
                execute(&db.write, &sql, values).await?;
            }
        }
        Ok(())
    }

    /// Takes the ids out of what else waits: requests for rematches, and entries of the clusters' queue, which still say
    /// which cluster has lost a face.
    pub async fn queues(&self, db: &Db) -> Result<(), DbErr> {
        let all: Vec<Uuid> = self.ids.keys().copied().collect();
        for some in all.chunks(ROWS) {
            let named = || {
                let ids = some.iter().map(|id| serde_json::json!({ "id": rows::id(*id) })).collect();
                Rows::new(&[("id", Column::Id)], ids)
            };
            let these = format!("(SELECT r.id FROM {})", named().table(&db.write));
            let sql = format!(
                "UPDATE rematch_requests SET face_id = NULL, person_id = NULL
                 WHERE collection_id = $2 AND (face_id IN {these} OR person_id IN {these})"
            );
            execute(&db.write, &sql, [named().value(), self.collection.into()]).await?;
            // Any id that no face has does as well.
            let nobody = if is_postgres(&db.write) { "gen_random_uuid()" } else { "randomblob(16)" };
            let sql =
                format!("UPDATE cluster_queue SET face_id = {nobody} WHERE collection_id = $2 AND face_id IN {these}");
            execute(&db.write, &sql, [named().value(), self.collection.into()]).await?;
        }
        Ok(())
    }
}

/// When that was accepted which an event tells of; `None` where it is gone.
async fn accepted_at(db: &Db, data: &Json) -> Result<Option<i64>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        accepted_at: i64,
    }
    let of_job = format!(
        "SELECT {ACCEPTED_AT} AS accepted_at FROM jobs j LEFT JOIN batches b ON b.id = j.batch_id WHERE j.id = $1"
    );
    let ways = [
        ("job_id", of_job.as_str()),
        ("batch_id", "SELECT created_at AS accepted_at FROM batches WHERE id = $1"),
        ("reprocess_run_id", "SELECT created_at AS accepted_at FROM reprocess_runs WHERE id = $1"),
    ];
    for (key, sql) in ways {
        if let Some(id) = data[key].as_str().and_then(|id| id.parse::<Uuid>().ok()) {
            let found = Row::find_by_statement(statement(&db.read, sql, [id.into()])).one(&db.read).await?;
            return Ok(found.map(|row| row.accepted_at));
        }
    }
    Ok(None)
}

/// Ids of one statement.
const ROWS: usize = 1000;

/// Leaves nothing of a job but that it was.
async fn empty(txn: &impl ConnectionTrait, job: JobId) -> Result<(), DbErr> {
    let problem = serde_json::to_string(&erased_problem()).map_err(|e| DbErr::Json(e.to_string()))?;
    let sql = "UPDATE job_payloads SET args = $2, result = NULL, problem = $3 WHERE job_id = $1";
    execute(txn, sql, [job.into(), NO_ARGS.into(), problem.into()]).await?;
    execute(txn, "UPDATE jobs SET tag = NULL, version = version + 1 WHERE id = $1", [job.into()]).await?;
    Ok(())
}

/// Deletes the next events of a collection that is gone, after `after`; as [`Traces::events`].
pub async fn events_of_collection(
    db: &Db,
    erasure: &Erasure,
    after: Option<WebhookEventId>,
) -> Result<Option<WebhookEventId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Event {
        id: WebhookEventId,
    }
    let Some(collection) = erasure.target else { return Ok(None) };
    let sql = format!("SELECT id FROM webhook_events WHERE id > $2 AND collection_id = $1 ORDER BY id LIMIT {EVENTS}");
    let values = [collection.into(), after.unwrap_or(WebhookEventId(Uuid::nil())).into()];
    let told = Event::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await?;
    let told: Vec<WebhookEventId> = told.into_iter().map(|event| event.id).collect();
    let Some(last) = told.last().copied() else { return Ok(None) };
    let txn = db.begin().await?;
    let sql = format!("DELETE FROM webhook_events WHERE id IN ({})", placeholders(1, told.len()));
    let events = execute(&txn, &sql, told.iter().map(|id| Value::from(*id))).await?;
    add_counts(&txn, erasure.id, Removed { events, ..Removed::default() }).await?;
    txn.commit().await?;
    Ok((told.len() as u64 == EVENTS).then_some(last))
}
