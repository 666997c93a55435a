//! The whole of vision on photographs, with real weights. Needs the weights and data of `FACE_ID_ASSETS_DIR`.

mod kept;
mod reduced;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use image::imageops::FilterType;
use image::metadata::Orientation;
use image::{DynamicImage, ImageFormat, RgbImage};
use shared::catalogue::Pipeline;
use shared::embedding::Embedding;
use shared::job::FaceChoice;

use super::align::{Affine, aligned_crop};
use super::choose::choose_face;
use super::decode::DecodeLimits;
use super::decode::photo::Photo;
use super::decode::tests::{decode, oriented};
use super::quality::{Gate, Quality, QualityReason};
use super::*;
use crate::analysis::{embed_faces, find_faces};
use crate::inference::{Engine, EngineOptions};
use crate::testing::{assets_required, catalogue, real_assets};

const LIMITS: DecodeLimits = DecodeLimits { max_bytes: 25 << 20, max_pixels: 100_000_000, max_side: 30_000 };

/// A pipeline with real weights, and the folder of test data.
struct Bench {
    engine: Engine,
    data: PathBuf,
}

impl Bench {
    async fn load(pipeline: &str) -> Option<Self> {
        let pipeline = catalogue().pipeline(pipeline).unwrap().clone();
        let mut assets = real_assets(&pipeline)?;
        assets.accepted_licences.push(pipeline.name.clone());
        let data = assets.assets_dir.clone()?.join("data");
        if !data.is_dir() {
            assert!(!assets_required(), "FACE_ID_REQUIRE_ASSETS=1, but {} is missing", data.display());
            eprintln!("skipped: {} is missing", data.display());
            return None;
        }
        let engine = Engine::load(&pipeline, &assets, EngineOptions::for_cpu(2)).await.unwrap();
        Some(Self { engine, data })
    }

    fn pipeline(&self) -> &Pipeline {
        self.engine.pipeline()
    }

    fn picture(&self, name: &str) -> Arc<Picture> {
        Arc::new(decode(&std::fs::read(self.data.join(name)).unwrap(), &LIMITS).unwrap())
    }

    async fn faces(&self, picture: &Arc<Picture>) -> Vec<Detection> {
        find_faces(&self.engine, &self.pipeline().detector, &photo_of(picture)).await.unwrap()
    }

    /// Quality of the most central face.
    async fn quality(&self, picture: Picture) -> Option<Quality> {
        let picture = Arc::new(picture);
        let faces = self.faces(&picture).await;
        let face = &faces[choose_face(&faces, FaceChoice::Center, [picture.width, picture.height]).ok()?];
        let alignment = &self.pipeline().alignment;
        let placing = Affine::placing(face, alignment).unwrap();
        Some(Quality::measure(face, &aligned_crop(&picture, &placing, alignment.size())))
    }

    /// Every `step`th picture of LFW.
    fn lfw(&self, step: usize) -> Vec<PathBuf> {
        let entries = |folder: &Path| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = entries(&self.data.join("lfw/lfw-deepfunneled")).flat_map(|p| entries(&p)).collect();
        files.sort();
        files.into_iter().step_by(step).collect()
    }
}

fn count(faces: &[Detection], min_score: f32) -> usize {
    faces.iter().filter(|face| face.score >= min_score).count()
}

fn image_of(picture: &Picture) -> RgbImage {
    RgbImage::from_raw(picture.width, picture.height, picture.rgb.clone()).unwrap()
}

fn photo_of(picture: &Picture) -> Arc<Photo> {
    Arc::new(picture.clone().into())
}

fn picture_of(image: RgbImage) -> Picture {
    Picture { width: image.width(), height: image.height(), rgb: image.into_raw() }
}

#[tokio::test]
async fn faces_on_photographs_are_counted_right() {
    let Some(bench) = Bench::load("yunet-mobilefacenet").await else { return };
    let cases = [
        ("astronaut.png", 0.7, 1..=1),
        ("biden2.jpg", 0.8, 1..=1),
        ("insightface_t1.jpg", 0.7, 6..=6),
        ("insightface_t1.jpg", 0.8, 6..=6),
        ("obama_and_biden.jpg", 0.8, 3..=3),
        ("solvay_conference_1927.png", 0.7, 28..=30),
        ("widerface_0_Parade_marchingband_1_149.jpg", 0.7, 24..=30),
    ];
    for (name, min_score, wanted) in cases {
        let faces = bench.faces(&bench.picture(&format!("faces/{name}"))).await;
        let found = count(&faces, min_score);
        assert!(wanted.contains(&found), "{name}: {found} faces from {min_score}");
    }
    let blank = Arc::new(Picture { width: 800, height: 600, rgb: vec![127; 800 * 600 * 3] });
    assert!(bench.faces(&blank).await.is_empty());
}

