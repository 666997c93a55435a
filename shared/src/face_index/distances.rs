//! Bounds on the scores of distances, from bounds on dot products.
//!
//! ```text
//! |q - x|² = |q|² + |x|² - 2 q.x
//! ```
//!
//! so that a bound takes the square of a row's length and nothing else beside the bound on its dot product. A model's vectors may
//! lie far from zero and near each other, where this is a small difference of large numbers: so all are taken from the first one
//! that came, which changes no distance.

use std::ops::Range;

use super::codes::norm;

/// What is known of the rows.
#[derive(Debug)]
pub(super) struct Distances {
    /// What vectors are taken from.
    origin: Vec<f32>,
    /// The square of each row's length, taken from there.
    squares: Vec<f32>,
    /// The largest length, taken from there, of all vectors that were ever here.
    length: f64,
}

impl Distances {
    /// Of no rows yet; `origin` is the first of them.
    pub(super) fn new(origin: &[f32]) -> Self {
        Self { origin: origin.to_vec(), squares: Vec::new(), length: 0.0 }
    }

    /// A vector as its dot products are to be bounded.
    pub(super) fn moved(&self, vector: &[f32]) -> Vec<f32> {
        vector.iter().zip(&self.origin).map(|(value, origin)| value - origin).collect()
    }

    /// Takes the next row, which was moved.
    #[expect(clippy::cast_possible_truncation, reason = "the slack covers the rounding")]
    pub(super) fn push(&mut self, moved: &[f32]) {
        let norm = norm(moved);
        self.squares.push((norm * norm) as f32);
        self.length = self.length.max(norm);
    }

    /// Moves the last row into the place of the removed one.
    pub(super) fn swap_remove(&mut self, row: usize) {
        self.squares.swap_remove(row);
    }

    /// What the bounds of a moved query's scores have in common, as long as no row is added: the square of its length, less what
    /// the sums here and the distance itself may be off by in f32, of n squares each (see `codes`).
    #[expect(clippy::cast_possible_truncation, reason = "the slack covers the rounding")]
    pub(super) fn common(&self, query: &[f32]) -> f32 {
        let norm = norm(query);
        let slack = (query.len() as f64 + 32.0) * f64::from(f32::EPSILON) * (norm + self.length).powi(2);
        (norm * norm - slack) as f32
    }

    /// Makes numbers that the dot products of some rows do not exceed into such of their scores.
    pub(super) fn scores(&self, common: f32, rows: Range<usize>, upper: &mut [f32]) {
        for (upper, square) in upper.iter_mut().zip(&self.squares[rows]) {
            // What is no number bounds nothing: it counts as a distance of 0.
            *upper = 1.0 - (common + square - 2.0 * *upper).max(0.0).sqrt();
        }
    }
}
