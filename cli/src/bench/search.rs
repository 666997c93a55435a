//! The exact index in memory beside faiss: the same vectors, the same queries, one thread each.

use std::path::{Path, PathBuf};
use std::time::Instant;

use comfy_table::Table;
use migrations::{Migrator, MigratorTrait};
use serde::Deserialize;
use serde_json::json;
use shared::config::Synchronous;
use shared::db::Db;
use shared::embedding::Embedding;
use shared::face_index::{ExactFaceIndex, FaceIndex as _, Gallery};

use super::gallery::{DIMENSION, Random, make};
use super::peer::{answer, python};
use super::report::markdown_table;
use super::setting::say;
use super::templates::{fill, queries, row};

#[derive(clap::Args)]
pub(crate) struct SearchArgs {
    /// Vectors in the gallery, one size after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000, LARGE])]
    faces: Vec<usize>,
    /// Queries of each gallery.
    #[arg(long, default_value_t = QUERIES)]
    queries: usize,
    /// The largest gallery for which faiss builds an HNSW index too, which takes minutes for a million vectors.
    #[arg(long, default_value_t = HNSW_UP_TO)]
    hnsw_up_to: usize,
    /// The folder of `faiss_search.py` and of `python.sh`, which runs it.
    #[arg(long, default_value = "scripts/bench", value_name = "DIR")]
    scripts: PathBuf,
}

/// The gallery whose ratio is reported by itself.
const LARGE: usize = 1_000_000;
const QUERIES: usize = 50;
const HNSW_UP_TO: usize = 100_000;
/// Persons asked for.
const K: usize = 10;
/// How often each query is put; the best counts, so that what else runs on the machine counts little.
const ROUNDS: usize = 5;
const SEED: u64 = 20_261_125;
/// Scores nearer to each other than this come in whichever order each side's rounding gives them.
const TIE: f32 = 1e-6;

/// What `faiss_search.py` prints.
#[derive(Deserialize)]
struct Faiss {
    version: String,
    flat: Searched,
    hnsw: Option<Searched>,
}

/// Times and answers of one way to search.
#[derive(Deserialize)]
struct Searched {
    /// Of each query, in its best round.
    ms: Vec<f64>,
    /// For each query, the best first.
    scores: Vec<Vec<f32>>,
    rows: Vec<Vec<usize>>,
}

/// One gallery's results.
pub(super) struct Measured {
    faces: usize,
    exact: Searched,
    faiss: Faiss,
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(crate) async fn run(args: &SearchArgs) -> anyhow::Result<()> {
    let measured = measure_all(args).await?;
    println!("{}\n{}", table(&measured), report(&measured));
    ratio_of_a_million(&measured).map(drop)
}

/// Galleries of these sizes with the command's own defaults.
pub(super) async fn measure(faces: &[usize], scripts: &Path) -> anyhow::Result<Vec<Measured>> {
    let (faces, scripts) = (faces.to_vec(), scripts.to_owned());
    measure_all(&SearchArgs { faces, queries: QUERIES, hnsw_up_to: HNSW_UP_TO, scripts }).await
}

/// How much longer a search of a million takes than faiss's, where there is such a gallery.
///
/// # Errors
/// A search of whatever gallery answers something else than faiss's.
pub(super) fn ratio_of_a_million(measured: &[Measured]) -> anyhow::Result<Option<f64>> {
    for one in measured {
        let differ = one.exact.differing(&one.faiss.flat);
        anyhow::ensure!(differ == 0, "of {} faces, {differ} queries have other answers than faiss", one.faces);
    }
    Ok(measured.iter().find(|one| one.faces == LARGE).map(Measured::ratio))
}

async fn measure_all(args: &SearchArgs) -> anyhow::Result<Vec<Measured>> {
    let mut measured = Vec::new();
    for faces in &args.faces {
        say(&format!("search of {faces} vectors"));
        measured.push(measure_one(args, *faces).await?);
    }
    Ok(measured)
}

async fn measure_one(args: &SearchArgs, faces: usize) -> anyhow::Result<Measured> {
    let folder = tempfile::tempdir()?;
    let db = Db::open_sqlite(&folder.path().join("bench.sqlite"), Synchronous::Normal, 4).await?;
    Migrator::up(&db.write, None).await?;
    let gallery = make(&db, "bench-search").await?;
    let mut random = Random(SEED);
    let templates = fill(&db, &gallery, faces, &mut random).await?;
    let queries = queries(&templates, args.queries, &mut random)?;
    let files = [folder.path().join("vectors.f32"), folder.path().join("queries.f32")];
    std::fs::write(&files[0], templates.bytes)?;
    std::fs::write(&files[1], queries.iter().flat_map(Embedding::to_bytes).collect::<Vec<_>>())?;

    let faiss = search_with_faiss(args, &files, faces <= args.hnsw_up_to).await?;
    let exact = search(&ExactFaceIndex::new(db), &gallery, &queries).await?;
    Ok(Measured { faces, exact, faiss })
}

async fn search_with_faiss(args: &SearchArgs, [vectors, queries]: &[PathBuf; 2], hnsw: bool) -> anyhow::Result<Faiss> {
    let mut command = python(&args.scripts, "faiss_search.py");
    command.arg("--vectors").arg(vectors).arg("--queries").arg(queries);
    command.args(["--dimension", &DIMENSION.to_string(), "--k", &K.to_string(), "--rounds", &ROUNDS.to_string()]);
    command.args(hnsw.then_some("--hnsw"));
    answer(command, "faiss_search.py").await
}

async fn search(index: &ExactFaceIndex, gallery: &Gallery, queries: &[Embedding]) -> anyhow::Result<Searched> {
    // The first search loads what later ones find in memory.
    index.search(gallery, queries[..1].to_vec(), K).await?;
    let (mut times, mut answers) = (vec![f64::INFINITY; queries.len()], Vec::new());
    for _ in 0..ROUNDS {
        answers.clear();
        for (query, ms) in queries.iter().zip(&mut times) {
            let query = vec![query.clone()];
            let began = Instant::now();
            let found = index.search(gallery, query, K).await?;
            *ms = ms.min(began.elapsed().as_secs_f64() * 1e3);
            answers.extend(found.hits);
        }
    }
    Ok(Searched {
        ms: times,
        scores: answers.iter().map(|hits| hits.iter().map(|hit| hit.score).collect()).collect(),
        rows: answers
            .iter()
            .map(|hits| hits.iter().map(row).collect::<anyhow::Result<_>>())
            .collect::<anyhow::Result<_>>()?,
    })
}

impl Searched {
    fn median_ms(&self) -> f64 {
        let mut ms = self.ms.clone();
        ms.sort_by(f64::total_cmp);
        ms[ms.len() / 2]
    }

