//! A file of weights: how it is known, where it comes from, and what its licence allows.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::LazyLock;

use serde::Deserialize;

use super::{BUILT_IN, Pipeline};

/// Longest name of a file in bytes, as file systems have it (`NAME_MAX` of Linux).
const LONGEST_FILE_NAME: usize = 255;

/// What built-in entries say of weights that are restricted, by SHA-256.
static RESTRICTED: LazyLock<BTreeMap<String, AllowedUse>> = LazyLock::new(|| {
    let pipelines = BUILT_IN.iter().map(|(file, text)| Pipeline::parse(file, text).expect("a test reads them all"));
    let files = pipelines.flat_map(|pipeline| pipeline.files().into_iter().cloned().collect::<Vec<_>>());
    let restricted = files.filter(|file| file.allowed_use != AllowedUse::Permissive);
    restricted.map(|file| (file.sha256, file.allowed_use)).collect()
});

/// A file of weights.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFile {
    /// Its file name.
    pub name: String,
    /// SHA-256, lower-case hex; a file with another one is refused.
    pub sha256: String,
    /// Its length.
    pub size_bytes: u64,
    /// Where it can be fetched, tried in turn; may be empty.
    #[serde(default)]
    pub urls: Vec<String>,
    /// What makes it out of others' files, where it can be fetched nowhere as it is.
    pub import: Option<Import>,
    /// The licence of the weights, and what is to be known of their training.
    pub licence: String,
    /// What the licence allows.
    #[serde(rename = "use")]
    pub allowed_use: AllowedUse,
}

/// What `face-id models import` makes files of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Import {
    /// dlib's models, out of the Python package `face_recognition_models`.
    Dlib,
}

/// What a licence allows, the least restricted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllowedUse {
    /// Any use.
    Permissive,
    /// Research only; runs only where the operator accepts that.
    NonCommercial,
    /// None is stated by who published the weights, so nothing is allowed of itself; runs only where the operator accepts that.
    None,
}

impl ModelFile {
    /// What its licence allows: not more than a built-in entry says of the same weights, whatever this one says.
    pub fn allowed_use(&self) -> AllowedUse {
        RESTRICTED.get(&self.sha256).copied().unwrap_or(self.allowed_use)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.sha256.len() != 64 || !self.sha256.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')) {
            return Err(format!("sha256 of {} must be 64 lower-case hex digits", self.name));
        }
        if Path::new(&self.name).file_name().is_none_or(|n| n != self.name.as_str()) {
            return Err(format!("{:?} must be a file name without folders", self.name));
        }
        if self.name.len() > LONGEST_FILE_NAME || self.name.chars().any(char::is_control) {
            return Err(format!("a file name must have at most {LONGEST_FILE_NAME} bytes and no control characters"));
        }
        Ok(())
    }
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dlib => "dlib",
        })
    }
}

impl fmt::Display for AllowedUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permissive => "any use",
            Self::NonCommercial => "non-commercial",
            Self::None => "no licence stated",
        })
    }
}
