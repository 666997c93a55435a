//! The index of services mode: pgvector. Exact by default; a large gallery is searched through an approximate index and
//! an exact scan of what is newer, and exactly again where that gives too few persons.

mod hnsw;
mod partitions;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sea_orm::{DbErr, FromQueryResult, TransactionTrait};
use tokio::task::JoinHandle;
use uuid::Uuid;

use self::hnsw::HnswIndex;
use self::partitions::literal;
use super::{FaceIndex, FaceIndexError, Found, Gallery, GallerySize, Hit};
use crate::catalogue::Metric;
use crate::db::{Db, embeddings, execute, statement};
use crate::embedding::Embedding;
use crate::ids::{FaceId, PersonId};
use crate::template;

pub use partitions::{create_partition, drop_partition, has_partition, partition_name};
pub(crate) use partitions::{create_within, drop_within, has_within};

/// Nearest faces fetched at first for each person wanted: most persons have a few faces.
const FACES_PER_PERSON: usize = 4;
/// How much more is fetched when that held too few persons.
const GROWTH: usize = 8;
/// Candidates that a search through HNSW looks at; its recall grows with it. pgvector's own default is 40, its limit 1000.
const MIN_EF_SEARCH: usize = 200;
const MAX_EF_SEARCH: usize = 1000;
/// A gallery of more faces is counted anew only when the last count is older than [`COUNT_FOR`]: its size moves the
/// threshold by next to nothing meanwhile, and counting takes as long as searching.
const COUNT_EACH_TIME: usize = 20_000;
const COUNT_FOR: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub struct PgvectorFaceIndex {
    db: Db,
    /// Templates from which on a gallery gets an approximate index; 0: never.
    hnsw_from: u64,
    owner: Uuid,
    sizes: Mutex<HashMap<Gallery, (GallerySize, Instant)>>,
    building: Mutex<Option<JoinHandle<()>>>,
}

#[derive(FromQueryResult)]
struct Near {
    person_id: PersonId,
    face_id: FaceId,
    /// What the metric's operator gives, so that ascending order is best first: the distance, or the inner product with its sign
    /// changed.
    apart: f64,
}

/// pgvector's operator for the metric; vectors whose cosine counts are of unit length.
fn operator(metric: Metric) -> &'static str {
    match metric {
        Metric::Cosine => "<#>",
        Metric::Euclidean => "<->",
    }
}

impl PgvectorFaceIndex {
    /// An index over the embeddings of `db`, a `PostgreSQL` database.
    pub fn new(db: Db, hnsw_from: u64) -> Self {
        let (sizes, building) = (Mutex::default(), Mutex::default());
        Self { db, hnsw_from, owner: Uuid::now_v7(), sizes, building }
    }

    /// Builds the gallery's approximate index now, whatever its size; false when another process is at it.
    ///
    /// # Errors
    /// The database fails, or was asked to stop.
    pub async fn build(&self, gallery: &Gallery) -> Result<bool, FaceIndexError> {
        Ok(hnsw::build(&self.db, gallery, self.owner).await?)
    }

    /// The best `k` persons by a scan of every template of the gallery.
    ///
    /// # Errors
    /// The database fails, or the query has another dimension than the templates.
    pub async fn search_exactly(
        &self,
        gallery: &Gallery,
        query: &Embedding,
        k: usize,
    ) -> Result<Vec<Hit>, FaceIndexError> {
        let mut limit = k.saturating_mul(FACES_PER_PERSON).max(1);
        let (here, apart) = (templates_of(gallery), operator(gallery.metric));
        loop {
            let sql = format!(
                "SELECT template_of AS person_id, face_id, vector {apart} $1 AS apart FROM embeddings
                 WHERE {here} ORDER BY apart, face_id LIMIT {limit}"
            );
            let vector = embeddings::to_value(&self.db.read, query);
            let near = Near::find_by_statement(statement(&self.db.read, &sql, [vector])).all(&self.db.read).await?;
            let is_all = near.len() < limit;
            let hits = best_persons(near, k, gallery.metric);
            if hits.len() >= k || is_all {
                return Ok(hits);
            }
            limit = limit.saturating_mul(GROWTH);
        }
    }

    /// The best `k` persons by way of the approximate index; fewer where its candidates did not hold as many.
    async fn search_through(
        &self,
        index: &HnswIndex,
        gallery: &Gallery,
        query: &Embedding,
        k: usize,
    ) -> Result<Vec<Hit>, DbErr> {
        let limit = k.saturating_mul(FACES_PER_PERSON).clamp(MIN_EF_SEARCH, MAX_EF_SEARCH);
        let sql = nearest_through(index, gallery, query.dimension(), limit);
        let txn = self.db.read.begin().await?;
        execute(&txn, &format!("SET LOCAL hnsw.ef_search = {limit}"), []).await?;
        let vector = embeddings::to_value(&txn, query);
        let near = Near::find_by_statement(statement(&txn, &sql, [vector])).all(&txn).await?;
        txn.commit().await?;
        Ok(best_persons(near, k, gallery.metric))
    }

