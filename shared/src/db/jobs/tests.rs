//! The state machine against a model: whatever the order of claims, heartbeats, lost leases, ends, cancels and doubled
//! deliveries, rows and model agree, and every job ends exactly once.

use std::time::Duration;

use proptest::prelude::*;
use sea_orm::{ConnectionTrait, EntityTrait};

use super::claims::{self, Heartbeat};
use super::outbox;
use super::recovery::{reap, recover_all};
use super::settle::{self, Cancel, Outcome};
use super::submit::{NewJob, Submitted, submit};
use crate::access::Grant;
use crate::db::entity::job;
use crate::db::idempotency::Idempotency;
use crate::db::{Db, collections, execute, statement, uploads};
use crate::ids::{ClaimId, CollectionId, JobId, UploadId};
use crate::job::{ImageRef, JobArgs, JobState, Problem, UploadedImage};

const JOBS: usize = 4;
const LEASE: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug)]
enum Step {
    /// A delivery of the jobs whose bit is set; a job may be delivered at any time and any number of times.
    Deliver(u8),
    /// The holder of the n-th claim renews it.
    Renew(usize),
    /// The n-th claim's lease passes unrenewed and the reaper comes.
    Expire(usize),
    /// The holder of the n-th claim ends a job, whether the claim still stands or not.
    End(usize, usize, JobState),
    Retry(usize, usize),
    /// The holder of the n-th claim has done a part of a job.
    GoOn(usize, usize),
    Release(usize),
    Cancel(usize),
    Dispatch,
    /// The process dies and another takes its data folder.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let terminal = prop_oneof![
        Just(JobState::Succeeded),
        Just(JobState::Rejected),
        Just(JobState::Failed),
        Just(JobState::Cancelled)
    ];
    prop_oneof![
        6 => (1u8..1 << JOBS).prop_map(Step::Deliver),
        2 => (0usize..6).prop_map(Step::Renew),
        3 => (0usize..6).prop_map(Step::Expire),
        3 => (0usize..6, 0..JOBS, terminal).prop_map(|(c, j, s)| Step::End(c, j, s)),
        3 => (0usize..6, 0..JOBS).prop_map(|(c, j)| Step::Retry(c, j)),
        2 => (0usize..6, 0..JOBS).prop_map(|(c, j)| Step::GoOn(c, j)),
        2 => (0usize..6).prop_map(Step::Release),
        2 => (0..JOBS).prop_map(Step::Cancel),
        2 => Just(Step::Dispatch),
        1 => Just(Step::Restart),
    ]
}

/// What a job's row should say.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Job {
    state: JobState,
    attempt: i32,
    alone: i32,
    claim: Option<ClaimId>,
    cancel_requested: bool,
    dispatched: bool,
}

impl Job {
    fn end(&mut self, state: JobState) {
        *self = Self { state, claim: None, dispatched: false, ..*self };
    }

    fn wait(&mut self) {
        *self = Self { state: JobState::Queued, claim: None, dispatched: false, ..*self };
    }

    /// What every way back to the queue does: a cancelled job ends instead.
    fn give_back(&mut self, change: impl FnOnce(&mut Self)) {
        if self.cancel_requested {
            self.end(JobState::Cancelled);
        } else {
            change(self);
            self.wait();
        }
    }

    fn lose(&mut self, counted: bool) {
        if !self.cancel_requested && self.alone == 2 {
            return self.end(JobState::Failed);
        }
        self.give_back(|job| {
            job.alone += 1;
            job.attempt -= i32::from(!counted);
        });
    }
}

struct World {
    db: Db,
    collection: CollectionId,
    ids: Vec<JobId>,
    jobs: Vec<Job>,
    claims: Vec<ClaimId>,
}

impl World {
    async fn new(db: Db) -> Self {
        let name = CollectionId::new().to_string().replace('-', "_");
        let settings = collections::CollectionSettings::default();
        let collection = collections::create(&db, &name, "tiny", &settings).await.unwrap().unwrap().id;
        let mut ids = Vec::new();
        for _ in 0..JOBS {
            ids.push(new_job(&db, collection).await);
        }
        let fresh = Job {
            state: JobState::Queued,
            attempt: 0,
            alone: 0,
            claim: None,
            cancel_requested: false,
            dispatched: false,
        };
        Self { db, collection, ids, jobs: vec![fresh; JOBS], claims: Vec::new() }
    }

