//! Who asks for a rematch, the one job that does it, and what it may write, on both databases.

use super::*;
use crate::db::collections::CollectionSettings;
use crate::db::faces::{self, AssignedBy, NewFace, Origin};
use crate::db::faces_by_hand::{FaceChange, PersonChange, change};
use crate::db::images::{self, ImageSource};
use crate::db::jobs::claims::{Wanted, claim};
use crate::db::jobs::{outbox, read, settle};
use crate::face_index::contract::PIPELINES;
use crate::face_index::pgvector::create_partition;
use crate::ids::{ClaimId, JobId};
use crate::job::{FaceBox, ImageRef, JobKind, Lane, PersonRef, RematchProgress};

/// A collection with a person and faces of no person.
struct Scene {
    db: Db,
    collection: collection::Model,
    person: PersonId,
    faces: Vec<FaceId>,
}

async fn scenes(folder: &std::path::Path) -> Vec<Scene> {
    let mut scenes = Vec::new();
    for db in crate::testing::databases(folder).await {
        let (pipeline, dimension) = PIPELINES[0];
        if crate::db::is_postgres(&db.read) {
            create_partition(&db, pipeline, dimension).await.unwrap();
        }
        let made = collections::create(&db, "c", pipeline, &CollectionSettings::default()).await.unwrap();
        let collection = made.unwrap();
        let named = PersonRef::External { external_id: "ann".to_owned(), name: None, description: None };
        let person = persons::find_or_create(&db.write, collection.id, &named).await.unwrap().unwrap().id;
        scenes.push(Scene { db, collection, person, faces: Vec::new() });
    }
    scenes
}

impl Scene {
    /// Stores so many faces of no person, each on an image of its own.
    async fn add_faces(&mut self, count: usize) {
        for _ in 0..count {
            let txn = self.db.begin().await.unwrap();
            let key = FaceId::new().to_string();
            let source = ImageSource { sha256: key.clone(), object_key: Some(key), ..ImageSource::default() };
            let image = images::find_or_create(&txn, self.collection.id, &source, [10, 10]).await.unwrap().id;
            let pipeline = &self.collection.pipeline;
            let origin = Origin { collection: self.collection.id, image, detector_revision: "r", pipeline };
            let new = NewFace {
                face_box: FaceBox { x: 0.0, y: 0.0, width: 5.0, height: 5.0 },
                landmarks: "[]".to_owned(),
                score: 0.9,
                quality: "{}".to_owned(),
                embedding: Some(Embedding::normalised(vec![1.0, 0.0]).unwrap()),
                crop: None,
            };
            self.faces.push(faces::place(&txn, origin, &[new]).await.unwrap()[0].id);
            txn.commit().await.unwrap();
        }
    }

    /// Lets the requests so far wait no longer.
    async fn settle(&self) {
        let sql = "UPDATE rematch_requests SET requested_at = requested_at - $1";
        execute(&self.db.write, sql, [micros(SETTLE).into()]).await.unwrap();
    }

    async fn take(&self) -> Option<RematchScope> {
        self.settle().await;
        take_requests(&self.db.write, self.collection.id, false).await.unwrap()
    }

    async fn open_jobs(&self) -> Vec<JobId> {
        let jobs = job::Entity::find().filter(job::Column::Kind.eq(JobKind::Rematch)).all(&self.db.read).await.unwrap();
        jobs.into_iter().filter(|job| !job.state.is_terminal()).map(|job| job.id).collect()
    }

    async fn begin_job(&self, job: JobId) {
        let wanted = Wanted { id: ClaimId::new(), jobs: &[job], alone: 0, owner: "test" };
        assert!(claim(&self.db, wanted, Duration::from_secs(60)).await.unwrap().is_some());
    }

    async fn by_hand(&self, face: FaceId, wanted: FaceChange) {
        change(&self.db, self.collection.id, face, wanted).await.unwrap();
    }

    async fn person_of(&self, face: FaceId) -> Option<PersonId> {
        faces::find(&self.db.read, self.collection.id, face).await.unwrap().unwrap().face.person_id
    }
}

