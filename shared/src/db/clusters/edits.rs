//! What users change of clusters: merge, split, name, and undo each.
//!
//! Every change keeps where each face was and whose, so that it can be undone while others have gone on.

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::{Cluster, find, move_on, name_faces, pass, recount};
use crate::db::reprocess::pending;
use crate::db::{Db, count, execute, persons, placeholders, rematches, statement, through_deadlocks};
use crate::ids::{ClusterChangeId, ClusterId, CollectionId, FaceId, PersonId};
use crate::job::PersonRef;

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edited {
    /// It was made: the cluster as it is now, and how to undo it.
    Done(Cluster, ClusterChangeId),
    /// There is no such cluster in the collection.
    NoCluster(ClusterId),
    /// There is no such person in the collection.
    NoPerson,
    /// The clusters belong to different persons.
    TwoPersons,
    /// The faces are not some but not all of the cluster's faces.
    NotAPart,
}

/// What became of the wish to undo a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undone {
    /// It was undone.
    Done,
    /// It was undone before.
    Before,
    /// There is no such change in the collection.
    NoChange,
}

/// Makes one cluster of several: the others become part of `into`, and what kept them apart is forgotten.
pub async fn merge(db: &Db, collection: CollectionId, into: ClusterId, others: &[ClusterId]) -> Result<Edited, DbErr> {
    through_deadlocks(|| merge_once(db, collection, into, others)).await
}

async fn merge_once(db: &Db, collection: CollectionId, into: ClusterId, others: &[ClusterId]) -> Result<Edited, DbErr> {
    let txn = db.begin().await?;
    move_on(&txn, collection).await?;
    let mut persons = Vec::new();
    for id in std::iter::once(&into).chain(others) {
        let Some(cluster) = find(&txn, collection, *id).await? else { return Ok(Edited::NoCluster(*id)) };
        persons.push(cluster.person_id);
    }
    let own = persons[0];
    let mut named: Vec<PersonId> = persons.into_iter().flatten().collect();
    named.sort_unstable();
    named.dedup();
    if named.len() > 1 {
        return Ok(Edited::TwoPersons);
    }
    let change = begin(&txn, collection, Kind::Merge, into, named.first().copied()).await?;
    remember(&txn, change, others).await?;
    if own.is_none() && !named.is_empty() {
        // They get a person by this.
        remember(&txn, change, &[into]).await?;
    }
    let theirs = placeholders(2, others.len());
    let values = || std::iter::once(into.into()).chain(others.iter().map(|id| Value::from(*id)));
    let sql = format!("UPDATE cluster_faces SET cluster_id = $1 WHERE cluster_id IN ({theirs})");
    execute(&txn, &sql, values()).await?;
    unite_sides(&txn, into).await?;
    let sql = format!("DELETE FROM clusters WHERE id <> $1 AND id IN ({theirs})");
    execute(&txn, &sql, values()).await?;
    set_person(&txn, into, named.first().copied()).await?;
    finish(&txn, &[into]).await?;
    done(txn, collection, into, change).await
}

/// Takes faces out of a cluster into one of their own; automatically, the two never come together again.
pub async fn split(db: &Db, collection: CollectionId, cluster: ClusterId, faces: &[FaceId]) -> Result<Edited, DbErr> {
    through_deadlocks(|| split_once(db, collection, cluster, faces)).await
}

