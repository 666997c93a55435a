//! The request for an erasure: the receipt is written, and the subject is gone for every later answer.
//!
//! What is quickly deleted goes in the request's own transaction. The faces of a person go in slices, before the request is
//! answered; a collection is hidden at once, and its rows follow. A request that a crash cuts off goes on by its receipt.

use sea_orm::ActiveValue::Set;
use sea_orm::prelude::*;
use sea_orm::{ActiveEnum, FromQueryResult};

use super::rows::{self, remove_faces, remove_images, remove_left_alone};
use super::{Erasure, ErasureSubject, Term, add_subjects, add_terms, hash, latest};
use crate::access::Grant;
use crate::db::entity::{collection, face, image};
use crate::db::{Db, clusters, collections, execute, images, now, persons, statement, through_deadlocks};
use crate::ids::{CollectionId, ErasureId, FaceId, ImageId, PersonId};
use crate::secret_key::SecretKey;

/// Erases a person with all faces; the pictures that were sent and show nobody else go too, or, where `all_images`, every
/// picture that shows the person. The receipt, which is the earlier one where the person was erased before; `None`: there is
/// no such person.
pub async fn person(
    db: &Db,
    key: &SecretKey,
    (collection, id): (CollectionId, PersonId),
    all_images: bool,
) -> Result<Option<Erasure>, DbErr> {
    let Some(erasure) = through_deadlocks(|| begin_person(db, key, (collection, id), all_images)).await? else {
        return Ok(None);
    };
    if erasure.finished_at.is_none() {
        crate::failpoints::failpoint("erasure_requested");
        rows::all_slices(db, key, &erasure).await?;
    }
    super::find(&db.write, &Grant::everything(), erasure.id).await
}

pub(super) async fn begin_person(
    db: &Db,
    key: &SecretKey,
    (collection, id): (CollectionId, PersonId),
    all_images: bool,
) -> Result<Option<Erasure>, DbErr> {
    #[derive(FromQueryResult)]
    struct Merge {
        person_id: PersonId,
        external_id: Option<String>,
    }
    let txn = db.begin().await?;
    hold(&txn, collection).await?;
    rows::lock_person(&txn, id).await?;
    // One that is there though it was erased before came back by a file, and goes anew.
    let Some(person) = persons::find(&txn, collection, id).await? else {
        return latest(&txn, &subject_hash(key, collection, id.0)).await;
    };
    let of = Subject { kind: ErasureSubject::Person, collection: Some(collection), id: id.0 };
    let erasure = begin(&txn, key, of, all_images).await?;
    let mut names = vec![(Term::Id, id.to_string())];
    names.extend(person.external_id.map(|external_id| (Term::ExternalId, external_id)));
    // Those that were merged into it are it.
    let sql = "SELECT person_id, external_id FROM person_merges WHERE into_id = $1";
    for merge in Merge::find_by_statement(statement(&txn, sql, [id.into()])).all(&txn).await? {
        names.push((Term::Id, merge.person_id.to_string()));
        names.extend(merge.external_id.map(|external_id| (Term::ExternalId, external_id)));
    }
    add_subjects(&txn, key, &erasure, &names).await?;
    add_terms(&txn, erasure.id, names).await?;
    // Nobody finds it any more, and whoever comes by that external id from now on is another. Its faces stay its own until
    // they are gone: nothing is left to find them by once they are somebody else's.
    let sql = "UPDATE persons SET erased_at = {now}, external_id = NULL, name = NULL, description = NULL WHERE id = $1";
    execute(&txn, sql, [id.into()]).await?;
    execute(&txn, "UPDATE person_merges SET external_id = NULL WHERE into_id = $1", [id.into()]).await?;
    rows::unname(&txn, id).await?;
    txn.commit().await?;
    Ok(Some(erasure))
}

