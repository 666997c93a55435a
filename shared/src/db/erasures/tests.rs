//! Erasures on both databases: what goes, what stays, and what cannot come back.

use super::fence::{Fence, Stored};
use super::traces::Traces;
use super::*;
use crate::batch::BatchSource;
use crate::db::batches::submit::NewBatch;
use crate::db::collections::{self, CollectionSettings};
use crate::db::entity::batch::OnGone;
use crate::db::entity::job::Model as Job;
use crate::db::faces::{self, AssignedBy, NewCrop, NewFace, Origin};
use crate::db::faces_by_hand::{self, Changed, FaceChange, PersonChange};
use crate::db::images::{self, ImageSource};
use crate::db::jobs::claims::{Wanted, claim};
use crate::db::jobs::read;
use crate::db::jobs::settle::{self, Outcome};
use crate::db::jobs::submit::{NewJob, Submitted, submit};
use crate::db::merges::{self, Merged};
use crate::db::rematches::{self, Rematch, Rematched};
use crate::db::transfer::import;
use crate::db::uploads::NewUpload;
use crate::db::{batches, clusters, count, now, persons};
use crate::embedding::Embedding;
use crate::face_index::contract::PIPELINES;
use crate::face_index::pgvector::create_partition;
use crate::ids::{BatchId, ClaimId, FaceId, ImageId, JobId, PersonId, UploadId};
use crate::job::{FaceBox, FaceChoice, ImageRef, JobArgs, JobKind, JobState, PersonRef, UploadedImage};

struct Scene {
    db: Db,
    key: SecretKey,
    collection: CollectionId,
    ann: PersonId,
    bob: PersonId,
}

async fn on_both(test: impl AsyncFn(Scene)) {
    let folder = tempfile::tempdir().unwrap();
    for db in crate::testing::databases(folder.path()).await {
        for (pipeline, dimension) in PIPELINES {
            if is_postgres(&db.read) {
                create_partition(&db, pipeline, dimension).await.unwrap();
            }
        }
        let made = collections::create(&db, "c", PIPELINES[0].0, &CollectionSettings::default()).await.unwrap();
        let collection = made.unwrap().id;
        let person = async |id| persons::find_or_create(&db.write, collection, &named(id)).await.unwrap().unwrap().id;
        let (ann, bob) = (person("ann-7").await, person("bob-8").await);
        test(Scene { key: crate::testing::secret_key(1), collection, ann, bob, db }).await;
    }
}

fn named(external_id: &str) -> PersonRef {
    PersonRef::External { external_id: external_id.to_owned(), name: Some("A Name".to_owned()), description: None }
}

fn at(x: f32) -> FaceBox {
    FaceBox { x, y: 0.0, width: 10.0, height: 10.0 }
}

impl Scene {
    /// A picture that was sent, with faces of these persons on it that every pipeline knows.
    async fn picture(&self, sha256: &str, people: &[Option<PersonId>]) -> (ImageId, Vec<FaceId>) {
        let txn = self.db.begin().await.unwrap();
        let key = format!("collections/{}/uploads/{sha256}", self.collection);
        let source = ImageSource { sha256: sha256.to_owned(), object_key: Some(key), ..ImageSource::default() };
        let image = images::find_or_create(&txn, self.collection, &source, [100, 10]).await.unwrap().id;
        images::record_analyses(&txn, "d", &[(image, people.len())]).await.unwrap();
        let mut ids = Vec::new();
        for (n, (pipeline, dimension)) in PIPELINES.iter().enumerate() {
            let origin = Origin { collection: self.collection, image, detector_revision: "d", pipeline };
            let vector = Embedding::normalised(vec![1.0; *dimension]).unwrap();
            let crop = || NewCrop { object_key: crate::db::crops::new_key(self.collection), points: "[]".to_owned() };
            let face = |x: usize| NewFace {
                face_box: at(20.0 * u16::try_from(x).map(f32::from).unwrap()),
                landmarks: "[]".to_owned(),
                score: 0.9,
                quality: "{}".to_owned(),
                embedding: Some(vector.clone()),
                crop: (n == 0).then(crop),
            };
            let new: Vec<NewFace> = (0..people.len()).map(face).collect();
            ids = faces::place(&txn, origin, &new).await.unwrap().into_iter().map(|face| face.id).collect();
        }
        for (face, person) in ids.iter().zip(people) {
            if let Some(person) = person {
                faces::assign(&txn, *face, *person, AssignedBy::Enrolled).await.unwrap();
            }
        }
        txn.commit().await.unwrap();
        (image, ids)
    }

    async fn n(&self, what: &str) -> i64 {
        count(&self.db.read, &format!("SELECT count(*) AS n FROM {what}"), []).await.unwrap()
    }

