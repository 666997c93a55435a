//! What a score means: false accept rates measured against thresholds.

use serde::Deserialize;

use super::Metric;

/// `[calibration]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// The faces and pairs it was measured on.
    pub measured_on: String,
    /// False accept rates of one comparison of two persons' faces, falling.
    pub far: Vec<f64>,
    /// The threshold that gives each, rising. An entry may call it `cosine` where its metric is that.
    #[serde(alias = "cosine")]
    pub score: Vec<f32>,
    /// The lowest of the rates that comparisons were counted for, where others lie on the line beyond it; the lowest of all
    /// where absent.
    pub measured_far: Option<f64>,
}

/// Below this rate every figure is taken as extrapolated: what was measured there on labelled faces is their wrong labels as
/// much as anything (LFW has a dozen persons under two names, and millions of pairs).
pub const LOWEST_FAR: f64 = 1e-5;
/// Measured points of a calibration at most.
const MOST_POINTS: usize = 32;
/// A rate that is found at its own threshold again is off by what a score of 32 bits is.
const ROUNDING: f64 = 1e-5;

/// A threshold for a false accept rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// A score at or above it is a match.
    pub score: f32,
    /// The rate lies beyond what was measured, so that the threshold is a guess along the curve's last slope.
    pub extrapolated: bool,
}

/// What is wrong with measured points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    /// `points`, `far`, `measured_far`, or `cosine`, which is what the API calls a threshold whatever the metric is.
    pub(crate) field: &'static str,
    /// Which of the points, where it is one's.
    pub(crate) point: Option<usize>,
    /// What it must be.
    pub(crate) why: &'static str,
}

/// Checks measured points, false accept rates with the thresholds of that metric, and the lowest of the rates that was counted
/// for.
///
/// # Errors
/// The first thing that makes no sense.
pub(crate) fn check_points(points: &[(f64, f32)], measured_far: Option<f64>, metric: Metric) -> Result<(), Flaw> {
    let wrong = |field, point, why| Err(Flaw { field, point, why });
    if !(2..=MOST_POINTS).contains(&points.len()) {
        return wrong("points", None, "must be 2 to 32: between two of them others are calculated");
    }
    for (n, (far, score)) in points.iter().enumerate() {
        let before = n.checked_sub(1).map(|before| points[before]);
        if !(*far > 0.0 && *far < 1.0) {
            return wrong("far", Some(n), "must lie between 0 and 1, and be neither");
        }
        if before.is_some_and(|(before, _)| before <= *far) {
            return wrong("far", Some(n), "must be lower than the one before");
        }
        if !metric.has(*score) {
            return wrong("cosine", Some(n), metric.must());
        }
        if before.is_some_and(|(_, before)| before >= *score) {
            let why = "must be higher than the one before: a lower rate needs a higher threshold";
            return wrong("cosine", Some(n), why);
        }
    }
    let measured = points[points.len() - 1].0..=points[0].0;
    if measured_far.is_some_and(|far| !measured.contains(&far)) {
        return wrong("measured_far", None, "must lie between the lowest and the highest far of the points");
    }
    Ok(())
}

/// How often something happens that should not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// A share of all cases, 0 to 1.
    pub value: f64,
    /// It is a guess along the curve's last slope, as a threshold may be.
    pub extrapolated: bool,
}

impl Calibration {
    pub(super) fn check(&self, metric: Metric) -> Result<(), String> {
        let threshold = if metric == Metric::Cosine { "cosine" } else { "score" };
        if self.far.len() != self.score.len() {
            return Err(format!("calibration needs a {threshold} for each of its rates (far)"));
        }
        let points: Vec<(f64, f32)> = self.far.iter().copied().zip(self.score.iter().copied()).collect();
        check_points(&points, self.measured_far, metric).map_err(|flaw| {
            let field = if flaw.field == "cosine" { threshold } else { flaw.field };
            let point = flaw.point.map_or_else(String::new, |point| format!("[{point}]"));
            format!("calibration.{field}{point} {}", flaw.why)
        })
    }

    /// The threshold at which one comparison of two persons' faces is a false match with probability `far`.
    ///
    /// Between measured points the score is linear in the logarithm of the rate, which is how the tail of impostor
    /// scores falls; beyond them the last slope goes on.
    pub fn threshold_at(&self, far: f64) -> Threshold {
        let extrapolated = self.is_extrapolated(far);
        let right = self.far.partition_point(|f| *f > far).clamp(1, self.far.len() - 1);
        let (x0, x1) = (self.far[right - 1].log10(), self.far[right].log10());
        let (y0, y1) = (f64::from(self.score[right - 1]), f64::from(self.score[right]));
        let score = y0 + (y1 - y0) * (far.log10() - x0) / (x1 - x0);
        #[expect(clippy::cast_possible_truncation, reason = "it is near those that were measured, which are f32")]
        Threshold { score: score.min(1.0) as f32, extrapolated }
    }

    /// Whether this rate of one comparison lies beyond what was measured.
    pub fn is_extrapolated(&self, far: f64) -> bool {
        let lowest = self.measured_far.unwrap_or(self.far[self.far.len() - 1]).max(LOWEST_FAR);
        far > self.far[0] * (1.0 + ROUNDING) || far < lowest * (1.0 - ROUNDING)
    }

    /// How often one comparison of two persons' faces gives at least this score, at most 1.
    pub fn far_at(&self, score: f32) -> f64 {
        let right = self.score.partition_point(|s| *s < score).clamp(1, self.score.len() - 1);
        let (x0, x1) = (f64::from(self.score[right - 1]), f64::from(self.score[right]));
        let (y0, y1) = (self.far[right - 1].log10(), self.far[right].log10());
        10f64.powf(y0 + (y1 - y0) * (f64::from(score) - x0) / (x1 - x0)).min(1.0)
    }

