//! What a score means in a collection: match, uncertain or unknown.

use std::sync::Arc;

use shared::catalogue::{Calibration, Metric, Rate, Threshold};
use shared::db::collections::CollectionSettings;
use shared::job::Decision;

use crate::calibrations::InUse;

/// `uncertain` begins where ten times the allowed rate of false matches would be.
const UNCERTAIN_RATE: f64 = 10.0;
/// With a threshold set by hand there is no rate to go by; this much below it is uncertain.
const UNCERTAIN_COSINE: f32 = 0.05;
/// The same for a distance, as a part of it: 0.05 at dlib's threshold of 0.6, whatever a pipeline's distances are.
const UNCERTAIN_SHARE: f32 = 1.0 / 12.0;

/// What a job decides by: the same for all that it compares.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Whose scores they are.
    pub pipeline: String,
    /// How this pipeline's vectors are compared.
    pub metric: Metric,
    /// The collection's settings, as they hold for this pipeline.
    pub settings: CollectionSettings,
    /// What this pipeline's scores mean in the collection.
    pub calibration: Option<Arc<InUse>>,
}

/// The thresholds of one search or comparison; scores of the pipeline's metric, called as the setting is.
#[derive(Clone, Debug)]
pub struct Thresholds<'a> {
    /// A score at or above is a match.
    pub match_cosine: f32,
    /// A score at or above is uncertain.
    pub uncertain_cosine: f32,
    /// The match threshold lies beyond what was measured.
    pub extrapolated: bool,
    calibration: Option<&'a Calibration>,
    comparisons: usize,
}

/// There is nothing to decide by.
#[derive(Debug, thiserror::Error)]
#[error("pipeline {0} has no measured thresholds; calibrate it, or set match_cosine in the collection's settings")]
pub struct NoCalibration(String);

impl<'a> Thresholds<'a> {
    /// For a search through a gallery that stands for so many comparisons (`GallerySize::comparisons`).
    pub fn identify(terms: &'a Terms, comparisons: usize) -> Result<Self, NoCalibration> {
        Self::at(terms, terms.settings.target_fpir, comparisons)
    }

    /// For the best of so many comparisons with one person (`template::comparisons`): each is one more chance of a false match.
    pub fn verify(terms: &'a Terms, comparisons: usize) -> Result<Self, NoCalibration> {
        Self::at(terms, terms.settings.verify_far, comparisons.max(1))
    }

    fn at(terms: &'a Terms, rate: f64, comparisons: usize) -> Result<Self, NoCalibration> {
        let calibration = terms.calibration.as_ref().map(|in_use| &in_use.calibration);
        let (matching, uncertain) = match (terms.settings.match_cosine, calibration) {
            (Some(score), _) => (Threshold { score, extrapolated: false }, below(score, terms.metric)),
            (None, Some(calibration)) => {
                let loose = (rate * UNCERTAIN_RATE).min(0.5).max(rate);
                let uncertain = calibration.threshold_for_gallery(loose, comparisons).score;
                (calibration.threshold_for_gallery(rate, comparisons), uncertain)
            }
            (None, None) => return Err(NoCalibration(terms.pipeline.clone())),
        };
        Ok(Self {
            match_cosine: matching.score,
            uncertain_cosine: uncertain,
            extrapolated: matching.extrapolated,
            calibration,
            comparisons,
        })
    }

    /// What this score says.
    pub fn decide(&self, score: f32) -> Decision {
        if score >= self.match_cosine {
            Decision::Match
        } else if score >= self.uncertain_cosine {
            Decision::Uncertain
        } else {
            Decision::Unknown
        }
    }

    /// What is known of strangers' scores; `None` where they were never measured.
    pub fn calibration(&self) -> Option<&'a Calibration> {
        self.calibration
    }

    /// How often a stranger scores at least this, in a search of this size; `None` where that was never measured.
    pub fn false_positive_rate(&self, score: f32) -> Option<Rate> {
        self.calibration.map(|c| c.fpir_at(score, self.comparisons))
    }
}

/// Where `uncertain` begins below a threshold that was set by hand.
fn below(score: f32, metric: Metric) -> f32 {
    match metric {
        Metric::Cosine => score - UNCERTAIN_COSINE,
        Metric::Euclidean => 1.0 - (1.0 - score) * (1.0 + UNCERTAIN_SHARE),
    }
}

