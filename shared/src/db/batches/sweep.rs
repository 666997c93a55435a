//! What a batch does, as the last of it, with the places that its complete listing did not meet: a place that is gone is
//! forgotten, an image without any is marked or deleted. In slices, each one transaction.

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde_json::json;

use super::listing::{json_text, skipped};
use crate::db::entity::batch::{Model, OnGone};
use crate::db::rows::{Column, Rows};
use crate::db::{Db, count, execute, placeholders, rematches, statement, through_deadlocks};
use crate::failpoints::failpoint;
use crate::ids::{BatchId, ImageId, PersonId};
use crate::job::Problem;

/// Images that are deleted in one transaction, with all their faces.
const DELETED: u32 = 100;

/// Up to `limit` batches of which every job has ended and which have places to judge.
pub async fn due(db: &Db, limit: u64) -> Result<Vec<Model>, DbErr> {
    let sql = format!(
        "SELECT b.* FROM batches b WHERE b.finished_at IS NULL AND b.state = 'running' AND b.sweep = 'waits'
            AND b.reopen_before IS NULL AND b.list_after <= {{now}} AND b.queued = 0 AND b.running = 0
            AND b.succeeded + b.rejected + b.failed + b.cancelled = b.items - b.unchanged
            AND NOT EXISTS (SELECT 1 FROM batch_deltas d WHERE d.batch_id = b.id)
         ORDER BY b.id LIMIT {limit}"
    );
    Model::find_by_statement(statement(&db.read, &sql, [])).all(&db.read).await
}

#[derive(FromQueryResult)]
struct Place {
    uri: String,
}

#[derive(FromQueryResult)]
struct Image {
    id: ImageId,
}

/// Up to `limit` of the places that the batch's listing did not meet and that are not judged yet, in order.
pub async fn missing(db: &Db, batch: BatchId, limit: u64) -> Result<Vec<String>, DbErr> {
    let sql = format!("SELECT uri FROM batch_missing WHERE batch_id = $1 ORDER BY uri LIMIT {limit}");
    let rows = Place::find_by_statement(statement(&db.read, &sql, [batch.into()])).all(&db.read).await?;
    Ok(rows.into_iter().map(|row| row.uri).collect())
}

/// Judges places: those in `gone` are not there, those in `there` are after all. A place that is gone is forgotten unless
/// it is one of the last of its image: then it stays, so that the image is known when it comes back, and the image is
/// marked. Returns false, with nothing written, when the batch is no longer to be swept.
pub async fn judge(db: &Db, batch: &Model, gone: &[String], there: &[String]) -> Result<bool, DbErr> {
    through_deadlocks(|| judge_once(db, batch, gone, there)).await
}

async fn judge_once(db: &Db, batch: &Model, gone: &[String], there: &[String]) -> Result<bool, DbErr> {
    let txn = db.begin().await?;
    if !hold(&txn, batch.id).await? {
        return Ok(false);
    }
    take(&txn, batch.id, there).await?;
    // Another worker that sweeps too may have taken some.
    let gone = take(&txn, batch.id, gone).await?;
    if !gone.is_empty() {
        lock_images(&txn, batch, &gone).await?;
        let marked = mark(&txn, batch, &gone).await?;
        let moved = forget(&txn, batch, &gone).await?;
        let sql = "UPDATE batches SET moved = moved + $1, gone = gone + $2 WHERE id = $3";
        execute(&txn, sql, [moved.into(), marked.into(), batch.id.into()]).await?;
    }
    failpoint("before_sweep_commit");
    txn.commit().await?;
    Ok(true)
}

/// Whether the batch is still to be swept; nobody changes that until the transaction ends.
async fn hold(txn: &impl ConnectionTrait, batch: BatchId) -> Result<bool, DbErr> {
    let sql = "UPDATE batches SET listing_tries = 0, version = version + 1
        WHERE id = $1 AND state = 'running' AND sweep = 'waits' AND finished_at IS NULL";
    Ok(execute(txn, sql, [batch.into()]).await? > 0)
}

/// Takes places from those to be judged; returns those that were among them.
async fn take(txn: &impl ConnectionTrait, batch: BatchId, places: &[String]) -> Result<Vec<String>, DbErr> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let rows = places_rows(places);
    let sql = format!(
        "DELETE FROM batch_missing WHERE batch_id = $2 AND uri IN (SELECT r.uri FROM {}) RETURNING uri",
        rows.table(txn)
    );
    let taken = Place::find_by_statement(statement(txn, &sql, [rows.value(), batch.into()])).all(txn).await?;
    Ok(taken.into_iter().map(|row| row.uri).collect())
}

