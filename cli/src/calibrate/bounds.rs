//! Thresholds by false accept rate, with bounds of the rate at each, and what is to be thought of those that few pairs reach.
//!
//! The bounds come from people drawn anew with replacement (Efron 1979): all faces of a person come or stay away together, and
//! with them the comparisons that they take part in, as for the ties of a network (Snijders and Borgatti 1999). Comparisons
//! drawn one by one would give bounds that are far too narrow, since each person takes part in thousands.
//!
//! They are percentile bounds of the rate among people such as these, at [`CONFIDENCE`]. Where few pairs reach a threshold,
//! chance decides more about these pairs than about people, and drawing people counts that part three times over: the bounds
//! are then up to 1.7 times as wide as need be, never too narrow. Another set of as many people has its own share of chance,
//! as large as this one's: its rate is within these bounds less often than the true one, 93 times in 100 where they are sharp.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::ensure;
use fastrand::Rng;
use serde::Serialize;
use shared::catalogue::LOWEST_FAR;

use super::comparisons::{Comparisons, Kept, cores};

/// False accept rates a comparison that get a threshold.
pub(super) const RATES: [f64; 6] = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6];
/// The part of the draws within the bounds.
pub(super) const CONFIDENCE: f64 = 0.99;
/// A rate counts as measured where so many pairs of people are to reach its threshold: with these it is known to a fifth.
const LEAST_PAIRS: f64 = 30.0;
/// Draws that are summed up side by side: a comparison is read once for them.
const LANES: usize = 16;
/// How often the people are drawn anew: some five draws lie beyond each bound.
const DRAWS: usize = 64 * LANES;

/// A threshold with the rate at it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Point {
    pub(super) far: f64,
    /// The threshold, called as the API does whatever the metric is.
    pub(super) cosine: f64,
    /// Between these the rate lies.
    pub(super) lower: f64,
    pub(super) upper: f64,
    /// Too few pairs reach it: it lies on the line through the two points before, over the logarithm of the rate, and so do its
    /// bounds. That the line goes on is not part of them.
    pub(super) extrapolated: bool,
}

/// The threshold of each of these falling rates.
///
/// # Errors
/// There are too few people for two of the rates, or their faces do not tell the rates apart.
pub(super) fn points(compared: &Comparisons, rates: &[f64], seed: u64) -> anyhow::Result<Vec<Point>> {
    let is_measured = |far: &f64| *far >= LOWEST_FAR && far * compared.pairs >= LEAST_PAIRS;
    let measured: Vec<f64> = rates.iter().copied().take_while(is_measured).collect();
    if measured.len() < 2 {
        anyhow::bail!(too_few(compared, rates));
    }
    let cosines: Vec<f64> = measured.iter().map(|far| compared.score_at(*far)).collect();
    ensure!(
        cosines.is_sorted_by(|a, b| a < b),
        "the rates {measured:?} have the thresholds {cosines:?}, which do not rise: too many of the faces are alike"
    );
    let drawn = draw(compared, &cosines, seed);
    let point = |far: f64, cosine: f64, mut rates: Vec<f64>, extrapolated| {
        rates.sort_by(f64::total_cmp);
        // The rate that was found is one that the rate may have.
        let (lower, upper) = (quantile(&rates, false).min(far), quantile(&rates, true).max(far));
        Point { far, cosine, lower, upper, extrapolated }
    };
    let found = measured.iter().zip(&cosines).zip(&drawn);
    let mut points: Vec<Point> =
        found.map(|((far, cosine), rates)| point(*far, *cosine, rates.clone(), false)).collect();
    let last = points.len() - 1;
    let line = Line([points[last - 1], points[last]]);
    for far in &rates[measured.len()..] {
        // Four decimals, as of those that were measured.
        let cosine = (line.cosine_at(*far) * 1e4).ceil() / 1e4;
        if cosine > 1.0 {
            break;
        }
        let rates = drawn[last - 1].iter().zip(&drawn[last]);
        let rates = rates.map(|(before, last)| line.far_at(cosine, [*before, *last])).collect();
        points.push(point(*far, cosine, rates, true));
    }
    Ok(points)
}

fn too_few(compared: &Comparisons, rates: &[f64]) -> String {
    let needed: Vec<String> =
        rates.iter().filter(|far| **far >= LOWEST_FAR).map(|far| format!("{} for {far:e}", people_for(*far))).collect();
    format!(
        "{} people are too few: false accept rates are measured where {LEAST_PAIRS} pairs of people are to reach the \
         threshold, which takes {} people, and at least two rates are needed",
        compared.people,
        needed.join(", ")
    )
}

