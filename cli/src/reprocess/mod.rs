//! `face-id reprocess`: a collection is given another pipeline, over HTTP.

mod comparison;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use shared::config::Config;

use crate::client::{Client, Refused};
use crate::models::terms;
use crate::place::Place;

/// What is done with a collection's run. Without any of it, and without a model, the run is shown.
#[derive(clap::Args)]
#[group(id = "action", multiple = false)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line, of which one is given")]
struct Actions {
    /// Only say what there would be to do.
    #[arg(long, requires = "model")]
    dry_run: bool,
    /// Have the collection go by the new model, with --model once everything is there.
    #[arg(long)]
    activate: bool,
    /// Have the collection go by the old model again.
    #[arg(long, conflicts_with = "model")]
    rollback: bool,
    /// Delete what the old model made, after --after seconds.
    #[arg(long, conflicts_with = "model")]
    prune: bool,
    /// Stay with the old model, and delete what the new one made.
    #[arg(long, conflicts_with = "model")]
    cancel: bool,
    /// Begin no further picture.
    #[arg(long, conflicts_with = "model")]
    pause: bool,
    /// Go on after a pause.
    #[arg(long, conflicts_with = "model")]
    resume: bool,
    /// Try the pictures again that were given up.
    #[arg(long, conflicts_with = "model")]
    retry: bool,
    /// Say what both models make of the faces whose persons are known.
    #[arg(long, conflicts_with = "model")]
    compare: bool,
}

