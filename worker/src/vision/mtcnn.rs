//! MTCNN (Zhang et al. 2016, "Joint Face Detection and Alignment using Multitask Cascaded Convolutional Networks"): what each of
//! its three networks is shown, and what their answers mean. Running them in turn belongs to `crate::analysis`.
//!
//! Boxes are kept as the authors have them: sides are inclusive, so that a width is `right - left + 1`.

use crate::vision::detect::DetectError;
use crate::vision::resize::{part, resized, triangle};
use crate::vision::tensor::{Range, Tensor};
use crate::vision::{BoundingBox, Detection, Landmarks, Picture};

/// Sides of the crops that the second and the third network are shown.
pub(crate) const SIDES: [u32; 2] = [24, 48];
/// Side of the faces that the first network sees.
const CELL: f64 = 12.0;
/// Sides of a level of the pyramid as parts of the one before.
const STEP: f64 = 0.707;
/// Input pixels between two cells of the first network.
const STRIDE: f64 = 2.0;
/// The authors' thresholds of the first and the second network; the third's is the detector's `store_score`.
const FIRST_SCORE: f32 = 0.6;
const SECOND_SCORE: f32 = 0.7;
/// The authors' overlaps: within a level, between levels and stages.
const LEVEL_IOU: f32 = 0.5;
const STAGE_IOU: f32 = 0.7;
/// Boxes that go on to the next network at most, the best first: a picture of a crowd has some hundreds.
const MOST_CANDIDATES: usize = 1024;
/// Boxes that are compared with each other at most, the best first: each is with all that are kept, and fine texture makes tens of
/// thousands.
const MOST_COMPARED: usize = 2048;

/// A box on its way through the cascade, in pixels of the picture as it is shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Left, top, right and bottom.
    sides: [f32; 4],
    score: f32,
    /// What the network would move each side by, as parts of the width or height.
    offsets: [f32; 4],
    landmarks: Option<[[f32; 2]; 5]>,
}

/// One level of the pyramid for the first network.
#[derive(Debug)]
pub struct Level {
    /// `[1, 3, height, width]`.
    pub input: Tensor,
    scale: f64,
}

impl Level {
    /// The input, which is left empty.
    pub(crate) fn take_input(&mut self) -> Tensor {
        std::mem::replace(&mut self.input, Tensor { shape: Vec::new(), data: Vec::new() })
    }
}

/// The pyramid of a picture, down from the scale at which a face of `min_face` pixels is as large as the first network wants.
pub(crate) fn levels(picture: &Picture, min_face: u32, range: &Range) -> Vec<Level> {
    let first = CELL / f64::from(min_face);
    let shorter = f64::from(picture.width.min(picture.height));
    let scales = std::iter::successors(Some(first), |scale| Some(scale * STEP));
    let level = |scale: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a picture's side")]
        let along = |side: u32| (f64::from(side) * scale).ceil() as u32;
        let shown = resized(picture, [along(picture.width), along(picture.height)], triangle());
        Level { input: range.tensor(&shown), scale }
    };
    scales.take_while(|scale| shorter * scale > CELL).map(level).collect()
}

