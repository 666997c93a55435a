//! Five landmarks to an aligned crop: the similarity that best maps them to a template, and the warp that applies it.

use crate::vision::{Landmarks, Picture};

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
        // Below a thousandth the warp would blow single source pixels up to the whole crop's neighbourhood.
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
        [
            self.a * x - self.b * y + self.tx,
            self.b * x + self.a * y + self.ty,
        ]
    }

    /// The similarity that undoes this one.
    pub fn inverse(&self) -> Self {
        let scale = self.a * self.a + self.b * self.b;
        let (a, b) = (self.a / scale, -self.b / scale);
        Self {
            a,
            b,
            tx: -(a * self.tx - b * self.ty),
            ty: -(b * self.tx + a * self.ty),
        }
    }
}

/// Cuts the face at `landmarks` out of `picture`, so that they fall on `points` in a crop of `width` x `height` pixels.
///
/// Bilinear between the four neighbours and black outside the picture, as the recognizers were trained; a large face
/// is not smoothed first, which their training did not do either.
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
