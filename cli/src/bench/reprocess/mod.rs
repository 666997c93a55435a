//! `face-id bench reprocess`: labelled pictures are indexed, and their collection goes over to another recognizer and then to
//! another detector while people are identified in it. What is lost, mixed or doubled is counted, and the pace is compared
//! with a bare loop and with indexing anew. At last the server is killed during a run.

mod census;
mod crops;
mod sources;
mod traffic;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::{Value, json};
use shared::config::Config;

use self::census::Census;
use self::crops::BareCrops;
use self::sources::Sources;
use self::traffic::{Expected, Probes};
use super::setting::say;
use super::site::Site;

#[derive(clap::Args)]
pub(crate) struct ReprocessArgs {
    /// A folder of labelled pictures, `DIR/<person>/<picture>`, as LFW's.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Pictures at most.
    #[arg(long, default_value_t = 3000)]
    limit: usize,
    /// People that are enrolled, of each of whom another picture is identified again and again.
    #[arg(long, default_value_t = 40)]
    people: usize,
    /// The pipeline to begin with; the settings' default where absent.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// One with the same detector.
    #[arg(long, value_name = "NAME", default_value = "yunet-mobilefacenet-int8")]
    recognizer: String,
    /// One with another detector.
    #[arg(long, value_name = "NAME", default_value = "scrfd-mobilefacenet")]
    detector: String,
    /// How often the server is killed during the last run.
    #[arg(long, default_value_t = 3)]
    kills: usize,
}

/// What came of it, summed over the set-ups; of what is no number of things the worst.
#[derive(Clone, Debug, Serialize)]
struct Figures {
    faces: usize,
    ids_kept_same_detector: usize,
    ids_kept_new_detector: usize,
    /// Faces that the new detector did not find, and that the run lists for review.
    ids_listed: usize,
    names: usize,
    names_kept: usize,
    identified: usize,
    errors: usize,
    mixed_answers: usize,
    doubled: usize,
    source_reads: u64,
    detector_calls: u64,
    kills: usize,
    coverage_after_kills: f64,
    reembed_vs_bare: f64,
    /// The same where database, queue and store are servers that share the machine's cores with the worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    reembed_vs_bare_services: Option<f64>,
    time_vs_reindex: f64,
}

const COLLECTION: &str = "bench-reprocess";
/// Longest time a run may take.
const PATIENCE: Duration = Duration::from_secs(1800);
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(crate) async fn run(config: &Config, args: &ReprocessArgs) -> anyhow::Result<()> {
    let sources = Sources::copy(&args.images, args.limit)?;
    let mut all = vec![("embedded", on_site(&config.embedded(), args, &sources).await?)];
    if config.has_services() {
        all.push(("services", on_site(config, args, &sources).await?));
    }
    print(&all)?;
    let right = |figures: &Figures| {
        let lost = figures.faces - figures.ids_kept_new_detector;
        figures.ids_kept_same_detector == figures.faces
            && figures.names_kept == figures.names
            && lost == figures.ids_listed
            && figures.errors + figures.mixed_answers + figures.doubled == 0
            && figures.source_reads + figures.detector_calls == 0
            && figures.coverage_after_kills >= 1.0
    };
    anyhow::ensure!(
        all.iter().all(|(_, figures)| right(figures)),
        "something was lost, mixed or doubled; see the table"
    );
    Ok(())
}

async fn on_site(config: &Config, args: &ReprocessArgs, sources: &Sources) -> anyhow::Result<Figures> {
    let first = args.model.clone().unwrap_or_else(|| config.models.default_pipeline.clone());
    let library = sources.library(config).await?;
    let mut trial = Trial {
        site: Site::open(config, library, &[]).await?,
        config,
        sources,
        pipelines: [first, args.recognizer.clone(), args.detector.clone()],
    };
    say(&format!("{}: {} pictures", trial.site.mode(), trial.site.library.pictures.len()));
    let measured = trial.measure(args).await;
    trial.site.close(measured).await
}

/// One set-up and what is tried there.
struct Trial<'a> {
    site: Site,
    config: &'a Config,
    sources: &'a Sources,
    pipelines: [String; 3],
}

