//! `face-id models recommend`: which pipeline for whom, by licence, accuracy and speed.

use comfy_table::{CellAlignment, Table, presets};
use shared::catalogue::{AllowedUse, Catalogue, Measured, Pipeline};
use shared::config::Config;
use worker::assets::Assets;
use worker::inference::EngineOptions;
use worker::offer::Offer;

/// From this much on, two accuracies differ by more than chance: LFW's ten folds spread by about 0.4 points.
const SAME_ACCURACY: f64 = 0.002;

/// Prints what was measured of each pipeline, and what follows from it.
#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(super) async fn run(config: &Config, catalogue: &Catalogue) -> anyhow::Result<()> {
    let offer = Offer::of_all(catalogue, &Assets::configured(config), &EngineOptions::configured(&config.worker)).await;
    let runs = |name: &str| !offer.left_out().contains_key(name);
    println!("{}", table(catalogue, &runs));
    for line in advice(catalogue, &runs) {
        println!("{line}");
    }
    println!("figures: docs/MODELS.md; licences: `face-id models list`");
    Ok(())
}

/// Those that were measured, the most accurate first.
fn measured(catalogue: &Catalogue) -> Vec<(&Pipeline, Measured)> {
    let mut all: Vec<_> = catalogue.pipelines().filter_map(|pipeline| Some((pipeline, pipeline.measured?))).collect();
    all.sort_by(|(_, a), (_, b)| b.accuracy.total_cmp(&a.accuracy));
    all
}

fn table(catalogue: &Catalogue, runs: &impl Fn(&str) -> bool) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["pipeline", "use", "LFW", "true accepts at 1e-3", "ms", "runs here"]);
    for (pipeline, figures) in measured(catalogue) {
        table.add_row([
            pipeline.name.clone(),
            pipeline.allowed_use().to_string(),
            format!("{:.2} %", figures.accuracy * 100.0),
            format!("{:.2} %", figures.tar_at_far_1e3 * 100.0),
            format!("{:.1}", figures.ms),
            (if runs(&pipeline.name) { "yes" } else { "no" }).to_owned(),
        ]);
    }
    for column in 2..=4 {
        if let Some(figures) = table.column_mut(column) {
            figures.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// For any use: the fastest of those that are as accurate as the best. Then what a restricted licence, or less accuracy, gains.
fn advice(catalogue: &Catalogue, runs: &impl Fn(&str) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    let all = measured(catalogue);
    if all.is_empty() {
        return vec!["no entry has [measured] yet; `face-id eval lfw --all` measures those that run here".to_owned()];
    }
    let here: Vec<_> = all.iter().filter(|(pipeline, _)| runs(&pipeline.name)).collect();
    let free: Vec<_> = here.iter().filter(|(pipeline, _)| pipeline.allowed_use() == AllowedUse::Permissive).collect();
    let Some((_, best)) = free.first() else {
        let restricted = here.iter().map(|(pipeline, figures)| {
            let (name, percent, ms) = (&pipeline.name, figures.accuracy * 100.0, figures.ms);
            format!(
                "no pipeline for any use runs here, but {}: {name} ({percent:.2} %, {ms:.1} ms)",
                pipeline.allowed_use()
            )
        });
        lines.extend(restricted);
        if lines.is_empty() {
            lines.push("no pipeline that was measured runs here; `face-id models list` says why".to_owned());
        }
        return lines;
    };
    let as_good = free.iter().filter(|(_, figures)| best.accuracy - figures.accuracy < SAME_ACCURACY);
    if let Some((chosen, figures)) = as_good.min_by(|(_, a), (_, b)| a.ms.total_cmp(&b.ms)) {
        lines.push(format!(
            "for any use: {} ({:.2} %, {:.1} ms): the fastest of those whose accuracy is that of the best within chance ({})",
            chosen.name,
            figures.accuracy * 100.0,
            figures.ms,
            chosen.description
        ));
        let restricted = here.iter().filter(|(pipeline, _)| pipeline.allowed_use() != AllowedUse::Permissive);
        let better = restricted.filter(|(_, other)| other.accuracy - figures.accuracy >= SAME_ACCURACY);
        for (pipeline, other) in better {
            lines.push(format!(
                "more accurate, but {}: {} ({:.2} %, {:.1} ms)",
                pipeline.allowed_use(),
                pipeline.name,
                other.accuracy * 100.0,
                other.ms
            ));
        }
        let faster = free.iter().filter(|(_, other)| other.ms < figures.ms);
        if let Some((pipeline, other)) = faster.min_by(|(_, a), (_, b)| a.ms.total_cmp(&b.ms)) {
            lines.push(format!(
                "faster, but less accurate: {} ({:.2} %, {:.1} ms)",
                pipeline.name,
                other.accuracy * 100.0,
                other.ms
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn with(name: &str, from: &str, accuracy: f64, ms: f64) -> Arc<Pipeline> {
        let known = Catalogue::load(None).unwrap().pipeline(from).unwrap().clone();
        let figures = Measured { accuracy, accuracy_std: 0.004, tar_at_far_1e2: 0.9, tar_at_far_1e3: 0.8, ms };
        Arc::new(Pipeline { name: name.to_owned(), measured: Some(figures), ..known })
    }

    #[test]
    fn the_fastest_of_the_best_is_advised_and_what_a_licence_gains() {
        let catalogue: Catalogue = [
            with("slow-best", "yunet-mobilefacenet", 0.9935, 20.0),
            with("fast-best", "yunet-mobilefacenet", 0.9925, 9.0),
            with("fast-worse", "yunet-mobilefacenet", 0.98, 3.0),
            with("not-here", "yunet-mobilefacenet", 0.999, 1.0),
            with("research", "scrfd-mobilefacenet", 0.997, 9.0),
        ]
        .into_iter()
        .collect();
        let lines = advice(&catalogue, &|name| name != "not-here");
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].starts_with("for any use: fast-best"), "{lines:?}");
        assert!(lines[1].contains("research") && lines[1].contains("non-commercial"), "{lines:?}");
        assert!(lines[2].contains("fast-worse"), "{lines:?}");
        let shown = table(&catalogue, &|name| name != "not-here").to_string();
        assert!(shown.find("not-here") < shown.find("research") && shown.find("research") < shown.find("slow-best"));
        assert_eq!(advice(&catalogue, &|_| false).len(), 1);
        let restricted = advice(&catalogue, &|name| name == "research");
        assert!(restricted.len() == 1 && restricted[0].contains("non-commercial: research"), "{restricted:?}");
    }
}
