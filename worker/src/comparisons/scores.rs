//! What one pipeline says of each two faces: pure, and quadratic in their number.

use std::sync::atomic::{AtomicBool, Ordering};

use shared::catalogue::Metric;
use shared::comparison::TarAtFar;
use shared::embedding::Embedding;
use shared::face_index::matches::candidates;
use shared::ids::PersonId;

use crate::jobs::identify::RUNNER_UP;

/// False accept rates at which true accept rates are told.
const RATES: [f64; 2] = [1e-2, 1e-3];
/// A rate is told where so many pairs of two persons are expected beyond its threshold, and there are so many of one person:
/// with ten, one standard deviation of the count is a third of it.
const LEAST: f64 = 10.0;
/// Cells of a histogram: 3e-5 each of cosines, and as narrow of short distances.
const CELLS: usize = 1 << 16;

/// What one pipeline's scores are.
pub(super) struct Scores {
    pub(super) genuine: Histogram,
    pub(super) impostor: Histogram,
    /// Of each face the nearest other one of each of the persons that are nearest to it, with the score, best first: as many as
    /// a job looks up.
    pub(super) near: Vec<Vec<(usize, f32)>>,
}

impl Scores {
    pub(super) fn of(
        persons: &[PersonId],
        vectors: &[Embedding],
        metric: Metric,
        stopped: &AtomicBool,
    ) -> Option<Self> {
        let near = vec![Vec::new(); vectors.len()];
        let mut scores = Self { genuine: Histogram::new(metric), impostor: Histogram::new(metric), near };
        for (one, vector) in vectors.iter().enumerate() {
            if stopped.load(Ordering::Relaxed) {
                return None;
            }
            for (other, second) in vectors.iter().enumerate().skip(one + 1) {
                let score = match metric {
                    Metric::Cosine => dot(vector.as_slice(), second.as_slice()),
                    Metric::Euclidean => vector.score(second, metric),
                };
                let pairs = if persons[one] == persons[other] { &mut scores.genuine } else { &mut scores.impostor };
                pairs.add(score);
                for (face, beside) in [(one, other), (other, one)] {
                    keep_near(&mut scores.near[face], persons, (beside, score));
                }
            }
        }
        Some(scores)
    }

    pub(super) fn tar(&self) -> Vec<TarAtFar> {
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
            TarAtFar { far, tar: Some(tar), cosine: Some(self.impostor.score(cell)), why_not: None }
        };
        RATES.into_iter().map(tell).collect()
    }
}

/// Keeps a face among the nearest, if it is its person's nearest and no others are nearer.
fn keep_near(near: &mut Vec<(usize, f32)>, persons: &[PersonId], (face, score): (usize, f32)) {
    let is_full = near.len() >= candidates(RUNNER_UP);
    if is_full && near.last().is_some_and(|(_, last)| *last >= score) {
        return;
    }
    match near.iter().position(|(known, _)| persons[*known] == persons[face]) {
        Some(at) if near[at].1 >= score => return,
        Some(at) => {
            near.remove(at);
        }
        None if is_full => {
            near.pop();
        }
        None => {}
    }
    let at = near.partition_point(|(_, known)| *known >= score);
    near.insert(at, (face, score));
}

/// How many pairs have which score.
pub(super) struct Histogram {
    metric: Metric,
    cells: Vec<u64>,
    pub(super) total: u64,
}

impl Histogram {
    fn new(metric: Metric) -> Self {
        Self { metric, cells: vec![0; CELLS], total: 0 }
    }

    fn add(&mut self, score: f32) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is clamped to the cells")]
        let cell = (self.metric.place_of(score.into()) * CELLS as f64).clamp(0.0, (CELLS - 1) as f64) as usize;
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
    #[expect(clippy::cast_possible_truncation, reason = "a score is of 32 bits")]
    fn score(&self, cell: usize) -> f32 {
        self.metric.score_at(cell as f64 / CELLS as f64) as f32
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
