//! What an evaluation shows: a table, a catalogue section, and JSON for programs.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::calibration::Calibration;
use super::embed::SECOND_SCORE;
use super::protocol::FoldAccuracy;

/// All that was measured. Rates are shares of 0..1, thresholds cosines.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) pipeline: String,
    pub(super) accuracy: f64,
    pub(super) accuracy_std: f64,
    /// Mean of the folds' thresholds.
    pub(super) threshold: f32,
    pub(super) folds: Vec<Fold>,
    pub(super) tar_at_far_1e2: f64,
    pub(super) threshold_at_far_1e2: f32,
    pub(super) tar_at_far_1e3: f64,
    pub(super) threshold_at_far_1e3: f32,
    pub(super) eer: f64,
    pub(super) images: usize,
    pub(super) undetected: usize,
    /// Pictures where only the lower detector score found a face, or nothing did.
    pub(super) second_try: usize,
    pub(super) threads: usize,
    pub(super) seconds: f64,
    pub(super) images_per_second: f64,
    /// None of a cascade, whose later models see what the first ones found.
    pub(super) bare_runtime_images_per_second: Option<f64>,
    pub(super) calibration: Calibration,
}

/// One fold, judged at the threshold of the others.
#[derive(Debug, Serialize)]
pub(super) struct Fold {
    accuracy: f64,
    threshold: f32,
}

impl Fold {
    pub(super) fn of(accuracy: &FoldAccuracy) -> Vec<Self> {
        accuracy.folds.iter().map(|&(accuracy, threshold)| Self { accuracy, threshold }).collect()
    }
}

impl Report {
    /// The table, then the section to put into the pipeline's catalogue file.
    #[expect(clippy::print_stdout, reason = "this is the command's output")]
    pub(super) fn print(&self) {
        println!("{}", self.table());
        println!("{} comparisons of different people; for models/{}.toml:\n", self.calibration.pairs, self.pipeline);
        print!("{}", self.calibration.toml());
    }

    fn table(&self) -> Table {
        let percent = |share: f64| format!("{:.2} %", share * 100.0);
        let at = |tar: f64, threshold: f32| format!("{} at cosine {threshold:.3}", percent(tar));
        let alone = self.bare_runtime_images_per_second.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
        let rows = [
            ("accuracy", format!("{} +- {}", percent(self.accuracy), percent(self.accuracy_std))),
            ("threshold, mean of the folds", format!("{:.3}", self.threshold)),
            ("true accepts at 1e-2 false ones", at(self.tar_at_far_1e2, self.threshold_at_far_1e2)),
            ("true accepts at 1e-3 false ones", at(self.tar_at_far_1e3, self.threshold_at_far_1e3)),
            ("equal error rate", percent(self.eer)),
            ("images", self.images.to_string()),
            ("no face found", self.undetected.to_string()),
            ("tried again at detector score", format!("{SECOND_SCORE}: {} images", self.second_try)),
            ("images/s, whole pipeline", format!("{:.1} ({} threads)", self.images_per_second, self.threads)),
            ("images/s, models alone", alone),
            ("seconds", format!("{:.1}", self.seconds)),
        ];
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_header(["LFW, view 2", self.pipeline.as_str()]);
        table.add_rows(rows.map(|(name, value)| [name.to_owned(), value]));
        if let Some(values) = table.column_mut(1) {
            values.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}
