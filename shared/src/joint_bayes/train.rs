//! Training by expectation maximisation, with the exact posterior of each person: the likelihood never falls.

use std::collections::BTreeMap;

use super::{JointBayes, MAX_DIMENSION, Matrix};
use crate::embedding::Embedding;

/// So much of the mean variance of a component is added to the diagonals of the first covariances: what the people at hand show no
/// spread in is still possible.
const RIDGE: f64 = 1e-6;

/// What pictures of people are taken to be made of.
#[derive(Clone, Debug)]
pub struct Covariances {
    /// The mean of all vectors.
    pub mean: Vec<f64>,
    /// `S_mu`: how people differ.
    pub between: Matrix,
    /// `S_eps`: how pictures of one person differ.
    pub within: Matrix,
}

/// All that a training has to know of the vectors, whatever their number.
#[derive(Clone, Debug)]
pub struct Training {
    covariances: Covariances,
    /// Sum over all vectors of the squares of what sets them apart from their person's mean.
    scatter: Matrix,
    /// By the number of a person's pictures: how many such people there are, and the sum of the squares of their means.
    people: BTreeMap<usize, (usize, Matrix)>,
    pictures: usize,
    /// Of the covariances before each step, a picture, in nats.
    likelihoods: Vec<f64>,
}

/// What came of a training.
#[derive(Clone, Debug)]
pub struct Trained {
    /// What pairs are scored with.
    pub model: JointBayes,
    /// What it follows from.
    pub covariances: Covariances,
    /// The log-likelihood of a picture in nats, before each step and after the last.
    pub likelihoods: Vec<f64>,
}

/// Why nothing can be learnt.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TrainError {
    /// Vectors of several lengths, or too long ones.
    #[error("vectors must be of one model and have at most {MAX_DIMENSION} components")]
    Dimension,
    /// The spread of a person's pictures cannot be told in each direction, nor that of people.
    #[error(
        "{pictures} pictures of {people} people are too few for vectors of {dimension} components: there must be two people, and pictures must \
         outnumber people by that at least. Add people with several pictures"
    )]
    TooFew {
        /// Vectors.
        pictures: usize,
        /// People.
        people: usize,
        /// Components.
        dimension: usize,
    },
    /// A covariance has lost its rank.
    #[error("the vectors have no spread in some direction; add people, or pictures that differ")]
    Degenerate,
}

impl Training {
    /// Begins with the spread of the people's means and of their pictures, one list of vectors a person.
    pub fn of(people: &[Vec<Embedding>]) -> Result<Self, TrainError> {
        let vectors = || people.iter().flatten();
        let dimension = vectors().next().map_or(0, Embedding::dimension);
        if dimension > MAX_DIMENSION || vectors().any(|vector| vector.dimension() != dimension) {
            return Err(TrainError::Dimension);
        }
        let pictures = vectors().count();
        let persons = people.iter().filter(|vectors| !vectors.is_empty()).count();
        if dimension == 0 || persons < 2 || pictures < persons + dimension {
            return Err(TrainError::TooFew { pictures, people: persons, dimension });
        }
        let mean = mean_of(dimension, vectors(), &vec![0.0; dimension]);
        let mut scatter = Matrix::zero(dimension);
        let mut by_number: BTreeMap<usize, (usize, Matrix)> = BTreeMap::new();
        for vectors in people.iter().filter(|vectors| !vectors.is_empty()) {
            let own = mean_of(dimension, vectors.iter(), &mean);
            for vector in vectors {
                let apart = centred(vector, &mean).zip(&own).map(|(number, own)| number - own).collect::<Vec<_>>();
                scatter.add_square(1.0, &apart);
            }
            let (count, squares) = by_number.entry(vectors.len()).or_insert_with(|| (0, Matrix::zero(dimension)));
            *count += 1;
            squares.add_square(1.0, &own);
        }
        let ridged = |matrix: Matrix| {
            let ridge = matrix.trace() / dimension as f64 * RIDGE;
            matrix.plus(1.0, &Matrix::diagonal(dimension, ridge))
        };
        let sum = by_number.values().fold(Matrix::zero(dimension), |sum, (_, squares)| sum.plus(1.0, squares));
        let between = ridged(sum.times(1.0 / persons as f64));
        let within = ridged(scatter.clone().times(1.0 / pictures as f64));
        let covariances = Covariances { mean, between, within };
        Ok(Self { covariances, scatter, people: by_number, pictures, likelihoods: Vec::new() })
    }

