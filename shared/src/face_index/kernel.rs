//! The scan itself: dot products of one query with many stored vectors.

use pulp::{Arch, Simd, WithSimd};

/// Dot products of `query` (d components) with each row of `rows` (n x d, row-major), written to `scores` (n).
pub(super) fn dot_rows(arch: Arch, query: &[f32], rows: &[f32], scores: &mut [f32]) {
    arch.dispatch(DotRows { query, rows, scores });
}

struct DotRows<'a> {
    query: &'a [f32],
    rows: &'a [f32],
    scores: &'a mut [f32],
}

impl WithSimd for DotRows<'_> {
    type Output = ();

    #[expect(clippy::inline_always, reason = "the dispatched copy must be compiled for its instruction set")]
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (query, query_tail) = S::as_simd_f32s(self.query);
        let rows = self.rows.chunks_exact(self.query.len());
        for (row, score) in rows.zip(self.scores) {
            let (row, row_tail) = S::as_simd_f32s(row);
            // Four sums hide the latency of the fused multiply-add.
            let mut sums = [simd.splat_f32s(0.0); 4];
            let (query_four, query_rest) = query.as_chunks::<4>();
            let (row_four, row_rest) = row.as_chunks::<4>();
            for (q, r) in query_four.iter().zip(row_four) {
                for lane in 0..4 {
                    sums[lane] = simd.mul_add_f32s(q[lane], r[lane], sums[lane]);
                }
            }
            for (q, r) in query_rest.iter().zip(row_rest) {
                sums[0] = simd.mul_add_f32s(*q, *r, sums[0]);
            }
            let halves = [simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3])];
            let tail: f32 = query_tail.iter().zip(row_tail).map(|(q, r)| q * r).sum();
            *score = simd.reduce_sum_f32s(simd.add_f32s(halves[0], halves[1])) + tail;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_the_plain_sum(dimension in 1usize..300, count in 0usize..5, seed in any::<u32>()) {
            let mut state = seed | 1;
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                f64::from(state) / f64::from(u32::MAX) - 0.5
            };
            #[expect(clippy::cast_possible_truncation, reason = "any f32 will do")]
            let mut vector = |n: usize| (0..n).map(|_| next() as f32).collect::<Vec<_>>();
            let query = vector(dimension);
            let rows = vector(dimension * count);
            let mut scores = vec![f32::NAN; count];
            dot_rows(Arch::new(), &query, &rows, &mut scores);
            for (row, score) in rows.chunks_exact(dimension).zip(&scores) {
                let plain: f64 = row.iter().zip(&query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                prop_assert!((plain - f64::from(*score)).abs() < 1e-4, "{plain} against {score}");
            }
        }
    }
}
