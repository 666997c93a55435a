//! What processes have used so far, as Linux tells in `/proc`.

use std::collections::HashMap;
use std::time::Duration;

/// Clock ticks of a second in `/proc/PID/stat`; Linux shows this number to every program (`man 5 proc`).
const TICKS: u64 = 100;
/// Where `/proc/PID/stat` has the process's parent and its processor times, counted from the field after its name: its
/// own in user and kernel, and those of children that have ended.
const PARENT: usize = 1;
const TIMES: [usize; 2] = [11, 12];
const CHILDREN_TIMES: [usize; 2] = [13, 14];

/// What a piece of work took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    pub(super) images: usize,
    pub(super) faces: usize,
    pub(super) elapsed: Duration,
    /// Of all processes that did it, all cores together.
    pub(super) cpu: Duration,
}

impl Took {
    /// Images a second.
    pub(super) fn rate(&self) -> f64 {
        self.images as f64 / self.elapsed.as_secs_f64()
    }

    /// Milliseconds of processor time an image.
    pub(super) fn cpu_ms(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e3 / self.images as f64
    }
}

/// Processor time of these processes, all threads together.
pub(super) fn cpu(pids: &[u32]) -> Duration {
    duration(pids.iter().map(|pid| ticks(&stat(*pid), &TIMES)).sum())
}

/// Processor time of a process and all that it started, but for `apart` and what those started.
pub(super) fn tree_cpu(root: u32, apart: &[u32]) -> Duration {
    let stats: HashMap<u32, Vec<String>> = processes().map(|pid| (pid, stat(pid))).collect();
    let children = |parent: u32| {
        let is_child = move |fields: &[String]| fields.get(PARENT).is_some_and(|f| *f == parent.to_string());
        stats.iter().filter(move |(_, fields)| is_child(fields)).map(|(pid, _)| *pid)
    };
    let (mut waiting, mut sum) = (vec![root], 0);
    while let Some(pid) = waiting.pop() {
        sum += stats.get(&pid).map_or(0, |fields| ticks(fields, &TIMES) + ticks(fields, &CHILDREN_TIMES));
        waiting.extend(children(pid).filter(|child| !apart.contains(child)));
    }
    duration(sum)
}

/// Memory that these processes hold, in bytes.
pub(super) fn resident(pids: &[u32]) -> u64 {
    let of = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() * 1024
    };
    pids.iter().map(of).sum()
}

/// The processes there are now.
pub(super) fn processes() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The fields of `/proc/PID/stat` after the process's name; none of one that has ended.
fn stat(pid: u32) -> Vec<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // What stands before is the command's name, which may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    fields.map(str::to_owned).collect()
}

fn ticks(fields: &[String], of: &[usize]) -> u64 {
    of.iter().filter_map(|n| fields.get(*n)?.parse::<u64>().ok()).sum()
}

fn duration(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1000 / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let own = std::process::id();
        assert!(resident(&[own]) > 1 << 20);
        let before = cpu(&[own]);
        let began = std::time::Instant::now();
        while cpu(&[own]) == before {
            assert!(began.elapsed().as_secs() < 60, "a busy loop takes processor time");
        }
        assert!(processes().any(|pid| pid == own));
    }

    #[test]
    fn a_tree_has_what_its_processes_have_used() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "n=0; while [ $n -lt 60000 ]; do n=$((n+1)); done; echo done; read -r _"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = std::io::BufReader::new(shell.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        let own = std::process::id();
        let (all, without) = (tree_cpu(own, &[]), tree_cpu(own, &[shell.id()]));
        let child = tree_cpu(shell.id(), &[]);
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert!(child > Duration::ZERO && all > without, "{child:?} of {all:?}, {without:?} without it");
    }
}