    async fn enroll(&self, sha256: &str, person: &PersonRef) -> Job {
        let key = format!("collections/{}/uploads/{}", self.collection, UploadId::new());
        let upload = NewUpload {
            id: UploadId::new(),
            collection: self.collection,
            object_key: key.clone(),
            sha256: sha256.to_owned(),
            size_bytes: 1,
            content_type: "image/png".to_owned(),
            inline: true,
            keep: std::time::Duration::from_secs(60),
        };
        let image = UploadedImage { upload_id: upload.id, object_key: key, sha256: sha256.to_owned() };
        let args = JobArgs::Enroll { image: ImageRef::Upload(image), person: person.clone(), face: FaceChoice::Only };
        self.submit(args, vec![upload]).await
    }

    async fn submit(&self, args: JobArgs, inline_uploads: Vec<NewUpload>) -> Job {
        let new = NewJob {
            collection: self.collection,
            args,
            tag: Some("ann-7".to_owned()),
            traceparent: None,
            idempotency: None,
            inline_uploads,
            webhook_endpoints: None,
        };
        match submit(&self.db, &Grant::everything(), new).await.unwrap() {
            Submitted::New(job) => job,
            other => panic!("{other:?}"),
        }
    }

    async fn claim(&self, job: JobId) -> ClaimId {
        let wanted = Wanted { id: ClaimId::new(), jobs: &[job], alone: 2, owner: "test" };
        claim(&self.db, wanted, std::time::Duration::from_secs(60)).await.unwrap().unwrap().id
    }

    async fn end(&self, claim: ClaimId, job: JobId, outcome: &Outcome) {
        let txn = self.db.begin().await.unwrap();
        assert!(settle::finish(&txn, claim, job, outcome).await.unwrap());
        txn.commit().await.unwrap();
    }

    async fn job(&self, id: JobId) -> read::JobWithAnswer {
        read::find(&self.db, &Grant::everything(), id).await.unwrap().unwrap()
    }

    async fn receipt(&self, erasure: &Erasure) -> Erasure {
        find(&self.db.read, &Grant::everything(), erasure.id).await.unwrap().unwrap()
    }

    /// Does to its end what a worker does, but for objects; returns the jobs that still run.
    async fn trace(&self, erasure: &Erasure) -> Vec<JobId> {
        let traces = Traces::of(&self.db, self.collection, std::slice::from_ref(erasure)).await.unwrap();
        traces.queues(&self.db).await.unwrap();
        traces.tags(&self.db).await.unwrap();
        let slice = traces.jobs(&self.db, None).await.unwrap();
        assert_eq!(slice.last, None);
        traces.events(&self.db, None).await.unwrap();
        traces.queues(&self.db).await.unwrap();
        slice.running
    }
}

#[tokio::test]
async fn a_person_goes_with_all_that_every_model_made() {
    on_both(async |scene| {
        let Scene { db, key, collection, ann, bob } = &scene;
        let (alone, _) = scene.picture("aa", &[Some(*ann), Some(*ann)]).await;
        let (shared, shared_faces) = scene.picture("bb", &[Some(*ann), Some(*bob)]).await;
        assert_eq!((scene.n("embeddings").await, scene.n("crops").await), (12, 4));
        let erasure = request::person(db, key, (*collection, *ann), false).await.unwrap().unwrap();
        let counts = [erasure.persons, erasure.faces, erasure.images, erasure.vectors, erasure.crops];
        assert_eq!((counts, erasure.finished_at), ([1, 3, 1, 9, 3], None));
        assert!(images::find(&db.read, *collection, alone).await.unwrap().is_none());
        assert!(images::find(&db.read, *collection, shared).await.unwrap().is_some());
        let left = faces::of_image(&db.read, shared).await.unwrap();
        assert_eq!(left.iter().map(|face| face.face.id).collect::<Vec<_>>(), shared_faces[1..]);
        assert_eq!((scene.n("embeddings").await, scene.n("crops").await), (3, 1));
        let keys = objects(db, erasure.id, 10).await.unwrap();
        assert_eq!(keys.len(), 4, "three crops and a picture: {keys:?}");

        let again = request::person(db, key, (*collection, *ann), true).await.unwrap().unwrap();
        assert_eq!(again.id, erasure.id);
        finish(db, erasure.id).await.unwrap();
        let again = request::person(db, key, (*collection, *ann), false).await.unwrap().unwrap();
        assert_eq!((again.id, again.target), (erasure.id, None));
        assert!(again.finished_at.is_some());
        assert_eq!(scene.n("erasure_terms").await, 0);
        assert_eq!(request::person(db, key, (*collection, PersonId::new()), false).await.unwrap(), None);
        // All that shows the other one.
        let erasure = request::person(db, key, (*collection, *bob), true).await.unwrap().unwrap();
        assert_eq!((erasure.persons, erasure.faces, erasure.images), (1, 1, 1));
        assert_eq!((scene.n("images").await, scene.n("faces").await, scene.n("persons").await), (0, 0, 0));
    })
    .await;
}

