//! `face-id calibrate`: which thresholds give which false accept rates, and how sure that is. In reading order:
//!
//! - [`labelled`] takes labelled faces from a folder or from a collection
//! - [`embedded`] makes vectors of pictures, as the service does
//! - [`comparisons`] compares every two of them
//! - [`bounds`] finds thresholds, and bounds of the rate at each
//! - [`splits`] looks whether such bounds hold for other people
//! - [`plots`] and [`report`] show it

mod bounds;
mod comparisons;
mod embedded;
mod labelled;
mod plots;
mod report;
mod splits;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use shared::config::Config;

use self::bounds::{RATES, points};
use self::comparisons::{Comparisons, Labelled};
use self::embedded::LeftOut;
use self::report::Report;
use crate::child::interrupted;
use crate::client::Client;
use crate::eval;
use crate::transfer::ServerArgs;

/// The people of the bounds are drawn by it: the same set has the same bounds each time.
const SEED: u64 = 1;

#[derive(clap::Args)]
#[group(id = "set", required = true, multiple = false, args = ["images", "collection"])]
pub(crate) struct CalibrateArgs {
    /// Labelled pictures, as `DIR/<person>/<picture>`, of which the most central face counts. The calibration holds for all
    /// collections that have none of their own.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// A collection, by name or id: the faces that were enrolled or that a user named. The calibration is its own.
    #[arg(long, value_name = "NAME")]
    collection: Option<String>,
    /// The pipeline; where absent the collection's, or of pictures the default one.
    #[arg(long, value_name = "PIPELINE")]
    model: Option<String>,
    /// What the faces are called where the calibration is shown; the folder's name or the collection's where absent.
    #[arg(long, value_name = "TEXT")]
    measured_on: Option<String>,
    /// Take so many faces of each person at most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    per_person: Option<u16>,
    /// Only measure; nothing is stored.
    #[arg(long)]
    dry_run: bool,
    /// Only look whether the bounds hold for other people: split the people in halves so many times, calibrate on one and
    /// measure the other. Fails where the held-out rate lies within the bounds in less than 17 of 20 splits, or a bound is
    /// more than 15 % from the rate.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    check_splits: Option<u16>,
    /// Write all figures here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw far.svg and scores.svg here.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
}

/// What is asked for beside where the faces come from.
struct Wanted {
    measured_on: String,
    splits: usize,
    plots: Option<PathBuf>,
}

/// Measures, shows it, and has the server store it.
pub(crate) async fn run(config: Config, args: CalibrateArgs) -> anyhow::Result<()> {
    let stores = !args.dry_run && args.check_splits.is_none();
    let show = Show { json: args.json.clone() };
    let report = match (&args.images, &args.collection) {
        (Some(folder), _) => {
            let (pipeline, faces, left_out) = pictures(&config, &args, folder).await?;
            let mut report = measure(args.wanted(), pipeline, faces).await?;
            report.left_out = left_out;
            show.measured(&report)?;
            if stores {
                let place = args.server.find(config).await?;
                let stored = store(&place.client()?, &mut report, &show).await;
                let left = place.leave().await;
                stored?;
                left?;
            }
            report
        }
        (None, Some(collection)) => {
            let (wanted, collection) = (args.wanted(), collection.clone());
            let place = args.server.find(config).await?;
            let client = place.client()?;
            let per_person = args.per_person.map(usize::from);
            let work = async {
                let mut report = of_collection(&client, &collection, args.model.as_deref(), per_person, wanted).await?;
                show.measured(&report)?;
                if stores {
                    store(&client, &mut report, &show).await?;
                }
                Ok(report)
            };
            let measured = tokio::select! {
                measured = work => measured,
                () = interrupted() => Err(anyhow::anyhow!("interrupted")),
            };
            let left = place.leave().await;
            let report = measured?;
            left?;
            report
        }
        (None, None) => anyhow::bail!("name labelled faces: --images or --collection"),
    };
    report.print_stored();
    splits::judge(&report.splits)
}

/// Where figures go. They are shown before they are stored: a measurement may take an hour, and the server be gone by then.
struct Show {
    json: Option<PathBuf>,
}

impl Show {
    fn measured(&self, report: &Report) -> anyhow::Result<()> {
        report.print();
        self.write(report)
    }

    fn write(&self, report: &Report) -> anyhow::Result<()> {
        let Some(file) = &self.json else { return Ok(()) };
        let text = serde_json::to_string_pretty(report)? + "\n";
        std::fs::write(file, text).with_context(|| format!("write {}", file.display()))
    }
}

impl CalibrateArgs {
    fn wanted(&self) -> Wanted {
        let folder = self.images.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        let named = folder.or_else(|| self.collection.as_ref().map(|name| format!("collection {name}")));
        Wanted {
            measured_on: self.measured_on.clone().or(named).unwrap_or_else(|| "a folder of pictures".to_owned()),
            splits: self.check_splits.map_or(0, usize::from),
            plots: self.plots.clone(),
        }
    }
}

async fn pictures(config: &Config, args: &CalibrateArgs, folder: &Path) -> anyhow::Result<(String, Labelled, LeftOut)> {
    let (setup, _) = eval::setup(config, args.model.as_deref(), None).await?;
    let (faces, left_out) = labelled::of_folder(&setup, folder, args.per_person.map(usize::from)).await?;
    Ok((setup.engine.pipeline().name.clone(), faces, left_out))
}

async fn of_collection(
    client: &Client,
    collection: &str,
    model: Option<&str>,
    per_person: Option<usize>,
    wanted: Wanted,
) -> anyhow::Result<Report> {
    let known = client.get(&format!("/v1/collections/{collection}")).await?;
    let active = known["pipeline"].as_str().context("the server's collection has no pipeline")?;
    let pipeline = model.unwrap_or(active).to_owned();
    let faces = labelled::of_collection(client, collection, &pipeline, per_person).await?;
    anyhow::ensure!(
        faces.count() > 0,
        "the collection has no face of a person with a vector of {pipeline}: enroll some, or name faces"
    );
    let mut report = measure(wanted, pipeline, faces).await?;
    report.collection = Some(collection.to_owned());
    Ok(report)
}

/// What the faces say, with charts where they are wanted.
async fn measure(wanted: Wanted, pipeline: String, faces: Labelled) -> anyhow::Result<Report> {
    let work = move || {
        let compared = Comparisons::of(&faces, RATES[0]);
        let points = points(&compared, &RATES, SEED)?;
        if let Some(folder) = &wanted.plots {
            plots::draw(folder, &format!("{pipeline}, {}", wanted.measured_on), &compared, &points)?;
        }
        let mut report = Report::new(&pipeline, wanted.measured_on, &compared, points);
        drop(compared);
        if wanted.splits > 0 {
            report.splits = splits::check(&faces, wanted.splits)?;
        }
        Ok(report)
    };
    tokio::task::spawn_blocking(work).await?
}

async fn store(client: &Client, report: &mut Report, show: &Show) -> anyhow::Result<()> {
    let stored = client.post("/v1/calibrations", &report.body()).await.context("store the calibration")?;
    report.stored = Some(stored["id"].clone());
    show.write(report)
}
