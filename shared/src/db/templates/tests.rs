//! Which vectors judge a person, on both databases.

use migrations::MigratorTrait as _;
use sea_orm::ConnectionTrait as _;

use super::*;
use crate::db::faces::{AssignedBy, NewFace, Origin};
use crate::db::images::{self, ImageSource};
use crate::db::{Db, collections, faces, is_postgres, persons};
use crate::face_index::contract::PIPELINES;
use crate::face_index::pgvector::create_partition;
use crate::ids::CollectionId;
use crate::job::{FaceBox, PersonRef};

struct Scene {
    db: Db,
    collection: CollectionId,
}

async fn scenes(folder: &std::path::Path) -> Vec<Scene> {
    let mut scenes = Vec::new();
    for db in crate::testing::databases(folder).await {
        if is_postgres(&db.read) {
            for (pipeline, dimension) in PIPELINES {
                create_partition(&db, pipeline, dimension).await.unwrap();
            }
        }
        let made = collections::create(&db, "c", PIPELINES[0].0, &collections::CollectionSettings::default()).await;
        scenes.push(Scene { collection: made.unwrap().unwrap().id, db });
    }
    scenes
}

impl Scene {
    /// Stores faces of a person with vectors of one pipeline.
    async fn add(&self, name: &str, by: AssignedBy, (pipeline, dimension): (&str, usize), count: usize) -> Added {
        let txn = self.db.begin().await.unwrap();
        let named = PersonRef::External { external_id: name.to_owned(), name: None, description: None };
        let person = persons::find_or_create(&txn, self.collection, &named).await.unwrap().unwrap().id;
        let mut added = Vec::new();
        for _ in 0..count {
            let key = FaceId::new().to_string();
            let source = ImageSource { sha256: key.clone(), object_key: Some(key), ..ImageSource::default() };
            let image = images::find_or_create(&txn, self.collection, &source, [10, 10]).await.unwrap().id;
            let origin = Origin { collection: self.collection, image, detector_revision: "r", pipeline };
            let new = NewFace {
                face_box: FaceBox { x: 0.0, y: 0.0, width: 5.0, height: 5.0 },
                landmarks: "[]".to_owned(),
                score: 0.9,
                quality: "{}".to_owned(),
                embedding: Some(Embedding::normalised(vec![1.0; dimension]).unwrap()),
                crop: None,
            };
            let face = faces::place(&txn, origin, &[new]).await.unwrap()[0].id;
            faces::assign(&txn, face, person, by).await.unwrap();
            added.push(face);
        }
        txn.commit().await.unwrap();
        Added { person, faces: added }
    }

    async fn newest(&self, wanted: &[(PersonId, FaceId)]) -> HashMap<PersonId, Vec<FaceId>> {
        let found = newest(&self.db.read, PIPELINES[0].0, wanted).await.unwrap();
        let ids = |faces: Vec<(FaceId, Embedding)>| faces.into_iter().map(|(face, _)| face).collect();
        found.into_iter().map(|(person, faces)| (person, ids(faces))).collect()
    }
}

struct Added {
    person: PersonId,
    faces: Vec<FaceId>,
}

fn newest_first(faces: &[FaceId]) -> Vec<FaceId> {
    faces.iter().rev().copied().collect()
}

#[tokio::test]
async fn reads_the_newest_of_one_pipeline_and_those_that_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for scene in scenes(folder.path()).await {
        let here = PIPELINES[0];
        let ann = scene.add("ann", AssignedBy::Enrolled, here, 2).await;
        scene.add("ann", AssignedBy::Auto, here, 2).await;
        let by_user = scene.add("ann", AssignedBy::User, here, 1).await;
        let bob = scene.add("bob", AssignedBy::Enrolled, here, NEWEST + 3).await;
        let cy = scene.add("cy", AssignedBy::Enrolled, PIPELINES[1], 3).await;
        assert!(scene.newest(&[]).await.is_empty());
        let wanted = [(ann.person, ann.faces[0]), (bob.person, bob.faces[1]), (cy.person, cy.faces[0])];
        let found = scene.newest(&wanted).await;
        assert_eq!(found[&ann.person], [newest_first(&by_user.faces), newest_first(&ann.faces)].concat());
        let mut wanted = newest_first(&bob.faces[3..]);
        wanted.push(bob.faces[1]);
        assert_eq!(found[&bob.person], wanted);
        assert!(!found.contains_key(&cy.person), "vectors of two pipelines never meet");
        // Faces that this pipeline made nothing of take no place.
        scene.add("bob", AssignedBy::Enrolled, PIPELINES[1], NEWEST).await;
        let found = scene.newest(&[(bob.person, bob.faces[1])]).await;
        assert_eq!(found[&bob.person], wanted);
    }
}

#[tokio::test]
async fn a_change_concerns_all_faces_of_its_persons() {
    let folder = tempfile::tempdir().unwrap();
    for scene in scenes(folder.path()).await {
        let ann = scene.add("ann", AssignedBy::Enrolled, PIPELINES[0], 3).await;
        let bob = scene.add("bob", AssignedBy::User, PIPELINES[0], 1).await;
        let auto = scene.add("cy", AssignedBy::Auto, PIPELINES[0], 1).await;
        let found = async |faces: &[FaceId], persons: &[PersonId]| {
            let found = concerned(&scene.db.read, PIPELINES[0].0, faces, persons).await.unwrap();
            (found.persons, found.vectors.map(|vectors| vectors.len()))
        };
        assert_eq!(found(&[], &[]).await, (Vec::new(), Some(0)));
        assert_eq!(found(&[ann.faces[0], auto.faces[0]], &[]).await, (vec![ann.person], Some(3)));
        assert_eq!(found(&[ann.faces[1]], &[bob.person]).await, (vec![ann.person, bob.person], Some(4)));
        scene.add("bob", AssignedBy::User, PIPELINES[0], MOST_NEAR).await;
        assert_eq!(found(&[], &[bob.person]).await, (vec![bob.person], None));
    }
}

#[tokio::test]
async fn faces_that_were_only_matched_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let db = crate::testing::database(folder.path()).await;
    migrations::Migrator::up(&db.write, None).await.unwrap();
    let rows = Rows::new(&[("person_id", Column::Id)], Vec::new());
    let sql = format!(
        "EXPLAIN QUERY PLAN SELECT f.id FROM (SELECT DISTINCT r.person_id FROM {}) AS p CROSS JOIN faces f
         WHERE f.person_id = p.person_id AND {TEMPLATE}",
        rows.table(&db.read)
    );
    let plan = db.read.query_all_raw(statement(&db.read, &sql, [rows.value()])).await.unwrap();
    let plan: Vec<String> = plan.iter().map(|row| row.try_get("", "detail").unwrap()).collect();
    assert!(plan.iter().any(|line| line.contains("faces_templates_by_person")), "{plan:#?}");
}
