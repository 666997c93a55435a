//! `face-id-api`: accepts jobs over HTTP for the workers of the same PostgreSQL, RabbitMQ and S3 bucket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::state::AppState;
use clap::Parser;
use shared::backends::Backends;
use shared::catalogue::Catalogue;
use shared::config::Config;
use shared::process;
use shared::queue::JobQueue as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The HTTP API of face-id: takes pictures and jobs, answers 202, and tells what became of them.
#[derive(Parser)]
#[command(name = "face-id-api", version, about, max_term_width = 110)]
struct Cli {
    /// A TOML file whose settings override the defaults (see `face-id config`).
    #[arg(long, env = "FACE_ID_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<std::net::SocketAddr>,
}

/// How long requests that are under way at the stop may take.
const REQUESTS_GRACE: Duration = Duration::from_secs(10);

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.context("start the runtime").and_then(|runtime| runtime.block_on(run(cli))) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let mut config = Config::load(cli.config.as_deref())?;
    config.server.bind = cli.bind.unwrap_or(config.server.bind);
    config.check()?;
    process::begin(&config).map_err(|e| anyhow::anyhow!("set up logs and metrics: {e}"))?;
    let config = Arc::new(config);
    let stop = CancellationToken::new();
    let watching = tokio::spawn(process::watch(stop.clone()));

    let catalogue = Arc::new(Catalogue::load(config.models.catalogue_dir())?);
    let backends = Backends::open(&config, None).await?;
    let state = AppState {
        config: Arc::clone(&config),
        catalogue,
        db: backends.db.clone(),
        queue: backends.queue.clone(),
        objects: backends.objects.clone(),
        finished: backends.finished.clone(),
        checks: backends.checks(),
        stop: stop.clone(),
    };
    let listener =
        TcpListener::bind(config.server.bind).await.with_context(|| format!("listen on {}", config.server.bind))?;
    announce(&listener)?;
    let hearing = tokio::spawn(backends.hear_ends(stop.clone()));
    let served = api::serve_within(listener, state, REQUESTS_GRACE).await;
    stop.cancel();
    let _ = hearing.await;
    backends.queue.close().await;
    watching.abort();
    backends.db.close().await.context("close the database")?;
    served.context("serve HTTP")
}

#[expect(clippy::print_stdout, reason = "whoever started the server reads its address here")]
fn announce(listener: &TcpListener) -> anyhow::Result<()> {
    use std::io::Write as _;
    println!("listening on http://{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    Ok(())
}

#[expect(clippy::print_stderr, reason = "the user must see why the program failed")]
fn report(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}
