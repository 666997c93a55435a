//! Runs that give a collection another pipeline, beside the one that it goes by. In reading order:
//!
//! - here: a run begins, is read, held and ended; [`plan`]: what it will have to do
//! - [`pending`]: which images lack what a pipeline makes of them, and the jobs that add it
//! - [`record`]: what such a job writes
//! - [`switch`]: the collection goes over to the other pipeline, and back
//! - [`comparison`]: what the two pipelines say of the same faces
//! - [`prune`]: what one of the two pipelines made is deleted
//!
//! As long as a run is open, the collection keeps what both pipelines make of its images: whatever records something of one
//! of them notes what the other one lacks.

pub mod comparison;
pub mod pending;
pub mod plan;
pub mod prune;
pub mod record;
pub mod switch;

#[cfg(test)]
mod tests;

use sea_orm::ActiveValue::Set;
use sea_orm::prelude::*;
use sea_orm::{FromQueryResult, QueryOrder, QuerySelect};

use super::collections::CollectionSettings;
use super::entity::collection;
use super::entity::reprocess_run::{ActiveModel, Column, Entity};
use super::idempotency::{self, Idempotency, OF_RUNS, Used};
use super::{Db, collections, execute, models, now, scoped, statement};
use crate::access::Grant;
use crate::ids::{CollectionId, ReprocessRunId};

pub use super::entity::reprocess_run::{Model as Run, RunState};

/// The pipelines that open runs keep up, with `run_id` and `collection_id`: both, and towards its end the one that stays.
pub(super) const KEPT_UP: &str = "(SELECT id AS run_id, collection_id, pipeline FROM reprocess_runs
        WHERE state IN ('filling', 'ready', 'active', 'pruning')
     UNION ALL SELECT id, collection_id, from_pipeline FROM reprocess_runs
        WHERE state IN ('filling', 'ready', 'active', 'cancelling'))";

/// A pipeline with the revision of its detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Side<'a> {
    pub pipeline: &'a str,
    pub revision: &'a str,
}

/// What a client asks for.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct NewRun<'a> {
    pub collection: CollectionId,
    /// What the collection goes by.
    pub from: Side<'a>,
    /// What it is to be given.
    pub to: Side<'a>,
    /// The setting of that name once the collection goes by the new pipeline.
    pub match_cosine: Option<f32>,
    pub tag: Option<String>,
    /// The W3C trace context of the request.
    pub traceparent: Option<String>,
    pub idempotency: Option<Idempotency>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Begun {
    /// A new run.
    New(Box<Run>),
    /// Another run of the collection has not ended.
    Open(ReprocessRunId),
    /// The collection goes by another pipeline than the caller took it for, or is gone.
    Changed,
    /// The model that it was to go over to is not registered.
    NoModel,
    /// The run that the same key and fingerprint made before.
    Existing(ReprocessRunId),
    /// The key was used for another request.
    KeyReused,
    /// A request with the key is being committed.
    KeyInFlight,
}

/// Locks the collection against everything that refers to it: jobs that are recorded, and requests that make some, are
/// waited for, and see afterwards what this transaction did.
async fn lock(txn: &impl ConnectionTrait, id: CollectionId) -> Result<Option<collection::Model>, DbErr> {
    let sql = "SELECT id FROM collections WHERE id = $1 {for update}";
    txn.query_all_raw(statement(txn, sql, [id.into()])).await?;
    collections::find(txn, &Grant::everything(), id).await
}

/// Begins a run, as one of the grant's own; it is durable when this returns.
pub async fn begin(db: &Db, grant: &Grant, new: NewRun<'_>) -> Result<Begun, DbErr> {
    let idempotency = new.idempotency.clone();
    let txn = db.begin().await?;
    let begun = begin_within(&txn, grant, new).await?;
    let Begun::New(run) = &begun else {
        // At once, and not when the connection is used next: a repeat would find the key held.
        txn.rollback().await?;
        return Ok(begun);
    };
    if let Some(idempotency) = &idempotency
        && !idempotency::remember(&txn, OF_RUNS, idempotency, run.id.0).await?
    {
        // Another request with this key committed since it was looked for.
        txn.rollback().await?;
        return find_repeated(&db.write, idempotency).await?.ok_or_else(idempotency::released);
    }
    txn.commit().await?;
    Ok(begun)
}

/// What a request with that key was answered before, if there was one.
pub async fn find_repeated(conn: &impl ConnectionTrait, key: &Idempotency) -> Result<Option<Begun>, DbErr> {
    let used = idempotency::used(conn, OF_RUNS, key).await?;
    Ok(used.map(|used| match used {
        Used::Same(id) => Begun::Existing(ReprocessRunId(id)),
        Used::Otherwise => Begun::KeyReused,
    }))
}