/// What the first network found on a level: probabilities `[1, 2, rows, columns]` and offsets `[1, 4, rows, columns]`.
pub(crate) fn proposals(level: &Level, outputs: &[Tensor]) -> Result<Vec<Candidate>, DetectError> {
    // The file's outputs are told by their planes, not by their order.
    let planes = |wanted: i64| outputs.iter().position(|output| matches!(*output.shape, [1, n, _, _] if n == wanted));
    let (Some(probabilities), Some(offsets)) = (planes(2), planes(4)) else {
        return Err(DetectError::Cascade { stage: 1, shapes: shapes(outputs) });
    };
    let (probabilities, offsets) = (&outputs[probabilities], &outputs[offsets]);
    let (cells, columns) = (probabilities.data.len() / 2, usize::try_from(probabilities.shape[3]).unwrap_or_default());
    if columns == 0 || offsets.data.len() != cells * 4 {
        return Err(DetectError::Cascade { stage: 1, shapes: shapes(outputs) });
    }
    let mut found = Vec::new();
    for (cell, &score) in probabilities.data[cells..].iter().enumerate() {
        // Written so that NaN is left out too.
        if score > FIRST_SCORE {
            #[expect(clippy::cast_possible_truncation, reason = "a pixel's place")]
            let place = |cell: usize, beyond: f64| ((STRIDE * cell as f64 + 1.0 + beyond) / level.scale).round() as f32;
            let (column, row) = (cell % columns, cell / columns);
            found.push(Candidate {
                sides: [place(column, 0.0), place(row, 0.0), place(column, CELL), place(row, CELL)],
                score,
                offsets: [0, 1, 2, 3].map(|plane| offsets.data[plane * cells + cell]),
                landmarks: None,
            });
        }
    }
    Ok(suppressed(found, LEVEL_IOU, Overlap::Union))
}

/// What all levels found, for the second network, up to squares of `largest` pixels.
pub(crate) fn after_first(found: Vec<Candidate>, largest: f32) -> Vec<Candidate> {
    squares(suppressed(found, STAGE_IOU, Overlap::Union), largest)
}

/// What the second network leaves of its candidates.
pub(crate) fn after_second(seen: Vec<(Candidate, Vec<Tensor>)>, largest: f32) -> Result<Vec<Candidate>, DetectError> {
    let read = seen.into_iter().map(|(candidate, outputs)| {
        let (score, offsets) = scored(2, &outputs)?;
        Ok::<_, DetectError>((score > SECOND_SCORE).then_some(Candidate { score, offsets, ..candidate }))
    });
    let kept = read.filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()?;
    Ok(squares(suppressed(kept, STAGE_IOU, Overlap::Union), largest))
}

/// The faces of at least `min_score` that the third network leaves, best first, in pixels of the picture as it is shown.
pub(crate) fn after_third(seen: Vec<(Candidate, Vec<Tensor>)>, min_score: f32) -> Result<Vec<Detection>, DetectError> {
    let mut kept = Vec::new();
    for (candidate, outputs) in seen {
        let (score, offsets) = scored(3, &outputs)?;
        let Some(points) = outputs.iter().find(|output| output.data.len() == 10) else {
            return Err(DetectError::Cascade { stage: 3, shapes: shapes(&outputs) });
        };
        // Written so that NaN is left out too.
        if score >= min_score {
            let [left, top, right, bottom] = candidate.sides;
            let (width, height) = (right - left + 1.0, bottom - top + 1.0);
            let point = |n: usize| [left + width * points.data[n], top + height * points.data[n + 5]];
            let landmarks = Some([0, 1, 2, 3, 4].map(point));
            kept.push(Candidate { score, offsets, landmarks, ..candidate }.moved());
        }
    }
    let faces = suppressed(kept, STAGE_IOU, Overlap::Smaller);
    let faces = faces.into_iter().filter_map(Candidate::detection);
    Ok(faces.filter(|face| face.landmarks.is_finite()).collect())
}

/// What the second or the third network is shown of a candidate, `[1, 3, side, side]`.
pub(crate) fn crop(picture: &Picture, candidate: &Candidate, side: u32, range: &Range) -> Tensor {
    let [left, top, right, bottom] = candidate.sides;
    #[expect(clippy::cast_possible_truncation, reason = "whole numbers near the picture")]
    let corner = [left as i32, top as i32];
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole numbers above 0")]
    let size = [(right - left + 1.0).max(1.0) as u32, (bottom - top + 1.0).max(1.0) as u32];
    range.tensor(&resized(&part(picture, corner, size), [side; 2], triangle()))
}

