//! Batches on both databases: what is listed becomes jobs once, the counts are right at every moment, and what clients want
//! happens to every job.

use std::collections::BTreeMap;
use std::time::Duration;

use super::control::{self, Wish, change};
use super::deltas::{Folded, fold};
use super::listing::{self, Listed};
use super::read::{self, BatchWithCounts, ItemFilter};
use super::submit::{NewBatch, Submitted, submit};
use crate::access::Grant;
use crate::batch::{BatchSource, Checkpoint};
use crate::db::entity::batch::{BatchState, OnGone};
use crate::db::faces::Origin;
use crate::db::idempotency::Idempotency;
use crate::db::images::{self, ImageSource};
use crate::db::jobs::claims::{Claim, Wanted, claim};
use crate::db::jobs::settle::{Outcome, finish};
use crate::db::jobs::{outbox, retention};
use crate::db::{Db, collections, execute};
use crate::ids::{BatchId, ClaimId, CollectionId, JobId};
use crate::job::{ImageRef, JobKind, JobState, Lane, Problem};

const LEASE: Duration = Duration::from_secs(3600);
pub(super) const REVISION: &str = "detector-1";

pub(super) async fn on_both(test: impl AsyncFn(&Db, CollectionId)) {
    let folder = tempfile::tempdir().unwrap();
    for db in crate::testing::databases(folder.path()).await {
        let name = CollectionId::new().to_string().replace('-', "_");
        let settings = collections::CollectionSettings::default();
        let collection = collections::create(&db, &name, "tiny", &settings).await.unwrap().unwrap().id;
        test(&db, collection).await;
    }
}

async fn new_batch(db: &Db, collection: CollectionId) -> BatchId {
    new_batch_that(db, collection, OnGone::Keep).await
}

pub(super) async fn new_batch_that(db: &Db, collection: CollectionId, on_gone: OnGone) -> BatchId {
    let new = NewBatch {
        collection,
        kind: JobKind::Index,
        pipeline: "tiny".to_owned(),
        source: BatchSource::Folder("/photos".to_owned()),
        on_gone,
        tag: Some("tag".to_owned()),
        webhook_endpoints: None,
        traceparent: None,
        idempotency: None,
    };
    match submit(db, &Grant::everything(), new).await.unwrap() {
        Submitted::New(id) => id,
        other => panic!("a batch without a key is new, got {other:?}"),
    }
}

fn file(name: &str, fingerprint: &str) -> ImageRef {
    ImageRef::File { file: format!("/photos/{name}"), fingerprint: Some(fingerprint.to_owned()) }
}

fn page(names: &[&str], is_last: bool) -> Listed {
    let after = names.last().map(|name| format!("/photos/{name}"));
    let checkpoint = Checkpoint { after, ..Checkpoint::default() };
    Listed { items: names.iter().map(|name| file(name, "f")).collect(), checkpoint, is_last, coverage: None }
}

pub(super) async fn found(db: &Db, id: BatchId) -> BatchWithCounts {
    read::find(db, &Grant::everything(), id).await.unwrap().unwrap()
}

async fn list(db: &Db, id: BatchId, listed: &Listed) -> bool {
    let batch = found(db, id).await.batch;
    listing::add(db, &batch, REVISION, 0, listed).await.unwrap()
}

pub(super) async fn jobs_of(db: &Db, id: BatchId) -> Vec<JobId> {
    read::jobs(db, &Grant::everything(), id, ItemFilter::default(), 100)
        .await
        .unwrap()
        .into_iter()
        .map(|j| j.job.id)
        .collect()
}

pub(super) async fn begin(db: &Db, jobs: &[JobId]) -> Option<Claim> {
    claim(db, Wanted { id: ClaimId::new(), jobs, alone: 0, owner: "test" }, LEASE).await.unwrap()
}

