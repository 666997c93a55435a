//! Which faces are compared, where there are more than can be.

use std::collections::BTreeMap;

use shared::db::reprocess::comparison::Labelled;
use shared::ids::{FaceId, PersonId};

use crate::vision::test_crop::splitmix64;

/// Faces that are compared at most, each with each: eight million pairs.
pub(super) const MOST: usize = 4_000;
/// Faces of one person among them: a person of thousands would leave no room for others.
const MOST_OF_PERSON: usize = 20;

/// Up to `most` of the faces, whole persons by a chance that `seed` decides: those with several faces first, since only they
/// have pairs to be recognised by.
pub(super) fn sample(faces: Vec<Labelled>, seed: u128, most: usize) -> Vec<Labelled> {
    if faces.len() <= most {
        return faces;
    }
    let mut persons: BTreeMap<PersonId, Vec<FaceId>> = BTreeMap::new();
    for face in faces {
        persons.entry(face.person_id).or_default().push(face.face_id);
    }
    let mut persons: Vec<(PersonId, Vec<FaceId>)> = persons.into_iter().collect();
    persons.sort_by_cached_key(|(person, faces)| (faces.len() < 2, chance(seed, person.0.as_u128())));
    let mut chosen = Vec::with_capacity(most);
    for (person_id, mut faces) in persons {
        faces.sort_by_cached_key(|face| chance(seed, face.0.as_u128()));
        let room = (most - chosen.len()).min(MOST_OF_PERSON);
        chosen.extend(faces.into_iter().take(room).map(|face_id| Labelled { face_id, person_id }));
        if chosen.len() == most {
            break;
        }
    }
    chosen
}

/// A number that looks like chance, the same each time.
fn chance(seed: u128, id: u128) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "both halves are taken")]
    let mut state = (seed ^ id) as u64 ^ ((seed ^ id) >> 64) as u64;
    splitmix64(&mut state)
}
