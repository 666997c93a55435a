//! What became of the jobs of each fault, as a table and as JSON.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::json;

use super::history::Found;

/// What became of the jobs of one fault, or of all.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) attempted: usize,
    pub(crate) acknowledged: usize,
    /// Succeeded, with its effect.
    pub(crate) completed: usize,
    /// Acknowledged, and then unknown, or ended otherwise than well.
    pub(crate) lost: usize,
    /// Queued or running when patience was over, acknowledged or not.
    pub(crate) unfinished: usize,
    pub(crate) found: Found,
}

/// The table so far; its file is written after each line, so that it is there however the test ends.
pub(crate) struct Report {
    table: String,
    faults: usize,
    of: usize,
    pub(crate) total: Tally,
}

impl Report {
    pub(crate) fn begin(of: usize) -> Self {
        let mut table = format!("{:<40}", "fault");
        let titles = [
            ("attempted", 10),
            ("acknowl.", 10),
            ("completed", 10),
            ("lost", 6),
            ("doubled", 9),
            ("unfinished", 12),
            ("stale", 7),
            ("seconds", 9),
        ];
        for (title, width) in titles {
            write!(table, "{title:>width$}").unwrap();
        }
        let report = Self { table, faults: 0, of, total: Tally::default() };
        report.save(false);
        report
    }

    pub(crate) fn add(&mut self, fault: &str, tally: &Tally, seconds: f64) {
        let Tally { attempted, acknowledged, completed, lost, unfinished, found } = tally;
        write!(
            self.table,
            "\n{fault:<40}{attempted:>10}{acknowledged:>10}{completed:>10}{lost:>6}{:>9}{unfinished:>12}{:>7}{seconds:>9.1}",
            found.doubled, found.stale_writes
        )
        .unwrap();
        self.faults += 1;
        self.total.attempted += attempted;
        self.total.acknowledged += acknowledged;
        self.total.completed += completed;
        self.total.lost += lost;
        self.total.unfinished += unfinished;
        self.total.found.doubled += found.doubled;
        self.total.found.stale_writes += found.stale_writes;
        self.save(false);
    }

    /// Writes the file, with whether all was well, and gives its text.
    pub(crate) fn save(&self, passed: bool) -> String {
        let total = &self.total;
        let summary = json!({
            "attempted": total.attempted, "acknowledged": total.acknowledged, "completed": total.completed,
            "lost": total.lost, "doubled": total.found.doubled, "unfinished": total.unfinished,
            "stale_writes": total.found.stale_writes, "faults": self.faults, "faults_planned": self.of, "passed": passed,
        });
        let text = format!("{}\n{summary}\n", self.table);
        std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults.txt"), &text).unwrap();
        text
    }
}