pub(super) async fn end(db: &Db, claim: ClaimId, job: JobId, outcome: &Outcome) {
    let txn = db.begin().await.unwrap();
    assert!(finish(&txn, claim, job, outcome).await.unwrap());
    txn.commit().await.unwrap();
}

/// queued, running, succeeded, rejected, failed, cancelled
async fn counts(db: &Db, id: BatchId) -> [i64; 6] {
    let b = found(db, id).await.batch;
    [b.queued, b.running, b.succeeded, b.rejected, b.failed, b.cancelled]
}

fn problem(code: &str) -> Problem {
    Problem::new(code, "a test")
}

#[tokio::test]
async fn every_page_is_listed_once() {
    on_both(async |db, collection| {
        let id = new_batch(db, collection).await;
        let fresh = found(db, id).await.batch;
        let first = page(&["a.jpg", "b.jpg"], false);
        assert!(listing::add(db, &fresh, REVISION, 0, &first).await.unwrap());
        assert!(!listing::add(db, &fresh, REVISION, 0, &first).await.unwrap(), "another lister was first");
        assert!(change(db, &Grant::everything(), id, Wish::Pause).await.unwrap());
        assert!(!list(db, id, &page(&["c.jpg"], true)).await, "nothing is listed while it is held");
        assert!(listing::due(db, None, 10).await.unwrap().iter().all(|b| b.id != id));
        assert!(change(db, &Grant::everything(), id, Wish::Resume).await.unwrap());
        assert!(list(db, id, &page(&["c.jpg"], true)).await);
        let batch = found(db, id).await.batch;
        assert_eq!((batch.items, batch.unchanged, batch.queued, batch.listed_at.is_some()), (3, 0, 3, true));
        assert_eq!(batch.checkpoint().unwrap().after.as_deref(), Some("/photos/c.jpg"));
        let queued = ItemFilter { state: Some(JobState::Queued), after: Some(0) };
        let jobs = read::jobs(db, &Grant::everything(), id, queued, 10).await.unwrap();
        let items: Vec<_> = jobs.iter().map(|j| (j.job.item_no, j.job.tag.as_deref(), j.job.lane)).collect();
        assert_eq!(items, [(Some(1), Some("tag"), Lane::Bulk), (Some(2), Some("tag"), Lane::Bulk)]);
    })
    .await;
}

#[tokio::test]
async fn what_the_collection_knows_is_not_looked_at_again() {
    on_both(async |db, collection| {
        let source = ImageSource {
            sha256: "0".repeat(64),
            object_key: None,
            uri: Some("file:///photos/a.jpg".to_owned()),
            fingerprint: Some("f".to_owned()),
            captured_at: None,
        };
        let txn = db.begin().await.unwrap();
        let image = images::find_or_create(&txn, collection, &source, [10, 10]).await.unwrap();
        let known = (source.uri.as_deref(), source.fingerprint.as_deref(), Some(image.id));
        let no_picture = (Some("file:///photos/broken.jpg"), Some("f"), None);
        images::remember_sources(&txn, collection, [known, no_picture]).await.unwrap();
        let origin = Origin { collection, image: image.id, detector_revision: REVISION, pipeline: "tiny" };
        images::record_analyses(&txn, origin.detector_revision, &[(origin.image, 0)]).await.unwrap();
        txn.commit().await.unwrap();

        let id = new_batch(db, collection).await;
        let mut listed = page(&["a.jpg", "b.jpg", "broken.jpg"], true);
        listed.items.push(file("a.jpg", "changed since"));
        assert!(list(db, id, &listed).await);
        let batch = found(db, id).await.batch;
        assert_eq!((batch.items, batch.unchanged, batch.queued), (4, 2, 2));
        let other = new_batch(db, collection).await;
        let batch = found(db, other).await.batch;
        assert!(listing::add(db, &batch, "detector-2", 0, &page(&["a.jpg"], true)).await.unwrap());
        assert_eq!(found(db, other).await.batch.unchanged, 0, "a new detector looks at all");
    })
    .await;
}

