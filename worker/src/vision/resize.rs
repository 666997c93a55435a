//! Pictures and parts of them at another size.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{PixelType, ResizeAlg, ResizeOptions, Resizer};

use crate::vision::Picture;

/// The picture at `width` x `height` pixels.
pub(crate) fn resized(picture: &Picture, [width, height]: [u32; 2], kernel: ResizeAlg) -> Picture {
    if [picture.width, picture.height] == [width, height] {
        return picture.clone();
    }
    let mut target = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(kernel);
    ImageRef::new(picture.width, picture.height, &picture.rgb, PixelType::U8x3)
        .map_err(|cause| cause.to_string())
        .and_then(|source| Resizer::new().resize(&source, &mut target, &options).map_err(|cause| cause.to_string()))
        .expect("resize RGB pixels; this is a bug: a picture holds width x height x 3 bytes");
    Picture { width, height, rgb: target.into_vec() }
}

/// A triangle that averages what it covers where a picture is made smaller, and interpolates where it grows.
pub(crate) fn triangle() -> ResizeAlg {
    ResizeAlg::Convolution(fast_image_resize::FilterType::Bilinear)
}

/// `width` x `height` pixels of the picture from `left`, `top` on, as they are; black where they lie outside of it.
pub(crate) fn part(picture: &Picture, [left, top]: [i32; 2], [width, height]: [u32; 2]) -> Picture {
    let mut rgb = vec![0; width as usize * height as usize * 3];
    let columns = overlap(left, width, picture.width);
    for y in overlap(top, height, picture.height) {
        let target = (beyond(y, top) * width as usize + beyond(columns.start, left)) * 3;
        let source = (y as usize * picture.width as usize + columns.start as usize) * 3;
        let bytes = columns.len() * 3;
        rgb[target..target + bytes].copy_from_slice(&picture.rgb[source..source + bytes]);
    }
    Picture { width, height, rgb }
}

/// How far a place of [`overlap`] lies beyond where the part begins.
fn beyond(at: u32, from: i32) -> usize {
    usize::try_from(i64::from(at) - i64::from(from)).unwrap_or_default()
}

/// Which of `0..size` lie within `length` from `from` on.
fn overlap(from: i32, length: u32, size: u32) -> std::ops::Range<u32> {
    let clamp = |at: i64| u32::try_from(at.clamp(0, i64::from(size))).unwrap_or_default();
    let (start, end) = (clamp(i64::from(from)), clamp(i64::from(from) + i64::from(length)));
    start..end.max(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_black_outside_of_the_picture() {
        let picture = Picture { width: 2, height: 2, rgb: (1..=12).collect() };
        let found = part(&picture, [1, -1], [2, 2]);
        assert_eq!(found.rgb, [0, 0, 0, 0, 0, 0, 4, 5, 6, 0, 0, 0]);
        assert_eq!(part(&picture, [5, 5], [1, 1]).rgb, [0; 3]);
        assert_eq!(part(&picture, [0, 0], [2, 2]), picture);
        assert_eq!(part(&picture, [-1, 1], [2, 1]).rgb, [0, 0, 0, 7, 8, 9]);
    }
}
