//! Dot products of one query with rows of int8 codes.

use pulp::{Arch, Simd, WithSimd};

use super::{LINE, Line};

/// How far ahead memory is asked for: the processor's own prefetching ends at every page, and the scan of a large
/// gallery waits for nothing but memory. 2 to 8 kB differ little.
#[cfg(target_arch = "x86_64")]
const PREFETCH_BYTES: usize = 2048;

pub(super) fn code_dots(arch: Arch, query: &[[i16; LINE]], rows: &[Line], dots: &mut [i32]) {
    assert_eq!(rows.len(), dots.len() * query.len(), "every row has the query's length");
    arch.dispatch(CodeDots { query, rows, dots });
}

struct CodeDots<'a> {
    query: &'a [[i16; LINE]],
    rows: &'a [Line],
    dots: &'a mut [i32],
}

impl WithSimd for CodeDots<'_> {
    type Output = ();

    /// Plain loops over sixteen sums side by side: what the compiler makes of them for each instruction set is as fast
    /// as its intrinsics.
    #[expect(clippy::inline_always, reason = "the dispatched copy must be compiled for its instruction set")]
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (row, dot) in self.rows.chunks_exact(self.query.len()).zip(self.dots) {
            let mut sums = [0; 16];
            for (line, query) in row.iter().zip(self.query) {
                prefetch_behind(line);
                for (codes, query) in line.0.as_chunks::<16>().0.iter().zip(query.as_chunks::<16>().0) {
                    for ((sum, code), query) in sums.iter_mut().zip(codes).zip(query) {
                        *sum += i32::from(*code) * i32::from(*query);
                    }
                }
            }
            *dot = sums.iter().sum();
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "it has no safe form; the scan of a large gallery takes half as long again without it")]
#[inline]
fn prefetch_behind(line: &Line) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let address = std::ptr::from_ref(line).cast::<i8>().wrapping_add(PREFETCH_BYTES);
    // SAFETY: every x86-64 has the instruction, and it reads nothing: an address behind the last row has no effect.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address) }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn prefetch_behind(_: &Line) {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_kernel_gives_the_exact_sums(
            query in prop::collection::vec(prop::collection::vec(-10_000i16..10_000, LINE), 1..6),
            rows in prop::collection::vec(prop::collection::vec(-127i8..=127, LINE), 0..60),
        ) {
            let query: Vec<[i16; LINE]> = query.into_iter().map(|line| line.try_into().unwrap()).collect();
            let mut rows: Vec<_> = rows.into_iter().map(|line| Line(line.try_into().unwrap())).collect();
            rows.truncate(rows.len() - rows.len() % query.len());
            let plain = |row: &[Line]| -> i32 {
                let pairs = row.iter().zip(&query).flat_map(|(a, b)| a.0.into_iter().zip(*b));
                pairs.map(|(a, b)| i32::from(a) * i32::from(b)).sum()
            };
            let plain: Vec<_> = rows.chunks(query.len()).map(plain).collect();
            for arch in [Arch::new(), Arch::Scalar] {
                let mut dots = vec![-1; plain.len()];
                code_dots(arch, &query, &rows, &mut dots);
                prop_assert_eq!(&dots, &plain, "{:?}", arch);
            }
        }
    }
}
