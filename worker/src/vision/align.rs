//! Landmarks to an aligned crop: the map that brings a face to its pipeline's template, and the warp that applies it.

use shared::catalogue::{Alignment, AlignmentKind};

use crate::vision::{BoundingBox, Detection, Picture};

/// `x' = xx x + xy y + tx`, `y' = yx x + yy y + ty`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine {
    xx: f32,
    xy: f32,
    yx: f32,
    yy: f32,
    tx: f32,
    ty: f32,
}

/// Landmarks from which no alignment follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the landmarks of a face lie on one point or are not finite, or are not those that the alignment needs, so that it \
         cannot be aligned"
)]
pub struct AlignError;

impl Affine {
    /// Where an alignment puts a face: from pixels of the picture to pixels of the crop.
    pub fn placing(face: &Detection, alignment: &Alignment) -> Result<Self, AlignError> {
        if alignment.kind == AlignmentKind::Margin {
            return Self::around(&face.bounding_box, alignment);
        }
        let placed = face.landmarks.as_scheme(alignment.scheme).ok_or(AlignError)?;
        let from: Vec<[f32; 2]> = match &alignment.indices {
            Some(indices) => indices.iter().filter_map(|index| placed.get(*index).copied()).collect(),
            None => placed,
        };
        match (alignment.kind, from.as_slice(), alignment.points.as_slice()) {
            (AlignmentKind::Affine, from, to) => match (from.try_into(), to.try_into()) {
                (Ok(from), Ok(to)) => Self::through(from, to),
                _ => Err(AlignError),
            },
            (_, from, to) => Self::similarity(from, to),
        }
    }

    /// The least-squares similarity from `from` to `to` (Umeyama 1991), as many points. In the plane and without reflections it
    /// has this closed form; no singular values are needed.
    pub fn similarity(from: &[[f32; 2]], to: &[[f32; 2]]) -> Result<Self, AlignError> {
        if from.len() != to.len() {
            return Err(AlignError);
        }
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
        Ok(Self::of([[a, -b, to_x - a * from_x + b * from_y], [b, a, to_y - b * from_x - a * from_y]]))
    }

    /// The affine map that brings three points to three others.
    fn through(from: [[f32; 2]; 3], to: [[f32; 2]; 3]) -> Result<Self, AlignError> {
        let [a, b, c] = from.map(|point| point.map(f64::from));
        let to = to.map(|point| point.map(f64::from));
        let (ux, uy, vx, vy) = (b[0] - a[0], b[1] - a[1], c[0] - a[0], c[1] - a[1]);
        let area = ux * vy - uy * vx;
        // Three points on a line, or one that is not finite.
        if !area.is_finite() || area.abs() < 1e-6 {
            return Err(AlignError);
        }
        let row = |axis: usize| {
            let (first, second) = (to[1][axis] - to[0][axis], to[2][axis] - to[0][axis]);
            let along_x = (first * vy - second * uy) / area;
            let along_y = (second * ux - first * vx) / area;
            [along_x, along_y, to[0][axis] - along_x * a[0] - along_y * a[1]]
        };
        let found = Self::of([row(0), row(1)]);
        let determinant = found.xx * found.yy - found.xy * found.yx;
        if determinant.is_finite() && determinant.abs() > 1e-12 { Ok(found) } else { Err(AlignError) }
    }

    /// The square around a box with its margin, scaled to the crop.
    fn around(face: &BoundingBox, alignment: &Alignment) -> Result<Self, AlignError> {
        let side = face.width.max(face.height) * (1.0 + alignment.margin.unwrap_or_default());
        let [x, y] = face.center();
        let (across, down) = (alignment.width as f32 / side, alignment.height as f32 / side);
        if !(x.is_finite() && y.is_finite() && across.is_finite() && down.is_finite()) || side < 1e-3 {
            return Err(AlignError);
        }
        // A whole number is the middle of a pixel, in both.
        let shift = |center: f32, scale: f32, length: u32| (length as f32 - 1.0) / 2.0 - (center - 0.5) * scale;
        let (tx, ty) = (shift(x, across, alignment.width), shift(y, down, alignment.height));
        Ok(Self { xx: across, xy: 0.0, yx: 0.0, yy: down, tx, ty })
    }

