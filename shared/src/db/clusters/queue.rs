//! Which faces wait to be looked at, and all that has to be known of a face to place it.

use std::collections::HashMap;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde_json::json;

use crate::db::embeddings::StoredVector;
use crate::db::rows::{self, Column, Rows};
use crate::db::{Db, count, execute, faces as stored_faces, placeholders, rejections, statement};
use crate::embedding::Embedding;
use crate::ids::{ClusterId, CollectionId, FaceId, ImageId, PersonId};

/// A face that waits; the same face may wait several times.
#[derive(Clone, Debug, PartialEq, Eq, FromQueryResult)]
pub struct Waiting {
    /// The entry.
    pub seq: i64,
    /// The face, which may be gone.
    pub face_id: FaceId,
    /// The cluster in which it was when it was changed or deleted.
    pub cluster_id: Option<ClusterId>,
}

/// A face as it is stored.
#[derive(Clone, Debug)]
pub struct StoredFace {
    /// Which one.
    pub id: FaceId,
    /// Its image.
    pub image: ImageId,
    /// Whose it is.
    pub person: Option<PersonId>,
    /// It was looked at before: it lies in a cluster, or alone.
    pub is_placed: bool,
    /// Its cluster, with the cluster's person.
    pub cluster: Option<(ClusterId, Option<PersonId>)>,
    /// Nothing automatic is to place it: left out, or held back, by a user.
    pub is_held_back: bool,
    /// It is clear enough to be compared.
    pub is_usable: bool,
    /// Its vector by the pipeline that was asked for.
    pub embedding: Option<Embedding>,
    /// The persons that it is not.
    pub not: Vec<PersonId>,
    /// Which side of each separation it is on.
    pub sides: Vec<(Uuid, i32)>,
}

/// Stands in the queue for all faces of a collection that had too many to be clustered; no face has this id.
const ALL: FaceId = FaceId(Uuid::nil());

/// The collection whose face has waited longest, of those that are not in `except`.
pub async fn next_collection(db: &Db, except: &[CollectionId]) -> Result<Option<CollectionId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        collection_id: CollectionId,
    }
    let others = match except.len() {
        0 => String::new(),
        n => format!("WHERE collection_id NOT IN ({})", placeholders(1, n)),
    };
    let sql = format!("SELECT collection_id FROM cluster_queue {others} ORDER BY seq LIMIT 1");
    let except = except.iter().map(|id| Value::from(*id));
    let row = Row::find_by_statement(statement(&db.read, &sql, except)).one(&db.read).await?;
    Ok(row.map(|row| row.collection_id))
}

/// The next entries of a collection, oldest first.
pub async fn waiting(db: &Db, collection: CollectionId, limit: usize) -> Result<Vec<Waiting>, DbErr> {
    let sql = format!(
        "SELECT seq, face_id, cluster_id FROM cluster_queue WHERE collection_id = $1 ORDER BY seq LIMIT {limit}"
    );
    Waiting::find_by_statement(statement(&db.read, &sql, [collection.into()])).all(&db.read).await
}

/// How many entries of a collection wait.
pub async fn pending(db: &Db, collection: CollectionId) -> Result<i64, DbErr> {
    let sql = "SELECT count(*) AS n FROM cluster_queue WHERE collection_id = $1 AND face_id <> $2";
    count(&db.read, sql, [collection.into(), ALL.into()]).await
}

/// Forgets what waits of a collection that is gone or not to be clustered.
pub async fn forget(db: &Db, collection: CollectionId) -> Result<(), DbErr> {
    execute(&db.write, "DELETE FROM cluster_queue WHERE collection_id = $1", [collection.into()]).await?;
    Ok(())
}

/// Has one entry stand for all that waits of a collection with too many faces.
pub async fn fold(db: &Db, collection: CollectionId) -> Result<(), DbErr> {
    let txn = db.begin().await?;
    let folded = "DELETE FROM cluster_queue WHERE collection_id = $1 AND face_id <> $2";
    if execute(&txn, folded, [collection.into(), ALL.into()]).await? > 0 {
        let one = "INSERT INTO cluster_queue (collection_id, face_id) SELECT $1, $2
            WHERE NOT EXISTS (SELECT 1 FROM cluster_queue WHERE collection_id = $1 AND face_id = $2)";
        execute(&txn, one, [collection.into(), ALL.into()]).await?;
    }
    txn.commit().await
}

/// The reverse of [`fold`], once there is room: all that was folded waits again.
pub async fn unfold(db: &Db, collection: CollectionId) -> Result<(), DbErr> {
    let txn = db.begin().await?;
    let all = "DELETE FROM cluster_queue WHERE collection_id = $1 AND face_id = $2";
    if execute(&txn, all, [collection.into(), ALL.into()]).await? > 0 {
        enqueue_all(&txn, collection).await?;
    }
    txn.commit().await
}

/// Has every face of the collection looked at that was not placed yet, or is placed and may have to leave.
pub async fn enqueue_all(conn: &impl ConnectionTrait, collection: CollectionId) -> Result<(), DbErr> {
    let sql = "INSERT INTO cluster_queue (collection_id, face_id) SELECT f.collection_id, f.id FROM faces f
        WHERE f.collection_id = $1 AND (f.person_id IS NULL AND NOT f.hidden)
            <> EXISTS (SELECT 1 FROM cluster_faces c WHERE c.face_id = f.id)
        ORDER BY f.id";
    execute(conn, sql, [collection.into()]).await?;
    Ok(())
}

