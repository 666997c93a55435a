//! The enrolled vectors of one gallery in memory, and the exact search through them.
//!
//! A search reads every row's codes and the vectors of the few rows whose scores, by those codes, may be among the best:
//! what it finds is what a scan over all vectors finds.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use super::codes::{BLOCK_ROWS, Bounds, Codes};
use super::distances::Distances;
use super::kernel::Kernel;
use super::{FaceIndexError, GallerySize, Hit};
use crate::catalogue::Metric;
use crate::embedding::Embedding;
use crate::ids::{FaceId, PersonId};
use crate::template;

/// Rows that are passed over together, where none of their bounds is high enough.
const GROUP: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Rows {
    metric: Metric,
    /// Row-major, `faces.len()` x dimension.
    vectors: Vec<f32>,
    dimension: usize,
    codes: Codes,
    /// Where the metric is a distance, what makes bounds of dot products into bounds of scores.
    distances: Option<Distances>,
    faces: Vec<(FaceId, PersonId)>,
    row_of: HashMap<FaceId, usize>,
    faces_of: HashMap<PersonId, usize>,
    means: usize,
}

/// One query on its way through the rows.
struct Search<'a> {
    query: &'a [f32],
    bounds: Bounds,
    /// What the bounds of distances have in common.
    common: f32,
    best: BestPersons,
}

impl Rows {
    /// None yet, of a pipeline with that metric.
    pub(super) fn new(metric: Metric) -> Self {
        Self { metric, ..Self::default() }
    }

    pub(super) fn size(&self) -> GallerySize {
        GallerySize { persons: self.faces_of.len(), faces: self.faces.len(), means: self.means }
    }

    /// Adds a face that is not there.
    pub(super) fn add(&mut self, face: FaceId, person: PersonId, vector: &Embedding) -> Result<(), FaceIndexError> {
        self.check_dimension(vector.dimension())?;
        if self.faces.is_empty() {
            self.dimension = vector.dimension();
            self.codes = Codes::default();
            self.distances = (self.metric == Metric::Euclidean).then(|| Distances::new(vector.as_slice()));
        }
        self.row_of.insert(face, self.faces.len());
        self.faces.push((face, person));
        self.vectors.extend_from_slice(vector.as_slice());
        match &mut self.distances {
            None => self.codes.push(vector.as_slice()),
            Some(distances) => {
                let moved = distances.moved(vector.as_slice());
                distances.push(&moved);
                self.codes.push(&moved);
            }
        }
        let faces = self.faces_of.entry(person).or_default();
        *faces += 1;
        self.means += usize::from(*faces == template::FEWEST);
        Ok(())
    }

    /// Moves the last row into the place of the removed one.
    pub(super) fn remove(&mut self, face: FaceId) {
        let Some(row) = self.row_of.remove(&face) else { return };
        let (_, person) = self.faces.swap_remove(row);
        if let Entry::Occupied(mut faces) = self.faces_of.entry(person) {
            self.means -= usize::from(*faces.get() == template::FEWEST);
            *faces.get_mut() -= 1;
            if *faces.get() == 0 {
                faces.remove();
            }
        }
        let last = self.faces.len() * self.dimension;
        self.vectors.copy_within(last.., row * self.dimension);
        self.vectors.truncate(last);
        self.codes.swap_remove(row);
        if let Some(distances) = &mut self.distances {
            distances.swap_remove(row);
        }
        if let Some((moved, _)) = self.faces.get(row) {
            self.row_of.insert(*moved, row);
        }
    }

    fn check_dimension(&self, dimension: usize) -> Result<(), FaceIndexError> {
        if self.faces.is_empty() || dimension == self.dimension {
            return Ok(());
        }
        let text = format!("{dimension} components among vectors of {}", self.dimension);
        Err(FaceIndexError::Vector(text))
    }

