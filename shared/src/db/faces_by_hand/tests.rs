//! What is said by hand, on both databases.

use super::*;
use crate::catalogue::Metric;
use crate::db::collections::{self, CollectionSettings};
use crate::db::faces::{FaceFilter, NewFace, Origin};
use crate::db::images::ImageSource;
use crate::embedding::Embedding;
use crate::face_index::contract::PIPELINES;
use crate::face_index::pgvector::create_partition;
use crate::face_index::{ExactFaceIndex, FaceIndex, Gallery, pgvector::PgvectorFaceIndex};
use crate::job::{FaceBox, PersonRef};

/// A collection with one face of no person, and two persons without faces.
struct Scene {
    db: Db,
    gallery: Gallery,
    face: FaceId,
    ann: PersonId,
    bob: PersonId,
    index: Box<dyn FaceIndex>,
}

async fn scenes(folder: &std::path::Path) -> Vec<Scene> {
    let mut scenes = Vec::new();
    for db in crate::testing::databases(folder).await {
        let (pipeline, dimension) = PIPELINES[0];
        let index: Box<dyn FaceIndex> = if crate::db::is_postgres(&db.read) {
            create_partition(&db, pipeline, dimension).await.unwrap();
            Box::new(PgvectorFaceIndex::new(db.clone(), 0))
        } else {
            Box::new(ExactFaceIndex::new(db.clone()))
        };
        scenes.push(scene(db, index, pipeline).await);
    }
    scenes
}

async fn scene(db: Db, index: Box<dyn FaceIndex>, pipeline: &str) -> Scene {
    let made = collections::create(&db, "c", pipeline, &CollectionSettings::default()).await.unwrap();
    let collection = made.unwrap().id;
    let txn = db.begin().await.unwrap();
    let source = ImageSource { sha256: "s".to_owned(), object_key: Some("k".to_owned()), ..ImageSource::default() };
    let image = images::find_or_create(&txn, collection, &source, [10, 10]).await.unwrap().id;
    let origin = Origin { collection, image, detector_revision: "r", pipeline };
    let new = NewFace {
        face_box: FaceBox { x: 0.0, y: 0.0, width: 5.0, height: 5.0 },
        landmarks: "[]".to_owned(),
        score: 0.9,
        quality: "{}".to_owned(),
        embedding: Some(Embedding::normalised(vec![1.0, 0.0]).unwrap()),
        crop: None,
    };
    let face = faces::place(&txn, origin, &[new]).await.unwrap()[0].id;
    let mut persons_made = Vec::new();
    for external_id in ["ann", "bob"] {
        let named = PersonRef::External { external_id: external_id.to_owned(), name: None, description: None };
        persons_made.push(persons::find_or_create(&txn, collection, &named).await.unwrap().unwrap().id);
    }
    txn.commit().await.unwrap();
    let gallery = Gallery { collection, pipeline: pipeline.to_owned(), metric: Metric::Cosine };
    Scene { db, gallery, face, ann: persons_made[0], bob: persons_made[1], index }
}

impl Scene {
    async fn change(&self, wanted: FaceChange) -> PlacedFace {
        match change(&self.db, self.gallery.collection, self.face, wanted).await.unwrap() {
            Changed::Done(faces) => {
                let [_, after] = *faces;
                let stored = faces::find(&self.db.read, self.gallery.collection, self.face).await.unwrap();
                assert_eq!(stored, Some(after.clone()), "what is answered is what is stored");
                after
            }
            other => panic!("{other:?}"),
        }
    }

    async fn assign(&self, person: Option<PersonId>) -> PlacedFace {
        let person = person.map_or(PersonChange::Unassign, PersonChange::Assign);
        self.change(FaceChange { person, ..FaceChange::default() }).await
    }

    /// Whose templates a search finds.
    async fn templates(&self) -> Vec<PersonId> {
        let query = vec![Embedding::normalised(vec![1.0, 0.1]).unwrap()];
        let found = self.index.search(&self.gallery, query, 5).await.unwrap();
        found.hits[0].iter().map(|hit| hit.person).collect()
    }

