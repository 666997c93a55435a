//! What pair scores say of a recognizer: LFW's view 2 with its folds, rates at a threshold, equal error rate.
//!
//! Everywhere a pair counts as one person where its score is at or above the threshold.

/// No cosine is lower; the score of a distance may be.
const LOWEST: f32 = -1.0;

/// The score of a pair, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scored {
    pub(super) score: f32,
    pub(super) fold: usize,
    pub(super) is_same_person: bool,
}

/// Accuracy by LFW's view 2 (Huang et al. 2007).
#[derive(Clone, Debug)]
pub(super) struct FoldAccuracy {
    /// Mean over the folds, 0..1.
    pub(super) mean: f64,
    /// Standard deviation over the folds (n - 1), not the error of their mean.
    pub(super) std: f64,
    /// Each fold's accuracy, and the threshold that the others chose for it.
    pub(super) folds: Vec<(f64, f32)>,
}

/// A point of the ROC curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    pub(super) threshold: f32,
    /// Share of different people's pairs that pass.
    pub(super) far: f64,
    /// Share of one person's pairs that pass.
    pub(super) tar: f64,
}

/// Scores of both kinds, each falling.
#[derive(Debug)]
pub(super) struct Kinds {
    pub(super) genuine: Vec<f32>,
    pub(super) impostor: Vec<f32>,
}

impl FoldAccuracy {
    /// Mean of the folds' thresholds.
    pub(super) fn mean_threshold(&self) -> f32 {
        self.folds.iter().map(|(_, threshold)| threshold).sum::<f32>() / self.folds.len() as f32
    }
}

/// Judges each fold at the threshold that is best on all others.
pub(super) fn fold_accuracy(scored: &[Scored], folds: usize) -> FoldAccuracy {
    let judged: Vec<(f64, f32)> = (0..folds)
        .map(|fold| {
            let (held_out, others): (Vec<Scored>, Vec<Scored>) = scored.iter().partition(|pair| pair.fold == fold);
            let threshold = best_threshold(&others);
            let right = held_out.iter().filter(|pair| (pair.score >= threshold) == pair.is_same_person).count();
            (right as f64 / held_out.len() as f64, threshold)
        })
        .collect();
    let mean = judged.iter().map(|(accuracy, _)| accuracy).sum::<f64>() / folds as f64;
    let squares: f64 = judged.iter().map(|(accuracy, _)| (accuracy - mean).powi(2)).sum();
    FoldAccuracy { mean, std: (squares / (folds as f64 - 1.0)).sqrt(), folds: judged }
}

/// The threshold that judges most pairs rightly. Among equally good ones the middle one, midway between two scores: a
/// choice at the edge would only just hold on the pairs that chose it.
pub(super) fn best_threshold(scored: &[Scored]) -> f32 {
    let mut falling = scored.to_vec();
    falling.sort_by(|a, b| b.score.total_cmp(&a.score));
    let different = falling.iter().filter(|pair| !pair.is_same_person).count();
    let (mut right, mut most, mut best) = (different, 0, Vec::new());
    for (n, pair) in falling.iter().enumerate() {
        right = if pair.is_same_person { right + 1 } else { right - 1 };
        let below = falling.get(n + 1).map_or(LOWEST.min(pair.score), |next| next.score);
        if right < most || below >= pair.score {
            continue;
        }
        if right > most {
            (most, best) = (right, Vec::new());
        }
        best.push(f32::midpoint(pair.score, below));
    }
    best.get(best.len() / 2).copied().unwrap_or(1.0)
}

impl Kinds {
    pub(super) fn of(scored: &[Scored]) -> Self {
        let falling = |is_same_person| {
            let mut scores: Vec<f32> =
                scored.iter().filter(|pair| pair.is_same_person == is_same_person).map(|pair| pair.score).collect();
            scores.sort_by(|a, b| b.total_cmp(a));
            scores
        };
        Self { genuine: falling(true), impostor: falling(false) }
    }

    /// A threshold that all pass.
    fn lowest(&self) -> f32 {
        self.genuine.last().into_iter().chain(self.impostor.last()).copied().fold(LOWEST, f32::min)
    }

    /// The rates at a threshold.
    pub(super) fn at(&self, threshold: f32) -> Rates {
        let share = |scores: &[f32]| scores.partition_point(|s| *s >= threshold) as f64 / scores.len() as f64;
        Rates { threshold, far: share(&self.impostor), tar: share(&self.genuine) }
    }

    /// The rates at the lowest threshold that lets at most this share of different people's pairs pass.
    pub(super) fn at_far(&self, far: f64) -> Rates {
        let first_refused = super::calibration::allowed(far, self.impostor.len() as u64);
        let refused = usize::try_from(first_refused).ok().and_then(|n| self.impostor.get(n));
        self.at(refused.map_or_else(|| self.lowest(), |score| score.next_up()))
    }