/// What is stored of those faces that are there.
pub async fn faces(conn: &impl ConnectionTrait, pipeline: &str, faces: &[FaceId]) -> Result<Vec<StoredFace>, DbErr> {
    if faces.is_empty() {
        return Ok(Vec::new());
    }
    let ids = faces.iter().map(|face| json!({ "face_id": rows::id(face.0) })).collect();
    let wanted = Rows::new(&[("face_id", Column::Id)], ids);
    let from = format!(
        "{} JOIN faces f ON f.id = r.face_id LEFT JOIN cluster_faces c ON c.face_id = f.id",
        wanted.table(conn)
    );
    read(conn, &from, vec![wanted.value(), pipeline.into()]).await
}

/// Up to `limit` faces of a collection that were placed, in the order of their ids, those after `after`.
pub async fn placed(
    conn: &impl ConnectionTrait,
    collection: CollectionId,
    pipeline: &str,
    after: FaceId,
    limit: usize,
) -> Result<Vec<StoredFace>, DbErr> {
    let from = format!(
        "(SELECT * FROM cluster_faces WHERE collection_id = $1 AND face_id > $3 ORDER BY face_id LIMIT {limit}) AS c
         JOIN faces f ON f.id = c.face_id"
    );
    read(conn, &from, vec![collection.into(), pipeline.into(), after.into()]).await
}

/// The faces of one cluster.
pub async fn of_cluster(
    conn: &impl ConnectionTrait,
    pipeline: &str,
    cluster: ClusterId,
) -> Result<Vec<StoredFace>, DbErr> {
    let from = "cluster_faces c JOIN faces f ON f.id = c.face_id AND c.cluster_id = $1";
    read(conn, from, vec![cluster.into(), pipeline.into()]).await
}

/// Reads faces `f`, placed as `c` says; the pipeline is `$2`.
async fn read(conn: &impl ConnectionTrait, from: &str, values: Vec<Value>) -> Result<Vec<StoredFace>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: FaceId,
        image_id: ImageId,
        person_id: Option<PersonId>,
        hidden: bool,
        locked: bool,
        placed: Option<FaceId>,
        cluster_id: Option<ClusterId>,
        cluster_person: Option<PersonId>,
        vector: Option<StoredVector>,
        quality: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct Quality {
        usable: bool,
    }
    let sql = format!(
        "SELECT f.id, f.image_id, f.person_id, f.hidden, f.locked, c.face_id AS placed, c.cluster_id,
            k.person_id AS cluster_person, e.vector,
            (SELECT g.quality FROM face_geometry g JOIN collections c ON c.id = f.collection_id
             WHERE g.face_id = f.id ORDER BY {} LIMIT 1) AS quality
         FROM {from} LEFT JOIN clusters k ON k.id = c.cluster_id
         LEFT JOIN embeddings e ON e.face_id = f.id AND e.pipeline = $2 ORDER BY f.id",
        stored_faces::PREFERRED
    );
    let found = Row::find_by_statement(statement(conn, &sql, values)).all(conn).await?;
    let ids: Vec<FaceId> = found.iter().map(|row| row.id).collect();
    let mut not: HashMap<FaceId, Vec<PersonId>> = HashMap::new();
    for (face, person) in rejections::of_faces(conn, &ids).await? {
        not.entry(face).or_default().push(person);
    }
    let mut sides = sides(conn, &ids).await?;
    let face = |row: Row| StoredFace {
        id: row.id,
        image: row.image_id,
        person: row.person_id,
        is_placed: row.placed.is_some(),
        cluster: row.cluster_id.map(|id| (id, row.cluster_person)),
        is_held_back: row.hidden || (row.locked && row.person_id.is_none()),
        is_usable: row.quality.is_some_and(|q| serde_json::from_str(&q).is_ok_and(|q: Quality| q.usable)),
        embedding: row.vector.map(|vector| vector.0),
        not: not.remove(&row.id).unwrap_or_default(),
        sides: sides.remove(&row.id).unwrap_or_default(),
    };
    Ok(found.into_iter().map(face).collect())
}

/// On which side of which separation faces are.
async fn sides(conn: &impl ConnectionTrait, faces: &[FaceId]) -> Result<HashMap<FaceId, Vec<(Uuid, i32)>>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        face_id: FaceId,
        id: Uuid,
        side: i32,
    }
    let mut sides: HashMap<FaceId, Vec<(Uuid, i32)>> = HashMap::new();
    if faces.is_empty() {
        return Ok(sides);
    }
    let ids = faces.iter().map(|face| json!({ "face_id": rows::id(face.0) })).collect();
    let wanted = Rows::new(&[("face_id", Column::Id)], ids);
    let sql = format!(
        "SELECT s.face_id, s.id, s.side FROM {} JOIN cluster_separations s ON s.face_id = r.face_id",
        wanted.table(conn)
    );
    for row in Row::find_by_statement(statement(conn, &sql, [wanted.value()])).all(conn).await? {
        sides.entry(row.face_id).or_default().push((row.id, row.side));
    }
    Ok(sides)
}
