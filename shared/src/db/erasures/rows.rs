//! Deletes the rows of what is erased, a slice in a transaction, with the vectors of every pipeline and every crop; what jobs,
//! events and the object store are looked through for is remembered with it.
//!
//! Locks are taken in the order of every other transaction: the version of the clusters, images, person, faces.

use std::collections::BTreeSet;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::traces::place_term;
use super::{Erasure, ErasureSubject, ID, Removed, Term, add_counts, add_subjects, add_terms, ids};
use crate::db::images::UNLISTED;
use crate::db::{Db, clusters, collections, count, execute, images, rematches, statement, through_deadlocks};
use crate::ids::{CollectionId, FaceId, ImageId, PersonId};
use crate::secret_key::SecretKey;

/// Images of which faces go in one transaction.
const IMAGES: u64 = 100;
/// Faces of a person that go in one transaction.
const FACES: u64 = 200;
/// Rows of which each is deleted with little else.
const ROWS: u64 = 2000;
/// Jobs of a collection that go in one transaction, each with its payload.
const JOBS: u64 = 1000;

/// What a slice of an erasure's rows came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sliced {
    /// There may be more; of a person's faces behind that one. To begin again from the first is the same, but for the time.
    More(Option<FaceId>),
    /// No row is left.
    Done,
}

/// Deletes the next slice of an erasure's rows; `after` is where the one before came to.
pub async fn slice(db: &Db, key: &SecretKey, erasure: &Erasure, after: Option<FaceId>) -> Result<Sliced, DbErr> {
    match (erasure.subject, erasure.target, erasure.collection_id) {
        (ErasureSubject::Person, Some(id), Some(collection)) => {
            through_deadlocks(|| slice_of_person(db, key, erasure, (collection, PersonId(id)), after)).await
        }
        (ErasureSubject::Collection, Some(id), _) => {
            let is_more = through_deadlocks(|| slice_of_collection(db, erasure, CollectionId(id))).await?;
            Ok(if is_more { Sliced::More(None) } else { Sliced::Done })
        }
        // Those went with their request; or the collection did, with all that it held.
        _ => Ok(Sliced::Done),
    }
}

/// Deletes all slices of an erasure's rows.
pub async fn all_slices(db: &Db, key: &SecretKey, erasure: &Erasure) -> Result<(), DbErr> {
    let mut after = None;
    while let Sliced::More(last) = slice(db, key, erasure, after).await? {
        after = last;
    }
    Ok(())
}

#[derive(FromQueryResult)]
struct FaceOn {
    id: FaceId,
    image_id: ImageId,
}

async fn slice_of_person(
    db: &Db,
    key: &SecretKey,
    erasure: &Erasure,
    (collection, id): (CollectionId, PersonId),
    after: Option<FaceId>,
) -> Result<Sliced, DbErr> {
    let txn = db.begin().await?;
    clusters::move_on(&txn, collection).await?;
    // Behind those before: rows that were just deleted are read over until the database has cleaned up.
    let sql = format!("SELECT id, image_id FROM faces WHERE person_id = $1 AND id > $2 ORDER BY id LIMIT {FACES}");
    let values = [id.into(), after.unwrap_or(FaceId(Uuid::nil())).into()];
    let seen = FaceOn::find_by_statement(statement(&txn, &sql, values)).all(&txn).await?;
    let shown: Vec<ImageId> = seen.iter().map(|face| face.image_id).collect::<BTreeSet<_>>().into_iter().collect();
    images::lock_all(&txn, &shown).await?;
    // No job gives the person another face meanwhile, which would be left behind.
    if !lock_person(&txn, id).await? {
        return Ok(Sliced::Done);
    }
    if erasure.all_images {
        remove_images(&txn, key, erasure, collection, &shown).await?;
    } else {
        let these = ids(&ID, seen.iter().map(|face| face.id.0));
        let sql = format!(
            "SELECT f.id FROM {} CROSS JOIN faces f WHERE f.id = r.id AND f.person_id = $2 ORDER BY f.id",
            these.table(&txn)
        );
        let faces = face_ids(&txn, &sql, vec![these.value(), id.into()]).await?;
        remove_faces(&txn, erasure, collection, &faces).await?;
        remove_left_alone(&txn, key, erasure, collection, &shown).await?;
    }
    let last = seen.last().map(|face| face.id);
    if seen.len() as u64 == FACES {
        txn.commit().await?;
        return Ok(Sliced::More(last));
    }
    let left = "SELECT count(*) AS n FROM (SELECT 1 FROM faces WHERE person_id = $1 LIMIT 1) AS one";
    let is_more = count(&txn, left, [id.into()]).await? > 0;
    if !is_more {
        remove_person(&txn, erasure, collection, id).await?;
    }
    txn.commit().await?;
    Ok(if is_more { Sliced::More(None) } else { Sliced::Done })
}