    /// The ROC curve's upper corners from strict to lenient: for each number of different people's pairs that pass, the
    /// most pairs of one person that pass with them.
    pub(super) fn curve(&self) -> Vec<Rates> {
        self.impostor.iter().map(|refused| self.at(refused.next_up())).chain([self.at(self.lowest())]).collect()
    }

    /// The rate at which as many pairs of different people pass as pairs of one person are refused: where the two steps
    /// cross between scores, their mean where they are nearest.
    pub(super) fn equal_error_rate(&self) -> f64 {
        let scores = self.genuine.iter().chain(&self.impostor);
        let nearest = scores.map(|s| self.at(*s)).map(|rates| [rates.far, 1.0 - rates.tar]).min_by(|a, b| {
            let gap = |[accepted, refused]: &[f64; 2]| (accepted - refused).abs();
            gap(a).total_cmp(&gap(b))
        });
        nearest.map_or(0.0, |[accepted, refused]| f64::midpoint(accepted, refused))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(fold: usize, genuine: &[f32], impostor: &[f32]) -> Vec<Scored> {
        let kind = |scores: &[f32], is_same_person| {
            scores.iter().map(|&score| Scored { score, fold, is_same_person }).collect::<Vec<_>>()
        };
        [kind(genuine, true), kind(impostor, false)].concat()
    }

    #[test]
    fn each_fold_is_judged_at_the_others_threshold() {
        // By hand: fold 0 alone separates at 0.35 (between 0.2 and 0.5), fold 1 alone at 0.7 (between 0.6 and 0.8).
        // Fold 0 at 0.7: 0.9 right, 0.5 wrong, 0.2 and 0.1 right. Fold 1 at 0.35: 0.8, 0.9 right, 0.6 wrong, 0.0 right.
        let pairs = [scored(0, &[0.9, 0.5], &[0.2, 0.1]), scored(1, &[0.8, 0.9], &[0.6, 0.0])].concat();
        let found = fold_accuracy(&pairs, 2);
        assert_eq!(found.folds.iter().map(|(accuracy, _)| *accuracy).collect::<Vec<_>>(), [0.75, 0.75]);
        assert!((found.folds[0].1 - 0.7).abs() < 1e-6 && (found.folds[1].1 - 0.35).abs() < 1e-6, "{found:?}");
        assert!((found.mean - 0.75).abs() < 1e-12 && found.std.abs() < 1e-12);
        let uneven = [scored(0, &[0.9, 0.8], &[0.2, 0.1]), scored(1, &[0.8, 0.9], &[0.6, 0.0])].concat();
        let found = fold_accuracy(&uneven, 2);
        assert!((found.mean - 0.875).abs() < 1e-12, "{found:?}");
        assert!((found.std - 0.176_776_695).abs() < 1e-8, "{found:?}");
    }

    #[test]
    fn the_best_threshold_never_parts_equal_scores() {
        // At 0.5 two of one person and one of two people tie: all of them pass or none does.
        let pairs = scored(0, &[0.5, 0.5], &[0.5, 0.1]);
        assert!((best_threshold(&pairs) - 0.3).abs() < 1e-6);
    }

    #[test]
    fn rates_are_taken_over_the_impostors() {
        let impostor: Vec<f32> = (0..100u8).map(|n| f32::from(n) / 200.0).collect();
        let kinds = Kinds::of(&scored(0, &[0.9, 0.48, 0.1, 0.485], &impostor));
        let strict = kinds.at_far(0.01);
        assert!((strict.far - 0.01).abs() < 1e-12 && (strict.tar - 0.25).abs() < 1e-12, "{strict:?}");
        let lenient = kinds.at_far(0.05);
        assert!((lenient.far - 0.05).abs() < 1e-12 && (lenient.tar - 0.75).abs() < 1e-12, "{lenient:?}");
        assert!((kinds.at_far(0.001).far).abs() < 1e-12);
        assert!((kinds.at_far(1.0).tar - 1.0).abs() < 1e-12);
        let curve: Vec<(f64, f64)> = kinds.curve().iter().map(|rates| (rates.far, rates.tar)).collect();
        assert_eq!(curve.len(), 101);
        assert_eq!([curve[0], curve[1], curve[5], curve[100]], [(0.0, 0.25), (0.01, 0.25), (0.05, 0.75), (1.0, 1.0)]);
    }

    #[test]
    fn equal_error_rate_by_hand() {
        // At 0.4: one impostor of four passes, one genuine of four is refused.
        let kinds = Kinds::of(&scored(0, &[0.9, 0.8, 0.4, 0.2], &[0.5, 0.3, 0.1, 0.0]));
        assert!((kinds.equal_error_rate() - 0.25).abs() < 1e-12);
        let apart = Kinds::of(&scored(0, &[0.9, 0.8], &[0.1, 0.0]));
        assert!(apart.equal_error_rate().abs() < 1e-12);
    }
}
