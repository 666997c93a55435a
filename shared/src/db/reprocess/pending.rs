//! Which images lack what a pipeline makes of them, and the jobs that add it. An image stays here until a job has recorded
//! that it lacks nothing.

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde_json::json;

use super::{KEPT_UP, Run, comparison};
use crate::db::rows::{self, Column, Rows};
use crate::db::webhooks::events;
use crate::db::{Db, collections, count, execute, is_postgres, micros, now, statement};
use crate::failpoints::failpoint;
use crate::ids::{CollectionId, ImageId, JobId};
use crate::job::{JobArgs, JobKind};

/// Images of one page of a listing.
const PAGE: usize = 2000;
/// A pace is measured over at least this long.
const PACE_OVER: std::time::Duration = std::time::Duration::from_secs(2);

const IMAGE: [(&str, Column); 1] = [("image_id", Column::Id)];

fn image_rows(images: &[ImageId]) -> Rows {
    Rows::new(&IMAGE, images.iter().map(|image| json!({ "image_id": rows::id(image.0) })).collect())
}

/// Notes what the pipelines of an open run lack of images of which something has just been recorded, by this pipeline or
/// whichever; all that refers to the collection must be written before. Where there is no run, there is nothing to note.
pub async fn note(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    pipeline: Option<&str>,
    images: &[ImageId],
) -> Result<(), DbErr> {
    if images.is_empty() {
        return Ok(());
    }
    // A run that begins at this moment is waited for, and seen.
    collections::hold_pipeline(txn, collection).await?;
    let images = image_rows(images);
    // A job that is at it may have read the image before: another one will look again.
    let sql = format!(
        "INSERT INTO reprocess_pending (collection_id, pipeline, image_id)
         SELECT DISTINCT $2, p.pipeline, r.image_id FROM {} CROSS JOIN {KEPT_UP} AS p
         WHERE p.collection_id = $2 AND p.pipeline IS DISTINCT FROM {}
         ON CONFLICT (collection_id, pipeline, image_id) DO UPDATE SET job_id = NULL, problem = NULL",
        images.table(txn),
        if is_postgres(txn) { "$3::text" } else { "$3" }
    );
    execute(txn, &sql, [images.value(), collection.into(), pipeline.into()]).await?;
    Ok(())
}

/// Notes the images of faces that have just been given a name or were locked and lack a vector of a pipeline that an open run
/// keeps up: what nobody had named may have been left out. `faces` stands for the faces in an `IN`, with `of` as `$2`. All
/// that refers to the collection must be written before.
pub(in crate::db) async fn note_labelled(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    faces: &str,
    of: Value,
) -> Result<(), DbErr> {
    // A switch, or the end of a run, is waited for and seen, or waits and then sees these faces.
    collections::hold_pipeline(txn, collection).await?;
    let sql = format!(
        "INSERT INTO reprocess_pending (collection_id, pipeline, image_id)
         SELECT DISTINCT f.collection_id, p.pipeline, f.image_id FROM faces f
         JOIN {KEPT_UP} AS p ON p.collection_id = f.collection_id
         WHERE f.collection_id = $1 AND f.id IN ({faces}) AND NOT f.hidden AND (f.locked OR f.assigned_by <> 'auto')
            AND NOT EXISTS (SELECT 1 FROM embeddings e WHERE e.pipeline = p.pipeline AND e.face_id = f.id)
         ON CONFLICT (collection_id, pipeline, image_id) DO UPDATE SET job_id = NULL, problem = NULL"
    );
    execute(txn, &sql, [collection.into(), of]).await?;
    Ok(())
}

