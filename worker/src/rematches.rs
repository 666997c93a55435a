//! Makes the jobs that match faces again, where a change of templates has asked for it.

use std::time::Duration;

use shared::db::rematches::begin_wanted;
use tokio_util::sync::CancellationToken;

use crate::context::WorkerContext;
use crate::leadership::Leadership;

/// Looks for what was asked for until `stop`.
pub(crate) async fn run(ctx: WorkerContext, stop: CancellationToken) {
    let poll = Duration::from_secs_f64(ctx.config.worker.poll_s);
    let mut leadership = Leadership::new(ctx.db.clone(), "rematches");
    loop {
        if leadership.held().await {
            match begin_wanted(&ctx.db).await {
                Ok(0) => {}
                Ok(jobs) => tracing::debug!(jobs, "faces will be matched again"),
                Err(error) => tracing::warn!(%error, "make the jobs that match faces again"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(poll) => {}
        }
    }
    leadership.resign().await;
}
