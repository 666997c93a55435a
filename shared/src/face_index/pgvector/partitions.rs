//! One partition of `embeddings` a pipeline: vectors of two models have different dimensions and never meet.

use sea_orm::{ConnectionTrait, DbErr};

use crate::db::{Db, count, execute};
use crate::digest::sha256_hex;

/// Vectors up to this many components fit a page and are kept in the row; PostgreSQL's default would move those of 512
/// and more out of line and make a scan four times as slow.
pub(super) const MAX_PLAIN: usize = 1900;

/// The name of a pipeline's partition: readable, and unlike any other's whatever the name holds.
pub fn partition_name(pipeline: &str) -> String {
    let readable: String = pipeline
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .take(30)
        .collect();
    format!("embeddings_{readable}_{}", &sha256_hex(pipeline)[..8])
}

/// Makes the partition of a pipeline whose vectors have `dimension` components, unless it is there. No reader waits for it, nor
/// it for one; for writers of faces and collections it waits only briefly, so that those behind it do not wait either.
///
/// # Errors
/// The locks were not to be had, or the partition is there with another dimension.
pub async fn create_partition(db: &Db, pipeline: &str, dimension: usize) -> Result<bool, DbErr> {
    if has_partition(db, pipeline).await? {
        return Ok(false);
    }
    let txn = db.begin().await?;
    execute(&txn, "SET LOCAL lock_timeout = '2s'", []).await?;
    create_within(&txn, pipeline, dimension).await?;
    txn.commit().await?;
    Ok(true)
}

/// Makes the partition within the caller's transaction, which says how long to wait for the locks.
pub(crate) async fn create_within(txn: &impl ConnectionTrait, pipeline: &str, dimension: usize) -> Result<(), DbErr> {
    let name = partition_name(pipeline);
    // `PARTITION OF` would lock out all who read vectors. What is attached gets the indexes, foreign keys and triggers as well.
    let create = format!(
        "CREATE TABLE {name} (LIKE embeddings INCLUDING ALL EXCLUDING INDEXES, CHECK (vector_dims(vector) = {dimension}))"
    );
    execute(txn, &create, []).await?;
    if dimension <= MAX_PLAIN {
        execute(txn, &format!("ALTER TABLE {name} ALTER COLUMN vector SET STORAGE PLAIN"), []).await?;
    }
    let attach = format!("ALTER TABLE embeddings ATTACH PARTITION {name} FOR VALUES IN ({})", literal(pipeline));
    execute(txn, &attach, []).await?;
    Ok(())
}

/// Drops the partition of a pipeline with all its vectors, if it is there. Waits briefly for all who read vectors, of whichever
/// pipeline, and they for it.
///
/// # Errors
/// The lock was not to be had.
pub async fn drop_partition(db: &Db, pipeline: &str) -> Result<(), DbErr> {
    let txn = db.begin().await?;
    execute(&txn, "SET LOCAL lock_timeout = '2s'", []).await?;
    drop_within(&txn, pipeline).await?;
    txn.commit().await
}

/// Drops the partition within the caller's transaction, which says how long to wait for the lock.
pub(crate) async fn drop_within(txn: &impl ConnectionTrait, pipeline: &str) -> Result<(), DbErr> {
    execute(txn, &format!("DROP TABLE IF EXISTS {}", partition_name(pipeline)), []).await?;
    execute(txn, "DELETE FROM hnsw_indexes WHERE pipeline = $1", [pipeline.into()]).await?;
    Ok(())
}

/// Whether vectors of the pipeline can be stored.
pub async fn has_partition(db: &Db, pipeline: &str) -> Result<bool, DbErr> {
    has_within(&db.read, pipeline).await
}

/// The same, as the connection sees it.
pub(crate) async fn has_within(conn: &impl ConnectionTrait, pipeline: &str) -> Result<bool, DbErr> {
    let sql = "SELECT count(*) AS n FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'embeddings'::regclass AND c.relname = $1";
    Ok(count(conn, sql, [partition_name(pipeline).into()]).await? > 0)
}

/// A text as an SQL literal.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_apart() {
        let name = partition_name("YuNet-MobileFaceNet'; DROP");
        assert!(name.starts_with("embeddings_yunet_mobilefacenet___drop_"), "{name}");
        assert_ne!(partition_name("a-b"), partition_name("a_b"));
        assert!(partition_name(&"x".repeat(200)).len() < 63);
        assert_eq!(literal("it's"), "'it''s'");
    }
}
