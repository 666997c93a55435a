//! What every server process does at its start and end: logs, metrics, signals.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::telemetry;

/// How often gathered metrics are folded.
const FOLD_EVERY: Duration = Duration::from_secs(5);

/// Sets up logs and metrics, and logs the settings without their secrets.
///
/// # Errors
/// The log filter does not parse.
pub fn begin(config: &Config) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    telemetry::init(&config.log)?;
    telemetry::metrics::install()?;
    tracing::debug!(settings = config.redacted()?, "starting");
    Ok(())
}

/// Cancels `stop` on SIGTERM or Ctrl-C, and keeps the metrics small until then. Run it beside everything else.
pub async fn watch(stop: CancellationToken) {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    let mut fold = tokio::time::interval(FOLD_EVERY);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = tokio::signal::ctrl_c() => break,
            _ = fold.tick() => telemetry::metrics::fold(),
        }
    }
    tracing::info!("stopping: what runs is finished or given back");
    stop.cancel();
}