    /// For each query the best `k` persons, by the best of their faces.
    pub(super) fn best(
        &self,
        kernel: Kernel,
        queries: &[Embedding],
        k: usize,
    ) -> Result<Vec<Vec<Hit>>, FaceIndexError> {
        queries.iter().try_for_each(|query| self.check_dimension(query.dimension()))?;
        let k = k.min(self.faces_of.len());
        if k == 0 {
            return Ok(vec![Vec::new(); queries.len()]);
        }
        let mut searches: Vec<_> = queries.iter().map(|query| self.search(query.as_slice(), k)).collect();
        let mut upper = [0.0; BLOCK_ROWS];
        for first in (0..self.faces.len()).step_by(BLOCK_ROWS) {
            let rows = first..self.faces.len().min(first + BLOCK_ROWS);
            // All queries look at a block while it is in the cache.
            for search in &mut searches {
                let upper = &mut upper[..rows.len()];
                self.upper_bounds(kernel, search, rows.clone(), upper);
                self.look_at(kernel, search, first, upper);
            }
        }
        Ok(searches.into_iter().map(|search| search.best.hits).collect())
    }

    fn search<'a>(&self, query: &'a [f32], k: usize) -> Search<'a> {
        let best = BestPersons { hits: Vec::with_capacity(k + 1), k };
        match &self.distances {
            None => Search { query, bounds: self.codes.bounds(query), common: 0.0, best },
            Some(distances) => {
                let moved = distances.moved(query);
                Search { query, bounds: self.codes.bounds(&moved), common: distances.common(&moved), best }
            }
        }
    }

    /// For each of at most [`BLOCK_ROWS`] rows a number that its score does not exceed.
    fn upper_bounds(&self, kernel: Kernel, search: &Search, rows: Range<usize>, upper: &mut [f32]) {
        self.codes.upper_bounds(kernel, &search.bounds, rows.clone(), upper);
        if let Some(distances) = &self.distances {
            distances.scores(search.common, rows, upper);
        }
    }

    fn score(&self, kernel: Kernel, query: &[f32], vector: &[f32]) -> f32 {
        match self.metric {
            Metric::Cosine => kernel.dot(query, vector),
            Metric::Euclidean => 1.0 - kernel.squared_distance(query, vector).sqrt(),
        }
    }

    /// Works out the scores of those rows whose upper bounds, from row `first` on, promise enough.
    fn look_at(&self, kernel: Kernel, search: &mut Search, first: usize, upper: &[f32]) {
        for (group, upper) in upper.chunks(GROUP).enumerate() {
            if upper.iter().copied().fold(f32::NEG_INFINITY, f32::max) < search.best.enough() {
                continue;
            }
            for (row, upper) in (first + group * GROUP..).zip(upper) {
                if *upper < search.best.enough() {
                    continue;
                }
                let (face, person) = self.faces[row];
                if *upper < search.best.enough_of(person) {
                    continue;
                }
                let vector = &self.vectors[row * self.dimension..][..self.dimension];
                search.best.offer(Hit { person, face, score: self.score(kernel, search.query, vector) });
            }
        }
    }
}

/// The best `k` persons so far, best first; `k` is at least 1.
struct BestPersons {
    hits: Vec<Hit>,
    k: usize,
}

impl BestPersons {
    /// The score below which no hit is taken.
    fn enough(&self) -> f32 {
        if self.hits.len() < self.k { f32::NEG_INFINITY } else { self.hits[self.k - 1].score }
    }

    /// The score below which no hit of that person is taken.
    fn enough_of(&self, person: PersonId) -> f32 {
        let known = self.hits.iter().find(|hit| hit.person == person);
        known.map_or_else(|| self.enough(), |hit| hit.score)
    }

    fn offer(&mut self, hit: Hit) {
        if self.hits.len() == self.k && !comes_before(&hit, &self.hits[self.k - 1]) {
            return;
        }
        if let Some(known) = self.hits.iter().position(|h| h.person == hit.person) {
            if !comes_before(&hit, &self.hits[known]) {
                return;
            }
            self.hits.remove(known);
        }
        let place = self.hits.partition_point(|h| comes_before(h, &hit));
        self.hits.insert(place, hit);
        self.hits.truncate(self.k);
    }
}

fn comes_before(a: &Hit, b: &Hit) -> bool {
    a.score > b.score || (a.score.total_cmp(&b.score).is_eq() && a.face < b.face)
}
