//! `face-id`: the whole of face-id in one command.

mod bench;
mod calibrate;
mod child;
mod client;
mod demo;
mod detect;
mod eval;
mod index;
mod keys;
mod migrate;
mod models;
mod place;
mod reprocess;
mod serve;
mod transfer;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use shared::config::{Config, Secret};
use shared::process;

/// Asynchronous face recognition: an HTTP API, a durable job queue and workers.
#[derive(Parser)]
#[command(name = "face-id", version, max_term_width = 110)]
struct Cli {
    /// A TOML file whose settings override the defaults (see `face-id config`).
    #[arg(long, global = true, help_heading = "Everywhere", env = "FACE_ID_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Accept that the licence of this pipeline's weights restricts their use, or that none is stated (repeatable).
    #[arg(long, global = true, help_heading = "Everywhere", value_name = "PIPELINE")]
    accept_license: Vec<String>,
    /// The API key that is sent to a server which this command did not start.
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        env = "FACE_ID_API_KEY",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    api_key: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the HTTP API and the worker in this process, on SQLite and a folder.
    Serve(serve::ServeArgs),
    /// Run the HTTP API alone, on PostgreSQL, RabbitMQ and S3; the same as `face-id-api`.
    Api(api::command::ApiArgs),
    /// Run a worker alone, on PostgreSQL, RabbitMQ and S3; the same as `face-id-worker`.
    Worker,
    /// Index the photographs of a folder or of an S3 prefix: every face is found, stored and matched. Run it again to go on
    /// after an interruption, or to index what is new.
    Index(index::IndexArgs),
    /// Give a collection another pipeline while it is in use: nobody's name or id is lost, and it goes over, and back, at once.
    Reprocess(reprocess::ReprocessArgs),
    /// Write a collection's people, faces and vectors (no pixels) to a file: a backup that needs no database, or the way to
    /// another machine.
    Export(transfer::ExportArgs),
    /// Take in what `export` wrote. Run it again after an interruption: what is there stays, what is missing is added.
    Import(transfer::ImportArgs),
    /// Make, list, rotate and revoke the API keys of the configured database.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Show the main job on photographs: enroll, identify, reject; needs no server. Where the settings name services, it
    /// migrates their database, runs an api and a worker on them, and takes a collection `face-id-demo` there, which it
    /// deletes at its start and leaves at its end.
    Demo(demo::DemoArgs),
    /// Find the faces of pictures, and draw boxes and points into copies of them.
    Detect(detect::DetectArgs),
    /// List, fetch and check the weights of the catalogue's pipelines.
    #[command(subcommand)]
    Models(models::ModelsCommand),
    /// Measure a pipeline's accuracy and speed.
    #[command(subcommand)]
    Eval(eval::EvalCommand),
    /// Measure which thresholds give which false accept rates, with bounds, on labelled faces: a folder of pictures, or those
    /// of a collection whose people users named. What was measured is stored, and decided by from then on.
    Calibrate(calibrate::CalibrateArgs),
    /// Measure speed, as ratios between two ways in one run.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Bring the PostgreSQL database to this version's schema; run it before the new api and workers start.
    Migrate,
    /// Print the HTTP API's OpenAPI 3.1 document, as a server's /openapi.json has it.
    Openapi,
    /// Print every setting with its default and what it does.
    Config {
        /// Print the settings as they are in force here instead, secrets hidden.
        #[arg(long)]
        effective: bool,
    },
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    process::run_to_end(run(cli))
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Config { effective: false } => return print(Config::documented_defaults()),
        Command::Openapi => return print(&api::router::openapi()),
        _ => {}
    }
    let mut config = Config::load(cli.config.as_deref())?;
    config.models.accepted_licences.extend(cli.accept_license);
    config.api_key = cli.api_key.filter(|key| !key.is_empty()).map(Secret::from);
    if matches!(cli.command, Command::Config { .. }) {
        return print(&config.redacted()?);
    }
    match cli.command {
        Command::Serve(args) => serve::run(config, args).await,
        Command::Api(args) => api::command::run(config, args).await,
        Command::Worker => worker::command::run(config).await,
        Command::Migrate => migrate::run(&config).await,
        Command::Index(args) => index::run(config, args).await,
        Command::Reprocess(args) => reprocess::run(config, args).await,
        Command::Export(args) => transfer::export(config, args).await,
        Command::Import(args) => transfer::import(config, args).await,
        Command::Keys(command) => keys::run(config, command).await,
        Command::Demo(args) => demo::run(&config, args).await,
        Command::Detect(args) => detect::run(&config, args).await,
        Command::Models(command) => models::run(&config, command).await,
        Command::Eval(command) => eval::run(&config, command).await,
        Command::Calibrate(args) => calibrate::run(config, args).await,
        Command::Bench(command) => bench::run(&config, command).await,
        Command::Config { .. } | Command::Openapi => Ok(()),
    }
}

/// Writes the command's output; whoever reads it may have read enough.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
