//! From a batch's source to its jobs: page by page, each in one transaction with how far the listing has come.

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::Duration;

use sea_orm::prelude::*;
use sea_orm::{FromQueryResult, QueryFilter, QueryOrder, QuerySelect};
use serde_json::json;

use super::deltas::{self, Delta};
use super::missing::{self, Coverage};
use crate::batch::Checkpoint;
use crate::db::api_keys::usage::count_page;
use crate::db::entity::batch::{BatchState, Column, Entity, Model, Sweep};
use crate::db::rows::{self, Rows};
use crate::db::{Db, execute, images, micros, now, statement};
use crate::failpoints::failpoint;
use crate::ids::{BatchId, ImageId, JobId};
use crate::job::{ImageRef, JobArgs, JobKind, JobState, Problem};

/// Pictures that were listed next.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The pictures.
    pub items: Vec<ImageRef>,
    /// Where the listing goes on.
    pub checkpoint: Checkpoint,
    /// Whether there are no more.
    pub is_last: bool,
    /// What it says of places that it does not name; `None` of a manifest, which is no list of all that there is.
    pub coverage: Option<Coverage>,
}

impl Model {
    /// Where the listing goes on.
    ///
    /// # Errors
    /// The row was written by something that is not face-id.
    pub fn checkpoint(&self) -> Result<Checkpoint, DbErr> {
        let text = self.checkpoint.as_deref();
        text.map_or(Ok(Checkpoint::default()), |t| serde_json::from_str(t).map_err(|e| DbErr::Json(e.to_string())))
    }
}

/// Up to `limit` batches whose listing is due, by their ids, those after `after`.
pub async fn due(db: &Db, after: Option<BatchId>, limit: u64) -> Result<Vec<Model>, DbErr> {
    let now = now(&db.read).await?;
    let mut query = Entity::find()
        .filter(Column::FinishedAt.is_null())
        .filter(Column::State.eq(BatchState::Running))
        .filter(Column::ListedAt.is_null())
        .filter(Column::ListAfter.lte(now))
        .order_by_asc(Column::Id)
        .limit(limit);
    if let Some(after) = after {
        query = query.filter(Column::Id.gt(after));
    }
    query.all(&db.read).await
}

/// Makes a job of each picture that the collection does not know yet, and notes how far the listing has come. False, and
/// no job made, when the page is to be listed again: the batch is no longer as it was read, as it is held or somebody else
/// listed the page, or too many known places are to be compared with the page for one turn, or its key has spent the day's
/// pictures (`images_per_day` where the key has no limit of its own).
pub async fn add(
    db: &Db,
    batch: &Model,
    detector_revision: &str,
    images_per_day: u32,
    listed: &Listed,
) -> Result<bool, DbErr> {
    let Some(listed) = compared(db, batch, listed).await? else { return Ok(false) };
    let (sweep, problem) = after_page(db, batch, &listed).await?;
    failpoint("after_note");
    let txn = db.begin().await?;
    let known = known(&txn, batch, detector_revision, &listed.items).await?;
    let is_new = |image: &&ImageRef| place(image).is_none_or(|place| !known.places.contains(&place));
    let new: Vec<&ImageRef> = listed.items.iter().filter(is_new).collect();
    if let Some(key) = batch.api_key_id
        && let Some(rest) = count_page(&txn, key, new.len(), images_per_day).await?
    {
        txn.rollback().await?;
        wait_for_next_day(db, batch.id, rest).await?;
        return Ok(false);
    }
    let checkpoint = checkpoint_text(&Checkpoint { compared: None, ..listed.checkpoint.clone() })?;
    let sql = "UPDATE batches SET checkpoint = $1, items = items + $2, unchanged = unchanged + $3, listing_tries = 0,
            listed_at = CASE WHEN $4 THEN {now} END, problem = $5, version = version + 1, sweep = $9
        WHERE id = $6 AND state = 'running' AND listed_at IS NULL AND items = $7
            AND checkpoint IS NOT DISTINCT FROM $8";
    let count = |n: usize| Value::from(i64::try_from(n).unwrap_or(i64::MAX));
    let values = [
        checkpoint.into(),
        count(listed.items.len()),
        count(listed.items.len() - new.len()),
        listed.is_last.into(),
        problem.as_ref().map(json_text).transpose()?.into(),
        batch.id.into(),
        batch.items.into(),
        batch.checkpoint.clone().into(),
        sweep.as_ref().map(ActiveEnum::to_value).into(),
    ];
    if execute(&txn, sql, values).await? == 0 {
        return Ok(false);
    }
    if !images::returned(&txn, &known.gone).await? {
        return Ok(false);
    }
    if !new.is_empty() {
        // What is known keeps no number: the jobs of a batch are numbered without gaps from page to page only.
        insert(&txn, batch, &new).await?;
        let waiting = Delta { batch: batch.id, from: None, to: Some(JobState::Queued), code: None };
        deltas::append_count(&txn, &waiting, i64::try_from(new.len()).unwrap_or(i64::MAX), 0).await?;
    }
    txn.commit().await?;
    Ok(true)
}

