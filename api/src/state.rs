//! What every handler may touch.

use std::pin::Pin;
use std::sync::Arc;

use shared::catalogue::Catalogue;
use shared::config::Config;
use shared::db::Db;
use shared::finished::FinishedJobs;
use shared::objects::ObjectStore;
use shared::queue::JobQueue;
use tokio_util::sync::CancellationToken;

/// What a readiness check found: nothing, or what is wrong.
pub type CheckResult = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// One thing that must work before requests make sense.
#[derive(Clone)]
pub struct Check {
    /// Its name in `/readyz`.
    pub name: &'static str,
    /// Tries it.
    pub run: Arc<dyn Fn() -> CheckResult + Send + Sync>,
}

/// See the module; cheap to clone.
#[derive(Clone)]
#[expect(missing_docs, reason = "the names say it")]
pub struct AppState {
    pub config: Arc<Config>,
    pub catalogue: Arc<Catalogue>,
    pub db: Db,
    pub queue: Arc<dyn JobQueue>,
    pub objects: Arc<dyn ObjectStore>,
    pub finished: FinishedJobs,
    /// What `/readyz` tries beside the database.
    pub checks: Vec<Check>,
    /// Ends waits when the process stops.
    pub stop: CancellationToken,
}
