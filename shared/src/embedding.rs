//! Embedding: a model's vector of one face.

use std::fmt;

use crate::catalogue::Metric;

/// Longest vector that is taken, as its length: how far apart two of these are is a number of 32 bits.
const LONGEST: f64 = 1e15;
/// Sums side by side: one after the other no processor would add them in parallel.
const LANES: usize = 8;

/// A finite vector, as one model's recognizer gave it for one face: of unit L2 length but where its entry says otherwise.
///
/// Vectors of two models must never be compared: whoever stores or searches them names the pipeline beside them.
#[derive(Clone, PartialEq)]
pub struct Embedding(Vec<f32>);

/// Why numbers are not an embedding.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EmbeddingError {
    /// A component is NaN, infinite or as good as that, or all are zero.
    #[error("the model gave a vector that is zero or not finite")]
    Degenerate,
    /// Stored bytes are no whole number of f32.
    #[error("a stored vector has {0} bytes, which is no whole number of 4-byte floats")]
    Length(usize),
}

impl Embedding {
    /// Scales `values` to unit length.
    pub fn normalised(mut values: Vec<f32>) -> Result<Self, EmbeddingError> {
        let norm = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
        if !norm.is_finite() || norm < 1e-12 {
            return Err(EmbeddingError::Degenerate);
        }
        #[expect(clippy::cast_possible_truncation, reason = "components of a unit vector fit an f32")]
        for value in &mut values {
            *value = (f64::from(*value) / norm) as f32;
        }
        Ok(Self(values))
    }

    /// Keeps the length of `values`.
    pub fn as_given(values: Vec<f32>) -> Result<Self, EmbeddingError> {
        let length = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
        if length > 0.0 && length <= LONGEST { Ok(Self(values)) } else { Err(EmbeddingError::Degenerate) }
    }

    /// The components.
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// How many components there are.
    pub fn dimension(&self) -> usize {
        self.0.len()
    }

    /// Its L2 length.
    pub fn length(&self) -> f32 {
        self.0.iter().map(|v| v * v).sum::<f32>().sqrt()
    }

    /// How alike two vectors of the same model are by its metric: 1 at most, and more is more alike.
    pub fn score(&self, other: &Self, metric: Metric) -> f32 {
        match metric {
            Metric::Cosine => self.cosine(other),
            Metric::Euclidean => 1.0 - self.distance(other),
        }
    }

    fn distance(&self, other: &Self) -> f32 {
        debug_assert_eq!(self.0.len(), other.0.len(), "vectors of two models were compared");
        let (chunks, rest) = self.0.as_chunks::<LANES>();
        let (other_chunks, other_rest) = other.0.as_chunks::<LANES>();
        let mut sums = [0.0f32; LANES];
        for (a, b) in chunks.iter().zip(other_chunks) {
            for lane in 0..LANES {
                sums[lane] += (a[lane] - b[lane]) * (a[lane] - b[lane]);
            }
        }
        let rest: f32 = rest.iter().zip(other_rest).map(|(a, b)| (a - b) * (a - b)).sum();
        (sums.iter().sum::<f32>() + rest).sqrt()
    }

    /// Cosine similarity in -1..1 of two vectors of the same model, which are of unit length.
    pub fn cosine(&self, other: &Self) -> f32 {
        debug_assert_eq!(self.0.len(), other.0.len(), "vectors of two models were compared");
        self.0.iter().zip(&other.0).map(|(a, b)| a * b).sum()
    }

    /// Little-endian f32 bytes, the form that is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// Reads the form that [`Embedding::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EmbeddingError> {
        let (chunks, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(EmbeddingError::Length(bytes.len()));
        }
        Self::as_given(chunks.iter().map(|c| f32::from_le_bytes(*c)).collect())
    }
}

impl fmt::Debug for Embedding {
    /// Shows the dimension only: vectors are biometric and must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Embedding({} components)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn unit_length_survives_storage(values in prop::collection::vec(-100f32..100.0, 1..300)) {
            prop_assume!(values.iter().any(|v| v.abs() > 1e-3));
            let embedding = Embedding::normalised(values).unwrap();
            prop_assert!((embedding.cosine(&embedding) - 1.0).abs() < 1e-4);
            let stored = Embedding::from_bytes(&embedding.to_bytes()).unwrap();
            prop_assert!(embedding.as_slice().iter().zip(stored.as_slice()).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }

    #[test]
    fn a_score_follows_the_metric() {
        let vector = |values: &[f32]| Embedding::as_given(values.to_vec()).unwrap();
        let (one, other) = (vector(&[3.0, 0.0]), vector(&[0.0, 4.0]));
        assert!((one.score(&other, Metric::Euclidean) + 4.0).abs() < 1e-6);
        assert!((one.score(&one, Metric::Euclidean) - 1.0).abs() < 1e-6);
        let unit = |values: &[f32]| Embedding::normalised(values.to_vec()).unwrap();
        assert!((unit(&[1.0, 1.0]).score(&unit(&[2.0, 0.0]), Metric::Cosine) - 0.5_f32.sqrt()).abs() < 1e-6);
        // Nineteen components: two whole chunks, and a rest.
        let long = |from: u8| vector(&(from..from + 19).map(f32::from).collect::<Vec<_>>());
        assert!((long(1).score(&long(3), Metric::Euclidean) - (1.0 - (19.0_f32 * 4.0).sqrt())).abs() < 1e-5);
    }

    #[test]
    fn lengths_are_kept() {
        let long = Embedding::as_given(vec![3.0, 4.0]).unwrap();
        assert_eq!(Embedding::from_bytes(&long.to_bytes()).unwrap().as_slice(), [3.0, 4.0]);
        for values in [vec![0.0; 4], vec![f32::NAN, 1.0], vec![1e16, 0.0], vec![]] {
            assert_eq!(Embedding::as_given(values), Err(EmbeddingError::Degenerate));
        }
    }

    #[test]
    fn degenerate_vectors_are_refused() {
        for values in [vec![0.0; 4], vec![f32::NAN, 1.0], vec![f32::INFINITY, 1.0], vec![]] {
            assert_eq!(Embedding::normalised(values), Err(EmbeddingError::Degenerate));
        }
        assert_eq!(Embedding::from_bytes(&[0; 5]), Err(EmbeddingError::Length(5)));
    }

    #[test]
    fn debug_shows_no_component() {
        let text = format!("{:?}", Embedding::normalised(vec![1.0, 2.0]).unwrap());
        assert_eq!(text, "Embedding(2 components)");
    }
}
