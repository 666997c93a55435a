//! The exact index of embedded mode: all enrolled vectors of a gallery in memory.
//!
//! Before each search a gallery catches up with the log that the database's own triggers write, so it cannot miss a
//! change, whoever made it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sea_orm::{ConnectionTrait, DbErr, FromQueryResult, TransactionTrait, Value};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::kernel::Kernel;
use super::rows::Rows;
use super::{FaceIndex, FaceIndexError, Found, Gallery};
use crate::db::{Db, count, execute, statement};
use crate::embedding::Embedding;
use crate::ids::{FaceId, PersonId};

/// Rows read from the database in one step.
const ROWS_A_STEP: usize = 10_000;
/// So many comparisons take less time than to have another thread do them.
const FEW_COMPARISONS: usize = 2_000;

/// See the module.
#[derive(Debug)]
pub struct ExactFaceIndex {
    db: Db,
    kernel: Kernel,
    shelves: Mutex<HashMap<Gallery, Arc<Mutex<Shelf>>>>,
}

/// The vectors of one gallery.
#[derive(Debug, Default)]
struct Shelf {
    /// The log row up to which `rows` is true; `None` before the first load.
    as_of: Option<i64>,
    /// When that was read.
    read_at: Option<Instant>,
    rows: Arc<RwLock<Rows>>,
}

/// A face that changed, as it is now; without vector or person it is no longer in the gallery.
#[derive(FromQueryResult)]
struct Change {
    seq: i64,
    face_id: FaceId,
    vector: Option<Vec<u8>>,
    person_id: Option<PersonId>,
}

impl ExactFaceIndex {
    /// An index that loads each gallery at its first search.
    pub fn new(db: Db) -> Self {
        Self { db, kernel: Kernel::new(), shelves: Mutex::default() }
    }

    /// The gallery's rows, true at the time of the call or `max_age` before.
    async fn rows(&self, gallery: &Gallery, max_age: Duration) -> Result<Arc<RwLock<Rows>>, FaceIndexError> {
        let shelf = Arc::clone(self.shelves.lock().await.entry(gallery.clone()).or_default());
        let mut shelf = shelf.lock().await;
        let is_recent = shelf.as_of.is_some() && shelf.read_at.is_some_and(|when| when.elapsed() < max_age);
        if !is_recent {
            self.catch_up(gallery, &mut shelf).await?;
        }
        Ok(Arc::clone(&shelf.rows))
    }

    async fn catch_up(&self, gallery: &Gallery, shelf: &mut Shelf) -> Result<(), FaceIndexError> {
        // What a catching up that breaks off has read is no more than it was.
        shelf.read_at = None;
        let now = Instant::now();
        if shelf.as_of.is_none() {
            let (rows, as_of) = self.load(gallery).await?;
            shelf.rows = Arc::new(RwLock::new(rows));
            shelf.as_of = Some(as_of);
            shelf.read_at = Some(now);
            return Ok(());
        }
        // Read before the changes, so that they hold every row up to it.
        let end = self.log_end(&self.db.read).await?;
        while let Some(as_of) = shelf.as_of.filter(|as_of| *as_of < end) {
            let changes = self.changes(gallery, as_of).await?;
            let last = changes.last().map_or(end, |c| c.seq);
            let mut rows = shelf.rows.write().unwrap_or_else(PoisonError::into_inner);
            for change in changes {
                change.apply(&mut rows)?;
            }
            drop(rows);
            shelf.as_of = Some(last);
        }
        shelf.read_at = Some(now);
        Ok(())
    }

    async fn log_end(&self, conn: &impl ConnectionTrait) -> Result<i64, DbErr> {
        count(conn, "SELECT COALESCE(MAX(seq), 0) AS n FROM face_index_log", []).await
    }

    async fn load(&self, gallery: &Gallery) -> Result<(Rows, i64), FaceIndexError> {
        // One transaction, so that the log's end and the rows are of one moment.
        let txn = self.db.read.begin().await?;
        let as_of = self.log_end(&txn).await?;
        let sql = format!(
            "SELECT 0 AS seq, e.face_id, e.vector, f.person_id FROM embeddings e JOIN faces f ON f.id = e.face_id
             WHERE e.collection_id = $1 AND e.pipeline = $2 AND e.face_id > $3 AND f.person_id IS NOT NULL
               AND f.assigned_by IN ('enrolled', 'user') AND NOT f.hidden ORDER BY e.face_id LIMIT {ROWS_A_STEP}"
        );
        let mut rows = Rows::new(gallery.metric);
        let mut last = Some(FaceId(Uuid::nil()));
        while let Some(after) = last {
            let values = key(gallery).into_iter().chain([after.into()]);
            let step = Change::find_by_statement(statement(&txn, &sql, values)).all(&txn).await?;
            last = step.last().map(|change| change.face_id);
            for change in step {
                change.apply(&mut rows)?;
            }
        }
        txn.commit().await?;
        Ok((rows, as_of))
    }

