//! Runs on both databases: what is filled, who notices what, the switch, and what goes at the end.

use sea_orm::EntityTrait;

use super::comparison::{Disagreement, Labelled, Nearest, due, keep, kept, labelled, postpone, vectors, want};
use super::pending::{complete, give_up_ended, list_page, make_jobs, note, open_jobs};
use super::plan::{Progress, plan, progress};
use super::record::{Addition, differences, give_up, known, record};
use super::switch::{Lacking, Switched, activate, roll_back};
use super::*;
use crate::comparison::{ComparisonReport, Outcome as Said, PipelineFigures};
use crate::db::collections::CollectionSettings;
use crate::db::entity::job;
use crate::db::faces::{self, AssignedBy, FaceFilter, NewCrop, NewFace, Origin};
use crate::db::faces_by_hand::{self, Changed, FaceChange, PersonChange};
use crate::db::images::{self, ImageSource};
use crate::db::jobs::claims::{Wanted, claim};
use crate::db::jobs::settle::{self, Outcome};
use crate::db::persons;
use crate::embedding::Embedding;
use crate::face_index::contract::PIPELINES;
use crate::face_index::pgvector::create_partition;
use crate::ids::{ClaimId, FaceId, ImageId, JobId, PersonId};
use crate::job::{FaceBox, JobKind, JobState, PersonRef, Problem};

const OLD: Side<'_> = Side { pipeline: PIPELINES[0].0, revision: "d1" };
const NEW: Side<'_> = Side { pipeline: PIPELINES[1].0, revision: "d1" };
const NEW_DETECTOR: Side<'_> = Side { pipeline: PIPELINES[1].0, revision: "d2" };

struct Scene {
    db: Db,
    collection: CollectionId,
    person: PersonId,
}

async fn on_both(test: impl AsyncFn(Scene)) {
    let folder = tempfile::tempdir().unwrap();
    for db in crate::testing::databases(folder.path()).await {
        for (pipeline, dimension) in PIPELINES {
            models::put_name(&db, pipeline).await;
            if crate::db::is_postgres(&db.read) {
                create_partition(&db, pipeline, dimension).await.unwrap();
            }
        }
        let settings = CollectionSettings { match_cosine: Some(0.25), ..CollectionSettings::default() };
        let collection = collections::create(&db, "c", OLD.pipeline, &settings).await.unwrap().unwrap().id;
        let named = PersonRef::External { external_id: "ann".to_owned(), name: None, description: None };
        let person = persons::find_or_create(&db.write, collection, &named).await.unwrap().unwrap().id;
        test(Scene { db, collection, person }).await;
    }
}

fn vector(side: Side<'_>) -> Embedding {
    let dimension = PIPELINES.iter().find(|(name, _)| *name == side.pipeline).unwrap().1;
    Embedding::normalised((0..dimension).map(|n| if n == 0 { 1.0 } else { 0.25 }).collect()).unwrap()
}

fn seen(side: Side<'_>, collection: CollectionId, x: f32) -> NewFace {
    NewFace {
        face_box: FaceBox { x, y: 0.0, width: 10.0, height: 10.0 },
        landmarks: "[]".to_owned(),
        score: 0.9,
        quality: "{}".to_owned(),
        embedding: Some(vector(side)),
        crop: Some(NewCrop { object_key: crate::db::crops::new_key(collection), points: "[]".to_owned() }),
    }
}

impl Scene {
    /// An image that the old pipeline has indexed, with faces at these places.
    async fn index(&self, places: &[f32]) -> (ImageId, Vec<FaceId>) {
        self.index_by(OLD, places).await
    }

    async fn index_by(&self, side: Side<'_>, places: &[f32]) -> (ImageId, Vec<FaceId>) {
        let txn = self.db.begin().await.unwrap();
        let key = FaceId::new().to_string();
        let source = ImageSource { sha256: key.clone(), object_key: Some(key), ..ImageSource::default() };
        let image = images::find_or_create(&txn, self.collection, &source, [100, 10]).await.unwrap().id;
        images::record_analyses(&txn, side.revision, &[(image, places.len())]).await.unwrap();
        let origin =
            Origin { collection: self.collection, image, detector_revision: side.revision, pipeline: side.pipeline };
        let new: Vec<NewFace> = places.iter().map(|x| seen(side, self.collection, *x)).collect();
        let placed = faces::place(&txn, origin, &new).await.unwrap();
        note(&txn, self.collection, Some(side.pipeline), &[image]).await.unwrap();
        txn.commit().await.unwrap();
        (image, placed.into_iter().map(|face| face.id).collect())
    }

    async fn enroll(&self, face: FaceId) {
        faces::assign(&self.db.write, face, self.person, AssignedBy::Enrolled).await.unwrap();
    }

    async fn begin(&self, to: Side<'_>) -> Run {
        let new = NewRun {
            collection: self.collection,
            from: OLD,
            to,
            match_cosine: Some(0.5),
            tag: None,
            traceparent: None,
            idempotency: None,
        };
        match begin(&self.db, &Grant::everything(), new).await.unwrap() {
            Begun::New(run) => *run,
            other => panic!("{other:?}"),
        }
    }

    async fn run(&self, run: &Run) -> Run {
        reread(&self.db, run).await.unwrap().unwrap()
    }

    async fn list(&self, run: &Run) -> Run {
        assert!(!list_page(&self.db, run).await.unwrap(), "one page");
        self.run(run).await
    }

    /// Makes jobs and has each record what `made` makes of its images; returns how many there were.
    async fn work(&self, run: &Run, side: Side<'_>, made: impl Fn(ImageId) -> Addition) -> usize {
        let jobs = make_jobs(&self.db, run, side.pipeline, 100, 2).await.unwrap();
        for job in self.reembeds().await {
            self.record(&job, side, &made).await;
        }
        jobs
    }

