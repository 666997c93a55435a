//! Takes connections until it is told to stop.

use std::time::Duration;

use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;

use crate::router::router;
use crate::state::AppState;

/// Answers requests on `listener` until the state's `stop`, then finishes those that are under way, as far as they end
/// within `grace`, and so what goes on for their answers.
pub async fn serve_within(listener: TcpListener, state: AppState, grace: Duration) -> std::io::Result<()> {
    let (stop, tasks) = (state.stop.clone(), state.tasks.clone());
    let too_long = {
        let stop = stop.clone();
        async move {
            stop.cancelled().await;
            tokio::time::sleep(grace).await;
        }
    };
    let listener = listener.tap_io(|connection| {
        // An answer is not held back until the client has acknowledged the one before.
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "a connection may be slow");
        }
    });
    let serving = axum::serve(listener, router(state)).with_graceful_shutdown(async move { stop.cancelled().await });
    let served = tokio::select! {
        served = serving => served,
        () = too_long => {
            tracing::warn!("requests were still under way after the grace period");
            Ok(())
        }
    };
    tasks.close();
    if tokio::time::timeout(grace, tasks.wait()).await.is_err() {
        tracing::warn!("an export was still under way after the grace period");
    }
    served
}
