//! Five landmarks to an aligned crop: the similarity that best maps them to a template, and the warp that applies it.

use crate::vision::{BoundingBox, Landmarks, Picture};

/// Rotation, one scale and a shift: `x' = a x - b y + tx`, `y' = b x + a y + ty`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Similarity {
    a: f32,
    b: f32,
    tx: f32,
    ty: f32,
}

/// Landmarks from which no alignment follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the five landmarks of a face lie on one point or are not finite, so it cannot be aligned")]
pub struct AlignError;

impl Similarity {
    /// The least-squares similarity from `from` to `to` (Umeyama 1991). In the plane and without reflections it has
    /// this closed form; no singular values are needed.
    pub fn between(from: &[[f32; 2]; 5], to: &[[f32; 2]; 5]) -> Result<Self, AlignError> {
        let [from_x, from_y] = mean(from);
        let [to_x, to_y] = mean(to);
        let (mut dot, mut cross, mut spread) = (0.0, 0.0, 0.0);
        for (source, target) in from.iter().zip(to) {
            let (px, py) = (f64::from(source[0]) - from_x, f64::from(source[1]) - from_y);
            let (qx, qy) = (f64::from(target[0]) - to_x, f64::from(target[1]) - to_y);
            dot += px * qx + py * qy;
            cross += px * qy - py * qx;
            spread += px * px + py * py;
        }
        let (a, b) = (dot / spread, cross / spread);
        // Smaller than this is rounding noise, and its inverse overflows.
        if !(a.is_finite() && b.is_finite()) || spread < 1e-6 || a.hypot(b) < 1e-6 {
            return Err(AlignError);
        }
        #[expect(clippy::cast_possible_truncation, reason = "pixel positions fit f32")]
        Ok(Self {
            a: a as f32,
            b: b as f32,
            tx: (to_x - a * from_x + b * from_y) as f32,
            ty: (to_y - b * from_x - a * from_y) as f32,
        })
    }

    /// Where a point goes.
    pub fn apply(&self, [x, y]: [f32; 2]) -> [f32; 2] {
        [self.a * x - self.b * y + self.tx, self.b * x + self.a * y + self.ty]
    }

    /// The similarity that undoes this one.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let scale = self.a * self.a + self.b * self.b;
        let (a, b) = (self.a / scale, -self.b / scale);
        Self { a, b, tx: -(a * self.tx - b * self.ty), ty: -(b * self.tx + a * self.ty) }
    }
}

/// Cuts the face at `landmarks` out of `picture`, so that they fall on `points` in a crop of `width` x `height` pixels.
///
/// Bilinear between the four neighbours and black outside the picture, as the recognizers were trained; a large face
/// is not smoothed first, which their training did not do either (of a large jpeg, the picture itself is reduced).
pub fn aligned_crop(
    picture: &Picture,
    landmarks: &Landmarks,
    points: &[[f32; 2]; 5],
    [width, height]: [u32; 2],
) -> Result<Picture, AlignError> {
    let back = Similarity::between(&landmarks.0, points)?.inverse();
    let mut rgb = vec![0; width as usize * height as usize * 3];
    let mut pixels = rgb.chunks_exact_mut(3);
    for y in 0..height {
        for x in 0..width {
            let source = back.apply([x as f32, y as f32]);
            if let Some(pixel) = pixels.next() {
                pixel.copy_from_slice(&sample(picture, source));
            }
        }
    }
    Ok(Picture { width, height, rgb })
}

/// The part of a picture that [`aligned_crop`] reads, without its edge.
pub(crate) fn crop_area(
    landmarks: &Landmarks,
    points: &[[f32; 2]; 5],
    [width, height]: [u32; 2],
) -> Result<BoundingBox, AlignError> {
    let back = Similarity::between(&landmarks.0, points)?.inverse();
    let (right, bottom) = (width as f32, height as f32);
    let corners = [[0.0, 0.0], [right, 0.0], [0.0, bottom], [right, bottom]].map(|corner| back.apply(corner));
    let boxes = corners.map(|[x, y]| BoundingBox { x, y, width: 0.0, height: 0.0 });
    Ok(boxes.into_iter().fold(boxes[0], BoundingBox::around))
}

fn mean(points: &[[f32; 2]; 5]) -> [f64; 2] {
    [0, 1].map(|axis| points.iter().map(|point| f64::from(point[axis])).sum::<f64>() / 5.0)
}

