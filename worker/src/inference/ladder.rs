//! The batch sizes that models are run at.

/// A few batch sizes, ascending, the first of them 1.
///
/// A GPU chooses kernels and memory anew for each size that it has not seen, so that all runs keep to these: a batch in
/// between is filled up with rows that nobody reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder(Vec<usize>);

/// What a run takes of the inputs that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Inputs that it takes, at least one.
    pub(super) inputs: usize,
    /// Its batch size; the rows behind the inputs are padding.
    pub(super) rows: usize,
}

impl Ladder {
    /// Inputs go through the model one by one.
    pub fn one_by_one() -> Self {
        Self(vec![1])
    }

    /// One by one, and in batches of these sizes.
    pub fn of(sizes: &[usize]) -> Self {
        let mut rungs: Vec<usize> = sizes.iter().copied().filter(|&size| size > 1).chain([1]).collect();
        rungs.sort_unstable();
        rungs.dedup();
        Self(rungs)
    }

    /// The largest batch size.
    pub(super) fn largest(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }

    /// What to run when `waiting` inputs do, at least one. A batch that fills at least half of the next size is padded up
    /// to it; else what is above the last size is left for the run after this one, so that nobody waits for a batch to fill.
    pub(super) fn share(&self, waiting: usize) -> Share {
        let next = self.0.iter().copied().find(|&size| size >= waiting);
        let last = self.0.iter().copied().rfind(|&size| size <= waiting).unwrap_or(1);
        match next {
            Some(rows) if waiting * 2 >= rows => Share { inputs: waiting, rows },
            _ => Share { inputs: last, rows: last },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_batch_is_padded_where_it_fills_half_of_the_next_size() {
        let ladder = Ladder::of(&[1, 8, 32, 64]);
        let cases = [
            (1, (1, 1)),
            (3, (1, 1)),
            (4, (4, 8)),
            (7, (7, 8)),
            (8, (8, 8)),
            (15, (8, 8)),
            (16, (16, 32)),
            (31, (31, 32)),
            (32, (32, 32)),
            (33, (33, 64)),
            (64, (64, 64)),
            (500, (64, 64)),
        ];
        for (waiting, (inputs, rows)) in cases {
            assert_eq!(ladder.share(waiting), Share { inputs, rows }, "{waiting}");
        }
        assert_eq!(Ladder::one_by_one().share(9), Share { inputs: 1, rows: 1 });
        assert_eq!(Ladder::of(&[]), Ladder::one_by_one());
        assert_eq!(Ladder::of(&[8, 0, 4, 8]), Ladder::of(&[1, 4, 8]));
    }

    proptest! {
        #[test]
        fn every_run_is_of_a_rung_and_at_least_half_full(
            sizes in prop::collection::vec(1usize..100, 0..5),
            waiting in 1usize..300,
        ) {
            let ladder = Ladder::of(&sizes);
            let Share { inputs, rows } = ladder.share(waiting);
            prop_assert!(rows == 1 || sizes.contains(&rows));
            prop_assert!((1..=waiting).contains(&inputs) && inputs <= rows && inputs * 2 >= rows);
            let next = sizes.iter().copied().filter(|&size| size > rows).min();
            prop_assert!(inputs == waiting || next.is_none_or(|next| waiting * 2 < next), "{next:?}");
        }
    }
}
