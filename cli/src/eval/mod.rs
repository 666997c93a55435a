//! `face-id eval`: how accurate and how fast a pipeline is, and which thresholds its scores need.

mod all;
pub(crate) mod calibration;
mod clusters;
pub(crate) mod embed;
pub(crate) mod joint_bayes;
mod pairs;
pub(crate) mod plots;
mod protocol;
mod report;
mod templates;

use std::path::PathBuf;

use anyhow::Context as _;
use shared::catalogue::{Catalogue, Metric};
use shared::config::Config;
use shared::embedding::Embedding;
use worker::assets::Assets;
use worker::inference::{Engine, EngineOptions};
use worker::vision::decode::DecodeLimits;

use self::calibration::{ALIASES, Calibration, Gallery};
use self::embed::{Embedded, Setup};
use self::pairs::Pairs;
use self::protocol::{Kinds, Scored, fold_accuracy};
use self::report::{Fold, Report};

/// Pictures in flight a thread: while one waits for a model, another is decoded.
const IN_FLIGHT_PER_THREAD: usize = 2;
/// Score of a pair with a picture on which no face was found, or the lowest that was found: never a match.
const NO_FACE: f32 = -1.0;

#[derive(clap::Subcommand)]
pub(crate) enum EvalCommand {
    /// Labeled Faces in the Wild: accuracy by its view 2, thresholds by false accept rate, images a second.
    Lfw(LfwArgs),
    /// Clusters of unknown faces: pairwise precision and recall, in several orders of arrival.
    Clusters(clusters::ClustersArgs),
    /// Several enrolled faces of each person, with right labels and with a wrong one: who is named by the nearest face alone, and
    /// who by all of them together.
    Templates(templates::TemplatesArgs),
    /// Joint Bayesian beside the plain cosine, on the same pairs of LFW: learnt from the people of some folds, judged on the others.
    JointBayes(joint_bayes::JointBayesArgs),
}

#[derive(clap::Args)]
pub(crate) struct LfwArgs {
    /// LFW's pictures, as `DIR/<person>/<person>_<number>.jpg`.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// LFW's pairs.txt.
    #[arg(long, value_name = "FILE")]
    pairs: PathBuf,
    /// The pipeline; the default one where absent.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Measure every pipeline that runs here, and show all in one table and one chart. What was measured is kept: run it again
    /// after an interruption.
    #[arg(long, conflicts_with_all = ["model", "json"])]
    all: bool,
    /// With --all: measure these only (repeatable), and show them beside what was measured before.
    #[arg(long, value_name = "NAME", requires = "all")]
    only: Vec<String>,
    /// With --all: measure again what was measured before, too.
    #[arg(long, requires = "all")]
    again: bool,
    /// With --all: where what was measured is kept; `eval` in the cache folder where absent.
    #[arg(long, value_name = "DIR", requires = "all")]
    results: Option<PathBuf>,
    /// With --all: put the table between this document's marks, too.
    #[arg(long, value_name = "FILE", requires = "all")]
    document: Option<PathBuf>,
    /// Write all figures here, with the most similar pairs of different people.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw roc.svg and scores.svg here; with --all, lfw-roc.svg.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Sessions a model, each with a thread; the worker's setting where absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
}

pub(crate) async fn run(config: &Config, command: EvalCommand) -> anyhow::Result<()> {
    match command {
        EvalCommand::Lfw(args) => lfw(config, &args).await,
        EvalCommand::Clusters(args) => clusters::run(&setup(config, args.model(), None).await?.0, &args).await,
        EvalCommand::JointBayes(args) => joint_bayes::run(config, &args).await,
        EvalCommand::Templates(args) => templates::run(&setup(config, args.model(), None).await?.0, &args).await,
    }
}

async fn lfw(config: &Config, args: &LfwArgs) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&args.pairs).with_context(|| format!("read {}", args.pairs.display()))?;
    let pairs = Pairs::parse(&text).with_context(|| format!("read {}", args.pairs.display()))?;
    if args.all {
        return all::run(config, args, &pairs).await;
    }
    let (report, kinds) = measure(config, args, &pairs, args.model.as_deref()).await?;
    report.print();
    write(args, &report, &kinds)
}

