//! Identifiers: one `UUIDv7` newtype a kind of row, so that one can never stand for another.

use sea_orm::entity::prelude::*;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, DeriveValueType, ToSchema,
        )]
        #[serde(transparent)]
        #[schema(value_type = uuid::Uuid)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A fresh id; ids made later sort later.
            #[expect(clippy::new_without_default, reason = "a default id would hide that it is random")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }

        impl sea_orm::TryFromU64 for $name {
            fn try_from_u64(_: u64) -> Result<Self, DbErr> {
                Err(DbErr::ConvertFromU64(stringify!($name)))
            }
        }
    };
}

id!(
    /// A collection: one gallery of persons and their images.
    CollectionId
);
id!(
    /// A person of a collection.
    PersonId
);
id!(
    /// An image of a collection.
    ImageId
);
id!(
    /// A face on an image.
    FaceId
);
id!(
    /// A cluster of faces that look like one person.
    ClusterId
);
id!(
    /// What a user changed of clusters.
    ClusterChangeId
);
id!(
    /// An uploaded picture that waits to be used by a job.
    UploadId
);
id!(
    /// A job.
    JobId
);
id!(
    /// A batch of jobs.
    BatchId
);
id!(
    /// A run that gives a collection another pipeline.
    ReprocessRunId
);
id!(
    /// Thresholds that were measured for a pipeline.
    CalibrationId
);
id!(
    /// An API key.
    ApiKeyId
);
id!(
    /// An address that is told of events.
    WebhookEndpointId
);
id!(
    /// Something that happened and is told; the `webhook-id` that receivers see.
    WebhookEventId
);
id!(
    /// The telling of one event to one endpoint.
    WebhookDeliveryId
);
id!(
    /// One worker's hold on a delivery of jobs; every write of an attempt is fenced on it.
    ClaimId
);
id!(
    /// A stretch of time in which the queue has lost nothing.
    EpochId
);
id!(
    /// The end of a person, face, image or collection, and its receipt.
    ErasureId
);
