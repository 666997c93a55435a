//! What both models of a run make of faces whose persons are known, as a table.

use std::time::{Duration, Instant};

use comfy_table::{Table, presets};
use serde_json::{Value, json};

use crate::client::{Client, Refused};

/// Longest wait for a worker that compares.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Disagreements that are printed; the answer has more.
const SHOWN: usize = 10;

/// Has the two be compared on what there is now, and prints it; of a run that is over, what was said last.
pub(super) async fn show(client: &Client, run: &str) -> anyhow::Result<()> {
    let path = format!("{run}/comparison");
    match client.post(&path, &json!({})).await {
        Err(error) if error.downcast_ref::<Refused>().is_some_and(|r| r.code == "reprocess_state") => {
            print(&client.get(&path).await?);
            return Ok(());
        }
        asked => asked?,
    };
    let began = Instant::now();
    loop {
        let comparison = client.get(&path).await?;
        // Both are instants of one clock, written alike.
        if comparison["made_at"].as_str() >= comparison["wanted_at"].as_str() {
            print(&comparison);
            return Ok(());
        }
        anyhow::ensure!(began.elapsed() < PATIENCE, "no worker has compared the models; is one running?");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
fn print(comparison: &Value) {
    println!("{}", figures(&comparison["report"]));
    if comparison["disagreements"].as_array().is_some_and(|found| !found.is_empty()) {
        println!("{}", disagreements(comparison));
    }
    println!("{comparison}");
}

fn figures(report: &Value) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    let sides = [&report["from"], &report["to"]];
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let number = |value: &Value| if value.is_null() { "-".to_owned() } else { text(value) };
    table.set_header([String::new(), text(&sides[0]["pipeline"]), text(&sides[1]["pipeline"])]);
    let mut row = |name: &str, of: &dyn Fn(&Value) -> String| {
        table.add_row([name.to_owned(), of(sides[0]), of(sides[1])]);
    };
    row("pairs of one person", &|side| number(&side["genuine_pairs"]));
    row("pairs of two persons", &|side| number(&side["impostor_pairs"]));
    for (n, far) in ["1 %", "0.1 %"].into_iter().enumerate() {
        row(&format!("true accepts at {far} false ones"), &|side| {
            let rate = &side["tar"][n];
            rate["why_not"].as_str().map_or_else(|| percent(&rate["tar"]), str::to_owned)
        });
    }
    row("nearest is the right person", &|side| percent(&side["rank_1"]));
    row("threshold", &|side| side["match_cosine"].as_f64().map_or_else(|| "-".to_owned(), |c| format!("{c:.4}")));
    for (name, outcome) in
        [("matched rightly", "right"), ("matched wrongly", "wrong"), ("uncertain", "uncertain"), ("unknown", "unknown")]
    {
        row(name, &|side| number(&side["outcomes"][outcome]));
    }
    for moved in report["moved"].as_array().into_iter().flatten() {
        let what = format!("{} becomes {}", text(&moved["from"]), text(&moved["to"]));
        table.add_row([what, String::new(), number(&moved["faces"])]);
    }
    let compared = format!("{} faces of {} persons", number(&report["faces"]), number(&report["persons"]));
    table.add_row([compared, format!("of {}", number(&report["labelled_faces"])), String::new()]);
    table
}

fn disagreements(comparison: &Value) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["face", "of person", "was", "becomes"]);
    let said = |side: &Value| {
        let text = |name: &str| side[name].as_str().unwrap_or_default().to_owned();
        format!("{} ({:.3}, {})", text("outcome"), side["score"].as_f64().unwrap_or_default(), text("person_id"))
    };
    for one in comparison["disagreements"].as_array().into_iter().flatten().take(SHOWN) {
        let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
        table.add_row([text("face_id"), text("person_id"), said(&one["from"]), said(&one["to"])]);
    }
    table
}

fn percent(share: &Value) -> String {
    share.as_f64().map_or_else(|| "-".to_owned(), |share| format!("{:.2} %", share * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_beside_each_other() {
        let side = |name: &str, tar: Value, right: u32| {
            json!({ "pipeline": name, "genuine_pairs": 12, "impostor_pairs": 3000, "tar": [tar,
                { "far": 0.001, "tar": null, "cosine": null, "why_not": "too few" }], "rank_1": 0.5, "match_cosine": 0.3,
                "outcomes": { "right": right, "wrong": 0, "uncertain": 1, "unknown": 2 } })
        };
        let tar = json!({ "far": 0.01, "tar": 0.987, "cosine": 0.25, "why_not": null });
        let report = json!({ "labelled_faces": 99, "faces": 50, "persons": 7, "from": side("old", tar.clone(), 40),
            "to": side("new", tar, 41), "moved": [{ "from": "uncertain", "to": "right", "faces": 3 }] });
        let shown = figures(&report).to_string();
        for part in ["old", "new", "98.70 %", "too few", "50.00 %", "0.3000", "41", "uncertain becomes right", "of 99"]
        {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
}
