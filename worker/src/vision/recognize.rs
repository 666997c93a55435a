//! An aligned crop to what the recognizer is shown, and its answers to a face's vector.

use shared::catalogue::{Layout, Recognizer};
use shared::embedding::{Embedding, EmbeddingError};

use crate::vision::Picture;
use crate::vision::jitter::jittered;
use crate::vision::tensor::{Range, Tensor};

/// How often the recognizer is run for one crop: on itself and, where the entry says so, on its mirror image, or on copies of it
/// that lie a little otherwise in its place.
pub fn runs(recognizer: &Recognizer) -> u32 {
    match recognizer.jitter {
        0 => 1 + u32::from(recognizer.flip),
        copies => copies,
    }
}

/// What the recognizer is shown of a crop in one of its [`runs`], counted from 0.
pub fn input(recognizer: &Recognizer, crop: &Picture, run: u32) -> Tensor {
    match (recognizer.jitter, run) {
        (0, 0) => tensor(recognizer, crop),
        (0, _) => tensor(recognizer, &mirrored(crop)),
        _ => tensor(recognizer, &jittered(crop, run)),
    }
}

/// The vector of a face from the answers to each [`input`]: their mean, of unit length where the entry says so.
pub fn vector(recognizer: &Recognizer, answers: Vec<Vec<f32>>) -> Result<Embedding, EmbeddingError> {
    let count = answers.len().max(1) as f32;
    let mut answers = answers.into_iter();
    let mut sum = answers.next().unwrap_or_default();
    for answer in answers {
        sum.iter_mut().zip(answer).for_each(|(sum, component)| *sum += component);
    }
    for component in &mut sum {
        *component /= count;
    }
    if recognizer.normalise { Embedding::normalised(sum) } else { Embedding::as_given(sum) }
}

/// Of a recognizer's input: `[1, 3, height, width]`, `[1, height, width, 3]`, or one plane in place of three.
pub(crate) fn input_shape(recognizer: &Recognizer, [width, height]: [u32; 2]) -> [i64; 4] {
    let (planes, width, height) = (recognizer.channels.planes() as i64, i64::from(width), i64::from(height));
    match recognizer.layout {
        Layout::Nchw => [1, planes, height, width],
        Layout::Nhwc => [1, height, width, planes],
    }
}

fn tensor(recognizer: &Recognizer, crop: &Picture) -> Tensor {
    let (mean, scale) = if recognizer.prewhiten {
        // On 0..255, before `prewhiten` below takes the place of both.
        ([0.0; 3], [1.0; 3])
    } else {
        (recognizer.mean, recognizer.scale)
    };
    let mut tensor = Range { channels: recognizer.channels, mean, scale }.tensor(crop);
    if recognizer.prewhiten {
        prewhiten(&mut tensor.data);
    }
    if recognizer.layout == Layout::Nhwc { interleaved(recognizer, crop, &tensor) } else { tensor }
}

/// To a mean of 0 and a standard deviation of 1, which is taken as at least that of one grey level in so many pixels
/// (`prewhiten` of davidsandberg/facenet).
fn prewhiten(values: &mut [f32]) {
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
    let deviation = variance.sqrt().max(count.sqrt().recip());
    #[expect(clippy::cast_possible_truncation, reason = "some standard deviations fit f32")]
    for value in values {
        *value = ((f64::from(*value) - mean) / deviation) as f32;
    }
}

fn interleaved(recognizer: &Recognizer, crop: &Picture, planar: &Tensor) -> Tensor {
    let pixels = crop.width as usize * crop.height as usize;
    let planes = recognizer.channels.planes();
    let data =
        (0..pixels).flat_map(|pixel| (0..planes).map(move |plane| planar.data[plane * pixels + pixel])).collect();
    Tensor { shape: input_shape(recognizer, [crop.width, crop.height]).to_vec(), data }
}