#[cfg(test)]
mod tests {
    use shared::catalogue::Catalogue;

    use super::*;

    fn terms(pipeline: &str) -> Terms {
        let catalogue = Catalogue::load(None).unwrap();
        let pipeline = catalogue.pipeline(pipeline).unwrap();
        Terms {
            pipeline: pipeline.name.clone(),
            metric: pipeline.recognizer.metric,
            settings: CollectionSettings::default(),
            calibration: pipeline.calibration.clone().map(|calibration| Arc::new(InUse { id: None, calibration })),
        }
    }

    #[test]
    fn a_larger_gallery_is_stricter() {
        let terms = terms("yunet-mobilefacenet");
        let small = Thresholds::identify(&terms, 10).unwrap();
        let large = Thresholds::identify(&terms, 10_000).unwrap();
        assert!(small.match_cosine < large.match_cosine);
        assert!(small.uncertain_cosine < small.match_cosine);
        assert!(!small.extrapolated && large.extrapolated, "a rate of 1e-6 a comparison");
        let score = small.match_cosine;
        assert_eq!(small.decide(score), Decision::Match);
        assert_eq!(small.decide(small.uncertain_cosine), Decision::Uncertain);
        assert_eq!(small.decide(0.0), Decision::Unknown);
        let rate = small.false_positive_rate(score).unwrap();
        assert!((rate.value - terms.settings.target_fpir).abs() < 1e-3 && !rate.extrapolated);
        assert!(small.false_positive_rate(0.9).unwrap().extrapolated);
    }

    #[test]
    fn a_person_of_many_faces_is_harder_to_verify() {
        let terms = terms("yunet-mobilefacenet");
        let one = Thresholds::verify(&terms, 1).unwrap();
        let twenty = Thresholds::verify(&terms, 20).unwrap();
        assert!(twenty.match_cosine > one.match_cosine);
        let score = one.match_cosine;
        assert_ne!(twenty.decide(score), Decision::Match, "twenty chances must not make a stranger a match");
        let rate = |thresholds: &Thresholds<'_>| thresholds.false_positive_rate(score).unwrap().value;
        assert!(rate(&twenty) > rate(&one));
    }

    #[test]
    fn without_calibration_a_threshold_must_be_set() {
        let mut terms = terms("yunet-sface");
        let refused = Thresholds::verify(&terms, 1).unwrap_err().to_string();
        assert!(refused.contains("match_cosine"), "{refused}");
        terms.settings.match_cosine = Some(0.363);
        let thresholds = Thresholds::verify(&terms, 1).unwrap();
        assert_eq!(thresholds.decide(0.4), Decision::Match);
        assert_eq!(thresholds.false_positive_rate(0.4), None);
    }

    #[test]
    fn below_a_distance_set_by_hand_uncertain_goes_on_for_a_part_of_it() {
        let mut terms = terms("yunet-sface");
        terms.metric = Metric::Euclidean;
        // dlib's 0.6, and a model whose distances are twenty times as long.
        for (distance, uncertain) in [(0.6, 0.65), (12.0, 13.0)] {
            terms.settings.match_cosine = Some(1.0 - distance);
            let thresholds = Thresholds::verify(&terms, 1).unwrap();
            assert!((thresholds.uncertain_cosine - (1.0 - uncertain)).abs() < 1e-5, "{thresholds:?}");
            assert_eq!(thresholds.decide(1.0 - distance), Decision::Match);
            assert_eq!(thresholds.decide(1.0 - f32::midpoint(distance, uncertain)), Decision::Uncertain);
            assert_eq!(thresholds.decide(1.0 - 1.1 * distance), Decision::Unknown);
        }
    }

    #[test]
    fn a_threshold_set_by_hand_counts_before_a_calibration() {
        let mut terms = terms("yunet-mobilefacenet");
        terms.settings.match_cosine = Some(0.9);
        let thresholds = Thresholds::identify(&terms, 10).unwrap();
        assert_eq!((thresholds.match_cosine.to_bits(), thresholds.extrapolated), (0.9f32.to_bits(), false));
        assert!(thresholds.false_positive_rate(0.3).is_some(), "what a score means is known nevertheless");
    }
}
