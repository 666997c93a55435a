//! Square matrices of f64, as many operations on them as Joint Bayesian needs.

/// A square matrix, row by row.
#[derive(Clone, PartialEq)]
pub struct Matrix {
    side: usize,
    numbers: Vec<f64>,
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({0}x{0})", self.side)
    }
}

impl Matrix {
    /// All zero.
    pub fn zero(side: usize) -> Self {
        Self { side, numbers: vec![0.0; side * side] }
    }

    /// This number along the diagonal.
    pub fn diagonal(side: usize, number: f64) -> Self {
        let mut made = Self::zero(side);
        (0..side).for_each(|at| made.numbers[at * side + at] = number);
        made
    }

    /// Of numbers row by row; `None` where they make no square of that side.
    pub fn of(side: usize, numbers: Vec<f64>) -> Option<Self> {
        (side.checked_mul(side)? == numbers.len()).then_some(Self { side, numbers })
    }

    /// Rows, and columns.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Row by row.
    pub fn numbers(&self) -> &[f64] {
        &self.numbers
    }

    fn row(&self, at: usize) -> &[f64] {
        &self.numbers[at * self.side..(at + 1) * self.side]
    }

    /// Sum of the diagonal.
    pub fn trace(&self) -> f64 {
        self.numbers.iter().step_by(self.side + 1).sum()
    }

    /// The largest of its numbers without their signs.
    pub fn largest(&self) -> f64 {
        self.numbers.iter().fold(0.0, |largest, number| number.abs().max(largest))
    }

    /// The largest difference between a number and the one across the diagonal.
    pub fn skew(&self) -> f64 {
        let across = (0..self.side).flat_map(|row| (0..row).map(move |column| (row, column)));
        let apart = |(row, column): (usize, usize)| {
            (self.numbers[row * self.side + column] - self.numbers[column * self.side + row]).abs()
        };
        across.map(apart).fold(0.0, f64::max)
    }

    /// This one with so much of another added.
    #[must_use]
    pub fn plus(mut self, factor: f64, other: &Self) -> Self {
        self.add(factor, other);
        self
    }

    /// Adds so much of another.
    pub fn add(&mut self, factor: f64, other: &Self) {
        self.numbers.iter_mut().zip(&other.numbers).for_each(|(sum, number)| *sum += factor * number);
    }

    /// Adds so much of a vector's product with itself.
    pub fn add_square(&mut self, factor: f64, vector: &[f64]) {
        for (row, first) in self.numbers.chunks_exact_mut(self.side).zip(vector) {
            row.iter_mut().zip(vector).for_each(|(sum, second)| *sum += factor * first * second);
        }
    }

    /// Every number multiplied.
    #[must_use]
    pub fn times(mut self, factor: f64) -> Self {
        self.numbers.iter_mut().for_each(|number| *number *= factor);
        self
    }

    /// The product with another.
    #[must_use]
    pub fn product(&self, other: &Self) -> Self {
        let mut product = Self::zero(self.side);
        for (row, sums) in product.numbers.chunks_exact_mut(self.side).enumerate() {
            for (at, factor) in self.row(row).iter().enumerate() {
                sums.iter_mut().zip(other.row(at)).for_each(|(sum, number)| *sum += factor * number);
            }
        }
        product
    }

