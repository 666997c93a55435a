//! Pictures made for a measurement: faces that the tiny models know, and variants of photographs.

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, Rgb, RgbImage, imageops};
use tokio::task::JoinSet;

use super::gallery::Random;

/// Width and height of a picture for the tiny models: the detector is shown 384 x 96 of it, a quarter of what a square
/// would cost.
const SIZE: [u32; 2] = [256, 64];
/// Columns and rows of the face's square.
const SQUARE: [std::ops::Range<u32>; 2] = [112..144, 16..48];
/// Blocks along each side of the square, its two values, and blue inside and outside (models/tiny/README.md).
const BLOCKS: u32 = 8;
const LEVELS: [u8; 2] = [40, 220];
const BLUE: [u8; 2] = [60, 255];
const QUALITY: u8 = 90;
/// A variant shows at least this share of its photograph's sides, at most 5 % lighter or darker.
const LEAST_PART: f32 = 0.9;
const LIGHTER: f32 = 0.1;
/// Pictures that one task makes.
const A_TASK: usize = 200;

/// Draws so many pictures of one synthetic face each, every one another person's.
pub(super) async fn draw(folder: &Path, count: usize) -> anyhow::Result<()> {
    make(folder, count, |n, random| {
        let [red, green] = [(); 2].map(|()| (0..BLOCKS * BLOCKS).map(|_| LEVELS[random.below(2)]).collect::<Vec<_>>());
        let [columns, rows] = SQUARE;
        let block = |at: u32, of: &std::ops::Range<u32>| (at - of.start) * BLOCKS / (of.end - of.start);
        let shade = u8::try_from(80 + n % 64).unwrap_or_default();
        Ok(RgbImage::from_fn(SIZE[0], SIZE[1], |x, y| {
            if !columns.contains(&x) || !rows.contains(&y) {
                return Rgb([shade, shade, BLUE[0]]);
            }
            let at = (block(y, &rows) * BLOCKS + block(x, &columns)) as usize;
            Rgb([red[at], green[at], BLUE[1]])
        }))
    })
    .await
}

/// Makes so many pictures of which no two are alike: each a part of one of the photographs, mirrored or not, lighter or
/// darker.
pub(super) async fn vary(photographs: &[PathBuf], folder: &Path, count: usize) -> anyhow::Result<()> {
    let photographs = photographs.to_vec();
    make(folder, count, move |n, random| {
        let path = &photographs[n % photographs.len()];
        let photograph = image::open(path).with_context(|| format!("read {}", path.display()))?.into_rgb8();
        let (width, height) = photograph.dimensions();
        let share = LEAST_PART + (1.0 - LEAST_PART) * random.uniform();
        let [part_width, part_height] = [width, height].map(|side| pixels(side as f32 * share).max(1));
        let place = |random: &mut Random, room: u32| pixels(room as f32 * random.uniform());
        let (x, y) = (place(random, width - part_width), place(random, height - part_height));
        let mut part = imageops::crop_imm(&photograph, x, y, part_width, part_height).to_image();
        if random.below(2) == 1 {
            imageops::flip_horizontal_in_place(&mut part);
        }
        let gain = 1.0 + LIGHTER * (random.uniform() - 0.5);
        part.pixels_mut().for_each(|pixel| pixel.0 = pixel.0.map(|value| scaled(value, gain)));
        Ok(part)
    })
    .await
}

/// Makes pictures in tasks of [`A_TASK`], each picture from a generator of its own, into files named by their number.
async fn make(
    folder: &Path,
    count: usize,
    one: impl Fn(usize, &mut Random) -> anyhow::Result<RgbImage> + Clone + Send + 'static,
) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for first in (0..count).step_by(A_TASK) {
        let (one, folder) = (one.clone(), folder.to_owned());
        tasks.spawn_blocking(move || {
            for n in first..count.min(first + A_TASK) {
                let mut random = Random::seeded(n as u64);
                write(&folder.join(format!("{n:06}.jpg")), one(n, &mut random)?)?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(made) = tasks.join_next().await {
        made??;
    }
    Ok(())
}

fn write(path: &Path, picture: RgbImage) -> anyhow::Result<()> {
    let failed = || format!("write {}", path.display());
    let mut file = BufWriter::new(std::fs::File::create(path).with_context(failed)?);
    DynamicImage::from(picture)
        .write_with_encoder(JpegEncoder::new_with_quality(&mut file, QUALITY))
        .with_context(failed)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a length within a picture")]
fn pixels(length: f32) -> u32 {
    length as u32
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
fn scaled(value: u8, gain: f32) -> u8 {
    (f32::from(value) * gain).round() as u8
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn pixels_of(folder: &Path) -> Vec<Vec<u8>> {
        let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| image::open(path).unwrap().into_rgb8().into_raw()).collect()
    }

    #[tokio::test]
    async fn no_two_pictures_are_alike_and_all_are_the_same_in_the_next_run() {
        let [drawn, varied, again] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        draw(drawn.path(), 300).await.unwrap();
        let photographs: Vec<_> = (0..3).map(|n| drawn.path().join(format!("{n:06}.jpg"))).collect();
        vary(&photographs, varied.path(), 30).await.unwrap();
        vary(&photographs, again.path(), 30).await.unwrap();
        let [drawn, varied, again] = [drawn, varied, again].map(|folder| pixels_of(folder.path()));
        assert_eq!((drawn.len(), varied.len()), (300, 30));
        for pictures in [&drawn, &varied] {
            assert_eq!(pictures.iter().collect::<HashSet<_>>().len(), pictures.len());
        }
        assert_eq!(varied, again);
    }
}
