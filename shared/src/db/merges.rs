//! Two persons that turn out to be one: the faces of one become the other's, and its ids are answered for.

use std::collections::BTreeSet;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::entity::person;
use super::{Db, clusters, count, execute, persons, rematches, statement, through_deadlocks};
use crate::ids::{CollectionId, PersonId};
use crate::job::PersonRef;

/// What became of a merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merged {
    /// The person that has the faces of both now.
    Done(person::Model),
    /// There is no such person.
    NoPerson(PersonId),
}

/// The person that the one named here was merged into.
pub async fn merged_into(
    conn: &impl ConnectionTrait,
    collection: CollectionId,
    person: &PersonRef,
) -> Result<Option<PersonId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        into_id: PersonId,
    }
    let (column, named): (_, Value) = match person {
        PersonRef::Id { id } => ("person_id", (*id).into()),
        PersonRef::External { external_id, .. } => ("external_id", external_id.as_str().into()),
    };
    let sql = format!("SELECT into_id FROM person_merges WHERE collection_id = $1 AND {column} = $2");
    let row = Row::find_by_statement(statement(conn, &sql, [collection.into(), named])).one(conn).await?;
    Ok(row.map(|row| row.into_id))
}

/// Gives the faces of `from` to `into`, which is another, and deletes `from`. Faces keep their ids, and what was said of
/// either person by hand holds for the one that is left; what `into` lacks of name, description and external id it takes over.
pub async fn merge(db: &Db, collection: CollectionId, from: PersonId, into: PersonId) -> Result<Merged, DbErr> {
    through_deadlocks(|| merge_once(db, collection, from, into)).await
}

async fn merge_once(db: &Db, collection: CollectionId, from: PersonId, into: PersonId) -> Result<Merged, DbErr> {
    let txn = db.begin().await?;
    // Both, in the order of their ids: no job gives either a face meanwhile.
    for person in BTreeSet::from([from, into]) {
        let lock = "SELECT count(*) AS n FROM (SELECT id FROM persons WHERE id = $1 {for update}) AS locked";
        count(&txn, lock, [person.into()]).await?;
    }
    let Some(loser) = persons::find(&txn, collection, from).await? else { return Ok(Merged::NoPerson(from)) };
    let Some(winner) = persons::find(&txn, collection, into).await? else { return Ok(Merged::NoPerson(into)) };
    clusters::move_on(&txn, collection).await?;
    move_faces(&txn, collection, from, into).await?;
    let sql = "UPDATE person_merges SET into_id = $2 WHERE into_id = $1";
    execute(&txn, sql, [from.into(), into.into()]).await?;
    execute(&txn, "DELETE FROM persons WHERE id = $1", [from.into()]).await?;
    let (name, description) = (winner.name.clone().or(loser.name), winner.description.clone().or(loser.description));
    // One that the winner takes over names the winner from then on.
    let taken = loser.external_id.clone().filter(|_| winner.external_id.is_none());
    let kept = loser.external_id.filter(|_| taken.is_none());
    let external_id = winner.external_id.clone().or(taken);
    let sql = "INSERT INTO person_merges (person_id, collection_id, into_id, external_id, merged_at)
        VALUES ($1, $2, $3, $4, {now})";
    execute(&txn, sql, [from.into(), collection.into(), into.into(), kept.into()]).await?;
    let sql = "UPDATE persons SET name = $2, external_id = $3, description = $4 WHERE id = $1";
    let values = [into.into(), name.clone().into(), external_id.clone().into(), description.clone().into()];
    execute(&txn, sql, values).await?;
    txn.commit().await?;
    Ok(Merged::Done(person::Model { external_id, name, description, ..winner }))
}

/// What names persons beside their faces: clusters, and what was done to them, which may be undone.
const NAMING: [(&str, &str); 4] = [
    ("clusters", "person_id"),
    ("cluster_changes", "person_id"),
    ("cluster_change_faces", "from_person"),
    ("cluster_change_faces", "cluster_person"),
];

