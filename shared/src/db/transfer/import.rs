//! Writes a file's people and faces into a collection, some lines in one transaction. What is there stays, what it lacks is
//! added, so that the same lines a second time change nothing.

use sea_orm::prelude::*;
use sea_orm::{DatabaseTransaction, SqlErr};

use super::clusters::{cluster, separate};
use super::export::ExportedImage;
use super::faces::{assign_known, insert_faces, insert_geometry, insert_vectors, place_faces, reject};
use super::images::{write_images, write_places};
use super::persons::{self, resolve_and_hold};
use crate::db::erasures::fence::has_erased_since;
use crate::db::reprocess::pending;
use crate::db::{Db, clusters, rematches, through_deadlocks};
use crate::ids::CollectionId;
use crate::transfer::{Counts, FaceLine, MergeLine, PersonKey, PersonLine};

/// Tries of a transaction of which another import takes an id between the look for it and the write.
const TRIES: u32 = 5;

/// Why an import cannot go on.
const ERASED: &str = "something of the collection was erased since the import began";

/// Whether the file may bring back what was erased since the import began.
pub fn is_erased(error: &DbErr) -> bool {
    matches!(error, DbErr::Custom(text) if text == ERASED)
}

/// Ends a transaction of an import, unless something of the collection was erased since it began: the file may have it. Asked
/// last: an erasure that is not seen here waits for what this transaction holds.
async fn commit(txn: DatabaseTransaction, collection: CollectionId, begun_at: i64) -> Result<(), DbErr> {
    if has_erased_since(&txn, collection, begun_at).await? {
        return Err(DbErr::Custom(ERASED.to_owned()));
    }
    txn.commit().await
}

/// Adds persons; counts those that are new. The import has begun at `begun_at`, by the database's clock.
pub async fn add_persons(
    db: &Db,
    (collection, begun_at): (CollectionId, i64),
    lines: &[PersonLine],
) -> Result<Counts, DbErr> {
    through_deadlocks(|| async {
        let txn = db.begin().await?;
        let persons = persons::write(&txn, collection, lines).await?;
        commit(txn, collection, begun_at).await?;
        Ok(Counts { persons, ..Counts::default() })
    })
    .await
}

/// Adds who was merged into whom; the persons must be there. Counts those that are new.
pub async fn add_merges(
    db: &Db,
    (collection, begun_at): (CollectionId, i64),
    lines: &[MergeLine],
) -> Result<Counts, DbErr> {
    through_deadlocks(|| async {
        let txn = db.begin().await?;
        let merges = persons::write_merges(&txn, collection, lines).await?;
        commit(txn, collection, begun_at).await?;
        Ok(Counts { merges, ..Counts::default() })
    })
    .await
}

/// Adds pictures with their places and faces; the persons must be there. Counts what is new. Has faces matched again where it
/// adds or names any.
pub async fn add_images(
    db: &Db,
    (collection, begun_at): (CollectionId, i64),
    lines: &[ExportedImage],
) -> Result<Counts, DbErr> {
    let mut tries = 1;
    loop {
        match through_deadlocks(|| add_images_once(db, (collection, begun_at), lines)).await {
            Err(error) if is_taken(&error) && tries < TRIES => tries += 1,
            done => return done,
        }
    }
}

fn is_taken(error: &DbErr) -> bool {
    matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)))
}

async fn add_images_once(
    db: &Db,
    (collection, begun_at): (CollectionId, i64),
    lines: &[ExportedImage],
) -> Result<Counts, DbErr> {
    let txn = db.begin().await?;
    let all_faces = || lines.iter().flat_map(|(_, _, faces)| faces);
    if all_faces().any(|face| face.cluster.is_some()) {
        clusters::move_on(&txn, collection).await?;
    }
    let ids = write_images(&txn, collection, lines).await?;
    let persons = resolve_and_hold(&txn, collection, all_faces().flat_map(persons_of)).await?;
    let mut counts = Counts { images: ids.iter().filter(|image| image.is_new).count() as u64, ..Counts::default() };
    counts.places = write_places(&txn, collection, lines, &ids).await?;
    let faces = place_faces(&txn, collection, lines, &ids).await?;
    counts.faces = insert_faces(&txn, collection, &faces, &persons).await?;
    insert_geometry(&txn, &faces).await?;
    counts.vectors = insert_vectors(&txn, collection, &faces).await?;
    let images: Vec<_> = ids.iter().map(|stored| stored.id).collect();
    pending::note(&txn, collection, None, &images).await?;
    let assigned = assign_known(&txn, &faces, &persons).await?;
    reject(&txn, &faces, &persons).await?;
    separate(&txn, collection, &faces).await?;
    cluster(&txn, collection, &faces, &persons).await?;
    // Here and not at the file's end: a file that breaks off leaves templates, too.
    if counts.faces + counts.vectors + assigned > 0 {
        rematches::request(&txn, collection, None, None).await?;
    }
    commit(txn, collection, begun_at).await?;
    Ok(counts)
}

fn persons_of(face: &FaceLine) -> impl Iterator<Item = &PersonKey> {
    face.person.iter().chain(&face.not).chain(face.cluster.iter().flat_map(|cluster| &cluster.person))
}