/// A run that was filled.
struct Filled {
    run: Value,
    took: Duration,
    /// Images a second, from the first to the last that was seen done.
    pace: f64,
}

impl Trial<'_> {
    async fn measure(&mut self, args: &ReprocessArgs) -> anyhow::Result<Figures> {
        let [first, recognizer, detector] = self.pipelines.clone();
        say(&format!("indexing anew with {recognizer}, for comparison"));
        self.site.warm_up(&first).await?;
        self.site.warm_up(&recognizer).await?;
        let anew = self.indexed("bench-anew", &recognizer).await?;
        self.site.client.delete("/v1/collections/bench-anew").await?;
        say(&format!("indexing with {first}"));
        self.indexed(COLLECTION, &first).await?;
        let (counted, pictures) = (self.counted().await?, self.site.library.pictures.len() as u64);
        anyhow::ensure!(counted.iter().all(|n| *n >= pictures), "{counted:?} are too few for {pictures} pictures");
        let probes = Arc::new(Probes::enroll(&self.site, COLLECTION, self.sources, args.people).await?);
        let before = Census::of(&self.site.client, COLLECTION).await?;
        let mut figures = Figures {
            faces: before.faces(),
            ids_kept_same_detector: 0,
            ids_kept_new_detector: 0,
            ids_listed: 0,
            names: before.named(),
            names_kept: 0,
            identified: 0,
            errors: 0,
            mixed_answers: 0,
            doubled: before.doubled(),
            source_reads: 0,
            detector_calls: 0,
            kills: 0,
            coverage_after_kills: 0.0,
            reembed_vs_bare: 0.0,
            reembed_vs_bare_services: None,
            time_vs_reindex: 0.0,
        };
        self.timed(&mut figures, [&first, &recognizer], anew).await?;
        let mut expected = Expected::default();
        let after = self.goes_over(&mut figures, &probes, &mut expected, [&first, &recognizer]).await?.0;
        figures.ids_kept_same_detector = before.kept(&after);
        self.sources.put_back(self.config, &self.site.library).await?;
        let (after, run) = self.goes_over(&mut figures, &probes, &mut expected, [&recognizer, &detector]).await?;
        figures.ids_kept_new_detector = before.kept(&after);
        figures.ids_listed = usize::try_from(run["faces_lost"].as_u64().unwrap_or_default())?;
        figures.names_kept = before.names_kept(&after);
        self.killed(&mut figures, &first, args.kills).await?;
        Ok(figures)
    }

    /// Indexes the library into a new collection that keeps crops.
    async fn indexed(&self, collection: &str, pipeline: &str) -> anyhow::Result<Duration> {
        let client = &self.site.client;
        client.delete(&format!("/v1/collections/{collection}")).await?;
        client.post("/v1/collections", &json!({ "name": collection, "pipeline": pipeline })).await?;
        Ok(self.site.index_into(collection).await?.took.elapsed)
    }

    /// Measures a run with nothing beside it, from crops: the pictures are taken away. Then gives it up.
    async fn timed(&self, figures: &mut Figures, [from, to]: [&str; 2], anew: Duration) -> anyhow::Result<()> {
        say(&format!("the bare loop of crops with {to}"));
        let bare = BareCrops::cut(self.config, [from, to], &self.site.library.pictures).await?;
        bare.rate().await?;
        self.sources.take_away(self.config, &self.site.library).await?;
        let (mut rate, mut pace, mut took) = (bare.rate().await?, 0.0, Duration::MAX);
        let faces_an_image = figures.faces as f64 / self.site.library.pictures.len() as f64;
        for _ in 0..2 {
            say(&format!("a run to {to} with nothing beside it"));
            let (counted, crops) = (self.counted().await?, self.site.counted("face_id_crops_read_total", "").await?);
            let filled = self.filled(to).await?;
            let now = self.counted().await?;
            figures.source_reads += now[0] - counted[0];
            figures.detector_calls += now[1] - counted[1];
            let crops = self.site.counted("face_id_crops_read_total", "").await? - crops;
            anyhow::ensure!(crops >= figures.faces as u64, "{crops} crops were read of {} faces", figures.faces);
            took = took.min(filled.took);
            pace = filled.pace.max(pace);
            self.told(&filled.run, "cancel").await?;
            self.until(&filled.run, "cancelled").await?;
            rate = bare.rate().await?.max(rate);
        }
        figures.reembed_vs_bare = pace * faces_an_image / rate;
        figures.time_vs_reindex = took.as_secs_f64() / anew.as_secs_f64();
        say(&format!(
            "{:.0} faces/s in the run, {rate:.0} in the bare loop",
            figures.faces as f64 / took.as_secs_f64()
        ));
        Ok(())
    }

    async fn counted(&self) -> anyhow::Result<[u64; 2]> {
        Ok([
            self.site.counted("face_id_images_read_total", "").await?,
            self.site.counted("face_id_inference_batch_fill_count", "stage=\"detector\"").await?,
        ])
    }

    /// Goes over, back, and over again for good, while people are identified.
    async fn goes_over(
        &self,
        figures: &mut Figures,
        probes: &Arc<Probes>,
        expected: &mut Expected,
        [from, to]: [&str; 2],
    ) -> anyhow::Result<(Census, Value)> {
        say(&format!("from {from} to {to}, back and over again while people are identified"));
        let client = &self.site.client;
        expected.note(client, probes).await?;
        let traffic = probes.begin(client);
        let run = self.filled(to).await?.run;
        self.told(&run, "activate").await?;
        expected.note(client, probes).await?;
        for way in ["rollback", "activate"] {
            self.told(&run, way).await?;
        }
        let run = self.run(&run).await?;
        self.told(&run, "prune?after_s=0").await?;
        self.until(&run, "pruned").await?;
        let told = traffic.end(expected).await?;
        expected.ensure_differ([from, to])?;
        figures.identified += told.answers;
        figures.errors += told.errors;
        figures.mixed_answers += told.mixed;
        let after = Census::of(client, COLLECTION).await?;
        figures.doubled += after.doubled();
        Ok((after, run))
    }

    /// Kills the server during a run, and sees that it is completed.
    async fn killed(&mut self, figures: &mut Figures, to: &str, kills: usize) -> anyhow::Result<()> {
        say(&format!("a run to {to} in which the server is killed"));
        let before = Census::of(&self.site.client, COLLECTION).await?;
        let run = self.begun(to).await?;
        for n in 1..=kills {
            let part = self.site.library.pictures.len() * n / (kills + 2);
            if !self.filled_in_part(&run, part as u64).await? {
                break;
            }
            self.site.crash().await?;
            figures.kills += 1;
        }
        anyhow::ensure!(figures.kills > 0, "the run was complete before the server was killed; take more pictures");
        let ready = self.until(&run, "ready").await?;
        let coverage = ready["coverage"].as_f64().unwrap_or_default();
        self.told(&run, "activate").await?;
        self.told(&run, "prune?after_s=0").await?;
        self.until(&run, "pruned").await?;
        let after = Census::of(&self.site.client, COLLECTION).await?;
        figures.doubled += after.doubled();
        // An export shows the vectors themselves.
        let embedded = after.embedded(&self.site.client, COLLECTION, to).await?;
        figures.coverage_after_kills = coverage.min(embedded);
        let named = before.names_kept(&after);
        anyhow::ensure!(named == before.named(), "{} names were lost with the kills", before.named() - named);
        Ok(())
    }

    async fn begun(&self, to: &str) -> anyhow::Result<Value> {
        self.site.client.post(&format!("/v1/collections/{COLLECTION}/reprocess"), &json!({ "pipeline": to })).await
    }

    /// A run whose every image has what the pipeline makes of it.
    async fn filled(&self, to: &str) -> anyhow::Result<Filled> {
        let began = Instant::now();
        let run = self.begun(to).await?;
        // When how many were done, as often as there were more.
        let mut looks = vec![(began, 0)];
        let run = loop {
            let seen = self.run(&run).await?;
            if looks.last().is_none_or(|(_, before)| done(&seen) > *before) {
                looks.push((Instant::now(), done(&seen)));
            }
            if seen["state"] == "ready" {
                break seen;
            }
            anyhow::ensure!(began.elapsed() < PATIENCE, "the run should be ready: {seen}");
            tokio::time::sleep(LOOK_EVERY).await;
        };
        anyhow::ensure!(run["images_failed"] == json!({}), "pictures were given up: {run}");
        // Where the first look saw all of it done, the beginning counts.
        let pace = match looks.as_slice() {
            [_, first, .., last] | [first, last] => (last.1 - first.1) as f64 / (last.0 - first.0).as_secs_f64(),
            _ => 0.0,
        };
        Ok(Filled { run, took: began.elapsed(), pace })
    }

    /// Waits until so many images are done; whether that is not all of it.
    async fn filled_in_part(&self, run: &Value, part: u64) -> anyhow::Result<bool> {
        let began = Instant::now();
        loop {
            let seen = self.run(run).await?;
            if seen["state"] != "filling" {
                return Ok(false);
            }
            // What is not listed yet is not missing.
            if seen["images_missing"] != 0 && done(&seen) >= part {
                return Ok(true);
            }
            anyhow::ensure!(began.elapsed() < PATIENCE, "the run does not go on: {seen}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn run(&self, run: &Value) -> anyhow::Result<Value> {
        let id = run["id"].as_str().context("the server's run has no id")?;
        self.site.client.get(&format!("/v1/reprocess-runs/{id}")).await
    }

    async fn told(&self, run: &Value, what: &str) -> anyhow::Result<Value> {
        let id = run["id"].as_str().context("the server's run has no id")?;
        self.site.client.post(&format!("/v1/reprocess-runs/{id}/{what}"), &json!({})).await
    }

    async fn until(&self, run: &Value, state: &str) -> anyhow::Result<Value> {
        let began = Instant::now();
        loop {
            let seen = self.run(run).await?;
            if seen["state"] == state {
                return Ok(seen);
            }
            anyhow::ensure!(began.elapsed() < PATIENCE, "the run should have become {state}: {seen}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn done(run: &Value) -> u64 {
    let number = |name: &str| run[name].as_u64().unwrap_or_default();
    number("images").saturating_sub(number("images_missing"))
}

impl Figures {
    /// With those of services.
    fn and(self, other: &Self) -> Self {
        Self {
            faces: self.faces + other.faces,
            ids_kept_same_detector: self.ids_kept_same_detector + other.ids_kept_same_detector,
            ids_kept_new_detector: self.ids_kept_new_detector + other.ids_kept_new_detector,
            ids_listed: self.ids_listed + other.ids_listed,
            names: self.names + other.names,
            names_kept: self.names_kept + other.names_kept,
            identified: self.identified + other.identified,
            errors: self.errors + other.errors,
            mixed_answers: self.mixed_answers + other.mixed_answers,
            doubled: self.doubled + other.doubled,
            source_reads: self.source_reads + other.source_reads,
            detector_calls: self.detector_calls + other.detector_calls,
            kills: self.kills + other.kills,
            coverage_after_kills: self.coverage_after_kills.min(other.coverage_after_kills),
            reembed_vs_bare: self.reembed_vs_bare,
            reembed_vs_bare_services: Some(other.reembed_vs_bare),
            time_vs_reindex: self.time_vs_reindex.max(other.time_vs_reindex),
        }
    }
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
fn print(all: &[(&str, Figures)]) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(std::iter::once("what").chain(all.iter().map(|(site, _)| *site)));
    let values: Vec<Value> = all.iter().map(|(_, figures)| json!(figures)).collect();
    let together = all[1..].iter().fold(all[0].1.clone(), |sum, (_, figures)| sum.and(figures));
    let line = serde_json::to_string(&together)?;
    for name in line.split('"').skip(1).step_by(2).filter(|name| *name != "reembed_vs_bare_services") {
        let shown = |value: &Value| match value[name].as_f64() {
            Some(part) if part.fract() != 0.0 => format!("{part:.3}"),
            _ => value[name].to_string(),
        };
        table.add_row(std::iter::once(name.replace('_', " ")).chain(values.iter().map(shown)));
    }
    println!("{table}\n{line}");
    Ok(())
}