/// How many people it takes for a rate to be measured.
fn people_for(far: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "thousands")]
    let people = (0.5 + (0.25 + 2.0 * LEAST_PAIRS / far).sqrt()).ceil() as u64;
    people
}

/// The line through two points, over the logarithm of the rate.
struct Line([Point; 2]);

impl Line {
    fn cosine_at(&self, far: f64) -> f64 {
        let [a, b] = &self.0;
        b.cosine + (b.cosine - a.cosine) * (far / b.far).ln() / (b.far / a.far).ln()
    }

    /// The rate at a threshold where these are the rates at the two points'.
    fn far_at(&self, cosine: f64, rates: [f64; 2]) -> f64 {
        let [a, b] = &self.0;
        // Where a draw lost all that reached the last one, its rate is below any.
        let fall = (rates[1].max(f64::MIN_POSITIVE) / rates[0].max(f64::MIN_POSITIVE)).ln();
        (rates[1] * (fall * (cosine - b.cosine) / (b.cosine - a.cosine)).exp()).min(1.0)
    }
}

/// The bound of sorted rates.
fn quantile(rates: &[f64], upper: bool) -> f64 {
    let outside = (1.0 - CONFIDENCE) / 2.0;
    let part = if upper { 1.0 - outside } else { outside };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to the number of draws")]
    let place = (part * (rates.len() - 1) as f64).round() as usize;
    rates[place]
}

/// The rate at each of these rising thresholds, in each draw.
fn draw(compared: &Comparisons, cosines: &[f64], seed: u64) -> Vec<Vec<f64>> {
    // By how many of the thresholds are reached, and by person.
    let mut reached: Vec<Vec<&Kept>> = cosines.iter().map(|_| Vec::new()).collect();
    for kept in &compared.kept {
        let reaches = cosines.partition_point(|cosine| *cosine <= f64::from(kept.score));
        if let Some(last) = reaches.checked_sub(1) {
            reached[last].push(kept);
        }
    }
    for kept in &mut reached {
        kept.sort_unstable_by_key(|kept| kept.people);
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let block = next.fetch_add(1, Ordering::Relaxed);
            if block >= DRAWS / LANES {
                return done;
            }
            done.push((
                block,
                draw_block(compared, &reached, seed.wrapping_mul(DRAWS as u64) + (block * LANES) as u64),
            ));
        }
    };
    let mut blocks: Vec<(usize, Vec<[f64; LANES]>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores()).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("draw people; this is a bug: sums do not panic")).collect()
    });
    blocks.sort_by_key(|(block, _)| *block);
    (0..cosines.len()).map(|n| blocks.iter().flat_map(|(_, rates)| rates[n]).collect()).collect()
}

/// The rates at each threshold among people who were drawn [`LANES`] times.
fn draw_block(compared: &Comparisons, reached: &[Vec<&Kept>], seed: u64) -> Vec<[f64; LANES]> {
    let mut times = vec![[0.0_f32; LANES]; compared.people];
    let mut randoms: [Rng; LANES] = std::array::from_fn(|lane| Rng::with_seed(seed.wrapping_add(lane as u64)));
    for _ in 0..compared.people {
        for (lane, random) in randoms.iter_mut().enumerate() {
            times[random.usize(0..compared.people)][lane] += 1.0;
        }
    }
    let pairs = pairs(compared, &times);
    let mut rates = vec![[0.0; LANES]; reached.len()];
    let mut sum = [0.0_f64; LANES];
    for (rate, kept) in rates.iter_mut().zip(reached).rev() {
        for of_person in kept.chunk_by(|a, b| a.people[0] == b.people[0]) {
            let mut row = [0.0_f32; LANES];
            for kept in of_person {
                let others = &times[kept.people[1] as usize];
                row.iter_mut().zip(others).for_each(|(row, times)| *row += times * kept.weight);
            }
            let own = &times[of_person[0].people[0] as usize];
            sum.iter_mut().zip(row.iter().zip(own)).for_each(|(sum, (row, own))| *sum += f64::from(row * own));
        }
        rate.iter_mut().zip(sum.iter().zip(&pairs)).for_each(|(rate, (sum, pairs))| *rate = sum / pairs);
    }
    rates
}

