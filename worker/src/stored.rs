//! The crops that an attempt has put into the object store. They are known beyond its end, whatever that is: those that no
//! row refers to then would be found only by the daily sweep, and whom they show may be gone.

use std::sync::{Arc, Mutex, PoisonError};

use sea_orm::{ConnectionTrait, DbErr};
use shared::db::crops;
use tokio::task::futures::TaskLocalFuture;

tokio::task_local! {
    static OF_ATTEMPT: StoredCrops;
}

/// The keys of one attempt's crops; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoredCrops(Arc<Mutex<Vec<String>>>);

impl StoredCrops {
    /// Runs an attempt whose crops are noted here.
    pub(crate) fn during<F: Future>(&self, attempt: F) -> TaskLocalFuture<Self, F> {
        OF_ATTEMPT.scope(self.clone(), attempt)
    }

    /// Notes a crop of the attempt that is under way, before it is stored.
    pub(crate) fn note(key: &str) {
        // What runs outside of an attempt looks after its crops itself.
        let _ = OF_ATTEMPT.try_with(|crops| crops.keys().push(key.to_owned()));
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leaves those crops of attempts to the sweeper that no face got.
pub(crate) async fn discard(conn: &impl ConnectionTrait, attempts: &[&StoredCrops]) -> Result<(), DbErr> {
    let keys: Vec<String> = attempts.iter().flat_map(|crops| crops.keys().clone()).collect();
    crops::discard(conn, &keys).await
}

/// The same, where nothing waits for it.
pub(crate) async fn try_discard(conn: &impl ConnectionTrait, attempts: &[&StoredCrops]) {
    if let Err(error) = discard(conn, attempts).await {
        tracing::warn!(%error, "crops that are not needed are left to the daily sweep");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_an_attempt_has_stored_is_known_after_it_was_dropped() {
        let (one, other) = (StoredCrops::default(), StoredCrops::default());
        StoredCrops::note("nobody's");
        let attempt = one.during(async {
            StoredCrops::note("a");
            std::future::pending::<()>().await;
        });
        assert!(tokio::time::timeout(std::time::Duration::from_millis(50), attempt).await.is_err());
        let ended = other.during(async {
            StoredCrops::note("b");
        });
        ended.await;
        assert_eq!((one.keys().as_slice(), other.keys().as_slice()), (&["a".to_owned()][..], &["b".to_owned()][..]));
    }
}