    /// Goes `steps` steps at most, and no more once one gains less than `least_gain` nats a picture.
    pub fn run(mut self, steps: usize, least_gain: f64) -> Result<Trained, TrainError> {
        for _ in 0..steps {
            let (likelihood, next) = self.step()?;
            let gain = self.likelihoods.last().map_or(f64::INFINITY, |before| likelihood - before);
            self.likelihoods.push(likelihood);
            self.covariances = next;
            if gain < least_gain {
                break;
            }
        }
        let (likelihood, _) = self.step()?;
        self.likelihoods.push(likelihood);
        let model = JointBayes::of(&self.covariances).ok_or(TrainError::Degenerate)?;
        Ok(Trained { model, covariances: self.covariances, likelihoods: self.likelihoods })
    }

    /// The log-likelihood of a picture by the present covariances, and the next ones.
    ///
    /// Of a person with m pictures, whose mean is b, the posterior has with V = `S_mu` + `S_eps` / m the mean K b, K = `S_mu` V^-1, and the
    /// covariance `S_mu` - K `S_mu`; both depend on the number of pictures, not on who it is.
    fn step(&self) -> Result<(f64, Covariances), TrainError> {
        let Covariances { mean, between, within } = &self.covariances;
        let dimension = mean.len();
        let (precision, log_within) = within.inverted().ok_or(TrainError::Degenerate)?;
        let persons = self.people.values().map(|(count, _)| *count).sum::<usize>() as f64;
        let pictures = self.pictures as f64;
        // Minus twice the log-likelihood.
        let mut surprise = pictures * dimension as f64 * std::f64::consts::TAU.ln()
            + (pictures - persons) * log_within
            + precision.trace_with(&self.scatter);
        let mut of_people = Matrix::zero(dimension);
        let mut of_pictures = self.scatter.clone();
        for (number, (count, squares)) in &self.people {
            let (number, count) = (*number as f64, *count as f64);
            let spread = between.clone().plus(1.0 / number, within);
            let (inverse, log_spread) = spread.inverted().ok_or(TrainError::Degenerate)?;
            surprise += count * (dimension as f64 * number.ln() + log_spread) + inverse.trace_with(squares);
            let gain = between.product(&inverse);
            let posterior = between.clone().plus(-1.0, &gain.product(between));
            let half = gain.product(squares);
            let of_means = half.product(&gain.transposed());
            of_people.add(1.0, &of_means);
            of_people.add(count, &posterior);
            // What is left of the means beside those of the posterior: (I - K) B (I - K)'.
            let left = squares.clone().plus(-1.0, &half).plus(-1.0, &half.transposed()).plus(1.0, &of_means);
            of_pictures.add(number, &left);
            of_pictures.add(number * count, &posterior);
        }
        let next = Covariances {
            mean: mean.clone(),
            between: of_people.times(1.0 / persons).symmetric(),
            within: of_pictures.times(1.0 / pictures).symmetric(),
        };
        Ok((-0.5 * surprise / pictures, next))
    }
}

fn centred<'a>(vector: &'a Embedding, mean: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
    vector.as_slice().iter().zip(mean).map(|(number, mean)| f64::from(*number) - mean)
}

