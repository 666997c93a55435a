//! Fixtures for tests: the tiny pipeline (`models/tiny`), pictures of the synthetic faces that it knows, and where a
//! test finds real weights.

use std::path::{Path, PathBuf};

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use shared::catalogue::{Catalogue, ModelFile, Pipeline};
use shared::config::Config;

use crate::assets::Assets;
use crate::vision::test_crop::splitmix64;
use crate::vision::{BoundingBox, Picture};

/// Blocks along each side of a face's pattern.
const BLOCKS: u32 = 8;
/// A pattern's two values.
const LEVELS: [u8; 2] = [40, 220];
/// Blue of a face and of everything else.
const BLUE: [u8; 2] = [60, 255];
/// Blue of a face that is not live.
const DIM_BLUE: u8 = 200;
/// A square's side as a share of the cell that it has to itself.
const SHARE: f32 = 0.45;

/// The folder that holds `models/`, and in it the tiny weights.
pub fn repository() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    folder.parent().map_or_else(|| folder.to_owned(), Path::to_owned)
}

/// The catalogue with the entry `tiny`.
///
/// # Panics
/// `models/tiny` cannot be read.
pub fn catalogue() -> Catalogue {
    Catalogue::load(Some(&repository().join("models/tiny"))).expect("read models/tiny")
}

/// The entry `tiny`.
///
/// # Panics
/// `models/tiny` cannot be read.
pub fn tiny_pipeline() -> Pipeline {
    catalogue().pipeline("tiny").expect("models/tiny has its entry").clone()
}

/// Finds the tiny weights in the repository, and ONNX Runtime where the environment says.
///
/// # Panics
/// The environment's settings cannot be read.
pub fn tiny_assets() -> Assets {
    assets_below(Some(repository()))
}

/// Finds a pipeline's real weights where the environment says; `None`, with a line that says so, where they are not there.
///
/// # Panics
/// With `FACE_ID_REQUIRE_ASSETS=1` in place of `None`, and where the environment's settings cannot be read.
pub fn real_assets(pipeline: &Pipeline) -> Option<Assets> {
    let config = environment();
    let assets = assets_below(config.assets_dir().map(Path::to_owned));
    has_weights(&assets, &pipeline.name, pipeline.files()).then_some(assets)
}

/// Whether all files of an entry are there; where not, a line says so.
///
/// # Panics
/// With `FACE_ID_REQUIRE_ASSETS=1` where one is missing.
pub fn has_weights(assets: &Assets, entry: &str, files: Vec<&ModelFile>) -> bool {
    let is_complete = files.into_iter().all(|file| assets.find(file).is_some());
    if !is_complete {
        let missing = format!("the weights of {entry} are not below FACE_ID_ASSETS_DIR");
        assert!(!assets_required(), "FACE_ID_REQUIRE_ASSETS=1, but {missing}");
        eprintln!("skipped: {missing}");
    }
    is_complete
}

/// Finds a folder or file of real test data, by its path below `data`; `None`, with a line that says so, where it is not there.
///
/// # Panics
/// With `FACE_ID_REQUIRE_ASSETS=1` in place of `None`, and where the environment's settings cannot be read.
pub fn real_data(name: &str) -> Option<PathBuf> {
    let config = environment();
    let found =
        config.assets_dir().map(|dir| dir.join("data").join(name)).filter(|path| path.try_exists().unwrap_or(false));
    if found.is_none() {
        let missing = format!("data/{name} is not below FACE_ID_ASSETS_DIR");
        assert!(!assets_required(), "FACE_ID_REQUIRE_ASSETS=1, but {missing}");
        eprintln!("skipped: {missing}");
    }
    found
}

/// Whether a test that lacks its files fails in place of being skipped.
pub fn assets_required() -> bool {
    std::env::var_os("FACE_ID_REQUIRE_ASSETS").is_some_and(|v| v == "1")
}

/// A PNG of these people's synthetic faces, in rows from the top left, on a shaded ground. Nobody: a picture without a
/// face. The same seed is the same person in every picture; `models/tiny/README.md` describes the pattern.
///
/// # Panics
/// A side is zero.
pub fn synthetic_photo(people: &[u32], width: u32, height: u32) -> Vec<u8> {
    png(&synthetic_picture(people, width, height))
}

/// A [`synthetic_photo`] whose faces are found just as well, and which `tiny-live` takes for pictures of faces.
///
/// # Panics
/// A side is zero.
pub fn synthetic_spoof(people: &[u32], width: u32, height: u32) -> Vec<u8> {
    let mut picture = synthetic_picture(people, width, height);
    picture.rgb.iter_mut().skip(2).step_by(3).for_each(|blue| *blue = (*blue).min(DIM_BLUE));
    png(&picture)
}

fn png(picture: &Picture) -> Vec<u8> {
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&picture.rgb, picture.width, picture.height, ExtendedColorType::Rgb8)
        .expect("encode a picture into memory");
    png
}

