//! The figures of a comparison, pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

use shared::catalogue::{Calibration, Metric};
use shared::comparison::{ComparisonReport, MovedDecisions, Outcome, OutcomeCounts, PipelineFigures};
use shared::db::reprocess::comparison::{Disagreement, Labelled, Nearest};
use shared::embedding::Embedding;
use shared::face_index::Hit;
use shared::face_index::matches::Match;
use shared::ids::{FaceId, PersonId};
use shared::job::Decision;
use shared::template::{NEWEST, Template, most_by_mean};

use super::scores::Scores;
use crate::thresholds::Thresholds;

/// Disagreements that are kept.
const DISAGREEMENTS: usize = 50;

/// Faces with the vectors of both pipelines.
#[derive(Debug, Default)]
pub(super) struct Faces {
    labels: Vec<Labelled>,
    from: Vec<Embedding>,
    to: Vec<Embedding>,
}

impl Faces {
    pub(super) fn push(&mut self, label: Labelled, from: Embedding, to: Embedding) {
        self.labels.push(label);
        self.from.push(from);
        self.to.push(to);
    }
}

/// Compares each face with each by both pipelines, of these names and metrics; `None` where it was told to stop.
pub(super) fn compare(
    faces: &Faces,
    labelled_faces: usize,
    pipelines: [(&str, Metric); 2],
    thresholds: &[Option<Thresholds<'_>>; 2],
    stopped: &AtomicBool,
) -> Option<(ComparisonReport, Vec<Disagreement>)> {
    let persons: Vec<PersonId> = faces.labels.iter().map(|label| label.person_id).collect();
    let metrics = pipelines.map(|(_, metric)| metric);
    let from = Scores::of(&persons, &faces.from, metrics[0], stopped)?;
    let to = Scores::of(&persons, &faces.to, metrics[1], stopped)?;
    let counts = persons.iter().fold(BTreeMap::<PersonId, usize>::new(), |mut counts, person| {
        *counts.entry(*person).or_default() += 1;
        counts
    });
    let has_mate: Vec<bool> = persons.iter().map(|person| counts[person] > 1).collect();
    let members = Members::of(&faces.labels);
    let by = [
        Judged::of(&from, (&members, &faces.from, metrics[0]), thresholds[0].as_ref(), stopped)?,
        Judged::of(&to, (&members, &faces.to, metrics[1]), thresholds[1].as_ref(), stopped)?,
    ];
    let figures = |n: usize| by[n].figures(pipelines[n].0, &persons, &has_mate);
    let report = ComparisonReport {
        labelled_faces,
        faces: persons.len(),
        persons: counts.len(),
        faces_with_mates: has_mate.iter().filter(|has| **has).count(),
        from: figures(0),
        to: figures(1),
        moved: moved(&by, &persons),
    };
    Some((report, disagreements(&by, faces, &persons)))
}

/// Which of the faces are whose.
struct Members<'a> {
    labels: &'a [Labelled],
    /// The newest first.
    of: BTreeMap<PersonId, Vec<usize>>,
    places: HashMap<FaceId, usize>,
}

impl<'a> Members<'a> {
    fn of(labels: &'a [Labelled]) -> Self {
        let mut of: BTreeMap<PersonId, Vec<usize>> = BTreeMap::new();
        for (face, label) in labels.iter().enumerate() {
            of.entry(label.person_id).or_default().push(face);
        }
        for faces in of.values_mut() {
            faces.sort_unstable_by_key(|face| Reverse(labels[*face].face_id));
        }
        let places = labels.iter().enumerate().map(|(face, label)| (label.face_id, face)).collect();
        Self { labels, of, places }
    }

    /// A person's faces without the one that is looked up, judged together as a job would; the nearest is among them.
    fn template(
        &self,
        vectors: &[Embedding],
        (face, nearest): (usize, usize),
        (calibration, metric): (&Calibration, Metric),
    ) -> Option<Template> {
        let others = self.of.get(&self.labels[nearest].person_id)?.iter().copied().filter(|other| *other != face);
        let mut faces: Vec<usize> = others.take(NEWEST).collect();
        if !faces.contains(&nearest) {
            faces.push(nearest);
        }
        let faces = faces.into_iter().map(|face| (self.labels[face].face_id, vectors[face].clone())).collect();
        Template::of(faces, calibration, metric)
    }
}

/// Scores with what they mean.
struct Judged<'a> {
    scores: &'a Scores,
    thresholds: Option<&'a Thresholds<'a>>,
    /// Of each face the nearest one that counts of the person that is most like it, with the score; absent where there is one
    /// face only.
    nearest: Vec<Option<(usize, f32)>>,
}

