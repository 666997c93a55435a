//! dlib's max-margin face detector (King 2015; `mmod_human_face_detector`): one score map a level of a pyramid.
//!
//! The network sees boxes of one size, 80 pixels, so that the picture is shown at scales that are each 5/6 of the one before.

use crate::vision::detect::{DetectError, Head};
use crate::vision::{BoundingBox, Detection, Landmarks};

/// Black around each level: without it, faces at the border are lost. A multiple of [`STRIDE`].
pub(crate) const PADDING: u32 = 48;
/// Sides of a level as parts of the one before.
pub(crate) const STEP: f64 = 5.0 / 6.0;
/// A level whose shorter side is below has no room for a face that the one before does not show.
pub(crate) const LEAST_SIDE: u32 = 60;
/// Overlap from which two boxes are one face, from dlib's own file.
pub(crate) const SAME_FACE_IOU: f32 = 0.338_276;
/// Input pixels between two cells.
const STRIDE: u32 = 8;
/// Width and height of a box in input pixels.
const BOX: f32 = 80.0;
/// Where the first cell's box has its middle, in input pixels.
const FIRST: f32 = 14.0;

/// Cells along a side: three convolutions of five pixels, each at half the scale of the one before, and no others change it.
fn cells(side: u32) -> usize {
    (0..3).fold(side as usize, |side, _| side.saturating_sub(5) / 2 + 1)
}

/// Reads all detections of at least `min_score` in input pixels, unsuppressed, their landmarks unplaced.
///
/// The network gives a distance from the decision, 0 at the border; the score is its logistic function, 0.5 there.
pub(crate) fn read(head: &Head<'_>, min_score: f32) -> Result<Vec<Detection>, DetectError> {
    let (map, columns) = head.map(0, cells)?;
    let mut found = Vec::new();
    for (cell, distance) in map.iter().enumerate() {
        let score = 1.0 / (1.0 + (-distance).exp());
        // Written so that NaN is left out too.
        if score >= min_score {
            let middle = |cell: usize| cell as f32 * STRIDE as f32 + FIRST;
            let bounding_box = BoundingBox {
                x: middle(cell % columns) - BOX / 2.0,
                y: middle(cell / columns) - BOX / 2.0,
                width: BOX,
                height: BOX,
            };
            found.push(Detection { bounding_box, landmarks: Landmarks::unplaced(), score });
        }
    }
    Ok(found)
}
