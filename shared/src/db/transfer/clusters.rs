//! The clusters of a file in a collection, and which faces users took apart.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sea_orm::prelude::*;
use serde_json::json;

use super::faces::{Placed, new_faces};
use super::persons::{Persons, person_of, substitute, taken};
use crate::db::rows::{self, Column, Rows};
use crate::db::{clusters, execute, is_postgres};
use crate::ids::{ClusterId, CollectionId, FaceId, PersonId};
use crate::transfer::ClusterKey;

/// Keeps new faces apart that a user took apart. Their separations get ids of this collection, since the changes that made
/// them are not part of the file.
pub(super) async fn separate(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    faces: &[Placed<'_>],
) -> Result<(), DbErr> {
    let of_face = |face: &Placed<'_>| {
        let id = rows::id(face.id.0);
        let row = |(separation, side): (&Uuid, &i32)| json!({ "id": rows::id(substitute(collection, *separation)), "face_id": id, "side": side });
        face.line.sides.iter().map(row).collect::<Vec<_>>()
    };
    let rows: Vec<_> = new_faces(faces).flat_map(of_face).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let rows = Rows::new(&[("id", Column::Id), ("face_id", Column::Id), ("side", Column::Integer)], rows);
    let sql = format!(
        "INSERT INTO cluster_separations (id, face_id, side) SELECT r.id, r.face_id, r.side FROM {} WHERE TRUE
         ON CONFLICT DO NOTHING",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value()]).await?;
    Ok(())
}

/// Puts new faces into the clusters in which they were, which are made where they are missing.
pub(super) async fn cluster(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    faces: &[Placed<'_>],
    persons: &Persons,
) -> Result<(), DbErr> {
    let wanted: Vec<_> = new_faces(faces).filter_map(|face| Some((face.id, face.line.cluster.as_ref()?))).collect();
    let theirs: BTreeMap<ClusterId, Option<PersonId>> =
        wanted.iter().map(|(_, key)| (key.id, person_of(key.person.as_ref(), persons))).collect();
    if theirs.is_empty() {
        return Ok(());
    }
    let here = clusters_here(txn, collection, theirs.keys().copied()).await?;
    let row = |(id, person): (&ClusterId, &Option<PersonId>)| json!({ "id": rows::id(here[id].0), "person_id": rows::id(person.map(|p| p.0)) });
    let rows = Rows::new(&[("id", Column::Id), ("person_id", Column::Id)], theirs.iter().map(row).collect());
    let sql = format!(
        "INSERT INTO clusters (id, collection_id, person_id, faces, created_at)
         SELECT r.id, $2, r.person_id, 0, {{now}} FROM {} WHERE TRUE ON CONFLICT DO NOTHING",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value(), collection.into()]).await?;
    let row = |(face, key): &(FaceId, &ClusterKey)| json!({ "face_id": rows::id(face.0), "cluster_id": rows::id(here[&key.id].0) });
    let rows = Rows::new(&[("face_id", Column::Id), ("cluster_id", Column::Id)], wanted.iter().map(row).collect());
    let sql = format!(
        "INSERT INTO cluster_faces (face_id, collection_id, cluster_id) SELECT r.face_id, $2, r.cluster_id FROM {}
         WHERE TRUE ON CONFLICT DO NOTHING",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value(), collection.into()]).await?;
    clusters::recount(txn, &here.into_values().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()).await
}

/// The ids that clusters of the file have here.
async fn clusters_here(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    ids: impl Iterator<Item = ClusterId> + Clone,
) -> Result<HashMap<ClusterId, ClusterId>, DbErr> {
    let others = format!("(SELECT id FROM clusters WHERE collection_id <> '{collection}')");
    let others = if is_postgres(txn) {
        others
    } else {
        format!("(SELECT id FROM clusters WHERE collection_id <> unhex('{}'))", collection.0.simple())
    };
    let used = taken(txn, &others, ids.clone().map(|id| id.0)).await?;
    let here = |id: ClusterId| if used.contains(&id.0) { ClusterId(substitute(collection, id.0)) } else { id };
    Ok(ids.map(|id| (id, here(id))).collect())
}
