//! `face-id bench`: speed, always as a ratio between two ways measured in one run.

mod face_index;
mod gallery;
mod index;
mod library;
mod search;
mod templates;
mod usage;

use shared::config::Config;

#[derive(clap::Subcommand)]
pub(crate) enum BenchCommand {
    /// Search and recording with pgvector beside the exact index in memory; needs the services of `make services`.
    FaceIndex(face_index::FaceIndexArgs),
    /// Indexing as a batch beside the bare loop of the same steps, and identifying beside a batch; on services where the
    /// settings name them, else embedded.
    Index(index::IndexArgs),
    /// The exact index in memory beside faiss, one thread each; needs Python, for which `scripts/setup-bench.sh` cares.
    Search(search::SearchArgs),
}

pub(crate) async fn run(config: &Config, command: BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::FaceIndex(args) => face_index::run(config, &args).await,
        BenchCommand::Index(args) => index::run(config, &args).await,
        BenchCommand::Search(args) => search::run(&args).await,
    }
}
