//! The nearest of a set of vectors that somebody keeps in memory for themselves, exactly, by the same codes and kernel as
//! the index of the templates.

use uuid::Uuid;

use super::FaceIndexError;
use super::kernel::Kernel;
use super::rows::Rows;
use crate::catalogue::Metric;
use crate::embedding::Embedding;
use crate::ids::{FaceId, PersonId};

/// Vectors of one model, each under an id of its own.
#[derive(Debug)]
pub struct Neighbours {
    rows: Rows,
    kernel: Kernel,
}

impl Neighbours {
    /// None yet, of a model with that metric.
    pub fn new(metric: Metric) -> Self {
        Self { rows: Rows::new(metric), kernel: Kernel::new() }
    }

    /// Puts a vector in, in place of the one that was there under this id.
    ///
    /// # Errors
    /// It has another dimension than those that are there.
    pub fn set(&mut self, id: Uuid, vector: &Embedding) -> Result<(), FaceIndexError> {
        self.remove(id);
        // A row of its own each: it is its own only face.
        self.rows.add(FaceId(id), PersonId(id), vector)
    }

    /// Takes a vector out, if it is there.
    pub fn remove(&mut self, id: Uuid) {
        self.rows.remove(FaceId(id));
    }

    /// For each query the ids of the `k` nearest with their scores, best first, equal ones in the order of their ids.
    ///
    /// # Errors
    /// A query has another dimension than the vectors.
    pub fn nearest(&self, queries: &[Embedding], k: usize) -> Result<Vec<Vec<(Uuid, f32)>>, FaceIndexError> {
        let found = self.rows.best(self.kernel, queries, k)?;
        Ok(found.into_iter().map(|hits| hits.into_iter().map(|hit| (hit.face.0, hit.score)).collect()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(x: f32, y: f32) -> Embedding {
        Embedding::normalised(vec![x, y]).unwrap()
    }

    #[test]
    fn finds_what_is_there_now() {
        let [a, b, c] = [1u128, 2, 3].map(Uuid::from_u128);
        let mut near = Neighbours::new(Metric::Cosine);
        near.set(a, &vector(1.0, 0.0)).unwrap();
        near.set(b, &vector(1.0, 1.0)).unwrap();
        near.set(c, &vector(0.0, 1.0)).unwrap();
        let ids = |near: &Neighbours| -> Vec<Uuid> {
            near.nearest(&[vector(1.0, 0.1)], 2).unwrap().remove(0).into_iter().map(|(id, _)| id).collect()
        };
        assert_eq!(ids(&near), [a, b]);
        near.set(a, &vector(-1.0, 0.0)).unwrap();
        assert_eq!(ids(&near), [b, c]);
        near.remove(b);
        assert_eq!(ids(&near), [c, a]);
        assert!(near.set(b, &Embedding::normalised(vec![1.0; 3]).unwrap()).is_err(), "three components among two");
    }
}
