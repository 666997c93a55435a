//! What makes vectors: `[recognizer]` of an entry.

use serde::Deserialize;

use super::{Channels, Metric, ModelFile, check_range};

/// Copies of a crop: dlib's author took a hundred for his figure on LFW.
const MAX_JITTER: u32 = 100;

/// `[recognizer]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recognizer {
    /// The weights.
    pub file: ModelFile,
    /// Order of the input's planes.
    pub channels: Channels,
    /// Subtracted from each plane's 0..255 values.
    pub mean: [f32; 3],
    /// Multiplied afterwards.
    pub scale: [f32; 3],
    /// Whether each crop is brought to a mean of 0 and a standard deviation of 1 instead, as `FaceNet` has it
    /// (`prewhiten` of davidsandberg/facenet); `mean` and `scale` do nothing then.
    #[serde(default)]
    pub prewhiten: bool,
    /// Components of a vector.
    pub dimension: usize,
    /// Order of the input's axes.
    pub layout: Layout,
    /// Whether a vector is scaled to unit length.
    #[serde(default = "yes")]
    pub normalise: bool,
    /// How two vectors are compared.
    #[serde(default)]
    pub metric: Metric,
    /// Whether a vector is the mean of that of the crop and that of its mirror image.
    #[serde(default)]
    pub flip: bool,
    /// Of how many copies of the crop a vector is the mean, each moved, turned and scaled a little and every second one mirrored
    /// (`num_jitters` of dlib's `compute_face_descriptor`); at 0, the crop itself is shown.
    #[serde(default)]
    pub jitter: u32,
}

/// Order of a tensor's axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Batch, channel, height, width.
    Nchw,
    /// Batch, height, width, channel.
    Nhwc,
}

impl Recognizer {
    pub(super) fn check(&self) -> Result<(), String> {
        if !(1..=4096).contains(&self.dimension) {
            return Err("recognizer.dimension must lie between 1 and 4096".to_owned());
        }
        if !self.normalise && self.metric == Metric::Cosine {
            return Err("recognizer.metric must be euclidean where vectors are not normalised".to_owned());
        }
        if self.jitter > MAX_JITTER {
            return Err(format!("recognizer.jitter must be at most {MAX_JITTER}"));
        }
        if self.flip && self.jitter > 0 {
            return Err("recognizer.jitter mirrors every second copy: leave recognizer.flip out".to_owned());
        }
        check_range(self.mean, self.scale)
    }
}

fn yes() -> bool {
    true
}
