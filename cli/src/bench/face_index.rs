//! pgvector beside the exact index in memory: the same vectors in both, the same queries to both.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use comfy_table::Table;
use indicatif::{ProgressBar, ProgressStyle};
use migrations::{Migrator, MigratorTrait};
use sea_orm::ConnectionTrait as _;
use shared::access::Grant;
use shared::backends::connect;
use shared::config::{Config, Synchronous};
use shared::db::{Db, collections};
use shared::embedding::Embedding;
use shared::face_index::pgvector::{PgvectorFaceIndex, create_partition, drop_partition, partition_name};
use shared::face_index::{ExactFaceIndex, FaceIndex, Gallery};
use shared::ids::PersonId;

use super::gallery::{DIMENSION, PIPELINE, Random, fill, make};
use super::report::markdown_table;

#[derive(clap::Args)]
pub(crate) struct FaceIndexArgs {
    /// Vectors in all; one in a hundred goes into a small collection of its own.
    #[arg(long, default_value_t = 100_000)]
    faces: usize,
    /// Queries of each collection.
    #[arg(long, default_value_t = 200)]
    queries: usize,
}

/// Persons asked for.
const K: usize = 10;
/// Faces stored to see what storing costs.
const RECORDED: usize = 1000;
const SEED: u64 = 20_261_123;

/// The same gallery in both databases, in the same order.
struct Pair {
    name: &'static str,
    exact: Gallery,
    pgvector: Gallery,
    /// Which person of one is which of the other, and its direction.
    persons: Vec<(PersonId, PersonId, Vec<f32>)>,
}

/// How a search did.
struct Measured {
    recall: f64,
    fewer: usize,
    latency: Duration,
}

/// What a run found.
pub(super) struct Compared {
    searches: Table,
    record: Table,
    /// Of the large gallery, how much longer an exact search by pgvector takes than one in memory.
    pub(super) pgvector_vs_exact: f64,
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(crate) async fn run(config: &Config, args: &FaceIndexArgs) -> anyhow::Result<()> {
    println!("{}", measure(config, args.faces, args.queries).await?.told());
    Ok(())
}

/// Measures with so many vectors, in a partition of its own that goes again.
pub(super) async fn measure(config: &Config, faces: usize, queries: usize) -> anyhow::Result<Compared> {
    let folder = tempfile::tempdir()?;
    let sqlite = Db::open_sqlite(&folder.path().join("bench.sqlite"), Synchronous::Normal, 4).await?;
    Migrator::up(&sqlite.write, None).await?;
    let postgres = connect(config).await?;
    create_partition(&postgres, PIPELINE, DIMENSION).await?;
    let measured = compare(&FaceIndexArgs { faces, queries }, &sqlite, &postgres).await;
    // What an interrupted run left goes too.
    for name in ["bench-large", "bench-small", "bench-record"] {
        if let Some(left) = collections::find_by_name(&postgres.read, &Grant::everything(), name).await? {
            collections::delete(&postgres, left.id).await?;
        }
    }
    drop_partition(&postgres, PIPELINE).await?;
    measured
}

async fn compare(args: &FaceIndexArgs, sqlite: &Db, postgres: &Db) -> anyhow::Result<Compared> {
    let small = args.faces / 100;
    let large = pair(sqlite, postgres, "bench-large", args.faces - small, SEED).await?;
    let small = pair(sqlite, postgres, "bench-small", small, SEED + 1).await?;
    postgres.write.execute_unprepared("VACUUM ANALYZE embeddings").await.context("vacuum")?;
    let exact = ExactFaceIndex::new(sqlite.clone());
    let pgvector = PgvectorFaceIndex::new(postgres.clone(), 1);

    let mut searches =
        markdown_table(&["collection", "faces", "search", "recall@1", "fewer than k", "ms a query", "ratio"]);
    let mut record = markdown_table(&["index on the partition", "ms a face", "ratio"]);
    let mut pgvector_vs_exact = f64::NAN;
    let plain = record_cost(postgres, SEED + 2).await?;
    for approximate in [false, true] {
        for pair in [&large, &small] {
            let queries = queries(pair, args.queries)?;
            let baseline = search(&exact, &pair.exact, &queries, |hit, truth| hit == truth.0).await?;
            if approximate {
                pgvector.build(&pair.pgvector).await?;
            } else {
                row(&mut searches, pair, "exact, in memory", &baseline, &baseline);
            }
            let found = search(&pgvector, &pair.pgvector, &queries, |hit, truth| hit == truth.1).await?;
            if !approximate && pair.name == large.name {
                pgvector_vs_exact = found.latency.as_secs_f64() / baseline.latency.as_secs_f64();
            }
            let name = if approximate { "pgvector, HNSW" } else { "pgvector, exact" };
            row(&mut searches, pair, name, &found, &baseline);
        }
    }
    let bounded = record_cost(postgres, SEED + 3).await?;
    let name = partition_name(PIPELINE);
    let whole = format!("CREATE INDEX bench_whole ON {name} USING hnsw ((vector::vector({DIMENSION})) vector_ip_ops)");
    postgres.write.execute_unprepared(&format!("SET statement_timeout = 0; {whole}; RESET statement_timeout")).await?;
    let whole = record_cost(postgres, SEED + 4).await?;
    for (name, cost) in [
        ("none", plain),
        ("HNSW of large collections up to a face, as face-id builds it", bounded),
        ("HNSW over everything", whole),
    ] {
        let ms = cost.as_secs_f64() * 1e3 / RECORDED as f64;
        record.add_row([
            name.to_owned(),
            format!("{ms:.2}"),
            format!("{:.2}", cost.as_secs_f64() / plain.as_secs_f64()),
        ]);
    }
    Ok(Compared { searches, record, pgvector_vs_exact })
}

impl Compared {
    /// Both tables with what they are about.
    pub(super) fn told(&self) -> String {
        let Self { searches, record, .. } = self;
        format!(
            "Search for {K} persons, one query at a time:\n\n{searches}\n\nRecording faces, transactions of 500:\n\n{record}"
        )
    }
}

fn row(table: &mut Table, pair: &Pair, search: &str, found: &Measured, baseline: &Measured) {
    let ratio = found.latency.as_secs_f64() / baseline.latency.as_secs_f64();
    table.add_row([
        pair.name.to_owned(),
        (pair.persons.len() * 5).to_string(),
        search.to_owned(),
        format!("{:.4}", found.recall),
        found.fewer.to_string(),
        format!("{:.2}", found.latency.as_secs_f64() * 1e3),
        format!("{ratio:.1}"),
    ]);
}

async fn pair(sqlite: &Db, postgres: &Db, name: &'static str, faces: usize, seed: u64) -> anyhow::Result<Pair> {
    let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}")?;
    let bar = ProgressBar::new(2 * faces as u64).with_style(style).with_message(name);
    let exact = make(sqlite, name).await?;
    let one = fill(sqlite, &exact, faces, &mut Random(seed), |done| bar.set_position(done as u64)).await?;
    let pgvector = make(postgres, name).await?;
    let begun = faces as u64;
    let two = fill(postgres, &pgvector, faces, &mut Random(seed), |done| bar.set_position(begun + done as u64)).await?;
    bar.finish_and_clear();
    let persons = one.into_iter().zip(two).map(|((a, direction), (b, _))| (a, b, direction)).collect();
    Ok(Pair { name, exact, pgvector, persons })
}