/// Gives faces and rejections of one person to another.
async fn move_faces(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    from: PersonId,
    into: PersonId,
) -> Result<(), DbErr> {
    let both = || [from.into(), into.into()];
    execute(txn, "UPDATE faces SET person_id = $2 WHERE person_id = $1", both()).await?;
    for (table, column) in NAMING {
        execute(txn, &format!("UPDATE {table} SET {column} = $2 WHERE {column} = $1"), both()).await?;
    }
    let sql = "INSERT INTO face_rejections (face_id, person_id, created_at)
        SELECT face_id, $2, created_at FROM face_rejections WHERE person_id = $1 ON CONFLICT DO NOTHING";
    execute(txn, sql, both()).await?;
    // That a face is the one person, said by hand, outweighs that it is not the other; a match does not.
    let sql = "DELETE FROM face_rejections WHERE person_id = $1
        AND face_id IN (SELECT id FROM faces WHERE person_id = $1 AND assigned_by IN ('enrolled', 'user'))";
    execute(txn, sql, [into.into()]).await?;
    let sql = "UPDATE faces SET person_id = NULL, assigned_by = NULL WHERE person_id = $1
        AND id IN (SELECT face_id FROM face_rejections WHERE person_id = $1)";
    execute(txn, sql, [into.into()]).await?;
    // Faces that were freed may match others, and what is on its way may have been matched to the one that is gone.
    rematches::request(txn, collection, None, None).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::collections::{self, CollectionSettings};
    use crate::db::faces::{self, AssignedBy, NewFace, Origin};
    use crate::db::images::{self, ImageSource};
    use crate::db::rejections;
    use crate::ids::FaceId;
    use crate::job::FaceBox;

    fn named(external_id: &str) -> PersonRef {
        PersonRef::External {
            external_id: external_id.to_owned(),
            name: Some(external_id.to_uppercase()),
            description: None,
        }
    }

    async fn face_of(db: &Db, collection: CollectionId, person: PersonId, by: AssignedBy) -> FaceId {
        let txn = db.begin().await.unwrap();
        let key = FaceId::new().to_string();
        let source = ImageSource { sha256: key.clone(), object_key: Some(key), ..ImageSource::default() };
        let image = images::find_or_create(&txn, collection, &source, [10, 10]).await.unwrap().id;
        let new = NewFace {
            face_box: FaceBox { x: 0.0, y: 0.0, width: 5.0, height: 5.0 },
            landmarks: "[]".to_owned(),
            score: 0.9,
            quality: "{}".to_owned(),
            embedding: None,
            crop: None,
        };
        let origin = Origin { collection, image, detector_revision: "r", pipeline: "p" };
        let face = faces::place(&txn, origin, &[new]).await.unwrap()[0].id;
        faces::assign(&txn, face, person, by).await.unwrap();
        txn.commit().await.unwrap();
        face
    }

    #[tokio::test]
    async fn the_faces_of_both_are_one_persons() {
        let folder = tempfile::tempdir().unwrap();
        for db in crate::testing::databases(folder.path()).await {
            let made = collections::create(&db, "c", "p", &CollectionSettings::default()).await.unwrap();
            let c = made.unwrap().id;
            let person = async |external_id| {
                persons::find_or_create(&db.write, c, &named(external_id)).await.unwrap().unwrap().id
            };
            let (ann, anna, anne) = (person("ann").await, person("anna").await, person("anne").await);
            let by_hand = face_of(&db, c, anna, AssignedBy::User).await;
            let matched = face_of(&db, c, anna, AssignedBy::Auto).await;
            let not_ann = face_of(&db, c, anna, AssignedBy::Auto).await;
            let other = face_of(&db, c, anne, AssignedBy::Auto).await;
            for (face, person) in [(by_hand, ann), (not_ann, ann), (other, anna)] {
                rejections::add(&db.write, face, person).await.unwrap();
            }
            let Merged::Done(winner) = merge(&db, c, anna, ann).await.unwrap() else { panic!("both are there") };
            assert_eq!((winner.id, winner.external_id.as_deref()), (ann, Some("ann")));
            assert_eq!(persons::find(&db.read, c, ann).await.unwrap(), Some(winner));
            let whose = async |face| faces::find(&db.read, c, face).await.unwrap().unwrap().face.person_id;
            assert_eq!((whose(by_hand).await, whose(matched).await), (Some(ann), Some(ann)));
            assert_eq!(whose(not_ann).await, None, "a match does not outweigh what was said by hand");
            let rejected = rejections::of_faces(&db.read, &[by_hand, matched, not_ann, other]).await.unwrap();
            assert_eq!(rejected, [(not_ann, ann), (other, ann)].into());
            let requests = "SELECT count(*) AS n FROM rematch_requests WHERE face_id IS NULL AND person_id IS NULL";
            assert_eq!(count(&db.read, requests, []).await.unwrap(), 1, "who was freed is looked up again");

            let into = async |person| merged_into(&db.read, c, &person).await.unwrap();
            assert_eq!(into(PersonRef::Id { id: anna }).await, Some(ann));
            assert_eq!(into(named("anna")).await, Some(ann));
            assert_eq!((into(PersonRef::Id { id: ann }).await, into(named("ann")).await), (None, None));
            assert_eq!(merge(&db, c, anna, ann).await.unwrap(), Merged::NoPerson(anna));
            assert_eq!(merge(&db, c, ann, anna).await.unwrap(), Merged::NoPerson(anna));
            merge(&db, c, ann, anne).await.unwrap();
            assert_eq!(into(named("anna")).await, Some(anne), "who was merged twice is found");
            assert!(persons::delete(&db, c, anne).await.unwrap());
            assert_eq!(into(named("anna")).await, None);
        }
    }
}
