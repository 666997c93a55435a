//! Joint Bayesian (Chen, Cao, Wang, Wen, Sun: Bayesian Face Revisited, 2012): a vector is a person's plus what differs between
//! that person's pictures, both normally distributed, and a pair's score says how much likelier it is that both have the
//! person in common.

mod file;
#[cfg(test)]
#[expect(clippy::unreadable_literal, reason = "they are written by a script")]
mod golden;
mod matrix;
mod npy;
mod train;

pub use file::{FileError, MAX_FILE_BYTES};
pub use matrix::Matrix;
pub use npy::NpyError;
pub use train::{Covariances, TrainError, Trained, Training};

use crate::embedding::Embedding;

/// Most components of a vector: beyond that a file has more than 64 MB, and a step of the training takes minutes.
pub const MAX_DIMENSION: usize = 2048;
/// So much of its largest number a matrix may lack of being symmetric.
const MAX_SKEW: f64 = 1e-6;

/// What a pair of vectors is scored with.
#[derive(Clone, PartialEq)]
pub struct JointBayes {
    /// Subtracted from each vector.
    mean: Vec<f64>,
    a: Matrix,
    g: Matrix,
}

impl std::fmt::Debug for JointBayes {
    // The mean is one of people's faces.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JointBayes({} components)", self.dimension())
    }
}

/// A vector that is ready to be scored with many others.
#[derive(Clone, PartialEq)]
pub struct Prepared {
    /// Less the model's mean.
    centred: Vec<f64>,
    /// x'A x, its own part of every score.
    own: f64,
}

impl std::fmt::Debug for Prepared {
    // It is one person's face.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prepared({} components)", self.centred.len())
    }
}

/// Why numbers are no model.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ModelError {
    /// Lengths that do not belong together.
    #[error(
        "a mean of {mean} components does not go with matrices of {a} and {g} rows; from 1 to {MAX_DIMENSION} are possible"
    )]
    Sizes {
        /// Of the mean.
        mean: usize,
        /// Of A.
        a: usize,
        /// Of G.
        g: usize,
    },
    /// NaN or infinite.
    #[error("a number is not finite")]
    NotFinite,
    /// A score would depend on the order of a pair.
    #[error("the matrix {0} is not symmetric")]
    NotSymmetric(char),
}

/// Vectors of another model were to be compared.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the Joint Bayesian model is made for vectors of {wanted} components, and these have {found}")]
pub struct DimensionError {
    /// The model's.
    pub wanted: usize,
    /// The vectors'.
    pub found: usize,
}

impl JointBayes {
    /// Of the mean that is subtracted and the matrices A and G.
    pub fn new(mean: Vec<f64>, a: Matrix, g: Matrix) -> Result<Self, ModelError> {
        let sizes = (mean.len(), a.side(), g.side());
        if sizes.0 != sizes.1 || sizes.0 != sizes.2 || !(1..=MAX_DIMENSION).contains(&sizes.0) {
            return Err(ModelError::Sizes { mean: sizes.0, a: sizes.1, g: sizes.2 });
        }
        if !mean.iter().chain(a.numbers()).chain(g.numbers()).all(|number| number.is_finite()) {
            return Err(ModelError::NotFinite);
        }
        for (name, matrix) in [('A', &a), ('G', &g)] {
            if matrix.skew() > MAX_SKEW * matrix.largest() {
                return Err(ModelError::NotSymmetric(name));
            }
        }
        Ok(Self { mean, a: a.symmetric(), g: g.symmetric() })
    }

    /// Of the covariances of what is a person's and of what differs between a person's pictures; `None` where the latter is not
    /// positive definite.
    ///
    /// With S the sum of both, the covariance of a pair of one person's pictures has the blocks S and `S_mu`. Its inverse has F + G
    /// and G, which follow from those of `S_eps` + 2 `S_mu` (the pair's sum) and `S_eps` (its difference).
    pub fn of(covariances: &Covariances) -> Option<Self> {
        let Covariances { mean, between, within } = covariances;
        let (of_sum, _) = within.clone().plus(2.0, between).inverted()?;
        let (of_difference, _) = within.inverted()?;
        let (of_one, _) = within.clone().plus(1.0, between).inverted()?;
        let a = of_one.plus(-0.5, &of_sum).plus(-0.5, &of_difference);
        let g = of_sum.plus(-1.0, &of_difference).times(0.5);
        Self::new(mean.clone(), a.symmetric(), g.symmetric()).ok()
    }

