//! Every comparison of a set's faces, two people's and one person's.
//!
//! A rate is that of two people drawn at random, and of a face of each drawn at random: each pair of people counts the same,
//! however many faces there are of them. So those who are photographed often do not decide how often strangers are taken for
//! one, and the rate hangs less on who happens to be in the set.

use std::collections::HashSet;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};

use shared::catalogue::Metric;
use shared::embedding::Embedding;

/// Bins of all scores: a cosine is off by at most 2 / 200,000, and a short distance by no more.
const BINS: usize = 200_000;
/// Vectors a side of a block: two blocks of 128 components stay in a core's own cache.
const BLOCK: usize = 128;

/// Faces with whose they are.
pub(super) struct Labelled {
    /// Whose each face is, numbered from 0.
    pub(super) people: Vec<usize>,
    pub(super) embeddings: Vec<Embedding>,
    /// Pairs of people that may be one, the lower number first: they are not compared.
    pub(super) left_out: HashSet<[usize; 2]>,
    /// How the vectors are compared.
    pub(super) metric: Metric,
}

/// A comparison that reached what is kept one by one.
pub(super) struct Kept {
    pub(super) people: [u32; 2],
    pub(super) score: f32,
    /// Its part of the pair of people.
    pub(super) weight: f32,
}

/// The comparisons of a set of faces.
pub(super) struct Comparisons {
    /// Pairs of people by score.
    impostor: Vec<f64>,
    /// People with several faces, by their own scores.
    genuine: Vec<f64>,
    pub(super) kept: Vec<Kept>,
    /// Pairs of people that were compared.
    pub(super) pairs: f64,
    /// Comparisons of two people's faces.
    pub(super) count: u64,
    pub(super) people: usize,
    pub(super) faces: usize,
    pub(super) left_out: HashSet<[usize; 2]>,
    pub(super) metric: Metric,
}

impl Labelled {
    /// People by their names, each with some faces. Pairs of names that are said to be one person are not compared.
    pub(super) fn new<'a>(
        people: impl IntoIterator<Item = (String, Vec<Embedding>)>,
        aliases: impl IntoIterator<Item = [&'a str; 2]>,
        metric: Metric,
    ) -> Self {
        let people: Vec<_> = people.into_iter().filter(|(_, faces)| !faces.is_empty()).collect();
        let number = |name: &str| people.iter().position(|(other, _)| other == name);
        let pair = |[one, other]: [&str; 2]| Some(ordered(number(one)?, number(other)?));
        let left_out = aliases.into_iter().filter_map(pair).collect();
        let faces = people.into_iter().enumerate().flat_map(|(n, (_, faces))| faces.into_iter().map(move |e| (n, e)));
        let (people, embeddings) = faces.unzip();
        Self { people, embeddings, left_out, metric }
    }

    /// How many people there are.
    pub(super) fn count(&self) -> usize {
        self.people.iter().max().map_or(0, |last| last + 1)
    }

    /// The faces of some of the people, who are numbered anew.
    pub(super) fn of_people(&self, is_in: &[bool]) -> Self {
        let mut numbers = vec![None; is_in.len()];
        let kept = numbers.iter_mut().zip(is_in).filter(|(_, is_in)| **is_in);
        kept.enumerate().for_each(|(next, (number, _))| *number = Some(next));
        let faces = self.people.iter().zip(&self.embeddings);
        let (people, embeddings) = faces.filter_map(|(person, e)| Some((numbers[*person]?, e.clone()))).unzip();
        let pairs = self.left_out.iter();
        let left_out = pairs.filter_map(|[one, other]| Some([numbers[*one]?, numbers[*other]?])).collect();
        Self { people, embeddings, left_out, metric: self.metric }
    }
}

fn ordered(one: usize, other: usize) -> [usize; 2] {
    [one.min(other), one.max(other)]
}

