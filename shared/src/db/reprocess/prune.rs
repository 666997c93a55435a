//! The end of a run: what one of its two pipelines made is deleted, in slices. The other one is kept up until there is
//! nothing that only the one which goes has made.

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde_json::json;

use super::{Run, RunState, Side, lock, pending, plan};
use crate::db::images::delete_if_empty;
use crate::db::jobs::transition::{Move, transition};
use crate::db::rows::{self, Column, Rows};
use crate::db::{Db, count, execute, is_postgres, statement, through_deadlocks};
use crate::ids::{ImageId, JobId};

/// Vectors that go in one transaction.
const VECTORS: u32 = 2000;
/// Images of which the rest goes in one transaction.
const IMAGES: u32 = 500;

/// Begins to prune a run whose time has come. False where it is not time yet: a job goes by the pipeline that is to go, or
/// something lacks what the one that stays makes of it.
pub async fn begin_due(db: &Db, run: &Run) -> Result<bool, DbErr> {
    // Looked at without the lock first: most often it is not.
    if !is_due(&db.read, run).await? {
        return Ok(false);
    }
    let figures = plan::figures_to_keep(db, run).await?;
    let txn = db.begin().await?;
    // Whoever pins a job to a pipeline, or records what one made, holds the collection meanwhile.
    if lock(&txn, run.collection_id).await?.is_none() || !is_due(&txn, run).await? {
        txn.rollback().await?;
        return Ok(false);
    }
    let sql = "UPDATE reprocess_runs SET state = 'pruning', checkpoint = NULL, paused = FALSE, figures = $2,
            version = version + 1
        WHERE id = $1 AND state = 'active'";
    let begun = execute(&txn, sql, [run.id.into(), figures.into()]).await? > 0;
    txn.commit().await?;
    Ok(begun)
}

async fn is_due(conn: &impl ConnectionTrait, run: &Run) -> Result<bool, DbErr> {
    let sql = "SELECT count(*) AS n FROM reprocess_runs WHERE id = $1 AND state = 'active' AND prune_after <= {now}";
    Ok(count(conn, sql, [run.id.into()]).await? > 0
        // Those of the run itself are made as long as something new comes, and are cancelled at the end.
        && !has_jobs(conn, run, run.from(), "AND kind <> 'reembed'").await?
        && pending::left(conn, run, &run.pipeline).await? == 0
        && (run.lacking_accepted || !lacks(conn, run, run.to()).await?))
}

/// Whether something would be lost if only what this side of the run made stayed: images of which it lacks something were
/// given up, or it has no vector of a face by which people are recognised, and the other one has.
pub async fn is_lacking(db: &Db, run: &Run, kept: Side<'_>) -> Result<bool, DbErr> {
    lacks(&db.read, run, kept).await
}

pub(super) async fn lacks(conn: &impl ConnectionTrait, run: &Run, kept: Side<'_>) -> Result<bool, DbErr> {
    if pending::given_up(conn, run, kept.pipeline).await? > 0 {
        return Ok(true);
    }
    let gone = if kept == run.to() { run.from() } else { run.to() };
    let sql = "SELECT count(*) AS n FROM (SELECT 1 FROM faces f WHERE f.collection_id = $1 AND f.person_id IS NOT NULL
        AND f.assigned_by IN ('enrolled', 'user') AND NOT f.hidden
        AND EXISTS (SELECT 1 FROM embeddings e WHERE e.pipeline = $3 AND e.face_id = f.id)
        AND NOT EXISTS (SELECT 1 FROM embeddings e WHERE e.pipeline = $2 AND e.face_id = f.id) LIMIT 1) AS one";
    Ok(count(conn, sql, [run.collection_id.into(), kept.pipeline.into(), gone.pipeline.into()]).await? > 0)
}

async fn has_jobs(conn: &impl ConnectionTrait, run: &Run, side: Side<'_>, of_kind: &str) -> Result<bool, DbErr> {
    let sql = format!(
        "SELECT count(*) AS n FROM (SELECT 1 FROM jobs WHERE collection_id = $1 AND pipeline = $2
            AND state IN ('queued', 'running') {of_kind} LIMIT 1) AS one"
    );
    Ok(count(conn, &sql, [run.collection_id.into(), side.pipeline.into()]).await? > 0)
}

/// What a slice came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Jobs that were cancelled.
    pub cancelled: Vec<JobId>,
    /// Whether the run has ended.
    pub is_last: bool,
    /// Whether nothing could be done yet: a job is under way, or something is to be kept yet.
    pub waits: bool,
}