/// A [`synthetic_photo`] that was taken at this time, `YYYY-MM-DDTHH:MM:SS` or the same with `+HH:MM` behind it.
///
/// # Panics
/// A side is zero, or the time is shorter.
pub fn dated_photo(people: &[u32], width: u32, height: u32, captured_at: &str) -> Vec<u8> {
    let (time, offset) = captured_at.split_at(19);
    let time = time.replace('-', ":").replace('T', " ");
    let texts = [(0x9003, time.as_str()), (0x9011, offset)];
    let picture = synthetic_picture(people, width, height);
    let mut png = Vec::new();
    let mut encoder = PngEncoder::new(&mut png);
    let texts = if offset.is_empty() { &texts[..1] } else { &texts };
    encoder.set_exif_metadata(exif_block(true, texts)).expect("a png has room for it");
    encoder.write_image(&picture.rgb, width, height, ExtendedColorType::Rgb8).expect("encode a picture into memory");
    png
}

/// An EXIF block whose camera directory holds these texts by their tags, in either byte order.
///
/// # Panics
/// A text is longer than a block can be.
pub fn exif_block(is_little_endian: bool, texts: &[(u16, &str)]) -> Vec<u8> {
    /// ASCII, as a directory's entry says it.
    const ASCII: u16 = 2;
    let half = |value: u16| if is_little_endian { value.to_le_bytes() } else { value.to_be_bytes() };
    let word = |value: usize| {
        let value = u32::try_from(value).expect("a text is short");
        if is_little_endian { value.to_le_bytes() } else { value.to_be_bytes() }
    };
    let mut bytes = if is_little_endian { b"II".to_vec() } else { b"MM".to_vec() };
    bytes.extend(half(42));
    bytes.extend(word(8));
    // The first directory has one entry: where the camera's is, behind it.
    bytes.extend(half(1));
    bytes.extend([&half(0x8769)[..], &half(4), &word(1), &word(26), &word(0)].concat());
    bytes.extend(half(u16::try_from(texts.len()).expect("there are few")));
    let mut at = 26 + 2 + texts.len() * 12 + 4;
    for (tag, text) in texts {
        bytes.extend([&half(*tag)[..], &half(ASCII), &word(text.len() + 1), &word(at)].concat());
        at += text.len() + 1;
    }
    bytes.extend(word(0));
    for (_, text) in texts {
        bytes.extend(text.as_bytes());
        bytes.push(0);
    }
    bytes
}

/// The pixels of [`synthetic_photo`].
pub fn synthetic_picture(people: &[u32], width: u32, height: u32) -> Picture {
    let squares = synthetic_squares(people.len(), width, height);
    let rgb = (0..width * height)
        .flat_map(|n| {
            let (x, y) = (n % width, n / width);
            people.iter().zip(&squares).find_map(|(seed, square)| face_pixel(*seed, square, x, y)).unwrap_or_else(
                || {
                    // Different wherever the face is, so that no two crops share an edge by chance.
                    let shade = u8::try_from(80 + (x * 3 + y * 5) / 16 % 64).unwrap_or_default();
                    [shade, shade, BLUE[0]]
                },
            )
        })
        .collect();
    Picture { width, height, rgb }
}

/// Where [`synthetic_photo`] puts `count` faces, in whole pixels.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small positive numbers")]
pub fn synthetic_squares(count: usize, width: u32, height: u32) -> Vec<BoundingBox> {
    let (wide, high) = (width as f32, height as f32);
    let columns = ((count as f32 * wide / high).sqrt().round() as usize).clamp(1, count.max(1));
    let rows = count.div_ceil(columns).max(1);
    let cell = [wide / columns as f32, high / rows as f32];
    let side = (cell[0].min(cell[1]) * SHARE).floor().max(1.0);
    (0..count)
        .map(|n| {
            let place = |at: usize, cell: f32| (at as f32 * cell + (cell - side) / 2.0).floor();
            BoundingBox { x: place(n % columns, cell[0]), y: place(n / columns, cell[1]), width: side, height: side }
        })
        .collect()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small positive numbers")]
fn face_pixel(seed: u32, square: &BoundingBox, x: u32, y: u32) -> Option<[u8; 3]> {
    let block = |at: u32, from: f32, side: f32| {
        let inside = (at as f32 - from) / side;
        (0.0..1.0).contains(&inside).then_some((inside * BLOCKS as f32) as u32)
    };
    let column = block(x, square.x, square.width)?;
    let row = block(y, square.y, square.height)?;
    let [red, green] = pattern(seed).map(|bits| LEVELS[usize::from(bits >> (row * BLOCKS + column) & 1 == 1)]);
    Some([red, green, BLUE[1]])
}

/// One bit a block, row by row from the lowest, for red and for green.
fn pattern(seed: u32) -> [u64; 2] {
    let mut state = u64::from(seed);
    [(); 2].map(|()| splitmix64(&mut state))
}

fn assets_below(assets_dir: Option<PathBuf>) -> Assets {
    let config = environment();
    Assets {
        assets_dir,
        cache_dir: config.cache_dir().to_owned(),
        runtime_library: config.runtime_library().map(Path::to_owned),
        allow_download: false,
        accepted_licences: Vec::new(),
    }
}

fn environment() -> Config {
    Config::load(None).expect("read the settings of the environment")
}