/// Locks the places' images before anything of them changes, as jobs do.
async fn lock_images(txn: &impl ConnectionTrait, batch: &Model, gone: &[String]) -> Result<(), DbErr> {
    let rows = places_rows(gone);
    let sql = format!(
        "SELECT i.id FROM images i WHERE i.id IN (SELECT s.image_id FROM {} JOIN image_sources s
            ON s.collection_id = $2 AND s.uri = r.uri) ORDER BY i.id {{for update}}",
        rows.table(txn)
    );
    txn.query_all_raw(statement(txn, &sql, [rows.value(), batch.collection_id.into()])).await?;
    Ok(())
}

/// Marks the images that lie nowhere else; returns how many. One of our own store, or one that was found at a place that
/// nobody can look for again, is not gone.
async fn mark(txn: &impl ConnectionTrait, batch: &Model, gone: &[String]) -> Result<i64, DbErr> {
    let rows = places_rows(gone);
    let table = rows.table(txn);
    let sql = format!(
        "UPDATE images SET gone_at = {{now}}
         WHERE gone_at IS NULL AND object_key IS NULL
            AND id IN (SELECT s.image_id FROM {table} JOIN image_sources s
                ON s.collection_id = $2 AND s.uri = r.uri AND s.seen_at < $3)
            AND NOT EXISTS (SELECT 1 FROM image_sources s WHERE s.image_id = images.id
                AND (s.seen_at >= $3 OR s.uri NOT IN (SELECT r.uri FROM {table})))
            AND (uri IS NULL OR EXISTS (SELECT 1 FROM image_sources s
                WHERE s.collection_id = images.collection_id AND s.uri = images.uri))"
    );
    let values = [rows.value(), batch.collection_id.into(), batch.created_at.into()];
    Ok(i64::try_from(execute(txn, &sql, values).await?).unwrap_or(i64::MAX))
}

/// Forgets the places of images that are not gone; returns how many of the pictures lie at a place that is new since the
/// batch was made.
async fn forget(txn: &impl ConnectionTrait, batch: &Model, gone: &[String]) -> Result<i64, DbErr> {
    #[derive(FromQueryResult)]
    struct Forgotten {
        uri: String,
        image_id: Option<ImageId>,
    }
    let rows = places_rows(gone);
    let sql = format!(
        "DELETE FROM image_sources WHERE collection_id = $2 AND seen_at < $3 AND uri IN (SELECT r.uri FROM {})
            AND NOT EXISTS (SELECT 1 FROM images i WHERE i.id = image_sources.image_id AND i.gone_at IS NOT NULL)
         RETURNING uri, image_id",
        rows.table(txn)
    );
    let values = [rows.value(), batch.collection_id.into(), batch.created_at.into()];
    let forgotten = Forgotten::find_by_statement(statement(txn, &sql, values)).all(txn).await?;
    let left: Vec<_> = forgotten
        .into_iter()
        .filter_map(|row| Some(json!({ "uri": row.uri, "image_id": crate::db::rows::id(row.image_id?.0) })))
        .collect();
    if left.is_empty() {
        return Ok(0);
    }
    let columns = &[("uri", Column::Text), ("image_id", Column::Id)];
    let rows = Rows::new(columns, left.clone());
    let sql = format!(
        "UPDATE images SET uri = (SELECT min(s.uri) FROM image_sources s WHERE s.image_id = images.id)
         WHERE EXISTS (SELECT 1 FROM {} WHERE r.image_id = images.id AND r.uri = images.uri)
            AND EXISTS (SELECT 1 FROM image_sources s WHERE s.image_id = images.id)",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value()]).await?;
    let rows = Rows::new(columns, left);
    let sql = format!(
        "SELECT count(*) AS n FROM {} WHERE EXISTS
            (SELECT 1 FROM image_sources s WHERE s.image_id = r.image_id AND s.seen_at >= $2)",
        rows.table(txn)
    );
    count(txn, &sql, [rows.value(), batch.created_at.into()]).await
}

fn places_rows(places: &[String]) -> Rows {
    Rows::new(&[("uri", Column::Text)], places.iter().map(|uri| json!({ "uri": uri })).collect())
}

/// What is left to do once every place is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Images may be left to delete.
    More,
    /// Nothing: the batch may end.
    Nothing,
}

/// Takes a batch with no place left to judge further: deletes some images that are gone from below `prefix`, where that is
/// wanted, or ends the sweep.
pub async fn conclude(db: &Db, batch: &Model, prefix: &str) -> Result<Left, DbErr> {
    if batch.on_gone == OnGone::Delete {
        let gone = gone_below(db, batch, prefix).await?;
        let doubt = if gone.is_empty() { None } else { doubt(db, batch).await? };
        if let Some(doubt) = doubt {
            let detail =
                format!("pictures that are gone are kept, as {doubt}: they may be there; mend it and index again");
            return end(db, batch.id, Some(&Problem::new("gone_kept", detail))).await;
        }
        if !gone.is_empty() {
            through_deadlocks(|| delete_once(db, batch, &gone)).await?;
            return Ok(Left::More);
        }
    }
    let problem = skipped(&batch.checkpoint()?);
    end(db, batch.id, problem.as_ref()).await
}

