//! The output head of Ultra-Light-Fast-Generic-Face-Detector (`version-RFB-320`, `version-slim-320`).
//!
//! Two tensors: `[rows, 2]` with the probabilities of background and face, and `[rows, 4]` with left, top, right and bottom as
//! parts of the input, priors applied.

use crate::vision::detect::{DetectError, Head};
use crate::vision::{BoundingBox, Detection, Landmarks};

/// Width and height of its input in pixels; the priors are part of the file.
pub(crate) const INPUT: [u32; 2] = [320, 240];
/// Cells at strides 8, 16, 32 and 64 with 3, 2, 2 and 3 priors each.
const ROWS: usize = 40 * 30 * 3 + 20 * 15 * 2 + 10 * 8 * 2 + 5 * 4 * 3;

/// Reads all detections of at least `min_score` in input pixels, unsuppressed, their landmarks unplaced.
pub(crate) fn read(head: &Head<'_>, min_score: f32) -> Result<Vec<Detection>, DetectError> {
    let scores = head.rows(0, ROWS, 2)?;
    let boxes = head.rows(1, ROWS, 4)?;
    let [width, height] = INPUT.map(|side| side as f32);
    let face = |(score, sides): (&[f32], &[f32])| {
        // Written so that NaN is left out too.
        (score[1] >= min_score).then(|| Detection {
            bounding_box: BoundingBox {
                x: sides[0] * width,
                y: sides[1] * height,
                width: ((sides[2] - sides[0]) * width).max(0.0),
                height: ((sides[3] - sides[1]) * height).max(0.0),
            },
            landmarks: Landmarks::unplaced(),
            score: score[1],
        })
    };
    Ok(scores.chunks_exact(2).zip(boxes.chunks_exact(4)).filter_map(face).collect())
}
