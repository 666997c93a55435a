//! What one pass over waiting faces changes, in one transaction.

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde_json::json;

use super::{name_faces, recount};
use crate::db::rows::{self, Column, Rows};
use crate::db::{Db, execute, placeholders, statement};
use crate::ids::{ClusterId, CollectionId, FaceId};

/// What a pass found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The entries of the queue that it looked at.
    pub entries: Vec<i64>,
    /// Faces that are in no cluster any more, and not alone either.
    pub leaves: Vec<FaceId>,
    /// Clusters to be made.
    pub new_clusters: Vec<ClusterId>,
    /// Where faces lie that were alone or not placed before; `None` is alone.
    pub places: Vec<(FaceId, Option<ClusterId>)>,
    /// Clusters that became part of others.
    pub moves: Vec<(ClusterId, ClusterId)>,
    /// Clusters whose faces changed, those that are gone left out.
    pub touched: Vec<ClusterId>,
}

/// The version of the collection's clusters.
pub async fn version(conn: &impl ConnectionTrait, collection: CollectionId) -> Result<i64, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        version: i64,
    }
    let sql = "SELECT version FROM cluster_versions WHERE collection_id = $1";
    let row = Row::find_by_statement(statement(conn, sql, [collection.into()])).one(conn).await?;
    Ok(row.map_or(0, |row| row.version))
}

/// Writes what a pass found in version `seen`; false, and nothing is written, when another change came first.
pub async fn record(db: &Db, collection: CollectionId, seen: i64, plan: &Plan) -> Result<bool, DbErr> {
    let txn = db.begin().await?;
    let sql = "INSERT INTO cluster_versions (collection_id, version) VALUES ($1, $2 + 1)
        ON CONFLICT (collection_id) DO UPDATE SET version = excluded.version WHERE cluster_versions.version = $2";
    if execute(&txn, sql, [collection.into(), seen.into()]).await? == 0 {
        return Ok(false);
    }
    leave(&txn, &plan.leaves).await?;
    make(&txn, collection, &plan.new_clusters).await?;
    if !place(&txn, collection, &plan.places).await? {
        return Ok(false);
    }
    move_all(&txn, &plan.moves).await?;
    recount(&txn, &plan.touched).await?;
    name_faces(&txn, &plan.touched).await?;
    delete_empty(&txn, &plan.touched).await?;
    if !plan.entries.is_empty() {
        let sql = format!("DELETE FROM cluster_queue WHERE seq IN ({})", placeholders(1, plan.entries.len()));
        execute(&txn, &sql, plan.entries.iter().map(|seq| Value::from(*seq))).await?;
    }
    txn.commit().await?;
    Ok(true)
}

async fn leave(txn: &impl ConnectionTrait, faces: &[FaceId]) -> Result<(), DbErr> {
    if faces.is_empty() {
        return Ok(());
    }
    let sql = format!("DELETE FROM cluster_faces WHERE face_id IN ({})", placeholders(1, faces.len()));
    execute(txn, &sql, faces.iter().map(|id| Value::from(*id))).await?;
    Ok(())
}

/// Makes clusters without faces and person.
pub(super) async fn make(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    clusters: &[ClusterId],
) -> Result<(), DbErr> {
    if clusters.is_empty() {
        return Ok(());
    }
    let ids = clusters.iter().map(|id| json!({ "id": rows::id(id.0) })).collect();
    let new = Rows::new(&[("id", Column::Id)], ids);
    let sql = format!(
        "INSERT INTO clusters (id, collection_id, faces, created_at) SELECT r.id, $2, 0, {{now}} FROM {}",
        new.table(txn)
    );
    execute(txn, &sql, [new.value(), collection.into()]).await?;
    Ok(())
}

/// False when one of the faces was deleted or got a person meanwhile.
async fn place(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    places: &[(FaceId, Option<ClusterId>)],
) -> Result<bool, DbErr> {
    if places.is_empty() {
        return Ok(true);
    }
    let all = places.len() as u64;
    let row = |(face, cluster): &(FaceId, Option<ClusterId>)| json!({ "face_id": rows::id(face.0), "cluster_id": rows::id(cluster.map(|c| c.0)) });
    let places = Rows::new(&[("face_id", Column::Id), ("cluster_id", Column::Id)], places.iter().map(row).collect());
    let sql = format!(
        "INSERT INTO cluster_faces (face_id, collection_id, cluster_id) SELECT r.face_id, $2, r.cluster_id FROM {}
         JOIN faces f ON f.id = r.face_id WHERE f.person_id IS NULL AND NOT f.hidden
         ON CONFLICT (face_id) DO UPDATE SET cluster_id = excluded.cluster_id",
        places.table(txn)
    );
    Ok(execute(txn, &sql, [places.value(), collection.into()]).await? == all)
}

async fn move_all(txn: &impl ConnectionTrait, moves: &[(ClusterId, ClusterId)]) -> Result<(), DbErr> {
    for (from, into) in moves {
        let sql = "UPDATE cluster_faces SET cluster_id = $1 WHERE cluster_id = $2";
        execute(txn, sql, [(*into).into(), (*from).into()]).await?;
        execute(txn, "DELETE FROM clusters WHERE id = $1", [(*from).into()]).await?;
    }
    Ok(())
}

async fn delete_empty(txn: &impl ConnectionTrait, clusters: &[ClusterId]) -> Result<(), DbErr> {
    if clusters.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "DELETE FROM clusters WHERE faces = 0 AND person_id IS NULL AND id IN ({})",
        placeholders(1, clusters.len())
    );
    execute(txn, &sql, clusters.iter().map(|id| Value::from(*id))).await?;
    Ok(())
}
