//! From the jobs table into the queue: publish first, then mark, with no row locked meanwhile.

use futures_util::{StreamExt as _, stream};
use sea_orm::DbErr;

use crate::db::Db;
use crate::db::jobs::outbox::{DueJob, mark_dispatched};
use crate::queue::{JobQueue, Message, QueueError};

/// Messages whose confirmation is awaited at once.
const IN_FLIGHT: usize = 64;

/// Publishes each job as a message and marks those that the queue took; returns how many. What it did not take stays due.
/// The API calls it right after its commit, the dispatcher for everything else.
///
/// A job may be published twice when two callers see it at once; the second message finds nothing to claim.
pub async fn dispatch(db: &Db, queue: &dyn JobQueue, jobs: &[DueJob]) -> Result<usize, DbErr> {
    let publish = |job: DueJob| async move {
        let published = queue.publish(message(&job)).await;
        (job, published)
    };
    let published: Vec<_> = stream::iter(jobs.iter().cloned().map(publish)).buffered(IN_FLIGHT).collect().await;
    let mut taken = Vec::with_capacity(jobs.len());
    for (job, result) in published {
        match result {
            Ok(()) => taken.push(job),
            Err(QueueError::Full(lane)) => tracing::debug!(?lane, "the queue is full, the job waits in the jobs table"),
            Err(QueueError::Closed) => {}
            Err(QueueError::Unavailable(why)) => {
                tracing::warn!(job.id = %job.id, why, "the queue is unavailable, the job waits in the jobs table");
            }
        }
    }
    mark_dispatched(db, &taken).await?;
    Ok(taken.len())
}

fn message(job: &DueJob) -> Message {
    Message {
        lane: job.lane,
        pipeline: job.pipeline.clone(),
        jobs: vec![job.id],
        alone: job.alone,
        traceparent: job.traceparent.clone(),
    }
}
