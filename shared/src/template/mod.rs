//! What a person's faces say together: which of them fit the others, and how like the person a new face is.
//!
//! A face alone may be another person's, by a wrong label. So one that is like none of the person's other faces is doubted and
//! decides nothing. Of the others the nearest counts, or their mean where a new face is nearer to that.

#[cfg(test)]
mod tests;

use crate::catalogue::{Calibration, Metric};
use crate::embedding::Embedding;
use crate::ids::FaceId;

/// Of two faces that disagree either may be the wrong one.
pub const FEWEST: usize = 3;
/// So many faces, the newest, say which faces fit and form the mean: their pairs are compared each time.
pub const NEWEST: usize = 64;
/// The mean's cosine counts for this much more than the nearest face's at most: more gains nothing (with LFW, enrolling 3 to 8
/// faces, 0.06 identifies as many as no limit does), and so much below a threshold nobody needs to be looked at again.
const MEAN_GAIN: f32 = 0.06;
/// The same for a distance, as a part of it: 0.06 at dlib's threshold of 0.6, whatever a pipeline's distances are.
const MEAN_SHARE: f32 = 0.1;
/// How often a stranger's face may be taken for one that fits.
const STRANGER_RATE: f64 = 0.01;

/// How many comparisons a person of so many faces stands for: each face is one chance of a false match, and so is their mean.
pub fn comparisons(faces: usize) -> usize {
    faces + usize::from(faces >= FEWEST)
}

/// What the mean of a person's faces counts for at most, where the nearest of them has this score.
pub fn most_by_mean(face_score: f32, metric: Metric) -> f32 {
    match metric {
        Metric::Cosine => face_score + MEAN_GAIN,
        Metric::Euclidean => 1.0 - (1.0 - face_score) * (1.0 - MEAN_SHARE),
    }
}

/// The score of the nearest face below which no mean lifts a person to `floor`.
pub fn least_for(floor: f32, metric: Metric) -> f32 {
    match metric {
        Metric::Cosine => floor - MEAN_GAIN,
        Metric::Euclidean => 1.0 - (1.0 - floor) / (1.0 - MEAN_SHARE),
    }
}

/// A person's faces, as they were judged together.
#[derive(Clone, Debug)]
pub struct Template {
    metric: Metric,
    faces: Vec<Judged>,
    /// Of the faces that fit; none where too few do.
    mean: Option<Embedding>,
}

#[derive(Clone, Debug)]
struct Judged {
    id: FaceId,
    embedding: Embedding,
    /// One of [`NEWEST`].
    is_new: bool,
    is_doubted: bool,
}

/// How like a person a face is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likeness {
    /// What is decided by: at least `face_score`, at most [`most_by_mean`] of it.
    pub score: f32,
    /// The nearest face that is not doubted.
    pub face: FaceId,
    /// Its score.
    pub face_score: f32,
}

impl Template {
    /// Judges a person's faces, one model's vectors and its metric, the newest first. `None` where there are fewer than [`FEWEST`]: then
    /// each speaks for itself.
    ///
    /// A face fits where another one is like it as a stranger's would be in one of a hundred cases. Two looks of a person, of
    /// two faces each, all fit. Where more than half do not, the person is taken as it is: nothing says which ones are wrong.
    pub fn of(faces: Vec<(FaceId, Embedding)>, calibration: &Calibration, metric: Metric) -> Option<Self> {
        if faces.len() < FEWEST {
            return None;
        }
        let judged = |(at, (id, embedding))| Judged { id, embedding, is_new: at < NEWEST, is_doubted: false };
        let mut faces: Vec<Judged> = faces.into_iter().enumerate().map(judged).collect();
        let newest = faces.len().min(NEWEST);
        let enough = calibration.threshold_for_gallery(STRANGER_RATE, newest - 1).score;
        let fits: Vec<bool> = (0..faces.len())
            .map(|at| {
                let mut others = faces[..newest].iter().enumerate().filter(|(other, _)| *other != at);
                others.any(|(_, other)| other.embedding.score(&faces[at].embedding, metric) >= enough)
            })
            .collect();
        if fits[..newest].iter().filter(|fits| **fits).count() * 2 < newest {
            return Some(Self { metric, faces, mean: None });
        }
        faces.iter_mut().zip(fits).for_each(|(face, fits)| face.is_doubted = !fits);
        let fitting = faces[..newest].iter().filter(|face| !face.is_doubted).map(|face| &face.embedding);
        let mean = mean(fitting, metric);
        Some(Self { metric, faces, mean })
    }

    /// Those of the faces that are like none of the others.
    pub fn doubted(&self) -> impl Iterator<Item = FaceId> {
        self.faces.iter().filter(|face| face.is_doubted).map(|face| face.id)
    }

    /// How like the person a face is. `nearest` is the person's nearest face to it, doubted or not: of those that are older than
    /// [`NEWEST`] none else is looked at.
    pub fn likeness(&self, face: &Embedding, nearest: FaceId) -> Option<Likeness> {
        let counts = |known: &&Judged| !known.is_doubted && (known.is_new || known.id == nearest);
        let score = |known: &Embedding| face.score(known, self.metric);
        let scored = self.faces.iter().filter(counts).map(|known| (score(&known.embedding), known.id));
        let (face_score, id) = scored.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))?;
        let most = most_by_mean(face_score, self.metric);
        let by_mean = self.mean.as_ref().map_or(face_score, |mean| score(mean).min(most));
        Some(Likeness { score: face_score.max(by_mean), face: id, face_score })
    }
}

/// Of unit length for a cosine, which knows no other; none where the vectors cancel each other out.
fn mean<'a>(vectors: impl Iterator<Item = &'a Embedding>, metric: Metric) -> Option<Embedding> {
    let mut count = 0.0;
    let mut sum = vectors.fold(Vec::new(), |mut sum: Vec<f32>, vector| {
        count += 1.0;
        sum.resize(vector.dimension(), 0.0);
        sum.iter_mut().zip(vector.as_slice()).for_each(|(sum, value)| *sum += value);
        sum
    });
    match metric {
        Metric::Cosine => Embedding::normalised(sum).ok(),
        Metric::Euclidean => {
            for sum in &mut sum {
                *sum /= count;
            }
            Embedding::as_given(sum).ok()
        }
    }
}
