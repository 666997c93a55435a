//! Ends claims whose lease is over. Nobody else does.

use std::time::Duration;

use shared::db::jobs::recovery::reap;
use shared::telemetry::metrics;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::WorkerContext;
use crate::leadership::Leadership;
use crate::retry;

/// Claims ended in one round.
const LIMIT: u64 = 100;

/// Looks for lost claims until `stop`.
///
/// When the database was out of reach, or this process stood still, for a lease's length, no holder could renew its
/// claim either: one more lease is waited before anything is taken away.
pub async fn run(ctx: WorkerContext, stop: CancellationToken) {
    let lease = ctx.config.worker.lease();
    let mut leadership = Leadership::new(ctx.db.clone(), "reaper");
    let mut last_seen = Instant::now();
    let mut not_before = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(Duration::from_secs_f64(ctx.config.worker.reap_s)) => {}
        }
        let leads = leadership.held().await;
        if last_seen.elapsed() > lease {
            not_before = Instant::now() + lease;
        }
        let round = if leads && Instant::now() >= not_before { round(&ctx).await } else { ctx.db.ping().await };
        match round {
            Ok(()) => last_seen = Instant::now(),
            Err(error) => tracing::warn!(%error, "look for lost claims"),
        }
    }
    leadership.resign().await;
}

async fn round(ctx: &WorkerContext) -> Result<(), sea_orm::DbErr> {
    let recovered = reap(&ctx.db, retry::delay(&ctx.config.worker, 1), LIMIT).await?;
    if recovered.requeued.len() + recovered.ended.len() > 0 {
        let (requeued, ended) = (recovered.requeued.len(), recovered.ended.len());
        tracing::warn!(requeued, ended, "claims were lost");
        metrics::leases_expired(requeued, ended);
    }
    for job in recovered.ended {
        ctx.finished.announce(job);
    }
    Ok(())
}
