//! `face-id bench`: speed, always as a ratio between two ways measured in one run.

mod all;
mod bare;
mod charts;
mod face_index;
mod gallery;
mod index;
mod interactive;
mod library;
mod machine;
mod memory;
mod overhead;
mod parts;
mod peer;
pub(crate) mod report;
mod reprocess;
mod search;
mod servers;
mod setting;
mod site;
mod synthetic;
mod templates;
mod throughput;
mod usage;

use shared::config::Config;

#[derive(clap::Subcommand)]
pub(crate) enum BenchCommand {
    /// All of it in one run, embedded and on services where the settings name them: ratios, tables, charts, and one line
    /// of JSON at the end. Fails where a figure is missing, and says why it is.
    All(all::AllArgs),
    /// Search and recording with pgvector beside the exact index in memory; needs the services of `make services`.
    FaceIndex(face_index::FaceIndexArgs),
    /// Indexing as a batch beside the bare loop of the same steps, and identifying beside a batch; on services where the
    /// settings name them, else embedded.
    Index(index::IndexArgs),
    /// A collection in use that is given another recognizer, then another detector, and whose server is killed meanwhile: what
    /// is lost, mixed or doubled, and how fast it is. Embedded, then on services where the settings name them.
    Reprocess(reprocess::ReprocessArgs),
    /// The exact index in memory beside faiss, one thread each; needs Python, for which `scripts/setup-bench.sh` cares.
    Search(search::SearchArgs),
}

pub(crate) async fn run(config: &Config, command: BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::All(args) => all::run(config, &args).await,
        BenchCommand::FaceIndex(args) => face_index::run(config, &args).await,
        BenchCommand::Index(args) => index::run(config, &args).await,
        BenchCommand::Reprocess(args) => reprocess::run(config, &args).await,
        BenchCommand::Search(args) => search::run(&args).await,
    }
}