    async fn rejected(&self) -> Vec<PersonId> {
        let rows = rejections::of_faces(&self.db.read, &[self.face, FaceId::new()]).await.unwrap();
        let mut persons: Vec<_> = rows.into_iter().map(|(_, person)| person).collect();
        persons.sort_unstable();
        persons
    }

    async fn listed(&self, hidden: bool) -> usize {
        let filter = FaceFilter { hidden, ..FaceFilter::default() };
        faces::list(&self.db, self.gallery.collection, filter, None, 10).await.unwrap().len()
    }
}

#[tokio::test]
async fn whose_a_face_is_is_said_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    for scene in scenes(folder.path()).await {
        let Scene { ann, bob, .. } = scene;
        assert_eq!(scene.templates().await, []);
        let face = scene.assign(Some(ann)).await.face;
        assert_eq!((face.person_id, face.assigned_by, face.locked), (Some(ann), Some(AssignedBy::User), true));
        assert_eq!(scene.templates().await, [ann], "it forms a template at once");
        assert_eq!(scene.assign(Some(bob)).await.face.person_id, Some(bob));
        assert_eq!((scene.templates().await, scene.rejected().await), (vec![bob], vec![]));

        let face = scene.assign(None).await.face;
        assert_eq!((face.person_id, face.assigned_by, face.locked), (None, None, false));
        assert_eq!((scene.templates().await, scene.rejected().await), (vec![], vec![bob]));
        scene.assign(None).await;
        assert_eq!(scene.rejected().await, [bob], "a face of no person is nobody's less");
        scene.assign(Some(ann)).await;
        scene.assign(None).await;
        assert_eq!(scene.rejected().await, [ann, bob]);
        scene.assign(Some(bob)).await;
        assert_eq!((scene.templates().await, scene.rejected().await), (vec![bob], vec![ann]));
        faces::enroll(&scene.db.write, scene.face, ann).await.unwrap();
        assert_eq!((scene.templates().await, scene.rejected().await), (vec![ann], vec![]), "so does an enroll");
        assert!(persons::delete(&scene.db, scene.gallery.collection, ann).await.unwrap());
        assert_eq!(scene.templates().await, []);
    }
}

#[tokio::test]
async fn a_hidden_face_takes_no_part() {
    let folder = tempfile::tempdir().unwrap();
    for scene in scenes(folder.path()).await {
        scene.assign(Some(scene.ann)).await;
        let hide = |hidden| FaceChange { hidden: Some(hidden), ..FaceChange::default() };
        let face = scene.change(hide(true)).await.face;
        assert_eq!((face.person_id, face.hidden, face.locked), (Some(scene.ann), true, true));
        assert_eq!((scene.templates().await, scene.listed(false).await, scene.listed(true).await), (vec![], 0, 1));
        assert_eq!(persons::count_faces(&scene.db, scene.ann).await.unwrap(), 0);
        let pipeline = &scene.gallery.pipeline;
        assert_eq!(faces::embeddings_of_person(&scene.db.read, scene.ann, pipeline).await.unwrap(), []);
        scene.change(hide(false)).await;
        assert_eq!((scene.templates().await, scene.listed(false).await), (vec![scene.ann], 1));
        scene.change(hide(true)).await;
        faces::enroll(&scene.db.write, scene.face, scene.bob).await.unwrap();
        assert_eq!(scene.templates().await, [scene.bob], "who enrolls a face wants it seen");
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    for scene in scenes(folder.path()).await {
        let collection = scene.gallery.collection;
        let hide = FaceChange { hidden: Some(true), ..FaceChange::default() };
        assert_eq!(change(&scene.db, collection, FaceId::new(), hide).await.unwrap(), Changed::NoFace);
        let stranger = PersonId::new();
        let assign = FaceChange { person: PersonChange::Assign(stranger), ..hide };
        assert_eq!(change(&scene.db, collection, scene.face, assign).await.unwrap(), Changed::NoPerson(stranger));
        assert_eq!(scene.listed(true).await, 0, "nothing of a refused change is kept");
    }
}
