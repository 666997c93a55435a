//! A child process that never outlives its owner, not even one that was killed: a small shell holds it, and ends it when
//! the pipe that the owner keeps open is closed, which the kernel does for whoever dies.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// The guard starts the command in a process group of its own, tells its id, waits for the end of its input or of the
/// command, and then leaves nothing of the group.
pub(crate) const SCRIPT: &str = r#"
trap '' INT TERM HUP
# A background command's input is nothing, so the pipe gets a number of its own.
exec 3>&1 5<&0
log=$1; shift
( trap - INT TERM HUP; exec setsid "$@" ) </dev/null >>"$log" 2>&1 3>&- 5<&- & pid=$!
echo $pid >&3; exec 3>&- >/dev/null 2>&1
( cat <&5 >/dev/null; kill -TERM -- -$pid 2>/dev/null; n=0
  while kill -0 -- -$pid 2>/dev/null && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done
  kill -KILL -- -$pid 2>/dev/null ) & watcher=$!
wait $pid; status=$?
kill -KILL -- -$pid 2>/dev/null
kill -KILL $watcher 2>/dev/null
exit $status
"#;

/// Longest wait for a process to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// A guarded process.
pub(crate) struct Guarded {
    group: Pid,
    guard: Child,
}

impl Guarded {
    /// Starts `command` with these variables added to the environment; what it prints is appended to `log`.
    pub(crate) async fn start(
        command: &[OsString],
        variables: &[(String, String)],
        log: &Path,
    ) -> anyhow::Result<Self> {
        File::options().create(true).append(true).open(log).with_context(|| format!("open {}", log.display()))?;
        let mut guard = Command::new("bash")
            .args(["-c", SCRIPT, "guard"])
            .arg(log)
            .args(command)
            .envs(variables.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a shell")?;
        let stdout = guard.stdout.take().context("the shell has no output")?;
        let first = BufReader::new(stdout).lines().next_line().await?;
        let pid = first.as_deref().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw);
        let group = pid.with_context(|| format!("{} did not start", command[0].display()))?;
        Ok(Self { group, guard })
    }

    /// Sends a signal to the whole group.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process_group(self.group, signal).with_context(|| format!("send {signal:?}"))
    }

    /// Asks it to end with this signal and waits until nothing of it is left.
    pub(crate) async fn end(mut self, signal: Signal) -> anyhow::Result<()> {
        // It may have ended by itself.
        let _ = self.signal(signal);
        let ended = tokio::time::timeout(STOP_TIMEOUT, self.guard.wait()).await;
        ensure!(ended.is_ok(), "a process did not end within {} s after {signal:?}", STOP_TIMEOUT.as_secs());
        Ok(())
    }
}