/// Lists the next images of a run's collection; true when there are more.
pub async fn list_page(db: &Db, run: &Run) -> Result<bool, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: ImageId,
    }
    let txn = db.begin().await?;
    let after = run.checkpoint.map_or(Uuid::nil(), |image| image.0);
    let sql = format!("SELECT id FROM images WHERE collection_id = $1 AND id > $2 ORDER BY id LIMIT {PAGE}");
    let page =
        Row::find_by_statement(statement(&txn, &sql, [run.collection_id.into(), after.into()])).all(&txn).await?;
    let page: Vec<ImageId> = page.into_iter().map(|row| row.id).collect();
    let is_last = page.len() < PAGE;
    let sql = "UPDATE reprocess_runs SET checkpoint = COALESCE($2, checkpoint), version = version + 1,
            listed_at = CASE WHEN $3 THEN {now} END
        WHERE id = $1 AND state = 'filling' AND listed_at IS NULL AND checkpoint IS NOT DISTINCT FROM $4";
    let values = [run.id.into(), page.last().copied().into(), is_last.into(), run.checkpoint.into()];
    if execute(&txn, sql, values).await? == 0 {
        txn.rollback().await?;
        return Ok(false);
    }
    if !page.is_empty() {
        let images = image_rows(&page);
        // An image whose faces all have their vectors lacks only the analysis of a new detector, if any.
        let sql = format!(
            "INSERT INTO reprocess_pending (collection_id, pipeline, image_id)
             SELECT $2, $3, r.image_id FROM {} WHERE
                EXISTS (SELECT 1 FROM faces f WHERE f.image_id = r.image_id
                    AND NOT EXISTS (SELECT 1 FROM embeddings e WHERE e.pipeline = $3 AND e.face_id = f.id))
                OR ({} AND EXISTS (SELECT 1 FROM image_analyses a WHERE a.image_id = r.image_id)
                    AND NOT EXISTS (SELECT 1 FROM image_analyses a
                        WHERE a.image_id = r.image_id AND a.detector_revision = $4))
             ON CONFLICT DO NOTHING",
            images.table(&txn),
            if run.changes_detector() { "TRUE" } else { "FALSE" }
        );
        let values =
            [images.value(), run.collection_id.into(), run.pipeline.as_str().into(), run.revision.as_str().into()];
        execute(&txn, &sql, values).await?;
    }
    txn.commit().await?;
    Ok(!is_last)
}

/// Makes jobs of up to `limit` images that lack what a pipeline of the run makes of them and have no job, of so many images
/// each; returns how many. An image of which a face has no crop is read, which takes its time: it has a job of its own, as
/// one that failed has.
pub async fn make_jobs(db: &Db, run: &Run, pipeline: &str, limit: usize, images_a_job: usize) -> Result<usize, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        image_id: ImageId,
        tries: i32,
        is_read: bool,
    }
    let txn = db.begin().await?;
    // As the jobs will; before the run, in the order in which who switches the pipeline takes both.
    collections::hold_pipeline(&txn, run.collection_id).await?;
    // An erasure that takes its tag away is waited for, or waits and then sees the jobs.
    let lock = "SELECT id FROM reprocess_runs WHERE id = $1 {for update}";
    txn.query_all_raw(statement(&txn, lock, [run.id.into()])).await?;
    // An image that is being recorded at this moment is left to the next time.
    let lock = if is_postgres(&txn) { "FOR UPDATE SKIP LOCKED" } else { "" };
    let is_read = if images_a_job > 1 {
        "EXISTS (SELECT 1 FROM faces f WHERE f.image_id = p.image_id
            AND NOT EXISTS (SELECT 1 FROM embeddings e WHERE e.pipeline = $2 AND e.face_id = f.id)
            AND NOT EXISTS (SELECT 1 FROM crops k WHERE k.face_id = f.id))"
    } else {
        "TRUE"
    };
    let sql = format!(
        "SELECT p.image_id, p.tries, {is_read} AS is_read FROM reprocess_pending p
         WHERE p.collection_id = $1 AND p.pipeline = $2 AND p.job_id IS NULL AND p.problem IS NULL
            AND EXISTS (SELECT 1 FROM reprocess_runs WHERE id = $3 AND NOT paused AND ended_at IS NULL)
         ORDER BY p.image_id LIMIT {limit} {lock}"
    );
    let values = [run.collection_id.into(), pipeline.into(), run.id.into()];
    let waiting = Row::find_by_statement(statement(&txn, &sql, values)).all(&txn).await?;
    if waiting.is_empty() {
        txn.rollback().await?;
        return Ok(0);
    }
    let (alone, together): (Vec<Row>, Vec<Row>) = waiting.into_iter().partition(|row| row.tries > 0 || row.is_read);
    let ids = |rows: Vec<Row>| rows.into_iter().map(|row| row.image_id).collect::<Vec<_>>();
    let (alone, together) = (ids(alone), ids(together));
    let images_a_job = images_a_job.max(1);
    // The rest of those that are alone wait for the next time.
    let made = together.chunks(images_a_job).chain(alone.chunks(1)).take(limit.div_ceil(images_a_job));
    let jobs: Vec<(JobId, &[ImageId])> = made.map(|some| (JobId::new(), some)).collect();
    insert_jobs(&txn, run, pipeline, &jobs).await?;
    let row = |(job, images): &(JobId, &[ImageId])| {
        let job = rows::id(job.0);
        images.iter().map(|i| json!({ "image_id": rows::id(i.0), "job_id": job })).collect::<Vec<_>>()
    };
    let taken = Rows::new(&[("image_id", Column::Id), ("job_id", Column::Id)], jobs.iter().flat_map(row).collect());
    // All of them are there. `UPDATE ... FROM` would have SQLite read all of these rows for each that waits.
    let sql = format!(
        "INSERT INTO reprocess_pending (collection_id, pipeline, image_id, job_id)
         SELECT $2, $3, r.image_id, r.job_id FROM {} WHERE TRUE
         ON CONFLICT (collection_id, pipeline, image_id) DO UPDATE SET job_id = excluded.job_id",
        taken.table(&txn)
    );
    execute(&txn, &sql, [taken.value(), run.collection_id.into(), pipeline.into()]).await?;
    failpoint("reprocess_jobs");
    txn.commit().await?;
    Ok(jobs.len())
}