/// New faces of persons of the gallery, with those persons' ids in both databases.
fn queries(pair: &Pair, count: usize) -> anyhow::Result<Vec<(Embedding, (PersonId, PersonId))>> {
    let mut random = Random(SEED ^ 0x5555);
    let step = (pair.persons.len() / count).max(1);
    let chosen = pair.persons.iter().step_by(step).take(count);
    chosen.map(|(a, b, direction)| Ok((random.face(direction)?, (*a, *b)))).collect()
}

async fn search(
    index: &dyn FaceIndex,
    gallery: &Gallery,
    queries: &[(Embedding, (PersonId, PersonId))],
    is_right: impl Fn(PersonId, (PersonId, PersonId)) -> bool,
) -> anyhow::Result<Measured> {
    // The first search loads what later ones find in memory.
    index.search(gallery, vec![queries[0].0.clone()], K).await?;
    let (mut right, mut fewer) = (0, 0);
    let began = Instant::now();
    for (query, truth) in queries {
        let found = index.search(gallery, vec![query.clone()], K).await?;
        right += usize::from(found.hits[0].first().is_some_and(|hit| is_right(hit.person, *truth)));
        fewer += usize::from(found.hits[0].len() < K.min(found.size.persons));
    }
    let latency = began.elapsed() / u32::try_from(queries.len())?;
    Ok(Measured { recall: right as f64 / queries.len() as f64, fewer, latency })
}

/// How long storing [`RECORDED`] faces takes.
async fn record_cost(postgres: &Db, seed: u64) -> anyhow::Result<Duration> {
    let gallery = make(postgres, "bench-record").await?;
    let began = Instant::now();
    fill(postgres, &gallery, RECORDED, &mut Random(seed), |_| {}).await?;
    let took = began.elapsed();
    collections::delete(postgres, gallery.collection).await?;
    Ok(took)
}
