//! A model from a pair of `NumPy` files, as other programs keep A and G (format 1.0 and 2.0 of `numpy.lib.format`).

use super::{JointBayes, MAX_DIMENSION, Matrix, ModelError};

const MARK: &[u8; 6] = b"\x93NUMPY";

/// Why bytes are no matrix.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NpyError {
    /// It begins otherwise.
    #[error("it is no .npy file of format 1.0 or 2.0")]
    Mark,
    /// Another type or shape.
    #[error("it holds {0}; a square matrix of little-endian f64 ('<f8') of at most {MAX_DIMENSION} rows was expected")]
    Content(String),
    /// Cut short, or longer.
    #[error("it has {found} bytes of numbers, and its shape asks for {wanted}")]
    Length {
        /// What its shape asks for.
        wanted: usize,
        /// What it has.
        found: usize,
    },
    /// The numbers make no sense.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl JointBayes {
    /// Of the files of A and G. Nothing is subtracted from vectors.
    pub fn from_npy(a: &[u8], g: &[u8]) -> Result<Self, NpyError> {
        let [a, g] = [matrix(a)?, matrix(g)?];
        Ok(Self::new(vec![0.0; a.side()], a, g)?)
    }
}

fn matrix(bytes: &[u8]) -> Result<Matrix, NpyError> {
    let rest = bytes.strip_prefix(MARK).ok_or(NpyError::Mark)?;
    let (length, rest) = match rest {
        [1, 0, low, high, rest @ ..] => (usize::from(u16::from_le_bytes([*low, *high])), rest),
        [2, 0, a, b, c, d, rest @ ..] => {
            (usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX), rest)
        }
        _ => return Err(NpyError::Mark),
    };
    let (head, numbers) = rest.split_at_checked(length).ok_or(NpyError::Mark)?;
    let head = str::from_utf8(head).map_err(|_| NpyError::Mark)?;
    let side = side(head).ok_or_else(|| NpyError::Content(head.trim_end().chars().take(200).collect()))?;
    let wanted = side * side * 8;
    if numbers.len() != wanted {
        return Err(NpyError::Length { wanted, found: numbers.len() });
    }
    let numbers = numbers.as_chunks::<8>().0.iter().map(|number| f64::from_le_bytes(*number)).collect();
    Ok(Matrix::of(side, numbers).unwrap_or_else(|| Matrix::zero(0)))
}

/// Rows of the square that a head describes. The order of its axes is the same to what is symmetric.
fn side(head: &str) -> Option<usize> {
    let value = |key: &str| Some(head.split_once(key)?.1.trim_start().strip_prefix(':')?.trim_start());
    if !value("'descr'")?.starts_with("'<f8'") {
        return None;
    }
    let (shape, _) = value("'shape'")?.strip_prefix('(')?.split_once(')')?;
    let (rows, columns) = shape.split_once(',')?;
    let number = |text: &str| text.trim().parse::<usize>().ok();
    let rows = number(rows)?;
    (number(columns.trim_end_matches(','))? == rows && (1..=MAX_DIMENSION).contains(&rows)).then_some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedding::Embedding;

    fn npy(head: &str, numbers: &[f64]) -> Vec<u8> {
        let head = format!("{head}\n");
        let length = u16::try_from(head.len()).unwrap();
        let mut bytes = [MARK.as_slice(), &[1, 0], &length.to_le_bytes(), head.as_bytes()].concat();
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        bytes
    }

    const HEAD: &str = "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2), }";

    #[test]
    fn a_pair_of_files_scores_by_the_formula() {
        let a = npy(HEAD, &[-1.0, 0.5, 0.5, -2.0]);
        let g = npy(HEAD, &[-3.0, 0.25, 0.25, -1.0]);
        let model = JointBayes::from_npy(&a, &g).unwrap();
        let [x, y] = [[1.0, 2.0], [3.0, -1.0]].map(|numbers| Embedding::as_given(numbers.to_vec()).unwrap());
        // x'Ax = -1 + 2 - 8, y'Ay = -9 - 3 - 2, x'Gy = -9 - 0.25 + 1.5 + 2.
        let wanted = -7.0 - 14.0 - 2.0 * -5.75;
        assert!((model.score(&x, &y).unwrap() - wanted).abs() < 1e-12);
    }

    #[test]
    fn other_files_are_refused() {
        let numbers = [1.0, 0.0, 0.0, 1.0];
        let good = npy(HEAD, &numbers);
        let read = |bytes: &[u8]| JointBayes::from_npy(bytes, &good).unwrap_err();
        for end in 0..good.len() {
            read(&good[..end]);
        }
        assert_eq!(read(b"faceidJB"), NpyError::Mark);
        for (from, to) in
            [("<f8", "<f4"), ("<f8", ">f8"), ("(2, 2)", "(4,)"), ("(2, 2)", "(2, 3)"), ("(2, 2)", "(9999, 9999)")]
        {
            let refused = read(&npy(&HEAD.replace(from, to), &numbers));
            assert!(matches!(refused, NpyError::Content(_)), "{to}: {refused}");
        }
        assert_eq!(read(&[good.as_slice(), &[0; 8]].concat()), NpyError::Length { wanted: 32, found: 40 });
        assert_eq!(read(&npy(HEAD, &[1.0, 5.0, 0.0, 1.0])), ModelError::NotSymmetric('A').into());
    }
}
