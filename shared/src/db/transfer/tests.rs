//! What is exported is what an import makes, on both databases.

use sea_orm::DatabaseTransaction;

use super::export::{ExportedImage, Page, Snapshot};
use super::import::{self, Imported, Target};
use crate::db::clusters::{edits, pass};
use crate::db::collections::{self, CollectionSettings};
use crate::db::faces::{self, AssignedBy, NewFace, Origin};
use crate::db::images::{self, ImageSource};
use crate::db::{Db, count, erasures, is_postgres, merges, persons, rejections};
use crate::embedding::Embedding;
use crate::face_index::contract::PIPELINES;
use crate::face_index::pgvector::create_partition;
use crate::ids::{ClusterId, CollectionId, FaceId, ImageId, PersonId};
use crate::job::{FaceBox, PersonRef};
use crate::transfer::{Counts, MergeLine, PersonLine};

const PAUSE_S: u64 = 10;

/// A collection as an export has it.
#[derive(Debug, PartialEq)]
struct Whole {
    persons: Vec<PersonLine>,
    merges: Vec<MergeLine>,
    images: Vec<ExportedImage>,
}

async fn databases(folder: &std::path::Path) -> [Db; 2] {
    let databases = crate::testing::databases(folder).await;
    for db in databases.iter().filter(|db| is_postgres(&db.read)) {
        create_partition(db, PIPELINES[0].0, PIPELINES[0].1).await.unwrap();
    }
    databases
}

async fn collection(db: &Db, name: &str) -> CollectionId {
    let made = collections::create(db, name, PIPELINES[0].0, &CollectionSettings::default()).await.unwrap();
    made.unwrap().id
}

async fn export(db: &Db, collection: CollectionId) -> Whole {
    let snapshot = Snapshot::begin(db, collection, PAUSE_S).await.unwrap();
    let (mut persons, mut merges, mut images) = (Vec::new(), Vec::new(), Vec::new());
    // Pages of one, so that every step to the next is taken.
    while let [person] = &snapshot.persons(persons.last().map(|p: &PersonLine| p.id), 1).await.unwrap()[..] {
        persons.push(person.clone());
    }
    while let [merge] = &snapshot.merges(merges.last().map(|m: &MergeLine| m.id), 1).await.unwrap()[..] {
        merges.push(merge.clone());
    }
    let pipelines = [PIPELINES[0].0.to_owned()];
    loop {
        let after = images.last().map_or(String::new(), |(image, ..): &ExportedImage| image.sha256.clone());
        let page = snapshot.images(&after, Page { images: 1, faces: 100 }, &pipelines).await.unwrap();
        if page.is_empty() {
            break;
        }
        images.extend(page);
    }
    snapshot.end().await.unwrap();
    Whole { persons, merges, images }
}

async fn add(db: &Db, collection: CollectionId, whole: &Whole) -> Counts {
    let begun_at = crate::db::now(&db.read).await.unwrap();
    let Imported { added, erased } = add_begun_at(db, (collection, begun_at), whole).await;
    assert_eq!(erased, Counts::default());
    added
}

async fn add_begun_at(db: &Db, (collection, begun_at): (CollectionId, i64), whole: &Whole) -> Imported {
    let key = &crate::testing::secret_key(1);
    let target = Target { collection, begun_at, key };
    let mut done = import::add_persons(db, target, &whole.persons).await.unwrap();
    done += import::add_merges(db, target, &whole.merges).await.unwrap();
    done += import::add_images(db, target, &whole.images, false).await.unwrap();
    done
}

async fn face(db: &Db, collection: CollectionId, n: u8, person: Option<(PersonId, AssignedBy)>) -> FaceId {
    let txn = db.begin().await.unwrap();
    let face = face_within(&txn, collection, n).await;
    if let Some((person, by)) = person {
        faces::assign(&txn, face, person, by).await.unwrap();
    }
    txn.commit().await.unwrap();
    face
}

