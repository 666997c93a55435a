//! What was measured of a pipeline: `[measured]` of an entry.

use serde::Deserialize;

/// `[measured]`: by `face-id eval lfw`, on Labeled Faces in the Wild (Huang et al. 2007), view 2.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Mean accuracy of the ten folds, 0..1.
    pub accuracy: f64,
    /// Its standard deviation over the folds.
    pub accuracy_std: f64,
    /// True accepts at one false one in a hundred, 0..1.
    pub tar_at_far_1e2: f64,
    /// True accepts at one false one in a thousand, 0..1.
    pub tar_at_far_1e3: f64,
    /// Milliseconds of one core for a picture of 250 x 250 pixels and the face on it, on the machine that docs/MODELS.md names.
    pub ms: f64,
}

impl Measured {
    pub(super) fn check(&self) -> Result<(), String> {
        let shares = [self.accuracy, self.accuracy_std, self.tar_at_far_1e2, self.tar_at_far_1e3];
        let are_shares = shares.iter().all(|share| (0.0..=1.0).contains(share));
        if !(are_shares && self.ms > 0.0 && self.ms.is_finite()) {
            return Err("measured must hold shares of 0 to 1, and milliseconds above 0".to_owned());
        }
        Ok(())
    }
}