    async fn size(&self, gallery: &Gallery, max_age: Duration) -> Result<GallerySize, DbErr> {
        #[derive(FromQueryResult)]
        struct Row {
            persons: i64,
            faces: i64,
            means: i64,
        }
        let counted = self.sizes.lock().unwrap_or_else(PoisonError::into_inner).get(gallery).copied();
        if let Some((size, when)) = counted {
            let max_age = if size.faces > COUNT_EACH_TIME { COUNT_FOR } else { max_age };
            if when.elapsed() < max_age {
                return Ok(size);
            }
        }
        let now = Instant::now();
        let sql = format!(
            "SELECT count(*) AS persons, COALESCE(sum(n), 0)::bigint AS faces,
                count(*) FILTER (WHERE n >= {}) AS means
             FROM (SELECT count(*) AS n FROM embeddings WHERE {} GROUP BY template_of) AS p",
            template::FEWEST,
            templates_of(gallery)
        );
        let row = Row::find_by_statement(statement(&self.db.read, &sql, [])).one(&self.db.read).await?;
        let row = row.unwrap_or(Row { persons: 0, faces: 0, means: 0 });
        let to_usize = |n: i64| usize::try_from(n).unwrap_or_default();
        let size =
            GallerySize { persons: to_usize(row.persons), faces: to_usize(row.faces), means: to_usize(row.means) };
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        sizes.retain(|_, (_, when)| when.elapsed() < COUNT_FOR);
        sizes.insert(gallery.clone(), (size, now));
        Ok(size)
    }
}

/// The query of [`PgvectorFaceIndex::search_through`]: the nearest `limit` faces of those inside the index, and as many of
/// the newer ones. Its expressions are the index's own, or the planner would not see that it fits.
fn nearest_through(index: &HnswIndex, gallery: &Gallery, dimension: usize, limit: usize) -> String {
    let here = templates_of(gallery);
    let apart = format!("vector::vector({dimension}) {} $1::vector({dimension})", operator(gallery.metric));
    let part = |face: &str| {
        format!(
            "(SELECT template_of AS person_id, face_id, {apart} AS apart
              FROM embeddings WHERE {here} AND face_id {face} '{}' ORDER BY {apart} LIMIT {limit})",
            index.last_face
        )
    };
    format!("{} UNION ALL {} ORDER BY apart, face_id", part("<="), part(">"))
}

/// The condition of a gallery's templates, in literals: the planner must see how large this collection is, where a plan
/// for any collection would scan all of them, and that the condition is the partial index's own.
fn templates_of(gallery: &Gallery) -> String {
    format!(
        "pipeline = {} AND collection_id = '{}' AND template_of IS NOT NULL",
        literal(&gallery.pipeline),
        gallery.collection
    )
}

/// The first face of each person, best first.
fn best_persons(near: Vec<Near>, k: usize, metric: Metric) -> Vec<Hit> {
    let mut hits: Vec<Hit> = Vec::with_capacity(k);
    for row in near {
        if hits.len() == k {
            break;
        }
        if hits.iter().all(|h| h.person != row.person_id) {
            #[expect(clippy::cast_possible_truncation, reason = "pgvector adds up f32 products")]
            let apart = row.apart as f32;
            let score = match metric {
                Metric::Cosine => -apart,
                Metric::Euclidean => 1.0 - apart,
            };
            hits.push(Hit { person: row.person_id, face: row.face_id, score });
        }
    }
    hits
}

#[async_trait]
impl FaceIndex for PgvectorFaceIndex {
    async fn search_within(
        &self,
        gallery: &Gallery,
        queries: Vec<Embedding>,
        k: usize,
        max_age: Duration,
    ) -> Result<Found, FaceIndexError> {
        let size = self.size(gallery, max_age).await?;
        if size.faces == 0 || queries.is_empty() {
            return Ok(Found { size, hits: vec![Vec::new(); queries.len()] });
        }
        let index = if self.hnsw_from > 0 { hnsw::find(&self.db, gallery).await? } else { None };
        let mut hits = Vec::with_capacity(queries.len());
        for query in &queries {
            let found = match &index {
                Some(index) => self.search_through(index, gallery, query, k).await?,
                None => Vec::new(),
            };
            // Never fewer than there are: an approximate index may lose some on the way, and the size may be an old one.
            let is_enough = index.is_some() && found.len() >= k;
            hits.push(if is_enough { found } else { self.search_exactly(gallery, query, k).await? });
        }
        Ok(Found { size, hits })
    }

    /// Starts to build what large galleries lack, one index at a time, beside everything else.
    async fn maintain(&self) -> Result<(), FaceIndexError> {
        let is_building =
            self.building.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|b| !b.is_finished());
        if self.hnsw_from == 0 || is_building {
            return Ok(());
        }
        let wanting = hnsw::wanting(&self.db, self.hnsw_from).await?;
        if wanting.is_empty() {
            return Ok(());
        }
        let (db, owner) = (self.db.clone(), self.owner);
        let building = tokio::spawn(async move {
            for gallery in wanting {
                // One that cannot be built keeps none of the others from theirs.
                let Err(error) = hnsw::build(&db, &gallery, owner).await else { break };
                tracing::warn!(%error, collection.id = %gallery.collection, "build an approximate index");
            }
        });
        *self.building.lock().unwrap_or_else(PoisonError::into_inner) = Some(building);
        Ok(())
    }
}

impl Drop for PgvectorFaceIndex {
    fn drop(&mut self) {
        if let Some(building) = self.building.lock().unwrap_or_else(PoisonError::into_inner).take() {
            building.abort();
        }
    }
}
