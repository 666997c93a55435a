//! A collection's people and faces as a file: one JSON object a line, in the order in which they are needed.
//!
//! The first line says what the file is, the last one how many lines of each kind it has, so that a cut file is noticed.
//! Between them are persons, persons that were merged into those, and pictures, each followed by its places and its faces.
//! Pixels, jobs, uploads and batches are no part of it. A line of a kind or with a field that version 1 does not have makes
//! the file a later version's.

mod check;
mod measured;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

pub use check::{Checker, TransferError};

use crate::catalogue::{Catalogue, CatalogueError, Metric, Pipeline};
use crate::db::collections::CollectionSettings;
use crate::embedding::Embedding;
use crate::ids::{ClusterId, CollectionId, FaceId, ImageId, PersonId};
use crate::job::FaceBox;

/// The version of the format that is written, and the newest that is read.
pub const VERSION: u32 = 1;
/// Longest line in bytes. A face of the largest vectors has room in it, with thousands of persons that it is not.
pub const MAX_LINE_BYTES: usize = 4 << 20;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the types say it")]
pub enum Line {
    FaceIdExport(Header),
    Person(PersonLine),
    Merge(MergeLine),
    Image(ImageLine),
    Place(PlaceLine),
    Face(Box<FaceLine>),
    End(Counts),
}

/// What the file is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Header {
    /// [`VERSION`] of whoever wrote it.
    pub version: u32,
    pub collection: CollectionHeader,
    /// Whose vectors the file has, the collection's own pipeline among them.
    pub pipelines: Vec<PipelineHeader>,
}

/// The collection as it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
pub struct CollectionHeader {
    pub id: CollectionId,
    pub name: String,
    pub pipeline: String,
    pub settings: CollectionSettings,
}

/// What made vectors of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineHeader {
    /// Its name in the catalogue.
    pub name: String,
    /// Components of a vector.
    pub dimension: usize,
    /// SHA-256 of the recognizer's weights: vectors of others cannot be compared with these.
    pub weights: String,
    /// What found the faces.
    pub detector_revision: String,
    /// How vectors are compared.
    #[serde(default, skip_serializing_if = "is_default")]
    pub metric: Metric,
    /// Whether they are of unit length.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub normalise: bool,
    /// Whether the mirror image has a part in them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub flip: bool,
    /// Of how many copies of a crop they are the mean.
    #[serde(default, skip_serializing_if = "is_default")]
    pub jitter: u32,
    /// Whether each crop was brought to a mean of 0 and a deviation of 1.
    #[serde(default, skip_serializing_if = "is_default")]
    pub prewhiten: bool,
}

/// A person, as others refer to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersonKey {
    /// Its id where it was exported.
    pub id: PersonId,
    /// The client's own id; where it has one, this says who it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
}

/// A person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct PersonLine {
    pub id: PersonId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Microseconds since the epoch.
    pub created_at: i64,
}

/// A person that was merged into another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct MergeLine {
    pub id: PersonId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    pub into: PersonKey,
    /// Microseconds since the epoch.
    pub merged_at: i64,
}

/// A picture, without its pixels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct ImageLine {
    pub id: ImageId,
    pub sha256: String,
    /// In upright pixels.
    pub width: i32,
    /// In upright pixels.
    pub height: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captured_at: Option<String>,
    /// Where it lies, when not in the installation's own object store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Since when none of its places holds it, in microseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<i64>,
    /// Microseconds since the epoch.
    pub created_at: i64,
    /// Which detector revisions have looked at it, and how many faces each found.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub analyses: BTreeMap<String, i32>,
}

/// A place at which the picture before was listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaceLine {
    /// Its path or address.
    pub uri: String,
    /// What stood for its bytes there.
    pub fingerprint: String,
}

/// A face on the picture before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct FaceLine {
    pub id: FaceId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<PersonKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assigned_by: Option<crate::db::faces::AssignedBy>,
    #[serde(default, skip_serializing_if = "is_false")]
    pub locked: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pub hidden: bool,
    /// Microseconds since the epoch.
    pub created_at: i64,
    /// Where each detector revision saw it; one at least.
    pub geometry: BTreeMap<String, GeometryLine>,
    /// Its vectors by pipeline; none where it is too poor to have one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vectors: BTreeMap<String, Vector>,
    /// The persons that it is not, by the word of a user.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not: Vec<PersonKey>,
    /// Where it lies with others that look like it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterKey>,
    /// Which side of each separation by a user it is on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sides: BTreeMap<Uuid, i32>,
}

/// Where one detector revision saw a face, and how well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct GeometryLine {
    #[serde(rename = "box")]
    pub face_box: FaceBox,
    pub landmarks: Value,
    pub score: f32,
    pub quality: Value,
}

/// A cluster and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterKey {
    /// Its id where it was exported.
    pub id: ClusterId,
    /// Whose it is, where a user said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<PersonKey>,
}