    async fn record(&self, job: &job::Model, side: Side<'_>, made: impl Fn(ImageId) -> Addition) {
        let claim_id = ClaimId::new();
        let wanted = Wanted { id: claim_id, jobs: &[job.id], alone: 0, owner: "test" };
        assert!(claim(&self.db, wanted, std::time::Duration::from_secs(60)).await.unwrap().is_some());
        let added: Vec<_> = self.images_of(job.id).await.into_iter().map(|image| (image, made(image))).collect();
        let txn = self.db.begin().await.unwrap();
        record(&txn, (self.collection, job.id), side, &added).await.unwrap();
        let outcome = Outcome::Succeeded(serde_json::json!({}));
        assert!(settle::finish(&txn, claim_id, job.id, &outcome).await.unwrap());
        txn.commit().await.unwrap();
    }

    async fn reembeds(&self) -> Vec<job::Model> {
        let jobs = job::Entity::find().filter(job::Column::Kind.eq(JobKind::Reembed)).all(&self.db.read).await.unwrap();
        jobs.into_iter().filter(|job| job.state == JobState::Queued).collect()
    }

    async fn images_of(&self, job: JobId) -> Vec<ImageId> {
        let sql = "SELECT args FROM job_payloads WHERE job_id = $1";
        let row = self.db.read.query_one_raw(statement(&self.db.read, sql, [job.into()])).await.unwrap().unwrap();
        let args: String = row.try_get("", "args").unwrap();
        match serde_json::from_str(&args).unwrap() {
            crate::job::JobArgs::Reembed { images, .. } => images,
            other => panic!("{other:?}"),
        }
    }

    /// Vectors of a pipeline.
    async fn vectors(&self, side: Side<'_>) -> i64 {
        let sql = "SELECT count(*) AS n FROM embeddings WHERE pipeline = $1";
        crate::db::count(&self.db.read, sql, [side.pipeline.into()]).await.unwrap()
    }

    async fn shown(&self) -> Vec<(FaceId, String)> {
        let found = faces::list(&self.db, self.collection, FaceFilter::default(), None, 100).await.unwrap();
        let counted = collections::counts(&self.db, self.collection).await.unwrap();
        assert_eq!(usize::try_from(counted.faces).unwrap(), found.len(), "what is counted is what is shown");
        found.into_iter().map(|placed| (placed.face.id, placed.geometry.detector_revision)).collect()
    }

    async fn collection(&self) -> collection::Model {
        collections::find(&self.db.read, &Grant::everything(), self.collection).await.unwrap().unwrap()
    }

    /// The vectors of all the faces that are known of an image.
    async fn vectors_of(&self, images: &[ImageId], side: Side<'_>) -> std::collections::HashMap<ImageId, Addition> {
        let known = known(&self.db, self.collection, side.pipeline, images).await.unwrap();
        let of = |faces: &[super::record::KnownFace]| Addition {
            vectors: faces.iter().map(|face| (face.face.id, vector(side), None)).collect(),
            ..Addition::default()
        };
        known.into_iter().map(|image| (image.image.id, of(&image.faces))).collect()
    }
}

