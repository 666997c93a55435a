//! What every server process does at its start and end: logs, metrics, signals.

use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::telemetry;

/// How often gathered metrics are folded.
const FOLD_EVERY: Duration = Duration::from_secs(5);

/// Longest wait for work on the blocking pool that hangs, which must not keep a stopped process alive.
const BLOCKING_GRACE: Duration = Duration::from_secs(5);

/// Runs a program's whole work on a runtime of its own, and tells on standard error why it failed.
pub fn run_to_end(work: impl Future<Output = anyhow::Result<()>>) -> std::process::ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime.context("start the runtime").and_then(|runtime| {
        let done = runtime.block_on(work);
        runtime.shutdown_timeout(BLOCKING_GRACE);
        done
    });
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            std::process::ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the user must see why the program failed")]
fn report(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

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