#[derive(clap::Args)]
pub(crate) struct ReprocessArgs {
    /// The collection, by name or id.
    collection: String,
    /// The pipeline that it is to be given: begins a run, or goes on with one that was begun, until everything is there.
    #[arg(long, value_name = "PIPELINE")]
    model: Option<String>,
    #[command(flatten)]
    actions: Actions,
    /// With --prune: how many seconds the run can be rolled back yet.
    #[arg(long, value_name = "SECONDS", requires = "prune")]
    after: Option<u32>,
    /// With --activate, --rollback and --prune: also where faces lack a vector of the model that stays; nobody is recognised
    /// by those then.
    #[arg(long)]
    accept_lacking: bool,
    /// With --model: the collection's `match_cosine` once it goes by the new model, a score by that model's metric.
    #[arg(long, value_name = "SCORE", requires = "model", allow_negative_numbers = true)]
    match_cosine: Option<f32>,
    /// A server that runs, http://host:port. Without it: the one that holds the data folder, or else one that is started
    /// for as long as it takes; with services, the one at server.bind.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Where the database and the pictures of a server that is started live.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// How long a server that does not answer is asked again.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a run is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long to wait for the vectors of faces that were enrolled at the last moment.
const SETTLE: Duration = Duration::from_secs(60);

/// Does it; an error where pictures were given up.
pub(crate) async fn run(mut config: Config, args: ReprocessArgs) -> anyhow::Result<()> {
    if let Some(data_dir) = &args.data_dir {
        config.data_dir.clone_from(data_dir);
    }
    let place = Place::find(&config, args.server.as_deref(), None).await?;
    let done = act(&place.client()?, &args).await;
    let left = place.leave().await;
    done?;
    left
}

async fn act(client: &Client, args: &ReprocessArgs) -> anyhow::Result<()> {
    let Actions { dry_run, activate, rollback, prune, cancel, pause, resume, retry, compare } = args.actions;
    if dry_run {
        let body = json!({ "pipeline": args.model, "dry_run": true });
        print_plan(&client.post(&path(&args.collection), &body).await?);
        return Ok(());
    }
    let mut run = match &args.model {
        Some(model) => begun(client, args, model).await?,
        None => open(client, &args.collection).await?,
    };
    if compare {
        return comparison::show(client, &of(&run)?).await;
    }
    let wishes = [(pause, "pause"), (resume, "resume"), (retry, "retry"), (cancel, "cancel"), (rollback, "rollback")];
    if let Some((_, wish)) = wishes.iter().find(|(is_wanted, _)| *is_wanted) {
        let wish = if rollback { format!("{wish}{}", lacking(args)) } else { (*wish).to_owned() };
        run = switched(client, &run, &wish).await?;
    }
    if prune {
        let after = args.after.map(|seconds| format!("&after_s={seconds}")).unwrap_or_default();
        run = client.post(&format!("{}/prune{}{after}", of(&run)?, lacking(args)), &json!({})).await?;
    }
    if args.model.is_some() {
        run = followed(client, &run).await?;
    }
    if activate && run["state"] != "active" {
        let model = run["pipeline"].as_str().unwrap_or_default();
        print_terms(&client.get(&format!("/v1/models/{model}")).await?);
        run = switched(client, &run, &format!("activate{}", lacking(args))).await?;
    }
    print(&run)?;
    let failed = run["images_failed"].as_object().is_some_and(|failed| !failed.is_empty());
    anyhow::ensure!(!failed, "pictures were given up; --retry tries them again");
    Ok(())
}

fn lacking(args: &ReprocessArgs) -> String {
    format!("?accept_lacking={}", args.accept_lacking)
}

fn path(collection: &str) -> String {
    format!("/v1/collections/{collection}/reprocess")
}

fn of(run: &Value) -> anyhow::Result<String> {
    Ok(format!("/v1/reprocess-runs/{}", run["id"].as_str().context("the server's run has no id")?))
}

/// The collection's run to this pipeline: a new one, or the one that is open.
async fn begun(client: &Client, args: &ReprocessArgs, model: &str) -> anyhow::Result<Value> {
    let collection = &args.collection;
    let known = client.get(&format!("/v1/collections/{collection}")).await?;
    if known["pipeline"] == model {
        // It went over before, perhaps by this very command.
        let run = open(client, collection).await?;
        anyhow::ensure!(run["pipeline"] == model, "the collection goes by {model}");
        return Ok(run);
    }
    let mut body = json!({ "pipeline": model });
    if let Some(cosine) = args.match_cosine {
        body["match_cosine"] = json!(cosine);
    }
    match client.post(&path(collection), &body).await {
        Err(error) if error.downcast_ref::<Refused>().is_some_and(|r| r.code == "reprocess_open") => {
            let run = open(client, collection).await?;
            let other = run["pipeline"].as_str().unwrap_or_default();
            anyhow::ensure!(other == model, "the collection's open run is to {other}; prune or cancel that first");
            Ok(run)
        }
        begun => begun.context("begin the run"),
    }
}

/// The collection's last run.
async fn open(client: &Client, collection: &str) -> anyhow::Result<Value> {
    let page = client.get(&format!("/v1/reprocess-runs?collection={collection}&limit=1")).await?;
    let run = page["items"][0].clone();
    anyhow::ensure!(run.is_object(), "collection {collection} has no run; begin one with --model");
    Ok(run)
}

/// The run once the server has done as told. What was enrolled at the last moment is waited for.
async fn switched(client: &Client, run: &Value, wish: &str) -> anyhow::Result<Value> {
    let began = Instant::now();
    loop {
        match client.post(&format!("{}/{wish}", of(run)?), &json!({})).await {
            Err(error)
                if began.elapsed() < SETTLE
                    && error.downcast_ref::<Refused>().is_some_and(|r| r.code == "reprocess_lacking") =>
            {
                let seen = client.get(&of(run)?).await?;
                let failed = seen["images_failed"].as_object().map_or(0, serde_json::Map::len);
                if failed > 0 {
                    return Err(error);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            switched => return switched,
        }
    }
}

/// The run when everything is there.
async fn followed(client: &Client, run: &Value) -> anyhow::Result<Value> {
    let path = of(run)?;
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} pictures, {msg}") {
        bar.set_style(style);
    }
    let mut answered = Instant::now();
    loop {
        let run = match client.get(&path).await {
            Ok(run) => run,
            // The run goes on meanwhile.
            Err(_) if answered.elapsed() < PATIENCE => {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        answered = Instant::now();
        if run["state"] != "filling" || run["paused"] == true {
            bar.finish_and_clear();
            return Ok(run);
        }
        show(&bar, &run);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn show(bar: &ProgressBar, run: &Value) {
    let number = |name: &str| run[name].as_u64().unwrap_or_default();
    bar.set_length(number("images"));
    bar.set_position(number("images").saturating_sub(number("images_missing")));
    let mut parts = Vec::new();
    if let Some(pace) = run["images_per_second"].as_f64() {
        parts.push(format!("{pace:.1}/s"));
    }
    if let Some(left) = run["eta_s"].as_f64() {
        parts.push(format!("{} left", crate::index::duration(left)));
    }
    parts.extend(run["problem"].as_str().map(str::to_owned));
    bar.set_message(parts.join(", "));
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
fn print_plan(plan: &Value) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    let number = |name: &str| plan[name].as_i64().unwrap_or_default().to_string();
    let text = |name: &str| plan[name].as_str().unwrap_or_default().to_owned();
    table.add_row(["from".to_owned(), text("from_pipeline")]);
    table.add_row(["to".to_owned(), text("pipeline")]);
    let how = if plan["detects"] == true { "yes, in the pictures" } else { "no" };
    table.add_row(["faces are looked for again".to_owned(), how.to_owned()]);
    table.add_row(["pictures".to_owned(), number("images")]);
    table.add_row(["faces".to_owned(), number("faces")]);
    table.add_row(["of these with a vector already".to_owned(), number("embedded")]);
    table.add_row(["read from kept crops".to_owned(), number("from_crops")]);
    table.add_row(["pictures that are read".to_owned(), number("from_images")]);
    if let Some(estimate) = plan["estimate_s"].as_f64() {
        table.add_row(["as fast as they were indexed".to_owned(), crate::index::duration(estimate)]);
    }
    table.add_row(["workers that run the new model".to_owned(), number("workers")]);
    println!("{table}");
    println!("{}", terms(plan));
    println!("{plan}");
}

/// What is to be known of a model before a collection goes by it.
#[expect(clippy::print_stdout, reason = "this is the command's output")]
fn print_terms(model: &Value) {
    println!("{}", terms(model));
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
fn print(run: &Value) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    let number = |name: &str| run[name].as_i64().unwrap_or_default();
    let text = |name: &str| run[name].as_str().unwrap_or_default().to_owned();
    let state = text("state");
    table.add_row(["from".to_owned(), text("from_pipeline"), String::new()]);
    table.add_row(["to".to_owned(), text("pipeline"), String::new()]);
    let next = if run["paused"] == true { "paused; --resume goes on" } else { meaning(&state) };
    table.add_row(["state".to_owned(), state.clone(), next.to_owned()]);
    let why = text("problem");
    table.add_row(["workers that run the new model".to_owned(), number("workers").to_string(), why]);
    table.add_row(["pictures".to_owned(), number("images").to_string(), String::new()]);
    let failed = run["images_failed"].as_object().cloned().unwrap_or_default();
    let codes: Vec<String> = failed.iter().map(|(code, count)| format!("{code}: {count}")).collect();
    table.add_row(["of these lacking".to_owned(), number("images_missing").to_string(), codes.join(", ")]);
    if run["detects"] == true {
        let where_to = format!("GET {}/differences lists them", of(run)?);
        table.add_row(["faces that only the old model finds".to_owned(), number("faces_lost").to_string(), where_to]);
        table.add_row(["faces that only the new one finds".to_owned(), number("faces_new").to_string(), String::new()]);
    }
    println!("{table}");
    println!("{run}");
    Ok(())
}

/// What a state lets the user do next.
fn meaning(state: &str) -> &'static str {
    match state {
        "filling" => "the collection goes by the old model meanwhile",
        "ready" => "--compare says what both make of known faces, --activate has the collection go by the new model",
        "active" => "--rollback goes back, --prune deletes what the old model made",
        "pruning" | "cancelling" => "what is not needed is being deleted",
        _ => "",
    }
}
