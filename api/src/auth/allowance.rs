//! Requests in a minute, over all processes: each takes a slice of what the minute has left, so that few requests write.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName};
use shared::access::Grant;
use shared::db::Db;
use shared::db::api_keys::usage::take_requests;
use shared::ids::ApiKeyId;
use tokio::sync::Mutex;

use super::gate::{lock, remember};
use super::set;
use crate::error::{ApiError, ApiResult};

/// A process takes up to this part of a minute's requests at a time.
const SLICES: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// The headers that tell a key of its limit (draft-ietf-httpapi-ratelimit-headers).
pub const RATE_LIMIT: [HeaderName; 2] = [POLICY, LIMIT];

/// What this process holds of each line of keys.
pub(crate) struct Allowances {
    db: Db,
    windows: std::sync::Mutex<HashMap<ApiKeyId, Held>>,
}

/// A window, and when it was made.
type Held = (Arc<Mutex<Window>>, Instant);

/// The minute that a slice was taken of.
#[derive(Default)]
struct Window {
    /// Requests that this process may still answer.
    here: u32,
    /// Those that nobody has taken.
    left: u32,
    ends: Option<Instant>,
}

/// What a request was told of its key's limit.
#[derive(Debug)]
pub(crate) struct Allowance {
    /// This request is one too many.
    pub(super) is_spent: bool,
    limit: u32,
    left: u32,
    resets_in: Duration,
}

impl Allowances {
    pub(super) fn new(db: Db) -> Self {
        Self { db, windows: std::sync::Mutex::default() }
    }

    /// Counts a request; `None` where the grant has no limit.
    pub(super) async fn take(&self, grant: &Grant) -> ApiResult<Option<Allowance>> {
        let limit = grant.limits().requests_per_minute;
        let (Some(line), true) = (grant.owner(), limit > 0) else { return Ok(None) };
        let window = self.window(line);
        // Those that come meanwhile wait for the one slice.
        let mut window = window.lock().await;
        let now = Instant::now();
        if window.ends.is_none_or(|ends| ends <= now) {
            *window = Window::default();
        }
        if window.here == 0 && (window.ends.is_none() || window.left > 0) {
            let slice = take_requests(&self.db, line, limit, (limit / SLICES).max(1)).await?;
            *window = Window { here: slice.granted, left: slice.left, ends: Some(now + slice.ends_in) };
        }
        let is_spent = window.here == 0;
        window.here = window.here.saturating_sub(1);
        let resets_in = window.ends.map_or(MINUTE, |ends| ends.saturating_duration_since(now));
        Ok(Some(Allowance { is_spent, limit, left: window.here + window.left, resets_in }))
    }

    fn window(&self, line: ApiKeyId) -> Arc<Mutex<Window>> {
        if let Some((window, _)) = lock(&self.windows).get(&line) {
            return Arc::clone(window);
        }
        let window = Arc::new(Mutex::new(Window::default()));
        remember(&self.windows, MINUTE, line, (Arc::clone(&window), Instant::now()), |(_, made)| *made);
        window
    }
}

impl Allowance {
    /// The answer to a request that is one too many.
    pub(super) fn refusal(&self) -> ApiError {
        let detail = format!("this key may send {} requests a minute; wait for the next one", self.limit);
        ApiError::too_many("rate_limited", detail, self.resets_in)
    }

    /// Writes the headers.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        let seconds = self.resets_in.as_secs() + u64::from(self.resets_in.subsec_nanos() > 0);
        set(headers, &POLICY, &format!("\"requests\";q={};w={}", self.limit, MINUTE.as_secs()));
        set(headers, &LIMIT, &format!("\"requests\";r={};t={seconds}", self.left));
    }
}