/// The pairs of different people among those who were drawn: who was drawn twice is not compared with itself.
fn pairs(compared: &Comparisons, times: &[[f32; LANES]]) -> [f64; LANES] {
    std::array::from_fn(|lane| {
        let of = |person: usize| f64::from(times[person][lane]);
        let (all, own) = (0..times.len()).map(of).fold((0.0, 0.0), |(all, own), n| (all + n, own + n * n));
        let left_out: f64 = compared.left_out.iter().map(|[one, other]| of(*one) * of(*other)).sum();
        f64::midpoint(all * all, -own) - left_out
    })
}

#[cfg(test)]
mod tests {
    use super::super::comparisons::tests::crowd;
    use super::*;

    #[test]
    fn bounds_are_around_the_rate_and_wider_where_it_is_rare() {
        let compared = Comparisons::of(&crowd(300, 1), RATES[0]);
        let found = points(&compared, &RATES, 7).unwrap();
        assert_eq!(found.iter().map(|point| point.far).collect::<Vec<_>>(), RATES);
        assert!(found.is_sorted_by(|a, b| a.cosine < b.cosine));
        for point in &found {
            assert!(point.lower < point.far && point.far < point.upper, "{point:?}");
        }
        let width = |point: &Point| (point.upper - point.lower) / point.far;
        assert!(found.is_sorted_by(|a, b| width(a) < width(b)), "{found:?}");
        // 44,850 pairs of people: 45 reach 1e-3, 4.5 reach 1e-4.
        assert_eq!(
            found.iter().map(|point| point.extrapolated).collect::<Vec<_>>(),
            [false, false, false, true, true, true]
        );
        let step = |n: usize| found[n].cosine - found[n - 1].cosine;
        assert!((step(3) - step(2)).abs() < 2e-4 && (step(4) - step(2)).abs() < 2e-4, "along the last slope");
        assert_eq!(points(&compared, &RATES, 7).unwrap(), found, "the same each time");
        assert_ne!(points(&compared, &RATES, 8).unwrap(), found);
    }

    #[test]
    fn bounds_hold_for_other_people() {
        let (mut inside, mut drawn_alone) = (0, 0);
        for seed in 0..20 {
            let compared = Comparisons::of(&crowd(200, 1000 + seed), 1e-1);
            let point = points(&compared, &[1e-1, 1e-2], seed).unwrap()[0];
            let others = Comparisons::of(&crowd(200, 2000 + seed), 1e-1).far_at(point.cosine);
            inside += usize::from((point.lower..=point.upper).contains(&others));
            // As wide as if each comparison were by itself.
            let alone = 2.58 * (point.far / compared.count as f64).sqrt();
            drawn_alone += usize::from((others - point.far).abs() <= alone);
        }
        assert!(inside >= 17, "{inside} of 20");
        assert!(drawn_alone < inside, "{drawn_alone} of 20");
    }

    #[test]
    fn who_is_left_out_stays_so_in_each_draw() {
        let mut faces = crowd(150, 9);
        // Two of them are one person.
        let double = faces.embeddings[faces.people.iter().position(|person| *person == 0).unwrap()].clone();
        faces.people.push(150);
        faces.embeddings.push(double);
        let found = |faces: &_| points(&Comparisons::of(faces, 1e-1), &[1e-1, 1e-2], 1).unwrap()[1];
        let with = found(&faces);
        faces.left_out.insert([0, 150]);
        let without = found(&faces);
        assert!(without.cosine <= with.cosine);
        assert!(without.lower <= 1e-2 && 1e-2 <= without.upper);
    }

    #[test]
    fn too_few_people_are_told_how_many_it_takes() {
        assert_eq!([1e-1, 1e-2, 1e-3, 1e-4, 1e-5].map(people_for), [25, 78, 246, 776, 2450]);
        for far in [1e-1, 1e-2, 1e-3, 1e-4, 1e-5] {
            let enough = |people: u64| (people * (people - 1)) as f64 / 2.0 * far >= LEAST_PAIRS;
            assert!(enough(people_for(far)) && !enough(people_for(far) - 1), "{far}");
        }
        let refused = points(&Comparisons::of(&crowd(60, 1), 1e-1), &RATES, 1).unwrap_err().to_string();
        assert!(refused.contains("60 people are too few") && refused.contains("78 for 1e-2"), "{refused}");
        assert!(!refused.contains("1e-6"), "no set measures that: {refused}");
    }
}
