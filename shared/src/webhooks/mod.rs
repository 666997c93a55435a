//! Webhooks: what is told, to whom it may be sent, and how it is signed (Standard Webhooks). In reading order:
//!
//! - [`EventType`]: what can happen; [`signature`]: how a receiver knows that it was us
//! - [`secret`]: an endpoint's secret, shown and encrypted
//! - [`target`]: a URL that is accepted; [`address`]: the network addresses that are dialled
//!
//! Who is told lies in `db::webhooks`, the sending in the worker.

pub mod address;
pub mod secret;
pub mod signature;
pub mod target;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum EventType {
    /// A job has its result.
    #[serde(rename = "job.succeeded")]
    JobSucceeded,
    /// A job has a true negative answer about its input.
    #[serde(rename = "job.rejected")]
    JobRejected,
    /// A job was given up.
    #[serde(rename = "job.failed")]
    JobFailed,
    /// A job was cancelled.
    #[serde(rename = "job.cancelled")]
    JobCancelled,
    /// A batch has ended, each time that it does.
    #[serde(rename = "batch.completed")]
    BatchCompleted,
    /// A collection's images have what the new pipeline of a reprocess run makes of them.
    #[serde(rename = "reprocess.completed")]
    ReprocessCompleted,
    /// A collection goes by the other pipeline of its reprocess run.
    #[serde(rename = "reprocess.activated")]
    ReprocessActivated,
    /// Nothing is left of what was erased.
    #[serde(rename = "erasure.completed")]
    ErasureCompleted,
    /// An identify or index job found a person that a face matches.
    #[serde(rename = "face.matched")]
    FaceMatched,
    /// An identify or index job found a face that matches nobody for certain.
    #[serde(rename = "face.unknown")]
    FaceUnknown,
    /// Another endpoint cannot be told any more.
    #[serde(rename = "endpoint.failing")]
    EndpointFailing,
    /// A client tries whether an endpoint can be told.
    #[serde(rename = "endpoint.test")]
    EndpointTest,
}

impl EventType {
    /// The name used in bodies, rows and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JobSucceeded => "job.succeeded",
            Self::JobRejected => "job.rejected",
            Self::JobFailed => "job.failed",
            Self::JobCancelled => "job.cancelled",
            Self::BatchCompleted => "batch.completed",
            Self::ReprocessCompleted => "reprocess.completed",
            Self::ReprocessActivated => "reprocess.activated",
            Self::ErasureCompleted => "erasure.completed",
            Self::FaceMatched => "face.matched",
            Self::FaceUnknown => "face.unknown",
            Self::EndpointFailing => "endpoint.failing",
            Self::EndpointTest => "endpoint.test",
        }
    }
}