async fn insert_jobs(
    txn: &impl ConnectionTrait,
    run: &Run,
    pipeline: &str,
    made: &[(JobId, &[ImageId])],
) -> Result<(), DbErr> {
    let jobs = Rows::new(&[("id", Column::Id)], made.iter().map(|(id, _)| json!({ "id": rows::id(id.0) })).collect());
    let sql = format!(
        "INSERT INTO jobs (id, collection_id, kind, lane, pipeline, state, attempt, run_at, alone, cancel_requested, tag,
            version, created_at, traceparent, source_id)
         SELECT r.id, $2, $3, $4, $5, 'queued', 0, {{now}}, 0, FALSE, (SELECT o.tag FROM reprocess_runs o WHERE o.id = $6),
            0, {{now}}, $7, $2 FROM {}",
        jobs.table(txn)
    );
    let values = [
        jobs.value(),
        run.collection_id.into(),
        JobKind::Reembed.as_str().into(),
        JobKind::Reembed.lane().as_str().into(),
        pipeline.into(),
        run.id.into(),
        run.traceparent.clone().into(),
    ];
    execute(txn, &sql, values).await?;
    let payload = |(id, images): &(JobId, &[ImageId])| {
        let args = JobArgs::Reembed { images: images.to_vec(), detects: run.changes_detector() };
        let args = serde_json::to_string(&args).map_err(|e| DbErr::Json(e.to_string()))?;
        Ok(json!({ "id": rows::id(id.0), "args": args }))
    };
    let payloads = made.iter().map(payload).collect::<Result<Vec<_>, DbErr>>()?;
    let payloads = Rows::new(&[("id", Column::Id), ("args", Column::Text)], payloads);
    let sql = format!("INSERT INTO job_payloads (job_id, args) SELECT r.id, r.args FROM {}", payloads.table(txn));
    execute(txn, &sql, [payloads.value()]).await?;
    Ok(())
}

/// Jobs that add to a collection what a pipeline makes of its images, and have not ended.
pub async fn open_jobs(db: &Db, collection: CollectionId, pipeline: &str) -> Result<usize, DbErr> {
    let sql = "SELECT count(*) AS n FROM jobs WHERE collection_id = $1 AND pipeline = $2 AND kind = 'reembed'
        AND state IN ('queued', 'running')";
    Ok(usize::try_from(count(&db.read, sql, [collection.into(), pipeline.into()]).await?).unwrap_or_default())
}

