//! What people say of faces by hand: whose one is, whose it is not, and that it is to be left out.

use sea_orm::prelude::*;

use super::entity::face::{self, AssignedBy};
use super::faces::{self, PlacedFace};
use super::reprocess::pending;
use super::{Db, count, execute, images, persons, rejections, rematches, through_deadlocks};
use crate::ids::{CollectionId, FaceId, PersonId};

/// Changes to a face; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaceChange {
    /// Whose it is.
    pub person: PersonChange,
    /// Whether it is left out of lists, matching and clusters.
    pub hidden: Option<bool>,
    /// Whether nothing automatic may change whose it is. A face that is assigned is locked, one that is un-assigned is
    /// not, unless this says otherwise.
    pub locked: Option<bool>,
}

/// A change of whose a face is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PersonChange {
    /// It stays.
    #[default]
    Keep,
    /// It is not that of the person it has, which is remembered.
    Unassign,
    /// It is this person's.
    Assign(PersonId),
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq)]
pub enum Changed {
    /// The face as it was and as it is now.
    Done(Box<[PlacedFace; 2]>),
    /// There is no such face.
    NoFace,
    /// There is no such person.
    NoPerson(PersonId),
}

/// Changes a face as a person wishes. The index follows in the same transaction: a face that is assigned forms a template
/// from then on, one that is un-assigned or hidden does not.
pub async fn change(db: &Db, collection: CollectionId, id: FaceId, change: FaceChange) -> Result<Changed, DbErr> {
    through_deadlocks(|| change_once(db, collection, id, change)).await
}

async fn change_once(db: &Db, collection: CollectionId, id: FaceId, change: FaceChange) -> Result<Changed, DbErr> {
    let txn = db.begin().await?;
    let Some(seen) = faces::find(&txn, collection, id).await? else { return Ok(Changed::NoFace) };
    // The image, the person, then the face, as jobs lock them.
    images::lock(&txn, seen.face.image_id).await?;
    let target = match change.person {
        PersonChange::Assign(person) => Some(person),
        PersonChange::Keep | PersonChange::Unassign => None,
    };
    let held = persons::hold(&txn, collection, &target.into_iter().chain(seen.face.person_id).collect()).await?;
    if let Some(person) = target.filter(|person| !held.contains(person)) {
        return Ok(Changed::NoPerson(person));
    }
    lock(&txn, id).await?;
    let Some(before) = faces::find(&txn, collection, id).await? else { return Ok(Changed::NoFace) };
    // With a person that is being erased its faces go, whoever else they are said to be.
    if let Some(owner) = before.face.person_id.filter(|owner| !held.contains(owner))
        && persons::hold(&txn, collection, &[owner].into()).await?.is_empty()
    {
        return Ok(Changed::NoFace);
    }
    let after = before.face.changed(change);
    let sql = "UPDATE faces SET person_id = $1, assigned_by = $2, locked = $3, hidden = $4 WHERE id = $5";
    let assigned_by = after.assigned_by.map(|by| by.to_value());
    execute(
        &txn,
        sql,
        [after.person_id.into(), assigned_by.into(), after.locked.into(), after.hidden.into(), id.into()],
    )
    .await?;
    match (before.face.person_id, change.person) {
        (_, PersonChange::Assign(person)) => rejections::remove(&txn, id, person).await?,
        (Some(person), PersonChange::Unassign) => rejections::add(&txn, id, person).await?,
        (None, PersonChange::Unassign) | (_, PersonChange::Keep) => {}
    }
    let lost = before.face.template_of().filter(|person| after.template_of() != Some(*person));
    let takes_part = after.is_matchable() || after.template_of().is_some();
    if after != before.face && (takes_part || lost.is_some()) {
        rematches::request(&txn, collection, takes_part.then_some(id), lost).await?;
    }
    if after != before.face {
        pending::note_labelled(&txn, collection, "$2", id.into()).await?;
    }
    txn.commit().await?;
    let after = PlacedFace { face: after, geometry: before.geometry.clone() };
    Ok(Changed::Done(Box::new([before, after])))
}

impl face::Model {
    /// The row after a change by hand.
    fn changed(&self, change: FaceChange) -> Self {
        let mut face = self.clone();
        let person = match change.person {
            PersonChange::Keep => face.person_id,
            PersonChange::Unassign => None,
            PersonChange::Assign(person) => Some(person),
        };
        if change.person != PersonChange::Keep {
            face.person_id = person;
            face.assigned_by = person.map(|_| AssignedBy::User);
            face.locked = person.is_some();
        }
        face.locked = change.locked.unwrap_or(face.locked);
        face.hidden = change.hidden.unwrap_or(face.hidden);
        face
    }
}

async fn lock(txn: &impl ConnectionTrait, id: FaceId) -> Result<(), DbErr> {
    let sql = "SELECT count(*) AS n FROM (SELECT id FROM faces WHERE id = $1 {for update}) AS locked";
    count(txn, sql, [id.into()]).await?;
    Ok(())
}

#[cfg(test)]
mod tests;