/// Gives the sweep up: what is not judged stays as it is.
pub async fn give_up(db: &Db, batch: BatchId, problem: &Problem) -> Result<(), DbErr> {
    end(db, batch, Some(problem)).await.map(|_| ())
}

/// Puts the sweep off after it failed in a way that may pass.
pub async fn put_off(db: &Db, batch: BatchId, delay: std::time::Duration) -> Result<(), DbErr> {
    let sql = "UPDATE batches SET listing_tries = listing_tries + 1, list_after = {now} + $1, version = version + 1
        WHERE id = $2 AND sweep = 'waits' AND finished_at IS NULL";
    execute(&db.write, sql, [crate::db::micros(delay).into(), batch.into()]).await?;
    Ok(())
}

async fn end(db: &Db, batch: BatchId, problem: Option<&Problem>) -> Result<Left, DbErr> {
    let sql = "UPDATE batches SET sweep = 'done', problem = $1, version = version + 1
        WHERE id = $2 AND sweep = 'waits' AND finished_at IS NULL";
    execute(&db.write, sql, [problem.map(json_text).transpose()?.into(), batch.into()]).await?;
    Ok(Left::Nothing)
}

/// Why a picture that seems to be gone may lie where nobody could look.
async fn doubt(db: &Db, batch: &Model) -> Result<Option<String>, DbErr> {
    let checkpoint = batch.checkpoint()?;
    if checkpoint.skipped > 0 {
        let first = checkpoint.first_skipped.unwrap_or_default();
        return Ok(Some(format!("{} files or folders could not be read, the first {first}", checkpoint.skipped)));
    }
    let sql = "SELECT COALESCE(CAST(sum(jobs) AS bigint), 0) AS n FROM batch_problems
        WHERE batch_id = $1 AND state = 'rejected' AND code = 'source_gone'";
    let unseen = batch.failed + batch.cancelled + count(&db.read, sql, [batch.id.into()]).await?;
    Ok((unseen > 0).then(|| format!("{unseen} pictures were listed and not read")))
}

/// Some images of the collection that are gone and lay below `prefix`.
async fn gone_below(db: &Db, batch: &Model, prefix: &str) -> Result<Vec<ImageId>, DbErr> {
    let sql = format!(
        "SELECT id FROM images WHERE collection_id = $1 AND gone_at IS NOT NULL
            AND substr(uri, 1, length($2)) = $2 ORDER BY id LIMIT {DELETED}"
    );
    let values = [batch.collection_id.into(), prefix.into()];
    let rows = Image::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

async fn delete_once(db: &Db, batch: &Model, images: &[ImageId]) -> Result<(), DbErr> {
    #[derive(FromQueryResult)]
    struct Person {
        person_id: PersonId,
    }
    let txn = db.begin().await?;
    if !hold(&txn, batch.id).await? {
        return Ok(());
    }
    // One may have come back meanwhile.
    let lock = format!(
        "SELECT id FROM images WHERE gone_at IS NOT NULL AND id IN ({}) ORDER BY id {{for update}}",
        placeholders(1, images.len())
    );
    let locked = statement(&txn, &lock, images.iter().map(|id| Value::from(*id)));
    let images: Vec<ImageId> = Image::find_by_statement(locked).all(&txn).await?.into_iter().map(|i| i.id).collect();
    if images.is_empty() {
        return Ok(());
    }
    let list = placeholders(1, images.len());
    let named = || images.iter().map(|id| Value::from(*id));
    let templates = format!(
        "SELECT DISTINCT person_id FROM faces WHERE person_id IS NOT NULL AND NOT hidden
            AND assigned_by IN ('enrolled', 'user') AND image_id IN ({list})"
    );
    let persons = Person::find_by_statement(statement(&txn, &templates, named())).all(&txn).await?;
    execute(&txn, &format!("DELETE FROM faces WHERE image_id IN ({list})"), named()).await?;
    // Those that this batch marked are counted already.
    let earlier = format!("SELECT count(*) AS n FROM images WHERE id IN ({list}) AND gone_at < ${}", images.len() + 1);
    let earlier = count(&txn, &earlier, named().chain([batch.created_at.into()])).await?;
    execute(&txn, &format!("DELETE FROM images WHERE id IN ({list})"), named()).await?;
    for person in persons {
        rematches::request(&txn, batch.collection_id, None, Some(person.person_id)).await?;
    }
    let sql = "UPDATE batches SET gone = gone + $1 WHERE id = $2";
    execute(&txn, sql, [earlier.into(), batch.id.into()]).await?;
    txn.commit().await
}
