//! Non-maximum suppression: of detections that overlap too much, the first in rank stays.

use crate::vision::Detection;

/// IoU from which two boxes are the same face; the value of both detector families' reference code is 0.3 (YuNet) and
/// 0.4 (SCRFD), and faces side by side in a crowd stay well below either.
pub(crate) const SAME_FACE_IOU: f32 = 0.3;

/// Sorts by score, the highest first.
pub(crate) fn best_first(mut detections: Vec<Detection>) -> Vec<Detection> {
    detections.sort_by(|a, b| b.score.total_cmp(&a.score));
    detections
}

/// Keeps each detection that overlaps none kept before it.
pub(crate) fn suppress(ranked: Vec<Detection>) -> Vec<Detection> {
    let mut kept: Vec<Detection> = Vec::new();
    for candidate in ranked {
        let same = |face: &Detection| face.bounding_box.iou(&candidate.bounding_box) > SAME_FACE_IOU;
        if !kept.iter().any(same) {
            kept.push(candidate);
        }
    }
    kept
}