#[tokio::test]
async fn what_changes_templates_asks_for_a_rematch() {
    let folder = tempfile::tempdir().unwrap();
    for mut scene in scenes(folder.path()).await {
        scene.add_faces(3).await;
        let (person, [one, two, three]) = (scene.person, [scene.faces[0], scene.faces[1], scene.faces[2]]);
        let assign = FaceChange { person: PersonChange::Assign(person), ..FaceChange::default() };
        let unassign = FaceChange { person: PersonChange::Unassign, ..FaceChange::default() };
        let hide = |hidden| FaceChange { hidden: Some(hidden), ..FaceChange::default() };
        let touched = |faces: &[FaceId], persons: &[PersonId]| {
            Some(RematchScope::Touched { faces: faces.to_vec(), persons: persons.to_vec() })
        };
        assert_eq!(scene.take().await, None);
        scene.by_hand(one, assign).await;
        assert_eq!(take_requests(&scene.db.write, scene.collection.id, false).await.unwrap(), None, "not so soon");
        assert_eq!(scene.take().await, touched(&[one], &[]));
        assert_eq!(scene.take().await, None, "what was taken is gone");
        scene.by_hand(one, assign).await;
        assert_eq!(scene.take().await, None, "nothing has changed");
        scene.by_hand(one, hide(true)).await;
        assert_eq!(scene.take().await, touched(&[], &[person]));
        scene.by_hand(one, hide(false)).await;
        scene.by_hand(one, unassign).await;
        assert_eq!(scene.take().await, touched(&[one], &[person]));
        scene.by_hand(two, hide(true)).await;
        assert_eq!(scene.take().await, None, "an unknown face that is hidden changes no other");
        faces::assign(&scene.db.write, two, person, AssignedBy::User).await.unwrap();
        scene.by_hand(two, hide(false)).await;
        assert!(faces::delete(&scene.db, scene.collection.id, two).await.unwrap());
        assert!(faces::delete(&scene.db, scene.collection.id, three).await.unwrap());
        assert_eq!(scene.take().await, touched(&[two], &[person]), "an unknown face that is deleted changes none");
        let settings = CollectionSettings { max_matches: 1, ..CollectionSettings::default() };
        assert!(collections::update_settings(&scene.db, scene.collection.id, &settings, |_| true).await.unwrap());
        assert_eq!(scene.take().await, None);
        let settings = CollectionSettings { match_cosine: Some(0.3), ..settings };
        assert!(collections::update_settings(&scene.db, scene.collection.id, &settings, |_| true).await.unwrap());
        assert_eq!(scene.take().await, Some(RematchScope::All));
        for n in 0..=MAX_TOUCHED {
            request(&scene.db.write, scene.collection.id, Some(FaceId(Uuid::from_u128(n as u128))), None)
                .await
                .unwrap();
        }
        assert_eq!(scene.take().await, Some(RematchScope::All), "many changes concern everything");
        assert!(persons::delete(&scene.db, scene.collection.id, person).await.unwrap());
        assert_eq!(scene.take().await, Some(RematchScope::All));
    }
}

#[tokio::test]
async fn one_job_at_a_time_does_it() {
    let folder = tempfile::tempdir().unwrap();
    for mut scene in scenes(folder.path()).await {
        let db = scene.db.clone();
        let ask = async || request(&db.write, scene.collection.id, None, Some(scene.person)).await.unwrap();
        ask().await;
        scene.settle().await;
        assert_eq!(begin_wanted(&scene.db).await.unwrap(), 0, "there is nothing to match");
        assert_eq!(scene.take().await, None);
        scene.add_faces(1).await;
        let ask = async || request(&db.write, scene.collection.id, None, Some(scene.person)).await.unwrap();
        ask().await;
        assert_eq!(begin_wanted(&scene.db).await.unwrap(), 0, "not so soon");
        scene.settle().await;
        assert_eq!(begin_wanted(&scene.db).await.unwrap(), 1);
        assert_eq!(begin_wanted(&scene.db).await.unwrap(), 0);
        let Submitted::Existing(waiting) = enqueue(&scene.db, &scene.collection, None).await.unwrap() else {
            panic!("one that waits does it all")
        };
        assert_eq!(scene.open_jobs().await, [waiting.id]);
        scene.begin_job(waiting.id).await;
        let taken = take_requests(&scene.db.write, scene.collection.id, false).await.unwrap();
        assert_eq!(taken, Some(RematchScope::All), "it finds that all was asked for");
        ask().await;
        scene.settle().await;
        assert_eq!(begin_wanted(&scene.db).await.unwrap(), 0, "not while one is under way");
        let Submitted::New(next) = enqueue(&scene.db, &scene.collection, None).await.unwrap() else {
            panic!("one that has begun may have read faces already")
        };
        assert!(matches!(enqueue(&scene.db, &scene.collection, None).await.unwrap(), Submitted::Existing(_)));
        assert_eq!(scene.open_jobs().await, [waiting.id, next.id]);
    }
}

