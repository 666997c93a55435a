//! Non-maximum suppression: of detections that overlap too much, the first in rank stays.

use crate::vision::Detection;

/// Overlap (intersection over union) from which two boxes are the same face: the reference code of YuNet uses 0.3, that
/// of SCRFD 0.4.
pub(crate) const SAME_FACE_IOU: f32 = 0.3;

/// Sorts by score, the highest first.
pub(crate) fn best_first(mut detections: Vec<Detection>) -> Vec<Detection> {
    detections.sort_by(|a, b| b.score.total_cmp(&a.score));
    detections
}

/// Keeps each detection that overlaps none kept before it by more than that `IoU`.
pub(crate) fn suppress(ranked: Vec<Detection>, same_face_iou: f32) -> Vec<Detection> {
    let mut kept: Vec<Detection> = Vec::new();
    for candidate in ranked {
        let same = |face: &Detection| face.bounding_box.iou(&candidate.bounding_box) > same_face_iou;
        if !kept.iter().any(same) {
            kept.push(candidate);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vision::{BoundingBox, Landmarks};

    fn face([x, y, width, height]: [f32; 4], score: f32) -> Detection {
        let bounding_box = BoundingBox { x, y, width, height };
        Detection { bounding_box, landmarks: Landmarks::five([[x, y]; 5]), score }
    }

    #[test]
    fn iou_of_known_boxes() {
        let one = face([0.0, 0.0, 10.0, 10.0], 1.0).bounding_box;
        let cases = [
            ([0.0, 0.0, 10.0, 10.0], 1.0),
            ([5.0, 0.0, 10.0, 10.0], 1.0 / 3.0),
            ([10.0, 0.0, 10.0, 10.0], 0.0),
            ([2.5, 2.5, 5.0, 5.0], 0.25),
            ([3.0, 3.0, 0.0, 0.0], 0.0),
        ];
        for (other, wanted) in cases {
            assert!((one.iou(&face(other, 1.0).bounding_box) - wanted).abs() < 1e-6, "{other:?}");
        }
        let empty = face([3.0, 3.0, 0.0, 0.0], 1.0).bounding_box;
        assert!(empty.iou(&empty).abs() < f32::EPSILON);
    }

    #[test]
    fn the_first_of_overlapping_faces_stays() {
        let faces = vec![
            face([0.0, 0.0, 10.0, 10.0], 0.8),
            face([1.0, 0.0, 10.0, 10.0], 0.9),
            face([8.0, 0.0, 10.0, 10.0], 0.7),
        ];
        let scores = |kept: Vec<Detection>| kept.iter().map(|face| face.score).collect::<Vec<_>>();
        assert_eq!(scores(suppress(best_first(faces.clone()), SAME_FACE_IOU)), [0.9, 0.7]);
        assert_eq!(scores(suppress(faces, SAME_FACE_IOU)), [0.8, 0.7]);
    }

    proptest! {
        #[test]
        fn survivors_are_apart_and_cover_the_rest(
            rows in prop::collection::vec((prop::array::uniform4(1f32..60.0), 0f32..1.0), 0..40),
        ) {
            let faces: Vec<_> = rows.into_iter().map(|(place, score)| face(place, score)).collect();
            let kept = suppress(best_first(faces.clone()), SAME_FACE_IOU);
            let overlap = |a: &Detection, b: &Detection| a.bounding_box.iou(&b.bounding_box) > SAME_FACE_IOU;
            for (at, face) in kept.iter().enumerate() {
                prop_assert!(!kept[at + 1..].iter().any(|other| overlap(face, other)));
            }
            for face in &faces {
                prop_assert!(kept.iter().any(|other| other == face || (overlap(face, other) && other.score >= face.score)));
            }
            prop_assert_eq!(suppress(kept.clone(), SAME_FACE_IOU), kept);
        }
    }
}
