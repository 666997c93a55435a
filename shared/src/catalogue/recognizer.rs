//! What makes vectors: `[recognizer]` of an entry.

use serde::Deserialize;

use super::{Channels, Metric, ModelFile, check_range};

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
    /// Whether a vector is the sum of that of the crop and that of its mirror image.
    #[serde(default)]
    pub flip: bool,
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
        check_range(self.mean, self.scale)
    }
}

fn yes() -> bool {
    true
}
