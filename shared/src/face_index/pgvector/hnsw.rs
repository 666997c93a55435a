//! The approximate index of a large gallery: HNSW over the templates that were there when it was built.
//!
//! It ends at a face: ids grow with time, so what was stored later is outside and costs nothing to insert (an insert into
//! an HNSW index takes milliseconds). A search scans that rest exactly; when it has grown, the index is built anew.

use std::time::Duration;

use sea_orm::{DbErr, FromQueryResult};
use uuid::Uuid;

use super::partitions::{literal, partition_name};
use crate::catalogue::{Metric, Pipeline};
use crate::db::{Db, execute, leaders, models, statement};
use crate::face_index::Gallery;
use crate::ids::{CollectionId, FaceId};
use crate::models::parsed;

/// The rest may grow to this share of the index before that is built anew.
const REBUILD_FRACTION: i64 = 5;
/// Components of a vector at most: pgvector indexes no longer ones (its README, "HNSW"). A search scans those exactly.
const MOST_COMPONENTS: usize = 2000;
/// Whoever builds an index leads in a role whose name begins so.
const ROLE: &str = "hnsw";
/// While one process builds, others leave it alone; one that died has lost its turn after this long.
const BUILD_LEASE: Duration = Duration::from_secs(3600);

/// An index that stands.
#[derive(Clone, Debug, FromQueryResult)]
pub(super) struct HnswIndex {
    pub(super) name: String,
    /// The last face inside.
    pub(super) last_face: FaceId,
}

/// The index of the gallery, if it has one.
pub(super) async fn find(db: &Db, gallery: &Gallery) -> Result<Option<HnswIndex>, DbErr> {
    let sql = "SELECT name, last_face FROM hnsw_indexes WHERE pipeline = $1 AND collection_id = $2";
    let values = [gallery.pipeline.as_str().into(), gallery.collection.into()];
    HnswIndex::find_by_statement(statement(&db.read, sql, values)).one(&db.read).await
}

/// The galleries of at least `from` templates whose index is missing or has been outgrown.
pub(super) async fn wanting(db: &Db, from: u64) -> Result<Vec<Gallery>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        pipeline: String,
        collection_id: CollectionId,
    }
    let sql = format!(
        "SELECT e.pipeline, e.collection_id FROM embeddings e
         LEFT JOIN hnsw_indexes h ON h.pipeline = e.pipeline AND h.collection_id = e.collection_id
         WHERE e.template_of IS NOT NULL GROUP BY e.pipeline, e.collection_id, h.faces
         HAVING count(*) >= $1 AND (h.faces IS NULL OR count(*) - h.faces > h.faces / {REBUILD_FRACTION})"
    );
    let from = i64::try_from(from).unwrap_or(i64::MAX);
    let rows = Row::find_by_statement(statement(&db.read, &sql, [from.into()])).all(&db.read).await?;
    let mut wanting = Vec::new();
    for Row { pipeline, collection_id } in rows {
        // Without one that this version understands, nobody can search it here either.
        let Some(entry) = entry_of(db, &pipeline).await? else { continue };
        if entry.recognizer.dimension <= MOST_COMPONENTS {
            wanting.push(Gallery { collection: collection_id, pipeline, metric: entry.recognizer.metric });
        }
    }
    Ok(wanting)
}

/// The registered entry of the pipeline.
async fn entry_of(db: &Db, pipeline: &str) -> Result<Option<Pipeline>, DbErr> {
    let row = models::find(&db.read, pipeline).await?;
    Ok(row.and_then(|row| parsed(&row).ok()))
}

/// By what the index of a metric is built.
fn operator_class(metric: Metric) -> &'static str {
    match metric {
        Metric::Cosine => "vector_ip_ops",
        Metric::Euclidean => "vector_l2_ops",
    }
}

/// Builds the index of a gallery beside its use; false when another process is at it.
pub(super) async fn build(db: &Db, gallery: &Gallery, owner: Uuid) -> Result<bool, DbErr> {
    let role = format!("{ROLE} {} {}", gallery.collection, gallery.pipeline);
    if leaders::lead(db, &role, owner, BUILD_LEASE).await?.is_none() {
        return Ok(false);
    }
    // A failure too ends the turn: the lease would keep everybody from it for an hour.
    let built = build_alone(db, gallery, &role).await;
    leaders::resign(db, &role, owner).await?;
    built.map(|()| true)
}

