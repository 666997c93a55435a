//! What the server does wrong on purpose.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use tokio::sync::watch;

/// How the server misbehaves, from the next request on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not at all.
    None,
    /// The first request, and every `every`-th after it, is answered with the HTTP status `code`.
    Status {
        /// From 400 to 599.
        code: u16,
        /// 1 for every request; a large number for the first one only.
        every: u64,
    },
    /// This long passes before each answer.
    Slow(Duration),
    /// An object's body ends after so many bytes although its header promises all of them.
    Truncate(usize),
    /// An object's body stands still after so many bytes and its connection stays open.
    Stall(usize),
    /// Every request is forbidden, as with a revoked access key.
    Refuse,
    /// Every connection is cut, the new ones at once.
    Gone,
}

/// Sets and watches a server's faults; clones act on the same server.
#[derive(Clone)]
pub struct Faults(Arc<FaultState>);

struct FaultState {
    fault: watch::Sender<Fault>,
    since_set: AtomicU64,
    requests: AtomicU64,
}

impl Faults {
    pub(super) fn new() -> Self {
        Self(Arc::new(FaultState {
            fault: watch::Sender::new(Fault::None),
            since_set: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        }))
    }

    /// Replaces the fault.
    pub fn set(&self, fault: Fault) {
        self.0.since_set.store(0, Ordering::SeqCst);
        self.0.fault.send_replace(fault);
    }

    /// Signed requests that have reached the server since it started.
    pub fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::SeqCst)
    }

    pub(super) fn now(&self) -> Fault {
        *self.0.fault.borrow()
    }

    /// Returns once the server is to be gone.
    pub(super) async fn gone(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.0.fault.subscribe().wait_for(|f| *f == Fault::Gone).await;
    }

    /// Counts a request and lets it pass, wait or fail.
    pub(super) async fn meet(&self) -> S3Result<()> {
        self.0.requests.fetch_add(1, Ordering::SeqCst);
        let earlier = self.0.since_set.fetch_add(1, Ordering::SeqCst);
        match self.now() {
            Fault::Status { code, every } if earlier.is_multiple_of(every) => Err(failure(code)),
            Fault::Refuse => Err(s3_error!(AccessDenied)),
            Fault::Slow(wait) => {
                tokio::time::sleep(wait).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn failure(status: u16) -> S3Error {
    let code = match status {
        503 => S3ErrorCode::SlowDown,
        500..600 => S3ErrorCode::InternalError,
        _ => S3ErrorCode::InvalidRequest,
    };
    let mut error = S3Error::with_message(code, "a fault that a test asked for");
    if let Ok(status) = status.try_into() {
        error.set_status_code(status);
    }
    error
}