#[tokio::test]
async fn scrfd_finds_the_same_faces() {
    let (Some(yunet), Some(scrfd)) =
        (Bench::load("yunet-mobilefacenet").await, Bench::load("scrfd-mobilefacenet").await)
    else {
        return;
    };
    // Mean distance of the five points over the face's width. The detectors disagree by up to 0.11 on a tilted face
    // (single points by more); a cell or an anchor read wrongly would shift every face of this size by 0.16.
    let mut distances = Vec::new();
    for (name, wanted) in [("astronaut.png", 1), ("insightface_t1.jpg", 6), ("obama_and_biden.jpg", 3)] {
        let picture = yunet.picture(&format!("faces/{name}"));
        let found = scrfd.faces(&picture).await;
        assert_eq!(found.len(), wanted, "{name}");
        for face in yunet.faces(&picture).await.iter().filter(|face| face.score >= 0.8) {
            let other = found.iter().find(|other| other.bounding_box.iou(&face.bounding_box) > 0.75).expect(name);
            let points = face.landmarks.points().iter().zip(other.landmarks.points());
            let apart = points.map(|(p, q)| (p[0] - q[0]).hypot(p[1] - q[1])).sum::<f32>() / 5.0;
            distances.push(apart / face.bounding_box.width);
        }
    }
    let mean = distances.iter().sum::<f32>() / distances.len() as f32;
    assert!(distances.iter().all(|apart| *apart < 0.13) && mean < 0.08, "mean {mean} of {distances:?}");
}

