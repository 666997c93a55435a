//! The worker's tasks, and their common end.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::WorkerContext;
use crate::stop::Stop;
use crate::{
    batches, clusters, comparisons, consumer, dead_letters, dispatcher, erasures, lister, models, reaper, rematches,
    reprocess, sweeper, webhooks,
};

/// Runs all of the worker until `stop`; returns after the jobs that run have ended or were given back.
///
/// # Errors
/// A task ended or panicked by itself; the others were stopped.
pub async fn run(ctx: WorkerContext, stop: CancellationToken) -> anyhow::Result<()> {
    let mut tasks: JoinSet<anyhow::Result<&'static str>> = JoinSet::new();
    // The watchers outlive the consumer: a job that finishes in the grace period still needs them.
    let watching = CancellationToken::new();
    let (consumer_ctx, consumer_stop) = (ctx.clone(), Stop::new(stop.clone()));
    let grace = Duration::from_secs_f64(ctx.config.worker.grace_s);
    tasks.spawn(async move {
        let counting = consumer_stop.clone().count(grace);
        let consuming = consumer::run(consumer_ctx, consumer_stop);
        tokio::pin!(consuming);
        tokio::select! {
            consumed = &mut consuming => consumed?,
            () = counting => consuming.await?,
        }
        Ok("consumer")
    });
    spawn(&mut tasks, "dispatcher", dispatcher::run(ctx.clone(), stop.clone()));
    spawn(&mut tasks, "lister", lister::run(ctx.clone(), stop.clone()));
    spawn(&mut tasks, "models", models::run(ctx.clone(), stop.clone()));
    spawn(&mut tasks, "batches", batches::run(ctx.clone(), watching.clone()));
    spawn(&mut tasks, "clusters", clusters::run(ctx.clone(), watching.clone()));
    spawn(&mut tasks, "rematches", rematches::run(ctx.clone(), stop.clone()));
    spawn(&mut tasks, "dead letter consumer", dead_letters::run(ctx.clone(), stop.clone()));
    spawn(&mut tasks, "reaper", reaper::run(ctx.clone(), watching.clone()));
    spawn(&mut tasks, "erasures", erasures::run(ctx.clone(), stop.clone()));
    spawn(&mut tasks, "reprocess", reprocess::run(ctx.clone(), stop.clone()));
    spawn(&mut tasks, "comparisons", comparisons::run(ctx.clone(), stop.clone()));
    spawn(&mut tasks, "webhooks", webhooks::run(ctx.clone(), stop.clone()));
    spawn(&mut tasks, "sweeper", sweeper::run(ctx, watching.clone()));
    let mut result = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let failure = match ended {
            Ok(Ok("consumer")) => {
                watching.cancel();
                (!stop.is_cancelled()).then(|| anyhow::anyhow!("the worker's consumer ended by itself"))
            }
            Ok(Ok(task)) => (!stop.is_cancelled()).then(|| anyhow::anyhow!("the worker's {task} ended by itself")),
            Ok(Err(error)) => Some(error.context("the worker's consumer failed")),
            Err(error) => Some(anyhow::Error::new(error).context("a task of the worker panicked")),
        };
        if let Some(failure) = failure {
            stop.cancel();
            watching.cancel();
            result = result.and(Err(failure));
        }
    }
    result
}

fn spawn(
    tasks: &mut JoinSet<anyhow::Result<&'static str>>,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) {
    tasks.spawn(async move {
        task.await;
        Ok(name)
    });
}
