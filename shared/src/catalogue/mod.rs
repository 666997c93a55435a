//! The catalogue: which pipelines (detector + alignment + recognizer) can be run, one TOML each.

mod calibration;
mod entry;
mod fingerprint;
mod requires;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use serde::Deserialize;

pub(crate) use calibration::check_points;
pub use calibration::{Calibration, LOWEST_FAR, Rate, Threshold};
pub use entry::{Entry, MAX_ENTRY_BYTES, Origin};
pub use fingerprint::Fingerprint;
pub use requires::{CpuFeature, any_of};

/// Changes whenever the same detector file would see a picture otherwise (sizes, padding, resampling), so that places
/// stored under another policy are not taken for this one's.
const INPUT_POLICY: u32 = 2;

/// Longest name of a file in bytes, as file systems have it (`NAME_MAX` of Linux).
const LONGEST_FILE_NAME: usize = 255;

/// The entries that come with face-id.
const BUILT_IN: [(&str, &str); 4] = [
    ("yunet-mobilefacenet.toml", include_str!("../../../models/yunet-mobilefacenet.toml")),
    ("yunet-mobilefacenet-int8.toml", include_str!("../../../models/yunet-mobilefacenet-int8.toml")),
    ("yunet-sface.toml", include_str!("../../../models/yunet-sface.toml")),
    ("scrfd-mobilefacenet.toml", include_str!("../../../models/scrfd-mobilefacenet.toml")),
];

/// SHA-256 of the weights that a built-in entry knows to be restricted.
static RESTRICTED: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let pipelines = BUILT_IN.iter().map(|(file, text)| Pipeline::parse(file, text).expect("a test reads them all"));
    let files = pipelines.flat_map(|pipeline| pipeline.files().map(ModelFile::clone));
    files.filter(|file| file.allowed_use != AllowedUse::Permissive).map(|file| file.sha256).collect()
});

/// All known pipelines by name.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    pipelines: BTreeMap<String, Arc<Pipeline>>,
}

/// One entry: what turns a picture into faces and their vectors.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Its name; part of every embedding's key.
    pub name: String,
    /// One sentence for a table.
    pub description: String,
    /// Any one of these features is needed of the processor, where a processor runs the models; none where empty.
    #[serde(default)]
    pub requires: Vec<CpuFeature>,
    /// What finds faces.
    pub detector: Detector,
    /// How a face is cut out for the recognizer.
    pub alignment: Alignment,
    /// What makes vectors.
    pub recognizer: Recognizer,
    /// What a score means; without it, thresholds must be set by hand.
    pub calibration: Option<Calibration>,
    /// What the recognizer must answer to the test crops when it is loaded; without it, nothing is compared.
    pub fingerprint: Option<Fingerprint>,
}

/// `[detector]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detector {
    /// Which head is decoded.
    pub family: DetectorFamily,
    /// The weights.
    pub file: ModelFile,
    /// The longest side at which a picture is shown, in pixels.
    pub input_side: u32,
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
}

/// Order of colour planes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channels {
    /// Red first.
    Rgb,
    /// Blue first.
    Bgr,
}

/// `[alignment]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alignment {
    /// How the landmarks are brought to the template.
    pub kind: AlignmentKind,
    /// Width of the crop in pixels.
    pub width: u32,
    /// Height of the crop in pixels.
    pub height: u32,
    /// Where the image-left eye, image-right eye, nose, image-left and image-right mouth corners shall lie.
    pub points: [[f32; 2]; 5],
}

/// Ways to align.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlignmentKind {
    /// The similarity transform nearest in least squares (Umeyama 1991), bilinear, black outside.
    Similarity,
}

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
    /// Components of a vector.
    pub dimension: usize,
    /// Order of the input's axes.
    pub layout: Layout,
}

/// Order of a tensor's axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Batch, channel, height, width.
    Nchw,
}

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
    /// The licence of the weights, and what is to be known of their training.
    pub licence: String,
    /// What the licence allows.
    #[serde(rename = "use")]
    pub allowed_use: AllowedUse,
}

/// What a licence allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllowedUse {
    /// Any use.
    Permissive,
    /// Research only; runs only where the operator accepts that.
    NonCommercial,
}

/// Why the catalogue, or an entry of it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// No entry of that name.
    #[error("no pipeline {name}; known are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A folder or file cannot be read.
    #[error("read {path}")]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is no catalogue entry.
    #[error("{file} is no catalogue entry: {why}")]
    Entry {
        /// Which one.
        file: String,
        /// What is wrong and where.
        why: String,
    },
}

