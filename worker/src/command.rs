//! What `face-id-worker` and `face-id worker` do: put the worker together on PostgreSQL, RabbitMQ and S3, and work.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use shared::backends::Backends;
use shared::catalogue::Catalogue;
use shared::config::Config;
use shared::face_index::pgvector::PgvectorFaceIndex;
use shared::health::Check;
use shared::models::Models;
use shared::objects::ImportRoots;
use shared::process;
use shared::queue::JobQueue;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::assets::Assets;
use crate::calibrations::Calibrations;
use crate::context::{Pulse, WorkerContext};
use crate::engines::Engines;
use crate::inference::EngineOptions;
use crate::liveness::Liveness;
use crate::models::Running;
use crate::offer::Offer;
use crate::probes;
use crate::stages::Stages;

/// Each lane's consumer looks around at least every ten seconds, whatever its jobs do; one that has not for this long stands
/// still.
const STANDSTILL: Duration = Duration::from_secs(25);

/// Works until SIGTERM or Ctrl-C, then finishes or gives back what runs.
///
/// # Errors
/// The settings make no sense, the database is out of reach or not migrated, or the models cannot be loaded.
pub async fn run(config: Config) -> anyhow::Result<()> {
    process::begin(&config).map_err(|e| anyhow::anyhow!("set up logs and metrics: {e}"))?;
    let config = Arc::new(config);
    let stop = CancellationToken::new();
    let watching = tokio::spawn(process::watch(stop.clone()));

    let entries = Catalogue::entries(config.models.catalogue_dir())?;
    // Which pipelines it takes jobs of is said once they were tried.
    let backends = Backends::open(&config, Some(Vec::new())).await?;
    let models = Arc::new(Models::open(&backends.db, &entries).await?);
    let engines = engines(&config, Arc::clone(&models)).await?;
    // After them: what the default pipeline has fetched is there.
    let offer = offer(&config, &models.now(), &engines).await?;
    let context = context(&config, engines, offer, &backends);
    context.running.beat(&backends.db).await.context("say that this worker is there")?;
    let pipelines = context.running.served().pipelines;
    backends.queue.bind(&pipelines).await.context("bind to the queues")?;
    let listener = TcpListener::bind(config.worker.probes_bind)
        .await
        .with_context(|| format!("listen on {} (worker.probes_bind)", config.worker.probes_bind))?;
    tracing::info!(probes = %listener.local_addr()?, pipelines = pipelines.join(","), "worker started");
    announce(&listener)?;
    // The probes answer, and ends are told, for as long as jobs run.
    let working = CancellationToken::new();
    let probes = tokio::spawn(probes::serve(listener, checks(&backends, &context), working.clone()));
    let telling = tokio::spawn(backends.tell_ends(working.clone()));
    let worked = crate::run(context, stop).await;
    backends.queue.close().await;
    working.cancel();
    let _ = telling.await;
    let probed = probes.await.context("the probes panicked")?;
    watching.abort();
    backends.db.close().await.context("close the database")?;
    worked.and(probed)
}

/// The engines, with that of the default pipeline.
async fn engines(config: &Config, models: Arc<Models>) -> anyhow::Result<Arc<Engines>> {
    let (assets, options) = (Assets::configured(config), EngineOptions::configured(&config.worker));
    let engines = Arc::new(Engines::new(models, assets, options, config.worker.models_memory()));
    let pipeline = &config.models.default_pipeline;
    engines.get(pipeline).await.with_context(|| format!("load the default pipeline {pipeline}"))?;
    Ok(engines)
}

/// The pipelines whose jobs this worker takes.
async fn offer(config: &Config, catalogue: &Catalogue, engines: &Engines) -> anyhow::Result<Offer> {
    let (assets, options) = (engines.assets(), engines.options());
    // An empty variable is a list of one empty name.
    let named: Vec<String> = config.worker.pipelines.iter().filter(|name| !name.is_empty()).cloned().collect();
    if named.is_empty() {
        return Ok(Offer::of_all(catalogue, assets, options).await);
    }
    Offer::of_named(&named, catalogue, assets, options).await
}

fn context(config: &Arc<Config>, engines: Arc<Engines>, offer: Offer, backends: &Backends) -> WorkerContext {
    WorkerContext {
        config: Arc::clone(config),
        secret_key: backends.secret_key.clone(),
        db: backends.db.clone(),
        queue: Arc::clone(&backends.queue) as Arc<dyn JobQueue>,
        objects: backends.objects.clone(),
        import_roots: ImportRoots::new(config.import.roots.clone()),
        face_index: Arc::new(PgvectorFaceIndex::new(backends.db.clone(), config.face_index.hnsw_from)),
        finished: backends.finished.clone(),
        liveness: Arc::new(Liveness::configured(config, engines.assets().clone(), engines.options().clone())),
        engines,
        calibrations: Calibrations::default(),
        running: Running::new(offer),
        stages: Stages::configured(config),
        pulse: Pulse::new(),
        listed: Arc::new(Notify::new()),
    }
}

fn checks(backends: &Backends, context: &WorkerContext) -> Vec<Check> {
    let mut checks = backends.checks();
    checks.push(context.running.check());
    checks.push(context.engines.check(context.config.models.default_pipeline.clone()));
    let pulse = context.pulse.clone();
    checks.push(Check::new("consumer", move || {
        let age = pulse.age();
        async move {
            if age < STANDSTILL { Ok(()) } else { Err(format!("has not looked for work for {} s", age.as_secs())) }
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