    /// Brings the point `moved` away from `middle` there, turned by so many radians and scaled around it.
    pub(crate) fn about(middle: [f32; 2], moved: [f32; 2], turn: f32, scale: f32) -> Self {
        let (sin, cos) = turn.sin_cos();
        let (xx, xy, yx, yy) = (scale * cos, -scale * sin, scale * sin, scale * cos);
        let [x, y] = [middle[0] + moved[0], middle[1] + moved[1]];
        Self { xx, xy, yx, yy, tx: middle[0] - xx * x - xy * y, ty: middle[1] - yx * x - yy * y }
    }

    #[expect(clippy::cast_possible_truncation, reason = "pixel positions fit f32")]
    fn of([first, second]: [[f64; 3]; 2]) -> Self {
        let [xx, xy, tx] = first.map(|number| number as f32);
        let [yx, yy, ty] = second.map(|number| number as f32);
        Self { xx, xy, yx, yy, tx, ty }
    }

    /// Where a point goes.
    pub fn apply(&self, [x, y]: [f32; 2]) -> [f32; 2] {
        [self.xx * x + self.xy * y + self.tx, self.yx * x + self.yy * y + self.ty]
    }

    /// The map that undoes this one.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let scale = self.xx * self.yy - self.xy * self.yx;
        let (xx, xy, yx, yy) = (self.yy / scale, -self.xy / scale, -self.yx / scale, self.xx / scale);
        Self { xx, xy, yx, yy, tx: -(xx * self.tx + xy * self.ty), ty: -(yx * self.tx + yy * self.ty) }
    }
}

/// Cuts a face out of `picture`, where `placing` puts its pixels in a crop of `width` x `height` pixels.
///
/// Bilinear between the four neighbours and black outside the picture, as the recognizers were trained; a large face
/// is not smoothed first, which their training did not do either (of a large jpeg, the picture itself is reduced).
pub fn aligned_crop(picture: &Picture, placing: &Affine, [width, height]: [u32; 2]) -> Picture {
    let back = placing.inverse();
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
    Picture { width, height, rgb }
}

/// The part of a picture that [`aligned_crop`] reads, without its edge.
pub(crate) fn crop_area(placing: &Affine, [width, height]: [u32; 2]) -> BoundingBox {
    let back = placing.inverse();
    let (right, bottom) = (width as f32, height as f32);
    let corners = [[0.0, 0.0], [right, 0.0], [0.0, bottom], [right, bottom]].map(|corner| back.apply(corner));
    let boxes = corners.map(|[x, y]| BoundingBox { x, y, width: 0.0, height: 0.0 });
    boxes.into_iter().fold(boxes[0], BoundingBox::around)
}

