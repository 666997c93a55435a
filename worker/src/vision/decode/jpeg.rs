//! A jpeg file that is kept while its picture is worked on, so that parts of it can be decoded again at a larger scale.

use image::RgbImage;
use image::metadata::Orientation;

use super::exif::capture_time;
use super::outline::Outline;
use super::turbo::{self, Region, TurboError};
use super::{DecodeError, DecodeLimits, Format, upright};
use crate::vision::BoundingBox;
use crate::vision::frame::Frame;

/// Original pixels along a side of one pixel, at the scales that the library is quick at; the smallest scale first.
const REDUCED: [u32; 3] = [8, 4, 2];

/// Colours are often stored at half the resolution, and each is mixed with its neighbour's.
const MARGIN: f32 = 2.0;

/// A jpeg file that has a header and an end.
pub(super) struct Jpeg {
    bytes: Vec<u8>,
    /// Width and height as the file has them.
    stored: [u32; 2],
    orientation: Orientation,
    captured_at: Option<String>,
    /// Whether a smaller scale or a part of the picture takes less time than all of it.
    is_divisible: bool,
    max_memory: u64,
}

impl std::fmt::Debug for Jpeg {
    // The bytes are a person's picture: a stray `{:?}` must not print them.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Jpeg({}x{})", self.stored[0], self.stored[1])
    }
}

impl Jpeg {
    /// Reads the header and looks for the end.
    pub(super) fn open(bytes: Vec<u8>, limits: &DecodeLimits) -> Result<Self, DecodeError> {
        let outline = Outline::read(&bytes);
        if let Some((width, height)) = outline.size {
            limits.check(width, height)?;
        }
        if !outline.is_complete {
            return Err(Format::Jpeg.truncated());
        }
        let header = turbo::header(&bytes).map_err(unreadable)?;
        limits.check(header.width, header.height)?;
        // A broken EXIF block says nothing about the pixels.
        let orientation = outline.exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms);
        Ok(Self {
            stored: [header.width, header.height],
            orientation,
            captured_at: outline.exif.and_then(capture_time),
            is_divisible: !header.is_progressive && !header.is_lossless,
            max_memory: limits.working_bytes(),
            bytes,
        })
    }

    /// When it was taken, see [`super::photo::Photo::captured_at`].
    pub(super) fn captured_at(&self) -> Option<&str> {
        self.captured_at.as_deref()
    }

    /// Width and height, upright.
    pub(super) fn size(&self) -> [u32; 2] {
        let [width, height] = self.stored;
        if Turn::of(self.orientation).is_sideways { [height, width] } else { [width, height] }
    }

    /// The smallest scale at which the longer side has `side` pixels, or the original's.
    ///
    /// A progressive file is decoded once and as it is: reading its scans is three quarters of the work at any scale.
    pub(super) fn scale(&self, side: u32) -> u32 {
        let longest = self.stored[0].max(self.stored[1]);
        if self.is_divisible { Self::scale_of(longest as f32 / side as f32) } else { 1 }
    }

    /// The smallest scale that has a pixel for each `reduction` original ones along a side, or the original's.
    pub(super) fn scale_of(reduction: f32) -> u32 {
        REDUCED.into_iter().find(|&scale| scale as f32 <= reduction).unwrap_or(1)
    }

    /// The picture, or the part of it around `area`, which is in upright original pixels.
    pub(super) fn frame(&self, scale: u32, area: Option<BoundingBox>) -> Result<Frame, DecodeError> {
        let turn = Turn::of(self.orientation);
        let region = area.map(|area| region(turn.stored(area, self.stored), scale));
        let (region, rgb) = turbo::decompress(&self.bytes, scale, region, self.max_memory).map_err(unreadable)?;
        let image = RgbImage::from_raw(region.width, region.height, rgb)
            .expect("make a picture of decoded rows; this is a bug: they are width x height x 3 bytes");
        let [left, top, width, height] =
            [region.left, region.top, region.width, region.height].map(|length| (length * scale) as f32);
        let covered = turn.upright(BoundingBox { x: left, y: top, width, height }, self.stored);
        Ok(Frame { picture: upright(image, self.orientation), origin: [covered.x, covered.y], scale: scale as f32 })
    }
}

