//! An entry as it was written, and what of it may change under one name.

use std::fmt;

use super::{CatalogueError, ModelFile, Pipeline};
use crate::digest::sha256_hex;

/// Longest entry in bytes: one with the fingerprints of a recognizer of 4096 components has 80 kB.
pub const MAX_ENTRY_BYTES: usize = 256 << 10;
/// Addresses that a file of weights may have, and the longest of them in bytes.
const MAX_URLS: usize = 16;
const LONGEST_URL: usize = 2048;
/// Longest text in bytes, for people.
const LONGEST_TEXT: usize = 4096;

/// A pipeline with the text that describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What the text says.
    pub pipeline: Pipeline,
    /// TOML.
    pub text: String,
    /// Who says it.
    pub origin: Origin,
}

/// Where an entry comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is part of the program.
    BuiltIn,
    /// It lies in the folder that the operator named (`models.catalogue_dir`).
    Folder,
    /// It was added over HTTP.
    Added,
}

impl Origin {
    /// The name used in rows and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BuiltIn => "built_in",
            Self::Folder => "folder",
            Self::Added => "added",
        }
    }

    /// The origin of that name.
    pub fn of(name: &str) -> Option<Self> {
        [Self::BuiltIn, Self::Folder, Self::Added].into_iter().find(|origin| origin.as_str() == name)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Entry {
    /// Reads and checks a text; `file` is named in errors.
    pub fn parse(origin: Origin, file: &str, text: String) -> Result<Self, CatalogueError> {
        let refuse = |why: String| CatalogueError::Entry { file: file.to_owned(), why };
        if text.len() > MAX_ENTRY_BYTES {
            return Err(refuse(format!("it is longer than {MAX_ENTRY_BYTES} bytes")));
        }
        let pipeline = Pipeline::parse(file, &text)?;
        pipeline.check_texts().map_err(refuse)?;
        Ok(Self { pipeline, text, origin })
    }

    /// SHA-256 of the text.
    pub fn digest(&self) -> String {
        sha256_hex(&self.text)
    }
}

impl Pipeline {
    /// Whether a vector of one is a vector of the other: only what people read, thresholds, what checks
    /// a search's answer, where weights are found and what is asked of a machine differs.
    pub fn makes_the_same_vectors(&self, other: &Self) -> bool {
        // What is not cleared here is taken to matter, so that nobody forgets a new field.
        let bare = |pipeline: &Self| {
            let mut bare = Self {
                description: String::new(),
                requires: Vec::new(),
                second_stage: None,
                calibration: None,
                measured: None,
                fingerprint: None,
                ..pipeline.clone()
            };
            bare.detector.match_score = bare.detector.store_score;
            for file in bare.files_mut() {
                *file = ModelFile {
                    name: String::new(),
                    size_bytes: 0,
                    urls: Vec::new(),
                    import: None,
                    licence: String::new(),
                    allowed_use: super::AllowedUse::Permissive,
                    sha256: std::mem::take(&mut file.sha256),
                };
            }
            bare
        };
        bare(self) == bare(other)
    }

    /// The same without addresses of weights.
    #[must_use]
    pub fn without_addresses(mut self) -> Self {
        self.files_mut().into_iter().for_each(|file| file.urls.clear());
        self
    }

    fn check_texts(&self) -> Result<(), String> {
        let texts = [("description", &self.description)].into_iter();
        let texts = texts.chain(self.files().into_iter().map(|file| ("licence", &file.licence)));
        let texts = texts.chain(self.calibration.iter().map(|c| ("calibration.measured_on", &c.measured_on)));
        for (name, text) in texts {
            // A NUL character fits no column of PostgreSQL.
            if text.len() > LONGEST_TEXT || text.contains('\0') {
                return Err(format!("{name} must have at most {LONGEST_TEXT} bytes and no NUL character"));
            }
        }
        for file in self.files() {
            let is_address = |url: &String| {
                url.len() <= LONGEST_URL && ["https://", "http://"].iter().any(|scheme| url.starts_with(scheme))
            };
            if file.urls.len() > MAX_URLS || !file.urls.iter().all(is_address) {
                let name = &file.name;
                return Err(format!(
                    "urls of {name} must be at most {MAX_URLS}, each http(s):// and {LONGEST_URL} bytes at most"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BUILT_IN, Catalogue};
    use super::*;

    fn changed(from: &str, to: &str) -> Pipeline {
        let text = BUILT_IN[0].1.replace(from, to);
        assert_ne!(text, BUILT_IN[0].1, "{from}");
        Entry::parse(Origin::Added, "x.toml", text).unwrap().pipeline
    }

    #[test]
    fn what_makes_other_vectors_is_told_from_the_rest() {
        let own = Catalogue::load(None).unwrap().pipeline("yunet-mobilefacenet").unwrap().clone();
        for (from, to) in [
            ("small, fast", "smaller"),
            ("match_score = 0.8", "match_score = 0.9"),
            ("https://github.com/foamliu", "https://mirror.example/foamliu"),
            ("0.2509", "0.2510"),
            ("licence = \"MIT\"", "licence = \"MIT, again\""),
        ] {
            assert!(own.makes_the_same_vectors(&changed(from, to)), "{to}");
        }
        for (from, to) in [
            ("store_score = 0.7", "store_score = 0.6"),
            ("input_side = 640", "input_side = 320"),
            ("38.2946", "38.2947"),
            ("123.675", "0.0"),
            ("sha256 = \"b7", "sha256 = \"c7"),
            ("dimension = 128", "dimension = 64"),
        ] {
            assert!(!own.makes_the_same_vectors(&changed(from, to)), "{to}");
        }
    }

    #[test]
    fn texts_and_addresses_are_bounded() {
        let refused = |text: String| Entry::parse(Origin::Added, "x.toml", text).unwrap_err().to_string();
        let good = BUILT_IN[0].1;
        assert!(refused(format!("{good}\n#{}", "x".repeat(MAX_ENTRY_BYTES))).contains("longer than"));
        assert!(refused(good.replace("https://github.com", "file:///etc")).contains("http(s)://"));
        let long = good.replace("small, fast", &"x".repeat(LONGEST_TEXT + 1));
        assert!(refused(long).contains("description"));
        assert!(refused(good.replace("small, fast", "\\u0000")).contains("NUL"));
        for name in ["x".repeat(256), "a\\nb".to_owned()] {
            let text = good.replace("mobilefacenet_foamliu_128.onnx", &name);
            assert_ne!(text, good);
            assert!(refused(text).contains("file name"), "{name}");
        }
    }
}
