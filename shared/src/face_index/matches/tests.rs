//! What is found in two steps is what all faces of all persons say, on both databases.

use std::sync::Arc;

use super::*;
use crate::db::faces_by_hand::{FaceChange, change};
use crate::db::{Db, is_postgres};
use crate::face_index::contract::{METRICS, PIPELINES, enroll, gallery, vector};
use crate::face_index::pgvector::{PgvectorFaceIndex, create_partition};
use crate::face_index::{ExactFaceIndex, FaceIndex, Gallery};

/// Components that tell the test's persons apart, and one for what is a picture's own.
const DIMENSION: usize = 19;

struct Scene {
    db: Db,
    index: Arc<dyn FaceIndex>,
    gallery: Gallery,
    faces: HashMap<PersonId, Vec<(FaceId, Embedding)>>,
    /// xorshift32 (Marsaglia 2003).
    random: u32,
}

fn calibration(metric: Metric) -> Calibration {
    let mut calibration = Calibration {
        measured_on: "a test".to_owned(),
        far: vec![1e-1, 1e-2, 1e-3, 1e-4],
        score: vec![0.3, 0.5, 0.6, 0.7],
        measured_far: None,
    };
    if metric == Metric::Euclidean {
        // Of vectors of unit length.
        calibration.score.iter_mut().for_each(|score| *score = 1.0 - (2.0 - 2.0 * *score).sqrt());
    }
    calibration
}

async fn scenes(folder: &std::path::Path) -> Vec<Scene> {
    let mut scenes = Vec::new();
    for db in crate::testing::databases(folder).await {
        let index: Arc<dyn FaceIndex> = if is_postgres(&db.read) {
            let (pipeline, dimension) = PIPELINES[2];
            create_partition(&db, pipeline, dimension).await.unwrap();
            Arc::new(PgvectorFaceIndex::new(db.clone(), 0))
        } else {
            Arc::new(ExactFaceIndex::new(db.clone()))
        };
        for metric in METRICS {
            let (db, index, gallery) = (db.clone(), Arc::clone(&index), gallery(&db, DIMENSION, metric).await);
            scenes.push(Scene { db, index, gallery, faces: HashMap::new(), random: 7 });
        }
    }
    scenes
}

impl Scene {
    /// A vector that looks random, like the `centre` where there is one.
    fn near(&mut self, centre: Option<&Embedding>) -> Embedding {
        let values = (0..DIMENSION).map(|n| {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 17;
            self.random ^= self.random << 5;
            let own = f32::from(u16::try_from(self.random >> 16).unwrap()) / 65_536.0 - 0.5;
            own + centre.map_or(0.0, |centre| centre.as_slice()[n] * 1.5)
        });
        vector(&values.collect::<Vec<_>>())
    }

    async fn enroll(&mut self, name: &str, embedding: Embedding) -> (FaceId, PersonId) {
        let (face, person) = enroll(&self.db, &self.gallery, name, embedding.clone()).await;
        self.faces.entry(person).or_default().insert(0, (face, embedding));
        (face, person)
    }

    async fn found(&self, query: &Embedding, k: usize, floor: f32) -> Vec<Match> {
        let queries = vec![query.clone()];
        let hits = self.index.search(&self.gallery, queries.clone(), candidates(k)).await.unwrap().hits;
        let by = (Some(&calibration(self.gallery.metric)), floor);
        judged(&self.db.read, &self.gallery, queries, hits, by).await.unwrap().remove(0)
    }

    /// What all faces of all persons say.
    fn plain(&self, query: &Embedding) -> Vec<Match> {
        let one = |(person, faces): (&PersonId, &Vec<(FaceId, Embedding)>)| {
            let metric = self.gallery.metric;
            let mut found = Match::of(nearest(query, *person, faces, metric).unwrap());
            found.judge(query, Template::of(faces.clone(), &calibration(metric), metric).as_ref());
            found
        };
        let mut found: Vec<Match> = self.faces.iter().map(one).collect();
        found.sort_by(Match::order);
        found
    }
}

