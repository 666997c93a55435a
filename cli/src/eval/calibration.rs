//! How often faces of different people reach a score, over every such pair there is: the catalogue's `[calibration]`.

use std::collections::HashSet;
use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use shared::catalogue::Metric;
use shared::embedding::Embedding;

use super::pairs::Photo;

/// False accept rates a comparison that get a threshold. The last leaves some thirty of LFW's pairs above it.
pub(super) const RATES: [f64; 6] = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6];
/// What the pairs are, as the catalogue says it.
const MEASURED_ON: &str = "LFW, all cross pairs of different people, aliases left out";
/// Bins of all scores: a cosine is off by at most 2 / 200,000, and a short distance by no more.
const BINS: usize = 200_000;
/// Vectors a side of a block: two blocks of 128 components stay in a core's own cache.
const BLOCK: usize = 128;
/// How many of the most similar pairs are shown.
const HIGHEST: usize = 20;

/// Two names that LFW gives to one person.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Alias {
    pub(crate) one: &'static str,
    pub(crate) other: &'static str,
    pub(super) reason: &'static str,
}

/// Pairs of these names are no pairs of different people: the names themselves or the photograph show it, and some of
/// the pairs were among the most similar ones. A pair that only looks alike stays in: that can make a threshold too
/// strict, never too lenient.
pub(crate) const ALIASES: [Alias; 11] = [
    alias("Chyung_Dai-chul", "Dai_Chul_Chyung", "one name in two orders"),
    alias("Cristina_Fernandez", "Cristina_Kirchner", "birth name and married name"),
    alias("Felipe_De_Borbon", "Prince_Felipe", "name and title"),
    alias("Gabrielle_Rose", "Martha_Bowen", "one photograph under two names"),
    alias("Hasan_Wirayuda", "Hassan_Wirajuda", "two spellings"),
    alias("John_Barnett", "John_Burnett", "two spellings"),
    alias("John_Gruden", "Jon_Gruden", "two spellings"),
    alias("Joseph_Blatter", "Sepp_Blatter", "name and nickname"),
    alias("Mireya_Elisa_Moscoso_Rodriguez", "Mireya_Moscoso", "full and short name"),
    alias("Nan_Wang", "Wang_Nan", "one name in two orders"),
    alias("Odai_Hussein", "Uday_Hussein", "two spellings"),
];

const fn alias(one: &'static str, other: &'static str, reason: &'static str) -> Alias {
    Alias { one, other, reason }
}

/// Two pictures of different people, and how alike they are.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct CrossPair {
    pub(super) one: String,
    pub(super) other: String,
    pub(super) score: f32,
}

/// Thresholds by false accept rate.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct Calibration {
    pub(super) metric: Metric,
    pub(super) measured_on: &'static str,
    pub(super) far: Vec<f64>,
    /// Scores of the metric.
    pub(super) score: Vec<f64>,
    /// Comparisons that were counted.
    pub(super) pairs: u64,
    /// Who was left out, and why.
    pub(super) aliases_left_out: Vec<Alias>,
    /// The most similar pairs counted: an alias that nobody noted yet would be among them.
    pub(super) highest_cross_pairs: Vec<CrossPair>,
}

/// The faces compared, person by person.
pub(super) struct Gallery {
    pub(super) metric: Metric,
    pub(super) photos: Vec<Photo>,
    pub(super) embeddings: Vec<Embedding>,
}

/// Compares every two faces of different people, on all cores.
pub(super) fn measure(gallery: &Gallery, aliases: &[Alias]) -> Calibration {
    let people = people(&gallery.photos);
    let left_out = left_out(gallery, &people, aliases);
    let next = AtomicUsize::new(0);
    let count = gallery.embeddings.len();
    let work = || {
        let mut tally = Tally::new(gallery.metric);
        loop {
            let start = next.fetch_add(1, Ordering::Relaxed) * BLOCK;
            if start >= count {
                return tally;
            }
            let rows = start..(start + BLOCK).min(count);
            for column in (start..count).step_by(BLOCK) {
                tally.count_block(
                    &gallery.embeddings,
                    &people,
                    &left_out,
                    [rows.clone(), column..(column + BLOCK).min(count)],
                );
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let tally = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().fold(Tally::new(gallery.metric), |mut all, thread| {
            all.add(thread.join().expect("compare faces; this is a bug: scores do not panic"));
            all
        })
    });
    tally.calibration(gallery, aliases)
}

/// How many of `count` comparisons may pass at a rate.
pub(super) fn allowed(far: f64, count: u64) -> u64 {
    // A rate such as 1e-3 has no exact double: without the small step, 0.29 * 100 would be 28.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and `count`")]
    let allowed = (far * count as f64 + 1e-6).floor() as u64;
    allowed
}

/// Counts of scores in bins of equal width over all there can be.
struct Histogram {
    metric: Metric,
    bins: Vec<u64>,
}

impl Histogram {
    fn new(metric: Metric) -> Self {
        Self { metric, bins: vec![0; BINS] }
    }

    fn count(&mut self, score: f32) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
        let bin = (self.metric.place_of(score.into()) * BINS as f64) as usize;
        self.bins[bin.min(BINS - 1)] += 1;
    }

    fn total(&self) -> u64 {
        self.bins.iter().sum()
    }

    /// The lowest bin edge that at most `allowed` scores reach.
    fn edge_above_all_but(&self, allowed: u64) -> f64 {
        let mut above = 0;
        let refused = self.bins.iter().rposition(|count| {
            above += count;
            above > allowed
        });
        self.metric.score_at(refused.map_or(0.0, |bin| (bin + 1) as f64 / BINS as f64))
    }
}