async fn args_of(db: &Db, job: JobId) -> Option<JobArgs> {
    read::find(db, &Grant::everything(), job).await.unwrap().unwrap().args
}

#[tokio::test]
async fn what_a_job_took_is_asked_for_again_when_it_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    for mut scene in scenes(folder.path()).await {
        scene.add_faces(1).await;
        let (db, collection) = (scene.db.clone(), scene.collection.id);
        let again = async || {
            assert_eq!(take_requests(&db.write, collection, false).await.unwrap(), None, "not at once, for ever");
            let sql = "UPDATE rematch_requests SET requested_at = requested_at - $1";
            execute(&db.write, sql, [micros(AGAIN_AFTER + SETTLE).into()]).await.unwrap();
            take_requests(&db.write, collection, false).await.unwrap()
        };
        for is_cancelled in [false, true] {
            let Submitted::New(job) = enqueue(&db, &scene.collection, None).await.unwrap() else { panic!("a new job") };
            let wanted = Wanted { id: ClaimId::new(), jobs: &[job.id], alone: 0, owner: "test" };
            let claimed = claim(&db, wanted, Duration::from_secs(60)).await.unwrap().unwrap();
            assert_eq!(take_requests(&db.write, collection, true).await.unwrap(), Some(RematchScope::All));
            let txn = db.begin().await.unwrap();
            if is_cancelled {
                let scope = RematchScope::Touched { faces: scene.faces.clone(), persons: vec![scene.person] };
                let progress = RematchProgress { scope, after: None, faces: 0, assigned: 0, unassigned: 0 };
                let args = JobArgs::Rematch { all: true, progress: Some(progress) };
                assert!(settle::go_on(&txn, claimed.id, job.id, &args).await.unwrap());
                txn.commit().await.unwrap();
                assert_eq!(args_of(&db, job.id).await, Some(args));
                settle::cancel(&db, &Grant::everything(), job.id).await.unwrap();
                let forgotten = JobArgs::Rematch { all: true, progress: None };
                assert_eq!(args_of(&db, job.id).await, Some(forgotten), "whom it began with is nobody's business");
            } else {
                let why = settle::Outcome::Failed(crate::job::Problem::new("attempts_exhausted", "a test"));
                assert!(settle::finish(&txn, claimed.id, job.id, &why).await.unwrap());
                txn.commit().await.unwrap();
            }
            assert_eq!(again().await, Some(RematchScope::All), "cancelled: {is_cancelled}");
        }
        let Submitted::New(job) = enqueue(&db, &scene.collection, None).await.unwrap() else { panic!("a new job") };
        settle::cancel(&db, &Grant::everything(), job.id).await.unwrap();
        assert_eq!(count(&db.read, "SELECT count(*) AS n FROM rematch_requests", []).await.unwrap(), 1, "its own");
    }
}

