//! From the jobs table into the queue: publish first, then mark, with no row locked meanwhile.

use sea_orm::DbErr;

use crate::db::Db;
use crate::db::jobs::outbox::{DueJob, mark_dispatched};
use crate::queue::{JobQueue, Message, QueueError};

/// Publishes each job as a message and marks those that the queue took; returns how many. A full queue ends the round:
/// the rest stays due. The API calls it right after its commit, the dispatcher for everything else.
///
/// A job may be published twice when two callers see it at once; the second message finds nothing to claim.
pub async fn dispatch(db: &Db, queue: &dyn JobQueue, jobs: &[DueJob]) -> Result<usize, DbErr> {
    let mut taken = 0;
    for job in jobs {
        let message = Message { lane: job.lane, pipeline: job.pipeline.clone(), jobs: vec![job.id], alone: job.alone, traceparent: None };
        match queue.publish(message).await {
            Ok(()) => taken += 1,
            Err(QueueError::Full(lane)) => {
                tracing::debug!(?lane, "the queue is full, the rest waits in the jobs table");
                break;
            }
            Err(QueueError::Closed) => break,
            Err(QueueError::Unavailable(why)) => {
                tracing::warn!(why, "the queue is unavailable, the rest waits in the jobs table");
                break;
            }
        }
    }
    if taken > 0 {
        mark_dispatched(db, &jobs[..taken]).await?;
    }
    Ok(taken)
}
