//! Jobs: their kinds, arguments, states and answers; the wire types that API and worker share.

use sea_orm::entity::prelude::*;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{FaceId, ImageId, PersonId, UploadId};

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, EnumIter, DeriveActiveEnum, ToSchema)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Stores one face of an image under a person.
    #[sea_orm(string_value = "enroll")]
    Enroll,
    /// Stores every good face of an image.
    #[sea_orm(string_value = "index")]
    Index,
    /// Finds the persons whose faces are on an image; stores nothing.
    #[sea_orm(string_value = "identify")]
    Identify,
    /// Compares a face with another image's or with a person's.
    #[sea_orm(string_value = "verify")]
    Verify,
    /// Matches a collection's faces again that nobody was named for, or only by a match.
    #[sea_orm(string_value = "rematch")]
    Rematch,
    /// Adds to images what another pipeline makes of them.
    #[sea_orm(string_value = "reembed")]
    Reembed,
}

impl JobKind {
    /// The name used in URLs, rows and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enroll => "enroll",
            Self::Index => "index",
            Self::Identify => "identify",
            Self::Verify => "verify",
            Self::Rematch => "rematch",
            Self::Reembed => "reembed",
        }
    }

    /// Whether whoever runs it has to have the pipeline's models: all but a rematch see pictures or crops.
    pub fn needs_models(self) -> bool {
        self != Self::Rematch
    }

    /// The lane a job of this kind waits in: somebody waits for all but `index`, `rematch` and `reembed`.
    pub fn lane(self) -> Lane {
        match self {
            Self::Enroll | Self::Identify | Self::Verify => Lane::Interactive,
            Self::Index | Self::Rematch | Self::Reembed => Lane::Bulk,
        }
    }
}

/// Which queue a job waits in; workers serve `Interactive` first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, EnumIter, DeriveActiveEnum, ToSchema)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Somebody waits for the answer.
    #[sea_orm(string_value = "interactive")]
    Interactive,
    /// Photo libraries and other work that may take its time.
    #[sea_orm(string_value = "bulk")]
    Bulk,
}

impl Lane {
    /// The name used in rows, queues and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
        }
    }
}

/// Where a job stands. `docs/JOB_STATES.md` draws who moves it and when.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    EnumIter,
    DeriveActiveEnum,
    ToSchema,
)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for a worker, or for the time of its next attempt.
    #[sea_orm(string_value = "queued")]
    Queued,
    /// A worker holds a claim on it.
    #[sea_orm(string_value = "running")]
    Running,
    /// Done; the result is there. Final.
    #[sea_orm(string_value = "succeeded")]
    Succeeded,
    /// A true negative answer about the input (no face, unreadable image ...), never retried. Final.
    #[sea_orm(string_value = "rejected")]
    Rejected,
    /// Gave up: attempts spent, a permanent cause, or a job that kills its process. Final.
    #[sea_orm(string_value = "failed")]
    Failed,
    /// Cancelled by a client before it was done. Final.
    #[sea_orm(string_value = "cancelled")]
    Cancelled,
}

impl JobState {
    /// The name used in rows, answers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing can change the job any more.
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// The picture a job works on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ImageRef {
    /// An upload.
    Upload(UploadedImage),
    /// An object of a bucket that the operator allows, read when the job runs.
    Reference {
        /// `s3://bucket/key`.
        s3: String,
        /// What stood for its bytes when it was listed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fingerprint: Option<String>,
    },
    /// A file below one of the folders that the operator allows, read when the job runs.
    File {
        /// Its absolute path.
        file: String,
        /// What stood for its bytes when it was listed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fingerprint: Option<String>,
    },
}

/// An upload's bytes in the object store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadedImage {
    /// The upload that brought the picture.
    pub upload_id: UploadId,
    /// Its key in the object store.
    pub object_key: String,
    /// SHA-256 of its bytes, lower-case hex.
    pub sha256: String,
}

impl ImageRef {
    /// The upload, where it is one.
    pub fn upload(&self) -> Option<&UploadedImage> {
        match self {
            Self::Upload(upload) => Some(upload),
            Self::Reference { .. } | Self::File { .. } => None,
        }
    }

    /// Where it lies, when not in our object store: what a collection remembers of it is kept by this.
    pub fn uri(&self) -> Option<String> {
        match self {
            Self::Upload(_) => None,
            Self::Reference { s3, .. } => Some(s3.clone()),
            Self::File { file, .. } => Some(format!("file://{file}")),
        }
    }

    /// What stood for its bytes when it was listed.
    pub fn fingerprint(&self) -> Option<&str> {
        match self {
            Self::Upload(_) => None,
            Self::Reference { fingerprint, .. } | Self::File { fingerprint, .. } => fingerprint.as_deref(),
        }
    }
}