#[tokio::test]
async fn a_face_that_fills_the_picture_is_found_and_scores_high() {
    let Some(bench) = Bench::load("yunet-mobilefacenet").await else { return };
    for name in ["astronaut.png", "obama.jpg", "biden2.jpg"] {
        let picture = bench.picture(&format!("faces/{name}"));
        let face = bench.faces(&picture).await[0].bounding_box;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a box inside the picture")]
        let [x, y, width, height] = [face.x, face.y, face.width, face.height].map(|v| v as u32);
        let close = image::imageops::crop_imm(&image_of(&picture), x, y, width, height).to_image();
        let enlarged = image::imageops::resize(&close, 1200, 1200 * height / width, FilterType::CatmullRom);
        let faces = bench.faces(&Arc::new(picture_of(enlarged))).await;
        assert_eq!(count(&faces, 0.8), 1, "{name}: {:?}", faces.iter().map(|f| f.score).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn all_exif_orientations_give_the_same_upright_boxes() {
    let Some(bench) = Bench::load("yunet-mobilefacenet").await else { return };
    let upright = image_of(&bench.picture("faces/astronaut.png"));
    let wanted = bench.faces(&bench.picture("faces/astronaut.png")).await[0].bounding_box;
    for value in 1..=8u8 {
        // How a camera held that way would have stored it: only the quarter turns are not their own opposite.
        let opposite = match value {
            6 => 8,
            8 => 6,
            own => own,
        };
        let mut stored = DynamicImage::ImageRgb8(upright.clone());
        stored.apply_orientation(Orientation::from_exif(opposite).unwrap());
        let mut jpeg = std::io::Cursor::new(Vec::new());
        stored.write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
        let bytes = oriented(&jpeg.into_inner(), value);
        let picture = Arc::new(decode(&bytes, &LIMITS).unwrap());
        let faces = bench.faces(&picture).await;
        assert_eq!(faces.len(), 1, "orientation {value}");
        let iou = faces[0].bounding_box.iou(&wanted);
        assert!(iou > 0.93, "orientation {value}: {iou}");
    }
}

#[derive(serde::Deserialize)]
struct Reference {
    images: std::collections::BTreeMap<String, ReferenceImage>,
}

#[derive(serde::Deserialize)]
struct ReferenceImage {
    width: u32,
    height: u32,
    faces: Vec<ReferenceFace>,
}

#[derive(serde::Deserialize)]
struct ReferenceFace {
    /// Left, top, right, bottom.
    #[serde(rename = "box")]
    corners: [f32; 4],
    score: f32,
    landmarks: Landmarks,
    embedding: Vec<f32>,
}

impl ReferenceFace {
    fn detection(&self) -> Detection {
        let [x, y, right, bottom] = self.corners;
        let bounding_box = BoundingBox { x, y, width: right - x, height: bottom - y };
        Detection { bounding_box, landmarks: self.landmarks.clone(), score: self.score }
    }
}

/// The reference is made with OpenCV (decoding, resizing by plain bilinear interpolation, warp) and the same weights.
#[tokio::test]
async fn embeddings_agree_with_the_reference() {
    let Some(bench) = Bench::load("yunet-mobilefacenet").await else { return };
    let text = std::fs::read(bench.data.join("reference/yunet_mobilefacenet.json")).unwrap();
    let reference: Reference = serde_json::from_slice(&text).unwrap();
    let (mut given, mut own) = (Vec::new(), Vec::new());
    for (name, image) in &reference.images {
        let picture = bench.picture(name);
        let photo = photo_of(&picture);
        assert_eq!((picture.width, picture.height), (image.width, image.height), "{name}");
        let found = bench.faces(&picture).await;
        for face in &image.faces {
            let (wanted, embedding) = (face.detection(), Embedding::normalised(face.embedding.clone()).unwrap());
            let cosine = async |detection| {
                let faces = embed_faces(&bench.engine, &photo, vec![detection]).await.unwrap();
                faces[0].embedding.cosine(&embedding)
            };
            if wanted.bounding_box.width >= 40.0 {
                let agreed = cosine(wanted.clone()).await;
                assert!(agreed >= 0.995, "{name}, given landmarks: cosine {agreed}");
                given.push(agreed);
            }
            if wanted.score >= 0.8 {
                let overlap = |face: &Detection| face.bounding_box.iou(&wanted.bounding_box);
                let best = found.iter().max_by(|a, b| overlap(a).total_cmp(&overlap(b))).unwrap();
                assert!(overlap(best) >= 0.8, "{name}: IoU {} at {:?}", overlap(best), wanted.bounding_box);
                own.push(cosine(best.clone()).await);
            }
        }
    }
    assert!(given.len() >= 45 && own.len() >= 60, "{} and {} faces compared", given.len(), own.len());
    own.sort_by(f32::total_cmp);
    let median = own[own.len() / 2];
    eprintln!("given landmarks: {} faces, own: {} faces, median {median}, least {}", given.len(), own.len(), own[0]);
    assert!(median >= 0.98, "end to end: median cosine {median}");
}

#[tokio::test]
async fn the_gates_pass_lfw() {
    let Some(bench) = Bench::load("yunet-mobilefacenet").await else { return };
    let files = bench.lfw(8);
    let read = |file: &PathBuf| decode(&std::fs::read(file).unwrap(), &LIMITS).unwrap();
    let qualities: Vec<Option<Quality>> =
        stream::iter(&files).map(|file| bench.quality(read(file))).buffered(3).collect().await;
    let min_score = bench.pipeline().detector.match_score;
    for (gate, most) in [(Gate::identify(min_score), 0.01), (Gate::enroll(min_score), 0.05)] {
        let fails = |quality: &&Option<Quality>| quality.is_none_or(|q| !q.reasons(&gate).is_empty());
        let refused = qualities.iter().filter(fails).count() as f32 / files.len() as f32;
        eprintln!("{refused} of {} pictures refused", files.len());
        assert!(refused <= most, "{refused} of {} pictures refused by {gate:?}", files.len());
    }
}

type Spoil = fn(&RgbImage) -> RgbImage;

#[tokio::test]
async fn spoilt_pictures_get_the_right_reason() {
    let Some(bench) = Bench::load("yunet-mobilefacenet").await else { return };
    let min_score = bench.pipeline().detector.match_score;
    let cases: [(&str, Spoil, QualityReason); 4] = [
        ("blurred", |image| image::imageops::blur(image, 4.0), QualityReason::TooBlurred),
        ("dark", |image| scaled(image, 0.12), QualityReason::TooDark),
        ("overexposed", |image| scaled(image, 2.6), QualityReason::TooBright),
        ("tiny", |image| image::imageops::resize(image, 50, 50, FilterType::Triangle), QualityReason::TooSmall),
    ];
    for (name, spoil, wanted) in cases {
        let (mut faces, mut right) = (0, 0);
        for file in bench.lfw(250) {
            let image = image_of(&decode(&std::fs::read(file).unwrap(), &LIMITS).unwrap());
            let Some(quality) = bench.quality(picture_of(spoil(&image))).await else { continue };
            let reasons = quality.reasons(&Gate::enroll(min_score));
            faces += 1;
            right += usize::from(reasons.contains(&wanted));
        }
        eprintln!("{name}: {right} of {faces} faces are {wanted:?}");
        assert!(faces >= 20 && right * 10 >= faces * 9, "{name}: {right} of {faces} faces are {wanted:?}");
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, as light does")]
fn scaled(image: &RgbImage, factor: f32) -> RgbImage {
    let mut changed = image.clone();
    changed.iter_mut().for_each(|value| *value = (f32::from(*value) * factor) as u8);
    changed
}
