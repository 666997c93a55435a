//! The figures of a comparison: pure, and quadratic in the number of faces.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use shared::comparison::{ComparisonReport, MovedDecisions, Outcome, OutcomeCounts, PipelineFigures, TarAtFar};
use shared::db::reprocess::comparison::{Disagreement, Labelled, Nearest};
use shared::embedding::Embedding;
use shared::ids::PersonId;
use shared::job::Decision;

use crate::thresholds::Thresholds;

/// False accept rates at which true accept rates are told.
const RATES: [f64; 2] = [1e-2, 1e-3];
/// A rate is told where so many pairs of two persons are expected beyond its threshold, and there are so many of one person:
/// with ten, one standard deviation of the count is a third of it.
const LEAST: f64 = 10.0;
/// Cells of a histogram of cosines: 3e-5 each.
const CELLS: usize = 1 << 16;
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

/// Compares each face with each by both pipelines; `None` where it was told to stop.
pub(super) fn compare(
    faces: &Faces,
    labelled_faces: usize,
    names: [&str; 2],
    thresholds: &[Option<Thresholds<'_>>; 2],
    stopped: &AtomicBool,
) -> Option<(ComparisonReport, Vec<Disagreement>)> {
    let persons: Vec<PersonId> = faces.labels.iter().map(|label| label.person_id).collect();
    let from = Scores::of(&persons, &faces.from, stopped)?;
    let to = Scores::of(&persons, &faces.to, stopped)?;
    let counts = persons.iter().fold(BTreeMap::<PersonId, usize>::new(), |mut counts, person| {
        *counts.entry(*person).or_default() += 1;
        counts
    });
    let has_mate: Vec<bool> = persons.iter().map(|person| counts[person] > 1).collect();
    let by = [
        Judged { scores: &from, thresholds: thresholds[0].as_ref() },
        Judged { scores: &to, thresholds: thresholds[1].as_ref() },
    ];
    let figures = |n: usize| by[n].figures(names[n], &persons, &has_mate);
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

/// What one pipeline's scores are.
struct Scores {
    genuine: Histogram,
    impostor: Histogram,
    /// Of each face the nearest other one, with the cosine; absent where there is one face only.
    nearest: Vec<Option<(usize, f32)>>,
}

impl Scores {
    fn of(persons: &[PersonId], vectors: &[Embedding], stopped: &AtomicBool) -> Option<Self> {
        let mut scores =
            Self { genuine: Histogram::new(), impostor: Histogram::new(), nearest: vec![None; vectors.len()] };
        for (one, vector) in vectors.iter().enumerate() {
            if stopped.load(Ordering::Relaxed) {
                return None;
            }
            for (other, second) in vectors.iter().enumerate().skip(one + 1) {
                let cosine = dot(vector.as_slice(), second.as_slice());
                let pairs = if persons[one] == persons[other] { &mut scores.genuine } else { &mut scores.impostor };
                pairs.add(cosine);
                for (face, beside) in [(one, other), (other, one)] {
                    let nearest = &mut scores.nearest[face];
                    if nearest.is_none_or(|(_, best)| cosine > best) {
                        *nearest = Some((beside, cosine));
                    }
                }
            }
        }
        Some(scores)
    }

    fn tar(&self) -> Vec<TarAtFar> {
        let tell = |far: f64| {
            let (genuine, impostor) = (self.genuine.total as f64, self.impostor.total as f64);
            let why_not = if impostor * far < LEAST {
                Some(format!("{impostor} pairs of two persons are too few: {} are needed", (LEAST / far).round()))
            } else if genuine < LEAST {
                Some(format!("{genuine} pairs of one person are too few: {LEAST} are needed"))
            } else {
                None
            };
            if why_not.is_some() {
                return TarAtFar { far, tar: None, cosine: None, why_not };
            }
            let cell = self.impostor.threshold(far);
            let tar = self.genuine.from(cell) as f64 / genuine;
            TarAtFar { far, tar: Some(tar), cosine: Some(Histogram::cosine(cell)), why_not: None }
        };
        RATES.into_iter().map(tell).collect()
    }
}

/// Scores with what they mean.
struct Judged<'a> {
    scores: &'a Scores,
    thresholds: Option<&'a Thresholds<'a>>,
}

impl Judged<'_> {
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
        self.scores.nearest[face].is_some_and(|(other, _)| persons[other] == persons[face])
    }

    /// What the face is when it is looked up among all others; without a threshold, whoever is nearest counts as a match.
    fn outcome(&self, face: usize, persons: &[PersonId]) -> Outcome {
        let decision = match (self.scores.nearest[face], self.thresholds) {
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
        let (person_id, score) =
            self.scores.nearest[face].map_or((None, 0.0), |(other, score)| (Some(persons[other]), score));
        Nearest { outcome: self.outcome(face, persons), score: score.into(), person_id }
    }

    /// How far the score lies above the threshold.
    fn margin(&self, face: usize) -> f32 {
        let score = self.scores.nearest[face].map_or(0.0, |(_, score)| score);
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

/// How many pairs have which cosine.
struct Histogram {
    cells: Vec<u64>,
    total: u64,
}

impl Histogram {
    fn new() -> Self {
        Self { cells: vec![0; CELLS], total: 0 }
    }

    fn add(&mut self, cosine: f32) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is clamped to the cells")]
        let cell = (f64::midpoint(f64::from(cosine), 1.0) * CELLS as f64).clamp(0.0, (CELLS - 1) as f64) as usize;
        self.cells[cell] += 1;
        self.total += 1;
    }

    /// The lowest cell at or above which no more than this share lies; one behind the last where each is too many.
    fn threshold(&self, share: f64) -> usize {
        let most = share * self.total as f64;
        let mut above = 0;
        for cell in (0..CELLS).rev() {
            above += self.cells[cell];
            if above as f64 > most {
                return cell + 1;
            }
        }
        0
    }

    /// How many lie in the cell and above.
    fn from(&self, cell: usize) -> u64 {
        self.cells[cell..].iter().sum()
    }

    /// Where a cell begins.
    #[expect(clippy::cast_possible_truncation, reason = "a cosine is within -1..1")]
    fn cosine(cell: usize) -> f32 {
        (cell as f64 / CELLS as f64 * 2.0 - 1.0) as f32
    }
}

/// The cosine of unit vectors. Eight sums at once: one after the other no processor would add them in parallel.
fn dot(one: &[f32], other: &[f32]) -> f32 {
    const LANES: usize = 8;
    let (chunks, rest) = one.as_chunks::<LANES>();
    let (other_chunks, other_rest) = other.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in chunks.iter().zip(other_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + rest.iter().zip(other_rest).map(|(a, b)| a * b).sum::<f32>()
}