    /// The threshold at which a search through `faces` stored faces names somebody for a stranger with probability
    /// `fpir` (false positive identification rate, ISO/IEC 19795-1): the comparisons are taken as independent, so
    /// fpir = 1 - (1 - far)^faces.
    pub fn threshold_for_gallery(&self, fpir: f64, faces: usize) -> Threshold {
        self.threshold_at(-f64::exp_m1(f64::ln_1p(-fpir) / faces.max(1) as f64))
    }

    /// The false positive identification rate of a search through `faces` stored faces at this score.
    pub fn fpir_at(&self, score: f32, faces: usize) -> Rate {
        let far = self.far_at(score);
        let value = -f64::exp_m1(f64::ln_1p(-far.min(1.0 - 1e-12)) * faces.max(1) as f64);
        Rate { value, extrapolated: self.is_extrapolated(far) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calibration() -> Calibration {
        Calibration {
            measured_on: "a test".to_owned(),
            far: vec![1e-1, 1e-2, 1e-3],
            score: vec![0.1, 0.2, 0.4],
            measured_far: None,
        }
    }

    #[test]
    fn interpolates_in_the_logarithm() {
        let cases = [
            (1e-1, 0.1, false),
            (1e-2, 0.2, false),
            (10f64.powf(-2.5), 0.3, false),
            (1e-4, 0.6, true),
            (0.5, 0.03, true),
        ];
        for (far, score, extrapolated) in cases {
            let threshold = calibration().threshold_at(far);
            assert!((threshold.score - score).abs() < 1e-3, "{far}: {threshold:?}");
            assert_eq!(threshold.extrapolated, extrapolated, "{far}");
            assert!((calibration().far_at(threshold.score).log10() - far.log10()).abs() < 1e-3);
        }
    }

    #[test]
    fn a_larger_gallery_needs_a_higher_threshold() {
        let one = calibration().threshold_for_gallery(0.01, 1);
        assert!((one.score - 0.2).abs() < 1e-4);
        let ten = calibration().threshold_for_gallery(0.01, 10);
        assert!((ten.score - 0.4).abs() < 2e-3, "{ten:?}");
        assert!((calibration().fpir_at(ten.score, 10).value - 0.01).abs() < 1e-4);
        assert!((calibration().fpir_at(-1.0, 10).value - 1.0).abs() < 1e-9);
    }

    #[test]
    fn what_labels_cannot_tell_is_extrapolated() {
        let far = vec![1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6];
        let long = Calibration { far, score: vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6], ..calibration() };
        assert!(!long.threshold_at(1e-5).extrapolated);
        assert!(long.threshold_at(9e-6).extrapolated, "measured or not");
        assert!(!long.fpir_at(0.5, 100).extrapolated, "the rate of one comparison decides, not the gallery's");
        assert!(long.fpir_at(0.52, 100_000).extrapolated);
        assert!(long.fpir_at(0.05, 1).extrapolated, "so it is above the highest");
        let short = Calibration { measured_far: Some(1e-3), ..long };
        assert!(!short.threshold_at(1e-3).extrapolated && short.threshold_at(1e-4).extrapolated);
    }

    #[test]
    fn an_unordered_table_is_refused() {
        let unordered = Calibration { score: vec![0.1, 0.4, 0.2], ..calibration() };
        assert!(unordered.check(Metric::Cosine).is_err());
        assert!(Calibration { far: vec![0.1], score: vec![0.1], ..calibration() }.check(Metric::Cosine).is_err());
        assert!(calibration().check(Metric::Cosine).is_ok());
    }

    #[test]
    fn a_distance_may_be_long() {
        let far_apart = Calibration { score: vec![-20.0, -12.0, -9.5], ..calibration() };
        assert!(far_apart.check(Metric::Cosine).unwrap_err().contains("calibration.cosine[0]"));
        far_apart.check(Metric::Euclidean).unwrap();
        assert!((far_apart.threshold_at(1e-2).score + 12.0).abs() < 1e-4);
        assert!((far_apart.threshold_at(1e-9).score - 1.0).abs() < 1e-6, "no two vectors are more alike than the same");
        assert!((far_apart.fpir_at(-12.0, 1).value - 1e-2).abs() < 1e-6);
        let impossible = Calibration { score: vec![0.1, 0.4, 1.1], ..calibration() };
        assert!(impossible.check(Metric::Euclidean).unwrap_err().contains("calibration.score[2]"));
    }

    #[test]
    fn the_rules_are_those_of_calibrations_that_are_stored() {
        let good = calibration();
        good.check(Metric::Cosine).unwrap();
        let last = good.score.len() - 1;
        let with = |change: &dyn Fn(&mut Calibration)| {
            let mut changed = good.clone();
            change(&mut changed);
            changed.check(Metric::Cosine).unwrap_err()
        };
        assert!(with(&|c| c.score[last] = f32::INFINITY).contains("cosine"));
        assert!(with(&|c| c.score[0] = -1.5).contains("cosine"));
        assert!(with(&|c| c.measured_far = Some(0.9)).contains("measured_far"));
        assert!(with(&|c| c.measured_far = Some(f64::NAN)).contains("measured_far"));
        assert!(with(&|c| c.far = vec![0.5; MOST_POINTS + 1]).contains("rates"));
        let many = |c: &mut Calibration| (c.far, c.score) = (vec![0.5; MOST_POINTS + 1], vec![0.5; MOST_POINTS + 1]);
        assert!(with(&many).contains(&format!("2 to {MOST_POINTS}")));
    }
}
