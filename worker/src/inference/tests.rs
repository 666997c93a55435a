//! The tiny pipeline through the engine, and the real one where its weights are.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::{join_all, try_join_all};
use image::{ExtendedColorType, ImageEncoder, codecs::jpeg::JpegEncoder};
use shared::catalogue::Channels;
use shared::embedding::Embedding;

use super::*;
use crate::analysis::{AnalysedFace, analyse};
use crate::testing;
use crate::vision::crops::Keep;
use crate::vision::decode::DecodeLimits;
use crate::vision::quality::Gate;
use crate::vision::tensor::Range;

async fn tiny(options: EngineOptions) -> Engine {
    Engine::load(&testing::tiny_pipeline(), &testing::tiny_assets(), options).await.unwrap()
}

async fn faces(engine: &Engine, photo: Vec<u8>) -> Vec<AnalysedFace> {
    let limits = DecodeLimits { max_bytes: 1 << 24, max_pixels: 1 << 24, max_side: 1 << 13 };
    analyse(engine, photo, limits, Keep::Nothing).await.unwrap().faces
}

fn jpeg(people: &[u32], width: u32, height: u32, quality: u8) -> Vec<u8> {
    let picture = testing::synthetic_picture(people, width, height);
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .write_image(&picture.rgb, width, height, ExtendedColorType::Rgb8)
        .unwrap();
    bytes
}

#[tokio::test]
async fn finds_every_square_once_and_where_it_is() {
    let engine = tiny(EngineOptions::for_cpu(1)).await;
    for (count, width, height) in
        [(1u32, 160, 120), (1, 480, 360), (2, 640, 480), (5, 800, 600), (12, 1200, 900), (1, 3000, 2000), (3, 300, 900)]
    {
        let people: Vec<u32> = (0..count).collect();
        let found = faces(&engine, testing::synthetic_photo(&people, width, height)).await;
        assert_eq!(found.len(), people.len(), "{count} people on {width}x{height}");
        for square in testing::synthetic_squares(people.len(), width, height) {
            let iou = found.iter().map(|f| f.detection.bounding_box.iou(&square)).fold(0.0, f32::max);
            assert!(iou > 0.9, "{count} people on {width}x{height}: {iou}");
        }
        for face in found {
            assert!(face.detection.score > engine.pipeline().detector.match_score);
            if face.detection.bounding_box.width >= 60.0 {
                assert_eq!(face.quality.reasons(&Gate::enroll(0.8)), [], "{:?}", face.quality);
            }
        }
    }
    assert!(faces(&engine, testing::synthetic_photo(&[], 640, 480)).await.is_empty());
}

#[tokio::test]
async fn tells_fifty_people_apart() {
    let engine = tiny(EngineOptions::for_cpu(1)).await;
    let mut vectors: Vec<[Embedding; 2]> = Vec::new();
    for seed in 0..50 {
        let mut one = faces(&engine, testing::synthetic_photo(&[seed], 320, 320)).await;
        let mut other = faces(&engine, jpeg(&[seed], 500, 410, 80)).await;
        assert_eq!((one.len(), other.len()), (1, 1));
        vectors.push([one.remove(0).embedding, other.remove(0).embedding]);
    }
    for (a, one) in vectors.iter().enumerate() {
        for (b, other) in vectors.iter().enumerate() {
            let cosine = one[0].cosine(&other[1]);
            assert!(if a == b { cosine > 0.9 } else { cosine < 0.55 }, "{a} and {b}: {cosine}");
        }
    }
}

#[tokio::test]
async fn batches_and_single_runs_agree() {
    let single = tiny(EngineOptions::for_cpu(2)).await;
    let batched = tiny(EngineOptions { batches: Ladder::of(&[1, 8, 32]), ..EngineOptions::for_cpu(1) }).await;
    let range = Range { channels: Channels::Rgb, mean: [127.5; 3], scale: [1.0 / 128.0; 3] };
    let inputs: Vec<_> = (0..40).map(|seed| range.tensor(&testing::synthetic_picture(&[seed], 112, 112))).collect();
    let alone = try_join_all(inputs.iter().cloned().map(|i| single.embed(i))).await.unwrap();
    let joined = try_join_all(inputs.into_iter().map(|i| batched.embed(i))).await.unwrap();
    for (one, other) in alone.iter().zip(&joined) {
        assert_eq!(one.len(), 64);
        assert!(one.iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-4));
    }
    assert_ne!(alone[0], alone[1]);
}

