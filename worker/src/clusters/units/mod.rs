//! Which faces lie together: agglomerative clustering by average linkage, face by face. Pure: vectors in, merges out.
//!
//! A unit is a cluster or a face alone. Two units belong together when the mean score of their faces, one of each, is at
//! least [`Limits::between`]: much for two single faces, where a stranger may be as like by chance, and less the more faces
//! the mean is of. The best pair merges first, and a merge is never taken back by itself, so that what was shown once stays. The
//! mean cosine of all pairs of two units is the product of the sums of their vectors over the product of their sizes, so that a
//! unit is one vector however many faces it has, and a new face costs one search through the units. Of distances the mean of the
//! squares counts, which takes the sum of the vectors' squared lengths beside that.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};

use shared::catalogue::{Calibration, Metric};
use shared::embedding::Embedding;
use shared::face_index::{FaceIndexError, Neighbours};
use shared::ids::{ClusterId, FaceId, ImageId, PersonId};
use uuid::Uuid;

/// Units that are looked at around one, nearest first.
const NEAREST: usize = 64;
/// How often a face may find a stranger that is like it, over the whole library.
const STRANGER_RATE: f64 = 0.01;
/// A library is taken to have at least this many faces.
const SMALLEST_LIBRARY: usize = 10_000;
/// The false accept rate of one comparison at the least mean of very many: chance has no part in that mean, so the size of
/// the library has none either.
const MANY_PAIRS_FAR: f64 = 1e-4;
/// How fast the limit falls from the one to the other with the number of pairs. `face-id eval clusters` on LFW: a faster
/// fall lets strangers in (pairwise precision 0.985 at 1), a slower one leaves single faces out (recall 0.92 at 0.5).
const FALL: f32 = -2.0 / 3.0;

/// How alike units must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// The score of two faces.
    pub alone: f32,
    /// The mean score of very many pairs.
    pub together: f32,
}

impl Limits {
    /// For a library of that many faces, rounded up to a power of ten so that the limits seldom move.
    pub fn of(calibration: &Calibration, faces: usize) -> Self {
        let mut library = SMALLEST_LIBRARY;
        while library < faces {
            library = library.saturating_mul(10);
        }
        let rate = STRANGER_RATE / library as f64;
        Self { alone: calibration.threshold_at(rate).score, together: calibration.threshold_at(MANY_PAIRS_FAR).score }
    }

    /// The least mean score of two units of so many faces.
    pub fn between(&self, a: usize, b: usize) -> f32 {
        self.together + (self.alone - self.together) * (a as f32 * b as f32).powf(FALL)
    }
}

/// The name of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnitId {
    /// A cluster.
    Cluster(ClusterId),
    /// A face that lies alone.
    Face(FaceId),
}

impl UnitId {
    fn uuid(self) -> Uuid {
        match self {
            Self::Cluster(id) => id.0,
            Self::Face(id) => id.0,
        }
    }
}

/// A face, as far as it matters here.
#[derive(Clone, Debug)]
pub struct Member {
    /// Which one.
    pub face: FaceId,
    /// Two faces of one image are two people.
    pub image: ImageId,
    /// Its vector.
    pub embedding: Embedding,
    /// The persons that it is not.
    pub not: Vec<PersonId>,
    /// Which side of each separation it is on.
    pub sides: Vec<(Uuid, i32)>,
}

/// Faces that lie together.
#[derive(Clone, Debug)]
struct Unit {
    id: UnitId,
    sum: Vec<f32>,
    /// Of the vectors' lengths.
    squares: f64,
    faces: usize,
    images: HashSet<ImageId>,
    person: Option<PersonId>,
    not: BTreeSet<PersonId>,
    sides: BTreeMap<Uuid, i32>,
    version: u64,
}

impl Unit {
    fn empty(id: UnitId, person: Option<PersonId>) -> Self {
        Self {
            id,
            sum: Vec::new(),
            squares: 0.0,
            faces: 0,
            images: HashSet::new(),
            person,
            not: BTreeSet::new(),
            sides: BTreeMap::new(),
            version: 0,
        }
    }

    fn add(&mut self, member: &Member) {
        self.add_sum(member.embedding.as_slice());
        self.squares += member.embedding.as_slice().iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
        self.faces += 1;
        self.images.insert(member.image);
        self.not.extend(&member.not);
        self.sides.extend(member.sides.iter().copied());
    }

    fn add_sum(&mut self, sum: &[f32]) {
        if self.sum.is_empty() {
            self.sum = vec![0.0; sum.len()];
        }
        for (all, one) in self.sum.iter_mut().zip(sum) {
            *all += one;
        }
    }

