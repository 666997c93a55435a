//! `face-id bench all`: every measurement in one run, told as ratios, tables, charts and one line of JSON.

use std::path::PathBuf;

use anyhow::Context as _;
use shared::config::Config;

use super::machine;
use super::report::{Report, put_into};
use super::setting::{Setting, say};

#[derive(clap::Args)]
pub(crate) struct AllArgs {
    /// Small photographs: LFW's pictures.
    #[arg(long, value_name = "DIR")]
    pub(super) small: Option<PathBuf>,
    /// Large photographs: those of `scripts/bench/make_photos.py`, of 12 megapixels.
    #[arg(long, value_name = "DIR")]
    pub(super) photos: Option<PathBuf>,
    /// The folder of face-id's `scripts` and `models`.
    #[arg(long, value_name = "DIR", default_value = ".")]
    repository: PathBuf,
    /// Where the report and its charts go.
    #[arg(long, value_name = "DIR", default_value = ".cache/bench")]
    pub(super) out: PathBuf,
    /// These parts only.
    #[arg(long, value_enum, value_delimiter = ',')]
    parts: Vec<Part>,
    /// Few pictures and one round, to see that everything works: the figures say little.
    #[arg(long)]
    pub(super) quick: bool,
    /// Put the report between this document's marks, too.
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Part {
    Small,
    Photos,
    Overhead,
    Identify,
    Memory,
    Search,
    Pgvector,
}

impl Part {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Small => "Small photos",
            Self::Photos => "Photos of 12 megapixels",
            Self::Overhead => "What a bulk job costs beside its analysis",
            Self::Identify => "Interactive identify",
            Self::Memory => "Memory",
            Self::Search => "Exact search in memory",
            Self::Pgvector => "Search by pgvector",
        }
    }
}

/// How much is measured.
pub(super) struct Counts {
    pub(super) small: usize,
    pub(super) photos: usize,
    pub(super) rounds: usize,
    pub(super) overhead: usize,
    pub(super) identifies: usize,
    pub(super) memory: usize,
    pub(super) search: &'static [usize],
    pub(super) pgvector: &'static [usize],
}

const FULL: Counts = Counts {
    small: 3000,
    photos: 300,
    rounds: 2,
    overhead: 3000,
    identifies: 500,
    memory: 20_000,
    search: &[10_000, 100_000, 1_000_000],
    pgvector: &[10_000, 100_000],
};
const QUICK: Counts = Counts {
    small: 200,
    photos: 20,
    rounds: 1,
    overhead: 200,
    identifies: 20,
    memory: 400,
    search: &[10_000],
    pgvector: &[5_000],
};

/// A run under way.
pub(super) struct Run<'a> {
    pub(super) args: &'a AllArgs,
    pub(super) config: &'a Config,
    pub(super) setting: Setting,
    pub(super) counts: Counts,
    pub(super) report: Report,
}

pub(crate) async fn run(config: &Config, args: &AllArgs) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.out).with_context(|| format!("make the folder {}", args.out.display()))?;
    let all = <Part as clap::ValueEnum>::value_variants();
    let parts = if args.parts.is_empty() { all.to_vec() } else { args.parts.clone() };
    let counts = if args.quick { QUICK } else { FULL };
    let setting = Setting::new(config, args.repository.clone(), counts.rounds).await?;
    let report = Report::new(about(&setting, args), args.quick, parts.clone());
    let mut run = Run { args, config, setting, counts, report };
    for part in parts {
        say(part.name());
        if let Err(error) = run.part(part).await {
            run.report.failed(part, &format!("{error:#}"));
        }
    }
    run.finish()
}

impl Run<'_> {
    async fn part(&mut self, part: Part) -> anyhow::Result<()> {
        match part {
            Part::Small => self.small().await,
            Part::Photos => self.photos().await,
            Part::Overhead => self.overhead().await,
            Part::Identify => self.identify().await,
            Part::Memory => self.memory().await,
            Part::Search => self.search().await,
            Part::Pgvector => self.pgvector().await,
        }
    }

    #[expect(clippy::print_stdout, reason = "this is the command's output")]
    fn finish(self) -> anyhow::Result<()> {
        let (markdown, line) = (self.report.markdown(), self.report.json());
        let file = self.args.out.join("report.md");
        std::fs::write(&file, &markdown).with_context(|| format!("write {}", file.display()))?;
        std::fs::write(self.args.out.join("report.json"), format!("{line}\n"))?;
        if let Some(path) = &self.args.document {
            let document = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            std::fs::write(path, put_into(&document, &markdown)?)
                .with_context(|| format!("write {}", path.display()))?;
        }
        say(&format!("the report and its charts are in {}", self.args.out.display()));
        println!("{markdown}\n{line}");
        let missing = self.report.missing().len();
        anyhow::ensure!(missing == 0, "{missing} ratios could not be measured; the table says why");
        Ok(())
    }
}

fn about(setting: &Setting, args: &AllArgs) -> Vec<String> {
    let parts: Vec<String> = args.parts.iter().map(|part| format!("{part:?}").to_lowercase()).collect();
    let only = if parts.is_empty() { String::new() } else { format!(" --parts {}", parts.join(",")) };
    let quick = if args.quick { " --quick" } else { "" };
    let mut about = vec![
        machine::described(),
        format!(
            "By `face-id bench all{only}{quick}`, version {}; the fastest pipeline is `{}`, with 32-bit floats `{}`.",
            env!("CARGO_PKG_VERSION"),
            setting.fastest,
            setting.default_pipeline
        ),
    ];
    about.extend(setting.why_not_faster.as_ref().map(|why| format!("{why}.")));
    about
}
