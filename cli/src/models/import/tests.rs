//! What is imported against dlib itself, which `scripts/setup-dlib.sh` puts into the cache.

use serde::Deserialize;
use shared::digest::sha256_hex;
use worker::analysis::{AnalysedFace, analyse};
use worker::testing::{assets_required, repository};
use worker::vision::crops::Keep;
use worker::vision::decode::{DecodeLimits, decode};
use worker::vision::shape_predictor::ShapePredictor;
use worker::vision::tensor::Range;
use worker::vision::{BoundingBox, Picture};

use super::*;

const LIMITS: DecodeLimits = DecodeLimits { max_bytes: 1 << 24, max_pixels: 50_000_000, max_side: 10_000 };

/// As `scripts/dlib/describe.py` prints it.
#[derive(Deserialize)]
struct Described {
    vector: Vec<f32>,
    faces: Vec<DescribedFace>,
}

#[derive(Deserialize)]
struct DescribedFace {
    #[serde(rename = "box")]
    corners: [f32; 4],
    score: f32,
    five: Vec<[f32; 2]>,
    sixty_eight: Vec<[f32; 2]>,
    vector: Vec<f32>,
    vector_by_68: Vec<f32>,
}

impl DescribedFace {
    /// Right and bottom are the last pixels of dlib's boxes.
    fn area(&self) -> BoundingBox {
        let [left, top, right, bottom] = self.corners;
        BoundingBox { x: left, y: top, width: right - left + 1.0, height: bottom - top + 1.0 }
    }
}

/// Where dlib, its models and some pictures are.
fn dlib() -> Option<PathBuf> {
    let folder = Config::load(None).unwrap().cache_dir().join("dlib-python");
    if folder.join("installed").is_file() {
        return Some(folder);
    }
    let missing = format!("dlib is not in {}; scripts/setup-dlib.sh puts it there", folder.display());
    assert!(!assets_required(), "FACE_ID_REQUIRE_ASSETS=1, but {missing}");
    eprintln!("skipped: {missing}");
    None
}

/// Assets that have nothing but ONNX Runtime.
fn no_weights(folder: &Path) -> Assets {
    let configured = Assets::configured(&Config::load(None).unwrap());
    let runtime_library = Some(configured.runtime_library().unwrap());
    let accepted_licences = vec!["dlib-68".to_owned()];
    Assets { assets_dir: None, cache_dir: folder.to_owned(), runtime_library, accepted_licences, ..configured }
}

async fn described_by(dlib: &Path, pictures: &[PathBuf]) -> Vec<Described> {
    let mut command = tokio::process::Command::new(package::python().await.unwrap());
    command.arg(repository().join("scripts/dlib/describe.py")).args(pictures).env("PYTHONPATH", dlib);
    let output = tokio::time::timeout(std::time::Duration::from_secs(300), command.kill_on_drop(true).output()).await;
    let output = output.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn distance(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(one, other)| (one - other).powi(2)).sum::<f32>().sqrt()
}

/// The largest distance of one point from its own.
fn farthest(one: &[[f32; 2]], other: &[[f32; 2]]) -> f32 {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).map(|(one, other)| distance(one, other)).fold(0.0, f32::max)
}

#[test]
fn the_entries_files_are_what_becomes_of_the_package() {
    let Some(dlib) = dlib() else { return };
    let files = files(&Catalogue::load(None).unwrap());
    assert_eq!(files.len(), dlib::SOURCES.len());
    let found = dlib::SOURCES.iter().map(|source| {
        let bytes = std::fs::read(dlib.join(dlib::FOLDER).join(source.name)).unwrap();
        let other = source.converted(&bytes[1..]).unwrap_err().to_string();
        assert!(other.contains("sha256"), "{other}");
        let made = source.converted(&bytes).unwrap();
        (source.becomes, sha256_hex(&made), made.len() as u64)
    });
    let found: Vec<_> = found.collect();
    let wanted = dlib::SOURCES.iter().map(|source| &files[source.becomes]);
    let wanted: Vec<_> =
        wanted.zip(&found).map(|(file, found)| (found.0, file.sha256.clone(), file.size_bytes)).collect();
    assert_eq!(found, wanted);
}

