//! Deletes what nothing refers to any more: expired uploads and keys, orphaned objects, unfinished writes.

use std::time::{Duration, SystemTime};

use shared::db::jobs::submit::forget_expired_keys;
use shared::db::uploads;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::WorkerContext;
use crate::leadership::Leadership;

/// Rows of one kind that one round deletes.
const LIMIT: u64 = 1000;
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
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(Duration::from_secs_f64(ctx.config.worker.sweep_s)) => {}
        }
        if !leadership.held().await {
            continue;
        }
        if let Err(error) = sweep(&ctx).await {
            tracing::warn!(error = format!("{error:#}"), "sweep");
        }
        if compared.elapsed() > COMPARE_EVERY {
            compared = Instant::now();
            if let Err(error) = delete_abandoned(&ctx).await {
                tracing::warn!(error = format!("{error:#}"), "delete abandoned objects");
            }
        }
    }
    leadership.resign().await;
}

async fn sweep(ctx: &WorkerContext) -> anyhow::Result<()> {
    let dropped = uploads::drop_expired(&ctx.db, LIMIT).await?;
    forget_expired_keys(&ctx.db, LIMIT).await?;
    let orphans = uploads::orphaned_objects(&ctx.db, LIMIT).await?;
    for key in &orphans {
        ctx.objects.delete(key).await?;
        uploads::forget_orphan(&ctx.db, key).await?;
    }
    if dropped > 0 || !orphans.is_empty() {
        tracing::debug!(uploads = dropped, objects = orphans.len(), "swept");
    }
    ctx.objects.clean(ABANDONED_AFTER).await?;
    ctx.face_index.maintain().await?;
    Ok(())
}

/// Deletes objects that no row has referred to for a day.
async fn delete_abandoned(ctx: &WorkerContext) -> anyhow::Result<()> {
    let mut after: Option<String> = None;
    loop {
        let page = ctx.objects.list("collections/", after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.key.clone());
        for object in page {
            let age = SystemTime::now().duration_since(object.modified).unwrap_or_default();
            if age > ABANDONED_AFTER && !uploads::is_referenced(&ctx.db, &object.key).await? {
                ctx.objects.delete(&object.key).await?;
            }
        }
    }
}