#[tokio::test]
async fn a_run_fills_what_is_missing() {
    on_both(async |scene| {
        let mut images = Vec::new();
        for places in [&[0.0, 20.0][..], &[0.0], &[]] {
            images.push(scene.index(places).await.0);
        }
        let wanted = plan(&scene.db, scene.collection, OLD, NEW, true).await.unwrap();
        assert_eq!((wanted.images, wanted.faces, wanted.embedded, wanted.detects), (3, 3, 0, false));
        assert_eq!((wanted.from_crops, wanted.from_images), (3, 0));
        let run = scene.begin(NEW).await;
        let again = NewRun {
            collection: scene.collection,
            from: OLD,
            to: NEW,
            match_cosine: None,
            tag: None,
            traceparent: None,
            idempotency: None,
        };
        assert_eq!(begin(&scene.db, &Grant::everything(), again.clone()).await.unwrap(), Begun::Open(run.id));
        let elsewhere = NewRun { from: NEW, to: OLD, ..again };
        assert_eq!(begin(&scene.db, &Grant::everything(), elsewhere).await.unwrap(), Begun::Changed);
        assert!(!complete(&scene.db, &run).await.unwrap(), "nothing is listed yet");
        assert_eq!(progress(&scene.db, &run).await.unwrap().missing, 3);
        let run = scene.list(&run).await;
        assert_eq!(progress(&scene.db, &run).await.unwrap().missing, 2, "an image without faces lacks none");
        assert!(!complete(&scene.db, &run).await.unwrap());
        let made = scene.vectors_of(&images, NEW).await;
        assert_eq!(scene.work(&run, NEW, |image| made[&image].clone()).await, 1, "two images a job");
        assert_eq!(open_jobs(&scene.db, scene.collection, NEW.pipeline).await.unwrap(), 0);
        assert_eq!((scene.vectors(OLD).await, scene.vectors(NEW).await), (3, 3));
        assert!(complete(&scene.db, &run).await.unwrap() && !complete(&scene.db, &run).await.unwrap());
        let run = scene.run(&run).await;
        assert_eq!(run.state, RunState::Ready);
        let done = Progress { images: 3, missing: 0, failed: [].into(), lost: 0, new: 0 };
        assert_eq!(progress(&scene.db, &run).await.unwrap(), done);
        assert_eq!(make_jobs(&scene.db, &run, NEW.pipeline, 100, 2).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_key_begins_one_run_whose_jobs_carry_the_requests_trace() {
    on_both(async |scene| {
        let (image, _) = scene.index(&[0.0]).await;
        let keyed = |key: &str, fingerprint: &str| NewRun {
            collection: scene.collection,
            from: OLD,
            to: NEW,
            match_cosine: None,
            tag: None,
            traceparent: Some("trace".to_owned()),
            idempotency: Some(Idempotency {
                route: "r".to_owned(),
                key: key.to_owned(),
                fingerprint: fingerprint.to_owned(),
                keep: std::time::Duration::from_secs(60),
            }),
        };
        let grant = Grant::everything();
        let Begun::New(run) = begin(&scene.db, &grant, keyed("k", "f")).await.unwrap() else { panic!("the first") };
        assert_eq!(begin(&scene.db, &grant, keyed("k", "f")).await.unwrap(), Begun::Existing(run.id));
        assert_eq!(begin(&scene.db, &grant, keyed("k", "g")).await.unwrap(), Begun::KeyReused);
        assert_eq!(begin(&scene.db, &grant, keyed("l", "f")).await.unwrap(), Begun::Open(run.id));
        let repeated = keyed("l", "f").idempotency.unwrap();
        assert_eq!(find_repeated(&scene.db.write, &repeated).await.unwrap(), None, "it stands for nothing");

        let run = scene.list(&run).await;
        assert_eq!(make_jobs(&scene.db, &run, NEW.pipeline, 10, 1).await.unwrap(), 1);
        let job = scene.reembeds().await.remove(0);
        assert_eq!((job.traceparent.as_deref(), scene.images_of(job.id).await), (Some("trace"), vec![image]));
    })
    .await;
}

fn figures(side: Side<'_>) -> PipelineFigures {
    PipelineFigures {
        pipeline: side.pipeline.to_owned(),
        genuine_pairs: 1,
        impostor_pairs: 0,
        tar: Vec::new(),
        rank_1: Some(1.0),
        match_cosine: None,
        outcomes: None,
    }
}

#[tokio::test]
async fn a_run_that_is_ready_is_compared_by_known_faces() {
    on_both(async |scene| {
        let (image, faces) = scene.index(&[0.0, 20.0, 40.0]).await;
        for face in &faces[..2] {
            scene.enroll(*face).await;
        }
        let run = scene.begin(NEW).await;
        let run = scene.list(&run).await;
        assert!(!want(&scene.db, run.id).await.unwrap(), "there is nothing to compare yet");
        assert_eq!(kept(&scene.db, run.id).await.unwrap(), None);
        assert!(labelled(&scene.db, &run, None, 10).await.unwrap().is_empty(), "none has both vectors");
        let made = scene.vectors_of(&[image], NEW).await;
        scene.work(&run, NEW, |image| made[&image].clone()).await;
        assert!(complete(&scene.db, &run).await.unwrap());
        let (found, began) = due(&scene.db).await.unwrap().expect("it is wanted by itself");
        assert_eq!(found.id, run.id);
        let all = labelled(&scene.db, &run, None, 10).await.unwrap();
        let of = |face: usize| Labelled { face_id: faces[face], person_id: scene.person };
        assert_eq!(all, [of(0), of(1)], "the third is nobody's");
        assert_eq!(labelled(&scene.db, &run, Some(faces[0]), 10).await.unwrap(), [of(1)]);
        let read = vectors(&scene.db, NEW.pipeline, &faces).await.unwrap();
        assert_eq!((read.len(), &read[&faces[0]]), (3, &vector(NEW)));

        let report = ComparisonReport {
            labelled_faces: 2,
            faces: 2,
            persons: 1,
            faces_with_mates: 2,
            from: figures(OLD),
            to: figures(NEW),
            moved: Vec::new(),
        };
        let said = |outcome, person_id| Nearest { outcome, score: 0.5, person_id };
        let gone = Some(PersonId::new());
        let disagreement = |face_id| Disagreement {
            face_id,
            from: said(Said::Right, Some(scene.person)),
            to: said(Said::Wrong, gone),
        };
        let found = [disagreement(faces[1]), disagreement(FaceId::new()), disagreement(faces[0])];
        keep(&scene.db, run.id, began, &report, &found).await.unwrap();
        keep(&scene.db, run.id, began, &report, &found).await.unwrap();
        assert!(due(&scene.db).await.unwrap().is_none());
        let comparison = kept(&scene.db, run.id).await.unwrap().unwrap();
        assert_eq!((comparison.made_at, comparison.report), (Some(began), Some(report)));
        let shown: Vec<FaceId> = comparison.disagreements.iter().map(|(one, _)| one.face_id).collect();
        assert_eq!(shown, [faces[1], faces[0]], "one face is gone");
        let (first, person) = &comparison.disagreements[0];
        assert_eq!((person, &first.from), (&scene.person, &said(Said::Right, Some(scene.person))));
        assert_eq!(first.to, said(Said::Wrong, None), "and so is that person");

        // What is deleted of somebody is gone from here too.
        persons::delete(&scene.db, scene.collection, scene.person).await.unwrap();
        assert!(kept(&scene.db, run.id).await.unwrap().unwrap().disagreements.is_empty());
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        assert!(want(&scene.db, run.id).await.unwrap());
        assert!(due(&scene.db).await.unwrap().is_some());
        postpone(&scene.db, run.id).await.unwrap();
        assert!(due(&scene.db).await.unwrap().is_some(), "it is tried again");
        let sql = "UPDATE collections SET erased_at = 1 WHERE id = $1";
        execute(&scene.db.write, sql, [scene.collection.into()]).await.unwrap();
        assert!(due(&scene.db).await.unwrap().is_none());
    })
    .await;
}

#[tokio::test]
async fn what_comes_meanwhile_is_noted_on_both_sides() {
    on_both(async |scene| {
        let run = scene.begin(NEW).await;
        let run = scene.list(&run).await;
        assert!(complete(&scene.db, &run).await.unwrap(), "an empty collection is complete");
        let (image, faces) = scene.index(&[0.0]).await;
        scene.enroll(faces[0]).await;
        assert_eq!(activate(&scene.db, run.id, Lacking::Refuse).await.unwrap(), Switched::Lacking(1));
        let made = scene.vectors_of(&[image], NEW).await;
        // What is recorded while a job is at the image is not taken for done by it.
        assert_eq!(make_jobs(&scene.db, &run, NEW.pipeline, 100, 2).await.unwrap(), 1);
        let job = scene.reembeds().await.remove(0);
        note(&scene.db.write, scene.collection, Some(OLD.pipeline), &[image]).await.unwrap();
        scene.record(&job, NEW, |image| made[&image].clone()).await;
        assert_eq!(progress(&scene.db, &run).await.unwrap().missing, 1);
        assert_eq!(scene.work(&run, NEW, |image| made[&image].clone()).await, 1);
        assert_eq!((progress(&scene.db, &run).await.unwrap().missing, scene.vectors(NEW).await), (0, 1));
        let Switched::Done(run) = activate(&scene.db, run.id, Lacking::Refuse).await.unwrap() else { panic!("ready") };
        assert_eq!((run.state, run.match_cosine), (RunState::Active, Some(0.25)));
        let gone_over = scene.collection().await;
        assert_eq!(
            (gone_over.pipeline.as_str(), gone_over.settings().unwrap().match_cosine),
            (NEW.pipeline, Some(0.5))
        );
        assert!(gone_over.shown_revision.is_none() && gone_over.hidden_revision.is_none(), "both have one detector");
        assert_eq!(
            activate(&scene.db, run.id, Lacking::Refuse).await.unwrap(),
            Switched::NotNow(Some(RunState::Active))
        );
        // The other way round: what the new pipeline records lacks the old one's vector.
        let txn = scene.db.begin().await.unwrap();
        note(&txn, scene.collection, Some(NEW.pipeline), &[image]).await.unwrap();
        txn.commit().await.unwrap();
        assert_eq!(make_jobs(&scene.db, &run, OLD.pipeline, 100, 1).await.unwrap(), 1);
        let Switched::Done(run) = roll_back(&scene.db, run.id, Lacking::Refuse).await.unwrap() else {
            panic!("active")
        };
        assert_eq!((run.state, run.match_cosine), (RunState::Ready, Some(0.5)));
        let back = scene.collection().await;
        assert_eq!((back.pipeline.as_str(), back.settings().unwrap().match_cosine), (OLD.pipeline, Some(0.25)));
    })
    .await;
}

#[tokio::test]
async fn another_detector_keeps_ids_and_shows_its_own_places() {
    on_both(async |scene| {
        let (image, old) = scene.index(&[0.0, 20.0, 40.0]).await;
        scene.enroll(old[1]).await;
        let run = scene.begin(NEW_DETECTOR).await;
        let run = scene.list(&run).await;
        let known = known(&scene.db, scene.collection, NEW.pipeline, &[image]).await.unwrap();
        assert!(known[0].lacks_detection("d2") && !known[0].lacks_detection("d1"));
        assert!(known[0].faces[1].is_labelled() && !known[0].faces[0].is_labelled());
        // The first is found again, nearly at its place; the other two are not, and one is new.
        let (first, new) = (seen(NEW_DETECTOR, scene.collection, 1.0), seen(NEW_DETECTOR, scene.collection, 70.0));
        let kept = NewCrop { object_key: crate::db::crops::new_key(scene.collection), points: "[]".to_owned() };
        let addition = Addition {
            detected: Some(vec![first, new]),
            vectors: vec![(old[1], vector(NEW), Some(("d1".to_owned(), kept.clone())))],
            problem: None,
        };
        scene.work(&run, NEW_DETECTOR, |_| addition.clone()).await;
        assert!(complete(&scene.db, &run).await.unwrap());
        let run = scene.run(&run).await;
        let told = differences(&scene.db, &run, None, None, 10).await.unwrap();
        let of = |kind: &str| told.iter().filter(|d| d.difference == kind).map(|d| d.face_id).collect::<Vec<_>>();
        assert_eq!(of("lost"), old[1..].to_vec());
        let new = of("new");
        assert_eq!(new.len(), 1);
        let lost = differences(&scene.db, &run, Some("lost"), Some(old[1]), 10).await.unwrap();
        assert_eq!(lost.iter().map(|d| d.face_id).collect::<Vec<_>>(), old[2..].to_vec());
        assert_eq!(
            (progress(&scene.db, &run).await.unwrap().lost, progress(&scene.db, &run).await.unwrap().new),
            (2, 1)
        );
        let by = |faces: &[FaceId], revision: &str| faces.iter().map(|f| (*f, revision.to_owned())).collect::<Vec<_>>();
        assert_eq!(scene.shown().await, by(&old, "d1"), "nothing changes before the switch");
        let Switched::Done(run) = activate(&scene.db, run.id, Lacking::Refuse).await.unwrap() else { panic!("ready") };
        let mut after = [by(&old[..1], "d2"), by(&old[1..2], "d1"), by(&new, "d2")].concat();
        assert_eq!(scene.shown().await, after, "a named face stays where it was");
        let Switched::Done(run) = roll_back(&scene.db, run.id, Lacking::Refuse).await.unwrap() else {
            panic!("active")
        };
        assert_eq!(scene.shown().await, by(&old, "d1"));
        let Switched::Done(run) = activate(&scene.db, run.id, Lacking::Refuse).await.unwrap() else { panic!("ready") };
        assert!(change(&scene.db, &run, Wish::Prune { after_s: 0, accept_lacking: false }).await.unwrap());
        let run = scene.run(&run).await;
        assert!(prune::begin_due(&scene.db, &run).await.unwrap());
        let run = scene.run(&run).await;
        scene.delete_all(&run).await;
        let ended = progress(&scene.db, &scene.run(&run).await).await.unwrap();
        assert_eq!((ended.images, ended.missing, ended.lost, ended.new), (1, 0, 2, 1), "as it was, though a face went");
        assert_eq!((scene.run(&run).await.state, scene.collection().await.shown_revision), (RunState::Pruned, None));
        assert_eq!(scene.shown().await, after);
        assert_eq!((scene.vectors(OLD).await, scene.vectors(NEW).await), (0, 3));
        after.retain(|(face, _)| *face != old[1]);
        let crops = crate::db::crops::of_faces(&scene.db.read, &[old[0], old[1], old[2], new[0]]).await.unwrap();
        let mut of_crops: Vec<_> = crops.into_iter().map(|c| (c.face_id, c.detector_revision)).collect();
        of_crops.sort_unstable();
        assert_eq!(of_crops, [by(&old[..1], "d2"), by(&old[1..2], "d1"), by(&new, "d2")].concat());
        // Of four crops of the old detector one is left, and the one that came twice was not taken.
        let below = async |prefix: &str| crate::db::uploads::orphaned_objects(&scene.db, prefix, 100).await.unwrap();
        let orphans = below(&format!("collections/{}/", scene.collection)).await;
        assert!(below("collections/none/").await.is_empty());
        assert!(orphans.len() == 3 && orphans.contains(&kept.object_key), "{orphans:?}");
    })
    .await;
}

impl Scene {
    async fn delete_all(&self, run: &Run) {
        for _ in 0..20 {
            if prune::slice(&self.db, run).await.unwrap().is_last {
                return;
            }
        }
        panic!("there is no end of it");
    }
}

#[tokio::test]
async fn a_cancelled_run_leaves_nothing() {
    on_both(async |scene| {
        let (image, old) = scene.index(&[0.0, 20.0]).await;
        let (waiting, _) = scene.index(&[0.0]).await;
        let begun = scene.begin(NEW_DETECTOR).await;
        let run = scene.list(&begun).await;
        assert_eq!(make_jobs(&scene.db, &run, NEW.pipeline, 1, 1).await.unwrap(), 1);
        let found = [1.0, 70.0].map(|x| seen(NEW_DETECTOR, scene.collection, x)).to_vec();
        let addition = Addition { detected: Some(found), ..Addition::default() };
        scene.record(&scene.reembeds().await[0], NEW_DETECTOR, |_| addition.clone()).await;
        assert_eq!(make_jobs(&scene.db, &run, NEW.pipeline, 1, 1).await.unwrap(), 1);
        let job = scene.reembeds().await.remove(0);
        assert_eq!(scene.images_of(job.id).await, [waiting]);
        let before = progress(&scene.db, &run).await.unwrap();
        assert_eq!((before.images, before.missing, before.new), (2, 1, 1));
        // By somebody who read the run before its images were listed.
        assert!(change(&scene.db, &begun, Wish::Cancel { accept_lacking: false }).await.unwrap());
        let run = scene.run(&run).await;
        assert!(!change(&scene.db, &run, Wish::Pause).await.unwrap(), "it is over");
        // A job that was at work records nothing any more.
        let txn = scene.db.begin().await.unwrap();
        let late = [(waiting, addition.clone())];
        assert_eq!(record(&txn, (scene.collection, job.id), NEW_DETECTOR, &late).await.unwrap(), 0);
        txn.commit().await.unwrap();
        let slice = prune::slice(&scene.db, &run).await.unwrap();
        assert_eq!(slice.cancelled, [job.id]);
        scene.delete_all(&run).await;
        assert_eq!((scene.run(&run).await.state, scene.vectors(NEW).await), (RunState::Cancelled, 0));
        assert_eq!(progress(&scene.db, &scene.run(&run).await).await.unwrap(), before, "its last figures stay");
        assert_eq!(scene.shown().await.len(), 3);
        let all = crate::db::count(&scene.db.read, "SELECT count(*) AS n FROM faces", []).await.unwrap();
        assert_eq!(all, 3, "the face that only the new detector found is gone");
        let left = known(&scene.db, scene.collection, NEW.pipeline, &[image]).await.unwrap();
        assert_eq!(left[0].analysed_by, ["d1".to_owned()].into());
        assert!(left[0].faces.iter().all(|face| face.seen.len() == 1 && old.contains(&face.face.id)));
        scene.begin(NEW).await;
    })
    .await;
}

#[tokio::test]
async fn jobs_have_the_tag_that_the_run_has_by_now() {
    on_both(async |scene| {
        scene.index(&[0.0]).await;
        scene.index(&[0.0]).await;
        let run = scene.begin(NEW).await;
        let tag = async |tag: Option<&str>| {
            let sql = "UPDATE reprocess_runs SET tag = $2 WHERE id = $1";
            execute(&scene.db.write, sql, [run.id.into(), tag.into()]).await.unwrap();
        };
        tag(Some("ann")).await;
        let run = scene.list(&run).await;
        assert_eq!(run.tag.as_deref(), Some("ann"));
        assert_eq!(make_jobs(&scene.db, &run, NEW.pipeline, 1, 1).await.unwrap(), 1);
        tag(None).await;
        assert_eq!(make_jobs(&scene.db, &run, NEW.pipeline, 1, 1).await.unwrap(), 1);
        let mut tags: Vec<_> = scene.reembeds().await.into_iter().map(|job| job.tag).collect();
        tags.sort();
        assert_eq!(tags, [None, Some("ann".to_owned())]);
    })
    .await;
}

#[tokio::test]
async fn what_fails_is_named_and_tried_again() {
    on_both(async |scene| {
        let (image, _) = scene.index(&[0.0]).await;
        let (other, _) = scene.index(&[0.0]).await;
        let run = scene.begin(NEW).await;
        let run = scene.list(&run).await;
        assert_eq!(make_jobs(&scene.db, &run, NEW.pipeline, 100, 1).await.unwrap(), 2);
        let jobs = scene.reembeds().await;
        assert_eq!(give_up_ended(&scene.db, &run).await.unwrap(), 0);
        // One job says what is wrong with its image, the other one fails as a whole.
        let of = async |image: ImageId| {
            for job in &jobs {
                if scene.images_of(job.id).await == [image] {
                    return job.id;
                }
            }
            panic!("no job is at {image}")
        };
        let (one, two) = (of(image).await, of(other).await);
        let known = known(&scene.db, scene.collection, NEW.pipeline, &[image]).await.unwrap();
        let vectors = vec![(known[0].faces[0].face.id, vector(NEW), None)];
        let addition = Addition { vectors, problem: Some("source_gone".to_owned()), ..Addition::default() };
        let claim_id = ClaimId::new();
        let wanted = Wanted { id: claim_id, jobs: &[one, two], alone: 0, owner: "test" };
        claim(&scene.db, wanted, std::time::Duration::from_secs(60)).await.unwrap().unwrap();
        let txn = scene.db.begin().await.unwrap();
        record(&txn, (scene.collection, one), NEW, &[(image, addition)]).await.unwrap();
        let failed = Outcome::Failed(Problem::new("poison", "it took the process down"));
        settle::finish(&txn, claim_id, two, &failed).await.unwrap();
        settle::finish(&txn, claim_id, one, &Outcome::Succeeded(serde_json::json!({}))).await.unwrap();
        txn.commit().await.unwrap();
        assert_eq!(give_up_ended(&scene.db, &run).await.unwrap(), 1);
        assert_eq!(scene.vectors(NEW).await, 1, "what could be made of the image stays");
        let failed = progress(&scene.db, &run).await.unwrap().failed;
        assert_eq!(failed, [("poison".to_owned(), 1), ("source_gone".to_owned(), 1)].into());
        assert!(complete(&scene.db, &run).await.unwrap(), "nothing is left to try");
        assert!(change(&scene.db, &run, Wish::Retry).await.unwrap());
        let made = scene.vectors_of(&[image, other], NEW).await;
        scene.work(&run, NEW, |image| made[&image].clone()).await;
        assert_eq!((progress(&scene.db, &run).await.unwrap().missing, scene.vectors(NEW).await), (0, 2));
    })
    .await;
}

#[tokio::test]
async fn nothing_goes_that_only_the_other_side_has() {
    on_both(async |scene| {
        let run = scene.begin(NEW).await;
        let run = scene.list(&run).await;
        assert!(complete(&scene.db, &run).await.unwrap());
        let Switched::Done(run) = activate(&scene.db, run.id, Lacking::Refuse).await.unwrap() else { panic!("ready") };
        // A job of the old pipeline ends after the switch: only the old pipeline has a vector of its face.
        let (image, faces) = scene.index(&[0.0]).await;
        assert!(change(&scene.db, &run, Wish::Prune { after_s: 0, accept_lacking: false }).await.unwrap());
        let run = scene.run(&run).await;
        assert!(!prune::begin_due(&scene.db, &run).await.unwrap(), "it lacks the new one");
        let made = scene.vectors_of(&[image], NEW).await;
        assert_eq!(make_jobs(&scene.db, &run, NEW.pipeline, 10, 1).await.unwrap(), 1);
        let job = scene.reembeds().await.remove(0);
        give_up(&scene.db.write, (scene.collection, job.id), NEW.pipeline, &[(image, "source_gone".to_owned())])
            .await
            .unwrap();
        assert!(!prune::begin_due(&scene.db, &run).await.unwrap(), "it was given up, and nobody accepted that");
        assert!(prune::is_lacking(&scene.db, &run, run.to()).await.unwrap());
        assert!(change(&scene.db, &run, Wish::Retry).await.unwrap());
        scene.record(&job, NEW, |_| Addition::default()).await;
        assert_eq!(scene.work(&run, NEW, |image| made[&image].clone()).await, 1);
        assert!(prune::begin_due(&scene.db, &run).await.unwrap());
        let run = scene.run(&run).await;
        // Whoever comes even later is kept up too.
        let (late, _) = scene.index(&[0.0]).await;
        assert!(prune::slice(&scene.db, &run).await.unwrap().waits);
        let made = scene.vectors_of(&[late], NEW).await;
        assert_eq!(scene.work(&run, NEW, |image| made[&image].clone()).await, 1);
        scene.delete_all(&run).await;
        assert_eq!((scene.vectors(OLD).await, scene.vectors(NEW).await), (0, 2));
        assert_eq!(scene.shown().await.first().map(|(face, _)| *face), Some(faces[0]));
    })
    .await;
}

#[tokio::test]
async fn a_cancel_keeps_what_was_made_while_the_new_side_was_active() {
    on_both(async |scene| {
        let run = scene.begin(NEW).await;
        let run = scene.list(&run).await;
        assert!(complete(&scene.db, &run).await.unwrap());
        let Switched::Done(run) = activate(&scene.db, run.id, Lacking::Refuse).await.unwrap() else { panic!("ready") };
        let image = scene.index_by(NEW, &[0.0]).await.0;
        let Switched::Done(run) = roll_back(&scene.db, run.id, Lacking::Refuse).await.unwrap() else {
            panic!("active")
        };
        assert!(change(&scene.db, &run, Wish::Cancel { accept_lacking: false }).await.unwrap());
        let run = scene.run(&run).await;
        assert!(prune::slice(&scene.db, &run).await.unwrap().waits, "the old pipeline lacks a vector");
        let made = scene.vectors_of(&[image], OLD).await;
        assert_eq!(scene.work(&run, OLD, |image| made[&image].clone()).await, 1);
        scene.delete_all(&run).await;
        assert_eq!((scene.vectors(OLD).await, scene.vectors(NEW).await), (1, 0));
    })
    .await;
}

#[tokio::test]
async fn older_revisions_of_a_detector_count_with_it() {
    on_both(async |scene| {
        // Two images of an earlier version of the program; one was indexed again since.
        let (image, old) = scene.index(&[0.0]).await;
        let older = "UPDATE face_geometry SET detector_revision = 'd0'";
        execute(&scene.db.write, older, []).await.unwrap();
        execute(&scene.db.write, "UPDATE image_analyses SET detector_revision = 'd0'", []).await.unwrap();
        execute(&scene.db.write, "UPDATE crops SET detector_revision = 'd0'", []).await.unwrap();
        let run = scene.begin(NEW).await;
        let run = scene.list(&run).await;
        let made = scene.vectors_of(&[image], NEW).await;
        scene.work(&run, NEW, |image| made[&image].clone()).await;
        assert!(complete(&scene.db, &run).await.unwrap());
        assert!(change(&scene.db, &run, Wish::Cancel { accept_lacking: false }).await.unwrap());
        scene.delete_all(&scene.run(&run).await).await;
        // With another detector they are shown until the switch, and go with the old one's.
        let run = scene.begin(NEW_DETECTOR).await;
        assert_eq!(scene.shown().await, [(old[0], "d0".to_owned())]);
        let run = scene.list(&run).await;
        let found = vec![seen(NEW_DETECTOR, scene.collection, 1.0), seen(NEW_DETECTOR, scene.collection, 70.0)];
        let addition = Addition { detected: Some(found), ..Addition::default() };
        scene.work(&run, NEW_DETECTOR, |_| addition.clone()).await;
        assert_eq!(scene.shown().await, [(old[0], "d0".to_owned())]);
        assert!(complete(&scene.db, &run).await.unwrap());
        let Switched::Done(run) = activate(&scene.db, run.id, Lacking::Refuse).await.unwrap() else { panic!("ready") };
        let shown = scene.shown().await;
        assert_eq!((shown.len(), &shown[0]), (2, &(old[0], "d2".to_owned())));
        assert!(change(&scene.db, &run, Wish::Prune { after_s: 0, accept_lacking: false }).await.unwrap());
        let run = scene.run(&run).await;
        assert!(prune::begin_due(&scene.db, &run).await.unwrap());
        scene.delete_all(&scene.run(&run).await).await;
        let left = known(&scene.db, scene.collection, NEW.pipeline, &[image]).await.unwrap();
        assert_eq!(left[0].analysed_by, ["d2".to_owned()].into());
        assert!(left[0].faces.iter().all(|face| face.seen.len() == 1 && face.is_seen_by("d2")));
        assert_eq!(scene.shown().await, shown);
    })
    .await;
}

#[tokio::test]
async fn a_run_that_is_being_cancelled_is_not_activated() {
    on_both(async |scene| {
        let (db, collection) = (&scene.db, scene.collection);
        let run = scene.begin(NEW).await;
        let run = scene.list(&run).await;
        assert!(complete(db, &run).await.unwrap());
        let txn = db.begin().await.unwrap();
        let sql = "UPDATE reprocess_runs SET state = 'cancelling' WHERE id = $1 AND state = 'ready'";
        assert_eq!(execute(&txn, sql, [run.id.into()]).await.unwrap(), 1);
        let commit = async {
            // By then the activation has read the run, and waits for it.
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            txn.commit().await.unwrap();
        };
        let (activated, ()) = tokio::join!(activate(db, run.id, Lacking::Refuse), commit);
        assert_eq!(activated.unwrap(), Switched::NotNow(Some(RunState::Cancelling)));
        let left = collections::find(&db.read, &Grant::everything(), collection).await.unwrap().unwrap();
        assert_eq!(left.pipeline, OLD.pipeline);
        assert_eq!(left.settings().unwrap().match_cosine, Some(0.25));
    })
    .await;
}

#[tokio::test]
async fn a_face_that_is_named_after_its_image_was_done_gets_the_other_vector() {
    on_both(async |scene| {
        let (image, faces) = scene.index(&[0.0, 20.0]).await;
        let run = scene.begin(NEW_DETECTOR).await;
        let run = scene.list(&run).await;
        // Of the two the new detector finds one, and nobody has named the other.
        let found = vec![seen(NEW_DETECTOR, scene.collection, 1.0)];
        let addition = Addition { detected: Some(found), ..Addition::default() };
        assert_eq!(scene.work(&run, NEW_DETECTOR, |_| addition.clone()).await, 1);
        assert!(complete(&scene.db, &run).await.unwrap());
        let name = async |face| {
            let change = FaceChange { person: PersonChange::Assign(scene.person), ..FaceChange::default() };
            let changed = faces_by_hand::change(&scene.db, scene.collection, face, change).await.unwrap();
            assert!(matches!(changed, Changed::Done(_)), "{changed:?}");
        };
        name(faces[0]).await;
        assert_eq!(make_jobs(&scene.db, &run, NEW.pipeline, 10, 1).await.unwrap(), 0, "it has both");
        let Switched::Done(run) = activate(&scene.db, run.id, Lacking::Refuse).await.unwrap() else { panic!("ready") };
        let Switched::Done(run) = roll_back(&scene.db, run.id, Lacking::Refuse).await.unwrap() else {
            panic!("active")
        };
        name(faces[1]).await;
        assert_eq!(activate(&scene.db, run.id, Lacking::Refuse).await.unwrap(), Switched::Lacking(1));
        let Switched::Done(run) = activate(&scene.db, run.id, Lacking::Accept).await.unwrap() else { panic!("ready") };
        assert!(prune::is_lacking(&scene.db, &run, run.to()).await.unwrap());
        assert!(change(&scene.db, &run, Wish::Prune { after_s: 0, accept_lacking: false }).await.unwrap());
        let run = scene.run(&run).await;
        assert!(!prune::begin_due(&scene.db, &run).await.unwrap());
        let vectors = vec![(faces[1], vector(NEW_DETECTOR), None)];
        let made = Addition { vectors, ..Addition::default() };
        let jobs = scene.work(&run, NEW_DETECTOR, |of| {
            assert_eq!(of, image);
            made.clone()
        });
        assert_eq!(jobs.await, 1);
        assert!(!prune::is_lacking(&scene.db, &run, run.to()).await.unwrap());
        assert!(prune::begin_due(&scene.db, &run).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn a_prune_does_not_wait_for_jobs_that_it_cancels() {
    on_both(async |scene| {
        let run = scene.begin(NEW).await;
        let run = scene.list(&run).await;
        assert!(complete(&scene.db, &run).await.unwrap());
        let Switched::Done(run) = activate(&scene.db, run.id, Lacking::Refuse).await.unwrap() else { panic!("ready") };
        scene.index_by(NEW, &[0.0]).await;
        assert_eq!(make_jobs(&scene.db, &run, OLD.pipeline, 10, 1).await.unwrap(), 1);
        let job = scene.reembeds().await.remove(0);
        assert!(change(&scene.db, &run, Wish::Prune { after_s: 0, accept_lacking: false }).await.unwrap());
        let run = scene.run(&run).await;
        assert!(prune::begin_due(&scene.db, &run).await.unwrap());
        let run = scene.run(&run).await;
        assert_eq!(prune::slice(&scene.db, &run).await.unwrap().cancelled, [job.id]);
        scene.delete_all(&run).await;
        assert_eq!((scene.vectors(OLD).await, scene.vectors(NEW).await), (0, 1));
    })
    .await;
}

#[tokio::test]
async fn a_cancel_loses_nothing_that_only_the_new_side_has() {
    on_both(async |scene| {
        let (db, collection) = (&scene.db, scene.collection);
        let run = scene.begin(NEW).await;
        let run = scene.list(&run).await;
        assert!(complete(db, &run).await.unwrap());
        let Switched::Done(run) = activate(db, run.id, Lacking::Refuse).await.unwrap() else { panic!("ready") };
        let (image, faces) = scene.index_by(NEW, &[0.0]).await;
        scene.enroll(faces[0]).await;
        let Switched::Done(run) = roll_back(db, run.id, Lacking::Accept).await.unwrap() else { panic!("active") };
        let cancel = |accept_lacking| Wish::Cancel { accept_lacking };
        assert!(prune::is_lacking(db, &run, run.from()).await.unwrap());
        assert!(!change(db, &run, cancel(false)).await.unwrap(), "only the new pipeline has a vector of it");
        let made = scene.vectors_of(&[image], OLD).await;
        assert_eq!(scene.work(&run, OLD, |image| made[&image].clone()).await, 1);
        // Another one ends while the run is being cancelled, and its picture is gone.
        assert!(change(db, &run, cancel(false)).await.unwrap());
        let run = scene.run(&run).await;
        let (late, _) = scene.index_by(NEW, &[0.0]).await;
        assert_eq!(make_jobs(db, &run, OLD.pipeline, 10, 1).await.unwrap(), 1);
        let job = scene.reembeds().await.remove(0);
        let gone = [(late, "source_gone".to_owned())];
        give_up(&db.write, (collection, job.id), OLD.pipeline, &gone).await.unwrap();
        scene.record(&job, OLD, |_| Addition::default()).await;
        assert!(prune::slice(db, &run).await.unwrap().waits);
        assert!(prune::stands_still(db, &run).await.unwrap());
        assert_eq!(scene.vectors(NEW).await, 2);
        // It is tried again, and fails again.
        assert!(change(db, &run, Wish::Retry).await.unwrap());
        assert_eq!(make_jobs(db, &run, OLD.pipeline, 10, 1).await.unwrap(), 1);
        let job = scene.reembeds().await.remove(0);
        give_up(&db.write, (collection, job.id), OLD.pipeline, &gone).await.unwrap();
        scene.record(&job, OLD, |_| Addition::default()).await;
        assert!(!change(db, &run, cancel(false)).await.unwrap());
        assert!(change(db, &run, cancel(true)).await.unwrap());
        let run = scene.run(&run).await;
        scene.delete_all(&run).await;
        assert_eq!((scene.run(&run).await.state, scene.vectors(OLD).await), (RunState::Cancelled, 1));
    })
    .await;
}

#[tokio::test]
async fn what_is_noted_behind_the_last_images_is_done_before_the_end() {
    on_both(async |scene| {
        let (image, faces) = scene.index(&[0.0]).await;
        let run = scene.begin(NEW).await;
        let run = scene.list(&run).await;
        let made = scene.vectors_of(&[image], NEW).await;
        assert_eq!(scene.work(&run, NEW, |image| made[&image].clone()).await, 1);
        assert!(complete(&scene.db, &run).await.unwrap());
        let Switched::Done(run) = activate(&scene.db, run.id, Lacking::Refuse).await.unwrap() else { panic!("ready") };
        assert!(change(&scene.db, &run, Wish::Prune { after_s: 0, accept_lacking: false }).await.unwrap());
        assert!(prune::begin_due(&scene.db, &scene.run(&run).await).await.unwrap());
        let run = scene.run(&run).await;
        // The vectors, and then the images, of which this is the last.
        for _ in 0..2 {
            let slice = prune::slice(&scene.db, &run).await.unwrap();
            assert!(!slice.is_last && !slice.waits);
        }
        let sql = "DELETE FROM embeddings WHERE face_id = $1";
        execute(&scene.db.write, sql, [faces[0].into()]).await.unwrap();
        let txn = scene.db.begin().await.unwrap();
        note(&txn, scene.collection, None, &[image]).await.unwrap();
        let commit = async {
            // By then nothing else keeps the run from its end.
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            txn.commit().await.unwrap();
        };
        let (slice, ()) = tokio::join!(prune::slice(&scene.db, &run), commit);
        assert!(slice.unwrap().waits);
        assert_eq!(scene.work(&run, NEW, |image| made[&image].clone()).await, 1);
        scene.delete_all(&run).await;
        assert_eq!((scene.run(&run).await.state, scene.vectors(NEW).await), (RunState::Pruned, 1));
    })
    .await;
}

#[tokio::test]
async fn pictures_that_are_read_have_jobs_of_their_own() {
    on_both(async |scene| {
        let mut images = Vec::new();
        for _ in 0..4 {
            images.push(scene.index(&[0.0]).await);
        }
        let without = [&images[1], &images[2]];
        for (_, faces) in without {
            let sql = "DELETE FROM crops WHERE face_id = $1";
            execute(&scene.db.write, sql, [faces[0].into()]).await.unwrap();
        }
        let run = scene.begin(NEW).await;
        let run = scene.list(&run).await;
        assert_eq!(make_jobs(&scene.db, &run, NEW.pipeline, 8, 4).await.unwrap(), 2, "no more than there is room for");
        assert_eq!(make_jobs(&scene.db, &run, NEW.pipeline, 8, 4).await.unwrap(), 1);
        let mut made = Vec::new();
        for job in scene.reembeds().await {
            let mut of_job = scene.images_of(job.id).await;
            of_job.sort_unstable();
            made.push(of_job);
        }
        made.sort();
        let mut wanted = vec![vec![images[0].0, images[3].0], vec![images[1].0], vec![images[2].0]];
        wanted[0].sort_unstable();
        wanted.sort();
        assert_eq!(made, wanted);
    })
    .await;
}

#[tokio::test]
async fn each_pipeline_has_its_threshold_whichever_the_collection_goes_by() {
    on_both(async |scene| {
        let run = scene.begin(NEW).await;
        let run = scene.list(&run).await;
        assert!(complete(&scene.db, &run).await.unwrap());
        let both = async || {
            let cosines = match_cosines(&scene.db, scene.collection).await.unwrap().unwrap();
            [cosines.of(OLD.pipeline), cosines.of(NEW.pipeline)]
        };
        assert_eq!(both().await, [Some(0.25), Some(0.5)]);
        let Switched::Done(run) = activate(&scene.db, run.id, Lacking::Refuse).await.unwrap() else { panic!("ready") };
        assert_eq!(both().await, [Some(0.25), Some(0.5)]);
        roll_back(&scene.db, run.id, Lacking::Refuse).await.unwrap();
        assert_eq!(both().await, [Some(0.25), Some(0.5)]);
        assert_eq!(match_cosines(&scene.db, CollectionId::new()).await.unwrap(), None);
    })
    .await;
}
