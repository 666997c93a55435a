//! Networks that tell a live face from a picture of one: entries of a kind of their own, beside the pipelines.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::Deserialize;

use super::{CatalogueError, Channels, ModelFile, check_range, toml_files};

/// What `kind` of such an entry says.
const KIND: &str = "anti-spoofing";
/// The entries that come with face-id.
const BUILT_IN: [(&str, &str); 1] = [("minifasnet.toml", include_str!("../../../models/minifasnet.toml"))];
/// Networks of one entry.
const MAX_NETWORKS: usize = 8;

/// One entry: each network is shown a face, and the mean of what they say is its live score.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AntiSpoofing {
    /// `anti-spoofing`.
    pub kind: String,
    /// Its name; `models.anti_spoofing` chooses one.
    pub name: String,
    /// One sentence for a table.
    pub description: String,
    /// What looks at a face.
    pub networks: Vec<SpoofNetwork>,
}

/// One of `[[networks]]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpoofNetwork {
    /// The weights.
    pub file: ModelFile,
    /// How many times as wide and high as the face's box what it is shown is, as far as the picture has that.
    pub crop_scale: f32,
    /// Side of its input in pixels.
    pub side: u32,
    /// Order of the input's planes.
    pub channels: Channels,
    /// Subtracted from each plane's 0..255 values.
    pub mean: [f32; 3],
    /// Multiplied afterwards.
    pub scale: [f32; 3],
    /// How many classes it tells apart; their probabilities are the softmax of its answer.
    pub classes: usize,
    /// Which of them, from 0, is a live face.
    pub live_class: usize,
}

impl AntiSpoofing {
    /// The entry of that name: the built-in ones, and those of the folder, which replace built-in ones of their name.
    pub fn load(extra: Option<&Path>, name: &str) -> Result<Self, CatalogueError> {
        let mut entries = BTreeMap::new();
        for (file, text) in BUILT_IN {
            let entry = Self::parse(file, text)?;
            entries.insert(entry.name.clone(), entry);
        }
        let mut own = HashSet::new();
        for path in extra.map(toml_files).transpose()?.unwrap_or_default() {
            let text =
                std::fs::read_to_string(&path).map_err(|source| CatalogueError::Read { path: path.clone(), source })?;
            if is_anti_spoofing(&text) {
                let file = path.display().to_string();
                let entry = Self::parse(&file, &text)?;
                if !own.insert(entry.name.clone()) {
                    let why = format!("another file of the folder describes {} too", entry.name);
                    return Err(CatalogueError::Entry { file, why });
                }
                entries.insert(entry.name.clone(), entry);
            }
        }
        entries.remove(name).ok_or_else(|| CatalogueError::Unknown {
            name: name.to_owned(),
            known: entries.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// Reads and checks an entry; `file` is named in errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, CatalogueError> {
        let refuse = |why: String| CatalogueError::Entry { file: file.to_owned(), why };
        let entry: Self = toml::from_str(text).map_err(|e| refuse(e.to_string()))?;
        entry.check().map_err(refuse)?;
        Ok(entry)
    }

    /// The weights it needs.
    pub fn files(&self) -> Vec<&ModelFile> {
        self.networks.iter().map(|network| &network.file).collect()
    }

    fn check(&self) -> Result<(), String> {
        if self.kind != KIND {
            return Err(format!("kind must be {KIND}"));
        }
        if !(1..=MAX_NETWORKS).contains(&self.networks.len()) {
            return Err(format!("there must be 1 to {MAX_NETWORKS} networks"));
        }
        self.networks.iter().try_for_each(SpoofNetwork::check)
    }
}

impl SpoofNetwork {
    fn check(&self) -> Result<(), String> {
        self.file.check()?;
        if !(1.0..=16.0).contains(&self.crop_scale) {
            return Err("crop_scale must lie between 1 and 16".to_owned());
        }
        if !(8..=1024).contains(&self.side) {
            return Err("side must lie between 8 and 1024".to_owned());
        }
        if !(2..=100).contains(&self.classes) || self.live_class >= self.classes {
            return Err("classes must lie between 2 and 100, and live_class below them".to_owned());
        }
        check_range(self.mean, self.scale)
    }
}

/// Whether a file of the catalogue's folder holds such an entry, and no pipeline.
pub(super) fn is_anti_spoofing(text: &str) -> bool {
    toml::from_str::<toml::Table>(text).is_ok_and(|table| table.get("kind").and_then(toml::Value::as_str) == Some(KIND))
}

#[cfg(test)]
mod tests {
    use super::super::Catalogue;
    use super::*;

    #[test]
    fn the_built_in_pair_is_there_and_a_folder_may_replace_it() {
        let own = AntiSpoofing::load(None, "minifasnet").unwrap();
        assert_eq!(own.networks.iter().map(|network| network.crop_scale).collect::<Vec<_>>(), [2.7, 4.0]);
        let folder = tempfile::tempdir().unwrap();
        let text = BUILT_IN[0].1.replacen("crop_scale = 4.0", "crop_scale = 3.0", 1);
        std::fs::write(folder.path().join("own.toml"), &text).unwrap();
        let replaced = AntiSpoofing::load(Some(folder.path()), "minifasnet").unwrap();
        assert_eq!(replaced.networks[1].crop_scale.to_bits(), 3f32.to_bits());
        let pipelines = Catalogue::load(Some(folder.path())).unwrap();
        assert!(pipelines.find("minifasnet").is_none(), "it is no pipeline");
        let unknown = AntiSpoofing::load(None, "other").unwrap_err().to_string();
        assert!(unknown.contains("minifasnet"), "{unknown}");
    }

    #[test]
    fn mistakes_are_named() {
        let good = BUILT_IN[0].1;
        for (from, to, wanted) in [
            ("kind = \"anti-spoofing\"", "kind = \"pipeline\"", "kind must be"),
            ("crop_scale = 2.7", "crop_scale = 0.5", "crop_scale"),
            ("side = 80", "side = 0", "side"),
            ("live_class = 1", "live_class = 3", "live_class"),
            ("sha256 = \"", "sha256 = \"x", "sha256"),
            ("scale = [1.0", "scale = [inf", "finite"),
        ] {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, good, "{from}");
            let error = AntiSpoofing::parse("x.toml", &text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error} lacks {wanted}");
        }
    }
}
