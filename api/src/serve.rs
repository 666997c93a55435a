//! Takes requests until it is told to stop.

use std::time::Duration;

use shared::models::LOOK_EVERY;
use tokio::net::TcpListener;

use crate::backlog;
use crate::connections::Connections;
use crate::router::router;
use crate::state::AppState;

/// Answers requests on `listener` until the state's `stop`, then finishes those that are under way, as far as they end
/// within `grace`, and so what goes on for their answers.
pub async fn serve_within(listener: TcpListener, state: AppState, grace: Duration) {
    let (stop, tasks) = (state.stop.clone(), state.tasks.clone());
    let mut connections = Connections::new(&state.config.server, router(state.clone()));
    let following = tokio::spawn(follow_models(state.clone()));
    let watching = tokio::spawn(backlog::watch(state));
    connections.take(listener, &stop).await;
    connections.end(grace).await;
    // They end with the token that ended the taking of connections.
    let _ = watching.await;
    let _ = following.await;
    tasks.close();
    if tokio::time::timeout(grace, tasks.wait()).await.is_err() {
        tracing::warn!("an export, or the clearing of a collection, was still under way after the grace period");
    }
}

/// Reads what other processes register, until the state's `stop`.
async fn follow_models(state: AppState) {
    loop {
        tokio::select! {
            () = state.stop.cancelled() => break,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if let Err(error) = state.models.refresh().await {
            tracing::warn!(%error, "look at the registered models");
        }
    }
}
