//! What finds faces: `[detector]` of an entry.

use std::fmt;

use serde::Deserialize;

use super::{Channels, LandmarkScheme, ModelFile, check_range};
use crate::digest::sha256_hex;

/// `[detector]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detector {
    /// Which head is decoded.
    pub family: DetectorFamily,
    /// The weights; of a cascade, those of its first stage.
    pub file: ModelFile,
    /// The weights of a cascade's further stages, in their order.
    #[serde(default)]
    pub stages: Vec<ModelFile>,
    /// The longest side at which a picture is shown, in pixels.
    pub input_side: u32,
    /// Width and height in pixels of what a file takes that takes one size only: the picture lies at its upper left, on black.
    pub fixed_side: Option<u32>,
    /// The smallest face that a cascade looks for, in pixels of the picture as it is shown.
    pub min_face: Option<u32>,
    /// Order of the input's planes.
    pub channels: Channels,
    /// Subtracted from each plane's 0..255 values.
    pub mean: [f32; 3],
    /// Multiplied afterwards.
    pub scale: [f32; 3],
    /// A face that scores below is not reported.
    pub store_score: f32,
    /// A face that scores below is stored, but not matched.
    pub match_score: f32,
}

/// Detector families that have code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DetectorFamily {
    /// `YuNet`, anchor-free with `cls`, `obj`, `bbox` and `kps` outputs at strides 8, 16, 32.
    Yunet,
    /// SCRFD, two anchors a cell with scores, boxes and points at strides 8, 16, 32.
    Scrfd,
    /// MTCNN (Zhang et al. 2016): three networks in turn, of which the first walks over a pyramid.
    Mtcnn,
    /// dlib's max-margin detector (King 2015): one score map over a tiled pyramid, boxes of one size, no points.
    Mmod,
    /// Ultra-Light-Fast-Generic-Face-Detector: prior boxes at strides 8, 16, 32, 64, no points.
    Ultraface,
}

impl DetectorFamily {
    /// How many files it has beside the first.
    fn stages(self) -> usize {
        if self == Self::Mtcnn { 2 } else { 0 }
    }

    /// Which points it places on a face.
    pub(super) fn landmark_scheme(self) -> Option<LandmarkScheme> {
        match self {
            Self::Yunet | Self::Scrfd | Self::Mtcnn => Some(LandmarkScheme::FivePoint),
            Self::Mmod | Self::Ultraface => None,
        }
    }
}

impl Detector {
    pub(super) fn check(&self) -> Result<(), String> {
        if !(160..=4096).contains(&self.input_side) {
            return Err("detector.input_side must lie between 160 and 4096 pixels".to_owned());
        }
        let scores = self.store_score..=1.0;
        if !(0.0..=1.0).contains(&self.store_score) || !scores.contains(&self.match_score) {
            return Err("detector scores must satisfy 0 <= store_score <= match_score <= 1".to_owned());
        }
        let (wanted, found) = (self.family.stages(), self.stages.len());
        if wanted != found {
            return Err(format!("detector.stages must be {wanted} files for the family {}, not {found}", self.family));
        }
        let has_sizes = matches!(self.family, DetectorFamily::Yunet | DetectorFamily::Scrfd);
        // Smaller pictures are enlarged to 384 pixels.
        let is_right =
            |side: u32| has_sizes && side >= self.input_side.max(384) && side <= 4096 && side.is_multiple_of(32);
        if self.fixed_side.is_some_and(|side| !is_right(side)) {
            return Err("detector.fixed_side must be a multiple of 32 from input_side, and 384, to 4096 pixels, and be left out but for \
                        the families yunet and scrfd"
                .to_owned());
        }
        let is_cascade = self.family == DetectorFamily::Mtcnn;
        if self.min_face.is_some() != is_cascade || self.min_face.is_some_and(|side| !(12..=1024).contains(&side)) {
            return Err("detector.min_face must lie between 12 and 1024 pixels for the family mtcnn, and be left out \
                        for others"
                .to_owned());
        }
        if self.channels == Channels::Gray {
            return Err("detector.channels must be rgb or bgr".to_owned());
        }
        check_range(self.mean, self.scale)
    }
}

impl Detector {
    /// A short text of how it wants its pixels, where that is not how its family's published files do.
    pub(super) fn other_pixels(&self) -> Option<String> {
        let range = |channels, mean, scale| (channels, [mean; 3], [scale; 3]);
        let usual = match self.family {
            DetectorFamily::Yunet => range(Channels::Bgr, 0.0, 1.0),
            DetectorFamily::Scrfd | DetectorFamily::Mtcnn => range(Channels::Rgb, 127.5, 0.007_812_5),
            DetectorFamily::Ultraface => range(Channels::Rgb, 127.0, 0.007_812_5),
            DetectorFamily::Mmod => (Channels::Rgb, [122.782, 117.001, 104.298], [0.003_906_25; 3]),
        };
        let own = (self.channels, self.mean, self.scale);
        (own != usual).then(|| format!("c{}", &sha256_hex(format!("{own:?}"))[..8]))
    }
}

impl fmt::Display for DetectorFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yunet => "yunet",
            Self::Scrfd => "scrfd",
            Self::Mtcnn => "mtcnn",
            Self::Mmod => "mmod",
            Self::Ultraface => "ultraface",
        })
    }
}