impl Comparisons {
    /// Compares every two faces, on all cores. What reaches the threshold of the rate `highest` is kept one by one.
    pub(super) fn of(faces: &Labelled, highest: f64) -> Self {
        let people = faces.count();
        let mut faces_of = vec![0_u32; people];
        for person in &faces.people {
            faces_of[*person] += 1;
        }
        let weight: Vec<f64> = faces_of.iter().map(|count| 1.0 / f64::from((*count).max(1))).collect();
        let own = |person: usize| 2.0 / (f64::from(faces_of[person]) * f64::from(faces_of[person] - 1));
        let tallies = on_all_cores(faces, |tally: &mut [Vec<f64>; 2], [one, other], score| {
            let (which, weight) = if one == other { (1, own(one)) } else { (0, weight[one] * weight[other]) };
            if tally[which].is_empty() {
                tally[which].resize(BINS, 0.0);
            }
            tally[which][bin(score, faces.metric)] += weight;
        });
        let mut sums = [vec![0.0; BINS], vec![0.0; BINS]];
        for (sum, tally) in tallies.iter().flat_map(|tally| [0, 1].map(|n| (n, &tally[n]))) {
            sums[sum].iter_mut().zip(tally).for_each(|(all, some)| *all += some);
        }
        let [impostor, genuine] = sums;
        let pairs: f64 = impostor.iter().sum();
        let floor = edge(&impostor, highest * pairs, faces.metric);
        let kept = on_all_cores(faces, |(kept, count): &mut (Vec<Kept>, u64), [one, other], score| {
            if one == other {
                return;
            }
            *count += 1;
            if f64::from(score) >= floor {
                #[expect(clippy::cast_possible_truncation, reason = "a set has at most thousands of people")]
                let people = [one, other].map(|person| person as u32);
                #[expect(clippy::cast_possible_truncation, reason = "a part of one")]
                kept.push(Kept { people, score, weight: (weight[one] * weight[other]) as f32 });
            }
        });
        let count = kept.iter().map(|(_, count)| count).sum();
        Self {
            impostor,
            genuine,
            kept: kept.into_iter().flat_map(|(kept, _)| kept).collect(),
            pairs,
            count,
            people,
            faces: faces.people.len(),
            left_out: faces.left_out.clone(),
            metric: faces.metric,
        }
    }

    /// The lowest threshold that at most this share of the pairs of people reaches, to four decimals.
    pub(super) fn score_at(&self, far: f64) -> f64 {
        // Rounded up so that the rate is kept.
        (edge(&self.impostor, far * self.pairs, self.metric) * 1e4 - 1e-6).ceil() / 1e4
    }

    /// How often two people's faces reach the threshold.
    pub(super) fn far_at(&self, score: f64) -> f64 {
        share(&self.impostor, score, self.metric)
    }

    /// How often two faces of one person reach the threshold; `None` where nobody has two.
    pub(super) fn tar_at(&self, score: f64) -> Option<f64> {
        Some(share(&self.genuine, score, self.metric)).filter(|share| share.is_finite())
    }

    /// Percent of two people's comparisons, and of one person's, in each of so many equal bins over all scores.
    pub(super) fn distributions(&self, bins: usize) -> [Vec<f64>; 2] {
        [&self.impostor, &self.genuine].map(|histogram| {
            let all: f64 = histogram.iter().sum();
            let percent = |part: &[f64]| if all > 0.0 { part.iter().sum::<f64>() / all * 100.0 } else { 0.0 };
            histogram.chunks(BINS.div_ceil(bins)).map(percent).collect()
        })
    }
}

fn bin(score: f32, metric: Metric) -> usize {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
    let bin = (metric.place_of(score.into()) * BINS as f64) as usize;
    bin.min(BINS - 1)
}

/// The lowest bin edge that at most `allowed` of the weight reaches.
fn edge(histogram: &[f64], allowed: f64, metric: Metric) -> f64 {
    let mut above = 0.0;
    // Sums of fractions are off by their rounding.
    let slack = allowed * 1e-9;
    let refused = histogram.iter().rposition(|weight| {
        above += weight;
        above > allowed + slack
    });
    metric.score_at(refused.map_or(0.0, |bin| (bin + 1) as f64 / BINS as f64))
}

/// The part of the weight that reaches a threshold.
fn share(histogram: &[f64], score: f64, metric: Metric) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
    let first = (metric.place_of(score) * BINS as f64).round() as usize;
    histogram[first.min(BINS)..].iter().sum::<f64>() / histogram.iter().sum::<f64>()
}

/// Threads that work at a time.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Tells every comparison: whose faces they are, the lower number first, and the score.
fn on_all_cores<T: Default + Send>(faces: &Labelled, tell: impl Fn(&mut T, [usize; 2], f32) + Sync) -> Vec<T> {
    let count = faces.embeddings.len();
    // Few people are in a pair that is left out: only their pairs are looked up.
    let mut is_named = vec![false; faces.count()];
    faces.left_out.iter().flatten().for_each(|person| is_named[*person] = true);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut tally = T::default();
        loop {
            let start = next.fetch_add(1, Ordering::Relaxed) * BLOCK;
            if start >= count {
                return tally;
            }
            for column in (start..count).step_by(BLOCK) {
                for row in start..(start + BLOCK).min(count) {
                    for other in column.max(row + 1)..(column + BLOCK).min(count) {
                        let pair = ordered(faces.people[row], faces.people[other]);
                        if !(is_named[pair[0]] && is_named[pair[1]] && faces.left_out.contains(&pair)) {
                            let score = faces.embeddings[row].score(&faces.embeddings[other], faces.metric);
                            tell(&mut tally, pair, score);
                        }
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores()).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|t| t.join().expect("compare faces; this is a bug: scores do not panic")).collect()
    })
}

