//! What it gains to look at a person's faces together: who is named, with right labels and with a wrong one on each person.

mod protocol;

use std::path::PathBuf;

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use shared::embedding::Embedding;

use self::protocol::{Labels, People, Rates, Run};
use super::clusters::photos;
use super::embed::{Setup, embed};

#[derive(clap::Args)]
pub(crate) struct TemplatesArgs {
    /// Pictures as `DIR/<person>/<name>.jpg`; on each, the most central face is that person's.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// The pipeline; the default one where absent.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Faces that are enrolled of each person who has more pictures than that; all others are strangers.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    faces: u16,
    /// Choices of the enrolled faces and of the wrong ones.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    seeds: u32,
    /// Pictures of strangers at most; all where absent.
    #[arg(long, value_name = "N")]
    strangers: Option<usize>,
    /// Write the figures here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl TemplatesArgs {
    pub(super) fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }
}

/// All that was measured; rates are means over the seeds, shares of 0..1.
#[derive(Debug, Serialize)]
struct Figures {
    pipeline: String,
    /// Pictures of those who are enrolled, and of strangers.
    images: [usize; 2],
    /// People who are enrolled, and strangers.
    people: [usize; 2],
    without_face: usize,
    faces: u16,
    seeds: u32,
    cases: Vec<Case>,
}

/// One way to label the enrolled faces.
#[derive(Debug, Serialize)]
struct Case {
    labels: Labels,
    single: Rates,
    template: Rates,
    /// Seeds in which the template's rate was at least the single face's.
    seeds_not_worse: usize,
    /// Shares of the wrong and of the right labels that were doubted.
    doubted_wrong: f64,
    doubted_right: f64,
}

pub(super) async fn run(setup: &Setup, args: &TemplatesArgs) -> anyhow::Result<()> {
    let photos = tokio::task::block_in_place(|| photos(&args.images))?;
    let mut people: Vec<(String, Vec<PathBuf>)> = Vec::new();
    for photo in photos {
        match people.iter_mut().rev().find(|(person, _)| *person == photo.person) {
            Some((_, paths)) => paths.push(photo.path),
            None => people.push((photo.person, vec![photo.path])),
        }
    }
    let faces = usize::from(args.faces);
    let (enrolled, mut strangers): (Vec<_>, Vec<_>) = people.into_iter().partition(|(_, paths)| paths.len() > faces);
    let mut room = args.strangers.unwrap_or(usize::MAX);
    strangers.sort_by_key(|(person, _)| shared::digest::sha256_hex(person));
    strangers.retain(|(_, paths)| {
        let fits = paths.len() <= room;
        room -= if fits { paths.len() } else { room };
        fits
    });
    anyhow::ensure!(!enrolled.is_empty(), "nobody has more than {faces} pictures below {}", args.images.display());
    let images = [&enrolled, &strangers].map(|people| people.iter().map(|(_, paths)| paths.len()).sum::<usize>());
    anyhow::ensure!(images[1] > 2 * enrolled.len(), "there are too few strangers, people of {faces} pictures or less");
    let (enrolled, lost) = embedded(setup, enrolled).await?;
    let (strangers, also_lost) = embedded(setup, strangers).await?;
    let calibration = setup.engine.pipeline().calibration.clone();
    let calibration = calibration.context("the pipeline has no calibration to judge faces by")?;
    let figures = Figures {
        pipeline: setup.engine.pipeline().name.clone(),
        images,
        people: [enrolled.len(), strangers.len()],
        without_face: lost + also_lost,
        faces: args.faces,
        seeds: args.seeds,
        cases: tokio::task::block_in_place(|| {
            let metric = setup.engine.pipeline().recognizer.metric;
            let (enrolled, strangers) = (&enrolled[..], &strangers[..]);
            let people = People { enrolled, strangers, faces, calibration: &calibration, metric };
            Labels::ALL.map(|labels| Case::measure(&people, labels, args.seeds)).into_iter().collect()
        }),
    };
    figures.print()?;
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&figures)? + "\n";
        std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// The vectors of each person's pictures, and how many pictures have no face.
async fn embedded(setup: &Setup, people: Vec<(String, Vec<PathBuf>)>) -> anyhow::Result<(Vec<Vec<Embedding>>, usize)> {
    let paths: Vec<PathBuf> = people.iter().flat_map(|(_, paths)| paths.clone()).collect();
    let mut found = embed(setup, &paths).await?.embeddings.into_iter();
    let vectors = people.iter().map(|(_, paths)| found.by_ref().take(paths.len()).flatten().collect());
    let vectors: Vec<Vec<Embedding>> = vectors.collect();
    let lost = paths.len() - vectors.iter().map(Vec::len).sum::<usize>();
    Ok((vectors, lost))
}

impl Case {
    fn measure(people: &People<'_>, labels: Labels, seeds: u32) -> Self {
        let runs: Vec<Run> = (0..seeds).map(|seed| people.run(labels, seed)).collect();
        let mean = |of: fn(&Run) -> f64| runs.iter().map(of).sum::<f64>() / runs.len() as f64;
        Self {
            labels,
            single: Rates::mean(runs.iter().map(|run| run.single)),
            template: Rates::mean(runs.iter().map(|run| run.template)),
            seeds_not_worse: runs.iter().filter(|run| run.template.tpir >= run.single.tpir).count(),
            doubted_wrong: mean(|run| run.doubted_wrong),
            doubted_right: mean(|run| run.doubted_right),
        }
    }
}

impl Figures {
    /// The table, and the figures in one line of JSON.
    #[expect(clippy::print_stdout, reason = "this is the command's output")]
    fn print(&self) -> anyhow::Result<()> {
        let percent = |share: f64| format!("{:.2} %", share * 100.0);
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header([
            "labels",
            "by",
            "TPIR at FPIR 1 %",
            "TPIR, FPIR at the threshold of 1 %",
            "doubted: wrong, right",
        ]);
        for case in &self.cases {
            let doubted = format!("{}, {}", percent(case.doubted_wrong), percent(case.doubted_right));
            for (by, rates, doubted) in [("best single face", case.single, "-"), ("template", case.template, &doubted)]
            {
                table.add_row([
                    case.labels.text(),
                    by,
                    &percent(rates.tpir),
                    &format!("{}, {}", percent(rates.tpir_at_threshold), percent(rates.fpir_at_threshold)),
                    doubted,
                ]);
            }
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!(
            "{}: {} people of {} enrolled faces, {} pictures of {} strangers, {} seeds; no face on {} pictures",
            self.pipeline, self.people[0], self.faces, self.images[1], self.people[1], self.seeds, self.without_face
        );
        println!("{table}");
        println!("{}", serde_json::to_string(self)?);
        Ok(())
    }
}