    fn held_by(&mut self, claim: ClaimId) -> impl Iterator<Item = &mut Job> {
        self.jobs.iter_mut().filter(move |j| j.claim == Some(claim))
    }

    async fn take(&mut self, step: &Step) {
        match *step {
            Step::Deliver(bits) => self.deliver(bits).await,
            Step::Renew(n) => {
                let Some(claim) = self.claims.get(n).copied() else { return };
                let found = claims::heartbeat(&self.db, claim, LEASE).await.unwrap();
                let cancelled = self.cancelled_of(claim);
                let stands = self.held_by(claim).next().is_some();
                let wanted = if stands { Heartbeat::Held(cancelled) } else { Heartbeat::Lost };
                assert_eq!(found, wanted);
            }
            Step::Expire(n) => {
                let Some(claim) = self.claims.get(n).copied() else { return };
                let sql = "UPDATE claims SET lease_expires_at = 0 WHERE id = $1";
                execute(&self.db.write, sql, [claim.into()]).await.unwrap();
                reap(&self.db, Duration::ZERO, 10).await.unwrap();
                self.held_by(claim).for_each(|j| j.lose(true));
            }
            Step::End(n, job, state) => {
                let Some(claim) = self.claims.get(n).copied() else { return };
                let ended = end(&self.db, claim, self.ids[job], state).await;
                assert_eq!(ended, self.jobs[job].claim == Some(claim), "only the holder of the claim may end a job");
                if ended {
                    self.jobs[job].end(state);
                }
            }
            Step::Retry(n, job) => {
                let Some(claim) = self.claims.get(n).copied() else { return };
                let problem = Problem::new("attempt_failed", "a test");
                settle::retry(&self.db, claim, self.ids[job], Duration::ZERO, &problem).await.unwrap();
                if self.jobs[job].claim == Some(claim) {
                    self.jobs[job].give_back(|_| {});
                }
            }
            Step::GoOn(n, job) => {
                let Some(claim) = self.claims.get(n).copied() else { return };
                let txn = self.db.begin().await.unwrap();
                let held = settle::fence(&txn, claim, self.ids[job]).await.unwrap() == settle::Fence::Held;
                let args = JobArgs::Rematch { all: true, progress: None };
                let went_on = settle::go_on(&txn, claim, self.ids[job], &args).await.unwrap();
                txn.commit().await.unwrap();
                assert_eq!(went_on, held, "only the holder of the claim may go on");
                if held {
                    self.jobs[job].give_back(|j| j.attempt = 0);
                }
            }
            Step::Release(n) => {
                let Some(claim) = self.claims.get(n).copied() else { return };
                settle::release(&self.db, claim, &self.ids).await.unwrap();
                self.held_by(claim).for_each(|j| j.give_back(|j| j.attempt -= 1));
            }
            Step::Cancel(job) => self.cancel(job).await,
            Step::Dispatch => self.dispatch().await,
            Step::Restart => {
                recover_all(&self.db).await.unwrap();
                self.jobs.iter_mut().for_each(|j| j.dispatched = false);
                self.jobs.iter_mut().filter(|j| j.claim.is_some()).for_each(|j| j.lose(false));
            }
        }
    }

    async fn deliver(&mut self, bits: u8) {
        let delivered: Vec<usize> = (0..JOBS).filter(|j| bits & (1 << j) != 0).collect();
        let ids: Vec<JobId> = delivered.iter().map(|j| self.ids[*j]).collect();
        let alone = i32::from(bits % 3);
        let wanted = claims::Wanted { id: ClaimId::new(), jobs: &ids, alone, owner: "test" };
        let claimed = claims::claim(&self.db, wanted, LEASE).await.unwrap();
        let is_queued = |j: &usize| self.jobs[*j].state == JobState::Queued;
        let (free, left): (Vec<usize>, Vec<usize>) =
            delivered.into_iter().filter(is_queued).partition(|j| self.jobs[*j].alone <= alone);
        // A message that would let them run too little alone is used up: they are sent again.
        for job in left {
            self.jobs[job].dispatched = false;
        }
        let got: Vec<JobId> = claimed.iter().flat_map(|c| c.jobs.iter().map(|j| j.job.id)).collect();
        assert_eq!(got, free.iter().map(|j| self.ids[*j]).collect::<Vec<_>>(), "a claim takes what is queued");
        let Some(claimed) = claimed else { return };
        for job in free {
            let job = &mut self.jobs[job];
            *job = Job {
                state: JobState::Running,
                attempt: job.attempt + 1,
                claim: Some(claimed.id),
                dispatched: false,
                ..*job
            };
        }
        self.claims.push(claimed.id);
    }

