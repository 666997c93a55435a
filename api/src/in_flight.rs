//! Idempotency keys of requests that are being answered: the same key at the same time is refused, and may be sent again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{ApiError, ApiResult};

/// The keys that this process answers requests for; cheap to clone. As many as there are connections at most.
#[derive(Clone, Debug, Default)]
pub struct InFlightKeys(Arc<Mutex<HashSet<String>>>);

/// Frees the key again when the request is answered, or given up.
#[derive(Debug)]
pub(crate) struct InFlightKey {
    keys: InFlightKeys,
    key: String,
}

impl InFlightKeys {
    /// Takes the key of this caller for this path.
    ///
    /// # Errors
    /// Another request holds it.
    pub(crate) fn take(&self, caller: &str, path: &str, key: &str) -> ApiResult<InFlightKey> {
        let key = format!("{caller}\n{path}\n{key}");
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone()) {
            return Ok(InFlightKey { keys: self.clone(), key });
        }
        Err(ApiError::key_in_flight())
    }
}

impl Drop for InFlightKey {
    fn drop(&mut self) {
        self.keys.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_by_one_request_at_a_time() {
        let keys = InFlightKeys::default();
        let first = keys.take("caller", "/v1/batches", "k").unwrap();
        assert!(keys.take("caller", "/v1/batches", "k").is_err());
        for other in [("another", "/v1/batches", "k"), ("caller", "/v1/x", "k"), ("caller", "/v1/batches", "l")] {
            keys.take(other.0, other.1, other.2).unwrap();
        }
        drop(first);
        keys.take("caller", "/v1/batches", "k").unwrap();
    }
}
