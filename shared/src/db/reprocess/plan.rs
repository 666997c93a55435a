//! What a run has to do, and how far it is.

use std::collections::BTreeMap;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Run, Side};
use crate::access::Grant;
use crate::db::{Db, count, statement};
use crate::ids::CollectionId;

/// What a run would have to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Images of the collection.
    pub images: i64,
    /// Its faces.
    pub faces: i64,
    /// Faces of which the pipeline has made a vector before.
    pub embedded: i64,
    /// Whether faces are looked for again, in the pictures themselves.
    pub detects: bool,
    /// Faces whose kept crop is read, and not the picture that they are on.
    pub from_crops: i64,
    /// Pictures that are read.
    pub from_images: i64,
    /// Pictures that were indexed in a second when the collection last was, at their detector's and recognizer's speed.
    pub indexed_per_s: Option<f64>,
}

/// Jobs whose ends are looked at for the speed.
const PACED: u32 = 2000;

/// Counts what a run from one side to the other would have to do, whose pipeline makes vectors from crops that were kept or only
/// from pictures.
pub async fn plan(
    db: &Db,
    collection: CollectionId,
    from: Side<'_>,
    to: Side<'_>,
    reads_crops: bool,
) -> Result<Plan, DbErr> {
    let of = async |sql: &str, more: Vec<Value>| {
        let values = std::iter::once(Value::from(collection)).chain(more);
        count(&db.read, &format!("SELECT count(*) AS n FROM {sql}"), values).await
    };
    let detects = from.revision != to.revision;
    let images = of("images WHERE collection_id = $1", vec![]).await?;
    let faces = of("faces WHERE collection_id = $1", vec![]).await?;
    let embedded = of("embeddings WHERE collection_id = $1 AND pipeline = $2", vec![to.pipeline.into()]).await?;
    let (lacks, pipeline) = (
        "faces f WHERE f.collection_id = $1
            AND NOT EXISTS (SELECT 1 FROM embeddings e WHERE e.pipeline = $2 AND e.face_id = f.id)",
        || vec![Value::from(to.pipeline)],
    );
    let cropped = if reads_crops { "EXISTS (SELECT 1 FROM crops k WHERE k.face_id = f.id)" } else { "1 = 0" };
    let (from_crops, from_images) = if detects {
        (0, images)
    } else {
        let without = format!("(SELECT DISTINCT f.image_id FROM {lacks} AND NOT {cropped}) AS i");
        (of(&format!("{lacks} AND {cropped}"), pipeline()).await?, of(&without, pipeline()).await?)
    };
    Ok(Plan {
        images,
        faces,
        embedded,
        detects,
        from_crops,
        from_images,
        indexed_per_s: indexed_per_s(db, collection).await?,
    })
}

async fn indexed_per_s(db: &Db, collection: CollectionId) -> Result<Option<f64>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        jobs: i64,
        first: Option<i64>,
        last: Option<i64>,
    }
    let sql = format!(
        "SELECT count(*) AS jobs, min(j.finished_at) AS first, max(j.finished_at) AS last FROM
            (SELECT finished_at FROM jobs WHERE collection_id = $1 AND kind = 'index' AND state = 'succeeded'
             ORDER BY id DESC LIMIT {PACED}) AS j"
    );
    let row = Row::find_by_statement(statement(&db.read, &sql, [collection.into()])).one(&db.read).await?;
    let Some(Row { jobs, first: Some(first), last: Some(last) }) = row else { return Ok(None) };
    #[expect(clippy::cast_precision_loss, reason = "a figure to read")]
    let pace = (last > first).then(|| (jobs - 1) as f64 * 1e6 / (last - first) as f64);
    Ok(pace)
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Images of the collection.
    pub images: i64,
    /// Those that lack what the pipeline makes of them.
    pub missing: i64,
    /// Of these, those that were given up, by the code of why.
    pub failed: BTreeMap<String, i64>,
    /// Faces that only the old detector found.
    pub lost: i64,
    /// Faces that only the new detector found.
    pub new: i64,
}

/// Counts how far the run is; of one whose end has begun, how far it was then.
pub async fn progress(db: &Db, run: &Run) -> Result<Progress, DbErr> {
    if let Some(figures) = &run.figures {
        return serde_json::from_str(figures).map_err(|error| DbErr::Json(error.to_string()));
    }
    // The counts see one moment.
    let txn = db.snapshot().await?;
    let counted = counted(&txn, run).await?;
    txn.commit().await?;
    Ok(counted)
}

/// What a run has done whose end is about to begin, to be kept with it: the rows that are counted go. Counted before, since
/// nobody is to wait for that. `None`: it is gone.
pub(super) async fn figures_to_keep(db: &Db, run: &Run) -> Result<Option<String>, DbErr> {
    let txn = db.snapshot().await?;
    // The caller may have read it a while ago.
    let figures = match super::find(&txn, &Grant::everything(), run.id).await? {
        Some(run) => Some(counted(&txn, &run).await?),
        None => None,
    };
    txn.commit().await?;
    let text = |figures| serde_json::to_string(&figures).map_err(|error| DbErr::Json(error.to_string()));
    figures.map(text).transpose()
}

async fn counted(txn: &impl ConnectionTrait, run: &Run) -> Result<Progress, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        problem: Option<String>,
        images: i64,
    }
    #[derive(FromQueryResult)]
    struct Difference {
        difference: String,
        faces: i64,
    }
    let images = count(txn, "SELECT count(*) AS n FROM images WHERE collection_id = $1", [run.collection_id.into()]);
    let images = images.await?;
    let sql = "SELECT problem, count(*) AS images FROM reprocess_pending WHERE collection_id = $1 AND pipeline = $2
        GROUP BY problem";
    let values = [run.collection_id.into(), run.pipeline.as_str().into()];
    let pending = Row::find_by_statement(statement(txn, sql, values)).all(txn).await?;
    let unlisted = if run.listed_at.is_none() {
        let sql = "SELECT count(*) AS n FROM images i WHERE i.collection_id = $1 AND i.id > $2 AND NOT EXISTS
            (SELECT 1 FROM reprocess_pending p
             WHERE p.collection_id = $1 AND p.pipeline = $3 AND p.image_id = i.id)";
        let after = run.checkpoint.map_or(Uuid::nil(), |image| image.0);
        count(txn, sql, [run.collection_id.into(), after.into(), run.pipeline.as_str().into()]).await?
    } else {
        0
    };
    let sql = "SELECT difference, count(*) AS faces FROM reprocess_differences WHERE run_id = $1 GROUP BY difference";
    let differences = Difference::find_by_statement(statement(txn, sql, [run.id.into()])).all(txn).await?;
    let of = |name: &str| differences.iter().find(|d| d.difference == name).map_or(0, |d| d.faces);
    Ok(Progress {
        images,
        missing: unlisted + pending.iter().map(|row| row.images).sum::<i64>(),
        failed: pending.into_iter().filter_map(|row| Some((row.problem?, row.images))).collect(),
        lost: of("lost"),
        new: of("new"),
    })
}
