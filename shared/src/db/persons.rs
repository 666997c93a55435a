//! Queries on persons; the collection is always the first argument.

use std::collections::BTreeSet;

use sea_orm::prelude::*;
use sea_orm::{FromQueryResult, QueryOrder, QuerySelect, SqlErr};

use super::entity::person::{Column, Entity, Model};
use super::{Db, clusters, count, execute, faces, is_postgres, placeholders, rematches, statement, through_deadlocks};
use crate::ids::{CollectionId, PersonId};
use crate::job::PersonRef;

/// The persons of a collection, those that are being erased left out.
pub(super) fn of_collection(collection: CollectionId) -> Select<Entity> {
    Entity::find().filter(Column::CollectionId.eq(collection)).filter(Column::ErasedAt.is_null())
}

/// The person of that id in that collection.
pub async fn find(conn: &impl ConnectionTrait, collection: CollectionId, id: PersonId) -> Result<Option<Model>, DbErr> {
    of_collection(collection).filter(Column::Id.eq(id)).one(conn).await
}

/// The persons of those ids in that collection, in no order.
pub async fn find_many(
    conn: &impl ConnectionTrait,
    collection: CollectionId,
    ids: &[PersonId],
) -> Result<Vec<Model>, DbErr> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    of_collection(collection).filter(Column::Id.is_in(ids.iter().copied())).all(conn).await
}

/// Those of the persons that are there, kept from being deleted until the transaction ends.
pub async fn hold(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    ids: &BTreeSet<PersonId>,
) -> Result<BTreeSet<PersonId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: PersonId,
    }
    if ids.is_empty() {
        return Ok(BTreeSet::new());
    }
    let lock = if is_postgres(txn) { "FOR KEY SHARE" } else { "" };
    let sql = format!(
        "SELECT id FROM persons WHERE collection_id = $1 AND erased_at IS NULL AND id IN ({}) ORDER BY id {lock}",
        placeholders(2, ids.len())
    );
    let values = std::iter::once(collection.into()).chain(ids.iter().map(|id| Value::from(*id)));
    let rows = Row::find_by_statement(statement(txn, &sql, values)).all(txn).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// The person with that external id in that collection.
pub async fn find_by_external_id(
    conn: &impl ConnectionTrait,
    collection: CollectionId,
    external_id: &str,
) -> Result<Option<Model>, DbErr> {
    of_collection(collection).filter(Column::ExternalId.eq(external_id)).one(conn).await
}

/// Up to `limit` persons whose id comes after `after`, in the order of their ids.
pub async fn list(db: &Db, collection: CollectionId, after: Option<PersonId>, limit: u64) -> Result<Vec<Model>, DbErr> {
    let mut query = of_collection(collection).order_by_asc(Column::Id).limit(limit);
    if let Some(after) = after {
        query = query.filter(Column::Id.gt(after));
    }
    query.all(&db.read).await
}

/// How many faces the person has, those that are hidden left out.
pub async fn count_faces(db: &Db, id: PersonId) -> Result<i64, DbErr> {
    let sql = format!(
        "SELECT count(*) AS n FROM faces f JOIN collections c ON c.id = f.collection_id
         WHERE f.person_id = $1 AND NOT f.hidden AND {}",
        faces::SHOWN
    );
    count(&db.read, &sql, [id.into()]).await
}

/// Whether the person of that id is the one that an enroll job names.
pub async fn is(conn: &impl ConnectionTrait, id: PersonId, person: &PersonRef) -> Result<bool, DbErr> {
    match person {
        PersonRef::Id { id: named } => Ok(*named == id),
        PersonRef::External { external_id, .. } => {
            let row = Entity::find_by_id(id).one(conn).await?;
            Ok(row.is_some_and(|p| p.external_id.as_deref() == Some(external_id)))
        }
    }
}

/// The person that an enroll job names, made where it is named by a new external id. A given name replaces the old one.
/// `None`: named by an id that is not there.
pub async fn find_or_create(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    person: &PersonRef,
) -> Result<Option<Model>, DbErr> {
    let (external_id, name, description) = match person {
        PersonRef::Id { id } => return find(txn, collection, *id).await,
        PersonRef::External { external_id, name, description } => (external_id, name, description),
    };
    // One statement, so that two jobs that name the same new person make one.
    let sql = "INSERT INTO persons (id, collection_id, external_id, name, description, created_at)
        VALUES ($1, $2, $3, $4, $5, {now})
        ON CONFLICT (collection_id, external_id) DO UPDATE SET name = COALESCE(excluded.name, persons.name),
            description = COALESCE(excluded.description, persons.description)
        RETURNING id, collection_id, external_id, name, description, created_at, erased_at";
    let (external_id, name, description) = (external_id.as_str(), name.clone(), description.clone());
    let values = [PersonId::new().into(), collection.into(), external_id.into(), name.into(), description.into()];
    Model::find_by_statement(statement(txn, sql, values)).one(txn).await
}

