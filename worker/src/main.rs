//! `face-id-worker`: takes jobs from RabbitMQ, pictures from S3, and writes results to PostgreSQL.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use shared::backends::Backends;
use shared::catalogue::Catalogue;
use shared::config::Config;
use shared::face_index::pgvector::{PgvectorFaceIndex, has_partition};
use shared::health::Check;
use shared::queue::JobQueue as _;
use shared::{process, queue};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use worker::assets::Assets;
use worker::context::{Engines, Pulse, WorkerContext};
use worker::inference::EngineOptions;
use worker::probes;

/// A worker of face-id: detects, aligns and embeds faces for jobs that face-id-api accepted.
#[derive(Parser)]
#[command(name = "face-id-worker", version, about, max_term_width = 110)]
struct Cli {
    /// A TOML file whose settings override the defaults (see `face-id config`).
    #[arg(long, env = "FACE_ID_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Accept the non-commercial licence of this pipeline's weights (repeatable).
    #[arg(long, value_name = "PIPELINE")]
    accept_license: Vec<String>,
}

/// The consumer looks for work at least every few seconds, unless all its slots are taken by jobs, which end by their
/// timeout; this much later it stands still.
const STANDSTILL: Duration = Duration::from_secs(20);

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime.context("start the runtime").and_then(|runtime| {
        let done = runtime.block_on(run(cli));
        // Work on the blocking pool that hangs must not keep a stopped process alive.
        runtime.shutdown_timeout(Duration::from_secs(5));
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

async fn run(cli: Cli) -> anyhow::Result<()> {
    let mut config = Config::load(cli.config.as_deref())?;
    config.models.accepted_licences.extend(cli.accept_license);
    process::begin(&config).map_err(|e| anyhow::anyhow!("set up logs and metrics: {e}"))?;
    let config = Arc::new(config);
    let stop = CancellationToken::new();
    let watching = tokio::spawn(process::watch(stop.clone()));

    let catalogue = Arc::new(Catalogue::load(config.models.catalogue_dir())?);
    let pipelines = pipelines(&config, &catalogue)?;
    let backends = Backends::open(&config, Some(pipelines.clone())).await?;
    for pipeline in &pipelines {
        let there = has_partition(&backends.db, pipeline).await.context("look for the pipeline's vectors")?;
        anyhow::ensure!(there, "the database has no place for vectors of the pipeline {pipeline}: run `face-id migrate`");
    }
    let context = context(&config, &catalogue, &backends).await?;
    let listener = TcpListener::bind(config.worker.probes_bind)
        .await
        .with_context(|| format!("listen on {} (worker.probes_bind)", config.worker.probes_bind))?;
    tracing::info!(probes = %listener.local_addr()?, pipelines = pipelines.join(","), "worker started");
    announce(&listener)?;
    // The probes answer, and ends are told, for as long as jobs run.
    let working = CancellationToken::new();
    let probes = tokio::spawn(probes::serve(listener, checks(&backends, &context), working.clone()));
    let telling = tokio::spawn(backends.tell_ends(working.clone()));
    let worked = worker::run(context, stop).await;
    backends.queue.close().await;
    working.cancel();
    let _ = telling.await;
    let probed = probes.await.context("the probes panicked")?;
    watching.abort();
    backends.db.close().await.context("close the database")?;
    worked.and(probed)
}

/// The pipelines whose jobs this worker takes.
fn pipelines(config: &Config, catalogue: &Catalogue) -> anyhow::Result<Vec<String>> {
    if config.worker.pipelines.is_empty() {
        return Ok(catalogue.usable(&config.models.accepted_licences).map(|p| p.name.clone()).collect());
    }
    for name in &config.worker.pipelines {
        catalogue.pipeline(name).context("worker.pipelines")?;
    }
    Ok(config.worker.pipelines.clone())
}

async fn context(config: &Arc<Config>, catalogue: &Arc<Catalogue>, backends: &Backends) -> anyhow::Result<WorkerContext> {
    let assets = Assets::configured(config);
    let options = EngineOptions::for_cpu(config.worker.sessions());
    let engines = Arc::new(Engines::new(Arc::clone(catalogue), assets, options));
    let pipeline = &config.models.default_pipeline;
    engines.get(pipeline).await.with_context(|| format!("load the default pipeline {pipeline}"))?;
    Ok(WorkerContext {
        config: Arc::clone(config),
        db: backends.db.clone(),
        queue: Arc::clone(&backends.queue) as Arc<dyn queue::JobQueue>,
        objects: backends.objects.clone(),
        face_index: Arc::new(PgvectorFaceIndex::new(backends.db.clone(), config.face_index.hnsw_from)),
        finished: backends.finished.clone(),
        engines,
        pulse: Pulse::new(),
    })
}

fn checks(backends: &Backends, context: &WorkerContext) -> Vec<Check> {
    let mut checks = backends.checks();
    checks.push(context.engines.check(context.config.models.default_pipeline.clone()));
    let pulse = context.pulse.clone();
    let limit = STANDSTILL + Duration::from_secs_f64(context.config.worker.job_timeout_s);
    checks.push(Check::new("consumer", move || {
        let age = pulse.age();
        async move {
            if age < limit { Ok(()) } else { Err(format!("has not looked for work for {} s", age.as_secs())) }
        }
    }));
    checks
}

#[expect(clippy::print_stdout, reason = "whoever started the worker reads the probes' address here")]
fn announce(listener: &TcpListener) -> anyhow::Result<()> {
    use std::io::Write as _;
    println!("probes on http://{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    Ok(())
}

#[expect(clippy::print_stderr, reason = "the user must see why the program failed")]
fn report(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}
