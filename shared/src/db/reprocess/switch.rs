//! A collection goes over to the other pipeline of its run at once, for everybody.

use sea_orm::prelude::*;

use super::{Run, RunState, Side, find, lock};
use crate::access::Grant;
use crate::db::webhooks::events;
use crate::db::{Db, clusters, collections, count, execute, rematches, through_deadlocks};
use crate::ids::ReprocessRunId;

/// What became of a wish to go over.
#[derive(Clone, Debug, PartialEq)]
pub enum Switched {
    /// The collection goes by the other pipeline.
    Done(Box<Run>),
    /// The run is in no state for it, or gone.
    NotNow(Option<RunState>),
    /// So many faces by which people are recognised have no vector of the other pipeline; it may be made at this moment.
    Lacking(i64),
}

/// Has the collection go by the new pipeline. What lacks vectors of faces by which people are recognised stays as it is,
/// unless the caller takes that.
pub async fn activate(db: &Db, run: ReprocessRunId, lacking: Lacking) -> Result<Switched, DbErr> {
    through_deadlocks(|| switch(db, run, RunState::Ready, lacking)).await
}

/// Has the collection go by the old pipeline again.
pub async fn roll_back(db: &Db, run: ReprocessRunId, lacking: Lacking) -> Result<Switched, DbErr> {
    through_deadlocks(|| switch(db, run, RunState::Active, lacking)).await
}

/// What is to happen where faces lack vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    /// Nothing.
    Refuse,
    /// They are not recognised by.
    Accept,
}

async fn switch(db: &Db, id: ReprocessRunId, from: RunState, lacking: Lacking) -> Result<Switched, DbErr> {
    let txn = db.begin().await?;
    let found = find(&txn, &Grant::everything(), id).await?;
    let Some(run) = found else { return Ok(Switched::NotNow(None)) };
    // What is being recorded is waited for; what is recorded later sees which pipeline the collection goes by.
    let Some(collection) = lock(&txn, run.collection_id).await? else { return Ok(Switched::NotNow(None)) };
    let Some(run) = find(&txn, &Grant::everything(), id).await? else { return Ok(Switched::NotNow(None)) };
    if run.state != from {
        txn.rollback().await?;
        return Ok(Switched::NotNow(Some(run.state)));
    }
    let (old, new, state) = match from {
        RunState::Active => (run.to(), run.from(), RunState::Ready),
        _ => (run.from(), run.to(), RunState::Active),
    };
    if lacking == Lacking::Refuse {
        let lacking = templates_without(&txn, &run, new.pipeline).await?;
        if lacking > 0 {
            txn.rollback().await?;
            return Ok(Switched::Lacking(lacking));
        }
    }
    let mut settings = collection.settings()?;
    let inactive = settings.match_cosine.map(f64::from);
    #[expect(clippy::cast_possible_truncation, reason = "it was an f32")]
    let active = run.match_cosine.map(|cosine| cosine as f32);
    settings.match_cosine = active;
    // It may have been cancelled since it was read: what the other pipeline made goes then.
    let sql = "UPDATE reprocess_runs SET state = $2, match_cosine = $3, prune_after = NULL, version = version + 1,
            activated_at = CASE WHEN $2 = 'active' THEN {now} ELSE activated_at END
        WHERE id = $1 AND state = $4";
    let values = [run.id.into(), state.to_value().into(), inactive.into(), from.to_value().into()];
    if execute(&txn, sql, values).await? == 0 {
        txn.rollback().await?;
        let now = find(&db.write, &Grant::everything(), id).await?;
        return Ok(Switched::NotNow(now.map(|run| run.state)));
    }
    go_by(&txn, &run, (old, new), &settings).await?;
    // Whom faces match is another model's word now.
    rematches::request(&txn, run.collection_id, None, None).await?;
    clusters::move_on(&txn, run.collection_id).await?;
    if run.changes_detector() {
        // Faces that only this detector knows had their vectors before they mattered to clusters.
        clusters::queue::enqueue_all(&txn, run.collection_id).await?;
    }
    let Some(run) = find(&txn, &Grant::everything(), id).await? else { return Ok(Switched::NotNow(None)) };
    events::reprocess_activated(&txn, &run, new.pipeline).await?;
    crate::failpoints::failpoint("reprocess_switch");
    txn.commit().await?;
    Ok(Switched::Done(Box::new(run)))
}

async fn go_by(
    txn: &impl ConnectionTrait,
    run: &Run,
    (old, new): (Side<'_>, Side<'_>),
    settings: &collections::CollectionSettings,
) -> Result<(), DbErr> {
    let sql = "UPDATE collections SET pipeline = $1, hidden_revision = $2, shown_revision = $3, settings = $4
        WHERE id = $5";
    // By the old pipeline all is shown that was before the run, by the new one what its detector knows.
    let (hidden, shown) = match (run.changes_detector(), new == run.to()) {
        (false, _) => (None, None),
        (true, true) => (None, Some(new.revision)),
        (true, false) => (Some(old.revision), None),
    };
    let settings = serde_json::to_string(settings).map_err(|e| DbErr::Json(e.to_string()))?;
    let values = [new.pipeline.into(), hidden.into(), shown.into(), settings.into(), run.collection_id.into()];
    execute(txn, sql, values).await?;
    Ok(())
}

/// Faces by which people are recognised that lack the pipeline's vector.
async fn templates_without(txn: &impl ConnectionTrait, run: &Run, pipeline: &str) -> Result<i64, DbErr> {
    let sql = "SELECT count(*) AS n FROM faces f WHERE f.collection_id = $1 AND f.person_id IS NOT NULL
        AND f.assigned_by IN ('enrolled', 'user') AND NOT f.hidden
        AND NOT EXISTS (SELECT 1 FROM embeddings e WHERE e.pipeline = $2 AND e.face_id = f.id)";
    count(txn, sql, [run.collection_id.into(), pipeline.into()]).await
}
