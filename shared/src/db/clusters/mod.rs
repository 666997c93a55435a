//! Clusters: faces without a person that look like one.
//!
//! Triggers write every face that may have to join or leave a cluster into a queue. One worker takes from it
//! ([`queue`]), works out what belongs together, and records it ([`pass`]); users change clusters ([`edits`]). Both move a
//! collection's version on, so that whoever worked on an older one begins again.

pub mod edits;
pub mod pass;
pub mod queue;

use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::faces::PlacedFace;
use super::{Db, faces, placeholders, statement};
use crate::ids::{ClusterChangeId, ClusterId, CollectionId, FaceId, PersonId};

/// A row of `clusters`.
#[derive(Clone, Debug, PartialEq, Eq, FromQueryResult)]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct Cluster {
    pub id: ClusterId,
    pub collection_id: CollectionId,
    pub person_id: Option<PersonId>,
    pub faces: i64,
    pub created_at: i64,
}

/// A row of `cluster_changes`.
#[derive(Clone, Debug, PartialEq, Eq, FromQueryResult)]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct ClusterChange {
    pub id: ClusterChangeId,
    pub kind: String,
    pub cluster_id: ClusterId,
    pub person_id: Option<PersonId>,
    pub created_at: i64,
    pub undone_at: Option<i64>,
}

/// Which clusters to list.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Of at least so many faces.
    pub min_faces: i64,
    /// With a person or without; all where absent.
    pub named: Option<bool>,
    /// After this one: how many faces it had, and its id.
    pub after: Option<(i64, ClusterId)>,
}

const COLUMNS: &str = "id, collection_id, person_id, faces, created_at";

/// The cluster of that id in that collection.
pub async fn find(
    conn: &impl ConnectionTrait,
    collection: CollectionId,
    id: ClusterId,
) -> Result<Option<Cluster>, DbErr> {
    let sql = format!("SELECT {COLUMNS} FROM clusters WHERE id = $1 AND collection_id = $2");
    Cluster::find_by_statement(statement(conn, &sql, [id.into(), collection.into()])).one(conn).await
}

/// Up to `limit` clusters, the largest first.
pub async fn list(db: &Db, collection: CollectionId, wanted: Wanted, limit: u64) -> Result<Vec<Cluster>, DbErr> {
    let named = match wanted.named {
        Some(true) => "AND person_id IS NOT NULL",
        Some(false) => "AND person_id IS NULL",
        None => "",
    };
    let mut values = vec![collection.into(), wanted.min_faces.into()];
    let mut after = "";
    if let Some((faces, id)) = wanted.after {
        after = "AND (faces < $3 OR (faces = $3 AND id < $4))";
        values.extend([faces.into(), id.into()]);
    }
    let sql = format!(
        "SELECT {COLUMNS} FROM clusters WHERE collection_id = $1 AND faces >= $2 {named} {after}
         ORDER BY faces DESC, id DESC LIMIT {limit}"
    );
    Cluster::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await
}

/// Up to `limit` faces of a cluster whose id comes after `after`.
pub async fn faces_of(
    db: &Db,
    cluster: ClusterId,
    after: Option<FaceId>,
    limit: u64,
) -> Result<Vec<PlacedFace>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        face_id: FaceId,
    }
    let sql = format!(
        "SELECT k.face_id FROM cluster_faces k JOIN faces f ON f.id = k.face_id
         JOIN collections c ON c.id = f.collection_id
         WHERE k.cluster_id = $1 AND k.face_id > $2 AND {} ORDER BY k.face_id LIMIT {limit}",
        faces::SHOWN
    );
    let values = [cluster.into(), after.unwrap_or(FaceId(Uuid::nil())).into()];
    let rows = Row::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await?;
    faces::find_many(&db.read, &rows.into_iter().map(|row| row.face_id).collect::<Vec<_>>()).await
}

/// How many faces of a cluster are looked at for its cover.
const COVER_FROM: u64 = 64;

/// The ids of up to `count` faces that show best who a cluster is, of its oldest ones: large and clearly seen.
pub async fn cover(db: &Db, cluster: ClusterId, count: usize) -> Result<Vec<FaceId>, DbErr> {
    let mut faces = faces_of(db, cluster, None, COVER_FROM).await?;
    let clear = |face: &PlacedFace| face.geometry.score * face.geometry.width.min(face.geometry.height);
    faces.sort_by(|a, b| clear(b).total_cmp(&clear(a)).then(a.face.id.cmp(&b.face.id)));
    Ok(faces.into_iter().take(count).map(|face| face.face.id).collect())
}

/// Up to `limit` changes that users made, the newest first, those before `before`.
pub async fn changes(
    db: &Db,
    collection: CollectionId,
    before: Option<ClusterChangeId>,
    limit: u64,
) -> Result<Vec<ClusterChange>, DbErr> {
    let sql = format!(
        "SELECT id, kind, cluster_id, person_id, created_at, undone_at FROM cluster_changes
         WHERE collection_id = $1 AND id < $2 ORDER BY id DESC LIMIT {limit}"
    );
    let values = [collection.into(), before.unwrap_or(ClusterChangeId(Uuid::max())).into()];
    ClusterChange::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await
}

/// Forgets the oldest changes, up to `limit`, that were made more than `keep` ago: they can no longer be undone. Returns how
/// many.
pub async fn forget_changes(db: &Db, keep: Duration, limit: u64) -> Result<u64, DbErr> {
    // Ids are in the order of their making: behind the first young one nothing is old.
    let sql = format!(
        "DELETE FROM cluster_changes WHERE created_at < {{now}} - $1
            AND id IN (SELECT id FROM cluster_changes ORDER BY id LIMIT {limit})"
    );
    super::execute(&db.write, &sql, [super::micros(keep).into()]).await
}

/// Moves the collection's clusters on to the next version; others who want to wait until the transaction ends.
pub(super) async fn move_on(txn: &impl ConnectionTrait, collection: CollectionId) -> Result<(), DbErr> {
    let sql = "INSERT INTO cluster_versions (collection_id, version) VALUES ($1, 1)
        ON CONFLICT (collection_id) DO UPDATE SET version = cluster_versions.version + 1";
    super::execute(txn, sql, [collection.into()]).await?;
    Ok(())
}

/// Counts the clusters' faces anew.
pub(super) async fn recount(txn: &impl ConnectionTrait, clusters: &[ClusterId]) -> Result<(), DbErr> {
    if clusters.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "UPDATE clusters SET faces = (SELECT count(*) FROM cluster_faces c WHERE c.cluster_id = clusters.id)
         WHERE id IN ({})",
        placeholders(1, clusters.len())
    );
    super::execute(txn, &sql, clusters.iter().map(|id| Value::from(*id))).await?;
    Ok(())
}

/// Gives the faces of named clusters that have no person theirs.
async fn name_faces(txn: &impl ConnectionTrait, clusters: &[ClusterId]) -> Result<(), DbErr> {
    if clusters.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "UPDATE faces SET person_id = k.person_id, assigned_by = 'cluster' FROM cluster_faces c
         JOIN clusters k ON k.id = c.cluster_id
         WHERE c.face_id = faces.id AND k.person_id IS NOT NULL AND faces.person_id IS NULL AND NOT faces.hidden
            AND NOT faces.locked AND k.id IN ({})
            AND NOT EXISTS (SELECT 1 FROM face_rejections x WHERE x.face_id = faces.id AND x.person_id = k.person_id)",
        placeholders(1, clusters.len())
    );
    super::execute(txn, &sql, clusters.iter().map(|id| Value::from(*id))).await?;
    Ok(())
}

#[cfg(test)]
mod tests;
