//! `face-id index`: a photo library into a collection, as a batch over HTTP.

mod clusters;
mod progress;
mod report;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};
use shared::config::Config;
use tokio_util::sync::CancellationToken;

use self::progress::Progress;
pub(crate) use self::progress::duration;
use self::report::Report;
use crate::child::interrupted;
use crate::client::{Client, Refused};
use crate::place::Place;

#[derive(clap::Args)]
pub(crate) struct IndexArgs {
    /// A folder, or `s3://bucket/prefix` of a bucket that the server allows.
    #[arg(value_name = "DIR|s3://BUCKET/PREFIX")]
    source: String,
    /// The collection's name; made where there is none.
    #[arg(long, value_name = "NAME")]
    collection: String,
    /// The pipeline of a new collection; the server's default where absent.
    #[arg(long, value_name = "PIPELINE")]
    model: Option<String>,
    /// A server that runs, http://host:port. Without it: the one that holds the data folder, or else one that is started
    /// for as long as it takes; with services, the one at server.bind.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Where the database and the pictures of a server that is started live.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Write what became of each picture that was looked at to this file: .csv, or .json with one object a line.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Delete pictures that are no longer there, with their faces; they are kept and marked otherwise.
    #[arg(long)]
    delete_gone: bool,
    /// Look again every so many seconds, and index what is new, until Ctrl-C.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60")]
    watch: Option<u64>,
}

/// How long a server that does not answer is asked again.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the batch is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Indexes the source; an error where pictures failed for another reason than themselves.
pub(crate) async fn run(mut config: Config, args: IndexArgs) -> anyhow::Result<()> {
    if let Some(data_dir) = &args.data_dir {
        config.data_dir.clone_from(data_dir);
    }
    let source = source(&args.source)?;
    let mut report = args.report.as_deref().map(Report::begin).transpose()?;
    let place = Place::find(&config, args.server.as_deref(), source["folder"].as_str().map(Path::new)).await?;
    let client = place.client()?;
    let stop = CancellationToken::new();
    let listening = tokio::spawn({
        let stop = stop.clone();
        async move {
            interrupted().await;
            stop.cancel();
        }
    });
    let indexed = index(&client, &args, &source, report.as_mut(), &stop).await;
    listening.abort();
    let left = place.leave().await;
    indexed?;
    left
}

/// What the server is asked to list.
fn source(named: &str) -> anyhow::Result<Value> {
    if named.starts_with("s3://") {
        return Ok(json!({ "s3": named }));
    }
    let folder = Path::new(named).canonicalize().with_context(|| format!("look for the folder {named}"))?;
    anyhow::ensure!(folder.is_dir(), "{named} is a file; name the folder that it is in");
    let folder = folder.to_str().with_context(|| format!("the path of {named} is no text"))?;
    Ok(json!({ "folder": folder }))
}

async fn index(
    client: &Client,
    args: &IndexArgs,
    source: &Value,
    mut report: Option<&mut Report>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    make_collection(client, args).await?;
    let Some(pause) = args.watch else {
        return match round(client, args, source, &mut report, stop).await? {
            Round::Done => Ok(()),
            Round::Interrupted => Err(anyhow::anyhow!("interrupted; run the same command again to go on")),
        };
    };
    while !stop.is_cancelled() {
        if let Err(error) = round(client, args, source, &mut report, stop).await {
            warn(&error);
        }
        // To be interrupted is how a watch ends.
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(Duration::from_secs(pause.max(1))) => {}
        }
    }
    Ok(())
}

enum Round {
    Done,
    /// Before every picture was through.
    Interrupted,
}

async fn round(
    client: &Client,
    args: &IndexArgs,
    source: &Value,
    report: &mut Option<&mut Report>,
    stop: &CancellationToken,
) -> anyhow::Result<Round> {
    let batch = tokio::select! {
        batch = followed(client, args, source) => batch?,
        () = stop.cancelled() => return Ok(Round::Interrupted),
    };
    if let Some(report) = report {
        report.add(client, &batch).await?;
    }
    // All that was asked for is stored: whoever interrupts what follows still gets the summary.
    let unknown = clusters::settled(client, &args.collection, stop).await;
    report::print(&batch, &args.collection, unknown.as_ref().ok())?;
    check(&batch)?;
    unknown?;
    Ok(Round::Done)
}