    async fn cancel(&mut self, job: usize) {
        let done = settle::cancel(&self.db, &Grant::everything(), self.ids[job]).await.unwrap();
        let job = &mut self.jobs[job];
        let wanted = match job.state {
            JobState::Queued => {
                job.end(JobState::Cancelled);
                job.cancel_requested = true;
                Cancel::Done
            }
            JobState::Running => {
                job.cancel_requested = true;
                Cancel::Requested
            }
            _ => Cancel::AlreadyFinished,
        };
        assert_eq!(done, wanted);
    }

    async fn dispatch(&mut self) {
        let due = outbox::due(&self.db, crate::job::Lane::Bulk, "tiny", self.collection.0, 100_000).await.unwrap();
        let due: Vec<_> = due.into_iter().filter(|d| self.ids.contains(&d.id)).collect();
        outbox::mark_dispatched(&self.db, &due).await.unwrap();
        let waiting = self.jobs.iter().filter(|j| j.state == JobState::Queued && !j.dispatched).count();
        assert_eq!(due.len(), waiting, "what is queued and not dispatched is due");
        self.jobs.iter_mut().filter(|j| j.state == JobState::Queued).for_each(|j| j.dispatched = true);
    }

    fn cancelled_of(&self, claim: ClaimId) -> Vec<JobId> {
        let wanted = |j: &&Job| j.claim == Some(claim) && j.cancel_requested;
        self.jobs.iter().zip(&self.ids).filter(|(j, _)| wanted(j)).map(|(_, id)| *id).collect()
    }

    /// The rows say what the model says, and no claim is left without a job.
    async fn check(&self, step: &Step) {
        for (id, wanted) in self.ids.iter().zip(&self.jobs) {
            let row = job::Entity::find_by_id(*id).one(&self.db.read).await.unwrap().unwrap();
            let found = Job {
                state: row.state,
                attempt: row.attempt,
                alone: row.alone,
                claim: row.claim_id,
                cancel_requested: row.cancel_requested,
                dispatched: row.dispatched_at.is_some(),
            };
            assert_eq!(&found, wanted, "after {step:?}");
            assert_eq!(row.finished_at.is_some(), row.state.is_terminal());
        }
        let idle = "SELECT count(*) AS n FROM claims WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE claim_id = claims.id)";
        assert_eq!(crate::db::count(&self.db.read, idle, []).await.unwrap(), 0, "after {step:?}");
    }
}

/// An index job of a picture of its own.
fn request(collection: CollectionId, idempotency: Option<Idempotency>) -> NewJob {
    let id = UploadId::new();
    let image = UploadedImage { upload_id: id, object_key: format!("k/{id}"), sha256: String::new() };
    let upload = uploads::NewUpload {
        id,
        collection,
        object_key: image.object_key.clone(),
        sha256: String::new(),
        size_bytes: 1,
        content_type: "image/png".to_owned(),
        inline: idempotency.is_some(),
        keep: LEASE,
    };
    NewJob {
        collection,
        args: JobArgs::Index { image: ImageRef::Upload(image) },
        tag: None,
        traceparent: None,
        idempotency,
        inline_uploads: vec![upload],
        webhook_endpoints: None,
    }
}

async fn new_job(db: &Db, collection: CollectionId) -> JobId {
    match submit(db, &Grant::everything(), request(collection, None)).await.unwrap() {
        Submitted::New(job) => job.id,
        other => panic!("a job without a key is new, got {other:?}"),
    }
}

async fn end(db: &Db, claim: ClaimId, job: JobId, state: JobState) -> bool {
    let problem = Problem::new("test", "a test");
    let outcome = match state {
        JobState::Succeeded => Outcome::Succeeded(serde_json::json!({})),
        JobState::Rejected => Outcome::Rejected(problem),
        JobState::Failed => Outcome::Failed(problem),
        _ => Outcome::Cancelled,
    };
    let txn = db.begin().await.unwrap();
    let ended = settle::finish(&txn, claim, job, &outcome).await.unwrap();
    txn.commit().await.unwrap();
    ended
}

