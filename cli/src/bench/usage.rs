//! What processes have used so far, as Linux tells in `/proc`.

use std::time::Duration;

/// Clock ticks of a second in `/proc/PID/stat`; Linux shows this number to every program (`man 5 proc`).
const TICKS: u64 = 100;

/// Processor time of these processes, all threads together.
pub(super) fn cpu(pids: &[u32]) -> Duration {
    let of = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // What stands before is the command's name, which may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok()).unwrap_or_default();
        ticks(11) + ticks(12)
    };
    Duration::from_millis(pids.iter().map(of).sum::<u64>() * 1000 / TICKS)
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

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_uses_something() {
        let pids = [std::process::id()];
        assert!(super::resident(&pids) > 1 << 20);
        let before = super::cpu(&pids);
        let began = std::time::Instant::now();
        while super::cpu(&pids) == before {
            assert!(began.elapsed().as_secs() < 60, "a busy loop takes processor time");
        }
    }
}
