//! `face-id serve`: API and worker in one process, on SQLite, a folder and the embedded queue.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::auth::{Door, Gate};
use api::backlog::Backlog;
use api::command::require_key;
use api::in_flight::InFlightKeys;
use api::state::{AppState, Places, Workers};
use migrations::{Migrator, MigratorTrait};
use shared::catalogue::Catalogue;
use shared::config::Config;
use shared::db::Db;
use shared::db::jobs::recovery::recover_all;
use shared::db::secret_key;
use shared::db::workers;
use shared::face_index::ExactFaceIndex;
use shared::finished::FinishedJobs;
use shared::health::Check;
use shared::models::Models;
use shared::objects::{FolderStore, ImportRoots};
use shared::process;
use shared::queue::EmbeddedQueue;
use shared::secret_key::SecretKey;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use worker::assets::Assets;
use worker::calibrations::Calibrations;
use worker::context::{Pulse, WorkerContext};
use worker::engines::Engines;
use worker::inference::EngineOptions;
use worker::liveness::Liveness;
use worker::models::Running;
use worker::offer::Offer;
use worker::stages::Stages;

#[derive(clap::Args)]
pub(crate) struct ServeArgs {
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<std::net::SocketAddr>,
    /// Where the database and the pictures live.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Stop when standard input ends, as it does with the command that holds its other end.
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

/// How long requests that are under way at the stop may take.
const REQUESTS_GRACE: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or Ctrl-C.
pub(crate) async fn run(mut config: Config, args: ServeArgs) -> anyhow::Result<()> {
    config.server.bind = args.bind.unwrap_or(config.server.bind);
    config.data_dir = args.data_dir.unwrap_or(config.data_dir);
    config.check()?;
    anyhow::ensure!(
        !config.has_services(),
        "database.url is set: `face-id serve` keeps everything in its data folder. Start face-id-api and face-id-worker, \
         or unset database.url, queue.url and objects.bucket"
    );
    process::begin(&config).map_err(|e| anyhow::anyhow!("set up logs and metrics: {e}"))?;
    let config = Arc::new(config);
    let stop = CancellationToken::new();
    let signals = tokio::spawn(process::watch(stop.clone()));
    if args.stop_with_stdin {
        stop_with_stdin(stop.clone())?;
    }

    let mut lock = Lock::take(&config.data_dir)?;
    let db = open_database(&config).await?;
    let door = door(&config, &db).await?;
    let key = SecretKey::configured_or_own(&config)?;
    secret_key::check(&db, &key).await?;
    let (state, context) = assemble(Arc::clone(&config), &db, door, key, &stop).await?;
    let listener =
        TcpListener::bind(config.server.bind).await.with_context(|| format!("listen on {}", config.server.bind))?;
    lock.tell(&format!("http://{}", listener.local_addr()?))?;
    announce(&listener)?;
    let served = tokio::join!(serve_both(listener, state, context, &stop), async {
        stop.cancelled().await;
        lock.tell("")
    });
    signals.abort();
    let served = served.0.and(served.1);
    db.close().await.context("close the database")?;
    served
}

/// Whoever reaches a loopback address may read the data folder as well, or is let in by somebody who does. Anywhere else
/// there has to be a key.
async fn door(config: &Config, db: &Db) -> anyhow::Result<Door> {
    if config.server.bind.ip().is_loopback() {
        return Ok(Door::OpenWithoutKeys);
    }
    require_key(db).await.with_context(|| format!("{} is not a loopback address", config.server.bind))?;
    Ok(Door::NeedsKey)
}

/// Runs both halves; when one ends, the other is stopped too.
async fn serve_both(
    listener: TcpListener,
    state: AppState,
    context: WorkerContext,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let queue = Arc::clone(&context.queue);
    let api = tokio::spawn({
        let stop = stop.clone();
        async move {
            api::serve_within(listener, state, REQUESTS_GRACE).await;
            stop.cancel();
        }
    });
    let worked = worker::run(context, stop.clone()).await;
    stop.cancel();
    queue.close().await;
    api.await.context("the HTTP server panicked")?;
    worked
}

/// Builds everything that both halves share, and loads the default pipeline so that a missing file shows at once.
async fn assemble(
    config: Arc<Config>,
    db: &Db,
    door: Door,
    secret_key: SecretKey,
    stop: &CancellationToken,
) -> anyhow::Result<(AppState, WorkerContext)> {
    let models = Arc::new(Models::open(db, &Catalogue::entries(config.models.catalogue_dir())?).await?);
    let objects = Arc::new(FolderStore::open(config.data_dir.join("objects")).await?);
    let queue = Arc::new(EmbeddedQueue::new(usize::try_from(config.queue.capacity)?));
    let finished = FinishedJobs::new();
    let options = EngineOptions::configured(&config.worker);
    let assets = Assets::configured(&config);
    let engines = Arc::new(Engines::new(Arc::clone(&models), assets, options, config.worker.models_memory()));
    let pipeline = config.models.default_pipeline.clone();
    engines.get(&pipeline).await.with_context(|| format!("load the default pipeline {pipeline}"))?;
    // After it: what it has fetched is there.
    let offer = Offer::of_all(&models.now(), engines.assets(), engines.options()).await;
    let context = WorkerContext {
        config: Arc::clone(&config),
        secret_key: secret_key.clone(),
        db: db.clone(),
        queue: queue.clone(),
        objects: objects.clone(),
        import_roots: ImportRoots::new(config.import.roots.clone()),
        face_index: Arc::new(ExactFaceIndex::new(db.clone())),
        finished: finished.clone(),
        engines: Arc::clone(&engines),
        liveness: Arc::new(Liveness::configured(&config, engines.assets().clone(), engines.options().clone())),
        calibrations: Calibrations::default(),
        running: Running::new(offer),
        stages: Stages::configured(&config),
        pulse: Pulse::new(),
        listed: Arc::new(Notify::new()),
    };
    let database = db.clone();
    let checks = vec![
        Check::new("database", move || {
            let db = database.clone();
            async move { db.ping().await }
        }),
        engines.check(pipeline),
        context.running.check(),
    ];
    context.running.beat(db).await.context("say what this server runs")?;
    let tasks = TaskTracker::new();
    let state = AppState {
        gate: Arc::new(Gate::new(db.clone(), config.limits, door, tasks.clone())),
        backlog: Arc::new(Backlog::configured(&config.server)),
        in_flight: InFlightKeys::default(),
        places: Places::configured(&config.server),
        config,
        models,
        secret_key,
        db: db.clone(),
        queue,
        objects,
        finished,
        workers: Workers::Here,
        checks,
        tasks,
        stop: stop.clone(),
    };
    Ok((state, context))
}

/// The data folder's lock: whoever holds it knows that every earlier server on it is gone. Its file says where the server
/// listens, for commands that find it taken.
pub(crate) struct Lock(File);

impl Lock {
    fn take(data_dir: &Path) -> anyhow::Result<Self> {
        Self::take_if_free(data_dir)?.with_context(|| {
            format!(
                "another face-id serves the data folder {}; stop it, or give this one a --data-dir of its own",
                data_dir.display()
            )
        })
    }