/// Deletes the next slice of what goes with a run that is being pruned or cancelled, and ends it after the last one.
pub async fn slice(db: &Db, run: &Run) -> Result<Slice, DbErr> {
    let Some((kept, gone)) = run.kept_and_gone() else { return Ok(Slice { is_last: true, ..Slice::default() }) };
    let cancelled = cancel_jobs(db, run, gone).await?;
    // The jobs first: the last of them notes what is to be kept of what it made.
    if has_jobs(&db.write, run, gone, "").await? || is_noted(&db.write, run, kept).await? {
        return Ok(Slice { cancelled, waits: true, ..Slice::default() });
    }
    if through_deadlocks(|| delete_vectors(db, run, gone)).await?
        || through_deadlocks(|| delete_of_images(db, run, kept, gone)).await?
    {
        return Ok(Slice { cancelled, ..Slice::default() });
    }
    let is_last = through_deadlocks(|| end(db, run, kept, gone)).await?;
    Ok(Slice { cancelled, is_last, waits: !is_last })
}

/// Whether what stays lacks something yet: jobs will add it, or it was given up, and nobody accepted that.
async fn is_noted(conn: &impl ConnectionTrait, run: &Run, kept: Side<'_>) -> Result<bool, DbErr> {
    Ok(pending::left(conn, run, kept.pipeline).await? > 0 || is_given_up(conn, run, kept).await?)
}

async fn is_given_up(conn: &impl ConnectionTrait, run: &Run, kept: Side<'_>) -> Result<bool, DbErr> {
    Ok(!run.lacking_accepted && pending::given_up(conn, run, kept.pipeline).await? > 0)
}

/// Whether the end of a run stands still until a client has what was given up tried again, or accepts that it is lacking.
pub async fn stands_still(db: &Db, run: &Run) -> Result<bool, DbErr> {
    match run.kept_and_gone() {
        Some((kept, _)) => is_given_up(&db.read, run, kept).await,
        None => Ok(false),
    }
}

/// Cancels the reembed jobs of a side: at once what waits, by asking its worker what runs.
async fn cancel_jobs(db: &Db, run: &Run, gone: Side<'_>) -> Result<Vec<JobId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: JobId,
    }
    let sql = format!(
        "SELECT id FROM jobs WHERE collection_id = $1 AND pipeline = $2 AND kind = 'reembed'
            AND state IN ('queued', 'running') ORDER BY id LIMIT {VECTORS}"
    );
    let values = [run.collection_id.into(), gone.pipeline.into()];
    let jobs = Row::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await?;
    let jobs: Vec<JobId> = jobs.into_iter().map(|row| row.id).collect();
    if jobs.is_empty() {
        return Ok(jobs);
    }
    let txn = db.begin().await?;
    let cancelled = transition(&txn, &jobs, Move::CancelQueued).await?;
    let sql = "UPDATE jobs SET cancel_requested = TRUE, version = version + 1 WHERE collection_id = $1
        AND pipeline = $2 AND kind = 'reembed' AND state = 'running' AND NOT cancel_requested";
    execute(&txn, sql, [run.collection_id.into(), gone.pipeline.into()]).await?;
    txn.commit().await?;
    Ok(cancelled)
}

/// Deletes some vectors; true where there were any.
async fn delete_vectors(db: &Db, run: &Run, gone: Side<'_>) -> Result<bool, DbErr> {
    let sql = format!(
        "DELETE FROM embeddings WHERE pipeline = $2 AND face_id IN (SELECT face_id FROM embeddings
            WHERE collection_id = $1 AND pipeline = $2 ORDER BY face_id LIMIT {VECTORS})"
    );
    Ok(execute(&db.write, &sql, [run.collection_id.into(), gone.pipeline.into()]).await? > 0)
}

