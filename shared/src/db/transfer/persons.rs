//! Who the persons of a file are in a collection, and the ids that its rows get.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::db::rows::{self, Column, Rows};
use crate::db::{execute, persons, statement};
use crate::ids::{CollectionId, PersonId};
use crate::transfer::{MergeLine, PersonKey, PersonLine};

/// The id that takes the place of `id` in the collection where another row has that: the same each time, so that a file that
/// is sent again finds what it made. It sorts by the same time.
pub(super) fn substitute(collection: CollectionId, id: Uuid) -> Uuid {
    let digest = Sha256::new().chain_update(collection.0).chain_update(id).finalize();
    let mut bytes = *id.as_bytes();
    bytes[6..].copy_from_slice(&digest[..10]);
    let (seconds, millis) = id.get_timestamp().map_or((0, 0), |time| {
        let (seconds, nanos) = time.to_unix();
        (seconds, nanos / 1_000_000)
    });
    let mut random = [0; 10];
    random.copy_from_slice(&bytes[6..]);
    uuid::Builder::from_unix_timestamp_millis(seconds * 1000 + u64::from(millis), &random).into_uuid()
}

/// Persons of the file, and who they are here.
pub(super) type Persons = HashMap<PersonId, PersonId>;

/// Who is meant here.
pub(super) fn person_of(key: Option<&PersonKey>, persons: &Persons) -> Option<PersonId> {
    key.and_then(|key| persons.get(&key.id)).copied()
}

/// Those of the ids that rows of `table` have.
pub(super) async fn taken(
    txn: &impl ConnectionTrait,
    table: &str,
    ids: impl IntoIterator<Item = Uuid>,
) -> Result<HashSet<Uuid>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: Uuid,
    }
    let ids: Vec<_> = ids.into_iter().map(|id| json!({ "id": rows::id(id) })).collect();
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    let wanted = Rows::new(&[("id", Column::Id)], ids);
    let sql = format!("SELECT t.id FROM {} JOIN {table} t ON t.id = r.id", wanted.table(txn));
    let found = Row::find_by_statement(statement(txn, &sql, [wanted.value()])).all(txn).await?;
    Ok(found.into_iter().map(|row| row.id).collect())
}

/// Who is who: a person with an external id is who has that here, any other who has its id. One that was merged into
/// another here is that one.
pub(super) async fn resolve(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    keys: impl IntoIterator<Item = &PersonKey>,
) -> Result<Persons, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        key: PersonId,
        person: PersonId,
    }
    let keys: HashSet<&PersonKey> = keys.into_iter().collect();
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let row = |key: &&PersonKey| {
        json!({
            "id": rows::id(key.id.0), "external_id": key.external_id,
            "substitute": rows::id(substitute(collection, key.id.0)),
        })
    };
    let columns = &[("id", Column::Id), ("external_id", Column::Text), ("substitute", Column::Id)];
    let wanted = || Rows::new(columns, keys.iter().map(row).collect());
    // The surest last: it replaces what was found before.
    let sources = [
        "SELECT r.id AS key, m.into_id AS person FROM {r} CROSS JOIN person_merges m
            WHERE m.collection_id = $2 AND m.person_id IN (r.id, r.substitute)",
        "SELECT r.id AS key, m.into_id AS person FROM {r} CROSS JOIN person_merges m
            WHERE m.collection_id = $2 AND m.external_id = r.external_id",
        "SELECT r.id AS key, p.id AS person FROM {r} CROSS JOIN persons p
            WHERE p.collection_id = $2 AND p.erased_at IS NULL AND p.id = r.substitute",
        "SELECT r.id AS key, p.id AS person FROM {r} CROSS JOIN persons p WHERE p.collection_id = $2 AND p.erased_at IS NULL AND p.id = r.id",
        "SELECT r.id AS key, p.id AS person FROM {r} CROSS JOIN persons p
            WHERE p.collection_id = $2 AND p.erased_at IS NULL AND p.external_id = r.external_id",
    ];
    let mut found = HashMap::new();
    for sql in sources {
        let sql = sql.replace("{r}", &wanted().table(txn));
        let values = [wanted().value(), collection.into()];
        for row in Row::find_by_statement(statement(txn, &sql, values)).all(txn).await? {
            found.insert(row.key, row.person);
        }
    }
    Ok(found)
}

/// The same, of persons that are kept from being deleted until the transaction ends.
pub(super) async fn resolve_and_hold(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    keys: impl IntoIterator<Item = &PersonKey>,
) -> Result<Persons, DbErr> {
    let mut found = resolve(txn, collection, keys).await?;
    let ids: BTreeSet<PersonId> = found.values().copied().collect();
    let held = persons::hold(txn, collection, &ids).await?;
    found.retain(|_, person| held.contains(person));
    Ok(found)
}