    /// Queries whose answers are not the same in the same order, but for ties.
    fn differing(&self, other: &Self) -> usize {
        let same = |n: &usize| {
            let scores = self.scores[*n].iter().zip(&other.scores[*n]);
            let ties = scores.map(|(a, b)| (a - b).abs() < TIE);
            let rows = self.rows[*n].iter().zip(&other.rows[*n]);
            self.rows[*n].len() == other.rows[*n].len() && rows.zip(ties).all(|((a, b), tie)| a == b || tie)
        };
        (0..self.rows.len()).filter(|n| !same(n)).count()
    }

    /// The share of another's answers that are found here.
    fn recall(&self, truth: &Self) -> f64 {
        let found = self.rows.iter().zip(&truth.rows);
        let found: usize = found.map(|(rows, truth)| truth.iter().filter(|row| rows.contains(row)).count()).sum();
        found as f64 / truth.rows.iter().map(Vec::len).sum::<usize>() as f64
    }
}

impl Measured {
    /// The median of a search beside that of faiss's.
    fn ratio(&self) -> f64 {
        self.exact.median_ms() / self.faiss.flat.median_ms()
    }
}

/// A line for each gallery and way to search it.
pub(super) fn table(measured: &[Measured]) -> Table {
    let mut table = markdown_table(&["faces", "search, one thread", "ms a query", "to faiss flat", "same answers"]);
    for one in measured {
        let flat = &one.faiss.flat;
        let mut row = |name: &str, it: &Searched| {
            table.add_row([
                one.faces.to_string(),
                name.to_owned(),
                format!("{:.3}", it.median_ms()),
                format!("{:.2}", it.median_ms() / flat.median_ms()),
                format!("{:.4}", it.recall(flat)),
            ]);
        };
        row("faiss, IndexFlatIP", flat);
        row("face-id, exact, in memory", &one.exact);
        if let Some(hnsw) = &one.faiss.hnsw {
            row("faiss, HNSW", hnsw);
        }
    }
    table
}

fn report(measured: &[Measured]) -> serde_json::Value {
    let galleries: Vec<_> = measured
        .iter()
        .map(|one| {
            json!({
                "faces": one.faces,
                "exact_ms": one.exact.median_ms(),
                "faiss_flat_ms": one.faiss.flat.median_ms(),
                "faiss_hnsw_ms": one.faiss.hnsw.as_ref().map(Searched::median_ms),
                "faiss_hnsw_recall": one.faiss.hnsw.as_ref().map(|hnsw| hnsw.recall(&one.faiss.flat)),
                "exact_vs_faiss_flat": one.ratio(),
                "differing_queries": one.exact.differing(&one.faiss.flat),
            })
        })
        .collect();
    json!({
        "bench": "search",
        "dimension": DIMENSION,
        "k": K,
        "threads": 1,
        "faiss": measured.first().map(|one| &one.faiss.version),
        "galleries": galleries,
        "search_1m_vs_faiss_flat": measured.iter().find(|one| one.faces == LARGE).map(Measured::ratio),
    })
}