impl Catalogue {
    /// The built-in entries, and every `*.toml` of the folder; one of the folder's replaces a built-in one of its name.
    pub fn load(extra: Option<&Path>) -> Result<Self, CatalogueError> {
        Ok(Self::entries(extra)?.into_iter().map(|entry| Arc::new(entry.pipeline)).collect())
    }

    /// The same, each as it was written, by name.
    pub fn entries(extra: Option<&Path>) -> Result<Vec<Entry>, CatalogueError> {
        let mut entries = BTreeMap::new();
        for (file, text) in BUILT_IN {
            let entry = Entry::parse(Origin::BuiltIn, file, text.to_owned())?;
            entries.insert(entry.pipeline.name.clone(), entry);
        }
        if let Some(folder) = extra {
            for path in toml_files(folder)? {
                let text = std::fs::read_to_string(&path)
                    .map_err(|source| CatalogueError::Read { path: path.clone(), source })?;
                let entry = Entry::parse(Origin::Folder, &path.display().to_string(), text)?;
                entries.insert(entry.pipeline.name.clone(), entry);
            }
        }
        Ok(entries.into_values().collect())
    }

    /// The entry of that name.
    pub fn pipeline(&self, name: &str) -> Result<&Pipeline, CatalogueError> {
        self.find(name).map(|pipeline| &**pipeline).ok_or_else(|| CatalogueError::Unknown {
            name: name.to_owned(),
            known: self.pipelines.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// The same, to be kept.
    pub fn find(&self, name: &str) -> Option<&Arc<Pipeline>> {
        self.pipelines.get(name)
    }

    /// All entries, by name.
    pub fn pipelines(&self) -> impl Iterator<Item = &Pipeline> {
        self.pipelines.values().map(|pipeline| &**pipeline)
    }
}

impl FromIterator<Arc<Pipeline>> for Catalogue {
    fn from_iter<T: IntoIterator<Item = Arc<Pipeline>>>(pipelines: T) -> Self {
        Self { pipelines: pipelines.into_iter().map(|pipeline| (pipeline.name.clone(), pipeline)).collect() }
    }
}

fn toml_files(folder: &Path) -> Result<Vec<PathBuf>, CatalogueError> {
    let failed = |source| CatalogueError::Read { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

impl Pipeline {
    /// Reads and checks an entry; `file` is named in errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, CatalogueError> {
        let refuse = |why: String| CatalogueError::Entry { file: file.to_owned(), why };
        let pipeline: Self = toml::from_str(text).map_err(|e| refuse(e.to_string()))?;
        pipeline.check().map_err(refuse)?;
        Ok(pipeline)
    }

    fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(plain) {
            return Err("name must be 1 to 64 of a-z, 0-9 and -".to_owned());
        }
        for file in self.files() {
            if file.sha256.len() != 64 || !file.sha256.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')) {
                return Err(format!("sha256 of {} must be 64 lower-case hex digits", file.name));
            }
            if Path::new(&file.name).file_name().is_none_or(|n| n != file.name.as_str()) {
                return Err(format!("{:?} must be a file name without folders", file.name));
            }
            if file.name.len() > LONGEST_FILE_NAME || file.name.chars().any(char::is_control) {
                return Err(format!(
                    "a file name must have at most {LONGEST_FILE_NAME} bytes and no control characters"
                ));
            }
        }
        if !(160..=4096).contains(&self.detector.input_side) {
            return Err("detector.input_side must lie between 160 and 4096 pixels".to_owned());
        }
        let scores = self.detector.store_score..=1.0;
        if !(0.0..=1.0).contains(&self.detector.store_score) || !scores.contains(&self.detector.match_score) {
            return Err("detector scores must satisfy 0 <= store_score <= match_score <= 1".to_owned());
        }
        let planes = [self.detector.mean, self.detector.scale, self.recognizer.mean, self.recognizer.scale];
        if !planes.iter().flatten().chain(self.alignment.points.iter().flatten()).all(|number| number.is_finite()) {
            return Err("mean, scale and points must be finite".to_owned());
        }
        if !(1..=4096).contains(&self.recognizer.dimension) {
            return Err("recognizer.dimension must lie between 1 and 4096".to_owned());
        }
        if !(16..=1024).contains(&self.alignment.width) || !(16..=1024).contains(&self.alignment.height) {
            return Err("alignment width and height must lie between 16 and 1024 pixels".to_owned());
        }
        if let Some(fingerprint) = &self.fingerprint {
            fingerprint.check(self.recognizer.dimension)?;
        }
        self.calibration.as_ref().map_or(Ok(()), Calibration::check)
    }

    /// A short stable text that changes whenever the detector could give other boxes; keys stored geometry.
    pub fn detector_revision(&self) -> String {
        let detector = &self.detector;
        format!(
            "{}-{}-{}-{}-p{INPUT_POLICY}",
            detector.family,
            &detector.file.sha256[..12],
            detector.input_side,
            detector.store_score
        )
    }

    /// The weights it needs.
    pub fn files(&self) -> [&ModelFile; 2] {
        [&self.detector.file, &self.recognizer.file]
    }

    /// The files whose licence restricts their use.
    pub fn restricted_files(&self) -> Vec<&ModelFile> {
        self.files().into_iter().filter(|file| file.allowed_use() != AllowedUse::Permissive).collect()
    }
}

impl ModelFile {
    /// What its licence allows: not more than a built-in entry says of the same weights, whatever this one says.
    pub fn allowed_use(&self) -> AllowedUse {
        if RESTRICTED.contains(&self.sha256) { AllowedUse::NonCommercial } else { self.allowed_use }
    }
}

impl fmt::Display for DetectorFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yunet => "yunet",
            Self::Scrfd => "scrfd",
        })
    }
}

