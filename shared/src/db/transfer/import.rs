//! Writes a file's people and faces into a collection, some lines in one transaction. What is there stays, what it lacks is
//! added, so that the same lines a second time change nothing.

use sea_orm::prelude::*;
use sea_orm::{DatabaseTransaction, SqlErr};

use super::clusters::{cluster, separate};
use super::erased::{persons_of, write_others};
use super::export::ExportedImage;
use super::faces::{assign_known, insert_faces, insert_geometry, insert_vectors, place_faces, reject, take_erased};
use super::images::{write_images, write_places};
use super::persons::resolve_and_hold;
use crate::db::reprocess::pending;
use crate::db::{Db, clusters, collections, erasures, now, rematches, through_deadlocks};
use crate::ids::CollectionId;
use crate::secret_key::SecretKey;
use crate::transfer::{Counts, MergeLine, PersonLine};

/// Tries of a transaction of which another import takes an id between the look for it and the write.
const TRIES: u32 = 5;

/// Where a file goes.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The collection.
    pub collection: CollectionId,
    /// When the import began, by the database's clock.
    pub begun_at: i64,
    /// By which it is known again what was erased since.
    pub key: &'a SecretKey,
}

/// What became of lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// What was new.
    pub added: Counts,
    /// What was left out, since it was erased after the import began.
    pub erased: Counts,
}

impl Imported {
    pub(super) fn added(added: Counts) -> Self {
        Self { added, ..Self::default() }
    }
}

impl std::ops::AddAssign for Imported {
    fn add_assign(&mut self, more: Self) {
        self.added += more.added;
        self.erased += more.erased;
    }
}

/// Begins an import, and says when, by the database's clock: what is erased of the collection from then on is left out. `None`
/// while faces of a person go, slice by slice: what a file has of them would be taken for what is still to go.
pub async fn begin(db: &Db, collection: CollectionId) -> Result<Option<i64>, DbErr> {
    let txn = db.begin().await?;
    // An erasure is requested either before, and seen, or after that instant.
    collections::hold_from_erasures(&txn, collection).await?;
    let begun_at = now(&txn).await?;
    let is_open = erasures::takes_a_person(&txn, collection).await?;
    txn.commit().await?;
    Ok((!is_open).then_some(begun_at))
}

/// Adds persons.
pub async fn add_persons(db: &Db, target: Target<'_>, lines: &[PersonLine]) -> Result<Imported, DbErr> {
    through_deadlocks(|| write_others(db, target, lines, false)).await
}

/// Adds who was merged into whom; the persons must be there.
pub async fn add_merges(db: &Db, target: Target<'_>, lines: &[MergeLine]) -> Result<Imported, DbErr> {
    through_deadlocks(|| write_others(db, target, lines, false)).await
}

/// Adds pictures with their places and faces; the persons must be there. Has faces matched again where it adds or names any.
/// Where the first picture `goes_on`, a part of it was written before.
pub async fn add_images(
    db: &Db,
    target: Target<'_>,
    lines: &[ExportedImage],
    goes_on: bool,
) -> Result<Imported, DbErr> {
    let mut tries = 1;
    loop {
        match through_deadlocks(|| write_others(db, target, lines, goes_on)).await {
            Err(error) if is_taken(&error) && tries < TRIES => tries += 1,
            done => return done,
        }
    }
}

fn is_taken(error: &DbErr) -> bool {
    matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)))
}

pub(super) async fn write_pictures(
    txn: &DatabaseTransaction,
    Target { collection, begun_at, .. }: Target<'_>,
    lines: &[ExportedImage],
) -> Result<Imported, DbErr> {
    let all_faces = || lines.iter().flat_map(|(_, _, faces)| faces);
    if all_faces().any(|face| face.cluster.is_some()) {
        clusters::move_on(txn, collection).await?;
    }
    let ids = write_images(txn, collection, lines).await?;
    let persons = resolve_and_hold(txn, collection, all_faces().flat_map(persons_of)).await?;
    let mut added = Counts { images: ids.iter().filter(|image| image.is_new).count() as u64, ..Counts::default() };
    added.places = write_places(txn, collection, lines, &ids).await?;
    let mut faces = place_faces(txn, collection, lines, &ids).await?;
    let erased = take_erased(txn, &mut faces, begun_at).await?;
    added.faces = insert_faces(txn, collection, &faces, &persons).await?;
    insert_geometry(txn, &faces).await?;
    added.vectors = insert_vectors(txn, collection, &faces).await?;
    let images: Vec<_> = ids.iter().map(|stored| stored.id).collect();
    pending::note(txn, collection, None, &images).await?;
    let assigned = assign_known(txn, &faces, &persons).await?;
    reject(txn, &faces, &persons).await?;
    separate(txn, collection, &faces).await?;
    cluster(txn, collection, &faces, &persons).await?;
    // Here and not at the file's end: a file that breaks off leaves templates, too.
    if added.faces + added.vectors + assigned > 0 {
        rematches::request(txn, collection, None, None).await?;
    }
    Ok(Imported { added, erased })
}
