//! From the jobs table into the queue: publish first, then mark, with no row locked meanwhile.

use futures_util::{StreamExt as _, stream};
use sea_orm::DbErr;

use crate::db::Db;
use crate::db::jobs::outbox::{DueJob, mark_dispatched};
use crate::job::Lane;
use crate::queue::{JobQueue, Message, QueueError};

/// Messages whose confirmation is awaited at once.
const IN_FLIGHT: usize = 64;

/// Bulk jobs of one message at most: enough that a message costs nothing beside its jobs, few enough that a worker that
/// dies gives little back.
pub const CHUNK: usize = 64;

/// Publishes the jobs and marks those that the queue took; returns how many. What it did not take stays due.
/// The API calls it right after its commit, the dispatcher for everything else.
///
/// A job may be published twice when two callers see it at once; the second message finds nothing to claim.
pub async fn dispatch(db: &Db, queue: &dyn JobQueue, jobs: &[DueJob]) -> Result<usize, DbErr> {
    let publish = |jobs: Vec<DueJob>| async move {
        let published = queue.publish(message(&jobs)).await;
        (jobs, published)
    };
    let messages = chunks(jobs).into_iter().map(publish);
    let published: Vec<_> = stream::iter(messages).buffered(IN_FLIGHT).collect().await;
    let mut taken = Vec::with_capacity(jobs.len());
    for (jobs, result) in published {
        match result {
            Ok(()) => taken.extend(jobs),
            Err(QueueError::Full(lane)) => tracing::debug!(?lane, "the queue is full, jobs wait in the jobs table"),
            Err(QueueError::Closed) => {}
            Err(QueueError::Unavailable(why)) => {
                tracing::warn!(job.id = %jobs[0].id, jobs = jobs.len(), why, "the queue is unavailable, jobs wait in the jobs table");
            }
        }
    }
    mark_dispatched(db, &taken).await?;
    Ok(taken.len())
}

/// The jobs of each message: bulk jobs together that are alike and may run beside others, all else by itself.
fn chunks(jobs: &[DueJob]) -> Vec<Vec<DueJob>> {
    let mut chunks: Vec<Vec<DueJob>> = Vec::new();
    for job in jobs {
        match chunks.last_mut().filter(|chunk| chunk.len() < CHUNK && may_travel_together(&chunk[0], job)) {
            Some(chunk) => chunk.push(job.clone()),
            None => chunks.push(vec![job.clone()]),
        }
    }
    chunks
}

fn may_travel_together(a: &DueJob, b: &DueJob) -> bool {
    let alike = |j: &DueJob| (j.lane, j.source_id, j.collection_id, j.kind, j.alone);
    a.lane == Lane::Bulk && a.alone == 0 && alike(a) == alike(b) && a.pipeline == b.pipeline
}

fn message(jobs: &[DueJob]) -> Message {
    let first = &jobs[0];
    let same_trace = jobs.iter().all(|j| j.traceparent == first.traceparent);
    Message {
        lane: first.lane,
        pipeline: first.pipeline.clone(),
        needs_models: first.kind.needs_models(),
        jobs: jobs.iter().map(|j| j.id).collect(),
        alone: first.alone,
        traceparent: first.traceparent.clone().filter(|_| same_trace),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{CollectionId, JobId};
    use crate::job::JobKind;

    fn job(lane: Lane, source: CollectionId, alone: i32) -> DueJob {
        DueJob {
            id: JobId::new(),
            source_id: Some(source.0),
            collection_id: source,
            kind: JobKind::Index,
            lane,
            pipeline: "tiny".to_owned(),
            version: 0,
            alone,
            traceparent: None,
            epoch: None,
            overdue_us: 0,
        }
    }

    #[test]
    fn only_bulk_jobs_that_are_alike_share_a_message() {
        let (a, b) = (CollectionId::new(), CollectionId::new());
        let many = |n: usize, lane, source, alone| (0..n).map(move |_| job(lane, source, alone));
        let jobs: Vec<DueJob> = many(CHUNK + 1, Lane::Bulk, a, 0)
            .chain(many(2, Lane::Bulk, b, 0))
            .chain(many(2, Lane::Bulk, b, 1))
            .chain(many(2, Lane::Interactive, b, 0))
            .collect();
        let chunks = chunks(&jobs);
        assert_eq!(chunks.iter().map(Vec::len).collect::<Vec<_>>(), [CHUNK, 1, 2, 1, 1, 1, 1]);
        assert_eq!(
            chunks.into_iter().flatten().map(|j| j.id).collect::<Vec<_>>(),
            jobs.iter().map(|j| j.id).collect::<Vec<_>>()
        );
    }
}
