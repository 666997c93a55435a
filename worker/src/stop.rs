//! The end of a worker: asked for at one moment, and over at another, the same for every task.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// See the module; cheap to clone.
#[derive(Clone, Debug)]
pub struct Stop {
    asked: CancellationToken,
    over: CancellationToken,
}

impl Stop {
    /// A stop that `asked` begins; run [`Stop::count`] beside everything, or the grace period never ends.
    pub fn new(asked: CancellationToken) -> Self {
        Self { asked, over: CancellationToken::new() }
    }

    /// Ends the grace period, `grace` after the stop was asked for.
    pub(crate) async fn count(self, grace: Duration) {
        self.asked.cancelled().await;
        tokio::time::sleep(grace).await;
        self.over.cancel();
    }

    /// Whether no new work shall be begun.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.is_cancelled()
    }

    /// Returns when no new work shall be begun.
    pub(crate) async fn asked(&self) {
        self.asked.cancelled().await;
    }

    /// Returns when what still runs has to be given back.
    pub(crate) async fn over(&self) {
        self.over.cancelled().await;
    }
}