impl fmt::Display for AllowedUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permissive => "any use",
            Self::NonCommercial => "non-commercial",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_entries_are_valid() {
        let catalogue = Catalogue::load(None).unwrap();
        assert_eq!(catalogue.pipelines().count(), BUILT_IN.len());
        assert!(catalogue.pipeline("yunet-mobilefacenet").unwrap().restricted_files().is_empty());
        assert_eq!(catalogue.pipeline("scrfd-mobilefacenet").unwrap().restricted_files().len(), 1);
        let text = BUILT_IN.iter().find(|(file, _)| *file == "scrfd-mobilefacenet.toml").unwrap().1;
        let restated = text.replace("use = \"non-commercial\"", "use = \"permissive\"");
        assert_ne!(restated, text);
        assert_eq!(Pipeline::parse("restated.toml", &restated).unwrap().restricted_files().len(), 1);
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let text = Catalogue::load(None).unwrap().pipeline("vgg").unwrap_err().to_string();
        assert!(text.contains("no pipeline vgg") && text.contains("yunet-mobilefacenet"), "{text}");
    }

    #[test]
    fn mistakes_are_named() {
        let good = BUILT_IN[0].1;
        let cases = [
            (good.replace("family = \"yunet\"", "family = \"haar\""), "haar"),
            (good.replace("dimension = 128", "dimension = 0"), "recognizer.dimension"),
            (good.replace("store_score = 0.7", "store_score = 0.9"), "store_score"),
            (good.replace("input_side = 640", "input_sides = 640"), "input_sides"),
            (good.replace("sha256 = \"", "sha256 = \"xy"), "sha256"),
            (good.replace("123.675", "nan"), "finite"),
            (format!("requires = [\"mmx\"]\n{good}"), "mmx"),
            (format!("{good}[fingerprint]\nmin_cosine = 0.999\nvectors = [[1.0]]"), "128 components"),
            (good.replace("name = \"face_detection", "name = \"../face_detection"), "without folders"),
        ];
        for (text, wanted) in cases {
            let error = Pipeline::parse("x.toml", &text).unwrap_err().to_string();
            assert!(error.contains("x.toml") && error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn a_folder_adds_and_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let text = BUILT_IN[0].1.replace("input_side = 640", "input_side = 320");
        std::fs::write(folder.path().join("own.toml"), text).unwrap();
        std::fs::write(folder.path().join("notes.txt"), "no entry").unwrap();
        let catalogue = Catalogue::load(Some(folder.path())).unwrap();
        let pipeline = catalogue.pipeline("yunet-mobilefacenet").unwrap();
        assert_eq!(pipeline.detector.input_side, 320);
        assert!(pipeline.detector_revision().contains("-320-"));
        assert!(Catalogue::load(Some(Path::new("/nowhere"))).is_err());
    }
}
