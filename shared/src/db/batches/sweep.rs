//! What a batch does, as the last of it, with the places that its complete listing did not meet: a place that is gone is
//! forgotten, an image without any is marked. What is marked is deleted where that is wanted, nothing is in doubt, and a
//! last look at every place of it finds nothing. In slices, each one transaction.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde_json::json;

use super::listing::{json_text, skipped};
use crate::db::entity::batch::{Model, OnGone};
use crate::db::images::SENT;
use crate::db::rows::{Column, Rows};
use crate::db::{Db, count, execute, images, placeholders, statement, through_deadlocks};
use crate::failpoints::failpoint;
use crate::ids::{BatchId, ImageId};
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
        "SELECT i.id FROM images i WHERE i.id IN (SELECT s.image_id FROM {} CROSS JOIN image_sources s
            WHERE s.collection_id = $2 AND s.uri = r.uri) ORDER BY i.id {{for update}}",
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
         WHERE gone_at IS NULL AND {IS_ELSEWHERE}
            AND id IN (SELECT s.image_id FROM {table} CROSS JOIN image_sources s
                WHERE s.collection_id = $2 AND s.uri = r.uri AND s.seen_at < $3)
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
    let is_named = format!("s.uri NOT LIKE '{SENT}%'");
    let columns = &[("uri", Column::Text), ("image_id", Column::Id)];
    let rows = Rows::new(columns, left.clone());
    let sql = format!(
        "UPDATE images SET uri = (SELECT min(s.uri) FROM image_sources s WHERE s.image_id = images.id AND {is_named})
         WHERE images.id IN (SELECT r.image_id FROM {table})
            AND EXISTS (SELECT 1 FROM {table} WHERE r.image_id = images.id AND r.uri = images.uri)
            AND EXISTS (SELECT 1 FROM image_sources s WHERE s.image_id = images.id AND {is_named})",
        table = rows.table(txn)
    );
    execute(txn, &sql, [rows.value()]).await?;
    let rows = Rows::new(columns, left);
    let sql = format!(
        "SELECT count(*) AS n FROM {} WHERE EXISTS
            (SELECT 1 FROM image_sources s WHERE s.image_id = r.image_id AND s.seen_at >= $2 AND {is_named})",
        rows.table(txn)
    );
    count(txn, &sql, [rows.value(), batch.created_at.into()]).await
}

fn places_rows(places: &[String]) -> Rows {
    Rows::new(&[("uri", Column::Text)], places.iter().map(|uri| json!({ "uri": uri })).collect())
}

/// An image that a batch is to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doomed {
    /// The image.
    pub id: ImageId,
    /// Every place that is known of it.
    pub places: Vec<String>,
}

/// Takes a batch with no place left to judge further: the next images below `prefix` that it is to delete, once each of
/// their places was looked at again. The sweep has ended when there are none.
pub async fn conclude(db: &Db, batch: &Model, prefix: &str) -> Result<Vec<Doomed>, DbErr> {
    let mut problem = skipped(&batch.checkpoint()?);
    if batch.on_gone == OnGone::Delete {
        let doomed = doomed(db, batch, prefix).await?;
        let doubt = if doomed.is_empty() { None } else { doubt(batch)? };
        if let Some(doubt) = doubt {
            let detail =
                format!("pictures that are gone are kept, as {doubt}: they may be there; mend it and index again");
            problem = Some(Problem::new("gone_kept", detail));
        } else if !doomed.is_empty() {
            return Ok(doomed);
        } else if problem.is_none() {
            problem = kept_by_hand(db, batch, prefix).await?;
        }
    }
    end(db, batch.id, problem.as_ref()).await?;
    Ok(Vec::new())
}

/// Gives the sweep up: what is not judged stays as it is.
pub async fn give_up(db: &Db, batch: BatchId, problem: &Problem) -> Result<(), DbErr> {
    end(db, batch, Some(problem)).await
}

/// Puts the sweep off after it failed in a way that may pass.
pub async fn put_off(db: &Db, batch: BatchId, delay: std::time::Duration) -> Result<(), DbErr> {
    let sql = "UPDATE batches SET listing_tries = listing_tries + 1, list_after = {now} + $1, version = version + 1
        WHERE id = $2 AND sweep = 'waits' AND finished_at IS NULL";
    execute(&db.write, sql, [crate::db::micros(delay).into(), batch.into()]).await?;
    Ok(())
}

async fn end(db: &Db, batch: BatchId, problem: Option<&Problem>) -> Result<(), DbErr> {
    let sql = "UPDATE batches SET sweep = 'done', problem = $1, version = version + 1
        WHERE id = $2 AND sweep = 'waits' AND finished_at IS NULL";
    execute(&db.write, sql, [problem.map(json_text).transpose()?.into(), batch.into()]).await?;
    Ok(())
}

/// Why a picture that seems to be gone may lie where nobody could look.
fn doubt(batch: &Model) -> Result<Option<String>, DbErr> {
    let checkpoint = batch.checkpoint()?;
    if checkpoint.skipped > 0 {
        let first = checkpoint.first_skipped.unwrap_or_default();
        return Ok(Some(format!("{} files or folders could not be read, the first {first}", checkpoint.skipped)));
    }
    // One that was rejected may be a copy that is not complete yet.
    let unseen = batch.failed + batch.cancelled + batch.rejected;
    Ok((unseen > 0).then(|| format!("{unseen} pictures were listed and not read")))
}

