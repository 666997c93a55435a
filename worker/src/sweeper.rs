//! Deletes what nothing refers to any more: expired uploads and keys, jobs that ended long ago, orphaned objects, unfinished
//! writes.

use std::time::{Duration, SystemTime};

use sea_orm::DbErr;
use shared::db::jobs::retention;
use shared::db::webhooks::{endpoints, log};
use shared::db::{clusters, idempotency, uploads};
use shared::ids::JobId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::WorkerContext;
use crate::leadership::Leadership;

/// Rows of one kind that one round deletes.
const LIMIT: u64 = 1000;
/// Slices of old jobs that one round looks at: of a library of millions, a round deletes a hundred thousand.
const JOB_SLICES: usize = 100;
/// Changes of clusters that one round forgets: each may have thousands of faces.
const CHANGES: u64 = 100;
/// Slices of old events that one round deletes.
const EVENT_SLICES: usize = 20;
/// Keys of one page of the object store.
const PAGE: usize = 1000;
/// How often the whole object store is compared with the database.
const COMPARE_EVERY: Duration = Duration::from_secs(3600);
/// An object without a row is a request's that is under way, or one that broke off; after this long, the latter.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Sweeps until `stop`.
pub async fn run(ctx: WorkerContext, stop: CancellationToken) {
    let mut leadership = Leadership::new(ctx.db.clone(), "sweeper");
    let mut compared = Instant::now();
    let mut last_job = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(Duration::from_secs_f64(ctx.config.worker.sweep_s)) => {}
        }
        if !leadership.held().await {
            continue;
        }
        sweep(&ctx, &stop).await;
        if let Err(error) = delete_ended_jobs(&ctx, &mut leadership, &mut last_job, &stop).await {
            tracing::warn!(%error, "delete jobs that ended long ago");
        }
        if compared.elapsed() > COMPARE_EVERY {
            compared = Instant::now();
            if let Err(error) = delete_abandoned(&ctx, &mut leadership, &stop).await {
                tracing::warn!(error = format!("{error:#}"), "delete abandoned objects");
            }
        }
    }
    leadership.resign().await;
}

/// One step's failure keeps no other from being done.
async fn sweep(ctx: &WorkerContext, stop: &CancellationToken) {
    let failed = |step, error: &anyhow::Error| tracing::warn!(step, error = format!("{error:#}"), "sweep");
    if let Err(error) = delete_orphans(ctx, "", stop).await {
        failed("uploads and orphaned objects", &error);
    }
    if let Err(error) = idempotency::forget_expired(&ctx.db, LIMIT).await {
        failed("idempotency keys", &error.into());
    }
    if let Err(error) = forget_changes(ctx).await {
        failed("changes of clusters", &error.into());
    }
    if let Err(error) = delete_events(ctx).await {
        failed("webhook events and secrets", &error.into());
    }
    if let Err(error) = ctx.objects.clean(ABANDONED_AFTER).await {
        failed("unfinished writes", &error.into());
    }
    if let Err(error) = ctx.face_index.maintain().await {
        failed("the face index", &error.into());
    }
}

async fn forget_changes(ctx: &WorkerContext) -> Result<(), DbErr> {
    let days = ctx.config.retention.cluster_change_days;
    if days > 0 {
        clusters::forget_changes(&ctx.db, Duration::from_secs(u64::from(days) * 24 * 3600), CHANGES).await?;
    }
    Ok(())
}

async fn delete_events(ctx: &WorkerContext) -> Result<(), DbErr> {
    endpoints::forget_secrets(&ctx.db).await?;
    let days = ctx.config.retention.webhook_days;
    let keep = Duration::from_secs(u64::from(days) * 24 * 3600);
    for _ in 0..EVENT_SLICES {
        if days == 0 || log::delete_old(&ctx.db, keep, LIMIT).await? < LIMIT {
            break;
        }
    }
    Ok(())
}

/// Goes on after `last`, the job that the round before came to.
async fn delete_ended_jobs(
    ctx: &WorkerContext,
    leadership: &mut Leadership,
    last: &mut Option<JobId>,
    stop: &CancellationToken,
) -> Result<(), DbErr> {
    let days = ctx.config.retention.job_days;
    if days == 0 {
        return Ok(());
    }
    let keep = Duration::from_secs(u64::from(days) * 24 * 3600);
    let mut deleted = 0;
    for _ in 0..JOB_SLICES {
        if stop.is_cancelled() || !leadership.held().await {
            break;
        }
        let slice = retention::delete_ended(&ctx.db, *last, keep).await?;
        deleted += slice.deleted;
        *last = slice.last;
        if last.is_none() {
            break;
        }
    }
    let batches = retention::delete_ended_batches(&ctx.db, keep, LIMIT).await?;
    if deleted > 0 || batches > 0 {
        tracing::debug!(jobs = deleted, batches, "deleted what ended long ago");
    }
    Ok(())
}

/// Deletes objects below a prefix that nothing refers to any more, as many as one round does; true where none is left.
///
/// # Errors
/// The database does not answer, or some of the objects could not be deleted.
pub(crate) async fn delete_orphans(
    ctx: &WorkerContext,
    prefix: &str,
    stop: &CancellationToken,
) -> anyhow::Result<bool> {
    let dropped = uploads::drop_expired(&ctx.db, LIMIT).await?;
    let orphans = uploads::orphaned_objects(&ctx.db, prefix, LIMIT).await?;
    let (mut deleted, mut failed) = (0, 0);
    for key in &orphans {
        if stop.is_cancelled() {
            return Ok(false);
        }
        match ctx.objects.delete(key).await {
            Ok(()) => {
                uploads::forget_orphan(&ctx.db, key).await?;
                deleted += 1;
            }
            Err(error) => {
                tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "delete an object");
                failed += 1;
            }
        }
    }
    if dropped > 0 || deleted > 0 {
        tracing::debug!(uploads = dropped, objects = deleted, "swept");
    }
    anyhow::ensure!(failed == 0, "{failed} objects could not be deleted");
    Ok((orphans.len() as u64) < LIMIT)
}

/// Deletes objects that no row has referred to for a day, as long as this worker leads and is not asked to stop.
async fn delete_abandoned(
    ctx: &WorkerContext,
    leadership: &mut Leadership,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut after: Option<String> = None;
    while leadership.held().await {
        let page = ctx.objects.list("collections/", after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.key.clone());
        for object in page {
            if stop.is_cancelled() {
                return Ok(());
            }
            let age = SystemTime::now().duration_since(object.modified).unwrap_or_default();
            if age > ABANDONED_AFTER && !uploads::is_referenced(&ctx.db, &object.key).await? {
                ctx.objects.delete(&object.key).await?;
            }
        }
    }
    Ok(())
}
