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
            let length = answer.iter().map(|c| c * c).sum::<f32>().sqrt();
            vectors.push(answer.into_iter().map(|c| c / length).collect());
        }
        Ok(Fingerprint { min_cosine: MIN_COSINE, vectors })
    }

    /// Refuses a recognizer whose answers are not those that its entry holds.
    pub(super) async fn check_fingerprint(&self) -> Result<(), EngineError> {
        let pipeline = self.pipeline();
        let Some(fingerprint) = &pipeline.fingerprint else { return Ok(()) };
        for (crop, stored) in fingerprint.vectors.iter().enumerate() {
            let vectors = [self.answer(crop).await?, stored.clone()].map(Embedding::normalised);
            // A vector that is zero or not finite is like none.
            let cosine = if let [Ok(found), Ok(stored)] = &vectors { found.cosine(stored) } else { 0.0 };
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
        self.embed(recognize::inputs(&pipeline.recognizer, &crop).swap_remove(0)).await
    }
}
