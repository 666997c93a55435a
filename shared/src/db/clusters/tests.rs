//! Clusters on both databases: what triggers enqueue, what a pass writes, and what users change and undo.

use std::collections::BTreeMap;

use super::edits::{Edited, Undone};
use super::pass::{Plan, record, version};
use super::*;
use crate::db::clusters::queue::{StoredFace, Waiting};
use crate::db::collections::{self, CollectionSettings};
use crate::db::faces::{AssignedBy, NewFace, Origin};
use crate::db::faces_by_hand::{self, FaceChange, PersonChange};
use crate::db::images::{self, ImageSource};
use crate::db::{execute, persons, rejections};
use crate::embedding::Embedding;
use crate::face_index::contract::PIPELINES;
use crate::face_index::pgvector::create_partition;
use crate::job::{FaceBox, PersonRef};

/// A collection with six unknown faces, each on an image of its own.
struct Scene {
    db: Db,
    collection: CollectionId,
    pipeline: &'static str,
    faces: Vec<FaceId>,
}

/// The cluster of each placed face by its number, and the number of each face's person, as letters.
type Picture = (BTreeMap<usize, usize>, String);

async fn on_both(test: impl AsyncFn(&Scene)) {
    let folder = tempfile::tempdir().unwrap();
    for db in crate::testing::databases(folder.path()).await {
        let (pipeline, dimension) = PIPELINES[0];
        if crate::db::is_postgres(&db.read) {
            create_partition(&db, pipeline, dimension).await.unwrap();
        }
        let made = collections::create(&db, "c", pipeline, &CollectionSettings::default()).await.unwrap();
        let mut scene = Scene { db, collection: made.unwrap().id, pipeline, faces: Vec::new() };
        for n in 0..6 {
            scene.add(n).await;
        }
        test(&scene).await;
    }
}

impl Scene {
    async fn add(&mut self, n: usize) {
        let txn = self.db.begin().await.unwrap();
        let source =
            ImageSource { sha256: format!("s{n}"), object_key: Some(format!("k{n}")), ..ImageSource::default() };
        let image = images::find_or_create(&txn, self.collection, &source, [10, 10]).await.unwrap().id;
        let origin = Origin { collection: self.collection, image, detector_revision: "r", pipeline: self.pipeline };
        let new = NewFace {
            face_box: FaceBox { x: 0.0, y: 0.0, width: 5.0 + n as f32, height: 9.0 },
            landmarks: "[]".to_owned(),
            score: 0.9,
            quality: r#"{"usable": true}"#.to_owned(),
            embedding: Some(Embedding::normalised(vec![1.0, n as f32]).unwrap()),
            crop: None,
        };
        self.faces.push(crate::db::faces::place(&txn, origin, &[new]).await.unwrap()[0].id);
        txn.commit().await.unwrap();
    }

    async fn person(&self, external_id: &str) -> PersonId {
        let person = PersonRef::External { external_id: external_id.to_owned(), name: None, description: None };
        persons::find_or_create(&self.db.write, self.collection, &person).await.unwrap().unwrap().id
    }

    async fn waiting(&self) -> Vec<Waiting> {
        queue::waiting(&self.db, self.collection, 100).await.unwrap()
    }

    async fn stored(&self) -> Vec<StoredFace> {
        queue::faces(&self.db.read, self.pipeline, &self.faces).await.unwrap()
    }

    /// Places faces 0, 1, 2 in one cluster, 3 and 4 in another, and 5 alone.
    async fn two_clusters(&self) -> [ClusterId; 2] {
        let [a, b] = [ClusterId::new(), ClusterId::new()];
        let in_cluster = [Some(a), Some(a), Some(a), Some(b), Some(b), None];
        let plan = Plan {
            entries: self.waiting().await.iter().map(|entry| entry.seq).collect(),
            new_clusters: vec![a, b],
            places: self.faces.iter().copied().zip(in_cluster).collect(),
            touched: vec![a, b],
            ..Plan::default()
        };
        let seen = version(&self.db.read, self.collection).await.unwrap();
        assert!(record(&self.db, self.collection, seen, &plan).await.unwrap());
        [a, b]
    }

    /// What is stored: clusters are numbered by their first face.
    async fn picture(&self) -> Picture {
        let (mut names, mut of_face, mut persons) = (Vec::new(), BTreeMap::new(), Vec::new());
        let mut letters = String::new();
        for (n, face) in self.stored().await.into_iter().enumerate() {
            if let Some((cluster, _)) = face.cluster {
                let at = names.iter().position(|name| *name == cluster).unwrap_or_else(|| {
                    names.push(cluster);
                    names.len() - 1
                });
                of_face.insert(n, at);
            }
            letters.push(face.person.map_or('-', |person| {
                let at = persons.iter().position(|p| *p == person).unwrap_or_else(|| {
                    persons.push(person);
                    persons.len() - 1
                });
                char::from(b'a' + u8::try_from(at).unwrap())
            }));
        }
        for (at, name) in names.iter().enumerate() {
            let cluster = find(&self.db.read, self.collection, *name).await.unwrap().unwrap();
            let members = of_face.values().filter(|cluster| **cluster == at).count();
            assert_eq!(cluster.faces, i64::try_from(members).unwrap(), "the counts are right");
        }
        (of_face, letters)
    }

