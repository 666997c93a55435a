//! Entries of models whose weights are published under no address and checksum known here: complete but for the file, which the
//! operator brings.

use super::{CatalogueError, Pipeline};
use crate::digest::sha256_hex;

/// What stands in place of the checksum and the length that are not known.
const UNKNOWN: &str = "sha256 = \"\"\nsize_bytes = 0\n";

const TEXTS: [(&str, &str); 11] = [
    ("mtcnn-centerloss", include_str!("../../../models/templates/mtcnn-centerloss.toml")),
    ("mtcnn-facenet", include_str!("../../../models/templates/mtcnn-facenet.toml")),
    ("mtcnn-lightcnn29", include_str!("../../../models/templates/mtcnn-lightcnn29.toml")),
    ("mtcnn-lightcnn9", include_str!("../../../models/templates/mtcnn-lightcnn9.toml")),
    ("mtcnn-openface", include_str!("../../../models/templates/mtcnn-openface.toml")),
    ("mtcnn-sphereface20", include_str!("../../../models/templates/mtcnn-sphereface20.toml")),
    ("mtcnn-vggface16", include_str!("../../../models/templates/mtcnn-vggface16.toml")),
    ("mtcnn-vggface2-resnet50", include_str!("../../../models/templates/mtcnn-vggface2-resnet50.toml")),
    ("yunet-adaface", include_str!("../../../models/templates/yunet-adaface.toml")),
    ("yunet-arcface-r50", include_str!("../../../models/templates/yunet-arcface-r50.toml")),
    ("yunet-auraface", include_str!("../../../models/templates/yunet-auraface.toml")),
];

/// An entry without its recognizer's checksum and length.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// The name of the entry that it makes.
    pub name: &'static str,
    text: &'static str,
}

/// All templates, by name.
pub fn templates() -> impl Iterator<Item = Template> {
    TEXTS.into_iter().map(|(name, text)| Template { name, text })
}

impl Template {
    /// The entry with everything that is known: its recognizer's file has the checksum of nothing.
    pub fn pipeline(&self) -> Result<Pipeline, CatalogueError> {
        Pipeline::parse(self.name, &self.filled(&sha256_hex(""), 0))
    }

    /// The entry's text for weights with that checksum and length.
    pub fn filled(&self, sha256: &str, size_bytes: u64) -> String {
        self.text.replace(UNKNOWN, &format!("sha256 = \"{sha256}\"\nsize_bytes = {size_bytes}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_an_entry_once_its_file_is_known() {
        for template in templates() {
            let pipeline = template.pipeline().unwrap();
            assert_eq!(pipeline.name, template.name);
            assert_eq!(pipeline.recognizer.file.size_bytes, 0, "{}", template.name);
            let filled = Pipeline::parse(template.name, &template.filled(&"ab".repeat(32), 7)).unwrap();
            assert_eq!((filled.recognizer.file.sha256, filled.recognizer.file.size_bytes), ("ab".repeat(32), 7));
        }
    }
}