#[expect(clippy::print_stderr, reason = "a watch goes on, and its user has to know why it did less than wanted")]
fn warn(error: &anyhow::Error) {
    eprintln!("{error:#}");
}

async fn make_collection(client: &Client, args: &IndexArgs) -> anyhow::Result<()> {
    let mut body = json!({ "name": args.collection });
    if let Some(pipeline) = &args.model {
        body["pipeline"] = json!(pipeline);
    }
    match client.post("/v1/collections", &body).await {
        Ok(_) => Ok(()),
        Err(error) if error.downcast_ref::<Refused>().is_some_and(|r| r.code == "collection_exists") => {
            let known = client.get(&format!("/v1/collections/{}", args.collection)).await?;
            let pipeline = known["pipeline"].as_str().unwrap_or_default();
            anyhow::ensure!(
                args.model.as_deref().is_none_or(|wanted| wanted == pipeline),
                "collection {} exists with the pipeline {pipeline}; leave --model out, or choose another name",
                args.collection
            );
            Ok(())
        }
        Err(error) => Err(error.context(format!("make the collection {}", args.collection))),
    }
}

/// The batch when it has ended: one of the same source that an interrupted command left, or a new one.
async fn followed(client: &Client, args: &IndexArgs, source: &Value) -> anyhow::Result<Value> {
    let on_gone = if args.delete_gone { "delete" } else { "keep" };
    let batch = if let Some(left) = unfinished(client, &args.collection, source, on_gone).await? {
        if left["state"] == "paused" {
            client.post(&format!("/v1/batches/{}/resume", id(&left)?), &json!({})).await?;
        }
        left
    } else {
        let body = json!({ "collection": args.collection, "kind": "index", "source": source, "gone": on_gone });
        client.make("/v1/batches", &body).await.with_context(|| format!("index {}", args.source))?
    };
    let path = format!("/v1/batches/{}", id(&batch)?);
    let progress = Progress::begin();
    let mut answered = Instant::now();
    loop {
        let batch = match client.get(&path).await {
            Ok(batch) => batch,
            // The batch goes on meanwhile.
            Err(_) if answered.elapsed() < PATIENCE => {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        answered = Instant::now();
        progress.show(&batch);
        if !batch["finished_at"].is_null() {
            progress.end();
            return Ok(batch);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn unfinished(client: &Client, collection: &str, source: &Value, on_gone: &str) -> anyhow::Result<Option<Value>> {
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("/v1/batches?collection={collection}&limit=100{cursor}")).await?;
        let batches = page["items"].as_array().cloned().unwrap_or_default();
        let is_left = |b: &Value| {
            b["finished_at"].is_null()
                && b["source"] == *source
                && b["on_gone"] == on_gone
                && ["listing", "running", "paused"].iter().any(|state| b["state"] == *state)
        };
        if let Some(batch) = batches.into_iter().find(is_left) {
            return Ok(Some(batch));
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(None),
        }
    }
}

fn id(batch: &Value) -> anyhow::Result<&str> {
    batch["id"].as_str().context("the server's batch has no id")
}

/// A picture that is unreadable is an answer; one that the server gave up on is an error.
fn check(batch: &Value) -> anyhow::Result<()> {
    let failed = batch["jobs"]["failed"].as_i64().unwrap_or_default();
    let state = batch["state"].as_str().unwrap_or_default();
    let why = batch["problem"]["detail"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
    anyhow::ensure!(state == "completed", "the batch is {state}{why}");
    let path = format!("/v1/batches/{}", id(batch)?);
    anyhow::ensure!(
        failed == 0,
        "{failed} pictures failed; POST {path}/retry tries them again, GET {path}/jobs?state=failed shows why"
    );
    Ok(())
}
