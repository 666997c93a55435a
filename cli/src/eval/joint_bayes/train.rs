//! `face-id train joint-bayes`: writes a model that a catalogue entry names as its second stage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use comfy_table::{Table, presets};
use shared::config::Config;
use shared::digest::sha256_hex;
use shared::embedding::Embedding;
use shared::joint_bayes::{JointBayes, Trained};

use super::{Folds, Lfw, held_out_threshold, learnt};
use crate::eval::{embed, setup};

/// Endings of pictures below a folder of people.
const PICTURES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// Files that are read at most: a pair of NumPy matrices of the largest dimension.
const MAX_NPY_BYTES: u64 = 40 << 20;

#[derive(clap::Subcommand)]
pub(crate) enum TrainCommand {
    /// Learn a Joint Bayesian second stage from people with several pictures, and print the section for a catalogue entry.
    JointBayes(TrainArgs),
    /// Make the file of a second stage of matrices A and G that another program has learnt, as NumPy files.
    JointBayesFromNpy(FromNpyArgs),
}

#[derive(clap::Args)]
pub(crate) struct TrainArgs {
    /// Pictures, one folder a person: `DIR/<person>/<picture>`; as LFW has them where --pairs is given.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// LFW's pairs.txt: only the people of --folds are learnt from, and nobody who is in another fold.
    #[arg(long, value_name = "FILE")]
    pairs: Option<PathBuf>,
    /// The folds whose people are learnt from.
    #[arg(long, value_name = "FROM-TO", default_value = "1-5", requires = "pairs")]
    folds: Folds,
    /// The pipeline; the default one where absent.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Steps at most.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    steps: u16,
    /// The file to be written.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct FromNpyArgs {
    /// The matrix A: a square of f64.
    #[arg(long, value_name = "FILE")]
    a: PathBuf,
    /// The matrix G.
    #[arg(long, value_name = "FILE")]
    g: PathBuf,
    /// The file to be written.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

pub(crate) async fn run(config: &Config, command: TrainCommand) -> anyhow::Result<()> {
    match command {
        TrainCommand::JointBayes(args) => train(config, &args).await,
        TrainCommand::JointBayesFromNpy(args) => from_npy(&args),
    }
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
async fn train(config: &Config, args: &TrainArgs) -> anyhow::Result<()> {
    let name = file_name(&args.output)?;
    let people = if let Some(pairs) = &args.pairs {
        let from = (&args.images, pairs, args.folds);
        Lfw::read(config, args.model.as_deref(), from).await?.0.people()
    } else {
        people(config, args).await?
    };
    let threshold = held_out_threshold(&people, args.steps).await?;
    let trained = learnt(people, args.steps).await?;
    println!("{}", table(&trained));
    let bytes = trained.model.to_bytes();
    std::fs::write(&args.output, &bytes).with_context(|| format!("write {}", args.output.display()))?;
    print!("{}", section(&name, &bytes, threshold));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
fn from_npy(args: &FromNpyArgs) -> anyhow::Result<()> {
    let name = file_name(&args.output)?;
    let [a, g] = [read(&args.a)?, read(&args.g)?];
    let model =
        JointBayes::from_npy(&a, &g).with_context(|| format!("read {} and {}", args.a.display(), args.g.display()))?;
    let bytes = model.to_bytes();
    std::fs::write(&args.output, &bytes).with_context(|| format!("write {}", args.output.display()))?;
    println!("# No threshold is known of matrices alone: measure one before use.");
    print!("{}", section(&name, &bytes, 0.0));
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let failed = || format!("read {}", path.display());
    let size = std::fs::metadata(path).with_context(failed)?.len();
    anyhow::ensure!(size <= MAX_NPY_BYTES, "{} has more than {MAX_NPY_BYTES} bytes", path.display());
    std::fs::read(path).with_context(failed)
}

fn file_name(output: &Path) -> anyhow::Result<String> {
    let name = output.file_name().and_then(|name| name.to_str());
    Ok(name.with_context(|| format!("--output {} must end in a file's name", output.display()))?.to_owned())
}

/// The vectors of each person of a folder of folders, people and pictures in the order of their names.
async fn people(config: &Config, args: &TrainArgs) -> anyhow::Result<Vec<Vec<Embedding>>> {
    let mut pictures: Vec<(PathBuf, PathBuf)> = Vec::new();
    for folder in listed(&args.images)?.into_iter().filter(|path| path.is_dir()) {
        let of_kind = |path: &PathBuf| {
            let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            path.is_file() && PICTURES.iter().any(|known| ending.eq_ignore_ascii_case(known))
        };
        pictures.extend(listed(&folder)?.into_iter().filter(of_kind).map(|picture| (folder.clone(), picture)));
    }
    anyhow::ensure!(!pictures.is_empty(), "{} has no folders of pictures", args.images.display());
    let (setup, _) = setup(config, args.model.as_deref(), None).await?;
    let paths: Vec<PathBuf> = pictures.iter().map(|(_, picture)| picture.clone()).collect();
    let embedded = embed::embed(&setup, &paths).await?;
    let mut people: BTreeMap<PathBuf, Vec<Embedding>> = BTreeMap::new();
    for ((person, _), embedding) in pictures.into_iter().zip(embedded.embeddings) {
        people.entry(person).or_default().extend(embedding);
    }
    Ok(people.into_values().filter(|vectors| !vectors.is_empty()).collect())
}

fn listed(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let failed = || format!("list {}", folder.display());
    let entries = std::fs::read_dir(folder).with_context(failed)?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>().with_context(failed)?;
    paths.sort();
    Ok(paths)
}

/// The section to put into a catalogue entry.
fn section(name: &str, bytes: &[u8], threshold: f32) -> String {
    format!(
        "\n[second_stage]\nkind = \"joint-bayesian\"\nthreshold = {threshold:.3}\n\n[second_stage.file]\nname = \"{name}\"\nsha256 = \"{}\"\n\
         size_bytes = {}\nlicence = \"own\"\nuse = \"permissive\"\n",
        sha256_hex(bytes),
        bytes.len()
    )
}

fn table(trained: &Trained) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["step", "log-likelihood of a picture, nats"]);
    let rows = trained.likelihoods.iter().enumerate();
    table.add_rows(rows.map(|(step, likelihood)| [step.to_string(), format!("{likelihood:.6}")]));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_is_read_by_the_catalogue() {
        let text = include_str!("../../../../models/yunet-mobilefacenet.toml");
        let entry = format!("{text}{}", section("own.jb", b"bytes", 12.5));
        let pipeline = shared::catalogue::Pipeline::parse("x.toml", &entry).unwrap();
        let stage = pipeline.second_stage.unwrap();
        assert_eq!(
            (stage.file.name.as_str(), stage.file.size_bytes, stage.threshold.to_bits()),
            ("own.jb", 5, 12.5f32.to_bits())
        );
    }
}
