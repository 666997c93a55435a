//! A large gallery in a SQLite database, quickly: whole blocks of vectors go in by a few statements.

use anyhow::Context as _;
use sea_orm::{ConnectionTrait, DatabaseBackend, Statement, Value};
use shared::db::Db;
use shared::db::images::{self, ImageSource};
use shared::embedding::Embedding;
use shared::face_index::{Gallery, Hit};

use super::gallery::{DIMENSION, Random};

/// Vectors stored by one statement.
const BLOCK: usize = 10_000;
/// Photographs of one individual are spread as in LFW, where 29 % have more than one and one has 530:
/// P(at least n) = n^-1.78.
const SPREAD: f32 = 1.78;
const MOST: f32 = 530.0;

/// Numbers from $1 on, $2 of them, under the name `n`.
const NUMBERS: &str = "WITH RECURSIVE numbers (i, n) AS (
    SELECT 0, $1 UNION ALL SELECT i + 1, n + 1 FROM numbers WHERE i + 1 < $2)";

/// What was stored.
pub(super) struct Templates {
    /// Little-endian f32, row-major.
    pub(super) bytes: Vec<u8>,
    /// The individuals' directions.
    pub(super) directions: Vec<Vec<f32>>,
}

/// Stores `count` faces of individuals as LFW has them. Each face is a person of its own here, and its id the number of
/// its row, counted from 1, so that the persons that a search finds are rows.
pub(super) async fn fill(db: &Db, gallery: &Gallery, count: usize, random: &mut Random) -> anyhow::Result<Templates> {
    let mut templates = Templates { bytes: Vec::with_capacity(count * DIMENSION * 4), directions: Vec::new() };
    let mut left = 0;
    for _ in 0..count {
        if left == 0 {
            left = random.power(SPREAD, MOST);
            templates.directions.push(random.direction());
        }
        left -= 1;
        let direction = templates.directions.last().context("one was made")?;
        templates.bytes.extend(random.face(direction)?.to_bytes());
    }
    let txn = db.begin().await?;
    let source = ImageSource {
        sha256: "bench".to_owned(),
        object_key: Some(format!("bench/{}", gallery.collection)),
        ..ImageSource::default()
    };
    let image = images::find_or_create(&txn, gallery.collection, &source, [1000, 1000]).await?.id;
    for (n, block) in templates.bytes.chunks(BLOCK * DIMENSION * 4).enumerate() {
        store(&txn, gallery, image.into(), n * BLOCK + 1, block).await?;
    }
    txn.commit().await?;
    Ok(templates)
}

/// The row of that hit's vector.
pub(super) fn row(hit: &Hit) -> anyhow::Result<usize> {
    usize::try_from(hit.face.0.as_u128())?.checked_sub(1).context("ids are counted from 1")
}

async fn store(
    conn: &impl ConnectionTrait,
    gallery: &Gallery,
    image: Value,
    first: usize,
    vectors: &[u8],
) -> anyhow::Result<()> {
    let numbers = [i64::try_from(first)?.into(), i64::try_from(vectors.len() / (DIMENSION * 4))?.into()];
    let run = async |sql: String, values: Vec<Value>| {
        let values = numbers.iter().cloned().chain(values);
        conn.execute_raw(Statement::from_sql_and_values(DatabaseBackend::Sqlite, sql, values)).await
    };
    let collection: Value = gallery.collection.into();
    let persons = "INSERT INTO persons (id, collection_id, created_at)
        SELECT unhex(printf('%032x', n)), $3, 0 FROM numbers";
    run(format!("{NUMBERS} {persons}"), vec![collection.clone()]).await?;
    let faces = "INSERT INTO faces (id, collection_id, image_id, person_id, assigned_by, created_at)
        SELECT unhex(printf('%032x', n)), $3, $4, unhex(printf('%032x', n)), 'enrolled', 0 FROM numbers";
    run(format!("{NUMBERS} {faces}"), vec![collection.clone(), image]).await?;
    let bytes = DIMENSION * 4;
    let embeddings = format!(
        "INSERT INTO embeddings (pipeline, face_id, collection_id, vector)
         SELECT $4, unhex(printf('%032x', n)), $3, substr($5, i * {bytes} + 1, {bytes}) FROM numbers"
    );
    let pipeline = gallery.pipeline.as_str().into();
    run(format!("{NUMBERS} {embeddings}"), vec![collection, pipeline, vectors.into()]).await?;
    Ok(())
}

/// Queries: a new face of each of `count` individuals of the gallery.
pub(super) fn queries(templates: &Templates, count: usize, random: &mut Random) -> anyhow::Result<Vec<Embedding>> {
    let step = (templates.directions.len() / count).max(1);
    templates.directions.iter().step_by(step).take(count).map(|direction| random.face(direction)).collect()
}
