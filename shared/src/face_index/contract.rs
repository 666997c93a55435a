//! What every [`FaceIndex`] promises, as a suite that each implementation runs.

use std::sync::Arc;
use std::time::Duration;

use super::{FaceIndex, Gallery, GallerySize};
use crate::catalogue::Metric;
use crate::db::collections::{self, CollectionSettings};
use crate::db::faces::{self, AssignedBy, NewFace, Origin};
use crate::db::{Db, images, persons};
use crate::embedding::Embedding;
use crate::ids::{CollectionId, FaceId, PersonId, UploadId};
use crate::job::{FaceBox, PersonRef};

/// The pipelines that the suite stores vectors of, with their dimensions.
pub const PIPELINES: [(&str, usize); 3] = [("contract-2", 2), ("contract-3", 3), ("contract-19", 19)];

/// Every way to compare vectors.
pub(super) const METRICS: [Metric; 2] = [Metric::Cosine, Metric::Euclidean];

/// Runs the suite on collections of its own in `db`.
///
/// # Panics
/// The index breaks a promise.
pub async fn run(db: &Db, index: Arc<dyn FaceIndex>) {
    run_with(db, index, async |_| {}).await;
}

/// Runs the suite with a step that the index may need before some searches; faces are stored before and after it.
///
/// # Panics
/// The index breaks a promise.
pub async fn run_with(db: &Db, index: Arc<dyn FaceIndex>, prepare: impl AsyncFn(&Gallery)) {
    for metric in METRICS {
        finds_the_nearest_persons(db, &*index, metric).await;
        follows_changes(db, &*index, metric, &prepare).await;
        keeps_galleries_apart(db, &*index, metric).await;
        agrees_with_a_plain_scan(db, &*index, metric, &prepare).await;
    }
}

pub(super) async fn gallery(db: &Db, dimension: usize, metric: Metric) -> Gallery {
    let name = format!("contract-{}", CollectionId::new());
    let pipeline = format!("contract-{dimension}");
    let made = collections::create(db, &name, &pipeline, &CollectionSettings::default()).await.expect("create");
    Gallery { collection: made.expect("the name is new").id, pipeline, metric }
}

pub(super) fn vector(values: &[f32]) -> Embedding {
    Embedding::normalised(values.to_vec()).expect("a test's vector is none of zeros")
}

/// As a pipeline with that metric makes them: of their own lengths where these are compared.
fn vector_of(metric: Metric, values: &[f32]) -> Embedding {
    match metric {
        Metric::Cosine => vector(values),
        Metric::Euclidean => Embedding::as_given(values.to_vec()).expect("a test's vector is none of zeros"),
    }
}

/// Stores a face with a vector, under a person where `external_id` is given.
async fn store(
    db: &Db,
    gallery: &Gallery,
    external_id: Option<&str>,
    assigned_by: AssignedBy,
    embedding: Embedding,
) -> (FaceId, Option<PersonId>) {
    let txn = db.begin().await.expect("begin");
    let upload_id = UploadId::new();
    let object_key = Some(format!("k/{upload_id}"));
    let source = images::ImageSource { sha256: upload_id.to_string(), object_key, ..images::ImageSource::default() };
    let image = images::find_or_create(&txn, gallery.collection, &source, [10, 10]).await.expect("image");
    let new = NewFace {
        face_box: FaceBox { x: 0.0, y: 0.0, width: 5.0, height: 5.0 },
        landmarks: "[]".to_owned(),
        score: 0.9,
        quality: "{}".to_owned(),
        embedding: Some(embedding),
        crop: None,
    };
    let origin = Origin {
        collection: gallery.collection,
        image: image.id,
        detector_revision: "contract",
        pipeline: &gallery.pipeline,
    };
    let face = faces::place(&txn, origin, &[new]).await.expect("place")[0].id;
    let mut person = None;
    if let Some(external_id) = external_id {
        let named = PersonRef::External { external_id: external_id.to_owned(), name: None, description: None };
        let found = persons::find_or_create(&txn, gallery.collection, &named).await.expect("person");
        let id = found.expect("a person named by an external id is made").id;
        faces::assign(&txn, face, id, assigned_by).await.expect("assign");
        person = Some(id);
    }
    txn.commit().await.expect("commit");
    (face, person)
}

pub(super) async fn enroll(db: &Db, gallery: &Gallery, external_id: &str, embedding: Embedding) -> (FaceId, PersonId) {
    let (face, person) = store(db, gallery, Some(external_id), AssignedBy::Enrolled, embedding).await;
    (face, person.expect("an enrolled face has a person"))
}

async fn finds_the_nearest_persons(db: &Db, index: &dyn FaceIndex, metric: Metric) {
    let gallery = gallery(db, 2, metric).await;
    let vector = |values: &[f32]| vector_of(metric, values);
    let empty = index.search(&gallery, vec![vector(&[1.0, 0.0])], 3).await.expect("search");
    assert_eq!((empty.size.persons, empty.size.faces, empty.hits), (0, 0, vec![vec![]]));

    let (_, ann) = enroll(db, &gallery, "ann", vector(&[1.0, 0.2])).await;
    let (near, _) = enroll(db, &gallery, "ann", vector(&[1.0, 0.1])).await;
    let (_, bob) = enroll(db, &gallery, "bob", vector(&[0.0, 1.0])).await;
    let found = index.search(&gallery, vec![vector(&[1.0, 0.0]), vector(&[0.0, 1.0])], 3).await.expect("search");
    assert_eq!((found.size.persons, found.size.faces), (2, 3));
    let persons: Vec<Vec<_>> = found.hits.iter().map(|h| h.iter().map(|h| h.person).collect()).collect();
    assert_eq!(persons, [vec![ann, bob], vec![bob, ann]], "each person once, best first");
    assert_eq!(found.hits[0][0].face, near, "a person stands there by its nearest face");
    assert!((found.hits[1][0].score - 1.0).abs() < 1e-5);
    let one = index.search(&gallery, vec![vector(&[1.0, 0.0])], 1).await.expect("search");
    assert_eq!(one.hits[0].len(), 1);
    let (third, _) = enroll(db, &gallery, "ann", vector(&[1.0, 0.3])).await;
    let size = async || index.search(&gallery, Vec::new(), 1).await.expect("search").size;
    assert_eq!(size().await, GallerySize { persons: 2, faces: 4, means: 1 }, "a person of three faces has a mean");
    assert!(faces::delete(db, gallery.collection, third).await.expect("delete"));
    assert_eq!(size().await, GallerySize { persons: 2, faces: 3, means: 0 });
}

