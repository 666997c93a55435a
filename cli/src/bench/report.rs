//! What a whole run shows: ratios first, then the figures behind them, and one line of JSON.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};
use serde_json::{Map, Value, json};

use super::all::Part;

/// What a ratio should be.
#[derive(Clone, Copy)]
enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// It is told to compare with.
    None,
}

/// A ratio of the last line.
struct Ratio {
    key: &'static str,
    part: Part,
    what: &'static str,
    goal: Goal,
}

const fn ratio(key: &'static str, part: Part, what: &'static str, goal: Goal) -> Ratio {
    Ratio { key, part, what, goal }
}

/// All ratios, in the order in which they are shown.
const RATIOS: [Ratio; 19] = [
    ratio("index_vs_runtime", Part::Small, "index / bare loop, small photos, 32-bit floats", Goal::AtLeast(0.9)),
    ratio("index_vs_peer_12mp", Part::Photos, "index / peer, 12 megapixels, fastest pipeline", Goal::AtLeast(2.0)),
    ratio("index_vs_peer_small", Part::Small, "index / peer, small photos, fastest pipeline", Goal::AtLeast(1.6)),
    ratio("index_vs_peer_12mp_fp32", Part::Photos, "index / peer, 12 megapixels, 32-bit floats", Goal::AtLeast(1.5)),
    ratio("index_vs_peer_small_fp32", Part::Small, "index / peer, small photos, 32-bit floats", Goal::AtLeast(1.15)),
    ratio("overhead_ms_per_job", Part::Overhead, "ms of our processes a bulk job, services", Goal::AtMost(1.0)),
    ratio("overhead_ms_per_job_embedded", Part::Overhead, "the same, embedded", Goal::AtMost(1.0)),
    ratio("servers_ms_per_job", Part::Overhead, "ms of the servers a bulk job", Goal::None),
    ratio(
        "identify_p99_flood_vs_idle",
        Part::Identify,
        "identify p99, beside a batch / idle, embedded",
        Goal::AtMost(3.0),
    ),
    ratio("identify_p99_flood_vs_idle_services", Part::Identify, "the same, services", Goal::AtMost(3.0)),
    ratio("identify_idle_p50_vs_runtime", Part::Identify, "identify p50 idle / bare loop, embedded", Goal::AtMost(3.0)),
    ratio("identify_idle_p50_vs_runtime_services", Part::Identify, "the same, services", Goal::AtMost(3.0)),
    ratio("rss_last_vs_second_quarter", Part::Memory, "memory, last / second quarter of a batch", Goal::AtMost(1.05)),
    ratio("search_1m_vs_faiss_flat", Part::Search, "exact search of a million / faiss flat", Goal::AtMost(0.5)),
    ratio("pgvector_vs_exact", Part::Pgvector, "exact search by pgvector / in memory, the largest gallery", Goal::None),
    ratio(
        "index_vs_runtime_services",
        Part::Small,
        "index / bare loop, small photos, 32-bit floats, services",
        Goal::None,
    ),
    ratio("index_vs_peer_12mp_services", Part::Photos, "index / peer, 12 megapixels, fastest, services", Goal::None),
    ratio("index_vs_peer_small_services", Part::Small, "index / peer, small photos, fastest, services", Goal::None),
    ratio("index_vs_runtime_12mp", Part::Photos, "index / bare loop, 12 megapixels, 32-bit floats", Goal::None),
];

/// Why a part has no figures that nobody wanted.
const NOT_ASKED: &str = "not asked for";

/// All that a run found.
pub(super) struct Report {
    /// The machine, and how it was measured, each a sentence.
    pub(super) about: Vec<String>,
    pub(super) is_quick: bool,
    pub(super) asked: Vec<Part>,
    ratios: BTreeMap<&'static str, Result<f64, String>>,
    /// What this run does without, and why.
    left_out: BTreeMap<&'static str, &'static str>,
    sections: Vec<String>,
}

