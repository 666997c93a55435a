//! What every handler may touch.

use std::collections::BTreeSet;
use std::sync::Arc;

use shared::catalogue::Catalogue;
use shared::config::Config;
use shared::db::Db;
use shared::finished::FinishedJobs;
use shared::health::Check;
use shared::objects::ObjectStore;
use shared::queue::JobQueue;
use shared::secret_key::SecretKey;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Exports at once.
const EXPORTS: usize = 2;
/// Imports at once: each holds up to a portion of its file.
const IMPORTS: usize = 2;

/// See the module; cheap to clone.
#[derive(Clone)]
#[expect(missing_docs, reason = "the names say it")]
pub struct AppState {
    pub config: Arc<Config>,
    pub catalogue: Arc<Catalogue>,
    /// What secrets in the database are encrypted with.
    pub secret_key: SecretKey,
    pub db: Db,
    pub queue: Arc<dyn JobQueue>,
    pub objects: Arc<dyn ObjectStore>,
    pub finished: FinishedJobs,
    /// Pipelines that the worker in this process cannot run; none where workers are other processes.
    pub unrunnable: Arc<BTreeSet<String>>,
    /// What `/readyz` tries.
    pub checks: Vec<Check>,
    /// Places for exports: each holds a connection as long as it takes.
    pub exports: Arc<Semaphore>,
    /// Places for imports.
    pub imports: Arc<Semaphore>,
    /// What goes on while an answer is sent; waited for when the process stops.
    pub tasks: TaskTracker,
    /// Ends waits when the process stops.
    pub stop: CancellationToken,
}

impl AppState {
    /// As many places for exports as there are.
    pub fn places_for_exports() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(EXPORTS))
    }

    /// As many places for imports as there are.
    pub fn places_for_imports() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(IMPORTS))
    }
}
