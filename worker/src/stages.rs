//! How many pictures are in each stage of the way through a worker: begun, decoded, looked up. Each stage takes the next
//! picture only when there is room, so that memory is bounded and no core waits for a download.

use std::sync::Arc;

use shared::config::Config;
use shared::job::Lane;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cores::Cores;

/// Attempts that are begun for each picture that may be decoded: the others are being fetched, looked up or recorded.
const BEGUN: usize = 2;
/// The part of the database's connections that bulk searches may take.
const SEARCH_SHARE: usize = 4;

/// The stages of a worker; cheap to clone.
#[derive(Clone, Debug)]
pub struct Stages {
    begun: [Arc<Semaphore>; 2],
    decoded: [Arc<Semaphore>; 2],
    searching: [Arc<Semaphore>; 2],
    /// Who may use a core.
    pub cores: Cores,
}

/// A place in a stage, until it is dropped.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "it is held, not read")] Option<OwnedSemaphorePermit>);

impl Stages {
    /// Those that the settings allow.
    pub fn configured(config: &Config) -> Self {
        let worker = &config.worker;
        let both = |room: usize| [(); 2].map(|()| Arc::new(Semaphore::new(room)));
        let connections = usize::try_from(config.database.connections).unwrap_or(usize::MAX);
        let searches = [worker.concurrency(), (connections / SEARCH_SHARE).clamp(1, worker.cores())];
        Self {
            begun: both(BEGUN * worker.concurrency()),
            decoded: both(worker.concurrency()),
            searching: searches.map(|room| Arc::new(Semaphore::new(room))),
            cores: Cores::new(worker.cores()),
        }
    }

    /// Waits until another attempt of that lane may begin: no more begin than the stages after this have room for, so that
    /// the time an attempt may take is not spent waiting for others of its message.
    pub async fn begin(&self, lane: Lane) -> Place {
        enter(&self.begun[line(lane)]).await
    }

    /// Waits until a picture of that lane may be decoded.
    pub async fn decode(&self, lane: Lane) -> Place {
        enter(&self.decoded[line(lane)]).await
    }

    /// Waits until the faces of a picture of that lane may be looked up.
    pub async fn search(&self, lane: Lane) -> Place {
        enter(&self.searching[line(lane)]).await
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
