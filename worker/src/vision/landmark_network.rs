//! What a landmark network is shown of a face, and where its answer lies in the picture.

use shared::catalogue::{LandmarkInput, LandmarkScheme};

use crate::vision::resize::{part, resized, triangle};
use crate::vision::tensor::{Range, Tensor};
use crate::vision::{BoundingBox, Landmarks, LandmarksError, Picture};

/// One face for a landmark network.
#[derive(Debug)]
pub struct Shown {
    /// `[1, 3, side, side]`.
    pub input: Tensor,
    /// Side of the input in pixels.
    side: f32,
    /// Where the box begins in the picture.
    corner: [f32; 2],
    /// Where the box begins in the input.
    padding: [f32; 2],
    /// Picture pixels along one of the input's.
    scale: [f32; 2],
}

/// The face's box at the input's size, its longer side from edge to edge and the other in the middle of black. None of a box
/// without extent, or far larger than the picture.
pub fn shown(picture: &Picture, face: &BoundingBox, wanted: &LandmarkInput) -> Option<Shown> {
    let numbers = [face.x, face.y, face.width, face.height];
    let largest = (4 * picture.width.max(picture.height)) as f32;
    if !numbers.iter().all(|number| number.abs() <= largest) || face.shorter_side() < 1.0 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
    let corner = [face.x.round() as i32, face.y.round() as i32];
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded above")]
    let size = [face.width, face.height].map(|side| (side.round() as u32).max(1));
    let longer = size[0].max(size[1]);
    let fit = size.map(|side| (side * wanted.side).div_ceil(longer).clamp(1, wanted.side));
    let small = resized(&part(picture, corner, size), fit, triangle());
    let padding = fit.map(|side| (wanted.side - side) / 2);
    let [left, top] = padding.map(|side| i32::try_from(side).unwrap_or_default());
    let input = part(&small, [-left, -top], [wanted.side; 2]);
    let range = Range { channels: wanted.channels, mean: wanted.mean, scale: wanted.scale };
    Some(Shown {
        input: range.tensor(&input),
        side: wanted.side as f32,
        corner: corner.map(|at| at as f32),
        padding: padding.map(|side| side as f32),
        scale: [0, 1].map(|axis| size[axis] as f32 / fit[axis] as f32),
    })
}

impl Shown {
    /// The input, which is left empty.
    pub fn take_input(&mut self) -> Tensor {
        std::mem::replace(&mut self.input, Tensor { shape: Vec::new(), data: Vec::new() })
    }

    /// The points in the picture, from the network's answer: x and y of each, 0..1 of the input.
    pub fn points(&self, scheme: LandmarkScheme, answer: &[f32]) -> Result<Landmarks, LandmarksError> {
        let place = |axis: usize, at: f32| (at * self.side - self.padding[axis]) * self.scale[axis] + self.corner[axis];
        let points = answer.as_chunks::<2>().0.iter().map(|[x, y]| [place(0, *x), place(1, *y)]).collect();
        Landmarks::of(scheme, points)
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "small whole numbers, exact in f32")]
mod tests {
    use shared::catalogue::Channels;

    use super::*;

    #[test]
    fn points_come_back_to_where_they_were_shown() {
        let picture = Picture { width: 100, height: 80, rgb: vec![200; 100 * 80 * 3] };
        let wanted = LandmarkInput { side: 64, channels: Channels::Rgb, mean: [0.0; 3], scale: [1.0; 3] };
        let face = BoundingBox { x: 10.0, y: 20.0, width: 16.0, height: 32.0 };
        let shown = shown(&picture, &face, &wanted).unwrap();
        let row = |y: usize| &shown.input.data[y * 64..(y + 1) * 64];
        assert_eq!(
            [row(30)[15], row(30)[16], row(30)[47], row(30)[48]],
            [0.0, 200.0, 200.0, 0.0],
            "black beside the box"
        );
        // The input's middle is the box's, and its lower edge the box's.
        let points =
            shown.points(LandmarkScheme::FivePoint, &[0.5, 0.5, 0.25, 0.0, 0.75, 1.0, 0.5, 1.0, 0.5, 0.0]).unwrap();
        let wanted = [[18.0, 36.0], [10.0, 20.0], [26.0, 52.0], [18.0, 52.0], [18.0, 20.0]];
        assert_eq!(points, Landmarks::five(wanted));
        assert!(shown.points(LandmarkScheme::Ibug68, &[0.5; 10]).is_err());
    }

    #[test]
    fn a_box_without_extent_is_shown_to_nobody() {
        let picture = Picture { width: 10, height: 10, rgb: vec![0; 300] };
        let wanted = LandmarkInput { side: 64, channels: Channels::Rgb, mean: [0.0; 3], scale: [1.0; 3] };
        for width in [0.0, f32::NAN, f32::INFINITY, 41.0] {
            assert!(shown(&picture, &BoundingBox { x: 1.0, y: 1.0, width, height: 5.0 }, &wanted).is_none());
        }
    }
}