async fn begin_within(txn: &impl ConnectionTrait, grant: &Grant, new: NewRun<'_>) -> Result<Begun, DbErr> {
    if let Some(idempotency) = &new.idempotency {
        if !idempotency::try_lock(txn, idempotency).await? {
            return Ok(Begun::KeyInFlight);
        }
        if let Some(repeated) = find_repeated(txn, idempotency).await? {
            return Ok(repeated);
        }
    }
    let found = lock(txn, new.collection).await?;
    if found.is_none_or(|collection| collection.pipeline != new.from.pipeline) {
        return Ok(Begun::Changed);
    }
    if let Some(open) = open(txn, new.collection).await? {
        return Ok(Begun::Open(open.id));
    }
    if !models::hold(txn, new.to.pipeline).await? {
        return Ok(Begun::NoModel);
    }
    let run = insert(txn, grant, &new).await?;
    if run.changes_detector() {
        let sql = "UPDATE collections SET hidden_revision = $1 WHERE id = $2";
        execute(txn, sql, [new.to.revision.into(), new.collection.into()]).await?;
    }
    Ok(Begun::New(Box::new(run)))
}

async fn insert(txn: &impl ConnectionTrait, grant: &Grant, new: &NewRun<'_>) -> Result<Run, DbErr> {
    let created_at = now(txn).await?;
    ActiveModel {
        id: Set(ReprocessRunId::new()),
        collection_id: Set(new.collection),
        from_pipeline: Set(new.from.pipeline.to_owned()),
        from_revision: Set(new.from.revision.to_owned()),
        pipeline: Set(new.to.pipeline.to_owned()),
        revision: Set(new.to.revision.to_owned()),
        state: Set(RunState::Filling),
        paused: Set(false),
        prune_after: Set(None),
        lacking_accepted: Set(false),
        match_cosine: Set(new.match_cosine.map(f64::from)),
        checkpoint: Set(None),
        listed_at: Set(None),
        pace: Set(None),
        paced_at: Set(created_at),
        paced_images: Set(0),
        tag: Set(new.tag.clone()),
        traceparent: Set(new.traceparent.clone()),
        api_key_id: Set(grant.owner()),
        version: Set(0),
        created_at: Set(created_at),
        completed_at: Set(None),
        activated_at: Set(None),
        ended_at: Set(None),
        figures: Set(None),
    }
    .insert(txn)
    .await
}

impl Run {
    /// Whether faces are looked for again, and not only cut out.
    pub fn changes_detector(&self) -> bool {
        self.from_revision != self.revision
    }

    /// The side that the collection was on when the run began.
    pub fn from(&self) -> Side<'_> {
        Side { pipeline: &self.from_pipeline, revision: &self.from_revision }
    }

    /// What stays and what goes, of a run that is at its end.
    pub fn kept_and_gone(&self) -> Option<(Side<'_>, Side<'_>)> {
        match self.state {
            RunState::Pruning => Some((self.to(), self.from())),
            RunState::Cancelling => Some((self.from(), self.to())),
            _ => None,
        }
    }

    /// The new side.
    pub fn to(&self) -> Side<'_> {
        Side { pipeline: &self.pipeline, revision: &self.revision }
    }
}

/// The collection's run that has not ended.
pub(super) async fn open(conn: &impl ConnectionTrait, collection: CollectionId) -> Result<Option<Run>, DbErr> {
    let query = Entity::find().filter(Column::CollectionId.eq(collection)).filter(Column::EndedAt.is_null());
    query.one(conn).await
}

/// The `match_cosine` of each pipeline of a collection, as they were at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct MatchCosines {
    /// What the collection goes by.
    pipeline: String,
    own: Option<f32>,
    other: Option<f32>,
}

impl MatchCosines {
    /// That of a pipeline: of the one that the collection goes by, or of the other one of its open run.
    pub fn of(&self, pipeline: &str) -> Option<f32> {
        if self.pipeline == pipeline { self.own } else { self.other }
    }
}

/// What belongs to which pipeline changes with each switch: read in one statement. `None`: the collection is gone.
pub async fn match_cosines(db: &Db, collection: CollectionId) -> Result<Option<MatchCosines>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        pipeline: String,
        settings: String,
        other: Option<f64>,
    }
    let sql = "SELECT c.pipeline, c.settings, r.match_cosine AS other FROM collections c
        LEFT JOIN reprocess_runs r ON r.collection_id = c.id AND r.ended_at IS NULL WHERE c.id = $1";
    let row = Row::find_by_statement(statement(&db.read, sql, [collection.into()])).one(&db.read).await?;
    let Some(Row { pipeline, settings, other }) = row else { return Ok(None) };
    let settings: CollectionSettings = serde_json::from_str(&settings).map_err(|e| DbErr::Json(e.to_string()))?;
    #[expect(clippy::cast_possible_truncation, reason = "it was an f32")]
    let other = other.map(|cosine| cosine as f32);
    Ok(Some(MatchCosines { pipeline, own: settings.match_cosine, other }))
}

