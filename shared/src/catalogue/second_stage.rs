//! What checks the persons that a search has found: `[second_stage]` of an entry.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Channels, ModelFile, check_range};
use crate::joint_bayes;

/// Persons of a search that are checked at most.
const MAX_CANDIDATES: usize = 100;
/// Longest side of a pair network's input in pixels.
const MAX_SIDE: u32 = 1024;

/// `[second_stage]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecondStage {
    /// How a pair is scored.
    pub kind: SecondStageKind,
    /// What it is scored with.
    pub file: ModelFile,
    /// A score at or above says that both are one person.
    pub threshold: f32,
    /// How many of the persons that a search has found are checked, best first.
    #[serde(default = "five")]
    pub candidates: usize,
    /// What a pair network is shown; of nothing else.
    pub input: Option<PairInput>,
}

/// How a pair is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecondStageKind {
    /// By the two vectors, as [`crate::joint_bayes`] has it; `face-id train joint-bayes` writes the file.
    JointBayesian,
    /// By a network that is shown both aligned crops, and gives one number.
    PairNetwork,
}

/// `[second_stage.input]`: the aligned crops are brought to this size.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairInput {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Order of each crop's planes.
    pub channels: Channels,
    /// Subtracted from each plane's 0..255 values.
    pub mean: [f32; 3],
    /// Multiplied afterwards.
    pub scale: [f32; 3],
    /// How the network takes the two.
    pub tensors: PairTensors,
}

/// How a network takes two crops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairTensors {
    /// The planes of both in one input, `[n, 2 * planes, height, width]`.
    One,
    /// Two inputs `[n, planes, height, width]`.
    Two,
}

impl SecondStage {
    pub(super) fn check(&self) -> Result<(), String> {
        if !(1..=MAX_CANDIDATES).contains(&self.candidates) {
            return Err(format!("second_stage.candidates must lie between 1 and {MAX_CANDIDATES}"));
        }
        if !self.threshold.is_finite() {
            return Err("second_stage.threshold must be finite".to_owned());
        }
        match (self.kind, &self.input) {
            (SecondStageKind::JointBayesian, Some(_)) => {
                Err("second_stage.input belongs to a pair-network: joint-bayesian reads vectors".to_owned())
            }
            (SecondStageKind::JointBayesian, None) if self.file.size_bytes > joint_bayes::MAX_FILE_BYTES as u64 => Err(
                format!("the file of a joint-bayesian second stage has at most {} bytes", joint_bayes::MAX_FILE_BYTES),
            ),
            (SecondStageKind::JointBayesian, None) => Ok(()),
            (SecondStageKind::PairNetwork, None) => Err("a pair-network needs [second_stage.input]".to_owned()),
            (SecondStageKind::PairNetwork, Some(input)) => input.check(),
        }
    }
}

impl PairInput {
    fn check(&self) -> Result<(), String> {
        if ![self.width, self.height].iter().all(|side| (1..=MAX_SIDE).contains(side)) {
            return Err(format!("width and height of second_stage.input must lie between 1 and {MAX_SIDE}"));
        }
        check_range(self.mean, self.scale)
    }
}

impl fmt::Display for SecondStageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JointBayesian => "joint-bayesian",
            Self::PairNetwork => "pair-network",
        })
    }
}

fn five() -> usize {
    5
}

#[cfg(test)]
mod tests {
    use super::super::{BUILT_IN, Pipeline};

    const FILE: &str =
        "\n[second_stage.file]\nname = \"second.onnx\"\nsize_bytes = 5\nlicence = \"own\"\nuse = \"permissive\"\n";
    const INPUT: &str = "\n[second_stage.input]\nwidth = 64\nheight = 64\nchannels = \"gray\"\nmean = [0.0, 0.0, 0.0]\n\
        scale = [1.0, 1.0, 1.0]\ntensors = \"two\"\n";

    fn parsed(stage: &str, after: &str) -> Result<Pipeline, String> {
        let file = FILE.replace("size_bytes", &format!("sha256 = \"{}\"\nsize_bytes", "a".repeat(64)));
        let text = format!("{}\n[second_stage]\n{stage}\n{file}{after}", BUILT_IN[0].1);
        Pipeline::parse("x.toml", &text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_second_stage_is_one_more_file_and_makes_no_other_vectors() {
        let plain = Pipeline::parse("x.toml", BUILT_IN[0].1).unwrap();
        let joint = parsed("kind = \"joint-bayesian\"\nthreshold = -3.5", "").unwrap();
        assert_eq!(joint.second_stage.as_ref().unwrap().candidates, 5);
        assert_eq!(joint.files().len(), plain.files().len() + 1);
        assert!(joint.makes_the_same_vectors(&plain) && plain.makes_the_same_vectors(&joint));
        let pair = parsed("kind = \"pair-network\"\nthreshold = 0.5\ncandidates = 3", INPUT).unwrap();
        assert!(pair.makes_the_same_vectors(&plain));
        assert_eq!(pair.detector_revision(), plain.detector_revision());
    }

    #[test]
    fn a_pair_network_needs_an_alignment_that_reads_kept_crops() {
        let text = BUILT_IN[0].1;
        let (start, rest) = text.split_once("[alignment]").unwrap();
        let (_, end) = rest.split_once("\n[").unwrap();
        let margin = "[alignment]\nkind = \"margin\"\nwidth = 112\nheight = 112\nmargin = 0.2\n";
        let entry = |stage: &str, after: &str| {
            let file = FILE.replace("size_bytes", &format!("sha256 = \"{}\"\nsize_bytes", "a".repeat(64)));
            let text = format!("{start}{margin}\n[{end}\n[second_stage]\n{stage}\n{file}{after}");
            Pipeline::parse("x.toml", &text).map_err(|error| error.to_string())
        };
        assert!(entry("kind = \"joint-bayesian\"\nthreshold = -3.5", "").is_ok());
        let error = entry("kind = \"pair-network\"\nthreshold = 0.5", INPUT).unwrap_err();
        assert!(error.contains("alignment margin"), "{error}");
    }

    #[test]
    fn mistakes_are_named() {
        let joint = "kind = \"joint-bayesian\"\nthreshold = 0.5";
        let pair = "kind = \"pair-network\"\nthreshold = 0.5";
        for (stage, after, wanted) in [
            (joint, INPUT.to_owned(), "belongs to a pair-network"),
            (pair, String::new(), "needs [second_stage.input]"),
            ("kind = \"svm\"\nthreshold = 0.5", String::new(), "svm"),
            ("kind = \"joint-bayesian\"", String::new(), "threshold"),
            ("kind = \"joint-bayesian\"\nthreshold = nan", String::new(), "finite"),
            ("kind = \"joint-bayesian\"\nthreshold = 1.0\ncandidates = 0", String::new(), "candidates"),
            (pair, INPUT.replace("width = 64", "width = 0"), "width"),
            (pair, INPUT.replace("\"two\"", "\"three\""), "three"),
        ] {
            let error = parsed(stage, &after).unwrap_err();
            assert!(error.contains(wanted), "{error} lacks {wanted}");
        }
    }
}
