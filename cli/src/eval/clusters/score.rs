//! Pairwise precision and recall: of the pairs of faces put together, how many are one person's, and the other way round.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use shared::ids::{ClusterId, FaceId};

/// Who each face is, people by number.
pub(super) type Truth = HashMap<FaceId, usize>;

/// Shares of 0..1; 1 where there is no pair.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Score {
    pub(super) precision: f64,
    pub(super) recall: f64,
    /// Their harmonic mean.
    pub(super) f1: f64,
}

/// Numbers the people.
pub(super) fn truth(faces: impl Iterator<Item = (FaceId, String)>) -> Truth {
    let mut people: HashMap<String, usize> = HashMap::new();
    faces
        .map(|(face, person)| {
            let next = people.len();
            (face, *people.entry(person).or_insert(next))
        })
        .collect()
}

/// How many clusters there are.
pub(super) fn clusters(of_face: &HashMap<FaceId, ClusterId>) -> usize {
    of_face.values().collect::<HashSet<_>>().len()
}

/// Scores the faces of people that have at least `pictures` of them.
pub(super) fn score(truth: &Truth, of_face: &HashMap<FaceId, ClusterId>, pictures: usize) -> Score {
    let mut of_person: HashMap<usize, u64> = HashMap::new();
    for person in truth.values() {
        *of_person.entry(*person).or_default() += 1;
    }
    of_person.retain(|_, faces| *faces >= pictures as u64);
    let mut of_cluster: HashMap<ClusterId, u64> = HashMap::new();
    let mut of_both: HashMap<(ClusterId, usize), u64> = HashMap::new();
    for (face, person) in truth.iter().filter(|(_, person)| of_person.contains_key(person)) {
        // A face alone makes no pair.
        if let Some(cluster) = of_face.get(face) {
            *of_cluster.entry(*cluster).or_default() += 1;
            *of_both.entry((*cluster, *person)).or_default() += 1;
        }
    }
    let right = pairs(of_both.values());
    let share = |of: u64| if of == 0 { 1.0 } else { right as f64 / of as f64 };
    let (precision, recall) = (share(pairs(of_cluster.values())), share(pairs(of_person.values())));
    let f1 = if right == 0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) };
    Score { precision, recall, f1 }
}

fn pairs<'a>(counts: impl Iterator<Item = &'a u64>) -> u64 {
    counts.map(|n| n * (n - 1) / 2).sum()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn counts_pairs() {
        let face = |n| FaceId(Uuid::from_u128(n));
        let cluster = |n| ClusterId(Uuid::from_u128(n));
        let people = [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "c")];
        let truth = truth(people.iter().map(|(n, person)| (face(*n), (*person).to_owned())));
        let of_face = HashMap::from([(face(1), cluster(1)), (face(2), cluster(1)), (face(4), cluster(1))]);
        let all = score(&truth, &of_face, 1);
        assert!((all.precision - 1.0 / 3.0).abs() < 1e-9, "1-2 of 1-2, 1-4, 2-4");
        assert!((all.recall - 1.0 / 3.0).abs() < 1e-9, "1-2 of 1-2, 1-3, 2-3");
        let many = score(&truth, &of_face, 3);
        assert!((many.precision - 1.0).abs() < 1e-9, "b has one picture only");
        assert_eq!(clusters(&of_face), 1);
        assert_eq!(score(&truth, &HashMap::new(), 1), Score { precision: 1.0, recall: 0.0, f1: 0.0 });
    }
}