/// The run as it is now.
pub async fn reread(db: &Db, run: &Run) -> Result<Option<Run>, DbErr> {
    Entity::find_by_id(run.id).one(&db.write).await
}

/// All runs that have not ended.
pub async fn all_open(db: &Db) -> Result<Vec<Run>, DbErr> {
    Entity::find().filter(Column::EndedAt.is_null()).order_by_asc(Column::Id).all(&db.read).await
}

/// The run of that id, if the grant holds for its collection.
pub async fn find(conn: &impl ConnectionTrait, grant: &Grant, id: ReprocessRunId) -> Result<Option<Run>, DbErr> {
    Entity::find_by_id(id).filter(scoped::filter(grant, Column::CollectionId)).one(conn).await
}

/// Up to `limit` runs of the grant's collections that were made before `before`, newest first.
pub async fn list(
    db: &Db,
    grant: &Grant,
    collection: Option<CollectionId>,
    before: Option<ReprocessRunId>,
    limit: u64,
) -> Result<Vec<Run>, DbErr> {
    let reached = scoped::filter(grant, Column::CollectionId);
    let mut query = Entity::find().filter(reached).order_by_desc(Column::Id).limit(limit);
    if let Some(collection) = collection {
        query = query.filter(Column::CollectionId.eq(collection));
    }
    if let Some(before) = before {
        query = query.filter(Column::Id.lt(before));
    }
    query.all(&db.read).await
}

/// What a client wants of a run that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Begin no further image for now.
    Pause,
    /// Go on.
    Resume,
    /// Try again what failed.
    Retry,
    /// Stay with the old pipeline, and delete what the new one made.
    Cancel {
        /// What lacks something of the old pipeline goes with it.
        accept_lacking: bool,
    },
    /// Stay with the new pipeline, and delete what the old one made.
    Prune {
        /// Not before so many seconds are over.
        after_s: u32,
        /// What lacks something of the new pipeline goes with it.
        accept_lacking: bool,
    },
}

/// Does it; false where the run is in no state for it, or a cancel would lose something and nobody accepted that. An end that
/// stands still for what was given up goes on after a retry, or once that is accepted.
pub async fn change(db: &Db, run: &Run, wish: Wish) -> Result<bool, DbErr> {
    let (changes, guard) = match wish {
        Wish::Pause => ("paused = TRUE, pace = NULL", "NOT paused AND state IN ('filling', 'ready', 'active')"),
        Wish::Resume => ("paused = FALSE, paced_at = {now}", "paused AND state IN ('filling', 'ready', 'active')"),
        Wish::Retry => ("paced_at = {now}", "ended_at IS NULL"),
        Wish::Cancel { .. } => {
            let changes = "state = 'cancelling', paused = FALSE, pace = NULL, checkpoint = NULL,
                figures = COALESCE(figures, $2), lacking_accepted = $3";
            (changes, "(state IN ('filling', 'ready') OR (state = 'cancelling' AND $3 AND NOT lacking_accepted))")
        }
        Wish::Prune { .. } => (
            "prune_after = {now} + $2, lacking_accepted = $3",
            "(state = 'active' OR (state = 'pruning' AND $3 AND NOT lacking_accepted))",
        ),
    };
    let mut values = vec![Value::from(run.id)];
    match wish {
        Wish::Prune { after_s, accept_lacking } => {
            values.extend([Value::from(i64::from(after_s) * 1_000_000), accept_lacking.into()]);
        }
        Wish::Cancel { accept_lacking } => {
            values.extend([Value::from(plan::figures_to_keep(db, run).await?), accept_lacking.into()]);
        }
        Wish::Pause | Wish::Resume | Wish::Retry => {}
    }
    let txn = db.begin().await?;
    if wish == (Wish::Cancel { accept_lacking: false }) {
        // What is being recorded is waited for; what is recorded later is waited for before anything is deleted.
        lock(&txn, run.collection_id).await?;
        if prune::lacks(&txn, run, run.from()).await? {
            txn.rollback().await?;
            return Ok(false);
        }
    }
    let sql = format!("UPDATE reprocess_runs SET {changes}, version = version + 1 WHERE id = $1 AND {guard}");
    let is_changed = execute(&txn, &sql, values).await? > 0;
    if is_changed && wish == Wish::Retry {
        // Each in a job of its own now, so that none fails for another.
        let sql = "UPDATE reprocess_pending SET job_id = NULL, problem = NULL, tries = tries + 1
            WHERE collection_id = $1 AND problem IS NOT NULL";
        execute(&txn, sql, [run.collection_id.into()]).await?;
    }
    txn.commit().await?;
    Ok(is_changed)
}