/// Makes those that are not there, and gives those that lack it a name and a description; returns how many are new.
pub(super) async fn write(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    lines: &[PersonLine],
) -> Result<u64, DbErr> {
    let keys: Vec<PersonKey> = lines.iter().map(PersonLine::key).collect();
    let known = resolve(txn, collection, &keys).await?;
    let ids = || lines.iter().map(|line| line.id.0);
    let mut used = taken(txn, "persons", ids()).await?;
    used.extend(taken(txn, "(SELECT person_id AS id FROM person_merges)", ids()).await?);
    let row = |line: &PersonLine| {
        let id = if used.contains(&line.id.0) { substitute(collection, line.id.0) } else { line.id.0 };
        json!({
            "id": rows::id(id), "external_id": line.external_id, "name": line.name,
            "description": line.description, "created_at": line.created_at,
        })
    };
    let new: Vec<_> = lines.iter().filter(|line| !known.contains_key(&line.id)).map(row).collect();
    let columns = &[
        ("id", Column::Id),
        ("external_id", Column::Text),
        ("name", Column::Text),
        ("description", Column::Text),
        ("created_at", Column::Integer),
    ];
    let new = Rows::new(columns, new);
    let sql = format!(
        "INSERT INTO persons (id, collection_id, external_id, name, description, created_at)
         SELECT r.id, $2, r.external_id, r.name, r.description, r.created_at FROM {} WHERE TRUE ON CONFLICT DO NOTHING",
        new.table(txn)
    );
    let added = execute(txn, &sql, [new.value(), collection.into()]).await?;
    // Several lines may be one person here.
    let mut told: BTreeMap<PersonId, (Option<&str>, Option<&str>)> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.name.is_some() || line.description.is_some()) {
        if let Some(id) = known.get(&line.id) {
            let (name, description) = told.entry(*id).or_default();
            *name = name.or(line.name.as_deref());
            *description = description.or(line.description.as_deref());
        }
    }
    let row = |(id, (name, description)): (PersonId, (Option<&str>, Option<&str>))| json!({ "id": rows::id(id.0), "name": name, "description": description });
    let columns = &[("id", Column::Id), ("name", Column::Text), ("description", Column::Text)];
    let told = Rows::new(columns, told.into_iter().map(row).collect());
    let sql = format!(
        "UPDATE persons SET name = COALESCE(persons.name, r.name),
            description = COALESCE(persons.description, r.description)
         FROM {} WHERE persons.id = r.id AND ((persons.name IS NULL AND r.name IS NOT NULL)
            OR (persons.description IS NULL AND r.description IS NOT NULL))",
        told.table(txn)
    );
    execute(txn, &sql, [told.value()]).await?;
    Ok(added)
}

/// Notes who was merged into whom, where nobody has that id or external id; returns how many are new.
pub(super) async fn write_merges(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    lines: &[MergeLine],
) -> Result<u64, DbErr> {
    let gone: Vec<PersonKey> = lines.iter().map(MergeLine::key).collect();
    let known = resolve(txn, collection, &gone).await?;
    let into = resolve_and_hold(txn, collection, lines.iter().map(|line| &line.into)).await?;
    let ids = || lines.iter().map(|line| line.id.0);
    let mut used = taken(txn, "persons", ids()).await?;
    used.extend(taken(txn, "(SELECT person_id AS id FROM person_merges)", ids()).await?);
    let row = |line: &MergeLine| {
        let id = if used.contains(&line.id.0) { substitute(collection, line.id.0) } else { line.id.0 };
        Some(json!({
            "id": rows::id(id), "external_id": line.external_id, "into_id": rows::id(into.get(&line.into.id)?.0),
            "merged_at": line.merged_at,
        }))
    };
    let new = lines.iter().filter(|line| !known.contains_key(&line.id)).filter_map(row).collect();
    let columns =
        &[("id", Column::Id), ("external_id", Column::Text), ("into_id", Column::Id), ("merged_at", Column::Integer)];
    let new = Rows::new(columns, new);
    let sql = format!(
        "INSERT INTO person_merges (person_id, collection_id, into_id, external_id, merged_at)
         SELECT r.id, $2, r.into_id, r.external_id, r.merged_at FROM {} WHERE TRUE ON CONFLICT DO NOTHING",
        new.table(txn)
    );
    execute(txn, &sql, [new.value(), collection.into()]).await
}
