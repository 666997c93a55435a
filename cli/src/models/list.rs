//! `face-id models list`: the catalogue on this machine.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};
use shared::catalogue::{AllowedUse, Catalogue, CpuFeature, Pipeline};
use shared::config::Config;
use worker::assets::Assets;
use worker::inference::EngineOptions;
use worker::offer::Offer;

/// Prints the table, what keeps pipelines from running here, which are made for this processor, and the licences.
#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(super) async fn list(config: &Config, catalogue: &Catalogue) -> anyhow::Result<()> {
    let assets = Assets::configured(config);
    let options = EngineOptions::configured(&config.worker);
    let offer = Offer::of_all(catalogue, &assets, &options).await;
    let left_out = offer.left_out();
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["pipeline", "runs here", "metric", "file", "use", "found"]);
    for pipeline in catalogue.pipelines() {
        let metric = pipeline.recognizer.metric.to_string();
        let runs = if left_out.contains_key(&pipeline.name) { "no" } else { "yes" };
        for (n, file) in pipeline.files().into_iter().enumerate() {
            let found = assets.present(file).await?;
            let found = found.map_or_else(|| "missing".to_owned(), |path| path.display().to_string());
            let [name, runs, metric] = if n == 0 { [pipeline.name.as_str(), runs, metric.as_str()] } else { [""; 3] };
            let allowed = match file.allowed_use() {
                AllowedUse::Permissive => AllowedUse::Permissive.to_string(),
                restricted if assets.check_licence(pipeline).is_ok() => format!("{restricted}, accepted"),
                restricted => format!("{restricted}, not accepted"),
            };
            table.add_row([name, runs, metric, &file.name, &allowed, &found]);
        }
    }
    println!("{table}");
    for (pipeline, why) in &left_out {
        println!("{pipeline} does not run here: {why}");
    }
    for line in recommendations(catalogue, options.features) {
        println!("{line}");
    }
    let licences: BTreeMap<_, _> =
        catalogue.pipelines().flat_map(Pipeline::files).map(|f| (&f.name, &f.licence)).collect();
    for (file, licence) in licences {
        println!("licence of {file}: {licence}");
    }
    println!("default pipeline: {}", config.models.default_pipeline);
    Ok(())
}

/// The pipelines that ask for something this processor has.
fn recommendations(catalogue: &Catalogue, features: &[CpuFeature]) -> Vec<String> {
    let line = |pipeline: &Pipeline| {
        let feature = pipeline.requires.iter().find(|feature| features.contains(feature))?;
        Some(format!(
            "recommended on this processor, which has {feature}: {} ({})",
            pipeline.name, pipeline.description
        ))
    };
    catalogue.pipelines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_processor_is_made_for_is_recommended() {
        let catalogue = Catalogue::load(None).unwrap();
        let lines = recommendations(&catalogue, &[CpuFeature::AvxVnni]);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("avx_vnni") && lines[0].contains("yunet-mobilefacenet-int8"), "{lines:?}");
        assert!(recommendations(&catalogue, &[]).is_empty());
    }
}
