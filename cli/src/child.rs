//! A server of the command's own: this very command, as one child process on a free port, or as an api and a worker where
//! the settings name services.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use shared::config::Config;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::client::Client;
use crate::keys::OwnKey;

/// Longest time the server may take to load its models.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time it may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Last lines of the server's log that are shown when it does not start.
const LOG_LINES: usize = 5;

pub(crate) struct Server {
    address: String,
    /// Where the processes that run models tell their metrics.
    worker_address: String,
    /// The api, or all in one, comes first; it is stopped first too.
    children: Vec<Child>,
    /// How each of them was started.
    starts: Vec<Start>,
    folder: tempfile::TempDir,
    /// Where the server asks for one.
    key: Option<OwnKey>,
}

/// The arguments of a process, the settings in its environment, and what its first line begins with.
struct Start {
    arguments: Vec<OsString>,
    settings: Vec<(String, OsString)>,
    prefix: &'static str,
}

impl Server {
    /// A server on services where the settings name any, else one on a data folder that goes with it; with settings of its
    /// own beside those.
    pub(crate) async fn for_a_while(config: &Config, settings: &[(&str, String)]) -> anyhow::Result<Self> {
        if !config.has_services() {
            let folder = tempfile::tempdir().context("make a folder for the server's data")?;
            let data = folder.path().join("data");
            return Self::start(config, folder, &data, settings).await;
        }
        let folder = tempfile::tempdir().context("make a folder for the server's log")?;
        let settings = inherited(config, settings);
        migrate(&settings).await?;
        // Without a key, an api on services does not start.
        let key = Some(OwnKey::make(config).await?);
        let arguments = ["api", "--bind", "127.0.0.1:0"].map(OsString::from).to_vec();
        let api = Start { arguments, settings: settings.clone(), prefix: "listening on " };
        let worker = Start { arguments: vec!["worker".into()], settings, prefix: "probes on " };
        Ok(Self { key, ..Self::of(folder, vec![api, worker]).await? })
    }

    /// A server on the configured data folder, with settings of its own.
    pub(crate) async fn on_folder(config: &Config, settings: &[(&str, String)]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for the server's log")?;
        let server = Self::start(config, folder, &config.data_dir, settings).await?;
        Ok(Self { key: OwnKey::where_needed(config).await?, ..server })
    }

    async fn start(
        config: &Config,
        folder: tempfile::TempDir,
        data_dir: &Path,
        settings: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let mut arguments: Vec<OsString> =
            ["serve", "--stop-with-stdin", "--bind", "127.0.0.1:0", "--data-dir"].map(OsString::from).to_vec();
        arguments.push(data_dir.into());
        let all = Start { arguments, settings: inherited(config, settings), prefix: "listening on " };
        Self::of(folder, vec![all]).await
    }

    async fn of(folder: tempfile::TempDir, starts: Vec<Start>) -> anyhow::Result<Self> {
        let (address, worker_address) = (String::new(), String::new());
        let mut server = Self { address, worker_address, children: Vec::new(), starts, folder, key: None };
        server.begin().await?;
        Ok(server)
    }

    async fn begin(&mut self) -> anyhow::Result<()> {
        self.children.clear();
        let mut addresses = Vec::new();
        for start in &self.starts {
            addresses.push(spawn(&mut self.children, &self.folder, start).await?);
        }
        let (Some(first), Some(last)) = (addresses.first(), addresses.last()) else { return Ok(()) };
        (self.address, self.worker_address) = (first.clone(), last.clone());
        Ok(())
    }

    /// Kills all processes, as a power cut would, and starts them anew on the same data.
    pub(crate) async fn crash(&mut self) -> anyhow::Result<()> {
        for child in &mut self.children {
            child.kill().await?;
        }
        self.begin().await
    }

