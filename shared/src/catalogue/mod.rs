//! The catalogue: which pipelines (detector + alignment + recognizer) can be run, one TOML each.

mod alignment;
mod anti_spoofing;
mod calibration;
mod detector;
mod entry;
mod fingerprint;
mod landmarks;
mod measured;
mod metric;
mod recognizer;
mod requires;
mod second_stage;
mod templates;
mod weights;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

pub use alignment::{Alignment, AlignmentKind};
pub use anti_spoofing::{AntiSpoofing, SpoofNetwork};
pub(crate) use calibration::check_points;
pub use calibration::{Calibration, LOWEST_FAR, Rate, Threshold};
pub use detector::{Detector, DetectorFamily};
pub use entry::{Entry, MAX_ENTRY_BYTES, Origin};
pub use fingerprint::Fingerprint;
pub use landmarks::{LandmarkFamily, LandmarkInput, LandmarkModel, LandmarkScheme};
pub use measured::Measured;
pub use metric::Metric;
pub use recognizer::{Layout, Recognizer};
pub use requires::{CpuFeature, any_of};
pub use second_stage::{PairInput, PairTensors, SecondStage, SecondStageKind};
pub use templates::{Template, templates};
pub use weights::{AllowedUse, Import, ModelFile};

/// Changes whenever the same detector file would see a picture otherwise (sizes, padding, resampling), so that places
/// stored under another policy are not taken for this one's.
const INPUT_POLICY: u32 = 2;

/// The entries that come with face-id.
const BUILT_IN: [(&str, &str); 15] = [
    ("yunet-mobilefacenet.toml", include_str!("../../../models/yunet-mobilefacenet.toml")),
    ("yunet-mobilefacenet-int8.toml", include_str!("../../../models/yunet-mobilefacenet-int8.toml")),
    ("yunet-sface.toml", include_str!("../../../models/yunet-sface.toml")),
    ("yunet-arcface-mbf.toml", include_str!("../../../models/yunet-arcface-mbf.toml")),
    ("scrfd-mobilefacenet.toml", include_str!("../../../models/scrfd-mobilefacenet.toml")),
    ("scrfd-2500m-mobilefacenet.toml", include_str!("../../../models/scrfd-2500m-mobilefacenet.toml")),
    ("ultraface-mobilefacenet.toml", include_str!("../../../models/ultraface-mobilefacenet.toml")),
    ("mtcnn-mobilefacenet.toml", include_str!("../../../models/mtcnn-mobilefacenet.toml")),
    ("mtcnn-mobilefacenet-112x96.toml", include_str!("../../../models/mtcnn-mobilefacenet-112x96.toml")),
    ("mtcnn-dlib-densenet.toml", include_str!("../../../models/mtcnn-dlib-densenet.toml")),
    ("mtcnn-dlib-densenet-std.toml", include_str!("../../../models/mtcnn-dlib-densenet-std.toml")),
    ("dlib.toml", include_str!("../../../models/dlib.toml")),
    ("dlib-68.toml", include_str!("../../../models/dlib-68.toml")),
    ("yunet-dlib-resnet.toml", include_str!("../../../models/yunet-dlib-resnet.toml")),
    ("yunet-dlib-resnet-jitter.toml", include_str!("../../../models/yunet-dlib-resnet-jitter.toml")),
];

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
    /// What places points on a face that was found; without it, the detector's own five are taken.
    pub landmarks: Option<LandmarkModel>,
    /// How a face is cut out for the recognizer.
    pub alignment: Alignment,
    /// What makes vectors.
    pub recognizer: Recognizer,
    /// What checks those whom a search has found; without it, the score alone decides.
    pub second_stage: Option<SecondStage>,
    /// What a score means; without it, thresholds must be set by hand.
    pub calibration: Option<Calibration>,
    /// How accurate and how fast it was found to be.
    pub measured: Option<Measured>,
    /// What the recognizer must answer to the test crops when it is loaded; without it, nothing is compared.
    pub fingerprint: Option<Fingerprint>,
}

/// Order of colour planes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channels {
    /// Red first.
    Rgb,
    /// Blue first.
    Bgr,
    /// One plane of luma (ITU-R BT.601), with the first number of a mean and a scale.
    Gray,
}