#[tokio::test]
async fn counts_are_right_before_and_after_they_are_folded() {
    on_both(async |db, collection| {
        let id = new_batch(db, collection).await;
        list(db, id, &page(&["a.jpg", "b.jpg", "c.jpg", "d.jpg"], true)).await;
        let jobs = jobs_of(db, id).await;
        let claimed = begin(db, &jobs[..3]).await.unwrap();
        assert_eq!(counts(db, id).await, [1, 3, 0, 0, 0, 0]);
        end(db, claimed.id, jobs[0], &Outcome::Succeeded(serde_json::json!({}))).await;
        end(db, claimed.id, jobs[1], &Outcome::Rejected(problem("image_truncated"))).await;
        assert_ne!(fold(db).await.unwrap(), Folded::Nothing);
        end(db, claimed.id, jobs[2], &Outcome::Failed(problem("attempts_exhausted"))).await;
        let state = (counts(db, id).await, found(db, id).await.problems);
        let wanted = BTreeMap::from([
            ((JobState::Rejected, "image_truncated".to_owned()), 1),
            ((JobState::Failed, "attempts_exhausted".to_owned()), 1),
        ]);
        assert_eq!(state, ([1, 0, 1, 1, 1, 0], wanted));
        while fold(db).await.unwrap() != Folded::Nothing {}
        assert_eq!((counts(db, id).await, found(db, id).await.problems), state, "folding changes no count");
        assert_eq!(control::finish(db).await.unwrap(), [], "one job waits");
    })
    .await;
}