impl Report {
    pub(super) fn new(about: Vec<String>, is_quick: bool, asked: Vec<Part>) -> Self {
        Self { about, is_quick, asked, ratios: BTreeMap::new(), left_out: BTreeMap::new(), sections: Vec::new() }
    }

    /// Sets one of [`RATIOS`].
    pub(super) fn ratio(&mut self, key: &'static str, value: Result<f64, String>) {
        debug_assert!(RATIOS.iter().any(|ratio| ratio.key == key), "{key} is a ratio");
        self.ratios.insert(key, value.map_err(|why| one_line(&why)));
    }

    /// One of [`RATIOS`] that this run does not have, which is no failure.
    pub(super) fn left_out(&mut self, key: &'static str, why: &'static str) {
        self.left_out.insert(key, why);
    }

    /// A part's figures: a heading, and what stands under it.
    pub(super) fn section(&mut self, heading: &str, text: &str) {
        self.sections.push(format!("### {heading}\n\n{text}\n"));
    }

    /// Why a part as a whole has no figures.
    pub(super) fn failed(&mut self, part: Part, why: &str) {
        for ratio in RATIOS.iter().filter(|ratio| ratio.part == part) {
            self.ratios.entry(ratio.key).or_insert_with(|| Err(one_line(why)));
        }
        self.section(part.name(), &format!("Missing: {}.", one_line(why)));
    }

    /// The parts that were wanted and lack a figure, each with the reasons.
    pub(super) fn missing(&self) -> BTreeMap<&'static str, &str> {
        let wanted = RATIOS.iter().filter(|r| self.asked.contains(&r.part) && !self.left_out.contains_key(r.key));
        wanted.filter_map(|ratio| Some((ratio.key, self.value(ratio).err()?))).collect()
    }

    /// Goals that were measured and not met.
    fn missed(&self) -> Vec<&'static str> {
        RATIOS.iter().filter(|r| self.value(r).is_ok_and(|v| !r.goal.is_met(v))).map(|r| r.key).collect()
    }

    fn value(&self, ratio: &Ratio) -> Result<f64, &str> {
        match self.ratios.get(ratio.key) {
            Some(value) => value.as_ref().copied().map_err(String::as_str),
            None if self.left_out.contains_key(ratio.key) => Err(self.left_out[ratio.key]),
            None => Err(if self.asked.contains(&ratio.part) { "not measured" } else { NOT_ASKED }),
        }
    }

    /// Ratios, then the parts.
    pub(super) fn markdown(&self) -> String {
        let mut table = markdown_table(&["ratio", "what", "measured", "goal", "met"]);
        for ratio in &RATIOS {
            let (measured, met) = match self.value(ratio) {
                Ok(value) => (format!("{value:.3}"), ratio.goal.verdict(value).to_owned()),
                Err(why) => ("-".to_owned(), self.kind_of_absence(ratio, why)),
            };
            table.add_row([ratio.key.to_owned(), ratio.what.to_owned(), measured, ratio.goal.shown(), met]);
        }
        let about = self.about.join("\n");
        let quick =
            if self.is_quick { "\n**Quick: too few pictures and rounds for figures that hold.**\n" } else { "" };
        let missing: Vec<_> =
            self.missing().iter().map(|(key, why)| format!("- `{key}` is missing: {why}\n")).collect();
        let missing = missing.concat();
        format!("{about}\n{quick}\n{table}\n\n{missing}\n{}", self.sections.join("\n"))
    }

    /// What the table says in place of a verdict; the reasons of what is missing stand below it.
    fn kind_of_absence(&self, ratio: &Ratio, why: &str) -> String {
        if self.missing().contains_key(ratio.key) { "**missing**".to_owned() } else { why.to_owned() }
    }

    /// One line: every ratio, null where it is missing.
    pub(super) fn json(&self) -> Value {
        let mut line = Map::new();
        line.insert("bench".to_owned(), json!("all"));
        line.insert("quick".to_owned(), json!(self.is_quick));
        for ratio in &RATIOS {
            line.insert(
                ratio.key.to_owned(),
                self.value(ratio).map_or(Value::Null, |v| json!((v * 1e4).round() / 1e4)),
            );
        }
        line.insert("goals_missed".to_owned(), json!(self.missed()));
        line.insert("missing".to_owned(), json!(self.missing()));
        Value::Object(line)
    }
}

