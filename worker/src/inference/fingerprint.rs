//! Whether a recognizer gives the vectors here that its catalogue entry was made with.

use shared::catalogue::Fingerprint;
use shared::embedding::Embedding;

use super::{Engine, EngineError, InferenceError};
use crate::vision::recognize;
use crate::vision::test_crop::test_crop;

/// Test crops of an entry that is made here.
const CROPS: usize = 2;
/// The least cosine of an entry that is made here. With `MobileFaceNet` in 8-bit integers, all kernels that sum exactly
/// (AVX-512 VNNI, AVX-VNNI, SSE, Arm) gave the very same vectors on these crops, those that saturate 0.95 at most, and
/// quantization imitated in floats 0.99. In 32-bit floats kernels differ by less than 1e-6.
const MIN_COSINE: f32 = 0.999;

impl Engine {
    /// The catalogue section of what the recognizer answers here.
    pub async fn fingerprint(&self) -> Result<Fingerprint, InferenceError> {
        let mut vectors = Vec::new();
        for crop in 0..CROPS {
            let answer = self.answer(crop).await?;
            let length = if self.pipeline().recognizer.normalise { norm(&answer) } else { 1.0 };
            vectors.push(answer.into_iter().map(|c| c / length).collect());
        }
        Ok(Fingerprint { min_cosine: MIN_COSINE, vectors })
    }

    /// Refuses a recognizer whose answers are not those that its entry holds.
    pub(super) async fn check_fingerprint(&self) -> Result<(), EngineError> {
        let pipeline = self.pipeline();
        let Some(fingerprint) = &pipeline.fingerprint else { return Ok(()) };
        for (crop, stored) in fingerprint.vectors.iter().enumerate() {
            let answer = self.answer(crop).await?;
            let cosine =
                if pipeline.recognizer.normalise { cosine(answer, stored) } else { agreement(&answer, stored) };
            if cosine < fingerprint.min_cosine {
                return Err(EngineError::Fingerprint {
                    pipeline: pipeline.name.clone(),
                    file: pipeline.recognizer.file.name.clone(),
                    crop: crop + 1,
                    cosine,
                    min_cosine: fingerprint.min_cosine,
                });
            }
        }
        Ok(())
    }

    /// What the recognizer gives for a test crop.
    async fn answer(&self, crop: usize) -> Result<Vec<f32>, InferenceError> {
        let pipeline = self.pipeline();
        let [width, height] = pipeline.alignment.size();
        let crop = test_crop(crop as u64 + 1, width, height);
        self.embed(recognize::input(&pipeline.recognizer, &crop, 0)).await
    }
}

fn cosine(answer: Vec<f32>, stored: &[f32]) -> f32 {
    let vectors = [answer, stored.to_vec()].map(Embedding::normalised);
    // A vector that is zero or not finite is like none.
    if let [Ok(found), Ok(stored)] = &vectors { found.cosine(stored) } else { 0.0 }
}

/// Of vectors whose lengths count: what the cosine is where these are equal, and less where they are not.
fn agreement(answer: &[f32], stored: &[f32]) -> f32 {
    let apart: Vec<f32> = answer.iter().zip(stored).map(|(found, stored)| found - stored).collect();
    let agreement = 1.0 - (norm(&apart) / norm(stored)).powi(2) / 2.0;
    if agreement.is_finite() { agreement } else { 0.0 }
}

fn norm(vector: &[f32]) -> f32 {
    vector.iter().map(|c| c * c).sum::<f32>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_lengths_count_a_longer_vector_is_another() {
        let stored = [3.0, 4.0];
        assert!((agreement(&stored, &stored) - 1.0).abs() < 1e-6);
        assert!((agreement(&[4.0, 3.0], &stored) - cosine(vec![4.0, 3.0], &stored)).abs() < 1e-6);
        assert!((cosine(vec![6.0, 8.0], &stored) - 1.0).abs() < 1e-6 && agreement(&[6.0, 8.0], &stored) < 0.6);
        assert_eq!(agreement(&[f32::NAN, 0.0], &stored).to_bits(), 0);
    }
}