pub(super) fn mirrored(crop: &Picture) -> Picture {
    let row_bytes = crop.width as usize * 3;
    let row = |row: &[u8]| row.as_chunks::<3>().0.iter().rev().flatten().copied().collect::<Vec<u8>>();
    Picture { width: crop.width, height: crop.height, rgb: crop.rgb.chunks_exact(row_bytes).flat_map(row).collect() }
}

#[cfg(test)]
mod tests {
    use shared::catalogue::{Catalogue, Channels, Metric};

    use super::*;

    fn recognizer() -> Recognizer {
        let plain = Catalogue::load(None).unwrap().pipeline("yunet-mobilefacenet").unwrap().recognizer.clone();
        Recognizer { mean: [0.0; 3], scale: [1.0; 3], ..plain }
    }

    fn crop() -> Picture {
        Picture { width: 2, height: 1, rgb: vec![10, 20, 30, 40, 50, 60] }
    }

    #[test]
    fn a_crop_is_laid_out_as_the_entry_says() {
        let shown = |change: &dyn Fn(&mut Recognizer)| {
            let mut entry = recognizer();
            change(&mut entry);
            let shown = (0..runs(&entry)).map(|run| input(&entry, &crop(), run));
            shown.map(|input| (input.shape, input.data)).collect::<Vec<_>>()
        };
        let planar = (vec![1, 3, 1, 2], vec![10.0, 40.0, 20.0, 50.0, 30.0, 60.0]);
        assert_eq!(shown(&|_| ()), std::slice::from_ref(&planar));
        let interleaved = (vec![1, 1, 2, 3], vec![10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        assert_eq!(shown(&|entry| entry.layout = Layout::Nhwc), [interleaved]);
        // 0.299 R + 0.587 G + 0.114 B
        let gray = shown(&|entry| entry.channels = Channels::Gray);
        assert_eq!(gray[0].0, [1, 1, 1, 2]);
        assert!(gray[0].1.iter().zip([18.15, 48.15]).all(|(found, wanted)| (found - wanted).abs() < 0.01), "{gray:?}");
        let flipped = shown(&|entry| entry.flip = true);
        assert_eq!(flipped, [planar, (vec![1, 3, 1, 2], vec![40.0, 10.0, 50.0, 20.0, 60.0, 30.0])]);
    }

    #[test]
    fn a_jittered_crop_is_shown_as_often_as_the_entry_says() {
        let crop = Picture { width: 9, height: 9, rgb: (0..243).collect() };
        let entry = Recognizer { jitter: 3, ..recognizer() };
        let shown: Vec<Tensor> = (0..runs(&entry)).map(|run| input(&entry, &crop, run)).collect();
        assert_eq!(shown.len(), 3);
        assert!(shown.iter().all(|input| input.shape == [1, 3, 9, 9]) && shown[0].data != shown[2].data);
    }

    #[test]
    fn a_prewhitened_crop_has_no_mean_and_a_deviation_of_one() {
        let entry = Recognizer { prewhiten: true, mean: [7.0; 3], ..recognizer() };
        let data = input(&entry, &crop(), 0).data;
        let mean = data.iter().sum::<f32>() / 6.0;
        let deviation = (data.iter().map(|value| value * value).sum::<f32>() / 6.0).sqrt();
        assert!(mean.abs() < 1e-6 && (deviation - 1.0).abs() < 1e-6, "{data:?}");
        let flat = Picture { rgb: vec![9; 6], ..crop() };
        assert_eq!(input(&entry, &flat, 0).data, [0.0; 6]);
    }

    #[test]
    fn answers_are_averaged_and_keep_their_length_where_the_entry_says_so() {
        let answers = || vec![vec![1.0, 2.0], vec![2.0, 2.0]];
        assert_eq!(vector(&recognizer(), answers()).unwrap().as_slice(), [0.6, 0.8]);
        let raw = Recognizer { normalise: false, metric: Metric::Euclidean, ..recognizer() };
        assert_eq!(vector(&raw, answers()).unwrap().as_slice(), [1.5, 2.0]);
        assert!(vector(&raw, vec![vec![f32::NAN, 1.0]]).is_err());
    }
}