    fn absorb(&mut self, other: Self) {
        self.add_sum(&other.sum);
        self.squares += other.squares;
        self.faces += other.faces;
        self.images.extend(other.images);
        self.person = self.person.or(other.person);
        self.not.extend(other.not);
        self.sides.extend(other.sides);
        self.version += 1;
    }

    /// The mean score over all pairs of faces, one of each: of distances that of their squares.
    fn mean_score(&self, other: &Self, metric: Metric) -> f32 {
        match metric {
            Metric::Cosine => self.mean_cosine(other),
            Metric::Euclidean => 1.0 - self.mean_distance(other),
        }
    }

    /// The mean square is that between the means, and how far the faces of each lie around theirs. What is left of the latter for
    /// one face alone is nothing but rounding.
    #[expect(clippy::cast_possible_truncation, reason = "a distance of vectors of f32")]
    fn mean_distance(&self, other: &Self) -> f32 {
        let (n, m) = (self.faces as f64, other.faces as f64);
        let (mut between, mut squares) = (0.0, [0.0; 2]);
        for (a, b) in self.sum.iter().zip(&other.sum) {
            let (a, b) = (f64::from(*a) / n, f64::from(*b) / m);
            between += (a - b).powi(2);
            squares[0] += a * a;
            squares[1] += b * b;
        }
        let around =
            |unit: &Self, n: f64, mean: f64| if unit.faces > 1 { (unit.squares / n - mean).max(0.0) } else { 0.0 };
        (between + around(self, n, squares[0]) + around(other, m, squares[1])).sqrt() as f32
    }

    /// What units are found by; none where the vectors cancel each other out, which are near nothing then.
    fn centre(&self, metric: Metric) -> Option<Embedding> {
        let centre = match metric {
            Metric::Cosine => Embedding::normalised(self.sum.clone()),
            Metric::Euclidean => Embedding::as_given(self.sum.iter().map(|sum| sum / self.faces as f32).collect()),
        };
        centre.ok()
    }

    /// The mean cosine over all pairs of faces, one of each.
    fn mean_cosine(&self, other: &Self) -> f32 {
        let product: f32 = self.sum.iter().zip(&other.sum).map(|(a, b)| a * b).sum();
        product / (self.faces as f32 * other.faces as f32)
    }

    fn may_join(&self, other: &Self) -> bool {
        let one_person = match (self.person, other.person) {
            (Some(a), Some(b)) => a == b,
            (Some(person), None) => !other.not.contains(&person),
            (None, Some(person)) => !self.not.contains(&person),
            (None, None) => true,
        };
        let (few, many) = if self.images.len() < other.images.len() { (self, other) } else { (other, self) };
        one_person
            && few.images.is_disjoint(&many.images)
            && self.sides.iter().all(|(separation, side)| other.sides.get(separation).is_none_or(|s| s == side))
    }

    /// What stays a unit when two merge: the named one, then the larger, then the older.
    fn rank(&self) -> (bool, bool, usize, std::cmp::Reverse<UnitId>) {
        let is_cluster = matches!(self.id, UnitId::Cluster(_));
        (self.person.is_some(), is_cluster, self.faces, std::cmp::Reverse(self.id))
    }
}

/// Two units that may merge; the greatest one first.
#[derive(Debug, PartialEq)]
struct Pair {
    /// By how much they are above their limit.
    margin: f32,
    units: [UnitId; 2],
    versions: [u64; 2],
}

impl Eq for Pair {}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.margin.total_cmp(&other.margin).then_with(|| other.units.cmp(&self.units))
    }
}

/// A merge that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// The cluster that they are now.
    pub into: ClusterId,
    /// It was made by this merge.
    pub is_new: bool,
    /// What became part of it; two units where the cluster is new.
    pub parts: [Option<UnitId>; 2],
}

/// The units of one collection, as one pipeline's vectors see them.
#[derive(Debug)]
pub struct Units {
    metric: Metric,
    by_id: HashMap<UnitId, Unit>,
    names: HashMap<Uuid, UnitId>,
    near: Neighbours,
    faces: usize,
}

impl Units {
    /// None yet, of a pipeline with that metric.
    pub fn new(metric: Metric) -> Self {
        let (by_id, names) = (HashMap::new(), HashMap::new());
        Self { metric, by_id, names, near: Neighbours::new(metric), faces: 0 }
    }

    /// How many faces there are.
    pub fn faces(&self) -> usize {
        self.faces
    }

    /// The person of a cluster.
    pub fn person(&self, cluster: ClusterId) -> Option<PersonId> {
        self.by_id.get(&UnitId::Cluster(cluster))?.person
    }