async fn split_once(db: &Db, collection: CollectionId, from: ClusterId, faces: &[FaceId]) -> Result<Edited, DbErr> {
    let txn = db.begin().await?;
    move_on(&txn, collection).await?;
    let Some(cluster) = find(&txn, collection, from).await? else { return Ok(Edited::NoCluster(from)) };
    let listed = placeholders(2, faces.len());
    let values = |first: Value| std::iter::once(first).chain(faces.iter().map(|id| Value::from(*id)));
    let sql = format!("SELECT count(*) AS n FROM cluster_faces WHERE cluster_id = $1 AND face_id IN ({listed})");
    let found = count(&txn, &sql, values(from.into())).await?;
    let all = count(&txn, "SELECT count(*) AS n FROM cluster_faces WHERE cluster_id = $1", [from.into()]).await?;
    if usize::try_from(found) != Ok(faces.len()) || found == 0 || found == all {
        return Ok(Edited::NotAPart);
    }
    let part = ClusterId::new();
    pass::make(&txn, collection, &[part]).await?;
    let change = begin(&txn, collection, Kind::Split, part, cluster.person_id).await?;
    let sql = format!("UPDATE cluster_faces SET cluster_id = $1 WHERE face_id IN ({listed})");
    execute(&txn, &sql, values(part.into())).await?;
    remember_as(&txn, change, &[part], from).await?;
    let sql = "INSERT INTO cluster_separations (id, face_id, side)
        SELECT $1, face_id, CASE WHEN cluster_id = $2 THEN 1 ELSE 0 END FROM cluster_faces WHERE cluster_id IN ($2, $3)";
    execute(&txn, sql, [change.into(), part.into(), from.into()]).await?;
    if let Some(person) = cluster.person_id {
        let sql = "INSERT INTO face_rejections (face_id, person_id, created_at)
            SELECT face_id, $1, {now} FROM cluster_faces WHERE cluster_id = $2 ON CONFLICT DO NOTHING";
        execute(&txn, sql, [person.into(), part.into()]).await?;
        let sql = "UPDATE faces SET person_id = NULL, assigned_by = NULL, locked = FALSE
            WHERE person_id = $1 AND id IN (SELECT face_id FROM cluster_faces WHERE cluster_id = $2)";
        execute(&txn, sql, [person.into(), part.into()]).await?;
        request_rematch(&txn, collection, faces, Some(person)).await?;
    }
    finish(&txn, &[from, part]).await?;
    done(txn, collection, part, change).await
}

/// Says who a cluster is. Its faces become the person's, except those that a user said are not; those named in `confirmed`
/// are the person's by the user's word, so that they form templates.
pub async fn name(
    db: &Db,
    collection: CollectionId,
    cluster: ClusterId,
    person: &PersonRef,
    confirmed: &[FaceId],
) -> Result<Edited, DbErr> {
    through_deadlocks(|| name_once(db, collection, cluster, person, confirmed)).await
}

async fn name_once(
    db: &Db,
    collection: CollectionId,
    id: ClusterId,
    person: &PersonRef,
    confirmed: &[FaceId],
) -> Result<Edited, DbErr> {
    let txn = db.begin().await?;
    move_on(&txn, collection).await?;
    let Some(cluster) = find(&txn, collection, id).await? else { return Ok(Edited::NoCluster(id)) };
    let listed = placeholders(2, confirmed.len());
    let values = |first: Value| std::iter::once(first).chain(confirmed.iter().map(|id| Value::from(*id)));
    if !confirmed.is_empty() {
        let sql = format!("SELECT count(*) AS n FROM cluster_faces WHERE cluster_id = $1 AND face_id IN ({listed})");
        if usize::try_from(count(&txn, &sql, values(id.into())).await?) != Ok(confirmed.len()) {
            return Ok(Edited::NotAPart);
        }
    }
    let Some(person) = persons::find_or_create(&txn, collection, person).await? else { return Ok(Edited::NoPerson) };
    let person = person.id;
    if persons::hold(&txn, collection, &[person].into()).await?.is_empty() {
        return Ok(Edited::NoPerson);
    }
    // What a user said of a single face goes before: it leaves, and is looked at again.
    let not =
        "SELECT c.face_id FROM cluster_faces c JOIN face_rejections x ON x.face_id = c.face_id AND x.person_id = $2
        WHERE c.cluster_id = $1";
    let sql = format!(
        "INSERT INTO cluster_queue (collection_id, face_id) SELECT f.collection_id, f.id FROM faces f WHERE f.id IN ({not})"
    );
    execute(&txn, &sql, [id.into(), person.into()]).await?;
    let sql = format!("DELETE FROM cluster_faces WHERE face_id IN ({not})");
    execute(&txn, &sql, [id.into(), person.into()]).await?;
    let change = begin(&txn, collection, Kind::Name, id, Some(person)).await?;
    remember(&txn, change, &[id]).await?;
    if let Some(before) = cluster.person_id.filter(|before| *before != person) {
        let sql = "UPDATE faces SET person_id = NULL, assigned_by = NULL, locked = FALSE
            WHERE person_id = $1 AND id IN (SELECT face_id FROM cluster_faces WHERE cluster_id = $2)";
        execute(&txn, sql, [before.into(), id.into()]).await?;
        rematches::request(&txn, collection, None, Some(before)).await?;
    }
    set_person(&txn, id, Some(person)).await?;
    finish(&txn, &[id]).await?;
    if !confirmed.is_empty() {
        let sql = format!(
            "UPDATE faces SET assigned_by = 'user', locked = TRUE WHERE person_id = $1 AND assigned_by <> 'enrolled'
             AND id IN ({listed})"
        );
        execute(&txn, &sql, values(person.into())).await?;
        request_rematch(&txn, collection, confirmed, None).await?;
    }
    done(txn, collection, id, change).await
}

