//! How like a person a face is: an index says who is near by single faces, and here those who may decide something are looked
//! at with all of their faces ([`crate::template`]). Every kind of job goes this way, so that a face gets the same answer from
//! each.

#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

use sea_orm::ConnectionTrait;

use super::{FaceIndexError, Gallery, Hit};
use crate::catalogue::{Calibration, Metric};
use crate::db::templates;
use crate::embedding::Embedding;
use crate::ids::{FaceId, PersonId};
use crate::template::{NEWEST, Template, most_by_mean};

/// So many more persons are asked for than are wanted: some may overtake those before them. Of strangers, at most one in some ten
/// searches is as near to the threshold as that takes.
const MORE: usize = 4;
/// Persons whose faces are read at a time: at most a few megabytes.
const PERSONS: usize = 128;
/// So many comparisons, a millisecond of them, take less time than to have another thread do them.
const FEW_COMPARISONS: usize = 2_000;

/// A person near a face.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Match {
    /// Who.
    pub person: PersonId,
    /// What is decided by.
    pub score: f32,
    /// The nearest of the person's faces that count.
    pub face: FaceId,
    /// Its score.
    pub face_score: f32,
}

/// How many persons an index is to be asked for, where `k` are wanted.
pub fn candidates(k: usize) -> usize {
    k + MORE
}

/// What an index found for each query, judged by all faces of those persons who may reach `floor`, best first, equal scores in
/// the order of their faces' ids. Whoever cannot reach it keeps the score of the nearest face.
pub async fn judged(
    conn: &impl ConnectionTrait,
    gallery: &Gallery,
    queries: Vec<Embedding>,
    hits: Vec<Vec<Hit>>,
    (calibration, floor): (Option<&Calibration>, f32),
) -> Result<Vec<Vec<Match>>, FaceIndexError> {
    let found: Vec<Vec<Match>> = hits.into_iter().map(|hits| hits.into_iter().map(Match::of).collect()).collect();
    // Without it nothing says how alike two strangers are.
    let Some(calibration) = calibration else { return Ok(found) };
    let mut judging = Judging { queries, found, calibration: calibration.clone(), floor, metric: gallery.metric };
    let near: BTreeSet<(PersonId, FaceId)> = judging.near().map(|found| (found.person, found.face)).collect();
    let persons = Vec::from_iter(near.iter().map(|(person, _)| *person).collect::<BTreeSet<_>>());
    for some in persons.chunks(PERSONS) {
        let faces: Vec<_> = near.iter().filter(|(person, _)| some.binary_search(person).is_ok()).copied().collect();
        let read = templates::newest(conn, &gallery.pipeline, &faces).await?;
        let is_short = judging.comparisons(&read) <= FEW_COMPARISONS;
        let judge = move || judging.by(read);
        judging = if is_short { judge() } else { tokio::task::spawn_blocking(judge).await? };
    }
    for found in &mut judging.found {
        found.sort_by(Match::order);
    }
    Ok(judging.found)
}

/// What was found, while it is judged.
struct Judging {
    queries: Vec<Embedding>,
    found: Vec<Vec<Match>>,
    calibration: Calibration,
    floor: f32,
    metric: Metric,
}

impl Judging {
    fn near(&self) -> impl Iterator<Item = &Match> {
        self.found.iter().flatten().filter(|found| found.is_near(self.floor, self.metric))
    }

    /// How many vectors are compared at most.
    fn comparisons(&self, read: &Templates) -> usize {
        let templates = read.values().map(|faces| faces.len() * faces.len().min(NEWEST)).sum::<usize>();
        templates + self.near().filter_map(|found| read.get(&found.person)).map(Vec::len).sum::<usize>()
    }

    /// By what was read of some persons.
    fn by(mut self, read: Templates) -> Self {
        let judged = |(person, faces)| Some((person, Template::of(faces, &self.calibration, self.metric)?));
        let templates: HashMap<PersonId, Template> = read.into_iter().filter_map(judged).collect();
        for (query, found) in self.queries.iter().zip(&mut self.found) {
            let near = found.iter_mut().filter(|found| found.is_near(self.floor, self.metric));
            near.for_each(|found| found.judge(query, templates.get(&found.person)));
        }
        self
    }
}

/// Faces of persons.
type Templates = HashMap<PersonId, Vec<(FaceId, Embedding)>>;

/// The nearest of a person's faces, as an index would find it.
pub fn nearest(query: &Embedding, person: PersonId, faces: &[(FaceId, Embedding)], metric: Metric) -> Option<Hit> {
    let hits = faces.iter().map(|(face, vector)| Hit { person, face: *face, score: query.score(vector, metric) });
    hits.max_by(|a, b| a.score.total_cmp(&b.score).then(b.face.cmp(&a.face)))
}

impl Match {
    /// By the nearest face alone.
    pub fn of(hit: Hit) -> Self {
        Self { person: hit.person, score: hit.score, face: hit.face, face_score: hit.score }
    }

    /// Takes the person's other faces into account, where there are several.
    pub fn judge(&mut self, query: &Embedding, template: Option<&Template>) {
        if let Some(likeness) = template.and_then(|template| template.likeness(query, self.face)) {
            let (score, face, face_score) = (likeness.score, likeness.face, likeness.face_score);
            *self = Self { person: self.person, score, face, face_score };
        }
    }

    /// Whether the person's other faces may lift it to there.
    fn is_near(&self, floor: f32, metric: Metric) -> bool {
        most_by_mean(self.score, metric) >= floor
    }

    /// Best first.
    fn order(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then(self.face.cmp(&other.face))
    }
}