/// The tiny recognizer with another batch size, free or fixed, in its inputs and outputs.
fn with_batch_of(size: u8, folder: &Path) -> (Pipeline, Assets) {
    let models = folder.join("models");
    std::fs::create_dir(&models).unwrap();
    let own = testing::repository().join("models/tiny");
    std::fs::copy(own.join("tiny_detector.onnx"), models.join("tiny_detector.onnx")).unwrap();
    let mut file = std::fs::read(own.join("tiny_recognizer.onnx")).unwrap();
    // A dimension's field 2 is its name, field 1 its value, here a number in as many bytes as the name has.
    let (named, valued) = (b"\x12\x05batch", [0x08, size | 0x80, 0x80, 0x80, 0x80, 0x80, 0x00]);
    let places: Vec<usize> = (0..file.len() - named.len()).filter(|at| file[*at..].starts_with(named)).collect();
    assert_eq!(places.len(), 2);
    for at in places {
        file[at..at + valued.len()].copy_from_slice(&valued);
    }
    let path = models.join("tiny_recognizer.onnx");
    std::fs::write(&path, file).unwrap();
    let mut pipeline = testing::tiny_pipeline();
    pipeline.recognizer.file.sha256 = crate::assets::sha256_of(&path).unwrap();
    (pipeline, Assets { assets_dir: Some(folder.to_owned()), ..testing::tiny_assets() })
}

#[tokio::test]
async fn a_model_whose_batch_size_is_fixed_runs_one_by_one_or_is_refused() {
    let options = EngineOptions { batches: Ladder::of(&[1, 8]), ..EngineOptions::for_cpu(1) };
    let (one, eight) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (pipeline, assets) = with_batch_of(1, one.path());
    let engine = Engine::load(&pipeline, &assets, options.clone()).await.unwrap();
    let answers = try_join_all((0..20).map(|_| engine.embed(black(&[1, 3, 112, 112])))).await.unwrap();
    assert!(answers.iter().all(|answer| *answer == answers[0] && answer.len() == 64));

    let (pipeline, assets) = with_batch_of(8, eight.path());
    let refused = Engine::load(&pipeline, &assets, options).await.unwrap_err().to_string();
    for part in ["tiny_recognizer.onnx", "n free or 1", "[8, 3, 112, 112]"] {
        assert!(refused.contains(part), "{refused} lacks {part}");
    }
}

/// With a library that knows no GPU, or on a machine that has none.
#[tokio::test]
#[expect(clippy::print_stdout, reason = "whoever runs the tests must see what was not tested")]
async fn a_gpu_that_is_not_there_is_an_error_and_no_fallback() {
    if std::path::Path::new("/dev/nvidia0").try_exists().unwrap() {
        println!("this machine has a GPU; not tested");
        return;
    }
    let options = EngineOptions { provider: ExecutionProvider::Cuda, ..EngineOptions::for_cpu(1) };
    let refused = Engine::load(&testing::tiny_pipeline(), &testing::tiny_assets(), options).await.unwrap_err();
    assert!(matches!(refused, EngineError::Session(SessionError::Load { .. })), "{refused:?}");
}

#[tokio::test]
async fn an_input_that_the_model_refuses_is_an_error_and_no_end() {
    let engine = tiny(EngineOptions::for_cpu(1)).await;
    let refused = engine.embed(black(&[1, 3, 64, 64])).await.unwrap_err();
    assert!(matches!(refused, InferenceError::Run(_)), "{refused}");
    engine.probe().await.unwrap();
}

#[tokio::test]
async fn callers_that_go_away_leave_the_line_usable() {
    let engine = tiny(EngineOptions::for_cpu(1)).await;
    let answered = Arc::new(AtomicUsize::new(0));
    let impatient = (0..64).map(|_| {
        let (engine, answered) = (engine.clone(), Arc::clone(&answered));
        async move {
            let gone = tokio::time::timeout(Duration::from_micros(200), engine.detect(black(&[1, 3, 640, 640]))).await;
            answered.fetch_add(usize::from(gone.is_ok()), Ordering::Relaxed);
        }
    });
    join_all(impatient).await;
    assert!(answered.load(Ordering::Relaxed) < 64);
    tokio::time::timeout(Duration::from_secs(10), engine.probe()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_model_that_is_not_what_the_entry_says_is_named() {
    let mut longer = testing::tiny_pipeline();
    longer.recognizer.dimension = 128;
    let mut swapped = testing::tiny_pipeline();
    swapped.detector.file = swapped.recognizer.file.clone();
    let mut other_family = testing::tiny_pipeline();
    other_family.detector.family = DetectorFamily::Scrfd;
    for (pipeline, parts) in [
        (longer, ["tiny_recognizer.onnx", "128 components", "64"]),
        (swapped, ["tiny_recognizer.onnx", "12 outputs", "112"]),
        (other_family, ["tiny_detector.onnx", "9 outputs", "12 outputs"]),
    ] {
        let refused =
            Engine::load(&pipeline, &testing::tiny_assets(), EngineOptions::for_cpu(1)).await.unwrap_err().to_string();
        for part in parts {
            assert!(refused.contains(part), "{refused} lacks {part}");
        }
    }
}

#[tokio::test]
async fn two_models_whose_files_are_called_alike_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    for (name, place) in [("tiny_detector.onnx", "models/one"), ("tiny_recognizer.onnx", "models/other")] {
        let place = folder.path().join(place);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::copy(testing::repository().join("models/tiny").join(name), place.join("model.onnx")).unwrap();
    }
    let mut pipeline = testing::tiny_pipeline();
    for file in [&mut pipeline.detector.file, &mut pipeline.recognizer.file] {
        file.name = "model.onnx".to_owned();
    }
    let assets = Assets { assets_dir: Some(folder.path().to_owned()), ..testing::tiny_assets() };
    let engine = Engine::load(&pipeline, &assets, EngineOptions::for_cpu(1)).await.unwrap();
    assert_eq!(engine.detect(black(&[1, 3, 96, 160])).await.unwrap().len(), 12);
}

#[tokio::test]
async fn a_file_that_is_no_model_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models");
    std::fs::create_dir(&models).unwrap();
    std::fs::write(models.join("tiny_detector.onnx"), "no model").unwrap();
    let mut pipeline = testing::tiny_pipeline();
    pipeline.detector.file.sha256 = crate::assets::sha256_of(&models.join("tiny_detector.onnx")).unwrap();
    pipeline.detector.file.size_bytes = 8;
    let recognizer = testing::repository().join("models/tiny/tiny_recognizer.onnx");
    std::fs::copy(recognizer, models.join("tiny_recognizer.onnx")).unwrap();
    let assets = Assets { assets_dir: Some(folder.path().to_owned()), ..testing::tiny_assets() };
    let refused = Engine::load(&pipeline, &assets, EngineOptions::for_cpu(1)).await.unwrap_err().to_string();
    assert!(refused.contains("tiny_detector.onnx") && refused.contains("models verify"), "{refused}");
}