/// Locks the person until the transaction ends; false where there is none.
pub(super) async fn lock_person(txn: &impl ConnectionTrait, id: PersonId) -> Result<bool, DbErr> {
    let sql = "SELECT count(*) AS n FROM (SELECT id FROM persons WHERE id = $1 {for update}) AS locked";
    Ok(count(txn, sql, [id.into()]).await? > 0)
}

/// What names persons beside their faces: clusters, and what was done to them, which may be undone.
const NAMING: [(&str, &str); 4] = [
    ("clusters", "person_id"),
    ("cluster_changes", "person_id"),
    ("cluster_change_faces", "from_person"),
    ("cluster_change_faces", "cluster_person"),
];

/// Has no cluster, and nothing that may be undone of one, name the person: no change of either takes a face away or adds one.
pub(super) async fn unname(txn: &impl ConnectionTrait, id: PersonId) -> Result<(), DbErr> {
    for (table, column) in NAMING {
        execute(txn, &format!("UPDATE {table} SET {column} = NULL WHERE {column} = $1"), [id.into()]).await?;
    }
    Ok(())
}

/// Deletes a locked person that has no face any more.
async fn remove_person(
    txn: &impl ConnectionTrait,
    erasure: &Erasure,
    collection: CollectionId,
    id: PersonId,
) -> Result<(), DbErr> {
    unname(txn, id).await?;
    let sql = "DELETE FROM rematch_requests WHERE collection_id = $1 AND person_id = $2";
    execute(txn, sql, [collection.into(), id.into()]).await?;
    let persons = execute(txn, "DELETE FROM persons WHERE id = $1", [id.into()]).await?;
    // In a smaller gallery less is enough for a match.
    rematches::request(txn, collection, None, None).await?;
    add_counts(txn, erasure.id, Removed { persons, ..Removed::default() }).await
}

async fn face_ids(txn: &impl ConnectionTrait, sql: &str, values: Vec<Value>) -> Result<Vec<FaceId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: FaceId,
    }
    let rows = Row::find_by_statement(statement(txn, sql, values)).all(txn).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// Deletes faces of locked images, and notes on the images that stay where they lay.