fn mean(points: &[[f32; 2]]) -> [f64; 2] {
    [0, 1].map(|axis| points.iter().map(|point| f64::from(point[axis])).sum::<f64>() / points.len() as f64)
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
        let blend = |channel: usize| {
            let value = f32::from(upper[channel]) * weights[0]
                + f32::from(upper[channel + 3]) * weights[1]
                + f32::from(lower[channel]) * weights[2]
                + f32::from(lower[channel + 3]) * weights[3];
            (value + 0.5) as u8
        };
        // Written out: a call for each channel took a tenth of what a kept crop costs.
        return [blend(0), blend(1), blend(2)];
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
    use shared::catalogue::LandmarkScheme;

    use super::*;
    use crate::vision::Landmarks;

    const POINTS: [[f32; 2]; 5] =
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]];
    const FACE: [[f32; 2]; 5] = [[20.0, 60.0], [70.5, 52.0], [48.0, 85.25], [30.0, 112.0], [74.0, 105.5]];

    fn cut(landmarks: [[f32; 2]; 5], size: [u32; 2]) -> Result<Picture, AlignError> {
        Ok(aligned_crop(&ramp(), &Affine::similarity(&landmarks, &POINTS)?, size))
    }

    fn alignment(kind: AlignmentKind) -> Alignment {
        let scheme = LandmarkScheme::FivePoint;
        Alignment { kind, width: 96, height: 80, scheme, indices: None, points: Vec::new(), margin: None }
    }

    fn face(landmarks: Landmarks) -> Detection {
        let bounding_box = BoundingBox { x: 20.0, y: 30.0, width: 40.0, height: 60.0 };
        Detection { bounding_box, landmarks, score: 0.9 }
    }

    fn ramp() -> Picture {
        let rgb = (0..160u32).flat_map(|y| (0..200u32).flat_map(move |x| [x + 20, y + 60, (x * 7 + y * 3) / 8]));
        Picture { width: 200, height: 160, rgb: rgb.map(|v| u8::try_from(v).unwrap()).collect() }
    }

    #[test]
    fn the_warp_agrees_with_opencv() {
        let crop = cut(FACE, [112, 112]).unwrap();
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
        let crop = cut(POINTS, [112, 112]).unwrap();
        let picture = ramp();
        let same = (0..112).all(|y| {
            let (a, b) = (&crop.rgb[y * 336..][..336], &picture.rgb[y * 600..][..336]);
            a.iter().zip(b).all(|(a, b)| a.abs_diff(*b) <= 1)
        });
        assert!(same);
    }

    #[test]
    fn three_points_go_where_an_affine_alignment_puts_them() {
        let points = vec![[10.0, 12.0], [80.0, 15.0], [40.0, 70.0]];
        let alignment = Alignment { indices: Some(vec![1, 4, 0]), points, ..alignment(AlignmentKind::Affine) };
        let placing = Affine::placing(&face(Landmarks::five(FACE)), &alignment).unwrap();
        for (index, wanted) in [1, 4, 0].into_iter().zip(&alignment.points) {
            let found = placing.apply(FACE[index]);
            let back = placing.inverse().apply(found);
            for axis in 0..2 {
                assert!((found[axis] - wanted[axis]).abs() < 1e-3, "{found:?}");
                assert!((back[axis] - FACE[index][axis]).abs() < 1e-3, "{back:?}");
            }
        }
        let mut line = FACE;
        (line[1], line[4], line[0]) = ([1.0, 1.0], [2.0, 2.0], [3.0, 3.0]);
        assert_eq!(Affine::placing(&face(Landmarks::five(line)), &alignment), Err(AlignError));
        let five = Landmarks::of(LandmarkScheme::Dlib5, FACE.to_vec()).unwrap();
        assert_eq!(Affine::placing(&face(five), &alignment), Err(AlignError), "other points");
    }

    #[test]
    fn a_margin_is_cut_around_the_middle_of_the_box() {
        let alignment = Alignment { margin: Some(0.5), ..alignment(AlignmentKind::Margin) };
        let placing = Affine::placing(&face(Landmarks::five(FACE)), &alignment).unwrap();
        // The box is 40 x 60 around (40, 60), so that a square of 90 is cut, from (-5, 15) to (85, 105).
        let area = crop_area(&placing, [96, 80]);
        let found = [area.x + 0.5 * 90.0 / 96.0, area.y + 0.5 * 90.0 / 80.0, area.width, area.height];
        for (found, wanted) in found.into_iter().zip([-4.5, 15.5, 90.0, 90.0]) {
            assert!((found - wanted).abs() < 1.0, "{area:?}");
        }
    }

    #[test]
    fn landmarks_without_extent_are_refused() {
        for points in [[[5.0, 5.0]; 5], [[f32::NAN, 0.0]; 5], [[f32::INFINITY, 1.0]; 5]] {
            assert_eq!(cut(points, [112, 112]).unwrap_err(), AlignError);
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
            let truth = Affine { xx: a, xy: -b, yx: b, yy: a, tx: shift[0], ty: shift[1] };
            let found = Affine::similarity(&POINTS, &POINTS.map(|point| truth.apply(point))).unwrap();
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
            if let Ok(crop) = cut(points, [112, 96]) {
                prop_assert_eq!(crop.rgb.len(), 112 * 96 * 3);
            }
        }
    }
}