#[tokio::test]
async fn a_batch_ends_once_a_round() {
    on_both(async |db, collection| {
        let id = new_batch(db, collection).await;
        list(db, id, &page(&["a.jpg", "b.jpg"], true)).await;
        let jobs = jobs_of(db, id).await;
        let claimed = begin(db, &jobs).await.unwrap();
        end(db, claimed.id, jobs[0], &Outcome::Succeeded(serde_json::json!({}))).await;
        end(db, claimed.id, jobs[1], &Outcome::Failed(problem("source_refused"))).await;
        assert_eq!(control::finish(db).await.unwrap(), [], "not before the account is complete");
        while fold(db).await.unwrap() != Folded::Nothing {}
        assert_eq!(control::finish(db).await.unwrap(), [id]);
        assert_eq!(control::finish(db).await.unwrap(), []);
        assert_eq!(found(db, id).await.batch.state, BatchState::Completed);

        assert!(change(db, &Grant::everything(), id, Wish::Retry).await.unwrap());
        assert_eq!(control::being_retried(db).await.unwrap(), [id]);
        assert_eq!(control::finish(db).await.unwrap(), [], "its failed jobs are still to be put back");
        while control::reopen_slice(db, id).await.unwrap() {}
        assert_eq!(counts(db, id).await, [1, 0, 1, 0, 0, 0]);
        assert!(found(db, id).await.problems.is_empty());
        let claimed = begin(db, &jobs).await.unwrap();
        assert_eq!(claimed.jobs.iter().map(|j| (j.job.id, j.job.attempt)).collect::<Vec<_>>(), [(jobs[1], 1)]);
        end(db, claimed.id, jobs[1], &Outcome::Succeeded(serde_json::json!({}))).await;
        while fold(db).await.unwrap() != Folded::Nothing {}
        assert_eq!(control::finish(db).await.unwrap(), [id], "once more in the second round");
        assert_eq!((counts(db, id).await, found(db, id).await.batch.round), ([0, 0, 2, 0, 0, 0], 2));
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_batch_leaves_nothing_open() {
    on_both(async |db, collection| {
        let id = new_batch(db, collection).await;
        list(db, id, &page(&["a.jpg", "b.jpg", "c.jpg"], false)).await;
        let jobs = jobs_of(db, id).await;
        let claimed = begin(db, &jobs[..1]).await.unwrap();
        assert!(change(db, &Grant::everything(), id, Wish::Cancel).await.unwrap());
        assert!(
            !change(db, &Grant::everything(), id, Wish::Resume).await.unwrap()
                && !change(db, &Grant::everything(), id, Wish::Retry).await.unwrap()
        );
        assert!(!list(db, id, &page(&["d.jpg"], true)).await, "nothing is listed any more");
        assert_eq!(control::being_cancelled(db).await.unwrap(), [id]);
        let slice = control::cancel_slice(db, id, -1).await.unwrap();
        assert_eq!((slice.ended, slice.last_item), (jobs[1..].to_vec(), Some(2)));
        assert_eq!(control::cancel_slice(db, id, 2).await.unwrap().last_item, None);
        assert!(begin(db, &jobs).await.is_none());
        end(db, claimed.id, jobs[0], &Outcome::Cancelled).await;
        while fold(db).await.unwrap() != Folded::Nothing {}
        assert_eq!(control::finish(db).await.unwrap(), [id]);
        let batch = found(db, id).await.batch;
        assert_eq!((batch.state, batch.cancelled, batch.finished_at.is_some()), (BatchState::Cancelled, 3, true));
    })
    .await;
}

#[tokio::test]
async fn a_message_that_meets_a_pause_is_not_counted_on() {
    on_both(async |db, collection| {
        let id = new_batch(db, collection).await;
        list(db, id, &page(&["a.jpg"], true)).await;
        let jobs = jobs_of(db, id).await;
        let due = || async { outbox::due(db, Lane::Bulk, "tiny", id.0, 10).await.unwrap() };
        let published = due().await;
        assert!(change(db, &Grant::everything(), id, Wish::Pause).await.unwrap());
        assert!(begin(db, &jobs).await.is_none(), "its batch is held");
        // The dispatcher marks what it published only now that the message is used up.
        outbox::mark_dispatched(db, &published).await.unwrap();
        assert!(change(db, &Grant::everything(), id, Wish::Resume).await.unwrap());
        assert_eq!(due().await.iter().map(|job| job.id).collect::<Vec<_>>(), jobs, "it is sent again");
    })
    .await;
}

#[tokio::test]
async fn a_listing_that_is_given_up_can_be_tried_again() {
    on_both(async |db, collection| {
        let id = new_batch(db, collection).await;
        list(db, id, &page(&["a.jpg"], false)).await;
        listing::put_off(db, id, Duration::from_secs(60), &problem("attempt_failed")).await.unwrap();
        let batch = found(db, id).await.batch;
        assert_eq!((batch.listing_tries, batch.listed_at), (1, None));
        assert!(listing::due(db, None, 10).await.unwrap().iter().all(|b| b.id != id), "not before its time");
        listing::give_up(db, id, &problem("source_gone")).await.unwrap();
        let jobs = jobs_of(db, id).await;
        let claimed = begin(db, &jobs).await.unwrap();
        end(db, claimed.id, jobs[0], &Outcome::Succeeded(serde_json::json!({}))).await;
        while fold(db).await.unwrap() != Folded::Nothing {}
        assert_eq!(control::finish(db).await.unwrap(), [id]);
        assert_eq!(found(db, id).await.batch.state, BatchState::Failed);
        assert!(change(db, &Grant::everything(), id, Wish::Retry).await.unwrap());
        while control::reopen_slice(db, id).await.unwrap() {}
        assert!(list(db, id, &page(&["b.jpg"], true)).await, "it goes on where it broke off");
        assert_eq!(counts(db, id).await, [1, 0, 1, 0, 0, 0]);
    })
    .await;
}

#[tokio::test]
async fn a_repeated_key_gives_the_same_batch() {
    on_both(async |db, collection| {
        let request = |fingerprint: &str| NewBatch {
            collection,
            kind: JobKind::Index,
            pipeline: "tiny".to_owned(),
            source: BatchSource::Folder("/photos".to_owned()),
            on_gone: OnGone::Keep,
            tag: None,
            webhook_endpoints: None,
            traceparent: None,
            idempotency: Some(Idempotency {
                route: collection.to_string(),
                key: "k".to_owned(),
                fingerprint: fingerprint.to_owned(),
                keep: LEASE,
            }),
        };
        let Submitted::New(id) = submit(db, &Grant::everything(), request("a")).await.unwrap() else { panic!("the key is new") };
        assert!(matches!(submit(db, &Grant::everything(), request("a")).await.unwrap(), Submitted::Existing(same) if same == id));
        assert!(matches!(submit(db, &Grant::everything(), request("b")).await.unwrap(), Submitted::KeyReused));
    })
    .await;
}

#[tokio::test]
async fn a_cancel_ends_a_retry() {
    on_both(async |db, collection| {
        let id = new_batch(db, collection).await;
        list(db, id, &page(&["a.jpg", "b.jpg"], true)).await;
        let jobs = jobs_of(db, id).await;
        let claimed = begin(db, &jobs).await.unwrap();
        for job in &jobs {
            end(db, claimed.id, *job, &Outcome::Failed(problem("source_refused"))).await;
        }
        assert!(
            change(db, &Grant::everything(), id, Wish::Retry).await.unwrap()
                && change(db, &Grant::everything(), id, Wish::Cancel).await.unwrap()
        );
        assert!(control::being_retried(db).await.unwrap().is_empty());
        assert!(!control::reopen_slice(db, id).await.unwrap(), "nothing is put back any more");
        while fold(db).await.unwrap() != Folded::Nothing {}
        assert_eq!(control::finish(db).await.unwrap(), [id]);
        assert_eq!(counts(db, id).await, [0, 0, 0, 0, 2, 0]);
    })
    .await;
}

#[tokio::test]
async fn what_ended_long_ago_is_deleted() {
    let keep = Duration::from_secs(24 * 3600);
    on_both(async |db, collection| {
        let id = new_batch(db, collection).await;
        assert!(list(db, id, &page(&["a", "b"], true)).await);
        let jobs = jobs_of(db, id).await;
        let claimed = begin(db, &jobs[..1]).await.unwrap();
        end(db, claimed.id, jobs[0], &Outcome::Succeeded(serde_json::json!({}))).await;
        let age = "UPDATE jobs SET created_at = created_at - 90000000000, finished_at = finished_at - 90000000000";
        execute(&db.write, age, []).await.unwrap();
        let looked = retention::delete_ended(db, None, keep).await.unwrap();
        assert_eq!(looked.deleted, 0, "the batch goes on");

        let claimed = begin(db, &jobs[1..]).await.unwrap();
        end(db, claimed.id, jobs[1], &Outcome::Failed(problem("source_failed"))).await;
        while fold(db).await.unwrap() != Folded::Nothing {}
        assert_eq!(control::finish(db).await.unwrap(), [id]);
        let age = "UPDATE batches SET finished_at = finished_at - 90000000000";
        execute(&db.write, age, []).await.unwrap();
        assert_eq!(retention::delete_ended(db, None, keep).await.unwrap().deleted, 1, "the second ended just now");
        assert_eq!(jobs_of(db, id).await, jobs[1..]);
        assert_eq!(retention::delete_ended_batches(db, keep, 10).await.unwrap(), 0, "it has a job");

        let age = "UPDATE jobs SET finished_at = finished_at - 90000000000";
        execute(&db.write, age, []).await.unwrap();
        assert_eq!(retention::delete_ended(db, Some(jobs[1]), keep).await.unwrap(), retention::Slice::default());
        assert_eq!(retention::delete_ended(db, None, keep).await.unwrap().deleted, 1);
        assert_eq!(retention::delete_ended_batches(db, keep, 10).await.unwrap(), 1);
        assert!(read::find(db, &Grant::everything(), id).await.unwrap().is_none());
    })
    .await;
}