async fn build_alone(db: &Db, gallery: &Gallery, role: &str) -> Result<(), DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        // max() knows no uuid before PostgreSQL 18.
        last_face: Option<FaceId>,
        faces: i64,
        dimension: Option<i32>,
    }
    drop_leftovers(db, role).await?;
    let here = format!(
        "pipeline = {} AND collection_id = '{}' AND template_of IS NOT NULL",
        literal(&gallery.pipeline),
        gallery.collection
    );
    let sql = format!(
        "SELECT (SELECT face_id FROM embeddings WHERE {here} ORDER BY face_id DESC LIMIT 1) AS last_face,
            (SELECT vector_dims(vector) FROM embeddings WHERE {here} LIMIT 1) AS dimension,
            count(*) AS faces FROM embeddings WHERE {here}"
    );
    let row = Row::find_by_statement(statement(&db.read, &sql, [])).one(&db.read).await?;
    match row {
        Some(Row { last_face: Some(last_face), faces, dimension: Some(dimension) }) => {
            replace(db, gallery, last_face, faces, dimension).await
        }
        _ => Ok(()),
    }
}

/// Drops what builds left that were killed: indexes that are not listed, half made or whole. While another process builds,
/// one of them may be its, made and about to be listed.
async fn drop_leftovers(db: &Db, role: &str) -> Result<(), DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        name: String,
    }
    let sql = format!(
        "SELECT c.relname::text AS name FROM pg_inherits p
         JOIN pg_index i ON i.indrelid = p.inhrelid JOIN pg_class c ON c.oid = i.indexrelid
         WHERE p.inhparent = 'embeddings'::regclass AND c.relname LIKE 'hnsw\\_%'
         AND NOT EXISTS (SELECT 1 FROM hnsw_indexes h WHERE h.name = c.relname)
         AND NOT EXISTS (SELECT 1 FROM leaders l WHERE l.role LIKE '{ROLE} %' AND l.role <> $1 AND l.expires_at > {{now}})
         AND NOT EXISTS (SELECT 1 FROM pg_stat_progress_create_index b WHERE b.index_relid = c.oid)"
    );
    for Row { name } in Row::find_by_statement(statement(&db.write, &sql, [role.into()])).all(&db.write).await? {
        tracing::info!(name, "an approximate index that a killed build left is dropped");
        run_long(db, &[&format!("DROP INDEX CONCURRENTLY IF EXISTS {name}")]).await?;
    }
    Ok(())
}

async fn replace(db: &Db, gallery: &Gallery, last_face: FaceId, faces: i64, dimension: i32) -> Result<(), DbErr> {
    let old = find(db, gallery).await?;
    let name = format!("hnsw_{}", Uuid::now_v7().simple());
    let create = format!(
        "CREATE INDEX CONCURRENTLY {name} ON {} USING hnsw ((vector::vector({dimension})) {})
         WHERE collection_id = '{}' AND template_of IS NOT NULL AND face_id <= '{last_face}'",
        partition_name(&gallery.pipeline),
        operator_class(gallery.metric),
        gallery.collection
    );
    run_long(db, &[&create]).await?;
    let sql = "INSERT INTO hnsw_indexes (pipeline, collection_id, name, last_face, faces) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (pipeline, collection_id) DO UPDATE
        SET name = excluded.name, last_face = excluded.last_face, faces = excluded.faces";
    let values =
        [gallery.pipeline.as_str().into(), gallery.collection.into(), name.into(), last_face.into(), faces.into()];
    execute(&db.write, sql, values).await?;
    if let Some(old) = old {
        run_long(db, &[&format!("DROP INDEX CONCURRENTLY IF EXISTS {}", old.name)]).await?;
    }
    tracing::info!(collection.id = %gallery.collection, pipeline = gallery.pipeline, faces, "an approximate index was built");
    Ok(())
}

/// Runs statements that take long and want no transaction, on a connection of their own.
async fn run_long(db: &Db, statements: &[&str]) -> Result<(), DbErr> {
    let failed = |e: sqlx::Error| DbErr::Exec(sea_orm::RuntimeErr::SqlxError(e.into()));
    let mut connection = db.write.get_postgres_connection_pool().acquire().await.map_err(failed)?.detach();
    sqlx::Executor::execute(&mut connection, "SET statement_timeout = 0").await.map_err(failed)?;
    for sql in statements {
        sqlx::Executor::execute(&mut connection, sqlx::AssertSqlSafe((*sql).to_owned())).await.map_err(failed)?;
    }
    sqlx::Connection::close(connection).await.map_err(failed)
}
