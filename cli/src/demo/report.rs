//! What the demo shows at its end.

use std::path::Path;
use std::time::Duration;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::photos::Photos;

#[derive(Default)]
pub(super) struct Report {
    pub(super) rows: Vec<Row>,
    pub(super) enrolled: usize,
    pub(super) identified_right: usize,
    pub(super) identified_wrong: usize,
    pub(super) identified_missed: usize,
    pub(super) unknown_right: usize,
    pub(super) rejected: usize,
}

pub(super) struct Row {
    picture: String,
    asked: &'static str,
    answer: String,
    verdict: Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Missed,
    Wrong,
    /// Nobody said what the picture shows.
    Unjudged,
}

/// The last line, for programs. Enrolled and rejected are pictures; the others are faces.
#[derive(Serialize)]
struct Counts {
    enrolled: usize,
    identified_right: usize,
    identified_wrong: usize,
    identified_missed: usize,
    unknown_right: usize,
    rejected: usize,
    seconds: f64,
}

impl Row {
    pub(super) fn new(picture: &Path, asked: &'static str, answer: String, verdict: Verdict) -> Self {
        Self::named(&picture.file_name().unwrap_or_default().to_string_lossy(), asked, answer, verdict)
    }

    pub(super) fn named(picture: &str, asked: &'static str, answer: String, verdict: Verdict) -> Self {
        Self { picture: picture.to_owned(), asked, answer, verdict }
    }
}

impl Report {
    /// The table, the rights, and as the last line one JSON object.
    #[expect(clippy::print_stdout, reason = "this is the command's output")]
    pub(super) fn print(&self, photos: &Photos, took: Duration) -> anyhow::Result<()> {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_header(["picture", "asked", "answer", ""]);
        for row in &self.rows {
            let verdict = match row.verdict {
                Verdict::Right => "right",
                Verdict::Missed => "missed",
                Verdict::Wrong => "WRONG",
                Verdict::Unjudged => "",
            };
            table.add_row([row.picture.as_str(), row.asked, &row.answer, verdict]);
        }
        println!("{table}");
        for (file, rights) in &photos.rights {
            println!("rights of {file}: {rights}");
        }
        println!("{}", serde_json::to_string(&self.counts(took))?);
        Ok(())
    }

    fn counts(&self, took: Duration) -> Counts {
        Counts {
            enrolled: self.enrolled,
            identified_right: self.identified_right,
            identified_wrong: self.identified_wrong,
            identified_missed: self.identified_missed,
            unknown_right: self.unknown_right,
            rejected: self.rejected,
            seconds: (took.as_secs_f64() * 100.0).round() / 100.0,
        }
    }

    /// An error when an answer was wrong; on a user's own pictures a missed person is no error.
    pub(super) fn check(&self, are_samples: bool) -> anyhow::Result<()> {
        let wrong = self.rows.iter().filter(|r| r.verdict == Verdict::Wrong).count();
        let missed = self.rows.iter().filter(|r| r.verdict == Verdict::Missed).count();
        anyhow::ensure!(wrong == 0, "answers that were wrong: {wrong}");
        anyhow::ensure!(
            !are_samples || missed == 0,
            "pictures with a person that was not enrolled or not found: {missed}"
        );
        Ok(())
    }
}