pub(super) async fn remove_faces(
    txn: &impl ConnectionTrait,
    erasure: &Erasure,
    collection: CollectionId,
    faces: &[FaceId],
) -> Result<(), DbErr> {
    #[derive(FromQueryResult)]
    struct Crop {
        object_key: String,
    }
    #[derive(FromQueryResult)]
    struct Template {
        person_id: PersonId,
    }
    if faces.is_empty() {
        return Ok(());
    }
    let rows = || ids(&ID, faces.iter().map(|face| face.0));
    let these = format!("(SELECT r.id FROM {})", rows().table(txn));
    let sql = format!("SELECT object_key FROM crops WHERE face_id IN {these}");
    let crops = Crop::find_by_statement(statement(txn, &sql, [rows().value()])).all(txn).await?;
    let sql = format!("SELECT count(*) AS n FROM embeddings WHERE face_id IN {these}");
    let vectors = count(txn, &sql, [rows().value()]).await?;
    let sql = format!(
        "SELECT DISTINCT person_id FROM faces WHERE id IN {these} AND person_id IS NOT NULL
            AND assigned_by IN ('enrolled', 'user') AND NOT hidden"
    );
    let templates = Template::find_by_statement(statement(txn, &sql, [rows().value()])).all(txn).await?;
    let sql = format!(
        "INSERT INTO erased_places (image_id, x, y, width, height, erased_at)
         SELECT f.image_id, g.x, g.y, g.width, g.height, {{now}} FROM face_geometry g JOIN faces f ON f.id = g.face_id
         WHERE g.face_id IN {these}"
    );
    execute(txn, &sql, [rows().value()]).await?;
    let removed = execute(txn, &format!("DELETE FROM faces WHERE id IN {these}"), [rows().value()]).await?;
    let objects = crops.iter().map(|crop| (Term::Object, crop.object_key.clone()));
    add_terms(txn, erasure.id, faces.iter().map(|face| (Term::Id, face.to_string())).chain(objects)).await?;
    // Of the person that is erased itself nothing is matched again.
    let is_erased = |person: PersonId| erasure.subject == ErasureSubject::Person && erasure.target == Some(person.0);
    for template in templates.iter().filter(|template| !is_erased(template.person_id)) {
        rematches::request(txn, collection, None, Some(template.person_id)).await?;
    }
    let vectors = u64::try_from(vectors).unwrap_or_default();
    let removed = Removed { faces: removed, vectors, crops: crops.len() as u64, ..Removed::default() };
    add_counts(txn, erasure.id, removed).await
}

/// Which images `i` have a place that a listing named.
fn is_listed() -> String {
    format!("EXISTS (SELECT 1 FROM image_sources s WHERE s.image_id = i.id AND s.fingerprint <> '{UNLISTED}')")
}

/// Deletes those of the locked images that show nobody any more: of those that were sent, and of others of which only single
/// faces were stored. A library's own picture that was analysed is remembered, so that it is not indexed anew; what was sent
/// of it goes.
pub(super) async fn remove_left_alone(
    txn: &impl ConnectionTrait,
    key: &SecretKey,
    erasure: &Erasure,
    collection: CollectionId,
    images: &[ImageId],
) -> Result<(), DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: ImageId,
        stays: bool,
    }
    if images.is_empty() {
        return Ok(());
    }
    let these = ids(&ID, images.iter().map(|image| image.0));
    let sql = format!(
        "SELECT i.id, EXISTS (SELECT 1 FROM image_analyses a WHERE a.image_id = i.id)
            AND (i.object_key IS NULL OR {}) AS stays
         FROM images i WHERE i.id IN (SELECT r.id FROM {}) AND NOT EXISTS (SELECT 1 FROM faces f WHERE f.image_id = i.id)",
        is_listed(),
        these.table(txn)
    );
    let alone = Row::find_by_statement(statement(txn, &sql, [these.value()])).all(txn).await?;
    let (stay, go): (Vec<Row>, Vec<Row>) = alone.into_iter().partition(|row| row.stays);
    let id = |row: Row| row.id;
    remove_sent(txn, erasure, collection, &stay.into_iter().map(id).collect::<Vec<_>>()).await?;
    remove_images(txn, key, erasure, collection, &go.into_iter().map(id).collect::<Vec<_>>()).await
}

/// Deletes what was sent of a library's locked pictures: from then on each lies at the place where it was listed.
async fn remove_sent(
    txn: &impl ConnectionTrait,
    erasure: &Erasure,
    collection: CollectionId,
    images: &[ImageId],
) -> Result<(), DbErr> {
    #[derive(FromQueryResult)]
    struct Image {
        sha256: String,
        object_key: Option<String>,
    }
    if images.is_empty() {
        return Ok(());
    }
    let rows = || ids(&ID, images.iter().map(|image| image.0));
    let these = format!("(SELECT r.id FROM {})", rows().table(txn));
    let sql = format!("SELECT sha256, object_key FROM images WHERE id IN {these}");
    let found = Image::find_by_statement(statement(txn, &sql, [rows().value()])).all(txn).await?;
    let sql = format!(
        "UPDATE images SET object_key = NULL, uri =
            (SELECT min(s.uri) FROM image_sources s WHERE s.image_id = images.id AND s.fingerprint <> '{UNLISTED}')
         WHERE object_key IS NOT NULL AND id IN {these}"
    );
    execute(txn, &sql, [rows().value()]).await?;
    let digests: Vec<_> = found.iter().map(|image| (Term::Sha256, image.sha256.clone())).collect();
    let objects = found.into_iter().filter_map(|image| image.object_key).collect();
    remove_objects(txn, erasure, collection, &digests, objects).await
}