#[test]
fn rows_follow_the_model() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for db in runtime.block_on(crate::testing::databases(folder.path())) {
        let config = ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() };
        proptest::test_runner::TestRunner::new(config)
            .run(&prop::collection::vec(step(), 1..40), |steps| {
                runtime.block_on(async {
                    recover_all(&db).await.unwrap();
                    let mut world = World::new(db.clone()).await;
                    for step in &steps {
                        world.take(step).await;
                        world.check(step).await;
                    }
                });
                Ok(())
            })
            .unwrap();
    }
}

#[tokio::test]
async fn a_repeated_key_gives_the_same_job() {
    let folder = tempfile::tempdir().unwrap();
    for db in crate::testing::databases(folder.path()).await {
        one_job_for_a_key(&db).await;
    }
}

async fn one_job_for_a_key(db: &Db) {
    let made = collections::create(db, "c", "tiny", &collections::CollectionSettings::default()).await.unwrap();
    let collection = made.unwrap().id;
    let request = |fingerprint: &str| {
        let (route, key, fingerprint) = ("r".to_owned(), "k".to_owned(), fingerprint.to_owned());
        request(collection, Some(Idempotency { route, key, fingerprint, keep: LEASE }))
    };
    let grant = Grant::everything();
    // All at once: one makes the job, the others find it, or are told to come again.
    let submitted = futures_util::future::join_all((0..8).map(|_| submit(db, &grant, request("f")))).await;
    let mut ids = Vec::new();
    let mut new = 0;
    for one in submitted {
        match one.unwrap() {
            Submitted::New(job) => {
                new += 1;
                ids.push(job.id);
            }
            Submitted::Existing(job) => ids.push(job.id),
            Submitted::KeyInFlight => {}
            Submitted::KeyReused => panic!("the fingerprints are the same"),
            Submitted::OverLimit(over) => panic!("there is no limit, got {over:?}"),
        }
    }
    ids.dedup();
    assert_eq!((new, ids.len()), (1, 1));
    assert!(matches!(submit(db, &grant, request("f")).await.unwrap(), Submitted::Existing(job) if job.id == ids[0]));
    assert!(matches!(submit(db, &grant, request("other")).await.unwrap(), Submitted::KeyReused));
}

/// As with an erasure, which takes whom it erases out of the arguments of jobs that wait.
#[tokio::test]
async fn a_claim_that_waited_sees_what_the_arguments_are_by_then() {
    let folder = tempfile::tempdir().unwrap();
    for db in crate::testing::databases(folder.path()).await {
        let made = collections::create(&db, "c", "tiny", &collections::CollectionSettings::default()).await.unwrap();
        let job = new_job(&db, made.unwrap().id).await;
        let cleaned = JobArgs::Reembed { images: Vec::new(), detects: false };
        let txn = db.begin().await.unwrap();
        let lock = statement(&txn, "SELECT id FROM jobs WHERE id = $1 {for update}", [job.into()]);
        txn.query_all_raw(lock).await.unwrap();
        let text = serde_json::to_string(&cleaned).unwrap();
        let sql = "UPDATE job_payloads SET args = $2 WHERE job_id = $1";
        execute(&txn, sql, [job.into(), text.into()]).await.unwrap();
        execute(&txn, "UPDATE jobs SET version = version + 1 WHERE id = $1", [job.into()]).await.unwrap();
        let commit = async {
            // By then the claim waits for the row.
            tokio::time::sleep(Duration::from_millis(300)).await;
            txn.commit().await.unwrap();
        };
        let jobs = [job];
        let wanted = claims::Wanted { id: ClaimId::new(), jobs: &jobs, alone: 0, owner: "test" };
        let (claimed, ()) = tokio::join!(claims::claim(&db, wanted, LEASE), commit);
        let claimed = claimed.unwrap().unwrap();
        let args: Vec<_> = claimed.jobs.iter().map(|job| (job.job.state, job.args.as_ref().unwrap())).collect();
        assert_eq!(args, [(JobState::Running, &cleaned)]);
    }
}
