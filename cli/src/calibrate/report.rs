//! What a calibration shows: a table, and JSON for programs and for the server.

use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::{Value, json};
use shared::catalogue::Metric;

use super::bounds::{CONFIDENCE, Point};
use super::comparisons::Comparisons;
use super::embedded::LeftOut;
use super::splits::{self, Coverage};

/// All that was measured. Rates are shares of 0..1, thresholds scores of the metric.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) pipeline: String,
    pub(super) metric: Metric,
    pub(super) collection: Option<String>,
    pub(super) measured_on: String,
    pub(super) points: Vec<Point>,
    /// How many pairs of one person's faces reach the threshold of each point; null where nobody has two.
    pub(super) true_accepts: Vec<Option<f64>>,
    pub(super) people: usize,
    pub(super) faces: usize,
    /// Of two people's faces.
    pub(super) comparisons: u64,
    pub(super) confidence: f64,
    /// Pictures that do not count.
    #[serde(flatten)]
    pub(super) left_out: LeftOut,
    /// What came of splits, where they were asked for.
    pub(super) splits: Vec<Coverage>,
    /// The id that the server gave it; null where it was not stored.
    pub(super) stored: Option<Value>,
}

impl Report {
    pub(super) fn new(pipeline: &str, measured_on: String, compared: &Comparisons, points: Vec<Point>) -> Self {
        Self {
            pipeline: pipeline.to_owned(),
            metric: compared.metric,
            collection: None,
            measured_on,
            true_accepts: points.iter().map(|point| compared.tar_at(point.cosine)).collect(),
            points,
            people: compared.people,
            faces: compared.faces,
            comparisons: compared.count,
            confidence: CONFIDENCE,
            left_out: LeftOut::default(),
            splits: Vec::new(),
            stored: None,
        }
    }

    /// As the server takes it.
    pub(super) fn body(&self) -> Value {
        let point = |point: &Point| json!({ "far": point.far, "cosine": point.cosine, "lower": point.lower, "upper": point.upper });
        let measured = self.points.iter().rfind(|point| !point.extrapolated);
        json!({
            "pipeline": self.pipeline,
            "collection": self.collection,
            "measured_on": self.measured_on,
            "points": self.points.iter().map(point).collect::<Vec<_>>(),
            "measured_far": measured.map(|point| point.far),
            "people": self.people,
            "faces": self.faces,
            "comparisons": self.comparisons,
            "confidence": self.confidence,
        })
    }

    #[expect(clippy::print_stdout, reason = "this is the command's output")]
    pub(super) fn print(&self) {
        println!("{}", self.table());
        println!(
            "{} comparisons of {} faces of {} people ({})",
            self.comparisons, self.faces, self.people, self.measured_on
        );
        let LeftOut { unreadable, undetected, unusable } = self.left_out;
        let left_out = [
            (unreadable, "cannot be read"),
            (undetected, "show no face"),
            (unusable, "show a face that is not good enough to be matched"),
        ];
        for (pictures, why) in left_out.into_iter().filter(|(pictures, _)| *pictures > 0) {
            println!("left out: {pictures} pictures that {why}");
        }
        if !self.splits.is_empty() {
            println!("{}", splits::table(&self.splits));
        }
    }

    #[expect(clippy::print_stdout, reason = "this is the command's output")]
    pub(super) fn print_stored(&self) {
        match &self.stored {
            Some(id) => println!("stored as {}", id.as_str().unwrap_or_default()),
            None => println!("not stored"),
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        let bounds = format!("bounds at {:.0} %", self.confidence * 100.0);
        table.set_header(["false accept rate", self.metric.score_name(), &bounds, "true accepts", &self.pipeline]);
        for (point, tar) in self.points.iter().zip(&self.true_accepts) {
            let part = |bound: f64| (bound / point.far - 1.0) * 100.0;
            table.add_row([
                format!("{:e}", point.far),
                format!("{:.4}", point.cosine),
                format!(
                    "{:.2e} to {:.2e} ({:+.0} to {:+.0} %)",
                    point.lower,
                    point.upper,
                    part(point.lower),
                    part(point.upper)
                ),
                tar.map_or_else(String::new, |tar| format!("{:.2} %", tar * 100.0)),
                if point.extrapolated { "extrapolated".to_owned() } else { String::new() },
            ]);
        }
        table
    }
}
