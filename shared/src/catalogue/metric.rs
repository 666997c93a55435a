//! How two vectors of a pipeline are compared: `recognizer.metric` of an entry, and what a score is for that.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How two vectors are compared. Whichever it is, a score is the higher the more alike two faces are, and 1 at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// The cosine of their angle: the score itself.
    #[default]
    Cosine,
    /// Their distance; the score is 1 minus it, so that more is more alike here too.
    Euclidean,
}

impl Metric {
    /// Whether two vectors may have this score: of -1 to 1 for a cosine, of 1 or anything below for a distance.
    pub fn has(self, score: f32) -> bool {
        let lowest = if self == Self::Cosine { -1.0 } else { f32::MIN };
        (lowest..=1.0).contains(&score)
    }

    /// What a threshold must be, where [`Self::has`] does not know it.
    pub fn must(self) -> &'static str {
        match self {
            Self::Cosine => "must lie between -1 and 1",
            Self::Euclidean => "must be 1 at most: it is 1 less the distance of two vectors",
        }
    }

    /// What a score is, for people.
    pub fn score_name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Euclidean => "1 - distance",
        }
    }

    /// Where a score lies among all there can be, 0 to 1, rising with it: for counting scores in cells of equal width. Distances
    /// have no end, so that the cells are the wider the further apart two faces are.
    pub fn place_of(self, score: f64) -> f64 {
        match self {
            Self::Cosine => f64::midpoint(score, 1.0),
            Self::Euclidean => (2.0 - score).max(1.0).recip(),
        }
    }

    /// The score at a place of [`Self::place_of`]; a distance beyond a million counts as one of a million.
    pub fn score_at(self, place: f64) -> f64 {
        match self {
            Self::Cosine => place * 2.0 - 1.0,
            Self::Euclidean => 2.0 - place.max(1e-6).recip(),
        }
    }
}

impl Metric {
    /// Its name, as entries have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Euclidean => "euclidean",
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distance_has_no_lowest_score() {
        for (metric, score, has) in [
            (Metric::Cosine, -1.0, true),
            (Metric::Cosine, -1.5, false),
            (Metric::Euclidean, -1.5, true),
            (Metric::Euclidean, 1.0, true),
            (Metric::Euclidean, 1.5, false),
            (Metric::Euclidean, f32::NEG_INFINITY, false),
            (Metric::Euclidean, f32::NAN, false),
        ] {
            assert_eq!(metric.has(score), has, "{metric} {score}");
        }
    }

    #[test]
    fn places_rise_with_scores_and_lead_back() {
        for metric in [Metric::Cosine, Metric::Euclidean] {
            let scores: &[f64] =
                if metric == Metric::Cosine { &[-1.0, 0.0, 0.4, 1.0] } else { &[-30.0, -1.0, 0.4, 1.0] };
            let places: Vec<f64> = scores.iter().map(|score| metric.place_of(*score)).collect();
            assert!(places.is_sorted_by(|a, b| a < b) && places[0] >= 0.0 && places[3] <= 1.0, "{places:?}");
            for (score, place) in scores.iter().zip(&places) {
                assert!((metric.score_at(*place) - score).abs() < 1e-9, "{metric} {score}");
            }
            assert!(metric.score_at(0.0).is_finite());
        }
    }
}