/// What one thread counted.
struct Tally {
    histogram: Histogram,
    /// Score and places of the most similar pairs, falling.
    highest: Vec<(f32, usize, usize)>,
}

impl Tally {
    fn new(metric: Metric) -> Self {
        Self { histogram: Histogram::new(metric), highest: Vec::with_capacity(HIGHEST + 1) }
    }

    fn count_block(
        &mut self,
        embeddings: &[Embedding],
        people: &[usize],
        left_out: &HashSet<[usize; 2]>,
        [rows, columns]: [Range<usize>; 2],
    ) {
        for row in rows {
            for column in columns.start.max(row + 1)..columns.end {
                let (one, other) = (people[row], people[column]);
                if one == other || (!left_out.is_empty() && left_out.contains(&[one, other])) {
                    continue;
                }
                let score = embeddings[row].score(&embeddings[column], self.histogram.metric);
                self.histogram.count(score);
                self.keep((score, row, column));
            }
        }
    }

    fn keep(&mut self, pair: (f32, usize, usize)) {
        if self.highest.len() < HIGHEST || self.highest.last().is_some_and(|lowest| pair.0 > lowest.0) {
            let place = self.highest.partition_point(|kept| kept.0 >= pair.0);
            self.highest.insert(place, pair);
            self.highest.truncate(HIGHEST);
        }
    }

    fn add(&mut self, other: Self) {
        self.histogram.bins.iter_mut().zip(other.histogram.bins).for_each(|(all, count)| *all += count);
        other.highest.into_iter().for_each(|pair| self.keep(pair));
    }

    fn calibration(self, gallery: &Gallery, aliases: &[Alias]) -> Calibration {
        let pairs = self.histogram.total();
        // Four decimals, rounded up so that the rate is kept.
        let score = |far: f64| (self.histogram.edge_above_all_but(allowed(far, pairs)) * 1e4 - 1e-6).ceil() / 1e4;
        let name = |place: usize| gallery.photos[place].to_string();
        Calibration {
            metric: gallery.metric,
            measured_on: MEASURED_ON,
            far: RATES.to_vec(),
            score: RATES.map(score).to_vec(),
            pairs,
            aliases_left_out: aliases.to_vec(),
            highest_cross_pairs: self
                .highest
                .iter()
                .map(|&(score, one, other)| CrossPair { one: name(one), other: name(other), score })
                .collect(),
        }
    }
}

impl Calibration {
    /// The catalogue's section.
    pub(super) fn toml(&self) -> String {
        let list = |numbers: Vec<String>| numbers.join(", ");
        let far = list(self.far.iter().map(|far| format!("{far:e}")).collect());
        let score = list(self.score.iter().map(|score| format!("{score:.4}")).collect());
        let threshold = if self.metric == Metric::Cosine { "cosine" } else { "score" };
        format!("[calibration]\nmeasured_on = \"{}\"\nfar = [{far}]\n{threshold} = [{score}]\n", self.measured_on)
    }
}

/// A number for each picture's person: pictures of one person lie side by side.
fn people(photos: &[Photo]) -> Vec<usize> {
    let mut number = 0;
    (0..photos.len())
        .map(|place| {
            number += usize::from(place > 0 && photos[place].person != photos[place - 1].person);
            number
        })
        .collect()
}