    async fn clusters(&self) -> Vec<Cluster> {
        list(&self.db, self.collection, Wanted { min_faces: 1, named: None, after: None }, 10).await.unwrap()
    }
}

fn in_clusters(of_face: &[usize]) -> BTreeMap<usize, usize> {
    of_face.iter().copied().enumerate().collect()
}

fn done(edited: Edited) -> (Cluster, ClusterChangeId) {
    match edited {
        Edited::Done(cluster, change) => (cluster, change),
        other => panic!("the change is made, got {other:?}"),
    }
}

#[tokio::test]
async fn a_face_waits_when_it_comes_changes_or_goes() {
    on_both(async |scene| {
        let first: Vec<FaceId> = scene.waiting().await.iter().map(|entry| entry.face_id).collect();
        assert_eq!(first, scene.faces, "each new face once, in order");
        assert_eq!(queue::next_collection(&scene.db, &[]).await.unwrap(), Some(scene.collection));
        let [a, _] = scene.two_clusters().await;
        assert_eq!(queue::pending(&scene.db, scene.collection).await.unwrap(), 0);
        let ann = scene.person("ann").await;
        let assign = FaceChange { person: PersonChange::Assign(ann), ..FaceChange::default() };
        faces_by_hand::change(&scene.db, scene.collection, scene.faces[0], assign).await.unwrap();
        let hide = FaceChange { hidden: Some(true), ..FaceChange::default() };
        faces_by_hand::change(&scene.db, scene.collection, scene.faces[1], hide).await.unwrap();
        assert!(faces::delete(&scene.db, scene.collection, scene.faces[2]).await.unwrap());
        assert!(faces::delete(&scene.db, scene.collection, scene.faces[5]).await.unwrap());
        let waiting: Vec<_> =
            scene.waiting().await.into_iter().map(|entry| (entry.face_id, entry.cluster_id)).collect();
        let expected = [(0, Some(a)), (1, Some(a)), (2, Some(a)), (5, None)];
        assert_eq!(waiting, expected.map(|(n, cluster)| (scene.faces[n], cluster)));
        let [assigned, hidden] = scene.stored().await.try_into().map(|[a, b, ..]: [StoredFace; 4]| [a, b]).unwrap();
        assert_eq!((assigned.person, assigned.is_held_back), (Some(ann), false));
        assert!(hidden.is_held_back && hidden.is_usable && hidden.embedding.is_some());
        collections::delete(&scene.db, scene.collection).await.unwrap();
        queue::forget(&scene.db, scene.collection).await.unwrap();
        assert_eq!(queue::next_collection(&scene.db, &[]).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn a_pass_is_written_once_and_over_nothing_newer() {
    on_both(async |scene| {
        let [a, b] = scene.two_clusters().await;
        assert_eq!(scene.picture().await, (in_clusters(&[0, 0, 0, 1, 1]), "------".to_owned()));
        let merged =
            Plan { moves: vec![(b, a)], places: vec![(scene.faces[5], Some(a))], touched: vec![a], ..Plan::default() };
        assert!(!record(&scene.db, scene.collection, 0, &merged).await.unwrap(), "that version is over");
        assert_eq!(scene.clusters().await.len(), 2);
        assert!(record(&scene.db, scene.collection, 1, &merged).await.unwrap());
        assert_eq!(scene.picture().await.0, in_clusters(&[0; 6]));
        assert_eq!(scene.clusters().await.len(), 1, "what became part of another is gone");
        let shrunk = Plan { leaves: scene.faces.clone(), touched: vec![a], ..Plan::default() };
        assert!(record(&scene.db, scene.collection, 2, &shrunk).await.unwrap());
        assert_eq!(scene.clusters().await, [], "and so is what has no face");
        let ann = scene.person("ann").await;
        let assign = FaceChange { person: PersonChange::Assign(ann), ..FaceChange::default() };
        faces_by_hand::change(&scene.db, scene.collection, scene.faces[0], assign).await.unwrap();
        let late = Plan { places: vec![(scene.faces[0], None)], ..Plan::default() };
        assert!(!record(&scene.db, scene.collection, 3, &late).await.unwrap(), "the face has a person meanwhile");
        assert_eq!(version(&scene.db.read, scene.collection).await.unwrap(), 3);
    })
    .await;
}

#[tokio::test]
async fn merge_split_and_their_undoing() {
    on_both(async |scene| {
        let [a, b] = scene.two_clusters().await;
        let before = scene.picture().await;
        let (cluster, merge) = done(edits::merge(&scene.db, scene.collection, a, &[b]).await.unwrap());
        assert_eq!((cluster.id, cluster.faces), (a, 5));
        assert_eq!(edits::merge(&scene.db, scene.collection, a, &[b]).await.unwrap(), Edited::NoCluster(b));
        assert_eq!(edits::undo(&scene.db, scene.collection, merge).await.unwrap(), Undone::Done);
        assert_eq!(scene.picture().await, before);
        assert_eq!(edits::undo(&scene.db, scene.collection, merge).await.unwrap(), Undone::Before);
        let sides =
            |faces: Vec<StoredFace>| faces.into_iter().map(|f| f.sides.first().map(|s| s.1)).collect::<Vec<_>>();
        let apart = [Some(0), Some(0), Some(0), Some(1), Some(1), None];
        assert_eq!(sides(scene.stored().await), apart, "who undoes a merge wants them apart");
        done(edits::merge(&scene.db, scene.collection, a, &[b]).await.unwrap());
        assert_eq!(sides(scene.stored().await), [None; 6], "and who merges them does not");

        let part = [scene.faces[1], scene.faces[4]];
        let (cluster, split) = done(edits::split(&scene.db, scene.collection, a, &part).await.unwrap());
        assert_eq!(cluster.faces, 2);
        assert_eq!(scene.picture().await.0, in_clusters(&[0, 1, 0, 0, 1]));
        assert_eq!(sides(scene.stored().await), [Some(0), Some(1), Some(0), Some(0), Some(1), None]);
        let all = [scene.faces[1], scene.faces[4]];
        assert_eq!(edits::split(&scene.db, scene.collection, cluster.id, &all).await.unwrap(), Edited::NotAPart);
        assert_eq!(edits::split(&scene.db, scene.collection, a, &part).await.unwrap(), Edited::NotAPart);
        assert_eq!(edits::undo(&scene.db, scene.collection, split).await.unwrap(), Undone::Done);
        assert_eq!(scene.picture().await.0, in_clusters(&[0; 5]));
        assert_eq!(sides(scene.stored().await), [None; 6]);
        assert_eq!(scene.clusters().await.len(), 1);
        let kinds: Vec<_> = changes(&scene.db, scene.collection, None, 10).await.unwrap();
        let kinds: Vec<_> = kinds.iter().map(|c| (c.kind.as_str(), c.undone_at.is_some())).collect();
        assert_eq!(kinds, [("split", true), ("merge", false), ("merge", true)]);
    })
    .await;
}

#[tokio::test]
async fn a_name_reaches_the_faces_and_can_be_taken_back() {
    on_both(async |scene| {
        let [a, b] = scene.two_clusters().await;
        let ann =
            PersonRef::External { external_id: "ann".to_owned(), name: Some("Ann".to_owned()), description: None };
        let name = async |cluster, confirmed: &[FaceId]| {
            edits::name(&scene.db, scene.collection, cluster, &ann, confirmed).await.unwrap()
        };
        assert_eq!(name(a, &[scene.faces[3]]).await, Edited::NotAPart, "a face of another cluster");
        let refused = scene.person("ann").await;
        rejections::add(&scene.db.write, scene.faces[2], refused).await.unwrap();
        let (cluster, named) = done(name(a, &[scene.faces[0]]).await);
        assert_eq!((cluster.person_id, cluster.faces), (Some(refused), 2));
        assert_eq!(scene.picture().await, ([(0, 0), (1, 0), (3, 1), (4, 1)].into(), "aa----".to_owned()));
        let waiting: Vec<FaceId> = scene.waiting().await.iter().map(|entry| entry.face_id).collect();
        assert!(waiting.contains(&scene.faces[2]), "a face that is not Ann's is looked at again");
        let by = async || -> Vec<_> {
            let faces = faces_of(&scene.db, a, None, 10).await.unwrap();
            faces.iter().map(|f| (f.face.person_id, f.face.assigned_by.unwrap(), f.face.locked)).collect()
        };
        let anns = [(Some(refused), AssignedBy::User, true), (Some(refused), AssignedBy::Cluster, false)];
        assert_eq!(by().await, anns);
        let carl = PersonRef::External { external_id: "carl".to_owned(), name: None, description: None };
        let (cluster, renamed) =
            done(edits::name(&scene.db, scene.collection, a, &carl, &[scene.faces[1]]).await.unwrap());
        let carl = cluster.person_id;
        assert_eq!(by().await, [(carl, AssignedBy::Cluster, false), (carl, AssignedBy::User, true)]);
        assert_eq!(edits::undo(&scene.db, scene.collection, renamed).await.unwrap(), Undone::Done);
        assert_eq!(by().await, anns, "whose they were, and by whose word");

        let (_, merge) = done(edits::merge(&scene.db, scene.collection, a, &[b]).await.unwrap());
        assert_eq!(scene.picture().await.1, "aa-aa-");
        assert_eq!(edits::undo(&scene.db, scene.collection, merge).await.unwrap(), Undone::Done);
        assert_eq!(scene.picture().await.1, "aa----");
        let bob = PersonRef::External { external_id: "bob".to_owned(), name: None, description: None };
        done(edits::name(&scene.db, scene.collection, b, &bob, &[]).await.unwrap());
        assert_eq!(edits::merge(&scene.db, scene.collection, a, &[b]).await.unwrap(), Edited::TwoPersons);
        let (part, split) = done(edits::split(&scene.db, scene.collection, b, &[scene.faces[4]]).await.unwrap());
        assert_eq!((part.person_id, scene.picture().await.1.as_str()), (None, "aa-b--"), "split off: not Bob");
        assert_eq!(edits::undo(&scene.db, scene.collection, split).await.unwrap(), Undone::Done);
        assert_eq!(scene.picture().await.1, "aa-bb-");
        assert_eq!(edits::undo(&scene.db, scene.collection, named).await.unwrap(), Undone::Done);
        assert_eq!(scene.picture().await.1, "---aa-");
        assert_eq!(find(&scene.db.read, scene.collection, a).await.unwrap().unwrap().person_id, None);
    })
    .await;
}

#[tokio::test]
async fn pages_begin_after_the_last_cluster_and_a_cover_shows_the_clearest() {
    on_both(async |scene| {
        let [a, b] = scene.two_clusters().await;
        let wanted = Wanted { min_faces: 2, named: Some(false), after: None };
        let first = list(&scene.db, scene.collection, wanted, 1).await.unwrap();
        assert_eq!(first[0].id, a, "the largest");
        let next = Wanted { after: Some((first[0].faces, first[0].id)), ..wanted };
        assert_eq!(list(&scene.db, scene.collection, next, 5).await.unwrap()[0].id, b);
        let named = Wanted { named: Some(true), ..wanted };
        assert_eq!(list(&scene.db, scene.collection, named, 5).await.unwrap(), []);
        let large = Wanted { min_faces: 3, ..wanted };
        assert_eq!(list(&scene.db, scene.collection, large, 5).await.unwrap().len(), 1);
        assert_eq!(cover(&scene.db, a, 2).await.unwrap(), [scene.faces[2], scene.faces[1]]);
        execute(&scene.db.write, "DELETE FROM cluster_faces", []).await.unwrap();
        queue::enqueue_all(&scene.db.write, scene.collection).await.unwrap();
        assert_eq!(scene.waiting().await.len(), 6);
    })
    .await;
}

#[tokio::test]
async fn what_waits_of_a_collection_that_is_too_large_waits_again_when_it_is_not() {
    on_both(async |scene| {
        queue::fold(&scene.db, scene.collection).await.unwrap();
        queue::fold(&scene.db, scene.collection).await.unwrap();
        assert_eq!(queue::pending(&scene.db, scene.collection).await.unwrap(), 0, "nobody need wait for it");
        assert_eq!(scene.waiting().await.len(), 1);
        assert_eq!(queue::next_collection(&scene.db, &[]).await.unwrap(), Some(scene.collection));
        assert_eq!(queue::next_collection(&scene.db, &[scene.collection]).await.unwrap(), None, "others go first");
        queue::unfold(&scene.db, scene.collection).await.unwrap();
        let again: Vec<FaceId> = scene.waiting().await.iter().map(|waiting| waiting.face_id).collect();
        assert_eq!(again, scene.faces);
        queue::unfold(&scene.db, scene.collection).await.unwrap();
        assert_eq!(queue::pending(&scene.db, scene.collection).await.unwrap(), 6, "once");
    })
    .await;
}

#[tokio::test]
async fn old_changes_are_forgotten() {
    on_both(async |scene| {
        let [a, b] = scene.two_clusters().await;
        done(edits::merge(&scene.db, scene.collection, a, &[b]).await.unwrap());
        execute(&scene.db.write, "UPDATE cluster_changes SET created_at = created_at - 90000000", []).await.unwrap();
        done(edits::split(&scene.db, scene.collection, a, &[scene.faces[4]]).await.unwrap());
        let keep = Duration::from_secs(60);
        assert_eq!(forget_changes(&scene.db, keep, 10).await.unwrap(), 1);
        let left = changes(&scene.db, scene.collection, None, 10).await.unwrap();
        assert_eq!(left.iter().map(|change| change.kind.as_str()).collect::<Vec<_>>(), ["split"]);
        assert_eq!(forget_changes(&scene.db, keep, 10).await.unwrap(), 0);
    })
    .await;
}