    /// The sum of a counter over its labels of which `label` is part, since the processes that run models began.
    pub(crate) async fn counted(&self, counter: &str, label: &str) -> anyhow::Result<u64> {
        let answer = reqwest::get(format!("{}/metrics", self.worker_address)).await?;
        let text = answer.error_for_status()?.text().await?;
        let is_it = |line: &&str| {
            line.strip_prefix(counter).is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(label))
        };
        let value = |line: &str| line.rsplit(' ').next()?.parse::<u64>().ok();
        Ok(text.lines().filter(is_it).filter_map(value).sum())
    }

    /// A client of it.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Client::new(&self.address, self.key.as_ref().map(OwnKey::token))
    }

    /// Its processes.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.children.iter().filter_map(Child::id).collect()
    }

    /// Asks the processes to stop, as a service manager would.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        for child in &mut self.children {
            if let Some(pid) = child.id().and_then(|p| i32::try_from(p).ok()).and_then(rustix::process::Pid::from_raw) {
                rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
            }
            let ended = tokio::time::timeout(STOP_TIMEOUT, child.wait()).await;
            let Ok(status) = ended else {
                child.kill().await?;
                anyhow::bail!("the server did not stop within {} s and was killed", STOP_TIMEOUT.as_secs());
            };
            let status = status?;
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            anyhow::ensure!(status.success(), "the server ended with {status}:\n{log}");
        }
        match self.key.take() {
            Some(key) => key.forget().await,
            None => Ok(()),
        }
    }
}

/// What this command was told by its arguments, and `settings`, as the environment of a child, which has the rest of it
/// anyhow.
fn inherited(config: &Config, settings: &[(&str, String)]) -> Vec<(String, OsString)> {
    let mut all: Vec<(&str, OsString)> = Vec::new();
    if let Some(file) = &config.file {
        all.push(("FACE_ID_CONFIG", file.into()));
    }
    if !config.has_services() {
        // The environment may name services that the command leaves out.
        let services = ["FACE_ID_DATABASE__URL", "FACE_ID_QUEUE__URL", "FACE_ID_OBJECTS__BUCKET"];
        all.extend(services.map(|name| (name, OsString::new())));
    }
    if !config.models.accepted_licences.is_empty() {
        all.push(("FACE_ID_MODELS__ACCEPTED_LICENCES", config.models.accepted_licences.join(",").into()));
    }
    all.extend(settings.iter().map(|(name, value)| (*name, OsString::from(value))));
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Brings the database to this version, with places for the vectors of all pipelines that the settings know.
async fn migrate(settings: &[(String, OsString)]) -> anyhow::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("migrate").envs(settings.iter().map(|(name, value)| (name, value))).kill_on_drop(true);
    let migrated = tokio::time::timeout(START_TIMEOUT, command.output()).await;
    let output = migrated.context("the database was not migrated in time")??;
    let log = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "the database could not be migrated:\n{}", log.trim_end());
    Ok(())
}

/// Ends when the user or a service manager wants the command to stop.
pub(crate) async fn interrupted() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// Starts a process, waits for its first line, which begins with `prefix`, and gives the rest of that.
async fn spawn(children: &mut Vec<Child>, folder: &tempfile::TempDir, start: &Start) -> anyhow::Result<String> {
    let Start { arguments, settings, prefix } = start;
    let path = folder.path().join("log");
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .env("FACE_ID_WORKER__PROBES_BIND", "127.0.0.1:0")
        .envs(settings.iter().map(|(name, value)| (name, value)))
        // Held until the end: a `serve` that stops with its standard input does not outlive this command, however that ends.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::options().create(true).append(true).open(&path)?)
        .kill_on_drop(true)
        .spawn()
        .context("start the server")?;
    let stdout = child.stdout.take().context("the server has no output")?;
    children.push(child);
    let first = async {
        let mut lines = BufReader::new(stdout).lines();
        lines.next_line().await
    };
    let line = tokio::time::timeout(START_TIMEOUT, first).await.context("the server did not start in time")??;
    if let Some(rest) = line.as_deref().and_then(|l| l.strip_prefix(*prefix)) {
        return Ok(rest.to_owned());
    }
    let log = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    anyhow::bail!("the server did not start:\n{}", lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
}
