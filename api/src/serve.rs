//! Takes connections until it is told to stop.

use tokio::net::TcpListener;

use crate::router::router;
use crate::state::AppState;

/// Answers requests on `listener` until the state's `stop`, then finishes those that are under way.
pub async fn serve(listener: TcpListener, state: AppState) -> std::io::Result<()> {
    let stop = state.stop.clone();
    axum::serve(listener, router(state)).with_graceful_shutdown(async move { stop.cancelled().await }).await
}