/// Gives images up whose job has ended without having done them; those that shared it are tried again, each by itself.
/// Returns how many jobs that were.
pub async fn give_up_ended(db: &Db, run: &Run) -> Result<usize, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        job_id: JobId,
        images: i64,
    }
    let sql = "SELECT p.job_id, count(*) AS images FROM reprocess_pending p LEFT JOIN jobs j ON j.id = p.job_id
        WHERE p.collection_id = $1 AND p.job_id IS NOT NULL
            AND (j.id IS NULL OR j.state IN ('succeeded', 'rejected', 'failed', 'cancelled'))
        GROUP BY p.job_id";
    let ended = Row::find_by_statement(statement(&db.read, sql, [run.collection_id.into()])).all(&db.read).await?;
    for Row { job_id, images } in &ended {
        let sql = if *images > 1 {
            "UPDATE reprocess_pending SET job_id = NULL, tries = tries + 1 WHERE collection_id = $1 AND job_id = $2"
        } else {
            "UPDATE reprocess_pending SET job_id = NULL, problem = COALESCE(
                (SELECT CASE WHEN j.state = 'cancelled' THEN 'cancelled' ELSE j.problem_code END FROM jobs j
                 WHERE j.id = $2), 'job_gone')
             WHERE collection_id = $1 AND job_id = $2"
        };
        execute(&db.write, sql, [run.collection_id.into(), (*job_id).into()]).await?;
    }
    Ok(ended.len())
}

/// Images that lack what a pipeline makes of them, and were not given up.
pub(super) async fn left(conn: &impl ConnectionTrait, run: &Run, pipeline: &str) -> Result<i64, DbErr> {
    let sql = "SELECT count(*) AS n FROM reprocess_pending WHERE collection_id = $1 AND pipeline = $2
        AND problem IS NULL";
    count(conn, sql, [run.collection_id.into(), pipeline.into()]).await
}

/// Images that lack what a pipeline makes of them, and were given up.
pub(super) async fn given_up(conn: &impl ConnectionTrait, run: &Run, pipeline: &str) -> Result<i64, DbErr> {
    let sql = "SELECT count(*) AS n FROM reprocess_pending WHERE collection_id = $1 AND pipeline = $2
        AND problem IS NOT NULL";
    count(conn, sql, [run.collection_id.into(), pipeline.into()]).await
}

/// Notes that a run has nothing left to do, where that is so, and says so to the webhook endpoints that want to know.
pub async fn complete(db: &Db, run: &Run) -> Result<bool, DbErr> {
    let txn = db.begin().await?;
    let sql = "UPDATE reprocess_runs SET state = 'ready', pace = NULL, version = version + 1,
            completed_at = COALESCE(completed_at, {now})
        WHERE id = $1 AND state = 'filling' AND listed_at IS NOT NULL AND NOT EXISTS
            (SELECT 1 FROM reprocess_pending p WHERE p.collection_id = reprocess_runs.collection_id
             AND p.pipeline = reprocess_runs.pipeline AND p.problem IS NULL)
        RETURNING *";
    let done = Run::find_by_statement(statement(&txn, sql, [run.id.into()])).one(&txn).await?;
    if let Some(done) = &done {
        events::reprocess_completed(&txn, done).await?;
        comparison::want_within(&txn, done.id).await?;
    }
    txn.commit().await?;
    Ok(done.is_some())
}

/// Measures how many images a run does in a second.
pub async fn measure_pace(db: &Db, run: &Run) -> Result<(), DbErr> {
    if now(&db.read).await? - run.paced_at < micros(PACE_OVER) {
        return Ok(());
    }
    let left = left(&db.read, run, &run.pipeline).await?;
    // What is listed meanwhile would look like a step back.
    let sql = "UPDATE reprocess_runs SET paced_at = {now}, paced_images = $2,
            pace = CASE WHEN paced_images > $2 AND NOT paused AND listed_at <= paced_at THEN
                CASE WHEN pace IS NULL THEN 1.0 ELSE 0.3 END
                    * CAST(paced_images - $2 AS double precision) * 1000000.0 / ({now} - paced_at)
                + 0.7 * COALESCE(pace, 0.0) END
         WHERE id = $1 AND state = 'filling' AND paced_at < {now}";
    execute(&db.write, sql, [run.id.into(), left.into()]).await?;
    Ok(())
}