#[tokio::test]
async fn what_is_imported_answers_as_dlib_does() {
    let Some(dlib) = dlib() else { return };
    let folder = tempfile::tempdir().unwrap();
    let assets = no_weights(folder.path());
    for is_new in [true, false] {
        let imported = import_dlib(&assets, Some(&dlib)).await.unwrap();
        assert!(imported.iter().all(|imported| imported.is_new == is_new), "safe to repeat");
    }
    let catalogue = Catalogue::load(None).unwrap();
    let load = async |name| {
        let pipeline = catalogue.pipeline(name).unwrap();
        Engine::load(pipeline, &assets, EngineOptions::for_cpu(1)).await.unwrap()
    };
    let [engine, by_68] = [load("dlib").await, load("dlib-68").await];

    let at = |name: &str| folder.path().join(name);
    let photo = dlib.join("skimage/data/astronaut.png");
    let shown = image::open(&photo).unwrap().into_rgb8();
    let sized = |side| image::imageops::resize(&shown, side, side, image::imageops::FilterType::Triangle);
    sized(800).save(at("large.png")).unwrap();
    // The face is 80 pixels wide, with room around it for all that the network looks at.
    let small = sized(430);
    framed_in_black(&small).save(at("framed.png")).unwrap();
    let mut pictures = vec![photo, at("large.png"), at("framed.png")];
    let chips = [1, 2, 3].map(|seed| test_crop(seed, 150, 150));
    for (n, chip) in chips.iter().enumerate() {
        let path = at(&format!("{n}.png"));
        image::save_buffer(&path, &chip.rgb, chip.width, chip.height, image::ExtendedColorType::Rgb8).unwrap();
        pictures.push(path);
    }
    let described = described_by(&dlib, &pictures).await;

    for (chip, described) in chips.iter().zip(&described[3..]) {
        same_vector(&engine, chip, &described.vector).await;
    }
    let length = described[3].vector.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    assert!((length - LENGTH).abs() < ROUNDING / 2.0, "{length}");
    same_scores(&engine, &small, &described[2].faces[0]).await;
    for (path, described) in pictures.iter().zip(&described[..2]) {
        let bytes = std::fs::read(path).unwrap();
        let [face] = described.faces.as_slice() else { panic!("dlib found {} faces", described.faces.len()) };
        same_points(&assets, &bytes, face);
        let points = like_dlib(&engine, bytes.clone(), face, &face.vector).await;
        let apart = farthest(&points, &face.five) / face.area().width;
        assert!(apart < 0.03, "{apart}");
        // These points follow the box, of which either may take the next size.
        like_dlib(&by_68, bytes, face, &face.vector_by_68).await;
    }
}

/// Of one and the same crop.
async fn same_vector(engine: &Engine, chip: &Picture, wanted: &[f32]) {
    let input = recognize::input(&engine.pipeline().recognizer, chip, 0);
    let answer = engine.embed(input).await.unwrap();
    let apart = answer.iter().zip(wanted).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-5, "{apart}");
}

/// In one and the same box.
fn same_points(assets: &Assets, bytes: &[u8], face: &DescribedFace) {
    let files = files(&Catalogue::load(None).unwrap());
    let picture = decode(bytes.to_vec(), &LIMITS, u32::MAX).unwrap().overview.picture.clone();
    for (points, wanted) in [(5, &face.five), (68, &face.sixty_eight)] {
        let file = assets.find(&files[&format!("shape_predictor_{points}_face_landmarks.trees")]).unwrap();
        let predictor = ShapePredictor::read(&std::fs::read(file).unwrap()).unwrap();
        let placed = predictor.place(&picture, &face.area()).unwrap();
        // dlib's are whole pixels.
        let rounded: Vec<_> = placed.iter().map(|point| point.map(|at| (at + 0.5).floor())).collect();
        let apart = farthest(&rounded, wanted);
        assert!(apart / face.area().width < 0.01, "{apart}");
    }
}

/// In the middle of 720 x 720 pixels.
fn framed_in_black(picture: &image::RgbImage) -> image::RgbImage {
    let mut framed = image::RgbImage::new(720, 720);
    image::imageops::replace(&mut framed, picture, 145, 145);
    framed
}

/// dlib lays its cells of 8 pixels otherwise: where they lie alike, the network's answer is dlib's.
async fn same_scores(engine: &Engine, picture: &image::RgbImage, wanted: &DescribedFace) {
    let detector = &engine.pipeline().detector;
    let range = Range { channels: detector.channels, mean: detector.mean, scale: detector.scale };
    let framed = framed_in_black(picture);
    let mut least = f32::MAX;
    for (right, down) in (0..8).flat_map(|right| (0..8).map(move |down| (right, down))) {
        let mut moved = image::RgbImage::new(728, 728);
        image::imageops::replace(&mut moved, &framed, right, down);
        let picture = Picture { width: 728, height: 728, rgb: moved.into_raw() };
        let answer = engine.detect(range.tensor(&picture)).await.unwrap().swap_remove(0);
        least = answer.data.iter().map(|score| (score - wanted.score).abs()).fold(least, f32::min);
    }
    assert!(least < 1e-5, "{least}");
}

/// The whole way of a picture, with faces found, points placed and vectors made here, against dlib's; the points.
async fn like_dlib(engine: &Engine, bytes: Vec<u8>, face: &DescribedFace, vector: &[f32]) -> Vec<[f32; 2]> {
    let found = analyse(engine, bytes, LIMITS, Keep::Nothing).await.unwrap();
    let [AnalysedFace { detection, embedding, .. }] = found.faces.as_slice() else {
        panic!("{} faces were found", found.faces.len());
    };
    // Boxes have sizes in steps of 6/5, and the cells of both lie otherwise, so that the next size may score better.
    let overlap = detection.bounding_box.iou(&face.area());
    assert!(overlap > 0.5, "{overlap}: {:?} and {:?}", detection.bounding_box, face.area());
    let score = 1.0 / (1.0 + (-face.score).exp());
    assert!((detection.score - score).abs() < 0.02, "{} and {score}", detection.score);
    let apart = distance(embedding.as_slice(), vector);
    assert!(apart < 0.2, "{apart}");
    detection.landmarks.points().to_vec()
}