    /// Components of the vectors that it is made for.
    pub fn dimension(&self) -> usize {
        self.mean.len()
    }

    /// x1'A x1 + x2'A x2 - 2 x1'G x2 of the two vectors less the mean: twice the logarithm of how much likelier the pair is one
    /// person's than two people's, less a constant. More is more alike; which of the two comes first makes no difference.
    ///
    /// # Errors
    /// The vectors have another number of components.
    pub fn score(&self, one: &Embedding, other: &Embedding) -> Result<f64, DimensionError> {
        Ok(self.score_of(&self.prepared(one)?, &self.prepared(other)?))
    }

    /// The part of a vector's scores that is the same whichever it is compared with.
    ///
    /// # Errors
    /// The vector has another number of components.
    pub fn prepared(&self, vector: &Embedding) -> Result<Prepared, DimensionError> {
        if vector.dimension() != self.dimension() {
            return Err(DimensionError { wanted: self.dimension(), found: vector.dimension() });
        }
        let centred: Vec<f64> =
            vector.as_slice().iter().zip(&self.mean).map(|(number, mean)| f64::from(*number) - mean).collect();
        Ok(Prepared { own: self.a.between(&centred, &centred), centred })
    }

    /// As [`JointBayes::score`], of vectors that this model has prepared.
    pub fn score_of(&self, one: &Prepared, other: &Prepared) -> f64 {
        one.own + other.own - 2.0 * self.g.between(&one.centred, &other.centred)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(numbers: &[f32]) -> Embedding {
        Embedding::as_given(numbers.to_vec()).unwrap()
    }

    #[test]
    fn a_score_is_the_ratio_of_the_two_normal_densities() {
        // One component: S_mu = 3, S_eps = 1, a mean of 0.5. With x = 1.5 and y = 0 (1 and -0.5 without the mean), by hand:
        // one person's pair has the covariance [4 3; 3 4] with the inverse [4 -3; -3 4] / 7, two people's 1/4 each.
        let covariances =
            Covariances { mean: vec![0.5], between: Matrix::diagonal(1, 3.0), within: Matrix::diagonal(1, 1.0) };
        let model = JointBayes::of(&covariances).unwrap();
        let (x, y) = (1.0, -0.5);
        let same: f64 = (4.0 * x * x - 6.0 * x * y + 4.0 * y * y) / 7.0;
        let wanted = (x * x + y * y) / 4.0 - same;
        let found = model.score(&vector(&[1.5]), &vector(&[1e-30])).unwrap();
        assert!((found - wanted).abs() < 1e-12, "{found} beside {wanted}");
        assert!(model.score(&vector(&[1.5]), &vector(&[1.4])).unwrap() > found);
    }

    #[test]
    fn the_order_of_a_pair_makes_no_difference() {
        let between = Matrix::of(3, vec![2.0, 0.5, 0.1, 0.5, 1.0, 0.2, 0.1, 0.2, 0.7]).unwrap();
        let within = Matrix::of(3, vec![0.6, 0.1, 0.0, 0.1, 0.4, 0.1, 0.0, 0.1, 0.5]).unwrap();
        let model = JointBayes::of(&Covariances { mean: vec![0.1, -0.2, 0.0], between, within }).unwrap();
        let (one, other) = (vector(&[0.3, 0.9, -0.2]), vector(&[-0.5, 0.1, 0.7]));
        let scores = [(&one, &other), (&other, &one)].map(|(a, b)| model.score(a, b).unwrap());
        assert!((scores[0] - scores[1]).abs() < 1e-12, "{scores:?}");
        assert_eq!(model.score(&one, &vector(&[1.0])), Err(DimensionError { wanted: 3, found: 1 }));
    }

    #[test]
    fn numbers_that_are_no_model_are_refused() {
        let one = || Matrix::diagonal(2, 1.0);
        let new = |mean: Vec<f64>, a, g| JointBayes::new(mean, a, g).unwrap_err();
        assert_eq!(new(vec![0.0], one(), one()), ModelError::Sizes { mean: 1, a: 2, g: 2 });
        assert_eq!(new(vec![], Matrix::zero(0), Matrix::zero(0)), ModelError::Sizes { mean: 0, a: 0, g: 0 });
        assert_eq!(new(vec![0.0, f64::NAN], one(), one()), ModelError::NotFinite);
        let skewed = Matrix::of(2, vec![1.0, 0.5, 0.0, 1.0]).unwrap();
        assert_eq!(new(vec![0.0; 2], one(), skewed), ModelError::NotSymmetric('G'));
    }
}