#[tokio::test]
async fn a_person_of_many_faces_goes_in_slices_that_may_be_repeated() {
    on_both(async |scene| {
        let Scene { db, key, collection, ann, bob } = &scene;
        // One picture with faces of two slices, and one of which one face is somebody else's.
        scene.picture("aa", &[Some(*ann); 150]).await;
        let (shared, _) = scene.picture("bb", &[&[Some(*bob)][..], &[Some(*ann); 99]].concat()).await;
        let erasure = request::begin_person(db, key, (*collection, *ann), false).await.unwrap().unwrap();
        let first = rows::slice(db, key, &erasure, None).await.unwrap();
        assert!(matches!(first, rows::Sliced::More(Some(_))), "{first:?}");
        assert_eq!(scene.n("faces").await, 50);
        assert!(takes_a_person(&db.read, *collection).await.unwrap());
        // Another process begins anew; the first one goes on and finds nothing.
        assert_eq!(rows::slice(db, key, &erasure, None).await.unwrap(), rows::Sliced::Done);
        let rows::Sliced::More(after) = first else { unreachable!() };
        assert_eq!(rows::slice(db, key, &erasure, after).await.unwrap(), rows::Sliced::Done);
        let receipt = scene.receipt(&erasure).await;
        assert_eq!((receipt.persons, receipt.faces, receipt.images), (1, 249, 1));
        assert!(!takes_a_person(&db.read, *collection).await.unwrap());
        assert_eq!(faces::of_image(&db.read, shared).await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_slice_that_left_faces_behind_is_followed_by_others() {
    on_both(async |scene| {
        let Scene { db, key, collection, ann, .. } = &scene;
        let (_, faces) = scene.picture("aa", &[Some(*ann), Some(*ann)]).await;
        let erasure = request::begin_person(db, key, (*collection, *ann), true).await.unwrap().unwrap();
        let last = faces.iter().max().copied();
        assert_eq!(rows::slice(db, key, &erasure, last).await.unwrap(), rows::Sliced::More(None));
        assert_eq!(scene.n("faces").await, 2);
        assert_eq!(rows::slice(db, key, &erasure, None).await.unwrap(), rows::Sliced::Done);
        assert_eq!((scene.n("faces").await, scene.n("images").await, scene.n("persons").await), (0, 0, 1));
    })
    .await;
}

#[tokio::test]
async fn nothing_takes_a_face_from_a_person_that_is_being_erased() {
    on_both(async |scene| {
        let Scene { db, key, collection, ann, bob } = &scene;
        let (_, faces) = scene.picture("aa", &[Some(*ann), Some(*ann), Some(*bob)]).await;
        let sql = "UPDATE faces SET assigned_by = 'auto' WHERE id = $1";
        execute(&db.write, sql, [faces[1].into()]).await.unwrap();
        let before = scene.enroll("bb", &named("carl")).await;
        let erasure = request::begin_person(db, key, (*collection, *ann), false).await.unwrap().unwrap();

        assert_eq!(persons::find(&db.read, *collection, *ann).await.unwrap(), None);
        assert_eq!(persons::find_many(&db.read, *collection, &[*ann, *bob]).await.unwrap().len(), 1);
        assert_eq!(persons::list(db, *collection, None, 10).await.unwrap().len(), 1);
        assert!(persons::hold(&db.write, *collection, &[*ann].into()).await.unwrap().is_empty());
        for (from, into) in [(*ann, *bob), (*bob, *ann)] {
            assert_eq!(merges::merge(db, *collection, from, into).await.unwrap(), Merged::NoPerson(*ann));
        }
        for person in [PersonChange::Unassign, PersonChange::Assign(*bob)] {
            let change = FaceChange { person, ..FaceChange::default() };
            let changed = faces_by_hand::change(db, *collection, faces[0], change).await.unwrap();
            assert_eq!(changed, Changed::NoFace);
        }
        for to in [None, Some(*bob)] {
            let rematch = Rematch { face: faces[1], from: Some(*ann), to };
            let txn = db.begin().await.unwrap();
            let written = rematches::apply(&txn, *collection, &[rematch]).await.unwrap();
            txn.commit().await.unwrap();
            assert_eq!(written, Rematched::default());
        }
        let fence = Fence::of(key, *collection, [&before]);
        assert_eq!(fence.gone(&db.read, &[&before], &[*bob, *ann]).await.unwrap(), [[*ann].into()]);

        let done = request::person(db, key, (*collection, *ann), false).await.unwrap().unwrap();
        assert_eq!((done.id, done.persons, done.faces), (erasure.id, 1, 2));
        assert_eq!(scene.n("faces").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_picture_of_a_library_is_remembered_though_it_was_sent_too() {
    on_both(async |scene| {
        let Scene { db, key, collection, ann, .. } = &scene;
        let (image, _) = scene.picture("aa", &[Some(*ann)]).await;
        let listed = [(Some("file:///a.jpg"), Some("1"), Some(image))];
        images::remember_sources(&db.write, *collection, listed).await.unwrap();
        scene.enroll("aa", &named("carl")).await;
        let erasure = request::person(db, key, (*collection, *ann), false).await.unwrap().unwrap();
        assert_eq!((erasure.faces, erasure.images), (1, 0));
        let left = images::find(&db.read, *collection, image).await.unwrap().unwrap();
        assert_eq!((left.object_key, left.uri.as_deref()), (None, Some("file:///a.jpg")));
        assert!(images::is_analysed(&db.read, image, "d").await.unwrap());
        assert_eq!(places::are_open(&db.write, image, &[at(0.0)]).await.unwrap(), [false]);
        assert_eq!(scene.n("image_sources").await, 1);
        assert_eq!(scene.n("uploads").await, 0);
        assert_eq!(
            objects(db, erasure.id, 10).await.unwrap().len(),
            3,
            "a crop, a picture, an upload of the same bytes"
        );
    })
    .await;
}

#[tokio::test]
async fn what_was_accepted_before_cannot_bring_it_back() {
    on_both(async |scene| {
        let Scene { db, key, collection, ann, .. } = &scene;
        let (image, faces) = scene.picture("aa", &[Some(*ann), None]).await;
        scene.picture("bb", &[Some(*ann)]).await;
        let before = scene.enroll("cc", &named("ann-7")).await;
        let other = scene.enroll("dd", &named("bob-8")).await;
        let erasure = request::person(db, key, (*collection, *ann), false).await.unwrap().unwrap();
        // An instant of the clock of SQLite is that long.
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        let after = scene.enroll("cc", &named("ann-7")).await;
        let (external, by_id, bob) = (named("ann-7"), PersonRef::Id { id: *ann }, named("bob-8"));
        let fence = Fence::of(key, *collection, [&before, &after]);
        let holds = async |job: &Job, stored: Stored<'_>| {
            let held = fence.held_back(&db.read, &[(job, stored), (&other, Stored::OfPerson(&bob))]).await.unwrap();
            assert!(held.is_subset(&[job.id].into()));
            !held.is_empty()
        };
        for stored in [Stored::OfPerson(&external), Stored::OfPerson(&by_id), Stored::OfPicture("bb")] {
            assert!(holds(&before, stored).await, "{stored:?}");
            assert!(!holds(&after, stored).await, "{stored:?}");
        }
        for stored in [Stored::OfPerson(&bob), Stored::OfPicture("aa"), Stored::OfPicture("cc")] {
            assert!(!holds(&before, stored).await, "{stored:?}");
        }
        let answer =
            json!({ "faces": [{ "face_id": faces[1], "matches": [{ "person_id": ann }], "decision": "unknown" }] });
        let left = json!({ "faces": [{ "face_id": faces[1], "matches": [], "decision": "unknown" }] });
        let of_her = json!({ "person_id": ann });
        let answers = vec![(&before, answer.clone()), (&before, of_her), (&after, answer.clone())];
        let redacted = fence.redacted(&db.read, answers).await.unwrap();
        assert_eq!(redacted[..2], [Some(left), None]);
        assert_ne!(redacted[2], Some(answer.clone()), "it may have seen her before the last row was gone");

        // On the picture that stays no detector finds her again, until somebody says whose the face is.
        let open = async || places::are_open(&db.write, image, &[at(1.0), at(20.0), at(60.0)]).await.unwrap();
        assert_eq!(open().await, [false, true, true]);
        let enroll = async |job: &Job| places::may_enroll(&db.write, image, &at(0.0), job.created_at).await.unwrap();
        assert!(!enroll(&before).await);
        assert!(enroll(&after).await);
        assert_eq!(open().await, [true, true, true]);

        // What waits for her is cancelled and forgotten, and nothing else.
        let queued = scene.enroll("ee", &PersonRef::Id { id: *ann }).await;
        assert_eq!(scene.trace(&erasure).await, []);
        for job in [before.id, queued.id] {
            let found = scene.job(job).await;
            assert_eq!((found.job.state, found.args, found.job.tag), (JobState::Cancelled, None, None));
            assert_eq!(found.problem.unwrap().code, "subject_erased");
        }
        for job in [other.id, after.id] {
            assert_eq!(scene.job(job).await.job.state, JobState::Queued);
        }
        finish(db, erasure.id).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        let later = scene.enroll("ff", &named("bob-8")).await;
        let fence = Fence::of(key, *collection, [&later]);
        assert_eq!(fence.redacted(&db.read, vec![(&later, answer.clone())]).await.unwrap(), [Some(answer)]);
        // Of the other, the one that came after, and the latest.
        assert_eq!(scene.n("uploads").await, 3, "their pictures go");
    })
    .await;
}

#[tokio::test]
async fn answers_and_events_forget_it() {
    on_both(async |scene| {
        let Scene { db, key, collection, ann, bob } = &scene;
        let (image, faces) = scene.picture("aa", &[Some(*ann), Some(*bob)]).await;
        let matches = |person: &PersonId| json!([{ "person_id": person, "name": "A Name" }]);
        let of_both = json!({ "faces": [
            { "decision": "match", "matches": matches(ann) }, { "decision": "match", "matches": matches(bob) }] });
        let sql = "INSERT INTO webhook_events (id, type, collection_id, body, created_at)
            VALUES ($1, 'face.matched', $2, $3, 0)";
        for person in [ann, bob] {
            let id = crate::ids::WebhookEventId::new();
            let body = json!({ "data": { "person_id": person } }).to_string();
            execute(&db.write, sql, [id.into(), (*collection).into(), body.into()]).await.unwrap();
        }
        let ended = async |result: Json| {
            let job = scene.enroll(&FaceId::new().to_string(), &named("carl")).await.id;
            scene.end(scene.claim(job).await, job, &Outcome::Succeeded(result)).await;
            job
        };
        let (both, only) = (ended(of_both).await, ended(json!({ "person_id": ann, "face_id": faces[0] })).await);
        let running = scene.enroll("aa", &named("carl")).await.id;
        let held = scene.claim(running).await;
        execute(&db.write, "DELETE FROM cluster_queue", []).await.unwrap();
        let sql = "INSERT INTO cluster_queue (collection_id, face_id) VALUES ($1, $2)";
        execute(&db.write, sql, [(*collection).into(), faces[0].into()]).await.unwrap();

        let erasure = request::image(db, key, *collection, image).await.unwrap().unwrap();
        let counts = [erasure.persons, erasure.faces, erasure.images, erasure.vectors, erasure.crops];
        assert_eq!(counts, [0, 2, 1, 6, 2]);
        assert_eq!(scene.trace(&erasure).await, [running], "its picture is the erased one");
        assert!(scene.job(running).await.job.cancel_requested);
        assert_eq!(scene.job(only).await.result, None);
        assert_eq!(scene.n("cluster_queue").await, 1, "its cluster has still lost a face");
        let sql = "SELECT count(*) AS n FROM cluster_queue WHERE face_id = $1";
        assert_eq!(count(&db.read, sql, [faces[0].into()]).await.unwrap(), 0);
        assert!(scene.job(both).await.result.is_some(), "persons are still there");
        scene.end(held, running, &Outcome::Discarded).await;
        let discarded = scene.job(running).await;
        assert_eq!((discarded.job.state, discarded.args), (JobState::Cancelled, None));
        assert_eq!(discarded.problem.unwrap().code, "subject_erased");

        let erasure = request::person(db, key, (*collection, *ann), false).await.unwrap().unwrap();
        assert_eq!(scene.trace(&erasure).await, []);
        let left = scene.job(both).await.result.unwrap();
        assert_eq!(left, json!({ "faces": [{ "decision": "match", "matches": matches(bob) }] }));
        assert_eq!(scene.n("webhook_events").await, 1);
        let receipt = scene.receipt(&erasure).await;
        assert_eq!((receipt.jobs, receipt.events), (2, 1), "an answer that named her, and a tag");
    })
    .await;
}

#[tokio::test]
async fn a_rematch_is_waited_for() {
    on_both(async |scene| {
        let Scene { db, key, collection, ann, .. } = &scene;
        let (_, faces) = scene.picture("aa", &[Some(*ann)]).await;
        let job = scene.submit(JobArgs::Rematch { all: true, progress: None }, Vec::new()).await.id;
        scene.claim(job).await;
        let erasure = request::face(db, key, *collection, faces[0]).await.unwrap().unwrap();
        assert_eq!(scene.trace(&erasure).await, [job], "it may be at this face, and note so when it ends");
    })
    .await;
}

#[tokio::test]
async fn whoever_may_have_stored_a_crop_is_waited_for() {
    on_both(async |scene| {
        let Scene { db, key, collection, ann, .. } = &scene;
        let (image, faces) = scene.picture("aa", &[Some(*ann), None]).await;
        let job = scene.submit(JobArgs::Reembed { images: vec![image], detects: false }, Vec::new()).await.id;
        let held = scene.claim(job).await;
        let erasure = request::face(db, key, *collection, faces[0]).await.unwrap().unwrap();
        let traces = Traces::of(db, *collection, std::slice::from_ref(&erasure)).await.unwrap();
        assert!(traces.wait_for_jobs(db).await.unwrap());
        scene.end(held, job, &Outcome::Succeeded(json!({}))).await;
        assert!(!traces.wait_for_jobs(db).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn an_import_begins_before_a_request_or_after_it() {
    on_both(async |scene| {
        let Scene { db, key, collection, ann, .. } = &scene;
        scene.picture("aa", &[Some(*ann)]).await;
        let before = import::begin(db, *collection).await.unwrap().unwrap();
        // The request waits for whoever holds the person, and the import for the request.
        let held = db.begin().await.unwrap();
        assert!(rows::lock_person(&held, *ann).await.unwrap());
        let pause = |ms| tokio::time::sleep(std::time::Duration::from_millis(ms));
        let meanwhile = async {
            pause(200).await;
            import::begin(db, *collection).await.unwrap()
        };
        let let_go = async {
            pause(500).await;
            held.commit().await.unwrap();
        };
        let request = request::begin_person(db, key, (*collection, *ann), false);
        let (erasure, meanwhile, ()) = tokio::join!(request, meanwhile, let_go);
        let erasure = erasure.unwrap().unwrap();
        assert_eq!(meanwhile, None, "her faces are still to go");
        rows::all_slices(db, key, &erasure).await.unwrap();
        let after = import::begin(db, *collection).await.unwrap().unwrap();
        assert!(before <= erasure.requested_at && erasure.requested_at <= after);
    })
    .await;
}

#[tokio::test]
async fn a_request_is_later_than_an_import_that_begins() {
    on_both(async |scene| {
        let Scene { db, key, collection, ann, .. } = &scene;
        let (image, faces) = scene.picture("aa", &[Some(*ann), None, None]).await;
        let begins = db.begin().await.unwrap();
        collections::hold_from_erasures(&begins, *collection).await.unwrap();
        let begun = async {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            let begun_at = now(&begins).await.unwrap();
            begins.commit().await.unwrap();
            begun_at
        };
        let person = request::person(db, key, (*collection, *ann), false);
        let face = request::face(db, key, *collection, faces[1]);
        let (person, face, begun_at) = tokio::join!(person, face, begun);
        let image = request::image(db, key, *collection, image).await;
        for erasure in [person, face, image] {
            assert!(begun_at <= erasure.unwrap().unwrap().requested_at);
        }
    })
    .await;
}

#[tokio::test]
async fn who_came_back_by_a_file_is_erased_anew() {
    on_both(async |scene| {
        let Scene { db, key, collection, ann, .. } = &scene;
        scene.picture("aa", &[Some(*ann)]).await;
        let first = request::person(db, key, (*collection, *ann), false).await.unwrap().unwrap();
        assert_eq!(first.finished_at, None);
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        // As an import does, whose file has her by the id that is free.
        let sql = "INSERT INTO persons (id, collection_id, external_id, created_at) VALUES ($1, $2, 'ann-7', {now})";
        execute(&db.write, sql, [(*ann).into(), (*collection).into()]).await.unwrap();
        let job = scene.enroll("bb", &named("ann-7")).await;
        let second = request::person(db, key, (*collection, *ann), false).await.unwrap().unwrap();
        assert_ne!(second.id, first.id);
        assert_eq!((second.persons, scene.n("persons").await), (1, 1));
        let (fence, person) = (Fence::of(key, *collection, [&job]), named("ann-7"));
        let held = fence.held_back(&db.read, &[(&job, Stored::OfPerson(&person))]).await.unwrap();
        assert_eq!(held, [job.id].into(), "it was accepted before");
    })
    .await;
}

#[tokio::test]
async fn an_event_is_as_old_as_what_it_tells_of() {
    on_both(async |scene| {
        let Scene { db, key, collection, ann, .. } = &scene;
        let of_carl = async || scene.enroll(&FaceId::new().to_string(), &named("carl")).await.id;
        let (job, batch) = (of_carl().await, scene.batch("ann-7").await);
        let erasure = request::person(db, key, (*collection, *ann), false).await.unwrap().unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        let (later_job, later_batch) = (of_carl().await, scene.batch("ann-7").await);
        // All end between the request and the look for what is left.
        let told = async |kind: &str, data: Json| {
            let sql = "INSERT INTO webhook_events (id, type, collection_id, body, created_at)
                VALUES ($1, $2, $3, $4, {now})";
            let id = crate::ids::WebhookEventId::new();
            let body = json!({ "data": data }).to_string();
            execute(&db.write, sql, [id.into(), kind.into(), (*collection).into(), body.into()]).await.unwrap();
            id
        };
        for (job, batch) in [(job, batch), (later_job, later_batch)] {
            told("job.failed", json!({ "job_id": job, "tag": "ann-7" })).await;
            told("batch.completed", json!({ "batch_id": batch, "tag": "ann-7" })).await;
        }
        told("job.failed", json!({ "job_id": job, "tag": "another" })).await;

        assert_eq!(scene.trace(&erasure).await, []);
        assert_eq!(scene.receipt(&erasure).await.events, 2);
        let of = async |id: String| scene.n(&format!("webhook_events WHERE body LIKE '%{id}%ann-7%'")).await;
        let left = [of(job.to_string()).await, of(batch.to_string()).await];
        assert_eq!((left, scene.n("webhook_events").await), ([0, 0], 3), "the next person's, and another tag");
    })
    .await;
}

#[tokio::test]
async fn a_place_tells_of_the_bytes_that_lay_there() {
    on_both(async |scene| {
        let Scene { db, key, collection, .. } = &scene;
        let (image, _) = scene.picture("aa", &[None]).await;
        let (other, _) = scene.picture("bb", &[None]).await;
        let places = [("a", "old", image), ("b", "same", image), ("a", "new", other)];
        for (file, fingerprint, image) in places {
            let place = format!("file:///{file}.jpg");
            let seen = [(Some(place.as_str()), Some(fingerprint), Some(image))];
            images::remember_sources(&db.write, *collection, seen).await.unwrap();
        }
        let index = async |file: &str, fingerprint: Option<&str>| {
            let (file, fingerprint) = (format!("/{file}.jpg"), fingerprint.map(str::to_owned));
            scene.submit(JobArgs::Index { image: ImageRef::File { file, fingerprint } }, Vec::new()).await.id
        };
        let stay = [index("a", Some("new")).await, index("b", Some("other")).await, index("a", None).await];
        let go = [index("b", Some("same")).await, index("b", None).await];
        let stored = index("a", Some("old")).await;
        let answer = json!({ "image_id": image, "faces": [] });
        scene.end(scene.claim(stored).await, stored, &Outcome::Succeeded(answer)).await;

        let erasure = request::image(db, key, *collection, image).await.unwrap().unwrap();
        assert_eq!(scene.trace(&erasure).await, []);
        for job in stay {
            let found = scene.job(job).await;
            assert!(found.job.state == JobState::Queued && found.args.is_some());
        }
        for job in go {
            let found = scene.job(job).await;
            assert_eq!((found.job.state, found.args), (JobState::Cancelled, None));
        }
        let found = scene.job(stored).await;
        assert_eq!((found.job.state, found.args, found.result), (JobState::Succeeded, None, None));
        assert_eq!(scene.receipt(&erasure).await.jobs, 3);
    })
    .await;
}

impl Scene {
    async fn batch(&self, tag: &str) -> BatchId {
        let new = NewBatch {
            collection: self.collection,
            kind: JobKind::Index,
            pipeline: PIPELINES[0].0.to_owned(),
            source: BatchSource::Folder("/photos".to_owned()),
            on_gone: OnGone::Keep,
            tag: Some(tag.to_owned()),
            webhook_endpoints: None,
            traceparent: None,
            idempotency: None,
        };
        match batches::submit::submit(&self.db, &Grant::everything(), new).await.unwrap() {
            batches::submit::Submitted::New(id) => id,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_batch_was_accepted_before_its_jobs() {
    on_both(async |scene| {
        let Scene { db, key, collection, ann, .. } = &scene;
        let (batch, other) = (scene.batch("ann-7").await, scene.batch("the ann-7 folder").await);
        let erasure = request::person(db, key, (*collection, *ann), false).await.unwrap().unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        let later = scene.batch("ann-7").await;
        let person = named("ann-7");
        let job = scene.enroll("aa", &person).await;
        let of_batch = |batch| Job { id: JobId::new(), batch_id: Some(batch), ..job.clone() };
        let jobs = [of_batch(batch), of_batch(later), job.clone()];
        let fence = Fence::of(key, *collection, &jobs);
        let stored: Vec<_> = jobs.iter().map(|job| (job, Stored::OfPerson(&person))).collect();
        assert_eq!(fence.held_back(&db.read, &stored).await.unwrap(), [jobs[0].id].into());
        let gone = fence.gone(&db.read, &jobs.iter().collect::<Vec<_>>(), &[*ann]).await.unwrap();
        assert_eq!(gone, [[*ann].into(), [].into(), [].into()]);

        // A tag that is her external id goes; what somebody wrote about a batch stays, and so does the next person's.
        assert_eq!(scene.trace(&erasure).await, []);
        let tag = async |id| {
            let found = batches::read::find(db, &Grant::everything(), id).await.unwrap().unwrap();
            found.batch.tag
        };
        let tags = (tag(batch).await, tag(other).await, tag(later).await);
        assert_eq!(tags, (None, Some("the ann-7 folder".to_owned()), Some("ann-7".to_owned())));
        assert_eq!(scene.job(job.id).await.job.tag.as_deref(), Some("ann-7"));
    })
    .await;
}

type Json = serde_json::Value;

#[tokio::test]
async fn a_collection_is_hidden_at_once_and_goes_in_slices() {
    on_both(async |scene| {
        let Scene { db, key, collection, ann, .. } = &scene;
        let (_, faces) = scene.picture("aa", &[Some(*ann), None]).await;
        let job = scene.enroll("bb", &named("ann-7")).await;
        let other = collections::create(db, "d", PIPELINES[0].0, &CollectionSettings::default()).await.unwrap();
        let erasure = request::collection(db, key, *collection, true).await.unwrap().unwrap();
        let everything = Grant::everything();
        assert_eq!(collections::find(&db.read, &everything, *collection).await.unwrap(), None);
        let replaced = collections::find_by_name(&db.read, &everything, "c").await.unwrap().unwrap();
        assert_ne!(replaced.id, *collection);
        assert_eq!(collections::list(db, &everything, None, 10).await.unwrap().len(), 2);
        assert!(read::find(db, &everything, job.id).await.unwrap().is_none());
        rows::all_slices(db, key, &erasure).await.unwrap();
        for table in ["persons", "faces", "images", "embeddings", "crops", "jobs", "uploads", "cluster_queue"] {
            assert_eq!(scene.n(table).await, 0, "{table}");
        }
        assert_eq!(scene.n("collections").await, 2);
        let receipt = scene.receipt(&erasure).await;
        let counts = [receipt.persons, receipt.faces, receipt.images, receipt.vectors, receipt.crops, receipt.jobs];
        assert_eq!(counts, [2, 2, 1, 6, 2, 1]);
        let prefix = ErasedObject { key: format!("collections/{collection}/"), is_prefix: true };
        assert_eq!(objects(db, erasure.id, 10).await.unwrap(), [prefix]);
        for named in ["c".to_owned(), collection.to_string()] {
            let again = request::of_collection(db, key, &named).await.unwrap().unwrap();
            assert_eq!(again.id, erasure.id);
        }
        assert_eq!(request::of_collection(db, key, "d").await.unwrap(), None);
        assert!(request::face(db, key, other.unwrap().id, faces[0]).await.unwrap().is_none());
    })
    .await;
}

#[tokio::test]
async fn a_receipt_names_nobody() {
    on_both(async |scene| {
        let Scene { db, key, collection, ann, .. } = &scene;
        let (image, faces) = scene.picture("0123abcd", &[Some(*ann)]).await;
        clusters::move_on(&db.write, *collection).await.unwrap();
        let face = request::face(db, key, *collection, faces[0]).await.unwrap().unwrap();
        assert_eq!((face.faces, face.images), (1, 1), "the picture was sent, and showed nobody else");
        assert_eq!(request::image(db, key, *collection, image).await.unwrap(), None, "that was another erasure");
        let person = request::person(db, key, (*collection, *ann), false).await.unwrap().unwrap();
        let began = now(&db.read).await.unwrap();
        for erasure in [&face, &person] {
            finish(db, erasure.id).await.unwrap();
            let receipt = scene.receipt(erasure).await;
            assert!(receipt.target.is_none() && receipt.finished_at.unwrap() >= began);
        }
        assert_eq!(open(db, None, 10).await.unwrap(), []);
        assert_eq!(list(db, &Grant::everything(), None, 10).await.unwrap().len(), 2);
        let text = if is_postgres(&db.read) { "hash || erasure_id::text" } else { "hash || hex(erasure_id)" };
        for secret in ["ann-7".to_owned(), "0123abcd".to_owned(), ann.to_string(), faces[0].to_string()] {
            let sql = format!("SELECT count(*) AS n FROM erased_subjects WHERE {text} LIKE $1");
            assert_eq!(count(&db.read, &sql, [format!("%{secret}%").into()]).await.unwrap(), 0, "{secret}");
        }
        assert!(forget_journal(db).await.unwrap());
        // Another key knows nobody.
        let other = crate::testing::secret_key(2);
        assert_eq!(request::person(db, &other, (*collection, *ann), false).await.unwrap(), None);
    })
    .await;
}