/// Whether an image does not lie in our own store. Without the double negation `SQLite` would begin with the index of object
/// keys, and look through every image that has none.
const IS_ELSEWHERE: &str = "NOT (object_key IS NOT NULL)";

/// Whether the image `i` shows somebody by a user's word, which no file brings back.
const IS_BY_HAND: &str =
    "EXISTS (SELECT 1 FROM faces f WHERE f.image_id = i.id AND (f.locked OR f.assigned_by IN ('enrolled', 'user')))";

/// Whether the image `i` of the collection `$1` is gone, and lay below `$2` and nowhere else.
const IS_GONE_BELOW: &str = "i.collection_id = $1 AND i.gone_at IS NOT NULL AND NOT (i.object_key IS NOT NULL)
    AND substr(i.uri, 1, length($2)) = $2
    AND NOT EXISTS (SELECT 1 FROM image_sources s WHERE s.image_id = i.id AND substr(s.uri, 1, length($2)) <> $2)";

async fn doomed(db: &Db, batch: &Model, prefix: &str) -> Result<Vec<Doomed>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: ImageId,
        uri: String,
    }
    let sql = format!(
        "SELECT i.id, i.uri FROM images i WHERE {IS_GONE_BELOW} AND NOT {IS_BY_HAND} ORDER BY i.id LIMIT {DELETED}"
    );
    let values = [batch.collection_id.into(), prefix.into()];
    let rows = Row::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let mut places: BTreeMap<ImageId, BTreeSet<String>> = BTreeMap::new();
    for row in rows {
        places.entry(row.id).or_default().insert(row.uri);
    }
    let list = placeholders(1, places.len());
    let sql = format!("SELECT image_id AS id, uri FROM image_sources WHERE image_id IN ({list})");
    let values: Vec<Value> = places.keys().map(|id| Value::from(*id)).collect();
    for row in Row::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await? {
        places.entry(row.id).or_default().insert(row.uri);
    }
    Ok(places.into_iter().map(|(id, places)| Doomed { id, places: places.into_iter().collect() }).collect())
}

/// What a client is told of images that are gone and no batch deletes.
async fn kept_by_hand(db: &Db, batch: &Model, prefix: &str) -> Result<Option<Problem>, DbErr> {
    let sql = format!("SELECT count(*) AS n FROM images i WHERE {IS_GONE_BELOW} AND {IS_BY_HAND}");
    let kept = count(&db.read, &sql, [batch.collection_id.into(), prefix.into()]).await?;
    let detail = format!(
        "{kept} pictures that are gone are kept, as a face of theirs was enrolled, assigned by hand or locked; delete \
         those faces and index again to be rid of them"
    );
    Ok((kept > 0).then(|| Problem::new("gone_named", detail)))
}

/// Deletes images that are gone, with their faces, and takes the mark off those in `there`, of which a place may hold them
/// after all. Returns false, with nothing written, when the batch is no longer to be swept.
pub async fn delete(db: &Db, batch: &Model, gone: &[ImageId], there: &[ImageId]) -> Result<bool, DbErr> {
    through_deadlocks(|| delete_once(db, batch, gone, there)).await
}

async fn delete_once(db: &Db, batch: &Model, gone: &[ImageId], there: &[ImageId]) -> Result<bool, DbErr> {
    let txn = db.begin().await?;
    if !hold(&txn, batch.id).await? {
        return Ok(false);
    }
    images::returned(&txn, there).await?;
    let gone = still_gone(&txn, gone).await?;
    if !gone.is_empty() {
        let list = placeholders(1, gone.len());
        let named = || gone.iter().map(|id| Value::from(*id));
        execute(&txn, &format!("DELETE FROM faces WHERE image_id IN ({list})"), named()).await?;
        // Those that this batch marked are counted already.
        let earlier =
            format!("SELECT count(*) AS n FROM images WHERE id IN ({list}) AND gone_at < ${}", gone.len() + 1);
        let earlier = count(&txn, &earlier, named().chain([batch.created_at.into()])).await?;
        execute(&txn, &format!("DELETE FROM images WHERE id IN ({list})"), named()).await?;
        let sql = "UPDATE batches SET gone = gone + $1 WHERE id = $2";
        execute(&txn, sql, [earlier.into(), batch.id.into()]).await?;
    }
    txn.commit().await?;
    Ok(true)
}

/// Locks the images with their faces; those that did not come back, and whose faces nobody named, since they were read.
async fn still_gone(txn: &impl ConnectionTrait, images: &[ImageId]) -> Result<Vec<ImageId>, DbErr> {
    if images.is_empty() {
        return Ok(Vec::new());
    }
    let list = placeholders(1, images.len());
    let named = || images.iter().map(|id| Value::from(*id));
    let lock = format!("SELECT id FROM images WHERE id IN ({list}) ORDER BY id {{for update}}");
    txn.query_all_raw(statement(txn, &lock, named())).await?;
    let lock = format!("SELECT id FROM faces WHERE image_id IN ({list}) ORDER BY id {{for update}}");
    txn.query_all_raw(statement(txn, &lock, named())).await?;
    let sql =
        format!("SELECT i.id FROM images i WHERE i.id IN ({list}) AND i.gone_at IS NOT NULL AND NOT {IS_BY_HAND}");
    let rows = Image::find_by_statement(statement(txn, &sql, named())).all(txn).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}
