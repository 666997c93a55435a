//! The live line: pictures done of those listed, the pace, what was found and what went wrong.

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// See the module.
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub(super) fn begin() -> Self {
        let bar = ProgressBar::new(0);
        let line = "{bar:30} {pos}/{len} pictures, {msg}";
        if let Ok(style) = ProgressStyle::with_template(line) {
            bar.set_style(style);
        }
        Self(bar)
    }

    pub(super) fn show(&self, batch: &Value) {
        let number = |value: &Value| value.as_i64().unwrap_or_default();
        let jobs = &batch["jobs"];
        let waiting = number(&jobs["queued"]) + number(&jobs["running"]);
        let items = number(&batch["items"]);
        self.0.set_length(u64::try_from(items).unwrap_or_default());
        self.0.set_position(u64::try_from(items - waiting).unwrap_or_default());
        let mut parts = Vec::new();
        if let Some(pace) = batch["jobs_per_second"].as_f64().filter(|pace| *pace > 0.0) {
            parts.push(format!("{pace:.1}/s"));
        }
        parts.push(format!("{} faces", number(&batch["faces"])));
        for state in ["rejected", "failed"] {
            let count = number(&jobs[state]);
            if count > 0 {
                parts.push(format!("{count} {state}"));
            }
        }
        if batch["listed_at"].is_null() {
            parts.push("listing".to_owned());
        } else if let Some(left) = batch["eta_s"].as_f64() {
            parts.push(format!("{} left", duration(left)));
        }
        if let Some(problem) = batch["problem"]["detail"].as_str() {
            parts.push(problem.to_owned());
        }
        self.0.set_message(parts.join(", "));
    }

    pub(super) fn end(self) {
        self.0.finish_and_clear();
    }
}

/// `42 s`, `3 min 20 s`, `2 h 5 min`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an estimate below thousands of years")]
pub(crate) fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, min, s) => format!("{min} min {s} s"),
        (h, min, _) => format!("{h} h {min} min"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations_have_two_units_at_most() {
        for (seconds, text) in [(0.4, "0 s"), (61.0, "1 min 1 s"), (7509.0, "2 h 5 min"), (-1.0, "0 s")] {
            assert_eq!(super::duration(seconds), text);
        }
    }
}