/// Erases a face; its picture goes too where it was sent and shows nobody else. As [`person`].
pub async fn face(db: &Db, key: &SecretKey, collection: CollectionId, id: FaceId) -> Result<Option<Erasure>, DbErr> {
    through_deadlocks(|| face_once(db, key, collection, id)).await
}

async fn face_once(db: &Db, key: &SecretKey, collection: CollectionId, id: FaceId) -> Result<Option<Erasure>, DbErr> {
    let txn = db.begin().await?;
    hold(&txn, collection).await?;
    let in_collection = || face::Entity::find_by_id(id).filter(face::Column::CollectionId.eq(collection));
    if let Some(seen) = in_collection().one(&txn).await? {
        // The image before its faces, as jobs do.
        images::lock(&txn, seen.image_id).await?;
    }
    let Some(found) = in_collection().one(&txn).await? else {
        return latest(&txn, &subject_hash(key, collection, id.0)).await;
    };
    let of = Subject { kind: ErasureSubject::Face, collection: Some(collection), id: id.0 };
    let erasure = begin(&txn, key, of, false).await?;
    add_subjects(&txn, key, &erasure, &[(Term::Id, id.to_string())]).await?;
    remove_faces(&txn, &erasure, collection, &[id]).await?;
    remove_left_alone(&txn, key, &erasure, collection, &[found.image_id]).await?;
    commit_and_read(txn, db, erasure.id).await
}

/// Erases an image with all faces on it, wherever they were found; a file that is not ours stays where it lies. As [`person`].
pub async fn image(db: &Db, key: &SecretKey, collection: CollectionId, id: ImageId) -> Result<Option<Erasure>, DbErr> {
    through_deadlocks(|| image_once(db, key, collection, id)).await
}

async fn image_once(db: &Db, key: &SecretKey, collection: CollectionId, id: ImageId) -> Result<Option<Erasure>, DbErr> {
    let txn = db.begin().await?;
    hold(&txn, collection).await?;
    images::lock(&txn, id).await?;
    let found = image::Entity::find_by_id(id).filter(image::Column::CollectionId.eq(collection)).one(&txn).await?;
    if found.is_none() {
        return latest(&txn, &subject_hash(key, collection, id.0)).await;
    }
    let of = Subject { kind: ErasureSubject::Image, collection: Some(collection), id: id.0 };
    let erasure = begin(&txn, key, of, false).await?;
    add_subjects(&txn, key, &erasure, &[(Term::Id, id.to_string())]).await?;
    remove_images(&txn, key, &erasure, collection, &[id]).await?;
    commit_and_read(txn, db, erasure.id).await
}

/// Erases a collection with all that it holds, and has nobody find it from now on; its name is free. Where `is_replaced`, an
/// empty one of its name, pipeline and settings takes its place at once. As [`person`].
pub async fn collection(
    db: &Db,
    key: &SecretKey,
    id: CollectionId,
    is_replaced: bool,
) -> Result<Option<Erasure>, DbErr> {
    through_deadlocks(|| collection_once(db, key, id, is_replaced)).await
}

/// Has no housekeeping take anything of a hidden collection further.
const AT_REST: [&str; 3] = [
    "UPDATE reprocess_runs SET state = 'cancelled', ended_at = {now}, prune_after = NULL
     WHERE collection_id = $1 AND ended_at IS NULL",
    "UPDATE batches SET state = 'cancelled', finished_at = {now}, sweep = NULL
     WHERE collection_id = $1 AND finished_at IS NULL",
    "DELETE FROM rematch_requests WHERE collection_id = $1",
];

