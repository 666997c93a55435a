//! Which worker does the housekeeping that one of them has to do.

use std::time::Duration;

use shared::db::{Db, leaders};
use shared::telemetry::metrics;
use tokio::time::Instant;
use uuid::Uuid;

/// How long a leader that went silent keeps its role.
const LEASE: Duration = Duration::from_secs(10);
/// How early a leader stops to trust its lease: it must have stopped before another one begins.
const MARGIN: Duration = Duration::from_secs(2);

/// This process's part in one role.
pub(crate) struct Leadership {
    db: Db,
    role: &'static str,
    owner: Uuid,
    trusted_until: Option<Instant>,
    renew_at: Instant,
}

impl Leadership {
    pub(crate) fn new(db: Db, role: &'static str) -> Self {
        Self { db, role, owner: Uuid::now_v7(), trusted_until: None, renew_at: Instant::now() }
    }

    /// Whether this process leads now; takes or renews the role where it is time to.
    pub(crate) async fn held(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.renew_at {
            let led = self.trusted_until.is_some();
            self.trusted_until = match leaders::lead(&self.db, self.role, self.owner, LEASE).await {
                // Counted from before the question, so that the database's lease outlives the trust.
                Ok(generation) => generation.map(|generation| {
                    if !led {
                        tracing::info!(role = self.role, generation, "this worker leads");
                    }
                    now + LEASE.saturating_sub(MARGIN)
                }),
                Err(error) => {
                    tracing::warn!(role = self.role, %error, "renew the leadership");
                    self.trusted_until
                }
            };
            self.renew_at = now + LEASE / 4;
        }
        let held = self.trusted_until.is_some_and(|until| Instant::now() < until);
        metrics::leads(self.role, held);
        held
    }

    /// Lets another worker lead at once.
    pub(crate) async fn resign(&self) {
        if self.trusted_until.is_some()
            && let Err(error) = leaders::resign(&self.db, self.role, self.owner).await
        {
            tracing::warn!(role = self.role, %error, "resign; another worker leads when the lease is over");
        }
    }
}
