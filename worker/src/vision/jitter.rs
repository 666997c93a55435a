//! Copies of a crop that lie a little otherwise, whose vectors are averaged.

use crate::vision::Picture;
use crate::vision::align::{Affine, aligned_crop};
use crate::vision::recognize::mirrored;

// As dlib has them (`jitter_image` of dlib/image_transforms/interpolation.h).
/// Part of a crop's sides that is shown before it is scaled: three pixels of 150 are cut off on each side.
const SHOWN: f32 = 144.0 / 150.0;
/// A copy shows so much less at least and at most.
const SCALE: [f32; 2] = [0.97, 1.0];
/// Of what is shown, to either side.
const MOVED: f32 = 0.02;
/// Degrees, to either side.
const TURNED: f32 = 3.0;

/// The `n`th copy of the crop, counted from 0: moved, turned and scaled a little, and every second one mirrored. It is the same
/// each time, and so is a face's vector.
pub(super) fn jittered(crop: &Picture, n: u32) -> Picture {
    let [across, down, turned, scaled] = spread(n);
    let within = |[least, most]: [f32; 2], at: f32| least + (most - least) * at;
    let size = [crop.width as f32, crop.height as f32];
    let moved = [within([-MOVED, MOVED], across) * SHOWN * size[0], within([-MOVED, MOVED], down) * SHOWN * size[1]];
    let turn = within([-TURNED, TURNED], turned).to_radians();
    let middle = size.map(|length| (length - 1.0) / 2.0);
    let placing = Affine::about(middle, moved, turn, within(SCALE, scaled) / SHOWN);
    let copy = aligned_crop(crop, &placing, [crop.width, crop.height]);
    if n % 2 == 1 { mirrored(&copy) } else { copy }
}

/// The `n`th of points that fill the unit cube of four dimensions evenly, however many are taken (Roberts 2018, "The
/// unreasonable effectiveness of quasirandom sequences": steps of the powers of 1/g, where g^5 = g + 1).
#[expect(clippy::cast_possible_truncation, reason = "0 to 1")]
fn spread(n: u32) -> [f32; 4] {
    const G: f64 = 1.167_303_978_261_418_7;
    [1, 2, 3, 4].map(|power| (0.5 + f64::from(n) * G.powi(-power)).fract() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A white spot on black, above and left of the middle.
    fn crop() -> Picture {
        let lit = |x: i32, y: i32| (x - 50).pow(2) + (y - 60).pow(2) < 64;
        let rgb = (0..150).flat_map(|y| (0..150).flat_map(move |x| [if lit(x, y) { 255 } else { 0 }; 3]));
        Picture { width: 150, height: 150, rgb: rgb.collect() }
    }

    fn spot(picture: &Picture) -> [f32; 2] {
        let mut sum = [0.0; 3];
        for (at, pixel) in picture.rgb.chunks_exact(3).enumerate() {
            let (x, y, weight) = ((at % 150) as f32, (at / 150) as f32, f32::from(pixel[0]));
            sum.iter_mut().zip([x, y, 1.0]).for_each(|(sum, value)| *sum += value * weight);
        }
        [sum[0] / sum[2], sum[1] / sum[2]]
    }

    #[test]
    fn copies_lie_a_little_otherwise_and_every_second_is_mirrored() {
        let copies: Vec<Picture> = (0..20).map(|n| jittered(&crop(), n)).collect();
        assert_eq!(copies[7], jittered(&crop(), 7));
        let spots: Vec<[f32; 2]> = copies.iter().map(spot).collect();
        for (n, [x, y]) in spots.iter().enumerate() {
            let x = if n % 2 == 1 { 149.0 - x } else { *x };
            // Moved by 2.88 pixels, turned by 1.5 and scaled by 1.2 of them at most.
            assert!((x - 50.0).abs() < 5.6 && (y - 60.0).abs() < 5.6, "{n}: {spots:?}");
        }
        let apart = |axis: usize| {
            let along = spots.iter().step_by(2).map(|spot| spot[axis]);
            along.clone().fold(f32::MIN, f32::max) - along.fold(f32::MAX, f32::min)
        };
        assert!(apart(0) > 2.0 && apart(1) > 2.0, "{spots:?}");
    }
}
