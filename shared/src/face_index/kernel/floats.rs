//! Dot products and distances of f32 vectors.

use pulp::{Arch, Simd, WithSimd};

pub(super) fn dot(arch: Arch, query: &[f32], row: &[f32]) -> f32 {
    arch.dispatch(Dot { query, row })
}

pub(super) fn squared_distance(arch: Arch, query: &[f32], row: &[f32]) -> f32 {
    arch.dispatch(SquaredDistance { query, row })
}

struct Dot<'a> {
    query: &'a [f32],
    row: &'a [f32],
}

impl WithSimd for Dot<'_> {
    type Output = f32;

    #[expect(clippy::inline_always, reason = "the dispatched copy must be compiled for its instruction set")]
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (query, query_tail) = S::as_simd_f32s(self.query);
        let (row, row_tail) = S::as_simd_f32s(self.row);
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
        simd.reduce_sum_f32s(simd.add_f32s(halves[0], halves[1])) + tail
    }
}

struct SquaredDistance<'a> {
    query: &'a [f32],
    row: &'a [f32],
}

impl WithSimd for SquaredDistance<'_> {
    type Output = f32;

    #[expect(clippy::inline_always, reason = "the dispatched copy must be compiled for its instruction set")]
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (query, query_tail) = S::as_simd_f32s(self.query);
        let (row, row_tail) = S::as_simd_f32s(self.row);
        let mut sums = [simd.splat_f32s(0.0); 4];
        let (query_four, query_rest) = query.as_chunks::<4>();
        let (row_four, row_rest) = row.as_chunks::<4>();
        for (q, r) in query_four.iter().zip(row_four) {
            for lane in 0..4 {
                let apart = simd.sub_f32s(q[lane], r[lane]);
                sums[lane] = simd.mul_add_f32s(apart, apart, sums[lane]);
            }
        }
        for (q, r) in query_rest.iter().zip(row_rest) {
            let apart = simd.sub_f32s(*q, *r);
            sums[0] = simd.mul_add_f32s(apart, apart, sums[0]);
        }
        let halves = [simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3])];
        let tail: f32 = query_tail.iter().zip(row_tail).map(|(q, r)| (q - r) * (q - r)).sum();
        simd.reduce_sum_f32s(simd.add_f32s(halves[0], halves[1])) + tail
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_the_plain_sums(dimension in 1usize..300, seed in any::<u32>()) {
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
            let row = vector(dimension);
            let plain: f64 = row.iter().zip(&query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            for arch in [Arch::new(), Arch::Scalar] {
                let score = dot(arch, &query, &row);
                prop_assert!((plain - f64::from(score)).abs() < 1e-4, "{plain} against {score}");
            }
            // Far from zero, and near each other: what is taken from each other is exact.
            let away = |vector: &[f32]| vector.iter().map(|value| value + 100.0).collect::<Vec<f32>>();
            let (query, row) = (away(&query), away(&row));
            let plain: f64 = row.iter().zip(&query).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
            for arch in [Arch::new(), Arch::Scalar] {
                let square = squared_distance(arch, &query, &row);
                prop_assert!((plain - f64::from(square)).abs() <= 1e-5 * plain, "{plain} against {square}");
            }
        }
    }
}
