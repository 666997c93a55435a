//! `face-id models crops`: aligned faces of one's own photographs, for calibrating a quantized recognizer.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use shared::catalogue::Catalogue;
use shared::config::Config;
use shared::job::FaceChoice;
use worker::analysis::find_faces;
use worker::assets::Assets;
use worker::inference::{Engine, EngineOptions};
use worker::vision::Picture;
use worker::vision::choose::choose_face;
use worker::vision::crops::aligned_crops;
use worker::vision::decode::photo::Photo;
use worker::vision::decode::{DecodeLimits, decode};
use worker::vision::detect::overview_side;

/// Endings of the files that are looked at.
const ENDINGS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

#[derive(clap::Args)]
pub(crate) struct CropsArgs {
    /// A folder of photographs, at any depth.
    #[arg(long, value_name = "DIR")]
    photos: PathBuf,
    /// Where the crops are written, as PNG.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The pipeline whose detector and alignment are used; the default one where absent.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Crops to write at most.
    #[arg(long, value_name = "N", default_value_t = 300)]
    limit: usize,
}

/// Writes the largest face of each photograph, in the order of their paths.
#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(super) async fn run(config: &Config, catalogue: &Catalogue, args: &CropsArgs) -> anyhow::Result<()> {
    let pipeline = catalogue.pipeline(args.model.as_deref().unwrap_or(&config.models.default_pipeline))?;
    let engine = Engine::load(pipeline, &Assets::configured(config), EngineOptions::for_cpu(1)).await?;
    let limits = DecodeLimits {
        max_bytes: config.vision.max_image_bytes,
        max_pixels: config.vision.max_image_pixels,
        max_side: config.vision.max_image_side,
    };
    std::fs::create_dir_all(&args.out).with_context(|| format!("make the folder {}", args.out.display()))?;
    let (mut written, mut without) = (0, 0);
    for path in photographs(&args.photos)? {
        if written == args.limit {
            break;
        }
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let side = overview_side(&pipeline.detector);
        let photo = decode(bytes, &limits, side).with_context(|| format!("decode {}", path.display()))?;
        let Some(crop) = largest_face(&engine, &Arc::new(photo)).await? else {
            without += 1;
            continue;
        };
        let file = args.out.join(format!("{written:05}.png"));
        image::save_buffer(&file, &crop.rgb, crop.width, crop.height, image::ExtendedColorType::Rgb8)
            .with_context(|| format!("write {}", file.display()))?;
        written += 1;
    }
    anyhow::ensure!(written > 0, "no face was found on the photographs below {}", args.photos.display());
    println!("{written} crops in {}; {without} photographs without a face good enough", args.out.display());
    Ok(())
}

async fn largest_face(engine: &Engine, photo: &Arc<Photo>) -> anyhow::Result<Option<Picture>> {
    let pipeline = engine.pipeline();
    let mut faces = find_faces(engine, &pipeline.detector, photo).await?;
    faces.retain(|face| face.score >= pipeline.detector.match_score);
    let Ok(chosen) = choose_face(&faces, FaceChoice::Largest, photo.size) else { return Ok(None) };
    let crops = aligned_crops(photo, &faces[chosen..=chosen], &pipeline.alignment)?;
    Ok(crops.into_iter().find_map(Result::ok))
}

/// The photographs below a folder, in the order of their paths; links are not followed.
fn photographs(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = || format!("list {}", folder.display());
        for entry in std::fs::read_dir(&folder).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            let (kind, path) = (entry.file_type().with_context(failed)?, entry.path());
            let ending = path.extension().and_then(OsStr::to_str).map(str::to_lowercase);
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str())) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn photographs_are_found_at_any_depth_in_order() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("b/c")).unwrap();
        for name in ["b/c/2.JPG", "a.png", "notes.txt", "b/1.webp"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let found = photographs(folder.path()).unwrap();
        let names: Vec<_> = found.iter().map(|p| p.strip_prefix(folder.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.png", "b/1.webp", "b/c/2.JPG"]);
        assert!(photographs(&folder.path().join("nowhere")).is_err());
    }

    #[tokio::test]
    async fn the_largest_face_is_cut_out_aligned() {
        let pipeline = worker::testing::tiny_pipeline();
        let engine = Engine::load(&pipeline, &worker::testing::tiny_assets(), EngineOptions::for_cpu(1)).await.unwrap();
        let photo = |people: &[u32]| Arc::new(Photo::from(worker::testing::synthetic_picture(people, 480, 360)));
        let crop = largest_face(&engine, &photo(&[5])).await.unwrap().unwrap();
        assert_eq!((crop.width, crop.height), (112, 112));
        // The tiny models' template is the square itself, whose blue is full.
        let blue = |x: usize, y: usize| crop.rgb[3 * (y * 112 + x) + 2];
        assert!([(8, 8), (100, 8), (56, 56), (8, 100), (100, 100)].iter().all(|(x, y)| blue(*x, *y) > 250));
        assert!(largest_face(&engine, &photo(&[])).await.unwrap().is_none());
    }
}
