//! Which enrolled persons are near a vector. The stored embeddings are the truth, an index is derived from them.

mod codes;
#[cfg(any(test, feature = "testing"))]
pub mod contract;
mod distances;
mod exact;
mod kernel;
pub mod matches;
mod neighbours;
pub mod pgvector;
mod rows;

use std::time::Duration;

use async_trait::async_trait;

use crate::catalogue::Metric;
use crate::embedding::Embedding;
use crate::ids::{CollectionId, FaceId, PersonId};
#[cfg(doc)]
use crate::template;

pub use exact::ExactFaceIndex;
pub use neighbours::Neighbours;

/// The enrolled faces of one collection, as one pipeline sees them: the only vectors that may be compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Gallery {
    pub collection: CollectionId,
    pub pipeline: String,
    /// The pipeline's, by which its vectors are compared.
    pub metric: Metric,
}

/// How large a gallery is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct GallerySize {
    pub persons: usize,
    pub faces: usize,
    /// Persons of [`template::FEWEST`] faces or more, who are compared by their mean too.
    pub means: usize,
}

impl GallerySize {
    /// How many chances of a false match a search has.
    pub fn comparisons(&self) -> usize {
        self.faces + self.means
    }
}

/// A person near a query, by the nearest of its faces.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Hit {
    pub person: PersonId,
    pub face: FaceId,
    /// By the gallery's metric: 1 at most, and more is more alike.
    pub score: f32,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The gallery at the time of the search.
    pub size: GallerySize,
    /// For each query the persons, best first.
    pub hits: Vec<Vec<Hit>>,
}

/// Why a search failed.
#[derive(Debug, thiserror::Error)]
pub enum FaceIndexError {
    /// The database failed.
    #[error("search the faces")]
    Database(#[from] sea_orm::DbErr),
    /// A stored vector cannot be read, or has another dimension than the query.
    #[error("a stored vector does not fit: {0}")]
    Vector(String),
    /// The search itself broke off.
    #[error("the search broke off")]
    Broken(#[from] tokio::task::JoinError),
}

/// A search over enrolled faces.
///
/// Every implementation promises, and `contract` checks:
/// - a search sees every embedding that was committed before it began, and none that was deleted;
/// - only faces that were enrolled or assigned by a user take part, so that a wrong match cannot spread;
/// - it gives `k` persons where there are `k`, each once, best first, equal scores in the order of their faces' ids.
#[async_trait]
pub trait FaceIndex: Send + Sync {
    /// The `k` persons nearest to each query.
    async fn search(&self, gallery: &Gallery, queries: Vec<Embedding>, k: usize) -> Result<Found, FaceIndexError> {
        self.search_within(gallery, queries, k, Duration::ZERO).await
    }

    /// The same where what changed within `max_age` may be missed, which spares many searches in a row a question each.
    async fn search_within(
        &self,
        gallery: &Gallery,
        queries: Vec<Embedding>,
        k: usize,
        max_age: Duration,
    ) -> Result<Found, FaceIndexError>;

    /// Housekeeping that may take a while; called now and then.
    async fn maintain(&self) -> Result<(), FaceIndexError>;
}
