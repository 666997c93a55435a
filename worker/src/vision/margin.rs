//! The crop that is kept of a face, with so much around it that any alignment can be cut from it afterwards.

use std::io::Cursor;

use image::codecs::png::PngEncoder;
use image::imageops::FilterType;
use image::{ExtendedColorType, ImageEncoder as _, RgbImage};

use shared::catalogue::LandmarkScheme;

use super::align::{Affine, AlignError, crop_area};
use super::resize::part;
use super::{BoundingBox, Landmarks, Picture, encode};

/// Width and height in pixels at most.
pub const SIDE: u32 = 224;
/// No file of one is longer: one of random pixels has 130,000 bytes.
pub const MAX_CROP_BYTES: usize = 1 << 20;
/// Of JPEG. At 75 vectors no longer agree with those from the picture (a cosine of 0.967).
const QUALITY: u8 = 95;
/// Pixels for one of [`TEMPLATE`]: a recognizer's crop of 112 pixels lies within 157, and a third of it is around.
const ENLARGED: f32 = 1.4;
/// The five-point template of `ArcFace` (Deng et al. 2019), in a crop of 112 pixels.
const TEMPLATE: [[f32; 2]; 5] =
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]];

/// dlib's five points of the same face: the mean shape of its alignment (`get_face_chip_details`), its eyes brought to those of
/// [`TEMPLATE`].
const DLIB_TEMPLATE: [[f32; 2]; 5] = [[80.69, 51.08], [66.37, 52.11], [31.14, 51.09], [45.45, 52.12], [55.92, 78.86]];

/// The part of a picture that is kept of a face: what lies in an upright crop of [`SIDE`] pixels around the template.
pub(crate) fn area(landmarks: &Landmarks) -> Result<BoundingBox, AlignError> {
    let (scheme, template) = match landmarks.scheme() {
        LandmarkScheme::FivePoint | LandmarkScheme::Ibug68 => (LandmarkScheme::FivePoint, TEMPLATE),
        LandmarkScheme::Dlib5 => (LandmarkScheme::Dlib5, DLIB_TEMPLATE),
    };
    let points = landmarks.as_scheme(scheme).ok_or(AlignError)?;
    let side = SIDE as f32;
    let template = template.map(|point| point.map(|at| (at - 56.0) * ENLARGED + side / 2.0));
    Ok(crop_area(&Affine::similarity(&points, &template)?, [SIDE; 2]))
}

/// Crops up to this many pixels wide and high are kept without loss: of a small face every pixel matters.
const LOSSLESS: u32 = 96;

/// A crop that is kept.
#[derive(Clone)]
pub struct MarginCrop {
    /// JPEG, or PNG of a small one, of at most [`SIDE`] x [`SIDE`] pixels.
    pub file: Vec<u8>,
    /// Where the face's points lie in it.
    pub landmarks: Landmarks,
}

impl std::fmt::Debug for MarginCrop {
    // Pixels are biometric data: a stray `{:?}` must not print them.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "MarginCrop({} bytes)", self.file.len())
    }
}

impl MarginCrop {
    /// Cuts the face at `landmarks` out of `picture`, pixel by pixel as they are; only what is larger than [`SIDE`] is reduced to
    /// it. What would lie outside of the picture is black to every alignment, here as there.
    pub fn cut(picture: &Picture, landmarks: &Landmarks) -> Result<Self, AlignError> {
        let area = area(landmarks)?;
        let [left, right] = clipped(area.x, area.width, picture.width);
        let [top, bottom] = clipped(area.y, area.height, picture.height);
        let crop = part(picture, [left, top].map(u32::cast_signed), [right - left, bottom - top]);
        let moved = landmarks.map(|[x, y]| [x - left as f32, y - top as f32]);
        let longer = crop.width.max(crop.height);
        if longer <= SIDE {
            return Ok(Self { file: file_of(&crop), landmarks: moved });
        }
        let reduced = reduced(crop, longer);
        let factor = [reduced.width as f32 / (right - left) as f32, reduced.height as f32 / (bottom - top) as f32];
        // A whole number is the middle of a pixel, in both.
        let along = |axis: usize, at: f32| (at + 0.5) * factor[axis] - 0.5;
        let landmarks = moved.map(|[x, y]| [along(0, x), along(1, y)]);
        Ok(Self { file: file_of(&reduced), landmarks })
    }
}

/// Where a stretch begins and ends that lies within `0..size`, at least one pixel of it.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the picture")]
fn clipped(from: f32, length: f32, size: u32) -> [u32; 2] {
    // A pixel more on each side, which bilinear samples at the edge read.
    let first = (from.floor() - 1.0).clamp(0.0, (size - 1) as f32) as u32;
    let end = (from + length).ceil().clamp(0.0, size as f32) as u32 + 1;
    [first, end.clamp(first + 1, size)]
}

fn reduced(crop: Picture, longer: u32) -> Picture {
    let along = |side: u32| (side * SIDE / longer).max(1);
    let (width, height) = (along(crop.width), along(crop.height));
    let Some(image) = RgbImage::from_raw(crop.width, crop.height, crop.rgb) else {
        unreachable!("it has all its pixels")
    };
    let image = image::imageops::resize(&image, width, height, FilterType::CatmullRom);
    Picture { width, height, rgb: image.into_raw() }
}

fn file_of(crop: &Picture) -> Vec<u8> {
    if crop.width.max(crop.height) > LOSSLESS {
        return encode::jpeg(crop, QUALITY);
    }
    let mut file = Cursor::new(Vec::with_capacity(1 << 14));
    let written = PngEncoder::new(&mut file).write_image(&crop.rgb, crop.width, crop.height, ExtendedColorType::Rgb8);
    written.expect("memory takes all that is written");
    file.into_inner()
}
