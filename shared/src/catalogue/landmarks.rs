//! What places points on a face that was found: `[landmarks]` of an entry.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Channels, ModelFile, check_range};
use crate::digest::sha256_hex;

/// Which points of a face are meant, and in what order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LandmarkScheme {
    /// Image-left eye, image-right eye, nose tip, image-left mouth corner, image-right mouth corner.
    #[default]
    FivePoint,
    /// dlib's five: outer and inner corner of the image-right eye, outer and inner corner of the image-left eye, base of the
    /// nose.
    #[serde(rename = "dlib-5")]
    Dlib5,
    /// The 68 points of iBUG 300-W (Sagonas et al. 2013).
    #[serde(rename = "ibug-68")]
    Ibug68,
}

impl LandmarkScheme {
    /// How many points it has.
    pub fn points(self) -> usize {
        match self {
            Self::FivePoint | Self::Dlib5 => 5,
            Self::Ibug68 => 68,
        }
    }

    /// Whether points of the other scheme follow from this one's.
    pub fn gives(self, other: Self) -> bool {
        self == other || (self == Self::Ibug68 && other == Self::FivePoint)
    }
}

/// `[landmarks]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LandmarkModel {
    /// How the file is read and asked.
    pub family: LandmarkFamily,
    /// Which points it places.
    pub scheme: LandmarkScheme,
    /// The weights.
    pub file: ModelFile,
    /// What a network is shown; not of a shape predictor, which looks at the picture itself.
    pub input: Option<LandmarkInput>,
    /// For a shape predictor that was trained on other boxes than the detector's: the side of the square, around the middle of
    /// the detector's box, that takes its place, in widths of the box.
    pub square: Option<f32>,
}

/// `[landmarks.input]`: the face's box, its longer side scaled to the input's, in the middle of black.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LandmarkInput {
    /// Width and height in pixels.
    pub side: u32,
    /// Order of the input's planes.
    pub channels: Channels,
    /// Subtracted from each plane's 0..255 values.
    pub mean: [f32; 3],
    /// Multiplied afterwards.
    pub scale: [f32; 3],
}

/// Landmark models that have code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LandmarkFamily {
    /// A network that answers x and y of each point, 0..1 of its input.
    Network,
    /// dlib's cascade of regression trees (Kazemi and Sullivan 2014), in the file that `face-id models import dlib` writes.
    ShapePredictor,
}

impl LandmarkModel {
    /// What changes whenever it could place points otherwise.
    pub(super) fn revision(&self) -> Vec<String> {
        let model = format!("{}-{}", self.scheme, &self.file.sha256[..12]);
        let square = self.square.map(|side| format!("s{side}"));
        let input = self.input.as_ref().map(|input| sha256_hex(format!("{input:?}"))[..8].to_owned());
        [Some(model), square, input].into_iter().flatten().collect()
    }

    pub(super) fn check(&self) -> Result<(), String> {
        match (self.family, &self.input) {
            (LandmarkFamily::Network, Some(input)) => {
                if !(32..=1024).contains(&input.side) {
                    return Err("landmarks.input.side must lie between 32 and 1024 pixels".to_owned());
                }
                if input.channels == Channels::Gray {
                    return Err("landmarks.input.channels must be rgb or bgr".to_owned());
                }
                check_range(input.mean, input.scale)
            }
            (LandmarkFamily::Network, None) => Err("landmarks.input is needed for the family network".to_owned()),
            (LandmarkFamily::ShapePredictor, Some(_)) => {
                Err("landmarks.input must be left out for the family shape-predictor".to_owned())
            }
            (LandmarkFamily::ShapePredictor, None) if self.scheme == LandmarkScheme::FivePoint => {
                Err("landmarks.scheme must be dlib-5 or ibug-68 for the family shape-predictor".to_owned())
            }
            (LandmarkFamily::ShapePredictor, None) => Ok(()),
        }?;
        match (self.square, self.family) {
            (Some(_), LandmarkFamily::Network) => {
                Err("landmarks.square must be left out for the family network".to_owned())
            }
            (Some(side), _) if !(0.25..=4.0).contains(&side) => {
                Err("landmarks.square must lie between 0.25 and 4 widths of a face's box".to_owned())
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for LandmarkScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FivePoint => "five-point",
            Self::Dlib5 => "dlib-5",
            Self::Ibug68 => "ibug-68",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Pipeline;

    #[test]
    fn a_network_of_grey_pixels_is_refused() {
        let entry = include_str!("../../../models/mtcnn-dlib-densenet-std.toml");
        let (start, end) = entry.split_once("[landmarks.input]").unwrap();
        let (input, rest) = end.split_once("\n[").unwrap();
        let grey = input.replace("channels = \"rgb\"", "channels = \"gray\"");
        assert_ne!(grey, input);
        let text = format!("{start}[landmarks.input]{grey}\n[{rest}");
        let error = Pipeline::parse("x.toml", &text).unwrap_err().to_string();
        assert!(error.contains("landmarks.input.channels"), "{error}");
    }
}
