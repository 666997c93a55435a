//! Pixels of a photograph at some scale, and where they lie in the original.

use crate::vision::{BoundingBox, Detection, Landmarks, Picture};

/// All of a photograph or a part of it, upright.
#[derive(Debug)]
pub struct Frame {
    /// The pixels.
    pub picture: Picture,
    /// Where their upper left corner lies, in upright original pixels. A mirrored picture that is no multiple of the
    /// scale begins a little outside.
    pub(crate) origin: [f32; 2],
    /// Original pixels along a side of one of them: 1, 2, 4 or 8.
    pub(crate) scale: f32,
}

impl From<Picture> for Frame {
    fn from(picture: Picture) -> Self {
        Self { picture, origin: [0.0; 2], scale: 1.0 }
    }
}

impl Frame {
    /// A face of the frame's picture in upright original pixels.
    pub(crate) fn to_original(&self, face: &Detection) -> Detection {
        face.placed([self.scale; 2], self.origin)
    }

    /// Points of the frame's picture in upright original pixels: undoes [`Frame::landmarks`].
    pub(crate) fn landmarks_to_original(&self, shown: &Landmarks) -> Landmarks {
        let along = |axis: usize, value: f32| (value + 0.5) * self.scale - 0.5 + self.origin[axis];
        shown.map(|[x, y]| [along(0, x), along(1, y)])
    }

    /// A face of the original where the frame's picture shows it, for sampling there.
    pub(crate) fn face(&self, original: &Detection) -> Detection {
        let bounding_box = &original.bounding_box;
        let [x, y] = [(0, bounding_box.x), (1, bounding_box.y)].map(|(axis, at)| (at - self.origin[axis]) / self.scale);
        Detection {
            bounding_box: BoundingBox {
                x,
                y,
                width: bounding_box.width / self.scale,
                height: bounding_box.height / self.scale,
            },
            landmarks: self.landmarks(&original.landmarks),
            score: original.score,
        }
    }

    /// Points of the original where the frame's picture shows them, for sampling there. A whole number is the middle
    /// of a pixel, in both.
    pub(crate) fn landmarks(&self, original: &Landmarks) -> Landmarks {
        let along = |axis: usize, value: f32| (value + 0.5 - self.origin[axis]) / self.scale - 0.5;
        original.map(|[x, y]| [along(0, x), along(1, y)])
    }
}
