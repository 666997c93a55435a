//! The scan itself: dot products of one query with stored rows, of int8 codes and of f32 vectors, and their distances.

mod codes;
mod floats;

use pulp::Arch;

/// Codes in a [`Line`].
pub(super) const LINE: usize = 64;

/// One cache line of codes, each in -127..=127.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [i8; LINE]);

/// The scan, in instructions that this processor has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel(Arch);

impl Kernel {
    /// The fastest.
    pub(super) fn new() -> Self {
        Self(Arch::new())
    }

    /// The fastest, and the one that every processor has.
    #[cfg(test)]
    pub(super) fn all() -> [Self; 2] {
        [Self::new(), Self(Arch::Scalar)]
    }

    /// Exact dot products of `query` with each of the rows of codes, which have as many lines as the query has.
    pub(super) fn code_dots(self, query: &[[i16; LINE]], rows: &[Line], dots: &mut [i32]) {
        codes::code_dots(self.0, query, rows, dots);
    }

    /// The dot product of two vectors, whose order of summation, and so whose rounding, is the same in every call.
    pub(super) fn dot(self, query: &[f32], row: &[f32]) -> f32 {
        floats::dot(self.0, query, row)
    }

    /// The square of the distance of two vectors, in an order of summation that is the same too.
    pub(super) fn squared_distance(self, query: &[f32], row: &[f32]) -> f32 {
        floats::squared_distance(self.0, query, row)
    }
}