/// One pipeline, the default one where absent, on all of LFW's pairs.
async fn measure(
    config: &Config,
    args: &LfwArgs,
    pairs: &Pairs,
    model: Option<&str>,
) -> anyhow::Result<(Report, Kinds)> {
    let photos: Vec<PathBuf> = pairs.photos.iter().map(|photo| photo.path(&args.images)).collect();
    let (setup, threads) = setup(config, model, args.threads).await?;
    let embedded = embed::embed(&setup, &photos).await?;
    let bare_rate = embed::bare_rate(&setup, &photos).await?;
    let metric = setup.engine.pipeline().recognizer.metric;
    let scored = score(pairs, &embedded.embeddings, metric);
    let calibration = calibrate(pairs, &embedded.embeddings, metric).await?;
    let kinds = Kinds::of(&scored);
    let accuracy = fold_accuracy(&scored, pairs.folds);
    let [at_1e2, at_1e3] = [1e-2, 1e-3].map(|far| kinds.at_far(far));
    let report = Report {
        pipeline: setup.engine.pipeline().name.clone(),
        accuracy: accuracy.mean,
        accuracy_std: accuracy.std,
        threshold: accuracy.mean_threshold(),
        folds: Fold::of(&accuracy),
        tar_at_far_1e2: at_1e2.tar,
        threshold_at_far_1e2: at_1e2.threshold,
        tar_at_far_1e3: at_1e3.tar,
        threshold_at_far_1e3: at_1e3.threshold,
        eer: kinds.equal_error_rate(),
        images: photos.len(),
        undetected: embedded.embeddings.iter().filter(|found| found.is_none()).count(),
        second_try: embedded.second_try,
        threads,
        seconds: embedded.took.as_secs_f64(),
        images_per_second: rate(&embedded),
        bare_runtime_images_per_second: bare_rate,
        calibration,
    };
    Ok((report, kinds))
}

/// The models of a pipeline, the default one where absent, and threads.
pub(crate) async fn setup(
    config: &Config,
    model: Option<&str>,
    threads: Option<u16>,
) -> anyhow::Result<(Setup, usize)> {
    let catalogue = Catalogue::load(config.models.catalogue_dir())?;
    let pipeline = catalogue.pipeline(model.unwrap_or(&config.models.default_pipeline))?;
    let threads = threads.map_or_else(|| config.worker.sessions(), usize::from);
    let engine = Engine::load(pipeline, &Assets::configured(config), EngineOptions::for_cpu(threads)).await?;
    let vision = &config.vision;
    let limits = DecodeLimits {
        max_bytes: vision.max_image_bytes,
        max_pixels: vision.max_image_pixels,
        max_side: vision.max_image_side,
    };
    Ok((Setup { engine, limits, in_flight: threads * IN_FLIGHT_PER_THREAD }, threads))
}

fn score(pairs: &Pairs, embeddings: &[Option<Embedding>], metric: Metric) -> Vec<Scored> {
    let score =
        |pair: &pairs::Pair| Some(embeddings[pair.left].as_ref()?.score(embeddings[pair.right].as_ref()?, metric));
    let scores: Vec<Option<f32>> = pairs.comparisons.iter().map(score).collect();
    // Below whatever was found; no cosine is below this.
    let no_face = scores.iter().flatten().copied().fold(NO_FACE, f32::min);
    let scored = |(pair, score): (&pairs::Pair, Option<f32>)| Scored {
        score: score.unwrap_or(no_face),
        fold: pair.fold,
        is_same_person: pair.is_same_person,
    };
    pairs.comparisons.iter().zip(scores).map(scored).collect()
}

async fn calibrate(pairs: &Pairs, embeddings: &[Option<Embedding>], metric: Metric) -> anyhow::Result<Calibration> {
    let found = pairs.photos.iter().zip(embeddings);
    let (photos, embeddings) = found.filter_map(|(photo, e)| Some((photo.clone(), e.clone()?))).unzip();
    let gallery = Gallery { metric, photos, embeddings };
    Ok(tokio::task::spawn_blocking(move || calibration::measure(&gallery, &ALIASES)).await?)
}

fn rate(embedded: &Embedded) -> f64 {
    embedded.embeddings.len() as f64 / embedded.took.as_secs_f64()
}

fn write(args: &LfwArgs, report: &Report, kinds: &Kinds) -> anyhow::Result<()> {
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(report)? + "\n";
        std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    }
    if let Some(folder) = &args.plots {
        std::fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
        plots::draw(folder, &report.pipeline, kinds, (report.threshold, report.calibration.metric))?;
    }
    Ok(())
}
