//! What `face-id-api` and `face-id api` do: put the API together on PostgreSQL, RabbitMQ and S3, and serve.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use shared::backends::Backends;
use shared::catalogue::Catalogue;
use shared::config::Config;
use shared::db::Db;
use shared::db::api_keys::lookup::any_good;
use shared::models::Models;
use shared::process;
use shared::queue::JobQueue as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{Door, Gate};
use crate::backlog::Backlog;
use crate::in_flight::InFlightKeys;
use crate::serve::serve_within;
use crate::state::{AppState, Places, Workers};

/// How long requests that are under way at the stop may take.
const REQUESTS_GRACE: Duration = Duration::from_secs(10);

/// Arguments of the command.
#[derive(clap::Args, Debug)]
pub struct ApiArgs {
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<SocketAddr>,
}

/// Serves until SIGTERM or Ctrl-C.
///
/// # Errors
/// The settings make no sense, the database is out of reach or not migrated, or the address is taken.
pub async fn run(mut config: Config, args: ApiArgs) -> anyhow::Result<()> {
    config.server.bind = args.bind.unwrap_or(config.server.bind);
    config.check()?;
    process::begin(&config).map_err(|e| anyhow::anyhow!("set up logs and metrics: {e}"))?;
    let config = Arc::new(config);
    let stop = CancellationToken::new();
    let watching = tokio::spawn(process::watch(stop.clone()));

    let entries = Catalogue::entries(config.models.catalogue_dir())?;
    let backends = Backends::open(&config, None).await?;
    let models = Arc::new(Models::open(&backends.db, &entries).await?);
    require_key(&backends.db).await?;
    let tasks = TaskTracker::new();
    let state = AppState {
        config: Arc::clone(&config),
        models,
        secret_key: backends.secret_key.clone(),
        db: backends.db.clone(),
        queue: backends.queue.clone(),
        objects: backends.objects.clone(),
        finished: backends.finished.clone(),
        gate: Arc::new(Gate::new(backends.db.clone(), config.limits, Door::NeedsKey, tasks.clone())),
        workers: Workers::Elsewhere,
        checks: backends.checks(),
        backlog: Arc::new(Backlog::configured(&config.server)),
        in_flight: InFlightKeys::default(),
        places: Places::configured(&config.server),
        tasks,
        stop: stop.clone(),
    };
    let listener =
        TcpListener::bind(config.server.bind).await.with_context(|| format!("listen on {}", config.server.bind))?;
    announce(&listener)?;
    let hearing = tokio::spawn(backends.hear_ends(stop.clone()));
    serve_within(listener, state, REQUESTS_GRACE).await;
    stop.cancel();
    let _ = hearing.await;
    backends.queue.close().await;
    watching.abort();
    backends.db.close().await.context("close the database")
}

/// Refuses to serve where nobody could call.
///
/// # Errors
/// There is no key that is good, or the database does not answer.
pub async fn require_key(db: &Db) -> anyhow::Result<()> {
    anyhow::ensure!(
        any_good(db).await.context("look for API keys")?,
        "there is no valid API key, so that nobody could call: make one with \
         `face-id keys create --name NAME --scope admin`, then start this again"
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "whoever started the server reads its address here")]
fn announce(listener: &TcpListener) -> anyhow::Result<()> {
    use std::io::Write as _;
    println!("listening on http://{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    Ok(())
}