/// The pixels around an area, with those whose colour has a part in theirs.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, and is then cut to the picture"
)]
fn region(area: BoundingBox, scale: u32) -> Region {
    let from = |start: f32| ((start / scale as f32).floor() - MARGIN) as u32;
    let to = |end: f32| ((end / scale as f32).ceil() + MARGIN) as u32;
    let (left, top) = (from(area.x), from(area.y));
    let (right, bottom) = (to(area.x + area.width), to(area.y + area.height));
    Region { left, top, width: right.saturating_sub(left), height: bottom.saturating_sub(top) }
}

fn unreadable(error: TurboError) -> DecodeError {
    DecodeError::Unreadable { format: Format::Jpeg.name(), source: Some(error.into()) }
}

/// How the stored picture becomes the upright one: x and y exchanged or not, then mirrored along x, along y.
#[derive(Clone, Copy)]
struct Turn {
    is_sideways: bool,
    mirrored: [bool; 2],
}

impl Turn {
    fn of(orientation: Orientation) -> Self {
        let (is_sideways, mirrored) = match orientation {
            Orientation::NoTransforms => (false, [false, false]),
            Orientation::FlipHorizontal => (false, [true, false]),
            Orientation::Rotate180 => (false, [true, true]),
            Orientation::FlipVertical => (false, [false, true]),
            Orientation::Rotate90FlipH => (true, [false, false]),
            Orientation::Rotate90 => (true, [true, false]),
            Orientation::Rotate270FlipH => (true, [true, true]),
            Orientation::Rotate270 => (true, [false, true]),
        };
        Self { is_sideways, mirrored }
    }

    /// Where an area of the stored picture of that size lies in the upright one.
    fn upright(self, area: BoundingBox, stored: [u32; 2]) -> BoundingBox {
        if self.is_sideways { self.mirror(exchanged(area), [stored[1], stored[0]]) } else { self.mirror(area, stored) }
    }

    /// The reverse of [`Turn::upright`].
    fn stored(self, area: BoundingBox, stored: [u32; 2]) -> BoundingBox {
        if self.is_sideways { exchanged(self.mirror(area, [stored[1], stored[0]])) } else { self.mirror(area, stored) }
    }

    fn mirror(self, area: BoundingBox, [width, height]: [u32; 2]) -> BoundingBox {
        let x = if self.mirrored[0] { width as f32 - area.x - area.width } else { area.x };
        let y = if self.mirrored[1] { height as f32 - area.y - area.height } else { area.y };
        BoundingBox { x, y, ..area }
    }
}

