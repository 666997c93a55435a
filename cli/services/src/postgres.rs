//! PostgreSQL 16 with pgvector, from the binaries of the `pgserver` wheel.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use tokio::process::Command;
use tokio::sync::{Mutex, OnceCell};

use crate::guard::{Guarded, Service, last_lines};
use crate::ports::{Protocol, free_port, wait_for_answer};
use crate::unprivileged::{User, as_user, enterable, make_owned, reachable_programs};

/// The server's superuser, who needs no password from the loopback address.
const USER: &str = "face_id";
/// Longest wait for the server; one that was killed recovers first.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Where its programs lie in the wheel.
const PROGRAMS: &str = "pgserver/pginstall/bin";

/// A running server with a data folder of its own.
pub struct Postgres {
    programs: PathBuf,
    user: Option<User>,
    dir: PathBuf,
    port: u16,
    durable: bool,
    process: Mutex<Option<Guarded>>,
}

impl Postgres {
    /// Makes the data folder where there is none and starts the server on a free port. `durable`: what is committed
    /// survives a power cut, as in production; tests that only kill processes need no such wait.
    ///
    /// # Errors
    /// The binaries are missing, or the server does not start.
    pub async fn start(dir: &Path, durable: bool) -> anyhow::Result<Self> {
        Self::start_on(dir, free_port()?, durable).await
    }