/// The aliases among these people, as numbers in the order in which a pair meets them.
fn left_out(gallery: &Gallery, people: &[usize], aliases: &[Alias]) -> HashSet<[usize; 2]> {
    let number = |name: &str| gallery.photos.iter().position(|photo| photo.person == name).map(|place| people[place]);
    aliases
        .iter()
        .filter_map(|alias| Some([number(alias.one)?, number(alias.other)?]))
        .map(|[one, other]| [one.min(other), one.max(other)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unit vectors in the plane at angles that no two pairs share.
    fn gallery(names: &[&str]) -> Gallery {
        let photos = names
            .iter()
            .enumerate()
            .map(|(n, name)| Photo { person: (*name).to_owned(), number: u32::try_from(n).unwrap() });
        let angle = |n: usize| (n * n) as f32 * 0.001 + n as f32 * 0.0037;
        let vector = |n: usize| Embedding::normalised(vec![angle(n).cos(), angle(n).sin()]).unwrap();
        let embeddings = (0..names.len()).map(vector).collect();
        Gallery { metric: Metric::Cosine, photos: photos.collect(), embeddings }
    }

    #[test]
    fn histogram_quantiles_agree_with_exact_ones() {
        let mut histogram = Histogram::new(Metric::Cosine);
        // A fixed walk over -1..1 (golden ratio): spread out, all different.
        let mut scores: Vec<f32> = (1..=10_000u16).map(|n| (f32::from(n) * 0.618_034).fract() * 2.0 - 1.0).collect();
        for score in &scores {
            histogram.count(*score);
        }
        scores.sort_by(|a, b| b.total_cmp(a));
        for far in [1e-1, 1e-2, 1e-3, 1e-4] {
            let allowed = allowed(far, 10_000);
            let exact = f64::from(scores[usize::try_from(allowed).unwrap()]);
            let found = histogram.edge_above_all_but(allowed);
            assert!(found >= exact && found - exact <= 1.01e-5, "{far}: {found} beside {exact}");
        }
        assert!((histogram.edge_above_all_but(10_000) + 1.0).abs() < 1e-12);
        histogram.count(1.0);
        histogram.count(-1.000_001);
        assert_eq!(histogram.total(), 10_002);
    }

    #[test]
    fn rates_without_an_exact_double_are_not_cut_short() {
        assert_eq!(
            [allowed(0.29, 100), allowed(1e-3, 3000), allowed(1e-6, 29_600_000), allowed(0.1, 9)],
            [29, 3, 29, 0]
        );
    }

    #[test]
    fn every_cross_pair_counts_once_however_blocks_fall() {
        let names: Vec<String> = (0..300).map(|n| format!("p{:03}", n / 2)).collect();
        let gallery = gallery(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let found = measure(&gallery, &[]);
        assert_eq!(found.pairs, 300 * 299 / 2 - 150);
        assert_eq!(found.highest_cross_pairs.len(), HIGHEST);
        assert!(found.highest_cross_pairs.is_sorted_by(|a, b| a.score >= b.score));
        assert!(found.score.is_sorted());
    }

    #[test]
    fn aliases_are_left_out_whichever_comes_first() {
        let gallery = gallery(&["Ann", "Ann", "Bob", "Cy"]);
        for (one, other) in [("Ann", "Bob"), ("Bob", "Ann")] {
            let alias = Alias { one, other, reason: "a test" };
            let found = measure(&gallery, &[alias]);
            assert_eq!(found.pairs, 3, "Cy with the three others");
            assert!(found.highest_cross_pairs.iter().all(|pair| pair.other == "Cy_0003"));
        }
        assert_eq!(measure(&gallery, &[Alias { one: "Ann", other: "Zoe", reason: "a test" }]).pairs, 5);
    }

    #[test]
    fn the_snippet_is_a_catalogue_section() {
        let mut found = measure(&gallery(&["Ann", "Bob", "Cy"]), &[]);
        found.score = vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6];
        for (metric, threshold) in [(Metric::Cosine, "cosine"), (Metric::Euclidean, "score")] {
            found.metric = metric;
            let section: toml::Table = toml::from_str(&found.toml()).unwrap();
            assert!(section["calibration"].get(threshold).is_some(), "{metric}");
            let read: shared::catalogue::Calibration = section["calibration"].clone().try_into().unwrap();
            assert_eq!(read.far, RATES);
            assert_eq!(read.score, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]);
        }
    }

    #[test]
    fn distances_are_measured_as_they_are() {
        let names: Vec<String> = (0..100).map(|n| format!("p{n:03}")).collect();
        let mut gallery = gallery(&names.iter().map(String::as_str).collect::<Vec<_>>());
        gallery.metric = Metric::Euclidean;
        // Ten apart, and each as far as ever from all others: of 4950 pairs 99 are next to each other.
        let vector = |n: u8| Embedding::as_given(vec![500.0, f32::from(n) * 10.0]).unwrap();
        gallery.embeddings = (0..100).map(vector).collect();
        let found = measure(&gallery, &[]);
        assert!((found.highest_cross_pairs[0].score + 9.0).abs() < 1e-5);
        // A hundredth are 49 pairs, fewer than those.
        assert!((-9.0..-8.98).contains(&found.score[1]), "{:?}", found.score);
        assert!(found.score[0] < -18.0, "{:?}", found.score);
    }
}
