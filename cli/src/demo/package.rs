//! What the demo runs where the usual pipeline or photographs cannot be had: dlib's models, which a Python package holds, and
//! the pictures that come with another, of which one shows a face.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use image::{Rgb, RgbImage, imageops};
use shared::catalogue::{Catalogue, Pipeline};
use shared::config::Config;
use shared::digest::sha256_hex;
use worker::assets::{AssetError, Assets};

use super::photos::{Enroll, Photos, Probe};
use crate::models::import::{import_dlib, package};

/// The pipeline of what is imported.
const PIPELINE: &str = "dlib";
/// The package with the pictures, as pip is asked for it, and where they lie within.
const PACKAGE: &str = "scikit-image==0.26.0";
const FOLDER: &str = "skimage/data";
const PERSON: &str = "Eileen Collins";

/// A picture of the package.
struct Picture {
    file: &'static str,
    sha256: &'static str,
    rights: &'static str,
}

const FACE: Picture = Picture {
    file: "astronaut.png",
    sha256: "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    rights: "public domain (NASA), by way of scikit-image",
};
const NO_FACES: [Picture; 3] = [
    Picture {
        file: "coffee.png",
        sha256: "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        rights: "CC0 (Rachel Michetti), by way of scikit-image",
    },
    Picture {
        file: "chelsea.png",
        sha256: "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        rights: "CC0 (Stefan van der Walt), by way of scikit-image",
    },
    Picture {
        file: "rocket.jpg",
        sha256: "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        rights: "public domain (SpaceX), by way of scikit-image",
    },
];

/// Why the default pipeline's weights cannot be had; none where they are here, or were fetched.
pub(super) async fn lacks_weights(config: &Config, catalogue: &Catalogue) -> anyhow::Result<Option<AssetError>> {
    let assets = Assets::configured(config);
    let pipeline = catalogue.pipeline(&config.models.default_pipeline)?;
    let is_chosen = pipeline.name != Config::from_sources(None, HashMap::new())?.models.default_pipeline;
    for file in pipeline.files() {
        match assets.weights(pipeline, file).await {
            Ok(_) => {}
            // Who switched downloads off, or chose a pipeline, has none of it.
            Err(missing @ AssetError::Missing { .. }) if config.models.allow_download && !is_chosen => {
                return Ok(Some(missing));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// dlib's pipeline, once its models are here.
pub(super) async fn pipeline<'a>(config: &Config, catalogue: &'a Catalogue) -> anyhow::Result<&'a Pipeline> {
    import_dlib(&Assets::configured(config), None).await.context("import dlib's models in their place")?;
    Ok(catalogue.pipeline(PIPELINE)?)
}

impl Photos {
    /// The pictures of the package and others made of them, below `folder`.
    pub(super) async fn of_package(config: &Config, folder: &Path) -> anyhow::Result<Self> {
        let mut found = find(config).await?;
        let mut path = |picture: &Picture| found.remove(picture.file).context("a picture is missing; this is a bug");
        let face = path(&FACE)?;
        let mut probes = Vec::new();
        for (name, changed) in variants(&image::open(&face).context("read the photograph")?.into_rgb8()) {
            let path = folder.join(format!("{name}.png"));
            changed.save(&path).with_context(|| format!("write {}", path.display()))?;
            probes.push(Probe { path, shows: Some(vec![PERSON.to_owned()]) });
        }
        for picture in &NO_FACES {
            probes.push(Probe { path: path(picture)?, shows: Some(Vec::new()) });
        }
        let rights = std::iter::once(&FACE).chain(&NO_FACES);
        let rights = rights.map(|picture| (picture.file.to_owned(), picture.rights.to_owned())).collect();
        Ok(Self { enroll: vec![Enroll { path: face, person: PERSON.to_owned() }], probes, rights })
    }
}

/// The pictures in the cache, where they are put if one is missing.
async fn find(config: &Config) -> anyhow::Result<BTreeMap<&'static str, PathBuf>> {
    let pictures = || std::iter::once(&FACE).chain(&NO_FACES);
    let cached = config.cache_dir().join("photos");
    if !pictures().all(|picture| is_it(picture, &cached.join(picture.file))) {
        let package = package::unpacked(PACKAGE, config.cache_dir()).await?;
        std::fs::create_dir_all(&cached).with_context(|| format!("make the folder {}", cached.display()))?;
        for picture in pictures() {
            let (from, to) = (package.path().join(FOLDER).join(picture.file), cached.join(picture.file));
            ensure!(is_it(picture, &from), "{PACKAGE} has another {}", picture.file);
            let unfinished = to.with_extension("part");
            std::fs::copy(&from, &unfinished).with_context(|| format!("write {}", unfinished.display()))?;
            std::fs::rename(&unfinished, &to).with_context(|| format!("write {}", to.display()))?;
        }
    }
    Ok(pictures().map(|picture| (picture.file, cached.join(picture.file))).collect())
}

fn is_it(picture: &Picture, path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|bytes| sha256_hex(bytes) == picture.sha256)
}

/// As other photographs of the same person would be: from another side, in less light, with a tilted head, from nearer.
fn variants(photo: &RgbImage) -> [(&'static str, RgbImage); 4] {
    let (width, height) = photo.dimensions();
    let mut dimmed = photo.clone();
    for Rgb(pixel) in dimmed.pixels_mut() {
        *pixel = pixel.map(|colour| colour / 2);
    }
    let near = imageops::crop_imm(photo, width / 8, 0, width / 2, height / 2).to_image();
    let near = imageops::resize(&near, width, height, imageops::FilterType::Triangle);
    [
        ("mirrored", imageops::flip_horizontal(photo)),
        ("dimmed", dimmed),
        ("turned", turned(photo, 12.0)),
        ("nearer", near),
    ]
}

/// Turned by these degrees around its middle; black where it shows nothing.
fn turned(photo: &RgbImage, degrees: f32) -> RgbImage {
    let (width, height) = photo.dimensions();
    let (sin, cos) = degrees.to_radians().sin_cos();
    let middle = [width, height].map(|side| (side as f32 - 1.0) / 2.0);
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (x as f32 - middle[0], y as f32 - middle[1]);
        let (from_x, from_y) = (cos * x + sin * y + middle[0], cos * y - sin * x + middle[1]);
        if from_x < 0.0 || from_y < 0.0 {
            return Rgb([0; 3]);
        }
        imageops::interpolate_bilinear(photo, from_x, from_y).unwrap_or(Rgb([0; 3]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_other_pictures_of_the_same() {
        let photo =
            RgbImage::from_fn(80, 60, |x, y| Rgb([if x < 40 { 200 } else { 100 }, if y < 30 { 50 } else { 250 }, 9]));
        let [mirrored, dimmed, turned, nearer] = variants(&photo).map(|(_, picture)| picture);
        assert_eq!((mirrored[(0, 0)], mirrored[(79, 0)]), (Rgb([100, 50, 9]), Rgb([200, 50, 9])));
        assert_eq!(dimmed[(0, 59)], Rgb([100, 125, 4]));
        assert_eq!((turned[(0, 0)], turned[(30, 15)]), (Rgb([0; 3]), Rgb([200, 50, 9])));
        // The upper half from an eighth to five eighths, at twice the size.
        assert_eq!(
            (nearer.dimensions(), nearer[(50, 10)], nearer[(70, 10)]),
            ((80, 60), Rgb([200, 50, 9]), Rgb([100, 50, 9]))
        );
    }
}
