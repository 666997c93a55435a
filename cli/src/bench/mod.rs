//! `face-id bench`: speed, always as a ratio between two ways measured in one run.

mod face_index;
mod gallery;

use shared::config::Config;

#[derive(clap::Subcommand)]
pub(crate) enum BenchCommand {
    /// Search and recording with pgvector beside the exact index in memory; needs the services of `make services`.
    FaceIndex(face_index::FaceIndexArgs),
}

pub(crate) async fn run(config: &Config, command: BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::FaceIndex(args) => face_index::run(config, &args).await,
    }
}