    async fn changes(&self, gallery: &Gallery, after: i64) -> Result<Vec<Change>, DbErr> {
        let sql = format!(
            "SELECT l.seq, l.face_id, e.vector,
                CASE WHEN f.assigned_by IN ('enrolled', 'user') AND NOT f.hidden THEN f.person_id END AS person_id
             FROM face_index_log l
             LEFT JOIN embeddings e ON e.pipeline = l.pipeline AND e.face_id = l.face_id
             LEFT JOIN faces f ON f.id = l.face_id
             WHERE l.collection_id = $1 AND l.pipeline = $2 AND l.seq > $3 ORDER BY l.seq LIMIT {ROWS_A_STEP}"
        );
        let values = key(gallery).into_iter().chain([after.into()]);
        Change::find_by_statement(statement(&self.db.read, &sql, values)).all(&self.db.read).await
    }
}

#[async_trait]
impl FaceIndex for ExactFaceIndex {
    async fn search_within(
        &self,
        gallery: &Gallery,
        queries: Vec<Embedding>,
        k: usize,
        max_age: Duration,
    ) -> Result<Found, FaceIndexError> {
        let rows = self.rows(gallery, max_age).await?;
        let kernel = self.kernel;
        let faces = rows.read().unwrap_or_else(PoisonError::into_inner).size().faces;
        let is_short = faces * queries.len() <= FEW_COMPARISONS;
        let search = move || {
            let rows = rows.read().unwrap_or_else(PoisonError::into_inner);
            Ok(Found { size: rows.size(), hits: rows.best(kernel, &queries, k)? })
        };
        if is_short { search() } else { tokio::task::spawn_blocking(search).await? }
    }

    /// Catches up with the log, forgets empty galleries, and deletes the part of the log that every loaded gallery has
    /// read; the others load from the embeddings.
    async fn maintain(&self) -> Result<(), FaceIndexError> {
        let mut upto = self.log_end(&self.db.read).await?;
        let shelves: Vec<_> = self.shelves.lock().await.iter().map(|(g, s)| (g.clone(), Arc::clone(s))).collect();
        for (gallery, shelf) in shelves {
            let mut shelf = shelf.lock().await;
            self.catch_up(&gallery, &mut shelf).await?;
            let size = shelf.rows.read().unwrap_or_else(PoisonError::into_inner).size();
            if size.faces == 0 {
                // A search that waits for this very shelf has to load it anew.
                shelf.as_of = None;
                self.shelves.lock().await.remove(&gallery);
            } else if let Some(as_of) = shelf.as_of {
                upto = upto.min(as_of);
            }
        }
        execute(&self.db.write, "DELETE FROM face_index_log WHERE seq <= $1", [upto.into()]).await?;
        Ok(())
    }
}

impl Change {
    fn apply(self, rows: &mut Rows) -> Result<(), FaceIndexError> {
        rows.remove(self.face_id);
        let (Some(vector), Some(person)) = (self.vector, self.person_id) else { return Ok(()) };
        let vector = Embedding::from_bytes(&vector).map_err(|e| FaceIndexError::Vector(e.to_string()))?;
        rows.add(self.face_id, person, &vector)
    }
}

fn key(gallery: &Gallery) -> [Value; 2] {
    [gallery.collection.into(), gallery.pipeline.as_str().into()]
}

#[cfg(test)]
mod tests {
    use migrations::MigratorTrait;

    use super::*;
    use crate::face_index::contract;

    #[tokio::test]
    async fn keeps_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let db = crate::testing::database(folder.path()).await;
        migrations::Migrator::up(&db.write, None).await.unwrap();
        let index = Arc::new(ExactFaceIndex::new(db.clone()));
        contract::run(&db, Arc::clone(&index) as Arc<dyn FaceIndex>).await;
        index.maintain().await.unwrap();
        contract::run(&db, Arc::clone(&index) as Arc<dyn FaceIndex>).await;
        index.maintain().await.unwrap();
        let left = count(&db.read, "SELECT count(*) AS n FROM face_index_log", []).await.unwrap();
        assert_eq!(left, 0, "the log does not wait for galleries that nobody searches any more");
        contract::run(&db, Arc::clone(&index) as Arc<dyn FaceIndex>).await;
        contract::run(&db, Arc::new(ExactFaceIndex::new(db.clone()))).await;
    }
}