/// Deletes the rest of what goes of the next images; false where there are none.
async fn delete_of_images(db: &Db, run: &Run, kept: Side<'_>, gone: Side<'_>) -> Result<bool, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: ImageId,
    }
    #[derive(FromQueryResult)]
    struct Place {
        checkpoint: Option<ImageId>,
    }
    let txn = db.begin().await?;
    let sql = "SELECT checkpoint FROM reprocess_runs WHERE id = $1 AND ended_at IS NULL {for update}";
    let Some(Place { checkpoint }) = Place::find_by_statement(statement(&txn, sql, [run.id.into()])).one(&txn).await?
    else {
        return Ok(false);
    };
    // Locked, as whoever records something of one does.
    let sql =
        format!("SELECT id FROM images WHERE collection_id = $1 AND id > $2 ORDER BY id LIMIT {IMAGES} {{for update}}");
    let after = checkpoint.map_or(Uuid::nil(), |image| image.0);
    let images =
        Row::find_by_statement(statement(&txn, &sql, [run.collection_id.into(), after.into()])).all(&txn).await?;
    let images: Vec<ImageId> = images.into_iter().map(|row| row.id).collect();
    let Some(last) = images.last() else {
        txn.rollback().await?;
        return Ok(false);
    };
    let named = || images.iter().map(|image| json!({ "image_id": rows::id(image.0) })).collect::<Vec<_>>();
    let rows = || Rows::new(&[("image_id", Column::Id)], named());
    let ours = format!("(SELECT r.image_id FROM {})", rows().table(&txn));
    // What has been noted since of what stays is to be done yet.
    let sql = format!(
        "DELETE FROM reprocess_pending WHERE collection_id = $2 AND image_id IN {ours}
            AND (pipeline <> $3 OR (problem IS NOT NULL AND $4))"
    );
    let values = [rows().value(), run.collection_id.into(), kept.pipeline.into(), run.lacking_accepted.into()];
    execute(&txn, &sql, values).await?;
    if run.changes_detector() {
        for sql in of_detector(run.state, &ours) {
            execute(&txn, &sql, [rows().value(), kept.revision.into(), gone.revision.into()]).await?;
        }
        for image in &images {
            delete_if_empty(&txn, *image).await?;
        }
    }
    let sql = "UPDATE reprocess_runs SET checkpoint = $2, version = version + 1 WHERE id = $1";
    execute(&txn, sql, [run.id.into(), (*last).into()]).await?;
    txn.commit().await?;
    Ok(true)
}

/// Of some images, in this order: faces that nobody has named and that the detector which stays does not know; then what the
/// other one, and after a run that was activated any older one, made of the rest. A named face keeps its place and crop.
fn of_detector(state: RunState, images: &str) -> [String; 4] {
    let gone = |revision: &str| match state {
        RunState::Pruning => format!("({revision} <> $2 AND $3 <> $2)"),
        _ => format!("({revision} = $3 AND $3 <> $2)"),
    };
    let known = "EXISTS (SELECT 1 FROM face_geometry o WHERE o.face_id = f.id AND o.detector_revision = $2)";
    let other = match state {
        RunState::Pruning => "FALSE",
        _ => "EXISTS (SELECT 1 FROM face_geometry o WHERE o.face_id = f.id AND o.detector_revision <> $3)",
    };
    let of_faces = |table: &str| {
        format!(
            "DELETE FROM {table} WHERE {} AND face_id IN (SELECT f.id FROM faces f
                WHERE f.image_id IN {images} AND ({known} OR {other}))",
            gone(&format!("{table}.detector_revision"))
        )
    };
    [
        format!(
            "DELETE FROM faces AS f WHERE f.image_id IN {images} AND NOT f.locked
                AND (f.assigned_by IS NULL OR f.assigned_by = 'auto') AND NOT ({known} OR {other})
                AND EXISTS (SELECT 1 FROM face_geometry g WHERE g.face_id = f.id AND {})",
            gone("g.detector_revision")
        ),
        of_faces("crops"),
        of_faces("face_geometry"),
        format!(
            "DELETE FROM image_analyses WHERE image_id IN {images} AND {}",
            gone("image_analyses.detector_revision")
        ),
    ]
}

/// Ends the run; false where something was noted meanwhile that what stays lacks.
async fn end(db: &Db, run: &Run, kept: Side<'_>, gone: Side<'_>) -> Result<bool, DbErr> {
    let txn = db.begin().await?;
    // Whoever notes something holds the collection meanwhile.
    lock(&txn, run.collection_id).await?;
    if is_noted(&txn, run, kept).await? {
        txn.rollback().await?;
        return Ok(false);
    }
    let sql = "UPDATE reprocess_runs SET ended_at = {now}, pace = NULL, prune_after = NULL, version = version + 1,
            state = CASE WHEN state = 'pruning' THEN 'pruned' ELSE 'cancelled' END
        WHERE id = $1 AND ended_at IS NULL";
    if execute(&txn, sql, [run.id.into()]).await? == 0 {
        txn.rollback().await?;
        return Ok(true);
    }
    // Of images that were noted behind those that were looked at.
    let sql = "DELETE FROM reprocess_pending WHERE collection_id = $1";
    execute(&txn, sql, [run.collection_id.into()]).await?;
    if is_postgres(&txn) {
        // The index itself goes when the next one is built.
        let sql = "DELETE FROM hnsw_indexes WHERE collection_id = $1 AND pipeline = $2";
        execute(&txn, sql, [run.collection_id.into(), gone.pipeline.into()]).await?;
    }
    let sql = "UPDATE collections SET hidden_revision = NULL, shown_revision = NULL WHERE id = $1";
    execute(&txn, sql, [run.collection_id.into()]).await?;
    txn.commit().await?;
    Ok(true)
}
