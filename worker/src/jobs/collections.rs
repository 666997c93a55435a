//! The collections that the jobs of one claim belong to: most often one, read once for all of them.

use std::collections::HashMap;
use std::sync::Arc;

use sea_orm::DbErr;
use shared::db::entity::collection::Model;
use shared::db::{Db, collections};
use shared::ids::CollectionId;
use tokio::sync::Mutex;

/// What was read for a claim; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ClaimCollections(Arc<Mutex<HashMap<CollectionId, Arc<Model>>>>);

impl ClaimCollections {
    /// The collection, as the first job of the claim found it; `None` where it is gone.
    pub(super) async fn find(&self, db: &Db, id: CollectionId) -> Result<Option<Arc<Model>>, DbErr> {
        // Those that come meanwhile wait for the one row, too.
        let mut known = self.0.lock().await;
        if let Some(collection) = known.get(&id) {
            return Ok(Some(Arc::clone(collection)));
        }
        let found = collections::find(&db.read, id).await?.map(Arc::new);
        known.extend(found.iter().map(|collection| (id, Arc::clone(collection))));
        Ok(found)
    }
}