#[cfg(test)]
pub(super) mod tests {
    use fastrand::Rng;

    use super::*;

    /// Random directions of 24 dimensions, with one to three faces near each.
    pub(in super::super) fn crowd(people: usize, seed: u64) -> Labelled {
        let mut random = Rng::with_seed(seed);
        let mut normal = move || (0..12).map(|_| random.f32()).sum::<f32>() - 6.0;
        let person = |n: usize| {
            let center: Vec<f32> = (0..24).map(|_| normal()).collect();
            let mut near = || Embedding::normalised(center.iter().map(|at| at + normal() * 0.3).collect()).unwrap();
            (n.to_string(), (0..=n % 3).map(|_| near()).collect())
        };
        Labelled::new((0..people).map(person).collect::<Vec<_>>(), [], Metric::Cosine)
    }

    fn towards(x: f32) -> Embedding {
        Embedding::normalised(vec![x, (1.0 - x * x).sqrt()]).unwrap()
    }

    #[test]
    fn each_pair_of_people_counts_the_same() {
        // Ann has a hundred faces like Bob's one, Cy is like nobody.
        let people = || {
            let faces = [("Ann", vec![towards(0.9); 100]), ("Bob", vec![towards(1.0)]), ("Cy", vec![towards(-1.0)])];
            faces.map(|(name, faces)| (name.to_owned(), faces))
        };
        let compared = Comparisons::of(&Labelled::new(people(), [], Metric::Cosine), 0.5);
        assert!((compared.pairs - 3.0).abs() < 1e-9, "three pairs of people");
        assert_eq!((compared.count, compared.people, compared.faces, compared.kept.len()), (201, 3, 102, 100));
        assert!((compared.far_at(0.8) - 1.0 / 3.0).abs() < 1e-6);
        assert!((compared.tar_at(0.99).unwrap() - 1.0).abs() < 1e-9, "one person's are not two people's");
        for aliases in [["Ann", "Bob"], ["Bob", "Ann"]] {
            let faces = Labelled::new(people(), [aliases, ["Ann", "Dan"]], Metric::Cosine);
            let compared = Comparisons::of(&faces, 0.5);
            assert!((compared.pairs - 2.0).abs() < 1e-9 && compared.far_at(0.8) == 0.0);
            let without_cy = faces.of_people(&[true, true, false]);
            assert!(Comparisons::of(&without_cy, 0.5).pairs == 0.0, "still left out");
        }
    }

    #[test]
    fn thresholds_keep_their_rates_however_blocks_fall() {
        let faces = crowd(200, 3);
        let compared = Comparisons::of(&faces, 0.1);
        let mut pairs = 0;
        for one in 0..faces.people.len() {
            pairs += faces.people[..one].iter().filter(|other| **other != faces.people[one]).count();
        }
        assert_eq!(compared.count, pairs as u64);
        assert!((compared.pairs - 200.0 * 199.0 / 2.0).abs() < 1e-6);
        let apart = Comparisons::of(&Labelled { metric: Metric::Euclidean, ..crowd(200, 3) }, 0.1);
        for far in [1e-1, 1e-2, 1e-3] {
            for compared in [&compared, &apart] {
                let found = compared.far_at(compared.score_at(far));
                assert!(found <= far * 1.000_001 && found > far * 0.9, "{far}: {found}");
            }
            // Of unit vectors a cosine is a distance, and orders pairs as that does.
            let distance = (2.0 - 2.0 * compared.score_at(far)).sqrt();
            assert!((1.0 - distance - apart.score_at(far)).abs() < 1e-3, "{far}: {distance}");
        }
        let kept: f64 = compared.kept.iter().map(|kept| f64::from(kept.weight)).sum();
        assert!((kept / compared.pairs - 0.1).abs() < 1e-3);
        for distribution in compared.distributions(100) {
            assert_eq!(distribution.len(), 100);
            assert!((distribution.iter().sum::<f64>() - 100.0).abs() < 1e-6);
        }
    }

    #[test]
    fn halves_have_their_own_people() {
        let faces = crowd(30, 5);
        let is_in: Vec<bool> = (0..30).map(|n| n % 2 == 0).collect();
        let half = faces.of_people(&is_in);
        assert_eq!(half.count(), 15);
        assert_eq!(half.people.len(), faces.people.iter().filter(|person| *person % 2 == 0).count());
        assert_eq!(half.embeddings[0], faces.embeddings[0]);
    }
}
