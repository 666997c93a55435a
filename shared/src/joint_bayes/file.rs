//! A model as a file: a mark, a version, the dimension, then the mean, A and G as f64, all little-endian.

use super::{JointBayes, MAX_DIMENSION, Matrix, ModelError};

const MARK: &[u8; 8] = b"faceidJB";
const VERSION: u32 = 1;
const HEAD: usize = MARK.len() + 4 + 4;
/// Length of the largest model's file.
pub const MAX_FILE_BYTES: usize = HEAD + 8 * MAX_DIMENSION * (1 + 2 * MAX_DIMENSION);

/// Why bytes are no model.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FileError {
    /// It begins otherwise.
    #[error("it is no Joint Bayesian model of face-id; `face-id train joint-bayes` writes one")]
    Mark,
    /// Another program wrote it.
    #[error("its version is {0}, and this program reads {VERSION}")]
    Version(u32),
    /// A dimension beyond bounds.
    #[error("it is for vectors of {0} components; from 1 to {MAX_DIMENSION} are possible")]
    Dimension(u32),
    /// Cut short, or longer.
    #[error("it has {found} bytes, and one of its dimension has {wanted}")]
    Length {
        /// What its dimension asks for.
        wanted: usize,
        /// What it has.
        found: usize,
    },
    /// The numbers make no sense.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl JointBayes {
    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let dimension = u32::try_from(self.dimension()).unwrap_or(u32::MAX);
        let mut bytes = [MARK.as_slice(), &VERSION.to_le_bytes(), &dimension.to_le_bytes()].concat();
        let numbers = self.mean.iter().chain(self.a.numbers()).chain(self.g.numbers());
        bytes.extend(numbers.flat_map(|number| number.to_le_bytes()));
        bytes
    }

    /// Reads and checks what [`JointBayes::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FileError> {
        let rest = bytes.strip_prefix(MARK).ok_or(FileError::Mark)?;
        let (version, rest) = rest.split_first_chunk::<4>().ok_or(FileError::Mark)?;
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(FileError::Version(version));
        }
        let (dimension, rest) = rest.split_first_chunk::<4>().ok_or(FileError::Mark)?;
        let stated = u32::from_le_bytes(*dimension);
        let dimension = usize::try_from(stated)
            .ok()
            .filter(|dimension| (1..=MAX_DIMENSION).contains(dimension))
            .ok_or(FileError::Dimension(stated))?;
        let wanted = HEAD + 8 * dimension * (1 + 2 * dimension);
        if bytes.len() != wanted {
            return Err(FileError::Length { wanted, found: bytes.len() });
        }
        let numbers: Vec<f64> = rest.as_chunks::<8>().0.iter().map(|number| f64::from_le_bytes(*number)).collect();
        let (mean, matrices) = numbers.split_at(dimension);
        let (a, g) = matrices.split_at(dimension * dimension);
        let matrix = |numbers: &[f64]| Matrix::of(dimension, numbers.to_vec()).unwrap_or_else(|| Matrix::zero(0));
        Ok(Self::new(mean.to_vec(), matrix(a), matrix(g))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> JointBayes {
        let a = Matrix::of(2, vec![-1.0, 0.25, 0.25, -2.0]).unwrap();
        let g = Matrix::of(2, vec![-0.5, 0.125, 0.125, -0.75]).unwrap();
        JointBayes::new(vec![0.5, -0.5], a, g).unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = model().to_bytes();
        assert_eq!(bytes.len(), 16 + 8 * (2 + 4 + 4));
        assert_eq!(JointBayes::from_bytes(&bytes), Ok(model()));
    }

    #[test]
    fn damaged_files_are_refused() {
        let good = model().to_bytes();
        let changed = |at: usize, with: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + with.len()].copy_from_slice(with);
            JointBayes::from_bytes(&bytes)
        };
        for end in 0..good.len() {
            assert!(JointBayes::from_bytes(&good[..end]).is_err(), "{end}");
        }
        assert_eq!(JointBayes::from_bytes(b"\x93NUMPY and more"), Err(FileError::Mark));
        assert_eq!(
            JointBayes::from_bytes(&[good.as_slice(), &[0]].concat()),
            Err(FileError::Length { wanted: good.len(), found: good.len() + 1 })
        );
        assert_eq!(changed(8, &2u32.to_le_bytes()), Err(FileError::Version(2)));
        for dimension in [0, u32::MAX, 2049] {
            assert_eq!(changed(12, &dimension.to_le_bytes()), Err(FileError::Dimension(dimension)));
        }
        assert!(matches!(changed(12, &3u32.to_le_bytes()), Err(FileError::Length { .. })));
        assert_eq!(changed(16, &f64::INFINITY.to_le_bytes()), Err(ModelError::NotFinite.into()));
        assert_eq!(changed(16 + 8 * 3, &9f64.to_le_bytes()), Err(ModelError::NotSymmetric('A').into()));
        assert_eq!(changed(16 + 8 * 7, &9f64.to_le_bytes()), Err(ModelError::NotSymmetric('G').into()));
    }
}