/// Makes a person; `None` where the external id is another's.
pub async fn create(
    db: &Db,
    collection: CollectionId,
    external_id: Option<String>,
    name: Option<String>,
    description: Option<String>,
) -> Result<Option<Model>, DbErr> {
    let sql = "INSERT INTO persons (id, collection_id, external_id, name, description, created_at)
        VALUES ($1, $2, $3, $4, $5, {now})
        ON CONFLICT DO NOTHING RETURNING id, collection_id, external_id, name, description, created_at, erased_at";
    let values = [PersonId::new().into(), collection.into(), external_id.into(), name.into(), description.into()];
    Model::find_by_statement(statement(&db.write, sql, values)).one(&db.write).await
}

/// What is to be changed of a person; `None` is left as it is, `Some(None)` taken away.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct PersonChanges {
    pub external_id: Option<Option<String>>,
    pub name: Option<Option<String>>,
    pub description: Option<Option<String>>,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Updated {
    /// The person as it is now.
    Done(Model),
    /// It was not what the caller took it for; nothing was changed.
    Otherwise,
    /// Another person of the collection has that external id.
    Taken,
    /// Neither an external id nor a name would be left.
    Nameless,
    /// It is not there.
    NoPerson,
}

/// Changes the person where it still is what the caller takes it for.
pub async fn update(
    db: &Db,
    collection: CollectionId,
    id: PersonId,
    changes: PersonChanges,
    is_expected: impl Fn(&Model) -> bool,
) -> Result<Updated, DbErr> {
    let txn = db.begin().await?;
    let lock = "SELECT count(*) AS n FROM (SELECT id FROM persons WHERE id = $1 {for update}) AS locked";
    count(&txn, lock, [id.into()]).await?;
    let Some(mut row) = find(&txn, collection, id).await? else { return Ok(Updated::NoPerson) };
    if !is_expected(&row) {
        return Ok(Updated::Otherwise);
    }
    row.external_id = changes.external_id.unwrap_or(row.external_id);
    row.name = changes.name.unwrap_or(row.name);
    row.description = changes.description.unwrap_or(row.description);
    if row.external_id.is_none() && row.name.is_none() {
        return Ok(Updated::Nameless);
    }
    let sql = "UPDATE persons SET external_id = $1, name = $2, description = $3 WHERE id = $4";
    let values = [row.external_id.clone().into(), row.name.clone().into(), row.description.clone().into(), id.into()];
    match execute(&txn, sql, values).await {
        Ok(_) => {}
        Err(error) if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) => {
            return Ok(Updated::Taken);
        }
        Err(error) => return Err(error),
    }
    txn.commit().await?;
    Ok(Updated::Done(row))
}

/// Deletes the person with all faces and vectors, at once and without a receipt. False when it is not there.
pub async fn delete(db: &Db, collection: CollectionId, id: PersonId) -> Result<bool, DbErr> {
    through_deadlocks(|| delete_once(db, collection, id)).await
}

async fn delete_once(db: &Db, collection: CollectionId, id: PersonId) -> Result<bool, DbErr> {
    let txn = db.begin().await?;
    // Locked, so that no job gives the person another face meanwhile, which would be left behind.
    let lock = "SELECT count(*) AS n FROM (SELECT id FROM persons WHERE id = $1 {for update}) AS locked";
    count(&txn, lock, [id.into()]).await?;
    if find(&txn, collection, id).await?.is_none() {
        return Ok(false);
    }
    clusters::move_on(&txn, collection).await?;
    for face in faces::ids_of_person(&txn, id).await? {
        faces::delete_within(&txn, face).await?;
    }
    Entity::delete_by_id(id).exec(&txn).await?;
    // In a smaller gallery less is enough for a match.
    rematches::request(&txn, collection, None, None).await?;
    txn.commit().await?;
    Ok(true)
}