/// A face on the nth picture, which lies in the store where n is odd, and else where it was listed.
async fn face_within(txn: &DatabaseTransaction, collection: CollectionId, n: u8) -> FaceId {
    let (sha256, place) = (format!("{n:02x}").repeat(32), format!("file:///photos/{n}.jpg"));
    let is_stored = n % 2 == 1;
    let source = ImageSource {
        object_key: is_stored.then(|| format!("{collection}/{sha256}")),
        uri: (!is_stored).then(|| place.clone()),
        sha256,
        ..ImageSource::default()
    };
    let image = images::find_or_create(txn, collection, &source, [10, 20]).await.unwrap().id;
    images::record_analyses(txn, "r", &[(image, 1)]).await.unwrap();
    images::remember_sources(txn, collection, [(Some(place.as_str()), Some("f"), Some(image))]).await.unwrap();
    let mut vector = vec![0.1; PIPELINES[0].1];
    vector[0] = f32::from(n);
    let new = NewFace {
        face_box: FaceBox { x: 1.25, y: 0.1, width: 5.0, height: 6.0 },
        landmarks: "[[1.0,2.0]]".to_owned(),
        score: 0.9,
        quality: "{\"usable\":true}".to_owned(),
        embedding: Some(Embedding::normalised(vector).unwrap()),
        crop: None,
    };
    let origin = Origin { collection, image, detector_revision: "r", pipeline: PIPELINES[0].0 };
    faces::place(txn, origin, &[new]).await.unwrap()[0].id
}

async fn person(db: &Db, collection: CollectionId, external_id: &str) -> PersonId {
    let named = PersonRef::External { external_id: external_id.to_owned(), name: None, description: None };
    persons::find_or_create(&db.write, collection, &named).await.unwrap().unwrap().id
}

/// Ann, into whom Anna was merged, with an enrolled and a matched face; Bob, who was said not to be on one; a cluster that was
/// split, a part of which is Carl's, who has no external id.
async fn scene(db: &Db) -> CollectionId {
    let c = collection(db, "from").await;
    let (ann, anna, bob) = (person(db, c, "ann").await, person(db, c, "anna").await, person(db, c, "bob").await);
    let carl =
        persons::create(db, c, None, Some("Carl".to_owned()), Some("The third".to_owned())).await.unwrap().unwrap().id;
    face(db, c, 1, Some((anna, AssignedBy::Enrolled))).await;
    face(db, c, 2, Some((ann, AssignedBy::Auto))).await;
    merges::merge(db, c, anna, ann).await.unwrap();
    let stranger = face(db, c, 3, None).await;
    rejections::add(&db.write, stranger, bob).await.unwrap();
    let cluster = ClusterId::new();
    let alike = [face(db, c, 4, None).await, face(db, c, 5, None).await, face(db, c, 6, None).await];
    let places = alike.map(|face| (face, Some(cluster))).to_vec();
    let plan = pass::Plan { new_clusters: vec![cluster], places, touched: vec![cluster], ..pass::Plan::default() };
    let version = pass::version(&db.read, c).await.unwrap();
    assert!(pass::record(db, c, version, &plan).await.unwrap());
    let edited = edits::split(db, c, cluster, &alike[..1]).await.unwrap();
    assert!(matches!(edited, edits::Edited::Done(..)), "{edited:?}");
    let edited = edits::name(db, c, cluster, &PersonRef::Id { id: carl }, &[]).await.unwrap();
    assert!(matches!(edited, edits::Edited::Done(..)), "{edited:?}");
    c
}

/// Without what differs between collections: ids of separations, and of rows whose ids others have.
fn without_ids(mut whole: Whole) -> Whole {
    let (person, face) = (PersonId(uuid::Uuid::nil()), FaceId(uuid::Uuid::nil()));
    whole.persons.iter_mut().for_each(|line| line.id = person);
    for merge in &mut whole.merges {
        (merge.id, merge.into.id) = (person, person);
    }
    for (image, _, faces) in &mut whole.images {
        image.id = ImageId(uuid::Uuid::nil());
        for line in faces {
            line.id = face;
            line.person.iter_mut().chain(&mut line.not).for_each(|key| key.id = person);
            if let Some(cluster) = &mut line.cluster {
                cluster.id = ClusterId(uuid::Uuid::nil());
                cluster.person.iter_mut().for_each(|key| key.id = person);
            }
            line.sides = std::mem::take(&mut line.sides).into_values().map(|side| (uuid::Uuid::nil(), side)).collect();
        }
    }
    whole.persons.sort_by(|a, b| (&a.external_id, &a.name).cmp(&(&b.external_id, &b.name)));
    whole
}

fn without_separations(mut whole: Whole) -> Whole {
    whole.images.iter_mut().flat_map(|(_, _, faces)| faces).for_each(|face| face.sides.clear());
    whole
}

const ALL: Counts = Counts { persons: 3, merges: 1, images: 6, places: 6, faces: 6, vectors: 6 };

