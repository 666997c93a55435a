//! Batches: what they list, and how far; the wire types that API and worker share.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::heif;
use crate::ids::CollectionId;
use crate::job::ImageRef;

/// Where a batch's pictures come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BatchSource {
    /// `s3://bucket/prefix`: every picture (.jpg, .jpeg, .png, .webp) whose key begins so, in a bucket that the operator
    /// allows.
    S3(String),
    /// Every picture below this folder of the server, one that the operator allows.
    Folder(String),
    /// The lines of a manifest that came with the request.
    Manifest(Manifest),
}

/// A stored manifest: its lines, in parts of whole lines, in the object store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Manifest {
    /// What its objects are named by.
    pub id: Uuid,
    /// How many objects it is kept in.
    pub parts: u32,
    /// How many pictures it names.
    pub lines: u64,
}

impl Manifest {
    /// The key of the n-th part, from 0.
    pub fn part_key(collection: CollectionId, id: Uuid, part: u32) -> String {
        format!("collections/{collection}/manifests/{id}/{part:06}")
    }

    /// The manifest whose part lies under this key, if it is such a key.
    pub fn of_key(key: &str) -> Option<Uuid> {
        let mut parts = key.split('/').skip(2);
        if parts.next()? == "manifests" { parts.next()?.parse().ok() } else { None }
    }
}

/// One line of a manifest: a picture, named in exactly one way.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ManifestLine {
    /// `s3://bucket/key` in a bucket that the operator allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    s3: Option<String>,
    /// The absolute path of a file of the server, below a folder that the operator allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// Something that changes whenever the picture's bytes do, such as an `ETag`: a later batch that names the same place
    /// with the same fingerprint does not look at it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
}

/// Longest fingerprint in bytes.
const MAX_FINGERPRINT: usize = 256;

impl ManifestLine {
    /// The picture that a line of text names.
    ///
    /// # Errors
    /// What is wrong with the line, and what would be right.
    pub fn read(line: &str) -> Result<ImageRef, String> {
        let line: Self = serde_json::from_str(line).map_err(|e| format!("is no JSON object of a picture: {e}"))?;
        if line.fingerprint.as_ref().is_some_and(|f| f.is_empty() || f.len() > MAX_FINGERPRINT || f.contains('\0')) {
            return Err(format!("has a fingerprint that is not 1 to {MAX_FINGERPRINT} bytes without NUL"));
        }
        match (line.s3, line.file) {
            (Some(s3), None) => Ok(ImageRef::Reference { s3, fingerprint: line.fingerprint }),
            (None, Some(file)) => Ok(ImageRef::File { file, fingerprint: line.fingerprint }),
            _ => Err("needs exactly one of s3 and file".to_owned()),
        }
    }
}

/// How far a listing has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The last key or path that was listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// How far known places behind `after` are compared with the page that comes next, where they were too many for one
    /// turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared: Option<String>,
    /// The part of a manifest that goes on, and how many bytes of it are read.
    #[serde(default)]
    pub part: u32,
    /// See `part`.
    #[serde(default)]
    pub offset: usize,
    /// Folders and files that could not be read or named.
    #[serde(default)]
    pub skipped: u64,
    /// The first of these, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_skipped: Option<String>,
}

/// Whether a name is a picture's by its ending. What is hidden is none.
pub fn is_picture_name(name: &str) -> bool {
    const ENDINGS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
    const HEIF_ENDINGS: [&str; 2] = ["heic", "heif"];
    let is_ours = |ending: &str| {
        let heif = HEIF_ENDINGS.iter().filter(|_| heif::IS_READ);
        ENDINGS.iter().chain(heif).any(|known| ending.eq_ignore_ascii_case(known))
    };
    let file = name.rsplit('/').next().unwrap_or(name);
    let ending = file.rsplit_once('.').map(|(_, ending)| ending);
    !file.starts_with('.') && ending.is_some_and(is_ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_one_picture() {
        let read = ManifestLine::read;
        assert_eq!(
            read(r#"{"s3":"s3://b-1/k.jpg","fingerprint":"e"}"#),
            Ok(ImageRef::Reference { s3: "s3://b-1/k.jpg".to_owned(), fingerprint: Some("e".to_owned()) })
        );
        assert_eq!(
            read(r#"{"file":"/a b.png"}"#),
            Ok(ImageRef::File { file: "/a b.png".to_owned(), fingerprint: None })
        );
        for wrong in
            ["", "{}", "[]", r#"{"s3":"a","file":"b"}"#, r#"{"s3":"a","tag":"b"}"#, r#"{"s3":"a","fingerprint":""}"#]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn parts_are_known_by_their_keys() {
        let id = Uuid::now_v7();
        assert_eq!(Manifest::of_key(&Manifest::part_key(CollectionId::new(), id, 7)), Some(id));
        assert_eq!(Manifest::of_key("collections/x/uploads/y"), None);
    }

    #[test]
    fn pictures_are_known_by_their_ending() {
        for name in ["a.jpg", "x/B.JPEG", "a.b.png", "ü.WebP"] {
            assert!(is_picture_name(name), "{name}");
        }
        for name in ["IMG_0001.HEIC", "b.heif"] {
            assert_eq!(is_picture_name(name), heif::IS_READ, "{name}");
        }
        for name in ["", "jpg", ".jpg", "a.jpg/", "a.gif", "x.jpg/readme", "a/._b.jpg"] {
            assert!(!is_picture_name(name), "{name}");
        }
    }
}