    /// `None` while somebody else holds it.
    pub(crate) fn take_if_free(data_dir: &Path) -> anyhow::Result<Option<Self>> {
        std::fs::create_dir_all(data_dir).with_context(|| format!("make the data folder {}", data_dir.display()))?;
        let path = data_dir.join("lock");
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        let file = open.with_context(|| format!("open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
            Err(std::fs::TryLockError::Error(e)) => return Err(e).context(format!("lock {}", path.display())),
        }
        let mut lock = Self(file);
        lock.tell("")?;
        Ok(Some(lock))
    }

    /// Says where the server listens; nowhere, while it starts or stops.
    fn tell(&mut self, address: &str) -> anyhow::Result<()> {
        let told = self.0.set_len(0).and_then(|()| self.0.rewind()).and_then(|()| self.0.write_all(address.as_bytes()));
        told.context("write the server's address into the data folder's lock")
    }
}

/// Stops the server when nothing more can come from standard input. The thread waits for that and ends with the process.
fn stop_with_stdin(stop: CancellationToken) -> anyhow::Result<()> {
    let wait = move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        tracing::info!("standard input has ended");
        stop.cancel();
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(wait).context("watch standard input")?;
    Ok(())
}

async fn open_database(config: &Config) -> anyhow::Result<Db> {
    let path = config.data_dir.join("face-id.sqlite");
    let db = Db::open_sqlite(&path, config.database.synchronous, config.database.read_connections)
        .await
        .with_context(|| format!("open the database in {}", config.data_dir.display()))?;
    Migrator::up(&db.write, None).await.context("migrate the database")?;
    workers::forget_all(&db).await.context("forget the worker of an earlier run")?;
    let recovered = recover_all(&db).await.context("recover the jobs of an earlier run")?;
    if recovered.requeued.len() + recovered.ended.len() > 0 {
        let (requeued, ended) = (recovered.requeued.len(), recovered.ended.len());
        tracing::warn!(requeued, ended, "an earlier run was interrupted; its jobs were recovered");
    }
    Ok(db)
}

#[expect(clippy::print_stdout, reason = "whoever started the server reads its address here")]
fn announce(listener: &TcpListener) -> anyhow::Result<()> {
    println!("listening on http://{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    Ok(())
}
