//! Which calibration a pipeline's scores mean something by in a collection, read once for many jobs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sea_orm::DbErr;
use shared::catalogue::{Calibration, Pipeline};
use shared::db::{Db, calibrations};
use shared::ids::{CalibrationId, CollectionId};

/// How long what was read serves. Below the time for which a rematch after a change of calibrations waits for those that
/// still go by the old ones.
const FRESH_FOR: Duration = Duration::from_millis(500);
/// Collections that are remembered; those that are read beyond it push out what is stale, or else all.
const MOST: usize = 1024;

/// A calibration, and which one.
#[derive(Clone, Debug, PartialEq)]
pub struct InUse {
    /// The stored one; `None`: the catalogue's.
    pub id: Option<CalibrationId>,
    /// What it says.
    pub calibration: Calibration,
}

/// What was read of late; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Calibrations(Arc<Mutex<HashMap<(String, CollectionId), Read>>>);

/// What was found, and when.
type Read = (Option<Arc<InUse>>, Instant);

impl Calibrations {
    /// What the pipeline's scores mean in the collection, as it was a moment ago at most; `None` where nobody measured it.
    pub async fn of(
        &self,
        db: &Db,
        pipeline: &Pipeline,
        collection: CollectionId,
    ) -> Result<Option<Arc<InUse>>, DbErr> {
        let key = (pipeline.name.clone(), collection);
        // Where there was none, a job would fail for good that was sent right after one was stored.
        if let Some((Some(found), when)) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key)
            && when.elapsed() < FRESH_FOR
        {
            return Ok(Some(Arc::clone(found)));
        }
        let now = Instant::now();
        let stored = calibrations::in_use(&db.read, &pipeline.name, collection).await?;
        let found = match stored {
            Some(row) => Some(InUse { id: Some(row.id), calibration: row.calibration()? }),
            None => pipeline.calibration.clone().map(|calibration| InUse { id: None, calibration }),
        };
        let found = found.map(Arc::new);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, (_, when)| when.elapsed() < FRESH_FOR);
        }
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(key, (found.clone(), now));
        Ok(found)
    }
}