    /// Puts a unit in as it is stored, in place of the one of that name.
    ///
    /// # Errors
    /// A vector has another dimension than the others.
    pub fn put(&mut self, id: UnitId, person: Option<PersonId>, members: &[Member]) -> Result<(), FaceIndexError> {
        self.remove(id);
        let mut unit = Unit::empty(id, person);
        for member in members {
            unit.add(member);
        }
        self.insert(unit)
    }

    /// Adds a face to a unit, which begins with its first face: for reading what is stored face by face.
    ///
    /// # Errors
    /// A vector has another dimension than the others.
    pub fn add(&mut self, id: UnitId, person: Option<PersonId>, member: &Member) -> Result<(), FaceIndexError> {
        let mut unit = self.take(id).unwrap_or_else(|| Unit::empty(id, person));
        unit.add(member);
        self.insert(unit)
    }

    /// Takes a unit out, if it is there.
    pub fn remove(&mut self, id: UnitId) {
        self.take(id);
    }

    fn take(&mut self, id: UnitId) -> Option<Unit> {
        let unit = self.by_id.remove(&id)?;
        self.names.remove(&id.uuid());
        self.near.remove(id.uuid());
        self.faces -= unit.faces;
        Some(unit)
    }

    fn insert(&mut self, unit: Unit) -> Result<(), FaceIndexError> {
        self.faces += unit.faces;
        if let Some(centre) = unit.centre(self.metric) {
            self.near.set(unit.id.uuid(), &centre)?;
        }
        self.names.insert(unit.id.uuid(), unit.id);
        self.by_id.insert(unit.id, unit);
        Ok(())
    }

    /// Adds new faces, each alone, and merges what now belongs together; returns the merges in their order. `name` gives
    /// the ids of new clusters.
    ///
    /// # Errors
    /// A vector has another dimension than the others.
    pub fn arrive(
        &mut self,
        new: &[Member],
        limits: Limits,
        mut name: impl FnMut() -> ClusterId,
    ) -> Result<Vec<Merge>, FaceIndexError> {
        let ids: Vec<UnitId> = new.iter().map(|member| UnitId::Face(member.face)).collect();
        for (id, member) in ids.iter().zip(new) {
            self.put(*id, None, std::slice::from_ref(member))?;
        }
        let mut pairs = BinaryHeap::new();
        self.look_around(&ids, limits, &mut pairs)?;
        let mut merges = Vec::new();
        while let Some(pair) = pairs.pop() {
            let [a, b] = pair.units;
            let (Some(one), Some(other)) = (self.by_id.get(&a), self.by_id.get(&b)) else { continue };
            // A pair of what has grown since was looked at again.
            if [one.version, other.version] != pair.versions || !one.may_join(other) {
                continue;
            }
            let [stays, goes] = if one.rank() > other.rank() { [a, b] } else { [b, a] };
            let (Some(mut unit), Some(gone)) = (self.take(stays), self.take(goes)) else { continue };
            let version = unit.version.max(gone.version);
            unit.absorb(gone);
            unit.version = version + 1;
            let (into, is_new, parts) = match stays {
                UnitId::Cluster(id) => (id, false, [Some(goes), None]),
                UnitId::Face(_) => (name(), true, [Some(stays), Some(goes)]),
            };
            unit.id = UnitId::Cluster(into);
            self.insert(unit)?;
            merges.push(Merge { into, is_new, parts });
            self.look_around(&[UnitId::Cluster(into)], limits, &mut pairs)?;
        }
        Ok(merges)
    }

    /// Finds the pairs of each of these units that may merge.
    fn look_around(&self, ids: &[UnitId], limits: Limits, pairs: &mut BinaryHeap<Pair>) -> Result<(), FaceIndexError> {
        let around: Vec<(&Unit, Embedding)> = ids
            .iter()
            .filter_map(|id| self.by_id.get(id))
            .filter_map(|unit| Some((unit, unit.centre(self.metric)?)))
            .collect();
        let queries: Vec<Embedding> = around.iter().map(|(_, centre)| centre.clone()).collect();
        for ((unit, _), found) in around.iter().zip(self.near.nearest(&queries, NEAREST)?) {
            for (uuid, _) in found {
                let Some(other) = self.names.get(&uuid).and_then(|id| self.by_id.get(id)) else { continue };
                let margin = unit.mean_score(other, self.metric) - limits.between(unit.faces, other.faces);
                if other.id == unit.id || margin < 0.0 || !unit.may_join(other) {
                    continue;
                }
                let [a, b] = if unit.id < other.id { [unit, other] } else { [other, unit] };
                pairs.push(Pair { margin, units: [a.id, b.id], versions: [a.version, b.version] });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
