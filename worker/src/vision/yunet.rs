//! The YuNet output head (`opencv_zoo` `face_detection_yunet`, 2023mar and later).
//!
//! Twelve tensors: class score, objectness, box and landmarks, each for strides 8, 16 and 32, in that order; one row a
//! cell, cells row-major.

use crate::vision::detect::{DetectError, Head, STRIDES};
use crate::vision::{BoundingBox, Detection, Landmarks};

/// Reads all detections of at least `min_score` in input pixels, unsuppressed.
pub(crate) fn read(head: &Head<'_>, min_score: f32) -> Result<Vec<Detection>, DetectError> {
    let mut found = Vec::new();
    for (level, &stride) in STRIDES.iter().enumerate() {
        let columns = head.columns(stride);
        let cells = head.cells(stride);
        let class = head.rows(level, cells, 1)?;
        let object = head.rows(level + 3, cells, 1)?;
        let boxes = head.rows(level + 6, cells, 4)?;
        let points = head.rows(level + 9, cells, 10)?;
        for (cell, (class, object)) in class.iter().zip(object).enumerate() {
            let score = (class.clamp(0.0, 1.0) * object.clamp(0.0, 1.0)).sqrt();
            // Written so that NaN is left out too.
            if score >= min_score {
                let corner = [(cell % columns) as f32, (cell / columns) as f32];
                let size = stride as f32;
                let bounding_box = read_box(&boxes[cell * 4..cell * 4 + 4], corner, size);
                let landmarks = Landmarks::five(std::array::from_fn(|point| {
                    let at = cell * 10 + point * 2;
                    [(points[at] + corner[0]) * size, (points[at + 1] + corner[1]) * size]
                }));
                found.push(Detection { bounding_box, landmarks, score });
            }
        }
    }
    Ok(found)
}

/// A box is its centre's offset from the cell's corner, in strides, and the logarithm of its sides.
fn read_box(row: &[f32], corner: [f32; 2], stride: f32) -> BoundingBox {
    let (width, height) = (row[2].exp() * stride, row[3].exp() * stride);
    BoundingBox {
        x: (corner[0] + row[0]) * stride - width / 2.0,
        y: (corner[1] + row[1]) * stride - height / 2.0,
        width,
        height,
    }
}