#[tokio::test]
async fn an_import_makes_what_was_exported() {
    let folder = tempfile::tempdir().unwrap();
    let databases = databases(folder.path()).await;
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (&databases[from], &databases[to]);
        let c = scene(from).await;
        let exported = export(from, c).await;
        assert_eq!(exported.images.iter().filter(|(_, _, faces)| !faces[0].sides.is_empty()).count(), 3);
        let empty = collection(to, "to").await;
        assert_eq!(add(to, empty, &exported).await, ALL);
        let imported = export(to, empty).await;
        assert_eq!(without_separations(imported), without_separations(export(from, c).await), "ids that are free stay");
        assert_eq!(waiting(to, empty).await, 1, "faces are matched again");
        assert_eq!(add(to, empty, &exported).await, Counts::default(), "a second time it adds nothing");
        assert_eq!(waiting(to, empty).await, 1);
        let beside = collection(from, "beside").await;
        assert_eq!(add(from, beside, &exported).await, ALL, "where the ids are taken others are made");
        assert_eq!(without_ids(export(from, beside).await), without_ids(export(from, c).await));
        assert_eq!(add(from, beside, &exported).await, Counts::default(), "the same ones each time");
        assert_eq!(export(from, c).await, exported, "the collection that was exported is as it was");
        let sizes = "SELECT count(*) AS n FROM clusters k WHERE k.collection_id = $1
            AND k.faces = (SELECT count(*) FROM cluster_faces c WHERE c.cluster_id = k.id) AND k.faces > 0";
        assert_eq!(count(&to.read, sizes, [empty.into()]).await.unwrap(), 2);
        for (db, name) in [(to, empty), (from, c), (from, beside)] {
            assert!(collections::delete(db, name).await.unwrap());
        }
    }
}

#[tokio::test]
async fn what_was_erased_since_an_import_began_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    for db in databases(folder.path()).await {
        let c = scene(&db).await;
        let key = &crate::testing::secret_key(1);
        let mut exported = export(&db, c).await;
        let begun_at = crate::db::now(&db.read).await.unwrap();
        let (ann, carl) = (exported.persons[0].id, exported.persons.iter().find(|p| p.name.is_some()).unwrap().id);
        assert_eq!(exported.persons[0].external_id.as_deref(), Some("ann"));
        // A face of a picture that stays, and is in the file by another id; Ann; a picture as a whole; Carl with a cluster.
        let face = std::mem::replace(&mut exported.images[3].2[0].id, FaceId::new());
        let of = |n: usize| &exported.images[n - 1];
        let erase_face = erasures::request::face(&db, key, c, face).await.unwrap().unwrap();
        erasures::request::person(&db, key, (c, ann), false).await.unwrap().unwrap();
        erasures::request::image(&db, key, c, of(3).0.id).await.unwrap().unwrap();
        erasures::request::person(&db, key, (c, carl), false).await.unwrap().unwrap();
        assert_eq!(erase_face.images, 0, "it lies in a library");
        let left = export(&db, c).await;
        let done = add_begun_at(&db, (c, begun_at), &exported).await;
        // With the faces of pictures that were sent go these; the file does not know that they lie in a library too.
        let erased = Counts { persons: 2, merges: 1, images: 3, places: 3, faces: 6, vectors: 6 };
        assert_eq!(done, Imported { added: Counts::default(), erased });
        assert_eq!(export(&db, c).await, left);

        // The same file sent afterwards is meant: it has all of them.
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        assert_eq!(add(&db, c, &exported).await.persons, 2);
        assert!(persons::find_by_external_id(&db.read, c, "ann").await.unwrap().is_some());
        // What was erased since does not stop another file, or the rest of a picture of which a part was written.
        let begun_at = crate::db::now(&db.read).await.unwrap();
        erasures::request::image(&db, key, c, of(6).0.id).await.unwrap().unwrap();
        let target = Target { collection: c, begun_at, key };
        let persons = import::add_persons(&db, target, &exported.persons).await.unwrap();
        assert_eq!(persons.erased, Counts::default());
        let rest = import::add_images(&db, target, &exported.images[5..], true).await.unwrap();
        assert_eq!(rest.erased, Counts { places: 1, faces: 1, vectors: 1, ..Counts::default() });
        assert!(collections::delete(&db, c).await.unwrap());
    }
}

/// Requests that all faces be matched again.
async fn waiting(db: &Db, collection: CollectionId) -> i64 {
    let sql = "SELECT count(*) AS n FROM rematch_requests
        WHERE collection_id = $1 AND face_id IS NULL AND person_id IS NULL";
    count(&db.read, sql, [collection.into()]).await.unwrap()
}

