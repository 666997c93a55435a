//! `face-id-api`: accepts jobs over HTTP for the workers of the same PostgreSQL, RabbitMQ and S3 bucket.

use std::path::PathBuf;

use api::command::{ApiArgs, run};
use clap::Parser;
use shared::config::Config;
use shared::process;

/// The HTTP API of face-id: takes pictures and jobs, answers 202, and tells what became of them.
#[derive(Parser)]
#[command(name = "face-id-api", version, about, max_term_width = 110)]
struct Cli {
    /// A TOML file whose settings override the defaults (see `face-id config`).
    #[arg(long, env = "FACE_ID_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Accept the non-commercial licence of this pipeline's weights (repeatable).
    #[arg(long, value_name = "PIPELINE")]
    accept_license: Vec<String>,
    #[command(flatten)]
    args: ApiArgs,
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    process::run_to_end(async {
        let mut config = Config::load(cli.config.as_deref())?;
        config.models.accepted_licences.extend(cli.accept_license);
        run(config, cli.args).await
    })
}