#[tokio::test]
async fn the_default_pipeline_loads_and_runs() {
    let catalogue = testing::catalogue();
    let pipeline = catalogue.pipeline("yunet-mobilefacenet").unwrap();
    let Some(assets) = testing::real_assets(pipeline) else { return };
    let engine = Engine::load(pipeline, &assets, EngineOptions::for_cpu(1)).await.unwrap();
    assert_eq!(engine.detect(black(&[1, 3, 96, 160])).await.unwrap().len(), 12);
    assert_eq!(engine.embed(black(&[1, 3, 112, 112])).await.unwrap().len(), 128);
}

#[tokio::test]
async fn a_recognizer_that_answers_otherwise_than_its_entry_says_is_refused() {
    let fingerprint = tiny(EngineOptions::for_cpu(1)).await.fingerprint().await.unwrap();
    assert_eq!(fingerprint.vectors.iter().map(Vec::len).collect::<Vec<_>>(), [64, 64]);
    let entry = Pipeline { fingerprint: Some(fingerprint), ..testing::tiny_pipeline() };
    let load = async |entry: &Pipeline| {
        Engine::load(entry, &testing::tiny_assets(), EngineOptions::for_cpu(1)).await.map(drop)
    };
    load(&entry).await.unwrap();

    let mut other_order = entry.clone();
    other_order.recognizer.channels = Channels::Bgr;
    let refused = load(&other_order).await.unwrap_err();
    assert!(matches!(refused, EngineError::Fingerprint { crop: 1, cosine, .. } if cosine < 0.999), "{refused}");
    for part in ["tiny_recognizer.onnx", "test crop 1", "0.999 is needed", "models fingerprint tiny"] {
        assert!(refused.to_string().contains(part), "{refused} lacks {part}");
    }
    let mut other_second = entry;
    other_second.fingerprint.as_mut().unwrap().vectors[1] = vec![1.0; 64];
    assert!(matches!(load(&other_second).await.unwrap_err(), EngineError::Fingerprint { crop: 2, .. }));
}

#[tokio::test]
async fn a_processor_without_what_the_entry_asks_for_is_refused() {
    let entry = Pipeline { requires: vec![CpuFeature::Avx512Vnni, CpuFeature::Dotprod], ..testing::tiny_pipeline() };
    let load = async |features| {
        let options = EngineOptions { features, ..EngineOptions::for_cpu(1) };
        Engine::load(&entry, &testing::tiny_assets(), options).await.map(drop)
    };
    load(&[CpuFeature::Dotprod]).await.unwrap();
    let refused = load(&[CpuFeature::AvxVnni]).await.unwrap_err().to_string();
    for part in ["pipeline tiny", "avx512_vnni or dotprod", "another pipeline"] {
        assert!(refused.contains(part), "{refused} lacks {part}");
    }
}

/// The entry's fingerprint was made on one machine; every other one that may run it has to agree.
#[tokio::test]
async fn the_int8_pipeline_gives_the_vectors_of_its_entry_or_is_refused() {
    let catalogue = testing::catalogue();
    let pipeline = catalogue.pipeline("yunet-mobilefacenet-int8").unwrap();
    assert!(pipeline.fingerprint.is_some());
    let Some(assets) = testing::real_assets(pipeline) else { return };
    let loaded = Engine::load(pipeline, &assets, EngineOptions::for_cpu(1)).await;
    if pipeline.runs_on(CpuFeature::of_this_machine()) {
        assert_eq!(loaded.unwrap().embed(black(&[1, 3, 112, 112])).await.unwrap().len(), 128);
    } else {
        assert!(matches!(loaded, Err(EngineError::Processor { .. })));
    }
}