    /// The same on a port of the caller's choice.
    ///
    /// # Errors
    /// See [`Postgres::start`].
    pub async fn start_on(dir: &Path, port: u16, durable: bool) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let user = User::find()?;
        let wheel = reachable_programs(user.as_ref(), &find_wheel()?, &format!("{PROGRAMS}/postgres"))?;
        let dir = enterable(user.as_ref(), dir)?;
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let server = Self { programs: wheel.join(PROGRAMS), user, dir, port, durable, process: Mutex::default() };
        if !server.data().is_dir() {
            server.init().await?;
        }
        server.restart().await?;
        Ok(server)
    }

    /// Where its data and its log are: the folder it was started with, or, where this process is root and the server's
    /// user may not enter that one, a folder below /var/tmp.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes a database with pgvector, unless it is there, and gives its URL.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn create_database(&self, name: &str) -> anyhow::Result<String> {
        let found = self.psql("postgres", &format!("SELECT 1 FROM pg_database WHERE datname = '{name}'")).await?;
        if found.trim().is_empty() {
            self.psql("postgres", &format!("CREATE DATABASE \"{name}\"")).await?;
        }
        self.psql(name, "SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS vector").await?;
        Ok(self.url(name))
    }

    /// Runs SQL and gives its rows, unaligned, without a header.
    ///
    /// # Errors
    /// The server is out of reach or refuses.
    pub async fn psql(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let output = Command::new(self.programs.join("psql"))
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(self.url(database))
            .args(["-c", sql])
            .output()
            .await
            .context("run psql")?;
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Ends the server as a crash of its machine would (`immediate`: no checkpoint, clients are cut off).
    ///
    /// # Errors
    /// It does not end.
    pub async fn crash(&self) -> anyhow::Result<()> {
        self.end(Signal::QUIT).await
    }

    /// Stops the server in order; clients are cut off.
    ///
    /// # Errors
    /// It does not end.
    pub async fn stop(&self) -> anyhow::Result<()> {
        self.end(Signal::INT).await
    }

    /// SIGKILL, as the kernel sends it where memory is short.
    ///
    /// # Errors
    /// It does not end.
    pub async fn kill(&self) -> anyhow::Result<()> {
        self.end(Signal::KILL).await
    }

    /// Freezes it: connections stay open and nothing answers, until [`Postgres::resume`].
    ///
    /// # Errors
    /// It does not run.
    pub async fn pause(&self) -> anyhow::Result<()> {
        self.process.lock().await.as_ref().context("PostgreSQL does not run")?.pause()
    }

    /// Goes on after [`Postgres::pause`].
    ///
    /// # Errors
    /// It does not run.
    pub async fn resume(&self) -> anyhow::Result<()> {
        self.process.lock().await.as_ref().context("PostgreSQL does not run")?.resume()
    }

    /// Starts it on its data again, after it was stopped where it runs.
    ///
    /// # Errors
    /// It does not start.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.stop().await?;
        let settings = [
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".to_owned(),
            // The path of one may be no longer than 107 bytes, which a folder's depth would decide.
            "unix_socket_directories=".to_owned(),
            format!("fsync={}", if self.durable { "on" } else { "off" }),
            "max_connections=200".to_owned(),
            "shared_buffers=256MB".to_owned(),
            "maintenance_work_mem=256MB".to_owned(),
            "log_min_messages=warning".to_owned(),
        ];
        let mut command = as_user(self.user.as_ref(), &self.programs.join("postgres"));
        command.extend(["-D".into(), self.data().into()]);
        command.extend(settings.iter().flat_map(|s| ["-c".into(), s.into()]));
        let log = self.dir.join("postgres.log");
        // SIGINT cuts clients off; on SIGTERM it would wait for them to leave.
        let service = Service { command: &command, variables: &[], log: &log, stop_signal: "INT" };
        let mut process = Guarded::start(&service).await?;
        let up = process.until(self.ready()).await;
        up.with_context(|| {
            format!("start PostgreSQL on port {}; its log {} ends:{}", self.port, log.display(), last_lines(&log))
        })?;
        *self.process.lock().await = Some(process);
        Ok(())
    }

    async fn ready(&self) -> anyhow::Result<()> {
        wait_for_answer(self.port, Protocol::Postgres, START_TIMEOUT).await?;
        // It answers before it has recovered.
        let mut tries = 0;
        while let Err(error) = self.psql("postgres", "SELECT 1").await {
            tries += 1;
            ensure!(tries < 300, "it does not recover: {error:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    async fn end(&self, signal: Signal) -> anyhow::Result<()> {
        match self.process.lock().await.take() {
            Some(process) => process.end(signal).await.context("stop PostgreSQL"),
            None => Ok(()),
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Makes the data folder, under another name first: one that is there is whole.
    async fn init(&self) -> anyhow::Result<()> {
        let partial = self.dir.join("data.partial");
        if partial.is_dir() {
            std::fs::remove_dir_all(&partial).with_context(|| format!("delete {}", partial.display()))?;
        }
        make_owned(self.user.as_ref(), &partial)?;
        let mut command = as_user(self.user.as_ref(), &self.programs.join("initdb"));
        command.extend(["-D".into(), partial.clone().into(), "-U".into(), USER.into()]);
        command.extend(["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"].map(Into::into));
        let output = Command::new(&command[0]).args(&command[1..]).output().await.context("run initdb")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "initdb in {}: {}", partial.display(), said.trim());
        std::fs::rename(&partial, self.data()).with_context(|| format!("rename {}", partial.display()))
    }
}

/// Where the data of a server started with `dir` is, see [`Postgres::dir`]; looks at the folders that are there.
///
/// # Errors
/// The folders above cannot be looked at.
pub fn folder(dir: &Path) -> anyhow::Result<PathBuf> {
    enterable(User::find()?.as_ref(), dir)
}

/// One server for all tests of a process; it ends with the process. A test that ends or pauses it needs one of its own:
/// others use this one, and its process belongs to the runtime of whichever test came first.
///
/// # Panics
/// It does not start.
pub async fn shared() -> &'static Postgres {
    static SHARED: OnceCell<Postgres> = OnceCell::const_new();
    SHARED
        .get_or_init(|| async {
            let dir = crate::process_folder("postgres");
            Postgres::start(&dir, false).await.expect("start PostgreSQL for the tests of this process")
        })
        .await
}

fn find_wheel() -> anyhow::Result<PathBuf> {
    for cache in crate::cache_folders() {
        let mut wheels: Vec<_> = std::fs::read_dir(&cache)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pgserver-")))
            .filter(|path| path.join(PROGRAMS).join("postgres").is_file())
            .collect();
        wheels.sort();
        if let Some(newest) = wheels.pop() {
            return Ok(std::path::absolute(newest)?);
        }
    }
    anyhow::bail!("PostgreSQL's programs are missing; run `make setup-services` (or `make test`, which does)")
}