impl<'a> Judged<'a> {
    /// Judges the persons near each face as `shared::face_index::matches` does for a job; `None` where it was told to stop.
    fn of(
        scores: &'a Scores,
        (members, vectors, metric): (&Members<'_>, &[Embedding], Metric),
        thresholds: Option<&'a Thresholds<'a>>,
        stopped: &AtomicBool,
    ) -> Option<Self> {
        let by = thresholds.and_then(|thresholds| Some((thresholds.calibration()?, thresholds.uncertain_cosine)));
        let mut nearest = Vec::with_capacity(vectors.len());
        for (face, near) in scores.near.iter().enumerate() {
            if stopped.load(Ordering::Relaxed) {
                return None;
            }
            let judged = near.iter().map(|(other, score)| {
                let label = members.labels[*other];
                let mut found = Match::of(Hit { person: label.person_id, face: label.face_id, score: *score });
                // As far below whoever it is, nobody needs a second look.
                if let Some((calibration, _)) = by.filter(|(_, floor)| most_by_mean(*score, metric) >= *floor) {
                    let template = members.template(vectors, (face, *other), (calibration, metric));
                    found.judge(&vectors[face], template.as_ref());
                }
                (members.places[&found.face], found.score)
            });
            // Of equal ones the first.
            nearest.push(judged.reduce(|best, next| if next.1 > best.1 { next } else { best }));
        }
        Some(Self { scores, thresholds, nearest })
    }

    fn figures(&self, pipeline: &str, persons: &[PersonId], has_mate: &[bool]) -> PipelineFigures {
        let with_mates = has_mate.iter().filter(|has| **has).count();
        let is_found = |face: usize| has_mate[face] && self.is_right(face, persons);
        let found = (0..persons.len()).filter(|face| is_found(*face)).count();
        PipelineFigures {
            pipeline: pipeline.to_owned(),
            genuine_pairs: self.scores.genuine.total,
            impostor_pairs: self.scores.impostor.total,
            tar: self.scores.tar(),
            rank_1: (with_mates > 0).then(|| found as f64 / with_mates as f64),
            match_cosine: self.thresholds.map(|thresholds| thresholds.match_cosine),
            outcomes: self.thresholds.map(|_| self.outcomes(persons)),
        }
    }

    fn outcomes(&self, persons: &[PersonId]) -> OutcomeCounts {
        let mut counts = OutcomeCounts::default();
        for face in 0..persons.len() {
            *match self.outcome(face, persons) {
                Outcome::Right => &mut counts.right,
                Outcome::Wrong => &mut counts.wrong,
                Outcome::Uncertain => &mut counts.uncertain,
                Outcome::Unknown => &mut counts.unknown,
            } += 1;
        }
        counts
    }

    fn is_right(&self, face: usize, persons: &[PersonId]) -> bool {
        self.nearest[face].is_some_and(|(other, _)| persons[other] == persons[face])
    }

    /// What the face is when it is looked up among all others; without a threshold, whoever is nearest counts as a match.
    fn outcome(&self, face: usize, persons: &[PersonId]) -> Outcome {
        let decision = match (self.nearest[face], self.thresholds) {
            (None, _) => Decision::Unknown,
            (Some(_), None) => Decision::Match,
            (Some((_, score)), Some(thresholds)) => thresholds.decide(score),
        };
        match decision {
            Decision::Match if self.is_right(face, persons) => Outcome::Right,
            Decision::Match => Outcome::Wrong,
            Decision::Uncertain => Outcome::Uncertain,
            Decision::Unknown => Outcome::Unknown,
        }
    }

    fn nearest(&self, face: usize, persons: &[PersonId]) -> Nearest {
        let (person_id, score) = self.nearest[face].map_or((None, 0.0), |(other, score)| (Some(persons[other]), score));
        Nearest { outcome: self.outcome(face, persons), score: score.into(), person_id }
    }

    /// How far the score lies above the threshold.
    fn margin(&self, face: usize) -> f32 {
        let score = self.nearest[face].map_or(0.0, |(_, score)| score);
        score - self.thresholds.map_or(0.0, |thresholds| thresholds.match_cosine)
    }
}

/// Where both have a threshold, how many faces become what.
fn moved(by: &[Judged<'_>; 2], persons: &[PersonId]) -> Vec<MovedDecisions> {
    if by.iter().any(|judged| judged.thresholds.is_none()) {
        return Vec::new();
    }
    let mut counts: BTreeMap<(Outcome, Outcome), usize> = BTreeMap::new();
    for face in 0..persons.len() {
        let (from, to) = (by[0].outcome(face, persons), by[1].outcome(face, persons));
        if from != to {
            *counts.entry((from, to)).or_default() += 1;
        }
    }
    counts.into_iter().map(|((from, to), faces)| MovedDecisions { from, to, faces }).collect()
}

/// The worst first: where one names another person, then where one names nobody, then by how far apart they are.
fn disagreements(by: &[Judged<'_>; 2], faces: &Faces, persons: &[PersonId]) -> Vec<Disagreement> {
    let mut found: Vec<(bool, bool, f32, usize)> = Vec::new();
    for face in 0..persons.len() {
        let outcomes = [by[0].outcome(face, persons), by[1].outcome(face, persons)];
        if outcomes[0] != outcomes[1] {
            let apart = (by[0].margin(face) - by[1].margin(face)).abs();
            let has = |outcome| outcomes.contains(&outcome);
            found.push((has(Outcome::Wrong), has(Outcome::Right), apart, face));
        }
    }
    found.sort_by(|a, b| (b.0, b.1).cmp(&(a.0, a.1)).then(b.2.total_cmp(&a.2)).then(a.3.cmp(&b.3)));
    let shown = found.into_iter().take(DISAGREEMENTS).map(|(_, _, _, face)| Disagreement {
        face_id: faces.labels[face].face_id,
        from: by[0].nearest(face, persons),
        to: by[1].nearest(face, persons),
    });
    shown.collect()
}