fn exchanged(area: BoundingBox) -> BoundingBox {
    BoundingBox { x: area.y, y: area.x, width: area.height, height: area.width }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{LIMITS, oriented};
    use super::super::{camera_jpeg, decode};
    use super::*;
    use crate::vision::{Landmarks, Picture};

    fn file(width: u32, height: u32) -> Jpeg {
        let orientation = Orientation::NoTransforms;
        let bytes = Vec::new();
        Jpeg { bytes, stored: [width, height], orientation, captured_at: None, is_divisible: true, max_memory: 0 }
    }

    #[test]
    fn the_smallest_scale_with_enough_pixels_is_taken() {
        let cases =
            [(1279, 1), (2559, 1), (2560, 2), (4000, 2), (5119, 2), (5120, 4), (10_239, 4), (10_240, 8), (65_500, 8)];
        for (longest, scale) in cases {
            assert_eq!(file(longest, 100).scale(1280), scale, "{longest}");
            assert_eq!(file(100, longest).scale(1280), scale, "{longest}");
            assert_eq!(Jpeg { is_divisible: false, ..file(longest, 100) }.scale(1280), 1, "{longest}");
        }
        assert_eq!([0.3, 1.0, 1.99, 2.0, 3.9, 4.0, 8.0, 99.0].map(Jpeg::scale_of), [1, 1, 1, 2, 2, 4, 8, 8]);
    }

    /// Red grows with x, green with y, half a level a pixel.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a level")]
    fn ramps(width: u32, height: u32) -> Picture {
        let level = |at: u32| (at as f32 / 2.0) as u8;
        let rgb = (0..height).flat_map(|y| (0..width).flat_map(move |x| [level(x), level(y), 128]));
        Picture { width, height, rgb: rgb.collect() }
    }

    /// That the pixels show the places of the upright original at which the frame says they lie.
    fn is_in_place(frame: &Frame) {
        let placed = frame.landmarks(&Landmarks::five([[0.0; 2], [1.0; 2], [0.0; 2], [0.0; 2], [0.0; 2]]));
        let [origin, one, ..] = placed.points() else { unreachable!("there are five") };
        let width = frame.picture.width as usize;
        let mut apart = [0.0; 2];
        for (n, pixel) in frame.picture.rgb.chunks_exact(3).enumerate() {
            for (axis, at) in [n % width, n / width].into_iter().enumerate() {
                let place = (at as f32 - origin[axis]) / (one[axis] - origin[axis]);
                // The ramps are rounded down.
                apart[axis] += f32::from(pixel[axis]) * 2.0 + 0.5 - place;
            }
        }
        let apart = apart.map(|sum| sum * 3.0 / frame.picture.rgb.len() as f32);
        assert!(apart.iter().all(|mean| mean.abs() < 0.5), "{frame:?}: {apart:?} pixels apart");
    }

    #[test]
    fn every_orientation_and_scale_shows_each_pixel_in_its_place() {
        let (width, height) = (403, 301);
        for value in 1..=8u8 {
            // Only the quarter turns are not their own opposite.
            let opposite = Orientation::from_exif([1, 2, 3, 4, 5, 8, 7, 6][usize::from(value) - 1]).unwrap();
            let stored = upright(RgbImage::from_raw(width, height, ramps(width, height).rgb).unwrap(), opposite);
            let bytes = oriented(&camera_jpeg(&stored), value);
            for side in [u32::MAX, 200, 100, 50] {
                let photo = decode(bytes.clone(), &LIMITS, side).unwrap();
                assert_eq!(photo.size, [width, height], "orientation {value}");
                let scale = photo.overview.scale;
                assert!((photo.overview.picture.width as f32 - width as f32 / scale).abs() < 1.0);
                is_in_place(&photo.overview);
                let area = BoundingBox { x: 251.0, y: 98.0, width: 60.0, height: 90.0 };
                for reduction in [1.0, 2.0, 4.0] {
                    let Some(close_up) = photo.close_up(area, reduction).unwrap() else {
                        assert!((scale - 1.0).abs() < f32::EPSILON);
                        continue;
                    };
                    is_in_place(&close_up);
                    let [left, top] = close_up.origin;
                    let far =
                        [close_up.picture.width, close_up.picture.height].map(|side| side as f32 * close_up.scale);
                    assert!(left <= area.x && top <= area.y, "{value}: {:?}", close_up.origin);
                    assert!(left + far[0] >= 311.0 && top + far[1] >= 188.0, "{value}");
                    assert!(far[0] < 60.0 + 40.0 * reduction && far[1] < 90.0 + 40.0 * reduction, "{value}: {far:?}");
                }
            }
        }
    }

    #[test]
    fn an_area_outside_the_picture_is_no_error() {
        let photo = decode(camera_jpeg(&ramps(400, 300)), &LIMITS, 100).unwrap();
        for (x, y) in [(-500.0, -500.0), (900.0, 900.0), (f32::NAN, f32::INFINITY), (-1e30, 1e30)] {
            let area = BoundingBox { x, y, width: 50.0, height: 50.0 };
            assert!(photo.close_up(area, 1.0).unwrap().is_some(), "{x} {y}");
        }
    }
}