/// How many lines of each kind there are, and vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Counts {
    pub persons: u64,
    pub merges: u64,
    pub images: u64,
    pub places: u64,
    pub faces: u64,
    pub vectors: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.persons += more.persons;
        self.merges += more.merges;
        self.images += more.images;
        self.places += more.places;
        self.faces += more.faces;
        self.vectors += more.vectors;
    }
}

impl std::ops::Sub for Counts {
    type Output = Self;

    fn sub(self, less: Self) -> Self {
        Self {
            persons: self.persons - less.persons,
            merges: self.merges - less.merges,
            images: self.images - less.images,
            places: self.places - less.places,
            faces: self.faces - less.faces,
            vectors: self.vectors - less.vectors,
        }
    }
}

/// A vector in base64 of its little-endian f32 components.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector(pub Embedding);

impl Line {
    /// The line as it is written, with its end.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        serde_json::to_writer(&mut *out, self).expect("a line is plain data; this is a bug");
        out.push(b'\n');
    }
}

impl Header {
    /// What a collection's file begins with; `pipelines` are those whose vectors it has.
    pub fn new(collection: CollectionHeader, pipelines: &[&Pipeline]) -> Self {
        Self { version: VERSION, collection, pipelines: pipelines.iter().map(|p| PipelineHeader::of(p)).collect() }
    }

    /// Refuses vectors that this catalogue's pipelines did not make.
    pub fn check_pipelines(&self, catalogue: &Catalogue) -> Result<(), TransferError> {
        for theirs in &self.pipelines {
            let ours = catalogue.pipeline(&theirs.name).map_err(|error| match error {
                CatalogueError::Unknown { name, known } => TransferError::UnknownPipeline { name, known },
                other => TransferError::UnknownPipeline { name: theirs.name.clone(), known: other.to_string() },
            })?;
            let ours = PipelineHeader::of(ours);
            if theirs.dimension != ours.dimension {
                let (name, theirs, ours) = (ours.name, theirs.dimension, ours.dimension);
                return Err(TransferError::Dimension { name, theirs, ours });
            }
            if theirs.weights != ours.weights {
                return Err(TransferError::Weights { name: ours.name });
            }
            let made = |header: &PipelineHeader| {
                (header.metric, header.normalise, header.flip, header.jitter, header.prewhiten)
            };
            if made(theirs) != made(&ours) {
                return Err(TransferError::Vectors { name: ours.name });
            }
        }
        Ok(())
    }
}

impl PipelineHeader {
    fn of(pipeline: &Pipeline) -> Self {
        Self {
            name: pipeline.name.clone(),
            dimension: pipeline.recognizer.dimension,
            weights: pipeline.recognizer.file.sha256.clone(),
            detector_revision: pipeline.detector_revision(),
            metric: pipeline.recognizer.metric,
            normalise: pipeline.recognizer.normalise,
            flip: pipeline.recognizer.flip,
            jitter: pipeline.recognizer.jitter,
            prewhiten: pipeline.recognizer.prewhiten,
        }
    }
}

impl PersonLine {
    /// As others refer to it.
    pub fn key(&self) -> PersonKey {
        PersonKey { id: self.id, external_id: self.external_id.clone() }
    }
}

impl Serialize for Vector {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0.to_bytes()))
    }
}

impl<'de> Deserialize<'de> for Vector {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let bytes =
            STANDARD.decode(text.as_bytes()).map_err(|e| D::Error::custom(format!("a vector is no base64: {e}")))?;
        Embedding::from_bytes(&bytes).map(Self).map_err(|e| D::Error::custom(format!("a vector is wrong: {e}")))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this form")]
fn is_false(value: &bool) -> bool {
    !value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this form")]
fn is_yes(value: &bool) -> bool {
    *value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Recognizer;

    #[test]
    fn vectors_that_are_made_or_compared_otherwise_are_refused() {
        let catalogue = Catalogue::load(None).unwrap();
        let ours = catalogue.pipeline("yunet-mobilefacenet").unwrap();
        let check = |theirs: &Pipeline| {
            let settings = CollectionSettings::default();
            let (id, name, pipeline) = (CollectionId::new(), "c".to_owned(), ours.name.clone());
            let header = Header::new(CollectionHeader { id, name, pipeline, settings }, &[theirs]);
            let read: Header = serde_json::from_str(&serde_json::to_string(&header).unwrap()).unwrap();
            assert_eq!(read, header);
            read.check_pipelines(&catalogue).map_err(|error| error.code())
        };
        assert_eq!(check(ours), Ok(()));
        let line = serde_json::to_string(&PipelineHeader::of(ours)).unwrap();
        assert!(!line.contains("metric") && !line.contains("flip"), "older versions read it: {line}");
        let changes: [fn(&mut Recognizer); 5] = [
            |recognizer| recognizer.metric = Metric::Euclidean,
            |recognizer| recognizer.normalise = false,
            |recognizer| recognizer.flip = true,
            |recognizer| recognizer.jitter = 2,
            |recognizer| recognizer.prewhiten = true,
        ];
        for change in changes {
            let mut theirs = ours.clone();
            change(&mut theirs.recognizer);
            assert_eq!(check(&theirs), Err("vectors_mismatch"));
        }
    }
}