/// Notes what the page did not meet. The page with what is known of its empty folders, or none when the comparison goes on
/// in another turn.
async fn compared<'a>(db: &Db, batch: &Model, listed: &'a Listed) -> Result<Option<Cow<'a, Listed>>, DbErr> {
    if is_nothing(batch, listed) {
        return Ok(Some(Cow::Borrowed(listed)));
    }
    let listed = missing::with_emptied(db, batch, listed).await?;
    let Some(compared) = missing::note(db, batch, &listed).await? else { return Ok(Some(listed)) };
    let checkpoint = Checkpoint { compared: Some(compared), ..batch.checkpoint()? };
    let sql = "UPDATE batches SET checkpoint = $1, listing_tries = 0, version = version + 1
        WHERE id = $2 AND listed_at IS NULL AND items = $3 AND checkpoint IS NOT DISTINCT FROM $4";
    let values =
        [checkpoint_text(&checkpoint)?.into(), batch.id.into(), batch.items.into(), batch.checkpoint.clone().into()];
    execute(&db.write, sql, values).await?;
    Ok(None)
}

/// Whether nothing at all was listed.
fn is_nothing(batch: &Model, listed: &Listed) -> bool {
    listed.is_last && batch.items == 0 && listed.items.is_empty()
}

fn checkpoint_text(checkpoint: &Checkpoint) -> Result<String, DbErr> {
    serde_json::to_string(checkpoint).map_err(|e| DbErr::Json(e.to_string()))
}

/// Whether the batch is to be swept after the page, and what a client is told.
async fn after_page(db: &Db, batch: &Model, listed: &Listed) -> Result<(Option<Sweep>, Option<Problem>), DbErr> {
    let skipped = skipped(&listed.checkpoint);
    let Some(coverage) = &listed.coverage else { return Ok((None, skipped)) };
    if !is_nothing(batch, listed) {
        return Ok((listed.is_last.then_some(Sweep::Waits), skipped));
    }
    // An empty folder is more often a disk that is not mounted than a library whose pictures were all deleted.
    let is_suspect = skipped.is_none() && missing::knows_any(db, batch, coverage).await?;
    let detail = "no picture was listed where there were some before: nothing is counted as gone; is the disk mounted?";
    Ok((None, if is_suspect { Some(Problem::new("source_empty", detail)) } else { skipped }))
}

/// Puts the listing off after it failed in a way that may pass.
pub async fn put_off(db: &Db, batch: BatchId, delay: Duration, problem: &Problem) -> Result<(), DbErr> {
    let sql = "UPDATE batches SET listing_tries = listing_tries + 1, list_after = {now} + $1, problem = $2,
            version = version + 1
        WHERE id = $3 AND listed_at IS NULL AND finished_at IS NULL";
    execute(&db.write, sql, [micros(delay).into(), json_text(problem)?.into(), batch.into()]).await?;
    Ok(())
}

/// Goes on with the listing when the next day begins.
async fn wait_for_next_day(db: &Db, batch: BatchId, rest: Duration) -> Result<(), DbErr> {
    let detail =
        "the API key has spent the pictures that it may have looked at in a day (UTC); the listing goes on tomorrow";
    let problem = Problem::new("daily_images_spent", detail);
    let sql = "UPDATE batches SET list_after = {now} + $1, problem = $2, version = version + 1
        WHERE id = $3 AND listed_at IS NULL AND finished_at IS NULL";
    execute(&db.write, sql, [micros(rest).into(), json_text(&problem)?.into(), batch.into()]).await?;
    Ok(())
}

/// Gives the listing up: the batch ends as failed once the jobs of what was listed have ended.
pub async fn give_up(db: &Db, batch: BatchId, problem: &Problem) -> Result<(), DbErr> {
    let sql = "UPDATE batches SET listed_at = {now}, listing_failed = TRUE, problem = $1, version = version + 1
        WHERE id = $2 AND listed_at IS NULL AND finished_at IS NULL";
    execute(&db.write, sql, [json_text(problem)?.into(), batch.into()]).await?;
    Ok(())
}

/// Whether a batch needs this manifest: one that is not listed to its end.
pub async fn needs_manifest(db: &Db, manifest: Uuid) -> Result<bool, DbErr> {
    let sql = "SELECT count(*) AS n FROM batches
        WHERE (listed_at IS NULL OR listing_failed) AND source LIKE $1 AND state <> 'cancelled'";
    let like = format!("{{\"manifest\":%\"{manifest}\"%");
    Ok(crate::db::count(&db.read, sql, [like.into()]).await? > 0)
}