/// Takes a change back: the faces that are still where it put them go where they were, and are whose they were.
pub async fn undo(db: &Db, collection: CollectionId, change: ClusterChangeId) -> Result<Undone, DbErr> {
    through_deadlocks(|| undo_once(db, collection, change)).await
}

async fn undo_once(db: &Db, collection: CollectionId, id: ClusterChangeId) -> Result<Undone, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        kind: String,
        cluster_id: ClusterId,
        person_id: Option<PersonId>,
        undone_at: Option<i64>,
    }
    let txn = db.begin().await?;
    move_on(&txn, collection).await?;
    let sql = "SELECT kind, cluster_id, person_id, undone_at FROM cluster_changes WHERE id = $1 AND collection_id = $2";
    let row = Row::find_by_statement(statement(&txn, sql, [id.into(), collection.into()])).one(&txn).await?;
    let Some(row) = row else { return Ok(Undone::NoChange) };
    if row.undone_at.is_some() {
        return Ok(Undone::Before);
    }
    let mut touched = vec![row.cluster_id];
    for (from, person) in before(&txn, id).await? {
        if from == row.cluster_id {
            take_name_back(&txn, id, (from, row.person_id), person).await?;
        } else {
            put_back(&txn, collection, id, row.cluster_id, (from, person)).await?;
            touched.push(from);
        }
    }
    restore_persons(&txn, id, &row.kind, row.person_id).await?;
    match row.kind.as_str() {
        "split" => rejoin(&txn, id, row.person_id).await?,
        "merge" => keep_apart(&txn, id, &touched).await?,
        _ => {}
    }
    finish(&txn, &touched).await?;
    for cluster in touched {
        execute(&txn, "DELETE FROM clusters WHERE id = $1 AND faces = 0", [cluster.into()]).await?;
    }
    execute(&txn, "UPDATE cluster_changes SET undone_at = {now} WHERE id = $1", [id.into()]).await?;
    if row.person_id.is_some() {
        // Faces that a user had confirmed are no templates any more.
        rematches::request(&txn, collection, None, row.person_id).await?;
    }
    let changed = "SELECT face_id FROM cluster_change_faces WHERE change_id = $2";
    pending::note_labelled(&txn, collection, changed, id.into()).await?;
    txn.commit().await?;
    Ok(Undone::Done)
}

/// The clusters in which a change's faces were, each with the person that it had, if there still is one.
async fn before(
    txn: &impl ConnectionTrait,
    change: ClusterChangeId,
) -> Result<Vec<(ClusterId, Option<PersonId>)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        from_cluster: ClusterId,
        person_id: Option<PersonId>,
    }
    let sql = "SELECT DISTINCT m.from_cluster, p.id AS person_id FROM cluster_change_faces m
        LEFT JOIN persons p ON p.id = m.cluster_person WHERE m.change_id = $1 ORDER BY m.from_cluster";
    let rows = Row::find_by_statement(statement(txn, sql, [change.into()])).all(txn).await?;
    Ok(rows.into_iter().map(|row| (row.from_cluster, row.person_id)).collect())
}