#[tokio::test]
async fn what_lies_elsewhere_stays_there() {
    let folder = tempfile::tempdir().unwrap();
    let databases = databases(folder.path()).await;
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (&databases[from], &databases[to]);
        let c = scene(from).await;
        let other = collection(to, "to").await;
        add(to, other, &export(from, c).await).await;
        for n in 1..=6u8 {
            let sha256 = format!("{n:02x}").repeat(32);
            let image = images::find_by_sha256(&to.read, other, &sha256).await.unwrap().unwrap();
            let elsewhere = (n % 2 == 0).then(|| format!("file:///photos/{n}.jpg"));
            assert_eq!((image.object_key.is_some(), image.uri), (elsewhere.is_none(), elsewhere));
        }
        for (db, name) in [(to, other), (from, c)] {
            assert!(collections::delete(db, name).await.unwrap());
        }
    }
}

#[tokio::test]
async fn who_imports_and_indexes_at_once_makes_no_face_twice() {
    let folder = tempfile::tempdir().unwrap();
    let databases = databases(folder.path()).await;
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (&databases[from], &databases[to]);
        let c = scene(from).await;
        let exported = export(from, c).await;
        let other = collection(to, "to").await;
        let job = to.begin().await.unwrap();
        face_within(&job, other, 3).await;
        let commit = async {
            // By then the imports have looked for the picture and wait for it.
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            job.commit().await.unwrap();
        };
        let (one, another, ()) = tokio::join!(add(to, other, &exported), add(to, other, &exported), commit);
        assert_eq!((one.faces + another.faces, one.vectors + another.vectors), (5, 5));
        let imported = export(to, other).await;
        assert_eq!(imported.images.iter().map(|(_, _, faces)| faces.len()).collect::<Vec<_>>(), [1; 6]);
        for (db, name) in [(to, other), (from, c)] {
            assert!(collections::delete(db, name).await.unwrap());
        }
    }
}

#[tokio::test]
async fn a_page_ends_with_its_faces() {
    let folder = tempfile::tempdir().unwrap();
    for db in databases(folder.path()).await {
        let c = scene(&db).await;
        let snapshot = Snapshot::begin(&db, c, PAUSE_S).await.unwrap();
        for (images, faces, wanted) in [(10, 100, 6), (10, 2, 2), (1, 2, 1), (10, 0, 1)] {
            let page = snapshot.images("", Page { images, faces }, &[]).await.unwrap();
            assert_eq!(page.len(), wanted, "{images} pictures, {faces} faces");
        }
        snapshot.end().await.unwrap();
        assert!(collections::delete(&db, c).await.unwrap());
    }
}

#[tokio::test]
async fn what_is_there_stays_and_what_it_lacks_is_added() {
    let folder = tempfile::tempdir().unwrap();
    let databases = databases(folder.path()).await;
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (&databases[from], &databases[to]);
        let c = scene(from).await;
        let exported = export(from, c).await;
        let other = collection(to, "to").await;
        // Ann is known by her external id; her face is there and nobody's, a matched one is Dora's, and the stranger is Bob.
        let (ann, dora, bob) =
            (person(to, other, "ann").await, person(to, other, "dora").await, person(to, other, "bob").await);
        let free = face(to, other, 1, None).await;
        let doras = face(to, other, 2, Some((dora, AssignedBy::User))).await;
        let bobs = face(to, other, 3, Some((bob, AssignedBy::User))).await;
        let refused = face(to, other, 4, None).await;
        let wanted = Counts { persons: 1, merges: 1, images: 2, places: 2, faces: 2, vectors: 2 };
        assert_eq!(add(to, other, &exported).await, wanted);
        let whose = async |face| faces::find(&to.read, other, face).await.unwrap().unwrap().face;
        assert_eq!(
            (whose(free).await.person_id, whose(free).await.assigned_by),
            (Some(ann), Some(AssignedBy::Enrolled))
        );
        assert_eq!(whose(doras).await.person_id, Some(dora));
        assert_eq!((whose(bobs).await.person_id, whose(refused).await.person_id), (Some(bob), None));
        assert!(rejections::of_faces(&to.read, &[bobs]).await.unwrap().is_empty(), "what was said here goes before");
        // What a user takes back here stays taken back.
        let not_ann = crate::db::faces_by_hand::FaceChange {
            person: crate::db::faces_by_hand::PersonChange::Unassign,
            ..Default::default()
        };
        crate::db::faces_by_hand::change(to, other, free, not_ann).await.unwrap();
        assert_eq!(add(to, other, &exported).await, Counts::default());
        assert_eq!(whose(free).await.person_id, None);
        // A person that was merged into another here is not made again.
        merges::merge(to, other, ann, dora).await.unwrap();
        assert_eq!(add(to, other, &exported).await, Counts::default());
        assert_eq!(persons::find_by_external_id(&to.read, other, "ann").await.unwrap(), None);
        for (db, name) in [(to, other), (from, c)] {
            assert!(collections::delete(db, name).await.unwrap());
        }
    }
}