/// Where a picture lies, and what stands for its bytes there.
fn place(image: &ImageRef) -> Option<(String, String)> {
    Some((image.uri()?, image.fingerprint()?.to_owned()))
}

/// What the collection has analysed before.
#[derive(Default)]
struct Known {
    /// The places that hold it, with their fingerprints.
    places: HashSet<(String, String)>,
    /// Images there that were taken for gone.
    gone: Vec<ImageId>,
}

/// Those of the pictures that the collection knows.
async fn known(
    txn: &impl ConnectionTrait,
    batch: &Model,
    detector_revision: &str,
    items: &[ImageRef],
) -> Result<Known, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        uri: String,
        fingerprint: String,
        gone: Option<ImageId>,
    }
    let row = |(uri, fingerprint): (String, String)| json!({ "uri": uri, "fingerprint": fingerprint });
    let places: Vec<_> = items.iter().filter_map(place).map(row).collect();
    if places.is_empty() {
        return Ok(Known::default());
    }
    let rows = Rows::new(&[("uri", rows::Column::Text), ("fingerprint", rows::Column::Text)], places);
    let sql = format!(
        "SELECT r.uri, r.fingerprint, i.id AS gone FROM {} CROSS JOIN image_sources s
         LEFT JOIN image_analyses a ON a.image_id = s.image_id AND a.detector_revision = $3
         LEFT JOIN images i ON i.id = s.image_id AND i.gone_at IS NOT NULL
         WHERE s.collection_id = $2 AND s.uri = r.uri AND s.fingerprint = r.fingerprint
            AND (s.image_id IS NULL OR a.image_id IS NOT NULL)",
        rows.table(txn)
    );
    let values = [rows.value(), batch.collection_id.into(), detector_revision.into()];
    let found = Row::find_by_statement(statement(txn, &sql, values)).all(txn).await?;
    let gone = found.iter().filter_map(|row| row.gone).collect();
    Ok(Known { places: found.into_iter().map(|row| (row.uri, row.fingerprint)).collect(), gone })
}

async fn insert(txn: &impl ConnectionTrait, batch: &Model, images: &[&ImageRef]) -> Result<(), DbErr> {
    let made: Vec<(JobId, i64, String)> = images
        .iter()
        .zip(batch.items..)
        .map(|(image, item)| {
            let args = JobArgs::Index { image: (*image).clone() };
            Ok((JobId::new(), item, serde_json::to_string(&args).map_err(|e| DbErr::Json(e.to_string()))?))
        })
        .collect::<Result<_, DbErr>>()?;
    let row = |(id, item, _): &(JobId, i64, String)| json!({ "id": rows::id(id.0), "item_no": item });
    let jobs =
        Rows::new(&[("id", rows::Column::Id), ("item_no", rows::Column::Integer)], made.iter().map(row).collect());
    let sql = format!(
        "INSERT INTO jobs (id, collection_id, kind, lane, pipeline, state, attempt, run_at, alone, cancel_requested, tag,
            version, created_at, traceparent, batch_id, item_no, source_id, webhook_endpoint_ids)
         SELECT r.id, $2, $3, $4, (SELECT c.pipeline FROM collections c WHERE c.id = $2), 'queued', 0, {{now}}, 0, FALSE,
            (SELECT b.tag FROM batches b WHERE b.id = $6), 0, {{now}}, $5, $6, r.item_no, $6, $7 FROM {}",
        jobs.table(txn)
    );
    let values = [
        jobs.value(),
        batch.collection_id.into(),
        batch.kind.as_str().into(),
        JobKind::Index.lane().as_str().into(),
        batch.traceparent.clone().into(),
        batch.id.into(),
        batch.webhook_endpoint_ids.clone().into(),
    ];
    execute(txn, &sql, values).await?;
    let row = |(id, _, args): &(JobId, i64, String)| json!({ "id": rows::id(id.0), "args": args });
    let payloads = Rows::new(&[("id", rows::Column::Id), ("args", rows::Column::Text)], made.iter().map(row).collect());
    let sql = format!("INSERT INTO job_payloads (job_id, args) SELECT r.id, r.args FROM {}", payloads.table(txn));
    execute(txn, &sql, [payloads.value()]).await?;
    Ok(())
}

/// What a client is told of places that could not be read.
pub(super) fn skipped(checkpoint: &Checkpoint) -> Option<Problem> {
    let first = checkpoint.first_skipped.as_deref().filter(|_| checkpoint.skipped > 0)?;
    let detail = format!("{} files or folders could not be read or named; the first: {first}", checkpoint.skipped);
    Some(Problem::new("places_skipped", detail))
}

pub(super) fn json_text(problem: &Problem) -> Result<String, DbErr> {
    serde_json::to_string(problem).map_err(|e| DbErr::Json(e.to_string()))
}