impl Channels {
    /// How many planes there are.
    pub fn planes(self) -> usize {
        if self == Self::Gray { 1 } else { 3 }
    }
}

/// Refuses numbers that are no colour range.
fn check_range(mean: [f32; 3], scale: [f32; 3]) -> Result<(), String> {
    if !mean.iter().chain(&scale).all(|number| number.is_finite()) {
        return Err("mean, scale and points must be finite".to_owned());
    }
    Ok(())
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
                if anti_spoofing::is_anti_spoofing(&text) {
                    continue;
                }
                let file = path.display().to_string();
                let entry = Entry::parse(Origin::Folder, &file, text)?;
                let replaced = entries.insert(entry.pipeline.name.clone(), entry);
                if let Some(other) = replaced.filter(|other| other.origin == Origin::Folder) {
                    let why = format!("another file of the folder describes {} too", other.pipeline.name);
                    return Err(CatalogueError::Entry { file, why });
                }
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

/// Whether the thresholds of an entry's calibration are called cosines.
fn has_cosines(text: &str) -> bool {
    let entry: Option<toml::Table> = toml::from_str(text).ok();
    entry.is_some_and(|entry| entry.get("calibration").is_some_and(|calibration| calibration.get("cosine").is_some()))
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
        if pipeline.recognizer.metric != Metric::Cosine && has_cosines(text) {
            let metric = pipeline.recognizer.metric;
            return Err(refuse(format!("calibration.cosine must be called score where recognizer.metric is {metric}")));
        }
        Ok(pipeline)
    }

    fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(plain) {
            return Err("name must be 1 to 64 of a-z, 0-9 and -".to_owned());
        }
        self.files().into_iter().try_for_each(ModelFile::check)?;
        self.detector.check()?;
        self.landmarks.as_ref().map_or(Ok(()), LandmarkModel::check)?;
        let scheme = self.landmark_scheme().ok_or_else(|| {
            format!("the {} detector places no points on a face: a [landmarks] model must", self.detector.family)
        })?;
        self.alignment.check(scheme)?;
        self.recognizer.check()?;
        self.second_stage.as_ref().map_or(Ok(()), SecondStage::check)?;
        if self.has_pair_network() && !self.reads_crops() {
            // Of a stored face it would have nothing to see.
            return Err(
                "a pair-network sees kept crops, and the alignment margin reads none: change one of them".to_owned()
            );
        }
        self.measured.as_ref().map_or(Ok(()), Measured::check)?;
        if let Some(fingerprint) = &self.fingerprint {
            fingerprint.check(self.recognizer.dimension)?;
        }
        self.calibration.as_ref().map_or(Ok(()), |calibration| calibration.check(self.recognizer.metric))
    }

    /// A short stable text that changes whenever the detector could give other boxes or points; keys stored geometry.
    pub fn detector_revision(&self) -> String {
        let detector = &self.detector;
        let first = format!(
            "{}-{}-{}-{}-p{INPUT_POLICY}",
            detector.family,
            &detector.file.sha256[..12],
            detector.input_side,
            detector.store_score
        );
        let stages = detector.stages.iter().map(|stage| stage.sha256[..12].to_owned());
        let fixed_side = detector.fixed_side.map(|side| format!("s{side}"));
        let min_face = detector.min_face.map(|side| format!("f{side}"));
        let pixels = detector.other_pixels();
        let landmarks = self.landmarks.iter().flat_map(LandmarkModel::revision);
        let parts = stages.chain(fixed_side).chain(min_face).chain(pixels).chain(landmarks);
        std::iter::once(first).chain(parts).collect::<Vec<_>>().join("-")
    }

    /// Which points its faces have; none where neither the detector nor another model places any.
    pub fn landmark_scheme(&self) -> Option<LandmarkScheme> {
        self.landmarks.as_ref().map_or_else(|| self.detector.family.landmark_scheme(), |model| Some(model.scheme))
    }

    /// Whether its second stage is shown crops.
    pub fn has_pair_network(&self) -> bool {
        self.second_stage.as_ref().is_some_and(|stage| stage.kind == SecondStageKind::PairNetwork)
    }

    /// Whether a vector can be made from a crop that was kept, in place of the picture.
    pub fn reads_crops(&self) -> bool {
        self.alignment.kind != AlignmentKind::Margin
    }

    /// The weights it needs.
    pub fn files(&self) -> Vec<&ModelFile> {
        let detector = std::iter::once(&self.detector.file).chain(&self.detector.stages);
        let models = detector.chain(self.landmarks.as_ref().map(|model| &model.file)).chain([&self.recognizer.file]);
        models.chain(self.second_stage.as_ref().map(|stage| &stage.file)).collect()
    }

    fn files_mut(&mut self) -> Vec<&mut ModelFile> {
        let detector = std::iter::once(&mut self.detector.file).chain(&mut self.detector.stages);
        detector
            .chain(self.landmarks.as_mut().map(|model| &mut model.file))
            .chain([&mut self.recognizer.file])
            .chain(self.second_stage.as_mut().map(|stage| &mut stage.file))
            .collect()
    }

    /// What the strictest of its files' licences allows.
    pub fn allowed_use(&self) -> AllowedUse {
        self.files().into_iter().map(ModelFile::allowed_use).max().unwrap_or(AllowedUse::Permissive)
    }

    /// The files whose licence restricts their use.
    pub fn restricted_files(&self) -> Vec<&ModelFile> {
        self.files().into_iter().filter(|file| file.allowed_use() != AllowedUse::Permissive).collect()
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
        let points = "points = [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]";
        let recognizer = |more: &str| good.replace("dimension = 128", &format!("dimension = 128\n{more}"));
        let cases = [
            (good.replace(points, &format!("points = [{}]", ["[9.0, 9.0]"; 5].join(", "))), "on one point"),
            (good.replace(points, "indices = [1, 1]\npoints = [[9.0, 9.0], [50.0, 9.0]]"), "indices must differ"),
            (recognizer("jitter = 101"), "recognizer.jitter must be at most 100"),
            (recognizer("jitter = 2\nflip = true"), "leave recognizer.flip out"),
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
    fn thresholds_are_called_what_they_are() {
        let (start, end) = BUILT_IN
            .iter()
            .find(|(file, _)| *file == "yunet-mobilefacenet.toml")
            .and_then(|(_, text)| text.split_once("[calibration]"))
            .unwrap();
        let entry = |metric: &str, thresholds: &str| {
            let recognizer = format!("layout = \"nchw\"\nmetric = \"{metric}\"");
            let calibration = format!("[calibration]\nmeasured_on = \"a test\"\nfar = [0.1, 0.01]\n{thresholds}\n");
            Pipeline::parse("x.toml", &format!("{}{calibration}", start.replace("layout = \"nchw\"", &recognizer)))
        };
        assert!(end.contains("cosine = ["));
        let (cosine, score) = ("cosine = [0.1, 0.4]", "score = [0.1, 0.4]");
        let read = entry("cosine", cosine).unwrap().calibration;
        assert_eq!(read, entry("cosine", score).unwrap().calibration);
        assert_eq!(read, entry("euclidean", score).unwrap().calibration);
        assert!(entry("euclidean", cosine).unwrap_err().to_string().contains("called score"));
        for wrong in ["", &format!("{cosine}\n{score}")] {
            let error = entry("cosine", wrong).unwrap_err().to_string();
            assert!(error.contains("field `score`"), "{error}");
        }
        assert!(entry("euclidean", "score = [-7.5, 0.4]").is_ok());
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
        // The detector's pixels the other way round: it may give other boxes.
        let usual = Pipeline::parse("x", BUILT_IN[0].1).unwrap().detector_revision();
        let other = BUILT_IN[0].1.replace("channels = \"bgr\"", "channels = \"rgb\"");
        let other = Pipeline::parse("x", &other).unwrap().detector_revision();
        assert!(other.starts_with(&format!("{usual}-c")), "{other} and {usual}");
        std::fs::write(folder.path().join("copy.toml"), BUILT_IN[0].1).unwrap();
        let doubled = Catalogue::load(Some(folder.path())).unwrap_err().to_string();
        assert!(doubled.contains("own.toml") && doubled.contains("describes yunet-mobilefacenet too"), "{doubled}");
        assert!(Catalogue::load(Some(Path::new("/nowhere"))).is_err());
    }
}
