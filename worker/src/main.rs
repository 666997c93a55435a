//! `face-id-worker`: takes jobs from RabbitMQ, pictures from S3, and writes results to PostgreSQL.

use std::path::PathBuf;

use clap::Parser;
use shared::config::Config;
use shared::process;
use worker::command::run;

/// A worker of face-id: detects, aligns and embeds faces for jobs that face-id-api accepted.
#[derive(Parser)]
#[command(name = "face-id-worker", version, about, max_term_width = 110)]
struct Cli {
    /// A TOML file whose settings override the defaults (see `face-id config`).
    #[arg(long, env = "FACE_ID_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Accept the non-commercial licence of this pipeline's weights (repeatable).
    #[arg(long, value_name = "PIPELINE")]
    accept_license: Vec<String>,
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    process::run_to_end(async {
        let mut config = Config::load(cli.config.as_deref())?;
        config.models.accepted_licences.extend(cli.accept_license);
        run(config).await
    })
}
