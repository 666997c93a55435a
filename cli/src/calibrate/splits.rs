//! Whether the bounds hold for other people: one half of the people is calibrated on, the other half is measured.

use anyhow::ensure;
use comfy_table::{Table, presets};
use fastrand::Rng;
use serde::Serialize;

use super::bounds::points;
use super::comparisons::{Comparisons, Labelled};

/// The rates that are looked at.
const RATES: [f64; 2] = [1e-2, 1e-3];
/// Splits of twenty in which the held-out rate has to lie within the bounds.
const LEAST_OF_TWENTY: usize = 17;
/// How far from the rate the bounds may be, as a part of it.
const WIDEST: f64 = 0.15;

/// What came of all splits at a rate.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Coverage {
    far: f64,
    splits: usize,
    /// Splits in which the held-out people's rate lay within the bounds.
    inside: usize,
    /// How far from the rate a bound was at most, as a part of it.
    widest: f64,
    /// The held-out people's rates, as parts of the one that was wanted.
    held_out: Vec<f64>,
}

/// Splits the people in two halves so often, each time by another seed.
pub(super) fn check(faces: &Labelled, splits: usize) -> anyhow::Result<Vec<Coverage>> {
    let mut all: Vec<Coverage> =
        RATES.map(|far| Coverage { far, splits, inside: 0, widest: 0.0, held_out: Vec::new() }).into();
    for seed in 0..splits as u64 {
        let mut is_in: Vec<bool> = (0..faces.count()).map(|n| n % 2 == 0).collect();
        Rng::with_seed(seed).shuffle(&mut is_in);
        let found = points(&Comparisons::of(&faces.of_people(&is_in), RATES[0]), &RATES, seed)?;
        let is_out: Vec<bool> = is_in.iter().map(|is_in| !is_in).collect();
        let others = Comparisons::of(&faces.of_people(&is_out), RATES[0]);
        for (coverage, point) in all.iter_mut().zip(found) {
            let rate = others.far_at(point.cosine);
            coverage.inside += usize::from((point.lower..=point.upper).contains(&rate));
            let apart = (point.upper / point.far - 1.0).max(1.0 - point.lower / point.far);
            coverage.widest = coverage.widest.max(apart);
            coverage.held_out.push(rate / point.far);
        }
    }
    Ok(all)
}

/// Refuses bounds that do not hold, or say little.
pub(super) fn judge(all: &[Coverage]) -> anyhow::Result<()> {
    for Coverage { far, splits, inside, widest, .. } in all {
        ensure!(
            inside * 20 >= LEAST_OF_TWENTY * splits,
            "at {far:e} the held-out rate lies within the bounds in {inside} of {splits} splits only"
        );
        ensure!(*widest <= WIDEST, "at {far:e} a bound is {:.1} % from the rate", widest * 100.0);
    }
    Ok(())
}

/// A row a rate.
pub(super) fn table(all: &[Coverage]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["false accept rate", "held-out rate within its bounds", "bounds at most", "held-out rates"]);
    for coverage in all {
        let (low, high) = coverage
            .held_out
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), rate| (low.min(*rate), high.max(*rate)));
        table.add_row([
            format!("{:e}", coverage.far),
            format!("{} of {} splits", coverage.inside, coverage.splits),
            format!("+-{:.1} %", coverage.widest * 100.0),
            format!("{:+.1} to {:+.1} %", (low - 1.0) * 100.0, (high - 1.0) * 100.0),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::comparisons::tests::crowd;
    use super::*;

    #[test]
    fn halves_are_compared_and_judged() {
        let all = check(&crowd(1000, 4), 4).unwrap();
        assert_eq!(all.iter().map(|coverage| coverage.far).collect::<Vec<_>>(), RATES);
        for coverage in &all {
            assert_eq!((coverage.splits, coverage.held_out.len()), (4, 4));
            assert!(coverage.inside >= 3 && coverage.widest > 0.0, "{coverage:?}");
            assert!(coverage.held_out.iter().all(|rate| (0.5..2.0).contains(rate)), "{coverage:?}");
        }
        assert_eq!(table(&all).row_count(), 2);
        let few = check(&crowd(100, 4), 4).unwrap_err().to_string();
        assert!(few.contains("50 people are too few"), "{few}");
    }

    #[test]
    fn bounds_that_do_not_hold_or_say_little_are_refused() {
        let coverage = |inside, widest| [Coverage { far: 1e-2, splits: 20, inside, widest, held_out: Vec::new() }];
        assert!(judge(&coverage(17, 0.15)).is_ok());
        assert!(judge(&coverage(16, 0.1)).unwrap_err().to_string().contains("16 of 20"));
        assert!(judge(&coverage(20, 0.16)).unwrap_err().to_string().contains("16.0 %"));
    }
}