/// Takes back that a cluster got `person`, and that faces which joined it since have it by that.
async fn take_name_back(
    txn: &impl ConnectionTrait,
    change: ClusterChangeId,
    (cluster, person): (ClusterId, Option<PersonId>),
    before: Option<PersonId>,
) -> Result<(), DbErr> {
    let sql = "UPDATE clusters SET person_id = $1 WHERE id = $2 AND person_id = $3";
    if execute(txn, sql, [before.into(), cluster.into(), person.into()]).await? == 0 {
        return Ok(());
    }
    let sql = "UPDATE faces SET person_id = NULL, assigned_by = NULL WHERE person_id = $1 AND assigned_by = 'cluster'
        AND id IN (SELECT face_id FROM cluster_faces WHERE cluster_id = $2)
        AND id NOT IN (SELECT m.face_id FROM cluster_change_faces m WHERE m.change_id = $3)";
    execute(txn, sql, [person.into(), cluster.into(), change.into()]).await?;
    Ok(())
}

/// Puts faces that a change took from one cluster into another back into the first, which is made anew where it is gone. Those
/// that somebody else's name was given to meanwhile stay.
async fn put_back(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    change: ClusterChangeId,
    into: ClusterId,
    (from, person): (ClusterId, Option<PersonId>),
) -> Result<(), DbErr> {
    if find(txn, collection, from).await?.is_none() {
        pass::make(txn, collection, &[from]).await?;
        set_person(txn, from, person).await?;
    }
    let sql = "UPDATE cluster_faces SET cluster_id = $2 WHERE cluster_id = $3 AND face_id IN (
            SELECT m.face_id FROM cluster_change_faces m JOIN faces f ON f.id = m.face_id
            JOIN cluster_changes k ON k.id = m.change_id
            WHERE m.change_id = $1 AND m.from_cluster = $2
                AND (f.person_id IS NULL OR f.person_id = k.person_id OR f.person_id = m.from_person))";
    execute(txn, sql, [change.into(), from.into(), into.into()]).await?;
    Ok(())
}

/// Makes the faces of a change whose they were, and by whose word, where they still are whose the change made them.
async fn restore_persons(
    txn: &impl ConnectionTrait,
    change: ClusterChangeId,
    kind: &str,
    person: Option<PersonId>,
) -> Result<(), DbErr> {
    let Some(person) = person else { return Ok(()) };
    // A split made them nobody's; the others made them the person's.
    let made = if kind == "split" { "faces.person_id IS NULL AND m.from_person = $2" } else { "faces.person_id = $2" };
    let sql = format!(
        "UPDATE faces SET person_id = p.id, locked = m.from_locked AND p.id IS NOT NULL,
            assigned_by = CASE WHEN p.id IS NOT NULL THEN m.from_assigned_by END
         FROM cluster_change_faces m LEFT JOIN persons p ON p.id = m.from_person
         WHERE m.face_id = faces.id AND m.change_id = $1 AND {made}"
    );
    execute(txn, &sql, [change.into(), person.into()]).await?;
    Ok(())
}

/// Faces that a user put together are on one side of every separation; one without another side is forgotten.
async fn unite_sides(txn: &impl ConnectionTrait, cluster: ClusterId) -> Result<(), DbErr> {
    let sql = "UPDATE cluster_separations SET side = m.side FROM (
            SELECT s.id, min(s.side) AS side FROM cluster_separations s JOIN cluster_faces c ON c.face_id = s.face_id
            WHERE c.cluster_id = $1 GROUP BY s.id HAVING min(s.side) <> max(s.side)) AS m
        WHERE m.id = cluster_separations.id
            AND cluster_separations.face_id IN (SELECT face_id FROM cluster_faces WHERE cluster_id = $1)";
    execute(txn, sql, [cluster.into()]).await?;
    let sql = "DELETE FROM cluster_separations WHERE id IN (
            SELECT t.id FROM cluster_separations t WHERE t.id IN (
                SELECT s.id FROM cluster_separations s JOIN cluster_faces c ON c.face_id = s.face_id
                WHERE c.cluster_id = $1)
            GROUP BY t.id HAVING min(t.side) = max(t.side))";
    execute(txn, sql, [cluster.into()]).await?;
    Ok(())
}

/// Forgets that a split was wanted.
async fn rejoin(txn: &impl ConnectionTrait, change: ClusterChangeId, person: Option<PersonId>) -> Result<(), DbErr> {
    execute(txn, "DELETE FROM cluster_separations WHERE id = $1", [change.into()]).await?;
    if let Some(person) = person {
        let sql = "DELETE FROM face_rejections WHERE person_id = $2
            AND face_id IN (SELECT m.face_id FROM cluster_change_faces m WHERE m.change_id = $1)";
        execute(txn, sql, [change.into(), person.into()]).await?;
    }
    Ok(())
}

