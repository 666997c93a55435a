//! `face-id eval lfw --all`: every pipeline that runs here, one after the other, in one table and one chart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table};
use serde::{Deserialize, Serialize};
use shared::catalogue::{AlignmentKind, Catalogue, Pipeline, templates};
use shared::config::Config;
use shared::digest::sha256_hex;
use worker::assets::{AssetError, Assets};
use worker::inference::EngineOptions;
use worker::offer::Offer;

use super::pairs::Pairs;
use super::plots::{self, Curve};
use super::protocol::{Kinds, Rates};
use super::report::Report;
use super::{LfwArgs, measure};
use crate::bench::report::{markdown_table, put_into};

/// Points of a curve that are kept: a chart shows no more.
const CURVE_POINTS: usize = 400;

/// What is kept of one pipeline's measurement, so that an interrupted run goes on.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// What it is a measurement of: the entry, the pictures and pairs, and this version of the program.
    key: String,
    accuracy: f64,
    accuracy_std: f64,
    threshold: f32,
    tar_at_far_1e2: f64,
    tar_at_far_1e3: f64,
    undetected: usize,
    /// Milliseconds of one core for a picture.
    ms: f64,
    /// False and true accept rates, rising.
    curve: Vec<(f64, f64)>,
    /// The catalogue section of its thresholds.
    calibration: String,
}