/// Whom an enroll job's face belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum PersonRef {
    /// A person that exists.
    Id {
        /// The person's id.
        id: PersonId,
    },
    /// A person by the caller's own id, made where there is none yet.
    External {
        /// The caller's id of the person, unique in the collection.
        external_id: String,
        /// A name to show; kept as it was where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// What else is to be known of the person; kept as it was where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        description: Option<String>,
    },
}

/// Which face of a picture is meant when there are several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FaceChoice {
    /// The only one; refused when a second good face has over a third of the largest one's area.
    #[default]
    Only,
    /// The one with the largest area.
    Largest,
    /// The most central one: area minus twice the squared distance to the picture's centre.
    Center,
    /// The one that overlaps this box best.
    Box(FaceBox),
}

/// A rectangle in upright original pixels; it may reach outside the picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FaceBox {
    /// Left edge.
    pub x: f32,
    /// Top edge.
    pub y: f32,
    /// Width, above zero.
    #[schema(exclusive_minimum = 0)]
    pub width: f32,
    /// Height, above zero.
    #[schema(exclusive_minimum = 0)]
    pub height: f32,
}

/// What a verify job's face is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyTarget {
    /// A face of another picture.
    Image(ImageRef),
    /// The enrolled faces of a person.
    Person(PersonId),
}

/// A job's arguments as stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JobArgs {
    /// See [`JobKind::Enroll`].
    Enroll {
        /// The picture.
        image: ImageRef,
        /// Whose face it is.
        person: PersonRef,
        /// Which face is meant.
        face: FaceChoice,
    },
    /// See [`JobKind::Index`].
    Index {
        /// The picture.
        image: ImageRef,
    },
    /// See [`JobKind::Identify`].
    Identify {
        /// The picture.
        image: ImageRef,
        /// How many persons to name a face at most; the collection's setting where absent.
        max_matches: Option<usize>,
    },
    /// See [`JobKind::Verify`].
    Verify {
        /// The picture.
        image: ImageRef,
        /// What it is compared with.
        other: VerifyTarget,
        /// Which face is meant, on either picture.
        face: FaceChoice,
    },
    /// See [`JobKind::Rematch`].
    Rematch {
        /// Every face; else what was asked for when it begins.
        all: bool,
        /// How far it is; `None` before it begins.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        progress: Option<RematchProgress>,
    },
    /// See [`JobKind::Reembed`].
    Reembed {
        /// The images; one that is gone is nothing to do.
        images: Vec<ImageId>,
        /// Whether faces are looked for where the pipeline's detector has not looked yet.
        detects: bool,
    },
}

/// Which faces a rematch looks at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RematchScope {
    /// All of them.
    All,
    /// Those that some changes concern.
    Touched {
        /// These, and those near them where they are templates.
        faces: Vec<FaceId>,
        /// Those that were matched to these.
        persons: Vec<PersonId>,
    },
}

/// How far a rematch is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct RematchProgress {
    pub scope: RematchScope,
    /// The last face that was read.
    pub after: Option<FaceId>,
    /// Faces that were looked up.
    pub faces: usize,
    pub assigned: usize,
    pub unassigned: usize,
}

impl JobArgs {
    /// The kind of job these arguments are for.
    pub fn kind(&self) -> JobKind {
        match self {
            Self::Enroll { .. } => JobKind::Enroll,
            Self::Index { .. } => JobKind::Index,
            Self::Identify { .. } => JobKind::Identify,
            Self::Verify { .. } => JobKind::Verify,
            Self::Rematch { .. } => JobKind::Rematch,
            Self::Reembed { .. } => JobKind::Reembed,
        }
    }

    /// The pictures the job reads.
    pub fn images(&self) -> Vec<&ImageRef> {
        match self {
            Self::Verify { image, other: VerifyTarget::Image(other), .. } => vec![image, other],
            Self::Enroll { image, .. }
            | Self::Index { image }
            | Self::Identify { image, .. }
            | Self::Verify { image, other: VerifyTarget::Person(_), .. } => vec![image],
            Self::Rematch { .. } | Self::Reembed { .. } => Vec::new(),
        }
    }

    /// Whether an earlier attempt did a part of it.
    pub fn goes_on(&self) -> bool {
        matches!(self, Self::Rematch { progress: Some(_), .. })
    }
}

/// Why a job was rejected or failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A stable code; `docs/API.md` lists them.
    pub code: String,
    /// What happened and what to do about it.
    pub detail: String,
    /// The faces it is about, for `multiple_faces`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faces: Vec<FaceBox>,
}

impl Problem {
    /// A problem about no face in particular.
    pub fn new(code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { code: code.into(), detail: detail.into(), faces: Vec::new() }
    }
}

/// Whether two faces are one person's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The score is at or above the threshold.
    Match,
    /// Below the threshold, but above the one for ten times its false positive rate: let a person look.
    Uncertain,
    /// Nobody that is known.
    Unknown,
}