#[tokio::test]
async fn it_writes_nothing_against_what_was_said_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    for mut scene in scenes(folder.path()).await {
        scene.add_faces(5).await;
        let (db, collection, person) = (scene.db.clone(), scene.collection.id, scene.person);
        let [free, auto, rejected, locked, gone] = scene.faces[..] else { panic!("five faces") };
        faces::assign(&db.write, auto, person, AssignedBy::Auto).await.unwrap();
        let key = (scene.collection.pipeline.as_str(), "r");
        let page = matchable(&db, collection, key, None, 3).await.unwrap();
        let rest = matchable(&db, collection, key, Some(page[2].id), 3).await.unwrap();
        let read: Vec<_> = page.iter().chain(&rest).map(|face| (face.id, face.person)).collect();
        let whose = |face| (face == auto).then_some(person);
        assert_eq!(read, scene.faces.iter().map(|face| (*face, whose(*face))).collect::<Vec<_>>());

        scene.by_hand(rejected, FaceChange { person: PersonChange::Assign(person), ..FaceChange::default() }).await;
        scene.by_hand(rejected, FaceChange { person: PersonChange::Unassign, ..FaceChange::default() }).await;
        scene.by_hand(locked, FaceChange { locked: Some(true), ..FaceChange::default() }).await;
        assert!(faces::delete(&db, collection, gone).await.unwrap());
        let to = |face, to| Rematch { face, from: (face == auto).then_some(person), to };
        let all = scene.faces.iter().map(|face| to(*face, (*face != auto).then_some(person))).collect::<Vec<_>>();
        let written = apply(&db.write, collection, &all).await.unwrap();
        assert_eq!(written, Rematched { assigned: 1, unassigned: 1 });
        let mut whose = Vec::new();
        for face in [free, auto, rejected, locked] {
            whose.push(scene.person_of(face).await);
        }
        assert_eq!(whose, [Some(person), None, None, None]);
        let again = apply(&db.write, collection, &all).await.unwrap();
        assert_eq!(again, Rematched::default(), "what has changed since it was read is left");
        let stranger = [to(auto, Some(PersonId::new())), Rematch { face: free, from: Some(person), to: None }];
        let written = apply(&db.write, collection, &stranger).await.unwrap();
        assert_eq!(written, Rematched { assigned: 0, unassigned: 1 }, "nobody gets a face who is not there");
        let left: Vec<_> = matchable(&db, collection, key, None, 9).await.unwrap().iter().map(|f| f.id).collect();
        assert_eq!(left, [free, auto, rejected], "a locked face is not looked at");
    }
}

#[tokio::test]
async fn rematches_have_room_of_their_own_in_the_queue() {
    let folder = tempfile::tempdir().unwrap();
    for scene in scenes(folder.path()).await {
        let (db, pipeline) = (&scene.db, scene.collection.pipeline.as_str());
        let other = collections::create(db, "d", pipeline, &CollectionSettings::default()).await.unwrap().unwrap();
        let image = ImageRef::Reference { s3: "s3://b/k".to_owned(), fingerprint: None };
        let index = NewJob {
            collection: scene.collection.id,
            args: JobArgs::Index { image },
            tag: None,
            traceparent: None,
            idempotency: None,
            inline_uploads: Vec::new(),
            webhook_endpoints: None,
        };
        let mut made = Vec::new();
        for submitted in [
            submit(db, &Grant::everything(), index).await.unwrap(),
            enqueue(db, &scene.collection, None).await.unwrap(),
            enqueue(db, &other, None).await.unwrap(),
        ] {
            match submitted {
                Submitted::New(job) => made.push(job.id),
                other => panic!("each is new, got {other:?}"),
            }
        }
        let source = scene.collection.id.0;
        let with_models = outbox::due(db, Lane::Bulk, pipeline, source, 9).await.unwrap();
        assert_eq!(with_models.iter().map(|job| job.id).collect::<Vec<_>>(), made[..1]);
        let rematches = async |most| {
            let due = outbox::due_rematches(db, pipeline, most).await.unwrap();
            (due.iter().map(|job| job.id).collect::<Vec<_>>(), due)
        };
        let (ids, first) = rematches(1).await;
        assert_eq!((ids.as_slice(), rematches(9).await.0.as_slice()), (&made[1..2], &made[1..]));
        outbox::mark_dispatched(db, &first).await.unwrap();
        assert_eq!((rematches(1).await.0.as_slice(), rematches(2).await.0.as_slice()), (&[][..], &made[2..]));
        assert_eq!(outbox::dispatched(db, Lane::Bulk, pipeline).await.unwrap(), 0, "they take no room from others");
        outbox::mark_dispatched(db, &with_models).await.unwrap();
        assert_eq!(outbox::dispatched(db, Lane::Bulk, pipeline).await.unwrap(), 1);
        assert_eq!(outbox::due_rematches(db, "another", 9).await.unwrap().len(), 0);
    }
}
