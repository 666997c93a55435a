//! A child process that never outlives its owner, not even one that was killed: a small shell holds it, and ends it when
//! the pipe that the owner keeps open is closed, which the kernel does for whoever dies.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// The guard starts the command in a session of its own, tells its id, waits for the end of its input or of the command,
/// and then leaves nothing of the command's process group.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
# A background command's input is nothing, so the pipe gets a number of its own.
exec 3>&1 5<&0
log=$1 signal=$2; shift 2
# What an owner before left may still be ending, on the same data.
exec 9>>"$log"
flock --wait 30 9 || { echo "another process is still at work here" >&9; exit 1; }
# The id is told from inside the new session: who knows it can signal the group.
( trap - INT TERM HUP
  exec setsid bash -c 'echo $$ >&3; exec "$@" 3>&-' start "$@" ) </dev/null >>"$log" 2>&1 5<&- 9>&- & pid=$!
exec 3>&- >/dev/null 2>&1
# The owner may be gone before the session is there: the process itself is meant as well as its group.
( exec 9>&-; cat <&5; kill -$signal -- -$pid $pid; kill -CONT -- -$pid; n=0
  while { kill -0 -- -$pid || kill -0 $pid; } && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done
  kill -KILL -- -$pid $pid ) & watcher=$!
wait $pid; status=$?
kill -KILL -- -$pid
kill -KILL $watcher
exit $status
"#;

/// Longest wait for a process that was asked to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// What to run under a guard.
pub(crate) struct Service<'a> {
    pub(crate) command: &'a [OsString],
    /// Added to the environment.
    pub(crate) variables: &'a [(String, String)],
    /// What it prints is appended to this file.
    pub(crate) log: &'a Path,
    /// What the guard sends when the owner is gone, as `kill` names it; what is left after 10 s is killed.
    pub(crate) stop_signal: &'a str,
}

/// A guarded process; dropping it ends the process.
pub(crate) struct Guarded {
    group: Pid,
    guard: Child,
    /// Not left in `guard`, which closes it before it waits.
    _pipe: ChildStdin,
}

impl Guarded {
    /// Starts a service.
    pub(crate) async fn start(service: &Service<'_>) -> anyhow::Result<Self> {
        let log = service.log;
        File::options().create(true).append(true).open(log).with_context(|| format!("open {}", log.display()))?;
        // In a session of its own: a signal that kills the owner's whole process group must not reach the guard.
        let mut guard = Command::new("setsid")
            .args(["bash", "-c", SCRIPT, "guard"])
            .arg(log)
            .arg(service.stop_signal)
            .args(service.command)
            .envs(service.variables.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a shell")?;
        let pipe = guard.stdin.take().context("the shell has no input")?;
        let stdout = guard.stdout.take().context("the shell has no output")?;
        let first = BufReader::new(stdout).lines().next_line().await?;
        let pid = first.as_deref().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw);
        let program = || service.command[0].display();
        let group = pid.with_context(|| format!("{} did not start:{}", program(), last_lines(log)))?;
        Ok(Self { group, guard, _pipe: pipe })
    }

    /// Waits for a sign that it is ready, unless it ends before.
    pub(crate) async fn until(&mut self, ready: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        tokio::select! {
            ready = ready => ready,
            status = self.guard.wait() => bail!("it ended by itself ({})", status?),
        }
    }

    /// Freezes it and everything it started, as a machine that hangs would.
    pub(crate) fn pause(&self) -> anyhow::Result<()> {
        kill_process_group(self.group, Signal::STOP).context("pause the process")?;
        // Only now: what is frozen starts no more.
        signal_each(&descendants(self.group), Signal::STOP);
        Ok(())
    }

    /// Ends [`Guarded::pause`].
    pub(crate) fn resume(&self) -> anyhow::Result<()> {
        signal_each(&descendants(self.group), Signal::CONT);
        kill_process_group(self.group, Signal::CONT).context("resume the process")
    }

    /// Sends its group this signal and waits until nothing of it is left.
    pub(crate) async fn end(mut self, signal: Signal) -> anyhow::Result<()> {
        let family = descendants(self.group);
        // It may have ended by itself. One that is paused heeds no signal but SIGKILL.
        let _ = kill_process_group(self.group, signal);
        signal_each(&family, Signal::CONT);
        let _ = kill_process_group(self.group, Signal::CONT);
        let gone = async {
            let status = self.guard.wait().await;
            while !still_running(&family).is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            status
        };
        let ended = tokio::time::timeout(STOP_TIMEOUT, gone).await;
        ensure!(ended.is_ok(), "a process did not end within {} s after {signal:?}", STOP_TIMEOUT.as_secs());
        Ok(())
    }
}

/// The end of a log, for an error: who reads that may be unable to open the file.
pub(crate) fn last_lines(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let mut end = String::new();
    for line in &lines[lines.len().saturating_sub(8)..] {
        end.push_str("\n  | ");
        end.extend(line.chars().take(200));
    }
    end
}

/// A process as `/proc` shows it: ids are used again, so a start time (in clock ticks since boot) tells two apart.
#[derive(Clone, Copy, PartialEq)]
struct Process {
    pid: Pid,
    parent: i32,
    started: u64,
}

/// All processes that have not ended.
fn processes() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| parse_stat(&std::fs::read_to_string(entry.path().join("stat")).ok()?)).collect()
}

/// One line of `/proc/PID/stat`, see proc(5); `None` for a process that only waits to be reaped.
fn parse_stat(stat: &str) -> Option<Process> {
    let pid = Pid::from_raw(stat.split_whitespace().next()?.parse().ok()?)?;
    // The command before it, in parentheses, may hold anything.
    let rest: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let (state, parent, started) = (rest.first()?, rest.get(1)?, rest.get(19)?);
    let ended = matches!(*state, "Z" | "X");
    (!ended).then_some(Process { pid, parent: parent.parse().ok()?, started: started.parse().ok()? })
}

/// What a process started, and what that started, down to the last: some are in sessions of their own.
fn descendants(root: Pid) -> Vec<Process> {
    let all = processes();
    let mut found = Vec::new();
    let mut parents = vec![root.as_raw_pid()];
    while let Some(parent) = parents.pop() {
        let children = all.iter().copied().filter(|p| p.parent == parent);
        found.extend(children.clone());
        parents.extend(children.map(|p| p.pid.as_raw_pid()));
    }
    found
}

/// Those that still run, whoever their parent is now.
fn still_running(family: &[Process]) -> Vec<Process> {
    let all = processes();
    family.iter().copied().filter(|one| all.iter().any(|p| p.pid == one.pid && p.started == one.started)).collect()
}

fn signal_each(family: &[Process], signal: Signal) {
    for process in family {
        // It may just have ended.
        let _ = kill_process(process.pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_are_parsed() {
        let line = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9876 1 2";
        let found = parse_stat(line).unwrap();
        assert_eq!((found.pid.as_raw_pid(), found.parent, found.started), (42, 7, 9876));
        assert!(parse_stat(&line.replace(") S ", ") Z ")).is_none(), "it has ended");
    }
}
