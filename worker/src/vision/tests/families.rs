//! Each detector family against another implementation of it (`scripts/reference/families.py`), on photographs.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use shared::catalogue::LandmarkScheme;

use super::*;
use crate::testing::repository;
use crate::vision::landmark_network;

const PICTURES: [&str; 5] = [
    "astronaut.png",
    "insightface_t1.jpg",
    "obama_and_biden.jpg",
    "widerface_0_Parade_marchingband_1_149.jpg",
    "solvay_conference_1927.png",
];
/// By family, then by picture.
type Reference = BTreeMap<String, BTreeMap<String, Vec<Face>>>;

#[derive(serde::Deserialize)]
struct Face {
    #[serde(rename = "box")]
    sides: [f32; 4],
    score: f32,
    points: Vec<[f32; 2]>,
}

impl Face {
    fn bounding_box(&self) -> BoundingBox {
        let [x, y, width, height] = self.sides;
        BoundingBox { x, y, width, height }
    }
}

/// What may be between the two: pictures are made smaller by other kernels, which moves a score, a box and a point a little, and
/// more so the smaller the face.
struct Limits {
    /// A face whose score lies nearer than that to what the detector reports may be missing on one side.
    score: f32,
    /// A face that is narrower may be missing on one side: it is near to the smallest that the detector knows.
    width: f32,
    /// Of boxes.
    iou: f32,
    /// Mean distance of a face's points, in widths.
    apart: f32,
}

/// None, with a line that says so, where the packages are not there.
async fn reference(data: &Path) -> Option<Reference> {
    let cache = shared::config::Config::load(None).unwrap().cache_dir().join("reference-python");
    if !cache.join("installed").is_file() {
        let missing = format!("{} is missing; scripts/setup-reference.sh makes it", cache.display());
        assert!(!assets_required(), "FACE_ID_REQUIRE_ASSETS=1, but {missing}");
        eprintln!("skipped: {missing}");
        return None;
    }
    let has_pip = |python: &&str| {
        Command::new(python).args(["-m", "pip", "--version"]).output().is_ok_and(|o| o.status.success())
    };
    let python = ["python3", "/usr/bin/python3"].into_iter().find(has_pip).expect("a Python with pip");
    let mut command = tokio::process::Command::new(python);
    command.arg(repository().join("scripts/reference/families.py")).arg(data.parent().unwrap().join("models"));
    command.args(PICTURES.map(|name| data.join("faces").join(name))).env("PYTHONPATH", cache).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(600), command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// The least overlap and the largest mean distance of points that were seen, and how many faces agree.
#[derive(Debug)]
struct Seen {
    iou: f32,
    apart: f32,
    faces: usize,
}

/// Every face that one side is sure of is found by the other, at the same place.
fn compare(found: &[Detection], wanted: &[Face], store_score: f32, limits: &Limits, seen: &mut Seen) {
    let sure = store_score + limits.score;
    let best = |place: &BoundingBox, others: &mut dyn Iterator<Item = BoundingBox>| {
        others.map(|other| other.iou(place)).fold(0.0, f32::max)
    };
    let is_large = |width: f32| width >= limits.width;
    for face in found.iter().filter(|face| face.score >= sure && is_large(face.bounding_box.width)) {
        let iou = best(&face.bounding_box, &mut wanted.iter().map(Face::bounding_box));
        assert!(iou >= limits.iou, "only here: {:?} at {} ({iou})", face.bounding_box, face.score);
    }
    for face in wanted.iter().filter(|face| face.score >= sure && is_large(face.sides[2])) {
        let place = face.bounding_box();
        let nearest = found.iter().max_by(|a, b| a.bounding_box.iou(&place).total_cmp(&b.bounding_box.iou(&place)));
        let nearest = nearest.unwrap_or_else(|| panic!("only there: {place:?} at {}", face.score));
        let iou = nearest.bounding_box.iou(&place);
        assert!(iou >= limits.iou, "only there: {place:?} at {} ({iou})", face.score);
        seen.iou = seen.iou.min(iou);
        seen.faces += 1;
        // Detectors without points have those of another model here, and none there.
        if face.points.len() == nearest.landmarks.points().len() {
            let apart = mean_distance(&face.points, nearest.landmarks.points()) / place.width;
            assert!(apart <= limits.apart, "{place:?}: points {apart} widths apart");
            seen.apart = seen.apart.max(apart);
        }
    }
}

fn mean_distance(one: &[[f32; 2]], other: &[[f32; 2]]) -> f32 {
    let apart = one.iter().zip(other).map(|(p, q)| (p[0] - q[0]).hypot(p[1] - q[1]));
    apart.sum::<f32>() / one.len() as f32
}

#[tokio::test]
async fn every_family_finds_what_another_implementation_finds() {
    let Some(bench) = Bench::load("mtcnn-mobilefacenet").await else { return };
    let Some(reference) = reference(&bench.data).await else { return };
    let near = Limits { score: 0.1, width: 0.0, iou: 0.9, apart: 0.03 };
    // Its networks see a face at 12, 24 and 48 pixels, and the last one moves what it was given.
    let cascade = Limits { width: 40.0, iou: 0.75, apart: 0.06, ..near };
    // A pixel of its small input is a tenth of a small face's width.
    let coarse = Limits { score: 0.15, ..near };
    for (family, pipeline, limits, least) in [
        ("scrfd", "scrfd-mobilefacenet", &near, 50),
        ("scrfd-2500m", "scrfd-2500m-mobilefacenet", &near, 50),
        ("ultraface", "ultraface-mobilefacenet", &coarse, 30),
        ("mtcnn", "mtcnn-mobilefacenet", &cascade, 30),
    ] {
        let Some(bench) = Bench::load(pipeline).await else { return };
        let mut seen = Seen { iou: 1.0, apart: 0.0, faces: 0 };
        for name in PICTURES {
            let found = bench.faces(&bench.picture(&format!("faces/{name}"))).await;
            eprintln!("{family} {name}: {} faces", found.len());
            let store_score = bench.pipeline().detector.store_score;
            compare(&found, &reference[family][name], store_score, limits, &mut seen);
        }
        eprintln!("{family}: {seen:?}");
        assert!(seen.faces >= least, "{family}: {seen:?}");
    }
}

#[tokio::test]
async fn sixty_eight_points_lie_where_another_implementation_places_them() {
    let Some(bench) = Bench::load("mtcnn-dlib-densenet").await else { return };
    let Some(reference) = reference(&bench.data).await else { return };
    let input = bench.pipeline().landmarks.as_ref().unwrap().input.clone().unwrap();
    let (mut farthest, mut faces) = (0f32, 0);
    for name in PICTURES {
        let picture = bench.picture(&format!("faces/{name}"));
        for face in &reference["landmark68"][name] {
            let shown = landmark_network::shown(&picture, &face.bounding_box(), &input).unwrap();
            let answer = bench.engine.place(shown.input.clone()).await.unwrap();
            let placed = shown.points(LandmarkScheme::Ibug68, &answer).unwrap();
            let apart = mean_distance(placed.points(), &face.points) / face.sides[2];
            assert!(apart < 0.02, "{name}, {:?}: {apart} widths apart", face.sides);
            (farthest, faces) = (farthest.max(apart), faces + 1);
        }
    }
    eprintln!("68 points of {faces} faces, at most {farthest} widths apart");
    assert!(faces >= 50, "{faces}");
}
