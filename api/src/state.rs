//! What every handler may touch.

use std::sync::Arc;

use shared::config::{Config, ServerConfig};
use shared::db::Db;
use shared::finished::FinishedJobs;
use shared::health::Check;
use shared::models::Models;
use shared::objects::ObjectStore;
use shared::queue::JobQueue;
use shared::secret_key::SecretKey;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Gate;
use crate::backlog::Backlog;
use crate::buffered::BodyRoom;
use crate::in_flight::InFlightKeys;

/// Exports at once.
const EXPORTS: usize = 2;
/// Imports at once: each holds up to a portion of its file.
const IMPORTS: usize = 2;

/// See the module; cheap to clone.
#[derive(Clone)]
#[expect(missing_docs, reason = "the names say it")]
pub struct AppState {
    pub config: Arc<Config>,
    /// The models that are registered.
    pub models: Arc<Models>,
    /// What secrets in the database are encrypted with.
    pub secret_key: SecretKey,
    pub db: Db,
    pub queue: Arc<dyn JobQueue>,
    pub objects: Arc<dyn ObjectStore>,
    pub finished: FinishedJobs,
    /// Who is let in.
    pub gate: Arc<Gate>,
    /// Where its jobs are run.
    pub workers: Workers,
    /// How much waits, and whether more is taken.
    pub backlog: Arc<Backlog>,
    /// What `/readyz` tries.
    pub checks: Vec<Check>,
    /// Idempotency keys of requests that are being answered.
    pub in_flight: InFlightKeys,
    /// Room for what lasts or takes memory.
    pub places: Places,
    /// What goes on while an answer is sent; waited for when the process stops.
    pub tasks: TaskTracker,
    /// Ends waits when the process stops.
    pub stop: CancellationToken,
}

/// Where jobs are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// In this process, and nowhere else.
    Here,
    /// In other processes, of which there may be more in a moment.
    Elsewhere,
}

/// How much of what lasts, or takes memory, goes on at once; cheap to clone.
#[derive(Clone, Debug)]
pub struct Places {
    /// Exports: each holds a connection to the database as long as it takes.
    pub exports: Arc<Semaphore>,
    /// Imports.
    pub imports: Arc<Semaphore>,
    /// Streams of events.
    pub event_streams: Arc<Semaphore>,
    /// Bodies that are held in memory.
    pub bodies: BodyRoom,
}

impl Places {
    /// All of them free.
    pub fn configured(server: &ServerConfig) -> Self {
        Self {
            exports: Arc::new(Semaphore::new(EXPORTS)),
            imports: Arc::new(Semaphore::new(IMPORTS)),
            event_streams: Arc::new(Semaphore::new(server.max_event_streams)),
            bodies: BodyRoom::new(server.max_buffered_bytes),
        }
    }
}
