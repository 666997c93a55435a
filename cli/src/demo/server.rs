//! The demo's own server: this very command, as a child process on a free port with a data folder of its own.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// Longest time the server may take to load its models.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time it may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Last lines of the server's log that are shown when it does not start.
const LOG_LINES: usize = 5;

pub(super) struct Server {
    pub(super) address: String,
    child: Child,
    folder: tempfile::TempDir,
}

impl Server {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for the demo's data")?;
        let log = std::fs::File::create(folder.path().join("log"))?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--bind", "127.0.0.1:0", "--data-dir"])
            .arg(folder.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("start the server")?;
        let stdout = child.stdout.take().context("the server has no output")?;
        let first = async {
            let mut lines = BufReader::new(stdout).lines();
            lines.next_line().await
        };
        let line = tokio::time::timeout(START_TIMEOUT, first).await.context("the server did not start in time")??;
        if let Some(address) = line.as_deref().and_then(|l| l.strip_prefix("listening on ")) {
            return Ok(Self { address: address.to_owned(), child, folder });
        }
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        anyhow::bail!("the server did not start:\n{}", lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
    }

    /// Asks the server to stop, as a service manager would.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id().and_then(|p| i32::try_from(p).ok()).and_then(rustix::process::Pid::from_raw)
        {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let ended = tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await;
        let Ok(status) = ended else {
            self.child.kill().await?;
            anyhow::bail!("the server did not stop within {} s and was killed", STOP_TIMEOUT.as_secs());
        };
        let status = status?;
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        anyhow::ensure!(status.success(), "the server ended with {status}:\n{log}");
        Ok(())
    }
}