/// The colour at a point between pixels; a neighbour outside the picture counts as black.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked against the picture's size first")]
fn sample(picture: &Picture, [x, y]: [f32; 2]) -> [u8; 3] {
    let (width, height) = (picture.width as usize, picture.height as usize);
    if !(x > -1.0 && y > -1.0 && x < width as f32 && y < height as f32) {
        return [0; 3];
    }
    // Rounds down without a call to `floor`, for numbers above -1.
    let (left, top) = ((x + 1.0) as i32 - 1, (y + 1.0) as i32 - 1);
    let (fx, fy) = (x - left as f32, y - top as f32);
    let weights = [(1.0 - fx) * (1.0 - fy), fx * (1.0 - fy), (1.0 - fx) * fy, fx * fy];
    if left >= 0 && top >= 0 && left as usize + 1 < width && top as usize + 1 < height {
        let at = (top as usize * width + left as usize) * 3;
        let upper: &[u8] = &picture.rgb[at..at + 6];
        let lower: &[u8] = &picture.rgb[at + width * 3..at + width * 3 + 6];
        return [0, 1, 2].map(|channel| {
            let value = f32::from(upper[channel]) * weights[0]
                + f32::from(upper[channel + 3]) * weights[1]
                + f32::from(lower[channel]) * weights[2]
                + f32::from(lower[channel + 3]) * weights[3];
            (value + 0.5) as u8
        });
    }
    sample_at_edge(picture, [left, top], weights)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a weighted mean of bytes is a byte")]
fn sample_at_edge(picture: &Picture, [left, top]: [i32; 2], weights: [f32; 4]) -> [u8; 3] {
    let mut sum = [0.5; 3];
    for ((dx, dy), weight) in [(0, 0), (1, 0), (0, 1), (1, 1)].into_iter().zip(weights) {
        let (Ok(x), Ok(y)) = (u32::try_from(left + dx), u32::try_from(top + dy)) else {
            continue;
        };
        if x < picture.width && y < picture.height {
            let at = (y as usize * picture.width as usize + x as usize) * 3;
            for (channel, total) in sum.iter_mut().enumerate() {
                *total += f32::from(picture.rgb[at + channel]) * weight;
            }
        }
    }
    sum.map(|value: f32| value as u8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POINTS: [[f32; 2]; 5] =
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]];
    const FACE: Landmarks = Landmarks([[20.0, 60.0], [70.5, 52.0], [48.0, 85.25], [30.0, 112.0], [74.0, 105.5]]);

    fn ramp() -> Picture {
        let rgb = (0..160u32).flat_map(|y| (0..200u32).flat_map(move |x| [x + 20, y + 60, (x * 7 + y * 3) / 8]));
        Picture { width: 200, height: 160, rgb: rgb.map(|v| u8::try_from(v).unwrap()).collect() }
    }

    #[test]
    fn the_warp_agrees_with_opencv() {
        let crop = aligned_crop(&ramp(), &FACE, &POINTS, [112, 112]).unwrap();
        // cv2.warpAffine, INTER_LINEAR, BORDER_CONSTANT, of the same picture.
        let golden = [
            ([56, 56], [66, 121, 63]),
            ([38, 52], [40, 119, 39]),
            ([73, 51], [88, 111, 78]),
            ([111, 111], [151, 186, 161]),
            ([100, 10], [0; 3]),
            ([0, 56], [0; 3]),
            ([5, 111], [0; 3]),
        ];
        for ([x, y], wanted) in golden {
            let at = (y * 112 + x) * 3;
            let found: [u8; 3] = crop.rgb[at..at + 3].try_into().unwrap();
            assert!(found.iter().zip(wanted).all(|(a, b): (&u8, u8)| a.abs_diff(b) <= 1), "{x},{y}: {found:?}");
        }
        let black = crop.rgb.chunks_exact(3).filter(|pixel| *pixel == [0; 3]).count();
        assert!(black.abs_diff(3606) <= 20, "{black} pixels lie outside the picture");
    }

    #[test]
    fn a_crop_at_the_template_itself_is_the_picture() {
        let crop = aligned_crop(&ramp(), &Landmarks(POINTS), &POINTS, [112, 112]).unwrap();
        let picture = ramp();
        let same = (0..112).all(|y| {
            let (a, b) = (&crop.rgb[y * 336..][..336], &picture.rgb[y * 600..][..336]);
            a.iter().zip(b).all(|(a, b)| a.abs_diff(*b) <= 1)
        });
        assert!(same);
    }

    #[test]
    fn landmarks_without_extent_are_refused() {
        for points in [[[5.0, 5.0]; 5], [[f32::NAN, 0.0]; 5], [[f32::INFINITY, 1.0]; 5]] {
            assert_eq!(aligned_crop(&ramp(), &Landmarks(points), &POINTS, [112, 112]).unwrap_err(), AlignError);
        }
    }

    proptest! {
        #[test]
        fn a_similarity_is_recovered_and_undone(
            angle in -3.1f32..3.1,
            scale in 0.05f32..20.0,
            shift in prop::array::uniform2(-500f32..500.0),
        ) {
            let (a, b) = (scale * angle.cos(), scale * angle.sin());
            let truth = Similarity { a, b, tx: shift[0], ty: shift[1] };
            let found = Similarity::between(&POINTS, &POINTS.map(|point| truth.apply(point))).unwrap();
            for point in POINTS {
                let (moved, wanted) = (found.apply(point), truth.apply(point));
                let back = found.inverse().apply(moved);
                for axis in 0..2 {
                    prop_assert!((moved[axis] - wanted[axis]).abs() < 0.05);
                    prop_assert!((back[axis] - point[axis]).abs() < 0.05);
                }
            }
        }

        #[test]
        fn any_landmarks_give_a_crop_or_an_error(
            points in prop::array::uniform5(prop::array::uniform2(-1e4f32..1e4)),
        ) {
            if let Ok(crop) = aligned_crop(&ramp(), &Landmarks(points), &POINTS, [112, 96]) {
                prop_assert_eq!(crop.rgb.len(), 112 * 96 * 3);
            }
        }
    }
}