    /// Rows and columns exchanged.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let mut made = Self::zero(self.side);
        for (row, numbers) in self.numbers.chunks_exact(self.side).enumerate() {
            numbers.iter().enumerate().for_each(|(column, number)| made.numbers[column * self.side + row] = *number);
        }
        made
    }

    /// The mean with its own transpose: what rounding has set apart is brought together.
    #[must_use]
    pub fn symmetric(self) -> Self {
        let transposed = self.transposed();
        self.plus(1.0, &transposed).times(0.5)
    }

    /// The trace of the product with a symmetric one.
    pub fn trace_with(&self, other: &Self) -> f64 {
        self.numbers.iter().zip(&other.numbers).map(|(a, b)| a * b).sum()
    }

    /// What this one makes of two vectors: `one' M other`.
    pub fn between(&self, one: &[f64], other: &[f64]) -> f64 {
        let along = |row: &[f64]| row.iter().zip(other).map(|(a, b)| a * b).sum::<f64>();
        self.numbers.chunks_exact(self.side).zip(one).map(|(row, factor)| factor * along(row)).sum()
    }

    /// Inverse and logarithm of the determinant, by Cholesky's decomposition; `None` of a matrix that is not positive definite.
    pub fn inverted(&self) -> Option<(Self, f64)> {
        let lower = self.cholesky()?;
        let side = self.side;
        let log_determinant = 2.0 * (0..side).map(|at| lower.numbers[at * side + at].ln()).sum::<f64>();
        // Row by row of the lower triangle's inverse: L X = I.
        let mut half = Self::zero(side);
        for row in 0..side {
            let (done, rest) = half.numbers.split_at_mut(row * side);
            let sums = &mut rest[..side];
            sums[row] = 1.0;
            for (at, solved) in done.chunks_exact(side).enumerate() {
                let factor = lower.numbers[row * side + at];
                sums[..=at].iter_mut().zip(solved).for_each(|(sum, number)| *sum -= factor * number);
            }
            let pivot = lower.numbers[row * side + row];
            sums[..=row].iter_mut().for_each(|sum| *sum /= pivot);
        }
        Some((half.transposed().product(&half), log_determinant))
    }

    fn cholesky(&self) -> Option<Self> {
        let side = self.side;
        let mut lower = Self::zero(side);
        for row in 0..side {
            for column in 0..=row {
                let dot: f64 = lower.row(row)[..column].iter().zip(lower.row(column)).map(|(a, b)| a * b).sum();
                let left = self.numbers[row * side + column] - dot;
                lower.numbers[row * side + column] = if row == column {
                    if !left.is_finite() || left <= 0.0 {
                        return None;
                    }
                    left.sqrt()
                } else {
                    left / lower.numbers[column * side + column]
                };
            }
        }
        Some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apart(one: &Matrix, other: &Matrix) -> f64 {
        one.clone().plus(-1.0, other).largest()
    }

    /// A symmetric one with a large diagonal.
    fn definite(side: usize) -> Matrix {
        let number = |row: usize, column: usize| ((row * column + row + column) as f64).sin();
        let numbers = (0..side * side).map(|at| number(at / side, at % side)).collect();
        Matrix::of(side, numbers).unwrap().plus(1.0, &Matrix::diagonal(side, side as f64))
    }

    #[test]
    fn an_inverse_by_hand() {
        let matrix = Matrix::of(2, vec![4.0, 2.0, 2.0, 3.0]).unwrap();
        let (inverse, log_determinant) = matrix.inverted().unwrap();
        let wanted = Matrix::of(2, vec![0.375, -0.25, -0.25, 0.5]).unwrap();
        assert!(apart(&inverse, &wanted) < 1e-15, "{:?}", inverse.numbers());
        assert!((log_determinant - 8.0f64.ln()).abs() < 1e-15);
        assert!((matrix.between(&[1.0, 2.0], &[3.0, -1.0]) - 16.0).abs() < 1e-15);
    }

    #[test]
    fn a_product_with_the_inverse_is_one() {
        for side in [1, 7, 160] {
            let matrix = definite(side);
            let (inverse, _) = matrix.inverted().unwrap();
            assert!(apart(&matrix.product(&inverse), &Matrix::diagonal(side, 1.0)) < 1e-12, "{side}");
            assert!(inverse.skew() < 1e-12);
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_none() {
        for numbers in [vec![1.0, 2.0, 2.0, 1.0], vec![0.0; 4], vec![f64::NAN, 0.0, 0.0, 1.0]] {
            assert!(Matrix::of(2, numbers).unwrap().inverted().is_none());
        }
        assert!(Matrix::of(2, vec![1.0; 3]).is_none());
    }

    #[test]
    fn rows_and_columns() {
        let matrix = Matrix::of(2, vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!(matrix.product(&matrix).numbers(), [7.0, 10.0, 15.0, 22.0]);
        assert_eq!(matrix.transposed().numbers(), [1.0, 3.0, 2.0, 4.0]);
        assert_eq!(matrix.clone().symmetric().numbers(), [1.0, 2.5, 2.5, 4.0]);
        assert_eq!((matrix.trace().to_bits(), matrix.skew().to_bits()), (5f64.to_bits(), 1f64.to_bits()));
        let mut sum = Matrix::zero(2);
        sum.add_square(2.0, &[1.0, 3.0]);
        assert_eq!(sum.numbers(), [2.0, 6.0, 6.0, 18.0]);
    }
}