fn mean_of<'a>(dimension: usize, vectors: impl Iterator<Item = &'a Embedding>, less: &[f64]) -> Vec<f64> {
    let (mut sum, mut count) = (vec![0.0; dimension], 0);
    for vector in vectors {
        count += 1;
        sum.iter_mut().zip(centred(vector, less)).for_each(|(sum, number)| *sum += number);
    }
    sum.iter().map(|sum| sum / f64::from(count.max(1))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;

    /// The people of `scripts/joint_bayes_golden.py`: numbers without rounding, that look like no pattern.
    fn golden_people() -> Vec<Vec<Embedding>> {
        let number = |person: usize, picture: usize, at: usize| {
            let own = (person * 7 + at * 5 + person * person * at) % 13;
            let apart = (person * 3 + picture * 11 + at * 2 + person * picture * (at + 1)) % 7;
            own as f32 / 8.0 + apart as f32 / 16.0
        };
        let vector =
            |person, picture| Embedding::as_given((0..3).map(|at| number(person, picture, at)).collect()).unwrap();
        (0..12).map(|person| (0..=person % 4).map(|picture| vector(person, picture)).collect()).collect()
    }

    fn assert_near(found: &[f64], wanted: &[f64]) {
        assert_eq!(found.len(), wanted.len());
        let largest = wanted.iter().fold(0.0, |largest: f64, number| number.abs().max(largest));
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((found - wanted).abs() <= 1e-9 * largest, "{found} beside {wanted}");
        }
    }

    #[test]
    fn a_few_steps_are_those_of_the_reference() {
        let trained = Training::of(&golden_people()).unwrap().run(5, 0.0).unwrap();
        assert_near(&trained.likelihoods, &golden::LIKELIHOODS);
        assert_near(&trained.covariances.mean, &golden::MEAN);
        assert_near(trained.covariances.between.numbers(), &golden::BETWEEN);
        assert_near(trained.covariances.within.numbers(), &golden::WITHIN);
        let people = golden_people();
        let scores = [(&people[1][0], &people[1][1]), (&people[1][0], &people[2][0])];
        let scores = scores.map(|(one, other)| trained.model.score(one, other).unwrap());
        assert_near(&scores, &golden::SCORES);
    }

    /// Normally distributed numbers (Box and Muller 1958) from a fixed walk.
    struct Normal(u64);

    impl Normal {
        fn uniform(&mut self) -> f64 {
            // Knuth's MMIX.
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        }

        fn vector(&mut self, root: &[[f64; 3]; 3]) -> [f64; 3] {
            let drawn =
                [(); 3].map(|()| (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos());
            root.map(|row| row.iter().zip(drawn).map(|(factor, number)| factor * number).sum())
        }
    }

    const BETWEEN_ROOT: [[f64; 3]; 3] = [[1.5, 0.0, 0.0], [0.5, 1.0, 0.0], [-0.4, 0.3, 0.8]];
    const WITHIN_ROOT: [[f64; 3]; 3] = [[0.6, 0.0, 0.0], [-0.2, 0.5, 0.0], [0.1, 0.2, 0.4]];

    fn drawn_people(count: usize) -> Vec<Vec<Embedding>> {
        let mut normal = Normal(7);
        let mut person = |n: usize| {
            let own = normal.vector(&BETWEEN_ROOT);
            (0..=n % 6)
                .map(|_| {
                    let apart = normal.vector(&WITHIN_ROOT);
                    #[expect(clippy::cast_possible_truncation, reason = "vectors are f32")]
                    let numbers = own.iter().zip(apart).map(|(own, apart)| (0.3 + own + apart) as f32).collect();
                    Embedding::as_given(numbers).unwrap()
                })
                .collect()
        };
        (0..count).map(&mut person).collect()
    }

    #[test]
    fn the_likelihood_never_falls() {
        for people in [drawn_people(60), golden_people()] {
            let trained = Training::of(&people).unwrap().run(60, 0.0).unwrap();
            let likelihoods = &trained.likelihoods;
            assert!(likelihoods.is_sorted_by(|before, after| after - before > -1e-12), "{likelihoods:?}");
            assert!(likelihoods[likelihoods.len() - 1] > likelihoods[0] + 1e-4, "{likelihoods:?}");
        }
    }

    #[test]
    fn covariances_that_made_the_vectors_are_found_again() {
        let trained = Training::of(&drawn_people(6000)).unwrap().run(200, 1e-9).unwrap();
        let square = |root: [[f64; 3]; 3]| {
            let dot = |one: [f64; 3], other: [f64; 3]| one.iter().zip(other).map(|(a, b)| a * b).sum::<f64>();
            Matrix::of(3, root.iter().flat_map(|one| root.map(|other| dot(*one, other))).collect()).unwrap()
        };
        let Covariances { mean, between, within } = trained.covariances;
        for (found, root) in [(between, BETWEEN_ROOT), (within, WITHIN_ROOT)] {
            let wanted = square(root);
            let apart = found.clone().plus(-1.0, &wanted).largest() / wanted.largest();
            assert!(apart < 0.05, "{apart}: {:?} beside {:?}", found.numbers(), wanted.numbers());
        }
        assert!(mean.iter().all(|mean| (mean - 0.3).abs() < 0.06), "{mean:?}");
    }

    #[test]
    fn what_nothing_can_be_learnt_of_is_refused() {
        let vector = |numbers: &[f32]| Embedding::as_given(numbers.to_vec()).unwrap();
        let refused = |people: &[Vec<Embedding>]| Training::of(people).unwrap_err();
        assert_eq!(refused(&[]), TrainError::TooFew { pictures: 0, people: 0, dimension: 0 });
        let one_each: Vec<_> = (1..9u8).map(|n| vec![vector(&[f32::from(n), 1.0])]).collect();
        assert_eq!(refused(&one_each), TrainError::TooFew { pictures: 8, people: 8, dimension: 2 });
        assert_eq!(refused(&[vec![vector(&[1.0]), vector(&[1.0, 2.0])]]), TrainError::Dimension);
        // No spread along the second component: the first covariances have some of the ridge.
        let flat = vec![(1..9u8).map(|n| vector(&[f32::from(n), 0.0])).collect(), vec![vector(&[2.0, 0.0])]];
        assert!(Training::of(&flat).unwrap().run(1, 0.0).is_ok());
        let same = vec![vec![vector(&[1.0, 1.0]); 4]; 2];
        assert_eq!(Training::of(&same).unwrap().run(1, 0.0).unwrap_err(), TrainError::Degenerate);
    }
}
