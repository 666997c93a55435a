//! Vectors as the two databases store them: little-endian f32 bytes on `SQLite`, pgvector's own type on `PostgreSQL`.

use std::collections::{HashMap, HashSet};

use sea_orm::prelude::*;
use sea_orm::{FromQueryResult, QueryResult, TryGetError};
use serde_json::json;

use super::faces::Origin;
use super::rows::{self, Column, Rows};
use super::{execute, is_postgres, statement};
use crate::embedding::Embedding;
use crate::ids::{FaceId, PersonId};

/// A stored vector, read from whichever column type the database has.
pub(super) struct StoredVector(pub(super) Embedding);

/// The vector as a value to bind.
pub(crate) fn to_value(conn: &impl ConnectionTrait, embedding: &Embedding) -> Value {
    if is_postgres(conn) { PgVector::from(embedding.as_slice().to_vec()).into() } else { embedding.to_bytes().into() }
}

impl sea_orm::TryGetable for StoredVector {
    fn try_get_by<I: sea_orm::ColIdx>(row: &QueryResult, index: I) -> Result<Self, TryGetError> {
        let read = if row.try_as_pg_row().is_some() {
            Embedding::as_given(PgVector::try_get_by(row, index)?.to_vec())
        } else {
            Embedding::from_bytes(&Vec::<u8>::try_get_by(row, index)?)
        };
        read.map(Self).map_err(|e| TryGetError::DbErr(DbErr::Custom(e.to_string())))
    }
}

/// Stores the vector of a face, unless this pipeline made one of it before.
pub(super) async fn insert(
    txn: &impl ConnectionTrait,
    origin: Origin<'_>,
    face: FaceId,
    embedding: &Embedding,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO embeddings (pipeline, face_id, collection_id, vector) VALUES ($1, $2, $3, $4)
        ON CONFLICT DO NOTHING";
    let values = [origin.pipeline.into(), face.into(), origin.collection.into(), to_value(txn, embedding)];
    execute(txn, sql, values).await?;
    Ok(())
}

/// Stores the vectors of faces, but of those of which this pipeline made one before.
pub(super) async fn insert_all(
    txn: &impl ConnectionTrait,
    origin: Origin<'_>,
    vectors: &[(FaceId, &Embedding)],
) -> Result<(), DbErr> {
    if vectors.is_empty() {
        return Ok(());
    }
    let row = |(face, vector): &(FaceId, &Embedding)| json!({ "face_id": rows::id(face.0), "vector": rows::vector(txn, vector) });
    let columns = &[("face_id", Column::Id), ("vector", Column::Vector)];
    let rows = Rows::new(columns, vectors.iter().map(row).collect());
    let sql = format!(
        "INSERT INTO embeddings (pipeline, face_id, collection_id, vector)
         SELECT $2, r.face_id, $3, r.vector FROM {} WHERE TRUE ON CONFLICT DO NOTHING",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value(), origin.pipeline.into(), origin.collection.into()]).await?;
    Ok(())
}

/// Those of the faces of which the pipeline made a vector.
pub(super) async fn having(
    txn: &impl ConnectionTrait,
    pipeline: &str,
    faces: &[FaceId],
) -> Result<HashSet<FaceId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        face_id: FaceId,
    }
    if faces.is_empty() {
        return Ok(HashSet::new());
    }
    let ids = faces.iter().map(|face| json!({ "face_id": rows::id(face.0) })).collect();
    let wanted = Rows::new(&[("face_id", Column::Id)], ids);
    let sql = format!(
        "SELECT e.face_id FROM {} CROSS JOIN embeddings e WHERE e.pipeline = $2 AND e.face_id = r.face_id",
        wanted.table(txn)
    );
    let found = Row::find_by_statement(statement(txn, &sql, [wanted.value(), pipeline.into()])).all(txn).await?;
    Ok(found.into_iter().map(|row| row.face_id).collect())
}

/// The vectors that one pipeline made of those faces.
pub(super) async fn of_faces(
    conn: &impl ConnectionTrait,
    pipeline: &str,
    faces: &[FaceId],
) -> Result<HashMap<FaceId, Embedding>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        face_id: FaceId,
        vector: StoredVector,
    }
    if faces.is_empty() {
        return Ok(HashMap::new());
    }
    let ids = faces.iter().map(|face| json!({ "face_id": rows::id(face.0) })).collect();
    let wanted = Rows::new(&[("face_id", Column::Id)], ids);
    let sql = format!(
        "SELECT e.face_id, e.vector FROM {} CROSS JOIN embeddings e WHERE e.pipeline = $2 AND e.face_id = r.face_id",
        wanted.table(conn)
    );
    let found = Row::find_by_statement(statement(conn, &sql, [wanted.value(), pipeline.into()])).all(conn).await?;
    Ok(found.into_iter().map(|row| (row.face_id, row.vector.0)).collect())
}

/// The vectors that one pipeline made of a person's templates.
pub(super) async fn of_person(
    conn: &impl ConnectionTrait,
    person: PersonId,
    pipeline: &str,
) -> Result<Vec<(FaceId, Embedding)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        face_id: FaceId,
        vector: StoredVector,
    }
    let sql = "SELECT e.face_id, e.vector FROM embeddings e JOIN faces f ON f.id = e.face_id
        WHERE f.person_id = $1 AND f.assigned_by IN ('enrolled', 'user') AND NOT f.hidden AND e.pipeline = $2";
    let rows = Row::find_by_statement(statement(conn, sql, [person.into(), pipeline.into()])).all(conn).await?;
    Ok(rows.into_iter().map(|r| (r.face_id, r.vector.0)).collect())
}
