//! All that a job may touch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shared::config::Config;
use shared::db::Db;
use shared::db::entity::job::Model as Job;
use shared::face_index::FaceIndex;
use shared::finished::FinishedJobs;
use shared::job::Lane;
use shared::objects::{ImportRoots, ObjectStore};
use shared::queue::JobQueue;
use shared::secret_key::SecretKey;
use tokio::sync::Notify;

use crate::calibrations::Calibrations;
use crate::engines::{Engines, EnginesError};
use crate::inference::Engine;
use crate::liveness::Liveness;
use crate::models::Running;
use crate::stages::Stages;
use crate::vision::decode::DecodeLimits;

/// What every job of a worker shares; cheap to clone.
#[derive(Clone)]
pub struct WorkerContext {
    /// Settings.
    pub config: Arc<Config>,
    /// What secrets in the database are encrypted with.
    pub secret_key: SecretKey,
    /// The database.
    pub db: Db,
    /// Where messages come from.
    pub queue: Arc<dyn JobQueue>,
    /// Where pictures lie.
    pub objects: Arc<dyn ObjectStore>,
    /// The folders of this machine that pictures may be read from.
    pub import_roots: ImportRoots,
    /// Who is near a vector.
    pub face_index: Arc<dyn FaceIndex>,
    /// Whom to tell of ended jobs.
    pub finished: FinishedJobs,
    /// The models.
    pub engines: Arc<Engines>,
    /// What tells live faces from pictures of them.
    pub liveness: Arc<Liveness>,
    /// What their scores mean.
    pub calibrations: Calibrations,
    /// Which of them this process runs.
    pub running: Running,
    /// Room for pictures.
    pub stages: Stages,
    /// When the consumer last looked for work.
    pub pulse: Pulse,
    /// Wakes the dispatcher of this process when its lister has made jobs.
    pub listed: Arc<Notify>,
}

/// A sign of life of each lane's consumer: one that stands still can be seen from outside.
#[derive(Clone, Debug)]
pub struct Pulse {
    began: Instant,
    last_ms: Arc<[AtomicU64; 2]>,
}

impl Pulse {
    /// A pulse that has just beaten.
    #[expect(clippy::new_without_default, reason = "its value is the moment at which it is made")]
    pub fn new() -> Self {
        Self { began: Instant::now(), last_ms: Arc::default() }
    }

    /// Says that a lane's consumer goes on.
    #[expect(clippy::cast_possible_truncation, reason = "2^64 ms are long over")]
    pub fn beat(&self, lane: Lane) {
        let last = match lane {
            Lane::Interactive => &self.last_ms[0],
            Lane::Bulk => &self.last_ms[1],
        };
        last.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// How long ago the consumer that stands still longer beat last.
    pub fn age(&self) -> Duration {
        let first = self.last_ms.iter().map(|last| last.load(Ordering::Relaxed)).min().unwrap_or_default();
        self.began.elapsed().saturating_sub(Duration::from_millis(first))
    }
}

impl WorkerContext {
    /// The models that the job is pinned to.
    pub(crate) async fn engine(&self, job: &Job) -> Result<Engine, EnginesError> {
        Ok(self.engines.get(&job.pipeline).await?.sharing(self.stages.cores.clone(), job.lane))
    }

    /// What a picture may cost at most.
    pub fn decode_limits(&self) -> DecodeLimits {
        let vision = &self.config.vision;
        DecodeLimits {
            max_bytes: vision.max_image_bytes,
            max_pixels: vision.max_image_pixels,
            max_side: vision.max_image_side,
        }
    }
}
