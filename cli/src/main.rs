//! `face-id`: the whole of face-id in one command.

mod demo;
mod eval;
mod migrate;
mod models;
mod serve;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use shared::config::Config;

/// Asynchronous face recognition: an HTTP API, a durable job queue and workers.
#[derive(Parser)]
#[command(name = "face-id", version, about, max_term_width = 110)]
struct Cli {
    /// A TOML file whose settings override the defaults (see `face-id config`).
    #[arg(long, global = true, env = "FACE_ID_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Accept the non-commercial licence of this pipeline's weights (repeatable).
    #[arg(long, global = true, value_name = "PIPELINE")]
    accept_license: Vec<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the HTTP API and the worker in this process, on SQLite and a folder.
    Serve(serve::ServeArgs),
    /// Show the main job on photographs: enroll, identify, reject; needs no server.
    Demo(demo::DemoArgs),
    /// List, fetch and check the weights of the catalogue's pipelines.
    #[command(subcommand)]
    Models(models::ModelsCommand),
    /// Measure a pipeline's accuracy and speed.
    #[command(subcommand)]
    Eval(eval::EvalCommand),
    /// Bring the PostgreSQL database to this version's schema; run it before the new api and workers start.
    Migrate,
    /// Print every setting with its default and what it does.
    Config {
        /// Print the settings as they are in force here instead, secrets hidden.
        #[arg(long)]
        effective: bool,
    },
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if matches!(cli.command, Command::Config { effective: false }) {
        return print_config(Config::documented_defaults());
    }
    let mut config = Config::load(cli.config.as_deref())?;
    config.models.accepted_licences.extend(cli.accept_license);
    if matches!(cli.command, Command::Config { .. }) {
        return print_config(&config.redacted()?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::run(config, args).await,
            Command::Demo(args) => demo::run(&config, args).await,
            Command::Models(command) => models::run(&config, command).await,
            Command::Eval(command) => eval::run(&config, command).await,
            Command::Migrate => migrate::run(&config).await,
            Command::Config { .. } => Ok(()),
        }
    });
    // Work on the blocking pool that hangs must not keep a stopped process alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    done
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
fn print_config(text: &str) -> anyhow::Result<()> {
    print!("{text}");
    Ok(())
}

#[expect(clippy::print_stderr, reason = "the user must see why the command failed")]
fn report(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}
