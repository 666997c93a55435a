//! PostgreSQL 16 with pgvector, from the binaries of the `pgserver` wheel.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use tokio::process::Command;
use tokio::sync::{Mutex, OnceCell};

use crate::guard::Guarded;
use crate::ports::{free_port, wait_for_answer};

/// The server's superuser, who needs no password from the loopback address.
const USER: &str = "face_id";
/// Longest wait for the server; one that was killed recovers first.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// A request for TLS, which the server answers with one byte whoever asks.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// A running server with a data folder of its own.
pub struct Postgres {
    binaries: PathBuf,
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
        let binaries = find_binaries()?;
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let server = Self { binaries, dir: dir.to_owned(), port, durable, process: Mutex::default() };
        if !server.data().join("PG_VERSION").is_file() {
            server.init().await?;
        }
        server.restart().await?;
        Ok(server)
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes a database, unless it is there, and gives its URL.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn create_database(&self, name: &str) -> anyhow::Result<String> {
        let found = self.psql("postgres", &format!("SELECT 1 FROM pg_database WHERE datname = '{name}'")).await?;
        if found.trim().is_empty() {
            self.psql("postgres", &format!("CREATE DATABASE \"{name}\"")).await?;
        }
        Ok(self.url(name))
    }

    /// Runs SQL and gives its rows, unaligned, without a header.
    ///
    /// # Errors
    /// The server is out of reach or refuses.
    pub async fn psql(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let output = Command::new(self.binaries.join("psql"))
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

    /// Starts it on its data again, after it was stopped where it runs.
    ///
    /// # Errors
    /// It does not start.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.stop().await?;
        let fsync = if self.durable { "on" } else { "off" };
        let sockets = self.dir.join("sockets");
        make_owned(&sockets)?;
        let settings = [
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", sockets.display()),
            format!("fsync={fsync}"),
            "max_connections=200".to_owned(),
            "shared_buffers=256MB".to_owned(),
            "maintenance_work_mem=256MB".to_owned(),
            "log_min_messages=warning".to_owned(),
        ];
        let mut command = as_unprivileged(self.binaries.join("postgres"));
        command.extend(["-D".into(), self.data().into()]);
        command.extend(settings.iter().flat_map(|s| ["-c".into(), s.into()]));
        let process = Guarded::start(&command, &[], &self.dir.join("postgres.log")).await?;
        *self.process.lock().await = Some(process);
        let up = wait_for_answer(self.port, &SSL_REQUEST, START_TIMEOUT).await;
        up.with_context(|| format!("start PostgreSQL; its log is {}", self.dir.join("postgres.log").display()))?;
        // It answers before it has recovered.
        let mut tries = 0;
        while let Err(error) = self.psql("postgres", "SELECT 1").await {
            tries += 1;
            ensure!(tries < 300, "PostgreSQL does not recover: {error:#}");
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

    async fn init(&self) -> anyhow::Result<()> {
        make_owned(&self.data())?;
        let mut command = as_unprivileged(self.binaries.join("initdb"));
        command.extend(["-D".into(), self.data().into(), "-U".into(), USER.into()]);
        command.extend(["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"].map(Into::into));
        let output = Command::new(&command[0]).args(&command[1..]).output().await.context("run initdb")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "initdb in {}: {} (as root the folders above must be open to other users)",
            self.data().display(),
            said.trim()
        );
        Ok(())
    }
}

/// One server for all tests of a process; it ends with the process.
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

/// The server refuses to run as root.
fn as_unprivileged(program: PathBuf) -> Vec<OsString> {
    match unprivileged_user() {
        None => vec![program.into()],
        Some(user) => {
            let (user, group) = (format!("--reuid={user}"), format!("--regid={}", group_of(user)));
            vec!["setpriv".into(), user.into(), group.into(), "--clear-groups".into(), "--".into(), program.into()]
        }
    }
}

/// As whom to run the server: `None` where this process is unprivileged itself.
fn unprivileged_user() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    Some(if users.lines().any(|line| line.starts_with("postgres:")) { "postgres" } else { "nobody" })
}

fn group_of(user: &str) -> &'static str {
    if user == "postgres" { "postgres" } else { "nogroup" }
}

/// Makes a folder that the server's user owns.
fn make_owned(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    if let Some(user) = unprivileged_user() {
        let owner = format!("{user}:{}", group_of(user));
        let done = std::process::Command::new("chown").arg(&owner).arg(folder).status().context("run chown")?;
        ensure!(done.success(), "give {} to {owner}", folder.display());
    }
    Ok(())
}

fn find_binaries() -> anyhow::Result<PathBuf> {
    crate::cache_folders()
        .into_iter()
        .map(|cache| cache.join("pgserver/pgserver/pginstall/bin"))
        .find(|bin| bin.join("postgres").is_file())
        .context("PostgreSQL's binaries are missing; run `make setup-services` (or `make test`, which does)")
}