/// Deletes locked images with all faces on them, and every upload of the same bytes.
pub(super) async fn remove_images(
    txn: &impl ConnectionTrait,
    key: &SecretKey,
    erasure: &Erasure,
    collection: CollectionId,
    images: &[ImageId],
) -> Result<(), DbErr> {
    #[derive(FromQueryResult)]
    struct Image {
        sha256: String,
        object_key: Option<String>,
        uri: Option<String>,
    }
    #[derive(FromQueryResult)]
    struct Place {
        uri: String,
        fingerprint: String,
    }
    if images.is_empty() {
        return Ok(());
    }
    let rows = || ids(&ID, images.iter().map(|image| image.0));
    let these = format!("(SELECT r.id FROM {})", rows().table(txn));
    let faces = face_ids(txn, &format!("SELECT id FROM faces WHERE image_id IN {these}"), vec![rows().value()]).await?;
    remove_faces(txn, erasure, collection, &faces).await?;
    // At its first place there may be other bytes by now.
    let sql = format!(
        "SELECT i.sha256, i.object_key, CASE WHEN NOT EXISTS (SELECT 1 FROM image_sources s
            WHERE s.collection_id = i.collection_id AND s.uri = i.uri) THEN i.uri END AS uri
         FROM images i WHERE i.id IN {these}"
    );
    let found = Image::find_by_statement(statement(txn, &sql, [rows().value()])).all(txn).await?;
    let sql = format!("SELECT uri, fingerprint FROM image_sources WHERE image_id IN {these}");
    let places = Place::find_by_statement(statement(txn, &sql, [rows().value()])).all(txn).await?;
    let digests: Vec<(Term, String)> = found.iter().map(|image| (Term::Sha256, image.sha256.clone())).collect();
    let mut terms: Vec<_> = images.iter().map(|image| (Term::Id, image.to_string())).collect();
    terms.extend(found.iter().filter_map(|image| Some((Term::Uri, place_term(image.uri.as_deref()?, None)))));
    let listed = |place: &Place| (place.fingerprint != UNLISTED).then(|| place.fingerprint.clone());
    terms.extend(places.iter().map(|place| (Term::Uri, place_term(&place.uri, listed(place).as_deref()))));
    let objects = found.into_iter().filter_map(|image| image.object_key).collect();
    remove_objects(txn, erasure, collection, &digests, objects).await?;
    add_subjects(txn, key, erasure, &digests).await?;
    add_terms(txn, erasure.id, terms.into_iter().chain(digests)).await?;
    let images = execute(txn, &format!("DELETE FROM images WHERE id IN {these}"), [rows().value()]).await?;
    add_counts(txn, erasure.id, Removed { images, ..Removed::default() }).await
}

/// Has these objects deleted, and every upload of those bytes with its own.
async fn remove_objects(
    txn: &impl ConnectionTrait,
    erasure: &Erasure,
    collection: CollectionId,
    digests: &[(Term, String)],
    mut objects: BTreeSet<String>,
) -> Result<(), DbErr> {
    let uploads = uploads_of(txn, collection, digests).await?;
    objects.extend(uploads.iter().map(|upload| upload.object_key.clone()));
    for object in &objects {
        crate::db::uploads::orphan(txn, object).await?;
    }
    let terms = uploads.iter().map(|upload| (Term::Id, upload.id.to_string()));
    add_terms(txn, erasure.id, terms.chain(objects.into_iter().map(|object| (Term::Object, object)))).await?;
    let gone = ids(&ID, uploads.iter().map(|upload| upload.id));
    let sql = format!("DELETE FROM uploads WHERE id IN (SELECT r.id FROM {})", gone.table(txn));
    execute(txn, &sql, [gone.value()]).await?;
    Ok(())
}