impl Goal {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
            Self::None => true,
        }
    }

    fn verdict(self, value: f64) -> &'static str {
        match self {
            Self::None => "",
            _ if self.is_met(value) => "yes",
            _ => "**no**",
        }
    }

    fn shown(self) -> String {
        match self {
            Self::AtLeast(least) => format!("at least {least}"),
            Self::AtMost(most) => format!("at most {most}"),
            Self::None => String::new(),
        }
    }
}

/// The same words without line breaks.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An empty table that Markdown reads too.
pub(crate) fn markdown_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header);
    table
}

/// Puts the report where a document has its marks, and leaves the rest of it as it is.
pub(crate) fn put_into(document: &str, markdown: &str) -> anyhow::Result<String> {
    const MARKS: [&str; 2] = ["<!-- measured -->\n", "<!-- end of measured -->"];
    let cut = || {
        let (before, rest) = document.split_once(MARKS[0])?;
        Some((before, rest.split_once(MARKS[1])?.1))
    };
    let Some((before, after)) = cut() else {
        anyhow::bail!("the document has no line {:?} with {:?} below it", MARKS[0].trim(), MARKS[1]);
    };
    Ok(format!("{before}{}\n{}\n{}{after}", MARKS[0], markdown.trim_end(), MARKS[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_misses_its_goal_is_told() {
        let mut report = Report::new(vec!["A machine.".to_owned()], true, vec![Part::Small, Part::Search]);
        report.ratio("index_vs_runtime", Ok(0.5));
        report.ratio("index_vs_peer_small", Ok(1.7));
        report.ratio("index_vs_peer_small_fp32", Err("no\n Python".to_owned()));
        report.left_out("index_vs_peer_small_services", "too few pictures");
        report.failed(Part::Search, "no faiss");
        let line = report.json();
        assert_eq!(line["index_vs_runtime"], 0.5);
        assert_eq!(line["goals_missed"], json!(["index_vs_runtime"]));
        assert!(line["index_vs_peer_12mp"].is_null() && line["missing"].get("index_vs_peer_12mp").is_none());
        assert_eq!(line["missing"]["index_vs_peer_small_fp32"], "no Python");
        assert_eq!(line["missing"]["search_1m_vs_faiss_flat"], "no faiss");
        assert_eq!(line["missing"]["index_vs_runtime_services"], "not measured");
        assert!(line["missing"].get("index_vs_peer_small_services").is_none());
        let text = report.markdown();
        assert!(text.contains("- `search_1m_vs_faiss_flat` is missing: no faiss\n"));
        assert!(text.contains("A machine.") && text.contains("**Quick") && text.contains(NOT_ASKED));
        assert!(text.contains("too few pictures"));
        assert!(RATIOS.iter().all(|ratio| text.contains(ratio.key) && line.get(ratio.key).is_some()));
    }

    #[test]
    fn a_document_keeps_what_stands_around_its_table() {
        let document = "# Speed\n<!-- measured -->\nold\n<!-- end of measured -->\nmore\n";
        let new = put_into(document, "new\n").unwrap();
        assert_eq!(new, "# Speed\n<!-- measured -->\n\nnew\n<!-- end of measured -->\nmore\n");
        assert_eq!(put_into(&new, "new").unwrap(), new);
        assert!(put_into("# Speed\n", "new").is_err());
    }
}