async fn follows_changes(db: &Db, index: &dyn FaceIndex, metric: Metric, prepare: &impl AsyncFn(&Gallery)) {
    let gallery = gallery(db, 3, metric).await;
    let vector = |values: &[f32]| vector_of(metric, values);
    let query = vector(&[1.0, 0.0, 0.0]);
    let found = async || {
        let found = index.search(&gallery, vec![query.clone()], 10).await.expect("search");
        let hour = Duration::from_secs(3600);
        let again = index.search_within(&gallery, vec![query.clone()], 10, hour).await.expect("search");
        assert_eq!(again, found, "what a search has seen is seen afterwards too");
        found.hits[0].iter().map(|h| h.person).collect::<Vec<_>>()
    };
    let (first, ann) = enroll(db, &gallery, "ann", vector(&[1.0, 0.0, 0.0])).await;
    let (_, bob) = enroll(db, &gallery, "bob", vector(&[1.0, 1.0, 0.0])).await;
    prepare(&gallery).await;
    assert_eq!(found().await, [ann, bob], "what was committed is found");
    let (unknown, _) = store(db, &gallery, None, AssignedBy::Auto, query.clone()).await;
    assert_eq!(found().await, [ann, bob], "a face without a person is not found");
    faces::assign(&db.write, unknown, bob, AssignedBy::Auto).await.expect("assign");
    assert_eq!(found().await, [ann, bob], "an automatic match forms no template");
    faces::assign(&db.write, unknown, bob, AssignedBy::User).await.expect("assign");
    assert_eq!(found().await.len(), 2, "a user's assignment does");
    assert!(faces::delete(db, gallery.collection, first).await.expect("delete"));
    assert_eq!(found().await, [bob], "a deleted face is not found");
    assert!(persons::delete(db, gallery.collection, bob).await.expect("delete"));
    assert_eq!(found().await, [], "a deleted person is not found");
    assert!(collections::delete(db, gallery.collection).await.expect("delete"));
    assert_eq!(found().await, []);
}

async fn keeps_galleries_apart(db: &Db, index: &dyn FaceIndex, metric: Metric) {
    let (one, other) = (gallery(db, 2, metric).await, gallery(db, 2, metric).await);
    enroll(db, &one, "ann", vector(&[1.0, 0.0])).await;
    let query = || vec![vector(&[1.0, 0.0])];
    assert_eq!(index.search(&one, query(), 5).await.expect("search").hits[0].len(), 1);
    assert_eq!(index.search(&other, query(), 5).await.expect("search").hits[0].len(), 0);
    let pipeline = Gallery { pipeline: "another".to_owned(), ..one };
    assert_eq!(index.search(&pipeline, query(), 5).await.expect("search").hits[0].len(), 0);
}

async fn agrees_with_a_plain_scan(db: &Db, index: &dyn FaceIndex, metric: Metric, prepare: &impl AsyncFn(&Gallery)) {
    let gallery = gallery(db, 19, metric).await;
    // Distances do not change where all lie far from zero, but cosines would.
    let away = if metric == Metric::Euclidean { 20.0 } else { 0.0 };
    let mut state = 7_u32;
    let mut random = || {
        let values: Vec<f32> = (0..19)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f32::from(u16::try_from(state >> 16).expect("16 bits")) / 65_536.0 - 0.5 + away
            })
            .collect();
        vector_of(metric, &values)
    };
    let mut stored = Vec::new();
    for n in 0..60 {
        let embedding = random();
        let (_, person) = enroll(db, &gallery, &format!("person {}", n % 20), embedding.clone()).await;
        stored.push((person, embedding));
        if n == 40 {
            prepare(&gallery).await;
        }
    }
    for _ in 0..10 {
        let query = random();
        let mut best: std::collections::HashMap<PersonId, f64> = std::collections::HashMap::new();
        for (person, embedding) in &stored {
            let score = best.entry(*person).or_insert(f64::MIN);
            *score = score.max(plain_score(&query, embedding, metric));
        }
        let mut plain: Vec<_> = best.into_iter().collect();
        plain.sort_by(|a, b| b.1.total_cmp(&a.1));
        let found = index.search(&gallery, vec![query], 7).await.expect("search").hits.remove(0);
        let persons: Vec<_> = found.iter().map(|h| h.person).collect();
        assert_eq!(persons, plain.iter().take(7).map(|p| p.0).collect::<Vec<_>>());
        assert!(found.iter().zip(&plain).all(|(h, p)| (f64::from(h.score) - p.1).abs() < 1e-5));
    }
}

fn plain_score(a: &Embedding, b: &Embedding, metric: Metric) -> f64 {
    let pairs = a.as_slice().iter().zip(b.as_slice()).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    match metric {
        Metric::Cosine => pairs.map(|(a, b)| a * b).sum(),
        Metric::Euclidean => 1.0 - pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt(),
    }
}
