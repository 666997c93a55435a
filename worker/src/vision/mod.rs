//! The pure half of a pipeline: pixels and tensors in, faces and vectors out.
//!
//! No input or output, no async, no clock: bytes are decoded to an upright photo, of which the detector is shown a
//! [`Picture`] at a reduced scale; its outputs become [`Detection`]s, each of those an aligned crop with its [`quality`]
//! and a recognizer input. Running the models between these steps belongs to `crate::analysis`.

pub mod align;
pub mod choose;
pub mod crops;
pub mod decode;
pub mod detect;
mod encode;
pub mod frame;
mod jitter;
pub mod landmark_network;
mod landmarks;
pub mod margin;
mod mmod;
pub mod mtcnn;
mod nms;
pub mod pair;
pub mod quality;
pub mod recognize;
mod resize;
mod scrfd;
pub mod shape_predictor;
pub mod spoof;
pub mod tensor;
pub mod test_crop;
pub(crate) mod ultraface;
mod yunet;

pub use landmarks::{Landmarks, LandmarksError};

#[cfg(test)]
mod tests;

/// Pixels as a viewer shows them: upright, 8 bits a channel, R G B interleaved, rows from the top, no padding.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// `width * height * 3` bytes.
    pub rgb: Vec<u8>,
}

/// A rectangle in upright original pixels; it may reach outside the picture.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct BoundingBox {
    /// Left edge.
    pub x: f32,
    /// Top edge.
    pub y: f32,
    /// Width, never negative.
    pub width: f32,
    /// Height, never negative.
    pub height: f32,
}

/// One face as the detector saw it, in upright original pixels.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Detection {
    /// Where the face is.
    pub bounding_box: BoundingBox,
    /// Its points.
    pub landmarks: Landmarks,
    /// The detector's confidence, 0..1, on the scale of that detector family.
    pub score: f32,
}

impl std::fmt::Debug for Picture {
    // Pixels are biometric data: a stray `{:?}` must not print them.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Picture({}x{})", self.width, self.height)
    }
}

impl BoundingBox {
    /// Area in square pixels.
    pub fn area(&self) -> f32 {
        self.width * self.height
    }

    /// The middle as `[x, y]`.
    pub fn center(&self) -> [f32; 2] {
        [self.x + self.width / 2.0, self.y + self.height / 2.0]
    }

    /// The square with that side and the same middle.
    pub(crate) fn squared(&self, side: f32) -> Self {
        let [x, y] = self.center();
        Self { x: x - side / 2.0, y: y - side / 2.0, width: side, height: side }
    }

    /// The shorter of width and height.
    pub fn shorter_side(&self) -> f32 {
        self.width.min(self.height)
    }

    /// The least box that has this one and another in it.
    pub(crate) fn around(self, other: Self) -> Self {
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let (right, bottom) =
            ((self.x + self.width).max(other.x + other.width), (self.y + self.height).max(other.y + other.height));
        Self { x, y, width: right - x, height: bottom - y }
    }

    /// Intersection over union with another box, 0..1; 0 where both are empty.
    pub fn iou(&self, other: &Self) -> f32 {
        let width = (self.x + self.width).min(other.x + other.width) - self.x.max(other.x);
        let height = (self.y + self.height).min(other.y + other.height) - self.y.max(other.y);
        let intersection = width.max(0.0) * height.max(0.0);
        let union = self.area() + other.area() - intersection;
        if union > 0.0 { intersection / union } else { 0.0 }
    }
}

impl Detection {
    /// The same face after each point is multiplied by `factor` and moved by `shift`.
    pub(crate) fn placed(&self, factor: [f32; 2], shift: [f32; 2]) -> Self {
        let place = |[x, y]: [f32; 2]| [x * factor[0] + shift[0], y * factor[1] + shift[1]];
        let [x, y] = place([self.bounding_box.x, self.bounding_box.y]);
        Self {
            bounding_box: BoundingBox {
                x,
                y,
                width: self.bounding_box.width * factor[0],
                height: self.bounding_box.height * factor[1],
            },
            landmarks: self.landmarks.map(place),
            score: self.score,
        }
    }
}
