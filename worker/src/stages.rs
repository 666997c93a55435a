//! How many pictures are in each stage of the way through a worker: begun, fetched and waiting, decoded, on a core. Each stage
//! takes the next picture only when there is room, so that memory is bounded and no core waits for a download.

use std::sync::Arc;

use shared::config::WorkerConfig;
use shared::job::Lane;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cores::Cores;

/// Pictures that are fetched, or wait to be decoded, for each that may be decoded: a download takes several times as long
/// as an analysis.
const FETCHING: usize = 4;

/// The stages of a worker; cheap to clone.
#[derive(Clone, Debug)]
pub struct Stages {
    begun: [Arc<Semaphore>; 2],
    fetching: [Arc<Semaphore>; 2],
    decoded: [Arc<Semaphore>; 2],
    /// Who may use a core.
    pub cores: Cores,
}

/// A place in a stage, until it is dropped.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "it is held, not read")] Option<OwnedSemaphorePermit>);

impl Stages {
    /// Those that the settings allow.
    pub fn configured(config: &WorkerConfig) -> Self {
        let both = |room: usize| [(); 2].map(|()| Arc::new(Semaphore::new(room)));
        Self {
            begun: both((FETCHING + 1) * config.concurrency()),
            fetching: both(FETCHING * config.concurrency()),
            decoded: both(config.concurrency()),
            cores: Cores::new(config.sessions()),
        }
    }

    /// Waits until another attempt of that lane may begin: no more begin than the stages after this have room for, so that
    /// the time an attempt may take is not spent waiting for others of its message.
    pub async fn begin(&self, lane: Lane) -> Place {
        enter(&self.begun[line(lane)]).await
    }

    /// Waits until a picture of that lane may be fetched.
    pub async fn fetch(&self, lane: Lane) -> Place {
        enter(&self.fetching[line(lane)]).await
    }

    /// Waits until a picture of that lane may be decoded.
    pub async fn decode(&self, lane: Lane) -> Place {
        enter(&self.decoded[line(lane)]).await
    }
}

fn line(lane: Lane) -> usize {
    match lane {
        Lane::Interactive => 0,
        Lane::Bulk => 1,
    }
}

async fn enter(stage: &Arc<Semaphore>) -> Place {
    // It is never closed.
    Place(Arc::clone(stage).acquire_owned().await.ok())
}
