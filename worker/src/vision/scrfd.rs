//! The SCRFD output head (`InsightFace` `det_500m`, `det_2.5g`, `det_10g` with landmarks).
//!
//! Nine tensors: score (sigmoid applied), box and landmarks, each for strides 8, 16 and 32, in that order; two anchors
//! a cell, one row an anchor.

use crate::vision::detect::{DetectError, Head, STRIDES};
use crate::vision::{BoundingBox, Detection, Landmarks};

const ANCHORS: usize = 2;

/// Reads all detections of at least `min_score` in input pixels, unsuppressed.
pub(crate) fn read(head: &Head<'_>, min_score: f32) -> Result<Vec<Detection>, DetectError> {
    let mut found = Vec::new();
    for (level, &stride) in STRIDES.iter().enumerate() {
        let columns = head.columns(stride);
        let anchors = head.cells(stride) * ANCHORS;
        let scores = head.rows(level, anchors, 1)?;
        let boxes = head.rows(level + 3, anchors, 4)?;
        let points = head.rows(level + 6, anchors, 10)?;
        for (anchor, &score) in scores.iter().enumerate() {
            // Written so that NaN is left out too.
            if score >= min_score {
                let cell = anchor / ANCHORS;
                let size = stride as f32;
                let corner = [(cell % columns) as f32 * size, (cell / columns) as f32 * size];
                let landmarks = Landmarks::five(std::array::from_fn(|point| {
                    let at = anchor * 10 + point * 2;
                    [corner[0] + points[at] * size, corner[1] + points[at + 1] * size]
                }));
                found.push(Detection {
                    bounding_box: read_box(&boxes[anchor * 4..anchor * 4 + 4], corner, size),
                    landmarks,
                    score,
                });
            }
        }
    }
    Ok(found)
}

/// A box is its four sides' distances from the cell's corner, in strides.
fn read_box(row: &[f32], corner: [f32; 2], stride: f32) -> BoundingBox {
    BoundingBox {
        x: corner[0] - row[0] * stride,
        y: corner[1] - row[1] * stride,
        width: ((row[0] + row[2]) * stride).max(0.0),
        height: ((row[1] + row[3]) * stride).max(0.0),
    }
}
