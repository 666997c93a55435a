//! The collections that the jobs of one claim belong to: most often one, read once for many of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sea_orm::DbErr;
use shared::access::Grant;
use shared::db::entity::collection::Model;
use shared::db::entity::job::Model as Job;
use shared::db::{Db, collections};
use shared::ids::CollectionId;
use tokio::sync::Mutex;

/// How long what was read serves. Below the time for which a rematch after a change of thresholds waits for those that
/// still go by the old ones.
const FRESH_FOR: Duration = Duration::from_millis(500);

/// What was read for a claim; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ClaimCollections(Arc<Mutex<HashMap<CollectionId, Read>>>);

/// A row, and when it was read.
type Read = (Arc<Model>, Instant);

impl ClaimCollections {
    /// The collection, as it was a moment ago at most, and for a job of another pipeline than it went by then, as it is now;
    /// `None` where it is gone.
    pub(super) async fn find(&self, db: &Db, job: &Job) -> Result<Option<Arc<Model>>, DbErr> {
        let id = job.collection_id;
        // Those that come meanwhile wait for the one row, too.
        let mut known = self.0.lock().await;
        if let Some((collection, when)) = known.get(&id)
            && when.elapsed() < FRESH_FOR
            && collection.pipeline == job.pipeline
        {
            return Ok(Some(Arc::clone(collection)));
        }
        let now = Instant::now();
        let found = collections::find(&db.read, &Grant::everything(), id).await?.map(Arc::new);
        known.extend(found.iter().map(|collection| (id, (Arc::clone(collection), now))));
        Ok(found)
    }
}