#[derive(FromQueryResult)]
struct Upload {
    id: Uuid,
    object_key: String,
}

/// The uploads of those bytes, locked: a job that begins to need one at this moment is waited for.
async fn uploads_of(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    digests: &[(Term, String)],
) -> Result<Vec<Upload>, DbErr> {
    if digests.is_empty() {
        return Ok(Vec::new());
    }
    let list = crate::db::placeholders(2, digests.len());
    let sql = format!(
        "SELECT id, object_key FROM uploads WHERE collection_id = $1 AND sha256 IN ({list}) ORDER BY id {{for update}}"
    );
    let digests = digests.iter().map(|(_, sha256)| Value::from(sha256.as_str()));
    let values = std::iter::once(collection.into()).chain(digests);
    Upload::find_by_statement(statement(txn, &sql, values)).all(txn).await
}

/// Deletes some of what a hidden collection holds, and at last the collection.
async fn slice_of_collection(db: &Db, erasure: &Erasure, id: CollectionId) -> Result<bool, DbErr> {
    let txn = db.begin().await?;
    let there = "SELECT count(*) AS n FROM collections WHERE id = $1";
    if count(&txn, there, [id.into()]).await? == 0 {
        return Ok(false);
    }
    let some = |table: &str, key: &str, limit: u64| {
        format!(
            "DELETE FROM {table} WHERE collection_id = $1 AND {key} IN
                (SELECT {key} FROM {table} WHERE collection_id = $1 ORDER BY {key} LIMIT {limit} {{for update}})"
        )
    };
    // The jobs first: whatever still runs has lost its claim.
    let jobs = execute(&txn, &some("jobs", "id", JOBS), [id.into()]).await?;
    let mut removed = Removed { jobs, ..Removed::default() };
    if jobs == 0 {
        removed = images_of_collection(&txn, id).await?;
    }
    if removed == Removed::default() {
        removed.persons = execute(&txn, &some("persons", "id", ROWS), [id.into()]).await?;
    }
    let mut is_more = removed != Removed::default();
    for (table, key) in [("uploads", "id"), ("image_sources", "uri"), ("clusters", "id"), ("cluster_changes", "id")] {
        if !is_more {
            is_more = execute(&txn, &some(table, key, ROWS), [id.into()]).await? > 0;
        }
    }
    if !is_more {
        execute(&txn, "DELETE FROM cluster_queue WHERE collection_id = $1", [id.into()]).await?;
        collections::delete_in(&txn, id).await?;
    }
    add_counts(&txn, erasure.id, removed).await?;
    txn.commit().await?;
    Ok(is_more)
}

/// Deletes the next images of a collection with all faces on them. Their objects have the collection's id in their keys.
async fn images_of_collection(txn: &impl ConnectionTrait, id: CollectionId) -> Result<Removed, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: ImageId,
    }
    let sql = format!("SELECT id FROM images WHERE collection_id = $1 ORDER BY id LIMIT {IMAGES}");
    let images = Row::find_by_statement(statement(txn, &sql, [id.into()])).all(txn).await?;
    let images: Vec<ImageId> = images.into_iter().map(|row| row.id).collect();
    if images.is_empty() {
        return Ok(Removed::default());
    }
    images::lock_all(txn, &images).await?;
    let rows = || ids(&ID, images.iter().map(|image| image.0));
    let these = format!("(SELECT r.id FROM {})", rows().table(txn));
    let of_faces = async |table: &str| {
        let sql =
            format!("SELECT count(*) AS n FROM {table} t JOIN faces f ON f.id = t.face_id WHERE f.image_id IN {these}");
        Ok::<_, DbErr>(u64::try_from(count(txn, &sql, [rows().value()]).await?).unwrap_or_default())
    };
    let (vectors, crops) = (of_faces("embeddings").await?, of_faces("crops").await?);
    let faces = execute(txn, &format!("DELETE FROM faces WHERE image_id IN {these}"), [rows().value()]).await?;
    let images = execute(txn, &format!("DELETE FROM images WHERE id IN {these}"), [rows().value()]).await?;
    Ok(Removed { faces, images, vectors, crops, ..Removed::default() })
}
