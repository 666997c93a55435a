//! Looks keys up, a moment of each in memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use shared::access::token::Presented;
use shared::access::{Grant, Limits};
use shared::db::Db;
use shared::db::api_keys::lookup::{self, KnownKey};
use shared::ids::ApiKeyId;
use tokio_util::task::TaskTracker;

use super::allowance::Allowances;
use crate::error::{ApiError, ApiResult};

/// How long what was read of a key serves: one that is revoked opens nothing after this.
const FRESH_FOR: Duration = Duration::from_secs(2);
/// Keys in memory at most.
const MOST: usize = 1024;
/// How often it is noted that a key was used.
const USED_EVERY: Duration = Duration::from_secs(60);

/// Whether callers without a key are let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Never.
    NeedsKey,
    /// As long as nobody made a key (those that commands make for themselves do not count); with everything then.
    OpenWithoutKeys,
}

/// What was read of a key.
struct Known {
    key: KnownKey,
    grant: Arc<Grant>,
    when: Instant,
}

/// See the module.
pub struct Gate {
    db: Db,
    /// What callers of an open server have.
    everything: Arc<Grant>,
    /// For keys without limits of their own.
    configured: Limits,
    door: Door,
    /// There is a key. Keys stay where they are when they end, so this does too.
    has_keys: AtomicBool,
    /// When it was last seen that there is none.
    seen_none: Mutex<Option<Instant>>,
    known: Mutex<HashMap<String, Arc<Known>>>,
    /// When each was noted to be used.
    used: Mutex<HashMap<ApiKeyId, Instant>>,
    allowances: Allowances,
    /// Notes that go on while answers are sent.
    tasks: TaskTracker,
}

impl Gate {
    /// For callers of this database.
    pub fn new(db: Db, configured: Limits, door: Door, tasks: TaskTracker) -> Self {
        Self {
            allowances: Allowances::new(db.clone()),
            db,
            everything: Arc::new(Grant::everything()),
            configured,
            door,
            has_keys: AtomicBool::new(false),
            seen_none: Mutex::default(),
            known: Mutex::default(),
            used: Mutex::default(),
            tasks,
        }
    }

    /// What the token's key gives; everything where the server is open.
    pub(super) async fn grant_of(&self, token: Option<&Presented>) -> ApiResult<Arc<Grant>> {
        if self.is_open().await? {
            return Ok(Arc::clone(&self.everything));
        }
        let token = token.ok_or_else(ApiError::unauthenticated)?;
        let known = self.look_up(&token.prefix).await?.filter(|known| known.key.opens_with(token));
        let known = known.ok_or_else(ApiError::unauthenticated)?;
        self.note_use(known.key.key.id);
        Ok(Arc::clone(&known.grant))
    }

    pub(super) fn allowances(&self) -> &Allowances {
        &self.allowances
    }

    /// Has changes of keys that were made through this process hold at once.
    pub(crate) fn forget(&self) {
        lock(&self.known).clear();
        *lock(&self.seen_none) = None;
    }

    async fn is_open(&self) -> ApiResult<bool> {
        if self.door == Door::NeedsKey || self.has_keys.load(Ordering::Relaxed) {
            return Ok(false);
        }
        if lock(&self.seen_none).is_some_and(|when| when.elapsed() < FRESH_FOR) {
            return Ok(true);
        }
        let now = Instant::now();
        if lookup::any(&self.db).await? {
            self.has_keys.store(true, Ordering::Relaxed);
            return Ok(false);
        }
        *lock(&self.seen_none) = Some(now);
        Ok(true)
    }

    async fn look_up(&self, prefix: &str) -> ApiResult<Option<Arc<Known>>> {
        let known = lock(&self.known).get(prefix).cloned();
        if let Some(known) = known
            && known.when.elapsed() < FRESH_FOR
        {
            return Ok(Some(known));
        }
        let when = Instant::now();
        let Some(key) = lookup::look_up(&self.db, prefix).await? else { return Ok(None) };
        let known = Arc::new(Known { grant: Arc::new(key.key.grant(self.configured)), key, when });
        remember(&self.known, FRESH_FOR, prefix.to_owned(), Arc::clone(&known), |known| known.when);
        Ok(Some(known))
    }

    /// Beside the request, and seldom.
    fn note_use(&self, key: ApiKeyId) {
        if lock(&self.used).get(&key).is_some_and(|when| when.elapsed() < USED_EVERY) {
            return;
        }
        remember(&self.used, USED_EVERY, key, Instant::now(), |when| *when);
        let db = self.db.clone();
        self.tasks.spawn(async move {
            if let Err(error) = lookup::touch(&db, key).await {
                tracing::warn!(%error, "note that a key was used");
            }
        });
    }
}

/// Adds an entry to a map of bounded size; what is older than `fresh_for` makes room, or else everything.
pub(super) fn remember<K: Eq + std::hash::Hash, V>(
    map: &Mutex<HashMap<K, V>>,
    fresh_for: Duration,
    key: K,
    value: V,
    when: impl Fn(&V) -> Instant,
) {
    let mut map = lock(map);
    if map.len() >= MOST {
        map.retain(|_, value| when(value).elapsed() < fresh_for);
    }
    if map.len() >= MOST {
        map.clear();
    }
    map.insert(key, value);
}

/// Nothing that holds it can leave it half changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded() {
        let map = Mutex::default();
        let long_ago = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        for n in 0..3 * MOST {
            let when = if n < MOST / 2 { long_ago } else { Instant::now() };
            remember(&map, Duration::from_secs(30), n, when, |when| *when);
            assert!(lock(&map).len() <= MOST);
            if n == MOST {
                assert!(lock(&map).contains_key(&(MOST - 1)) && !lock(&map).contains_key(&0), "the old ones go first");
            }
        }
    }
}