/// A network's probability of a face, and its offsets.
fn scored(stage: usize, outputs: &[Tensor]) -> Result<(f32, [f32; 4]), DetectError> {
    let of = |length: usize| outputs.iter().find(|output| output.data.len() == length).map(|output| &output.data);
    match (of(2).map(Vec::as_slice), of(4).map(Vec::as_slice)) {
        (Some(&[_, score]), Some(&[left, top, right, bottom])) => Ok((score, [left, top, right, bottom])),
        _ => Err(DetectError::Cascade { stage, shapes: shapes(outputs) }),
    }
}

fn shapes(outputs: &[Tensor]) -> Vec<Vec<i64>> {
    outputs.iter().map(|output| output.shape.clone()).collect()
}

/// Each candidate where its network moved it, as a square of whole pixels, those without extent or far too large left out.
fn squares(candidates: Vec<Candidate>, largest: f32) -> Vec<Candidate> {
    let square = |candidate: Candidate| {
        let [left, top, right, bottom] = candidate.moved().sides;
        let (width, height) = (right - left + 1.0, bottom - top + 1.0);
        let side = width.max(height);
        let (left, top) = ((left + (width - side) * 0.5).round(), (top + (height - side) * 0.5).round());
        let sides = [left, top, (left + side - 1.0).round(), (top + side - 1.0).round()];
        // Larger ones than the picture, or not finite, come of a file that is not such a network.
        let is_real = sides.iter().all(|at| at.abs() < 2.0 * largest) && (1.0..=largest).contains(&side);
        is_real.then_some(Candidate { sides, ..candidate })
    };
    candidates.into_iter().take(MOST_CANDIDATES).filter_map(square).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Overlap {
    /// Intersection over union.
    Union,
    /// Intersection over the smaller one (`IoM`).
    Smaller,
}

/// Best first, without those that overlap a better one too much; of very many, the best only.
fn suppressed(mut candidates: Vec<Candidate>, most: f32, overlap: Overlap) -> Vec<Candidate> {
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    candidates.truncate(MOST_COMPARED);
    let mut kept: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        if !kept.iter().any(|better| better.overlap(&candidate, overlap) > most) {
            kept.push(candidate);
        }
    }
    kept
}

impl Candidate {
    /// Where the network's offsets move it.
    fn moved(self) -> Self {
        let [left, top, right, bottom] = self.sides;
        let (width, height) = (right - left + 1.0, bottom - top + 1.0);
        let by = self.offsets;
        let sides = [left + by[0] * width, top + by[1] * height, right + by[2] * width, bottom + by[3] * height];
        Self { sides, ..self }
    }

    fn area(&self) -> f32 {
        let [left, top, right, bottom] = self.sides;
        (right - left + 1.0) * (bottom - top + 1.0)
    }

    fn overlap(&self, other: &Self, overlap: Overlap) -> f32 {
        let along = |axis: usize| {
            let (from, to) = (self.sides[axis].max(other.sides[axis]), self.sides[axis + 2].min(other.sides[axis + 2]));
            (to - from + 1.0).max(0.0)
        };
        let both = along(0) * along(1);
        match overlap {
            Overlap::Union => both / (self.area() + other.area() - both),
            Overlap::Smaller => both / self.area().min(other.area()),
        }
    }

    fn detection(self) -> Option<Detection> {
        let [left, top, right, bottom] = self.sides;
        let bounding_box = BoundingBox {
            x: left,
            y: top,
            width: (right - left + 1.0).max(0.0),
            height: (bottom - top + 1.0).max(0.0),
        };
        Some(Detection { bounding_box, landmarks: Landmarks::five(self.landmarks?), score: self.score })
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "small whole numbers, exact in f32")]
mod tests {
    use super::*;

    fn candidate(sides: [f32; 4], score: f32) -> Candidate {
        Candidate { sides, score, offsets: [0.0; 4], landmarks: None }
    }

