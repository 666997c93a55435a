//! What of a file was erased since its import began: the file may have it, and must not bring it back.

use std::borrow::Cow;
use std::collections::HashSet;

use sea_orm::DatabaseTransaction;
use sea_orm::prelude::*;

use super::export::ExportedImage;
use super::import::{Imported, Target, write_pictures};
use super::persons::{self, substitute};
use crate::db::Db;
use crate::db::erasures::fence::Fence;
use crate::db::erasures::{Name, Term};
use crate::ids::CollectionId;
use crate::transfer::{Counts, FaceLine, MergeLine, PersonKey, PersonLine};

/// Names of a file that were erased, as they are known here.
pub(super) struct Erased {
    collection: CollectionId,
    names: HashSet<Name>,
}

/// A line of a file, or a picture with all that belongs to it.
pub(super) trait Lines: Clone + Send + Sync {
    /// All that it names.
    fn names(&self, collection: CollectionId) -> Vec<Name>;

    /// What is left of it: none of the names that were erased.
    fn without(&self, erased: &Erased) -> Option<Self>;

    /// Adds what it has.
    fn count(&self, counts: &mut Counts);

    /// Writes some.
    fn write(
        txn: &DatabaseTransaction,
        target: Target<'_>,
        lines: &[Self],
    ) -> impl Future<Output = Result<Imported, DbErr>> + Send;
}

/// Writes lines, but for those of what was erased since the import began. Erasures are looked for last: one that is not seen
/// then waits for what the transaction holds. Where there are any, all is done once more without those lines; each time there
/// are fewer. Where the first picture `goes_on`, it was counted with its lines before.
pub(super) async fn write_others<L: Lines>(
    db: &Db,
    target: Target<'_>,
    lines: &[L],
    mut goes_on: bool,
) -> Result<Imported, DbErr> {
    let Target { collection, begun_at, key } = target;
    let mut left = Cow::Borrowed(lines);
    let mut before = Counts::default();
    loop {
        let txn = db.begin().await?;
        let mut written = L::write(&txn, target, &left).await?;
        let names = || left.iter().flat_map(|line| line.names(collection)).collect();
        let names = Fence::of(key, collection, []).erased_since(&txn, begun_at, names).await?;
        if names.is_empty() {
            txn.commit().await?;
            written.erased += counted(lines) - counted(&left) - before;
            return Ok(written);
        }
        // At once, and not when the connection is used next: the erasure may wait for it.
        txn.rollback().await?;
        let erased = Erased { collection, names };
        if goes_on && left.first().is_some_and(|first| first.without(&erased).is_none()) {
            (goes_on, before.images) = (false, 1);
        }
        left = Cow::Owned(left.iter().filter_map(|line| line.without(&erased)).collect());
    }
}

fn counted<L: Lines>(lines: &[L]) -> Counts {
    let mut counts = Counts::default();
    for line in lines {
        line.count(&mut counts);
    }
    counts
}

/// An id of the file, as it is or would be known here.
fn id_names(collection: CollectionId, id: Uuid) -> [Name; 2] {
    [id, substitute(collection, id)].map(|id| (Term::Id, id.to_string()))
}

fn person_names(collection: CollectionId, key: &PersonKey) -> impl Iterator<Item = Name> {
    let external_id = key.external_id.clone().map(|external_id| (Term::ExternalId, external_id));
    id_names(collection, key.id.0).into_iter().chain(external_id)
}

/// All whom a face line names.
pub(super) fn persons_of(face: &FaceLine) -> impl Iterator<Item = &PersonKey> {
    face.person.iter().chain(&face.not).chain(face.cluster.iter().flat_map(|cluster| &cluster.person))
}

impl Erased {
    fn has_person(&self, key: &PersonKey) -> bool {
        person_names(self.collection, key).any(|name| self.names.contains(&name))
    }

    fn has_face(&self, face: &FaceLine) -> bool {
        id_names(self.collection, face.id.0).iter().any(|name| self.names.contains(name))
            || face.person.as_ref().is_some_and(|person| self.has_person(person))
    }
}

impl Lines for PersonLine {
    fn names(&self, collection: CollectionId) -> Vec<Name> {
        person_names(collection, &self.key()).collect()
    }

    fn without(&self, erased: &Erased) -> Option<Self> {
        (!erased.has_person(&self.key())).then(|| self.clone())
    }

    fn count(&self, counts: &mut Counts) {
        counts.persons += 1;
    }

    async fn write(txn: &DatabaseTransaction, target: Target<'_>, lines: &[Self]) -> Result<Imported, DbErr> {
        let persons = persons::write(txn, target.collection, lines).await?;
        Ok(Imported::added(Counts { persons, ..Counts::default() }))
    }
}

impl MergeLine {
    /// The person that is gone.
    pub(super) fn key(&self) -> PersonKey {
        PersonKey { id: self.id, external_id: self.external_id.clone() }
    }
}

impl Lines for MergeLine {
    fn names(&self, collection: CollectionId) -> Vec<Name> {
        [&self.key(), &self.into].into_iter().flat_map(|key| person_names(collection, key)).collect()
    }

    fn without(&self, erased: &Erased) -> Option<Self> {
        (!erased.has_person(&self.key()) && !erased.has_person(&self.into)).then(|| self.clone())
    }

    fn count(&self, counts: &mut Counts) {
        counts.merges += 1;
    }

    async fn write(txn: &DatabaseTransaction, target: Target<'_>, lines: &[Self]) -> Result<Imported, DbErr> {
        let merges = persons::write_merges(txn, target.collection, lines).await?;
        Ok(Imported::added(Counts { merges, ..Counts::default() }))
    }
}

impl Lines for ExportedImage {
    fn names(&self, collection: CollectionId) -> Vec<Name> {
        let (image, _, faces) = self;
        let of_face = |face: &FaceLine| {
            let ids = id_names(collection, face.id.0);
            persons_of(face).flat_map(|key| person_names(collection, key)).chain(ids).collect::<Vec<_>>()
        };
        let digest = (Term::Sha256, image.sha256.clone());
        faces.iter().flat_map(of_face).chain([digest]).collect()
    }

    /// A picture that was sent and whose faces in the file were all erased goes with them.
    fn without(&self, erased: &Erased) -> Option<Self> {
        let (image, places, faces) = self;
        if erased.names.contains(&(Term::Sha256, image.sha256.clone())) {
            return None;
        }
        let left = faces.iter().filter(|face| !erased.has_face(face)).map(|face| {
            let mut face = face.clone();
            face.not.retain(|person| !erased.has_person(person));
            if let Some(cluster) = &mut face.cluster {
                cluster.person = cluster.person.take().filter(|person| !erased.has_person(person));
            }
            face
        });
        let left: Vec<FaceLine> = left.collect();
        if left.is_empty() && !faces.is_empty() && image.uri.is_none() {
            return None;
        }
        Some((image.clone(), places.clone(), left))
    }

    fn count(&self, counts: &mut Counts) {
        let (_, places, faces) = self;
        counts.images += 1;
        counts.places += places.len() as u64;
        counts.faces += faces.len() as u64;
        counts.vectors += faces.iter().map(|face| face.vectors.len() as u64).sum::<u64>();
    }

    async fn write(txn: &DatabaseTransaction, target: Target<'_>, lines: &[Self]) -> Result<Imported, DbErr> {
        write_pictures(txn, target, lines).await
    }
}
