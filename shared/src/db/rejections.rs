//! "This face is not that person": what people said by hand, and nothing automatic may go against.

use std::collections::HashSet;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde_json::json;

use super::rows::{self, Column, Rows};
use super::{execute, statement};
use crate::ids::{FaceId, PersonId};

/// The persons that each of these faces is not.
pub async fn of_faces(conn: &impl ConnectionTrait, faces: &[FaceId]) -> Result<HashSet<(FaceId, PersonId)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        face_id: FaceId,
        person_id: PersonId,
    }
    if faces.is_empty() {
        return Ok(HashSet::new());
    }
    let ids = faces.iter().map(|face| json!({ "face_id": rows::id(face.0) })).collect();
    let wanted = Rows::new(&[("face_id", Column::Id)], ids);
    let sql = format!(
        "SELECT x.face_id, x.person_id FROM {} JOIN face_rejections x ON x.face_id = r.face_id",
        wanted.table(conn)
    );
    let found = Row::find_by_statement(statement(conn, &sql, [wanted.value()])).all(conn).await?;
    Ok(found.into_iter().map(|row| (row.face_id, row.person_id)).collect())
}

/// Remembers that the face is not the person.
pub async fn add(txn: &impl ConnectionTrait, face: FaceId, person: PersonId) -> Result<(), DbErr> {
    let sql = "INSERT INTO face_rejections (face_id, person_id, created_at) VALUES ($1, $2, {now})
        ON CONFLICT DO NOTHING";
    execute(txn, sql, [face.into(), person.into()]).await?;
    Ok(())
}

/// Forgets that the face is not the person.
pub async fn remove(txn: &impl ConnectionTrait, face: FaceId, person: PersonId) -> Result<(), DbErr> {
    let sql = "DELETE FROM face_rejections WHERE face_id = $1 AND person_id = $2";
    execute(txn, sql, [face.into(), person.into()]).await?;
    Ok(())
}