/// The same persons in the same order, and the same scores but for their rounding.
fn assert_same(found: &[Match], plain: &[Match]) {
    let who = |found: &[Match]| found.iter().map(|m| (m.person, m.face)).collect::<Vec<_>>();
    assert_eq!(who(found), who(plain));
    for (found, plain) in found.iter().zip(plain) {
        assert!((found.score - plain.score).abs() < 1e-5 && (found.face_score - plain.face_score).abs() < 1e-5);
    }
}

#[tokio::test]
async fn two_steps_find_what_all_faces_say() {
    let folder = tempfile::tempdir().unwrap();
    for mut scene in scenes(folder.path()).await {
        let centres: Vec<Embedding> = (0..24).map(|_| scene.near(None)).collect();
        for (n, centre) in centres.iter().enumerate() {
            for _ in 0..=n % 6 {
                let embedding = scene.near(Some(centre));
                scene.enroll(&n.to_string(), embedding).await;
            }
            // A wrong label, of somebody who is there too.
            if n % 3 == 0 {
                let wrong = scene.near(Some(&centres[(n + 5) % 24]));
                scene.enroll(&n.to_string(), wrong).await;
            }
        }
        let (mut raised, mut doubted) = (0, 0);
        for centre in &centres {
            let query = scene.near(Some(centre));
            let (found, plain) = (scene.found(&query, 24, -1.0).await, scene.plain(&query));
            assert_same(&found, &plain);
            raised += found.iter().filter(|m| m.score > m.face_score).count();
            let floor = plain[2].score;
            let near: Vec<Match> =
                scene.found(&query, 3, floor).await.into_iter().filter(|m| m.score >= floor).collect();
            assert_same(&near, &plain[..3]);
            let single = scene.index.search(&scene.gallery, vec![query.clone()], 1).await.unwrap().hits[0][0];
            doubted += usize::from(single.person != plain[0].person);
        }
        assert!(raised > 5 && doubted > 0, "{raised} raised, {doubted} first ones decided by a wrong label");
    }
}

#[tokio::test]
async fn a_wrong_label_decides_nothing_from_the_third_face_on() {
    let folder = tempfile::tempdir().unwrap();
    for mut scene in scenes(folder.path()).await {
        let (ann, bob) = (scene.near(None), scene.near(None));
        scene.enroll("ann", ann.clone()).await;
        let (wrong, _) = scene.enroll("ann", bob.clone()).await;
        let score = async |scene: &Scene| scene.found(&bob, 1, 0.5).await[0].score;
        assert!((score(&scene).await - 1.0).abs() < 1e-5, "of two faces either may be the right one");
        scene.enroll("ann", ann.clone()).await;
        assert!(score(&scene).await < 0.5);
        let hide = |hidden| FaceChange { hidden: Some(hidden), ..FaceChange::default() };
        let (third, _) = scene.enroll("ann", bob.clone()).await;
        assert!((score(&scene).await - 1.0).abs() < 1e-5, "two faces that are alike are another look");
        change(&scene.db, scene.gallery.collection, third, hide(true)).await.unwrap();
        assert!(score(&scene).await < 0.5, "what is hidden says nothing of the others");
        change(&scene.db, scene.gallery.collection, wrong, hide(true)).await.unwrap();
        let found = scene.found(&ann, 1, 0.5).await;
        assert_eq!((found[0].score.to_bits(), found.len()), (found[0].face_score.to_bits(), 1));
    }
}

#[tokio::test]
async fn whoever_cannot_reach_the_floor_is_not_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    for mut scene in scenes(folder.path()).await {
        let centre = scene.near(None);
        for _ in 0..3 {
            let embedding = scene.near(Some(&centre));
            scene.enroll("ann", embedding).await;
        }
        let single = scene.found(&centre, 1, 1.5).await[0];
        assert_eq!(single.score.to_bits(), single.face_score.to_bits());
        let enough = most_by_mean(single.score, scene.gallery.metric) - 1e-3;
        assert!(scene.found(&centre, 1, enough).await[0].score > single.score);
        let hits = vec![vec![Hit { person: single.person, face: single.face, score: single.face_score }]];
        let uncalibrated = judged(&scene.db.read, &scene.gallery, vec![centre], hits, (None, -1.0)).await;
        assert_eq!(uncalibrated.unwrap(), [[single]], "nothing says how alike strangers are");
    }
}