    #[test]
    fn the_smaller_box_inside_a_larger_one_goes_by_its_own_area_only() {
        let boxes = vec![candidate([0.0, 0.0, 99.0, 99.0], 0.9), candidate([10.0, 10.0, 49.0, 49.0], 0.8)];
        assert_eq!(suppressed(boxes.clone(), STAGE_IOU, Overlap::Union).len(), 2);
        assert_eq!(suppressed(boxes, STAGE_IOU, Overlap::Smaller), [candidate([0.0, 0.0, 99.0, 99.0], 0.9)]);
    }

    #[test]
    fn of_very_many_boxes_the_best_are_compared() {
        let count = MOST_COMPARED + 100;
        let apart = |n: usize| candidate([n as f32 * 20.0, 0.0, n as f32 * 20.0 + 11.0, 11.0], n as f32 / count as f32);
        let kept = suppressed((0..count).map(apart).collect(), LEVEL_IOU, Overlap::Union);
        assert_eq!((kept.len(), kept[0], kept[MOST_COMPARED - 1]), (MOST_COMPARED, apart(count - 1), apart(100)));
    }

    #[test]
    fn a_candidate_is_moved_and_made_a_square_of_whole_pixels() {
        let moved = Candidate { offsets: [0.1, 0.0, -0.1, 0.2], ..candidate([10.0, 20.0, 19.0, 29.0], 0.9) };
        // Moved to 11..18 by 20..31: 8 wide and 12 high, so 12 along both around the same middle.
        assert_eq!(squares(vec![moved], 100.0)[0].sides, [9.0, 20.0, 20.0, 31.0]);
        let endless = Candidate { offsets: [f32::NAN; 4], ..moved };
        let huge = Candidate { offsets: [0.0, 0.0, 20.0, 20.0], ..moved };
        assert!(squares(vec![endless, huge], 100.0).is_empty());
    }

    #[test]
    fn cells_are_read_where_they_lie() {
        let level = Level { input: Tensor { shape: vec![], data: vec![] }, scale: 0.5 };
        let mut probabilities = vec![0.0; 12];
        // Row 1, column 2 of a map of 2 x 3: the second plane is that of faces.
        probabilities[6 + 5] = 0.95;
        let mut offsets = vec![0.0; 24];
        offsets[6 + 5] = 0.25;
        let outputs = [
            Tensor { shape: vec![1, 4, 2, 3], data: offsets },
            Tensor { shape: vec![1, 2, 2, 3], data: probabilities },
        ];
        let found = proposals(&level, &outputs).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].sides, [10.0, 6.0, 34.0, 30.0]);
        assert_eq!(found[0].offsets, [0.0, 0.25, 0.0, 0.0]);
        let error = proposals(&level, &outputs[..1]).unwrap_err().to_string();
        assert!(error.contains("stage 1") && error.contains("[1, 4, 2, 3]"), "{error}");
    }

    #[test]
    fn points_are_parts_of_the_box_that_was_shown() {
        let outputs = vec![
            Tensor { shape: vec![1, 2], data: vec![0.1, 0.9] },
            Tensor { shape: vec![1, 4], data: vec![0.5, 0.0, 0.0, 0.0] },
            Tensor { shape: vec![1, 10], data: vec![0.0, 1.0, 0.5, 0.25, 0.75, 0.0, 0.0, 0.5, 1.0, 1.0] },
        ];
        let faces = after_third(vec![(candidate([10.0, 20.0, 29.0, 39.0], 0.8), outputs)], 0.5).unwrap();
        assert_eq!(faces[0].bounding_box, BoundingBox { x: 20.0, y: 20.0, width: 10.0, height: 20.0 });
        let points = [[10.0, 20.0], [30.0, 20.0], [20.0, 30.0], [15.0, 40.0], [25.0, 40.0]];
        assert_eq!(faces[0].landmarks, Landmarks::five(points));
    }
}