async fn collection_once(
    db: &Db,
    key: &SecretKey,
    id: CollectionId,
    is_replaced: bool,
) -> Result<Option<Erasure>, DbErr> {
    let txn = db.begin().await?;
    // Whoever refers to it at this moment is waited for.
    txn.query_all_raw(statement(&txn, "SELECT id FROM collections WHERE id = $1 {for update}", [id.into()])).await?;
    let Some(found) = collections::find(&txn, &Grant::everything(), id).await? else {
        return latest(&txn, &collection_hash(key, id)).await;
    };
    let of = Subject { kind: ErasureSubject::Collection, collection: None, id: id.0 };
    let erasure = begin(&txn, key, of, true).await?;
    let names = [(Term::Id, id.to_string()), (Term::Name, found.name.clone())];
    add_subjects(&txn, key, &erasure, &names).await?;
    add_terms(&txn, erasure.id, [(Term::Prefix, format!("collections/{id}/"))]).await?;
    let sql = "UPDATE collections SET erased_at = {now}, name = $2 WHERE id = $1";
    execute(&txn, sql, [id.into(), format!("erased-{id}").into()]).await?;
    for sql in AT_REST {
        execute(&txn, sql, [id.into()]).await?;
    }
    if is_replaced {
        let row = collection::ActiveModel {
            id: Set(CollectionId::new()),
            name: Set(found.name),
            pipeline: Set(found.pipeline),
            settings: Set(found.settings),
            created_at: Set(now(&txn).await?),
            hidden_revision: Set(None),
            shown_revision: Set(None),
            erased_at: Set(None),
        };
        row.insert(&txn).await?;
    }
    commit_and_read(txn, db, erasure.id).await
}

/// The receipt of a collection that was erased, by the id or the name that it had.
pub async fn of_collection(db: &Db, key: &SecretKey, named: &str) -> Result<Option<Erasure>, DbErr> {
    if let Ok(id) = named.parse() {
        return latest(&db.read, &collection_hash(key, CollectionId(id))).await;
    }
    let sql = format!(
        "SELECT {} FROM erasures WHERE id IN (SELECT erasure_id FROM erased_subjects WHERE hash = $1)
         ORDER BY id DESC LIMIT 1",
        super::COLUMNS
    );
    let values = [hash(key, None, Term::Name, named).into()];
    Erasure::find_by_statement(statement(&db.read, &sql, values)).one(&db.read).await
}

struct Subject {
    kind: ErasureSubject,
    collection: Option<CollectionId>,
    id: Uuid,
}

fn subject_hash(key: &SecretKey, collection: CollectionId, id: Uuid) -> String {
    hash(key, Some(collection), Term::Id, &id.to_string())
}

fn collection_hash(key: &SecretKey, id: CollectionId) -> String {
    hash(key, None, Term::Id, &id.to_string())
}

/// What a request takes before it says when it was made: its collection, then the version of the clusters.
async fn hold(txn: &impl ConnectionTrait, collection: CollectionId) -> Result<(), DbErr> {
    collections::hold_from_imports(txn, collection).await?;
    clusters::move_on(txn, collection).await
}

/// Writes the receipt.
async fn begin(
    txn: &impl ConnectionTrait,
    key: &SecretKey,
    subject: Subject,
    all_images: bool,
) -> Result<Erasure, DbErr> {
    let sql = format!(
        "INSERT INTO erasures (id, subject, subject_hash, collection_id, target, all_images, requested_at)
         VALUES ($1, $2, $3, $4, $5, $6, {{now}}) RETURNING {}",
        super::COLUMNS
    );
    let values = [
        ErasureId::new().into(),
        subject.kind.to_value().into(),
        hash(key, subject.collection, Term::Id, &subject.id.to_string()).into(),
        subject.collection.into(),
        subject.id.into(),
        all_images.into(),
    ];
    let row = Erasure::find_by_statement(statement(txn, &sql, values)).one(txn).await?;
    row.ok_or(DbErr::RecordNotInserted)
}

async fn commit_and_read(txn: sea_orm::DatabaseTransaction, db: &Db, id: ErasureId) -> Result<Option<Erasure>, DbErr> {
    txn.commit().await?;
    crate::failpoints::failpoint("erasure_requested");
    super::find(&db.write, &Grant::everything(), id).await
}