/// Who undoes a merge wants the clusters apart.
async fn keep_apart(txn: &impl ConnectionTrait, change: ClusterChangeId, clusters: &[ClusterId]) -> Result<(), DbErr> {
    for (side, cluster) in (0i32..).zip(clusters) {
        let sql = "INSERT INTO cluster_separations (id, face_id, side)
            SELECT $1, face_id, $2 FROM cluster_faces WHERE cluster_id = $3 ON CONFLICT DO NOTHING";
        execute(txn, sql, [change.into(), side.into(), (*cluster).into()]).await?;
    }
    Ok(())
}

/// Asks for faces to be matched again that became templates, or were freed, and for those of a person that lost some.
async fn request_rematch(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    faces: &[FaceId],
    person: Option<PersonId>,
) -> Result<(), DbErr> {
    for face in faces {
        rematches::request(txn, collection, Some(*face), person).await?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Kind {
    Merge,
    Split,
    Name,
}

async fn begin(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    kind: Kind,
    cluster: ClusterId,
    person: Option<PersonId>,
) -> Result<ClusterChangeId, DbErr> {
    let kind = match kind {
        Kind::Merge => "merge",
        Kind::Split => "split",
        Kind::Name => "name",
    };
    let id = ClusterChangeId::new();
    let sql = "INSERT INTO cluster_changes (id, collection_id, kind, cluster_id, person_id, created_at)
        VALUES ($1, $2, $3, $4, $5, {now})";
    execute(txn, sql, [id.into(), collection.into(), kind.into(), cluster.into(), person.into()]).await?;
    Ok(id)
}

/// Keeps where the faces of clusters are and whose.
async fn remember(txn: &impl ConnectionTrait, change: ClusterChangeId, clusters: &[ClusterId]) -> Result<(), DbErr> {
    for cluster in clusters {
        remember_as(txn, change, &[*cluster], *cluster).await?;
    }
    Ok(())
}

/// Keeps whose the faces of `clusters` are, and that they were in `from`.
async fn remember_as(
    txn: &impl ConnectionTrait,
    change: ClusterChangeId,
    clusters: &[ClusterId],
    from: ClusterId,
) -> Result<(), DbErr> {
    let sql = format!(
        "INSERT INTO cluster_change_faces
            (change_id, face_id, from_cluster, cluster_person, from_person, from_assigned_by, from_locked)
         SELECT $1, c.face_id, $2, (SELECT k.person_id FROM clusters k WHERE k.id = $2), f.person_id,
            CASE WHEN f.person_id IS NOT NULL THEN f.assigned_by END, f.locked
         FROM cluster_faces c JOIN faces f ON f.id = c.face_id WHERE c.cluster_id IN ({})",
        placeholders(3, clusters.len())
    );
    let values = [change.into(), from.into()].into_iter().chain(clusters.iter().map(|id| Value::from(*id)));
    execute(txn, &sql, values).await?;
    Ok(())
}

async fn set_person(txn: &impl ConnectionTrait, cluster: ClusterId, person: Option<PersonId>) -> Result<(), DbErr> {
    execute(txn, "UPDATE clusters SET person_id = $1 WHERE id = $2", [person.into(), cluster.into()]).await?;
    Ok(())
}

async fn finish(txn: &impl ConnectionTrait, clusters: &[ClusterId]) -> Result<(), DbErr> {
    recount(txn, clusters).await?;
    name_faces(txn, clusters).await
}

async fn done(
    txn: sea_orm::DatabaseTransaction,
    collection: CollectionId,
    cluster: ClusterId,
    change: ClusterChangeId,
) -> Result<Edited, DbErr> {
    let named = "SELECT face_id FROM cluster_faces WHERE cluster_id = $2";
    pending::note_labelled(&txn, collection, named, cluster.into()).await?;
    let Some(cluster) = find(&txn, collection, cluster).await? else { return Ok(Edited::NoCluster(cluster)) };
    txn.commit().await?;
    Ok(Edited::Done(cluster, change))
}