/// Measures what was not measured yet, and shows all.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the command's output, and its progress")]
pub(super) async fn run(config: &Config, args: &LfwArgs, pairs: &Pairs) -> anyhow::Result<()> {
    let folder = args.results.clone().unwrap_or_else(|| config.cache_dir().join("eval"));
    std::fs::create_dir_all(&folder).with_context(|| format!("make the folder {}", folder.display()))?;
    let catalogue = Catalogue::load(config.models.catalogue_dir())?;
    for name in &args.only {
        catalogue.pipeline(name)?;
    }
    let assets = Assets::configured(config);
    let offer = Offer::of_all(&catalogue, &assets, &EngineOptions::configured(&config.worker)).await;
    let (mut kept, mut failed) = (BTreeMap::new(), Vec::new());
    for pipeline in catalogue.pipelines() {
        let file = folder.join(format!("{}.json", pipeline.name));
        let key = key(pipeline, args, pairs);
        let is_wanted = args.only.is_empty() || args.only.contains(&pipeline.name);
        let known = read(&file).filter(|known| known.key == key && !(args.again && is_wanted));
        match (known, offer.left_out().get(&pipeline.name)) {
            (Some(known), _) => {
                eprintln!("{}: measured before ({})", pipeline.name, file.display());
                kept.insert(pipeline.name.clone(), known);
            }
            (None, Some(why)) if is_wanted => eprintln!("{}: not measured: {why}", pipeline.name),
            (None, None) if is_wanted => {
                if let Err(why) = fetched(&assets, pipeline).await {
                    eprintln!("{}: not measured: {why}", pipeline.name);
                    continue;
                }
                eprintln!("{}: measuring", pipeline.name);
                let measured = match measure(config, args, pairs, Some(&pipeline.name)).await {
                    Ok((report, kinds)) => Kept::of(key, &report, &kinds),
                    Err(error) => {
                        eprintln!("{}: failed: {error:#}", pipeline.name);
                        failed.push(pipeline.name.as_str());
                        continue;
                    }
                };
                std::fs::write(&file, serde_json::to_string_pretty(&measured)? + "\n")
                    .with_context(|| format!("write {}", file.display()))?;
                eprintln!("{}: {}", pipeline.name, percent_std(&measured));
                kept.insert(pipeline.name.clone(), measured);
            }
            (None, _) => {}
        }
    }
    anyhow::ensure!(!kept.is_empty(), "no pipeline that was asked for runs here; `face-id models list` says why");
    let table = table(&catalogue, &kept)?;
    println!("{table}");
    let chart = args.plots.as_deref().unwrap_or(&folder).join("lfw-roc.svg");
    draw(&chart, &kept)?;
    println!("sections for models/*.toml: {}; curves: {}", folder.display(), chart.display());
    write_sections(&folder, &kept)?;
    if let Some(path) = &args.document {
        let document = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        std::fs::write(path, put_into(&document, &table.to_string())?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    anyhow::ensure!(failed.is_empty(), "these could not be measured: {}", failed.join(", "));
    Ok(())
}

/// Fetches the weights that are not here, where that is allowed.
async fn fetched(assets: &Assets, pipeline: &Pipeline) -> Result<(), AssetError> {
    for file in pipeline.files() {
        assets.weights(pipeline, file).await?;
    }
    Ok(())
}

/// Tells one measurement from another: by the entry without what was measured of it, the pictures and pairs, and this version.
fn key(pipeline: &Pipeline, args: &LfwArgs, pairs: &Pairs) -> String {
    let bare = Pipeline { measured: None, calibration: None, description: String::new(), ..pipeline.clone() };
    let (images, version) = (args.images.display(), env!("CARGO_PKG_VERSION"));
    sha256_hex(format!("{version} {bare:?} {images} {:?} {:?}", args.threads, pairs.comparisons))
}

/// None of a file that is not there, or not whole: it is measured again.
fn read(file: &Path) -> Option<Kept> {
    serde_json::from_str(&std::fs::read_to_string(file).ok()?).ok()
}

impl Kept {
    fn of(key: String, report: &Report, kinds: &Kinds) -> Self {
        let curve = kinds.curve();
        let step = curve.len().div_ceil(CURVE_POINTS).max(1);
        // Strict rates are the ones that matter: the first are all kept.
        let is_shown =
            |(n, _): &(usize, Rates)| *n < CURVE_POINTS / 4 || n.is_multiple_of(step) || *n + 1 == curve.len();
        let shown = curve.iter().copied().enumerate().filter(is_shown);
        Self {
            key,
            accuracy: report.accuracy,
            accuracy_std: report.accuracy_std,
            threshold: report.threshold,
            tar_at_far_1e2: report.tar_at_far_1e2,
            tar_at_far_1e3: report.tar_at_far_1e3,
            undetected: report.undetected,
            ms: 1e3 * report.threads as f64 / report.images_per_second,
            curve: shown.map(|(_, rates)| (rates.far, rates.tar)).collect(),
            calibration: report.calibration.toml(),
        }
    }

    /// The sections for the entry's file.
    fn sections(&self) -> String {
        format!(
            "[measured]\naccuracy = {:.4}\naccuracy_std = {:.4}\ntar_at_far_1e2 = {:.4}\ntar_at_far_1e3 = {:.4}\nms = {:.1}\n\n{}",
            self.accuracy, self.accuracy_std, self.tar_at_far_1e2, self.tar_at_far_1e3, self.ms, self.calibration
        )
    }
}

fn write_sections(folder: &Path, kept: &BTreeMap<String, Kept>) -> anyhow::Result<()> {
    for (name, measured) in kept {
        let file: PathBuf = folder.join(format!("{name}.toml"));
        std::fs::write(&file, measured.sections()).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

fn percent_std(measured: &Kept) -> String {
    format!("{} +- {:.2}", percent(measured.accuracy), measured.accuracy_std * 100.0)
}

/// Every pipeline and template, the most accurate first, those without weights here at the end.
fn table(catalogue: &Catalogue, kept: &BTreeMap<String, Kept>) -> anyhow::Result<Table> {
    let mut table = markdown_table(&[
        "pipeline",
        "use",
        "finds",
        "aligns",
        "components",
        "accuracy",
        "at 1e-2",
        "at 1e-3",
        "no face",
        "ms",
        "weights",
    ]);
    let mut pipelines: Vec<Pipeline> = catalogue.pipelines().cloned().collect();
    for template in templates().filter(|template| catalogue.find(template.name).is_none()) {
        pipelines.push(template.pipeline()?);
    }
    let accuracy = |pipeline: &Pipeline| kept.get(&pipeline.name).map_or(-1.0, |measured| measured.accuracy);
    pipelines.sort_by(|a, b| accuracy(b).total_cmp(&accuracy(a)).then_with(|| a.name.cmp(&b.name)));
    for pipeline in &pipelines {
        table.add_row(row(pipeline, kept.get(&pipeline.name)));
    }
    for column in 4..=9 {
        if let Some(figures) = table.column_mut(column) {
            figures.set_cell_alignment(CellAlignment::Right);
        }
    }
    Ok(table)
}

fn row(pipeline: &Pipeline, measured: Option<&Kept>) -> [String; 11] {
    let figures = match measured {
        Some(measured) => [
            percent_std(measured),
            percent(measured.tar_at_far_1e2),
            percent(measured.tar_at_far_1e3),
            measured.undetected.to_string(),
            format!("{:.1}", measured.ms),
        ],
        None => ["not measured here", "", "", "", ""].map(str::to_owned),
    };
    let [accuracy, at_1e2, at_1e3, without, ms] = figures;
    [
        format!("`{}`", pipeline.name),
        pipeline.allowed_use().to_string(),
        finds(pipeline),
        aligns(pipeline),
        pipeline.recognizer.dimension.to_string(),
        accuracy,
        at_1e2,
        at_1e3,
        without,
        ms,
        weights(pipeline).to_owned(),
    ]
}

fn finds(pipeline: &Pipeline) -> String {
    match &pipeline.landmarks {
        Some(landmarks) => format!("{}, points {}", pipeline.detector.family, landmarks.scheme),
        None => pipeline.detector.family.to_string(),
    }
}

fn aligns(pipeline: &Pipeline) -> String {
    let [width, height] = pipeline.alignment.size();
    let kind = match pipeline.alignment.kind {
        AlignmentKind::Similarity => "similarity",
        AlignmentKind::Affine => "affine",
        AlignmentKind::Margin => "margin",
    };
    format!("{kind} {width}x{height}")
}

/// Where the recognizer's weights come from.
fn weights(pipeline: &Pipeline) -> &'static str {
    let file = &pipeline.recognizer.file;
    match (file.size_bytes, file.urls.is_empty()) {
        (0, _) => "yours (template)",
        (_, false) => "published",
        (_, true) => "converted",
    }
}

fn draw(file: &Path, kept: &BTreeMap<String, Kept>) -> anyhow::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
    }
    let mut curves: Vec<Curve> = kept
        .iter()
        .map(|(name, measured)| Curve {
            name: format!("{name}: {}", percent(measured.accuracy)),
            accuracy: measured.accuracy,
            points: measured.curve.clone(),
        })
        .collect();
    curves.sort_by(|a, b| b.accuracy.total_cmp(&a.accuracy));
    plots::curves(file, &curves).with_context(|| format!("draw {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(accuracy: f64) -> Kept {
        Kept {
            key: String::new(),
            accuracy,
            accuracy_std: 0.004,
            threshold: 0.3,
            tar_at_far_1e2: 0.99,
            tar_at_far_1e3: 0.98,
            undetected: 1,
            ms: 12.34,
            curve: vec![(0.0, 0.5), (0.001, 0.9), (0.1, 1.0), (1.0, 1.0)],
            calibration: "[calibration]\nmeasured_on = \"LFW\"\nfar = [1e-1, 1e-2]\ncosine = [0.25, 0.35]\n".to_owned(),
        }
    }

    #[test]
    fn every_family_has_a_row_the_most_accurate_first() {
        let catalogue = Catalogue::load(None).unwrap();
        let measured: BTreeMap<_, _> =
            [("yunet-mobilefacenet".to_owned(), kept(0.98)), ("scrfd-mobilefacenet".to_owned(), kept(0.99))].into();
        let text = table(&catalogue, &measured).unwrap().to_string();
        let place = |name: &str| text.find(&format!("`{name}`")).unwrap_or_else(|| panic!("{name} is missing"));
        assert!(place("scrfd-mobilefacenet") < place("yunet-mobilefacenet"));
        for name in catalogue.pipelines().map(|p| p.name.as_str()).chain(templates().map(|template| template.name)) {
            assert!(place(name) >= place("scrfd-mobilefacenet"), "{name}");
        }
        assert!(text.contains("99.00 % +- 0.40") && text.contains("12.3") && text.contains("not measured here"));
        let folder = tempfile::tempdir().unwrap();
        draw(&folder.path().join("roc.svg"), &measured).unwrap();
        let chart = std::fs::read_to_string(folder.path().join("roc.svg")).unwrap();
        assert!(chart.contains("scrfd-mobilefacenet: 99.00 %") && chart.contains("yunet-mobilefacenet: 98.00 %"));
    }

    #[test]
    fn the_sections_fit_an_entry() {
        let entry = include_str!("../../../models/yunet-sface.toml");
        let pipeline = Pipeline::parse("x", &format!("{entry}\n{}", kept(0.9876).sections())).unwrap();
        assert!((pipeline.measured.unwrap().accuracy - 0.9876).abs() < 1e-9);
        assert!(pipeline.calibration.is_some());
    }
}
