//! Word that a job has ended, for those who wait for it in this process.

use tokio::sync::broadcast;

use crate::ids::JobId;

/// How many ends a slow listener may lag behind; it then looks at its job itself.
const BACKLOG: usize = 1024;

/// A channel of ended jobs' ids. Nothing rests on it: a listener also looks at its job once a second.
#[derive(Clone, Debug)]
pub struct FinishedJobs {
    anywhere: broadcast::Sender<JobId>,
    here: broadcast::Sender<JobId>,
}

impl FinishedJobs {
    /// A channel without listeners.
    #[expect(clippy::new_without_default, reason = "it is a channel's end, of which no default makes sense")]
    pub fn new() -> Self {
        Self { anywhere: broadcast::channel(BACKLOG).0, here: broadcast::channel(BACKLOG).0 }
    }

    /// Tells that this process has ended a job; call it after the commit.
    pub fn announce(&self, job: JobId) {
        self.announce_from_elsewhere(job);
        // An error only says that nobody listens.
        let _ = self.here.send(job);
    }

    /// Tells that another process has ended a job.
    pub fn announce_from_elsewhere(&self, job: JobId) {
        let _ = self.anywhere.send(job);
    }

    /// Returns at the next end of this job, or when the listener lagged behind and must look for itself.
    pub fn listen(&self) -> FinishedListener {
        FinishedListener(self.anywhere.subscribe())
    }

    /// The jobs that this process ends from now on, to tell others. Those that others told of are not among them, or
    /// two processes would tell each other for ever.
    pub fn ended_here(&self) -> broadcast::Receiver<JobId> {
        self.here.subscribe()
    }
}

/// A listener; what ends after it was made reaches it.
#[derive(Debug)]
pub struct FinishedListener(broadcast::Receiver<JobId>);

impl FinishedListener {
    /// Waits until jobs have ended, here or elsewhere; how many.
    pub async fn some(&mut self) -> u64 {
        match self.0.recv().await {
            Ok(_) => 1,
            Err(broadcast::error::RecvError::Lagged(missed)) => missed,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }

    /// Waits until `job` may have ended.
    pub async fn wait_for(&mut self, job: JobId) {
        loop {
            match self.0.recv().await {
                Ok(ended) if ended != job => {}
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                // Nobody will tell any more: the caller's own poll and timeout end the wait.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}
