//! Faces cut out of a photograph for the recognizer, each from a scale that has enough pixels of it.

use shared::catalogue::Alignment;

use crate::vision::align::{Affine, AlignError, aligned_crop, crop_area};
use crate::vision::decode::DecodeError;
use crate::vision::decode::photo::Photo;
use crate::vision::frame::Frame;
use crate::vision::margin::{self, MarginCrop};
use crate::vision::{BoundingBox, Detection, Picture};

/// What is cut out of a photograph of one face.
#[derive(Debug)]
pub struct FaceCrops {
    /// For the recognizer.
    pub aligned: Picture,
    /// To be kept, where that is wanted.
    pub margin: Option<MarginCrop>,
}

/// Whether crops are made to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// One of each face.
    Crops,
    /// None.
    Nothing,
}

/// The aligned crop of each face. It comes from a scale at which the face is as wide as the crop or, where it is smaller
/// than that in the original, from the original.
pub fn aligned_crops(
    photo: &Photo,
    faces: &[Detection],
    alignment: &Alignment,
) -> Result<Vec<Result<Picture, AlignError>>, DecodeError> {
    let crops = face_crops(photo, faces, alignment, Keep::Nothing)?;
    Ok(crops.into_iter().map(|crops| crops.map(|crops| crops.aligned)).collect())
}

/// The crops of each face: see [`aligned_crops`].
pub fn face_crops(
    photo: &Photo,
    faces: &[Detection],
    alignment: &Alignment,
    keep: Keep,
) -> Result<Vec<Result<FaceCrops, AlignError>>, DecodeError> {
    let least = alignment.width as f32 * photo.overview.scale;
    let is_small = |face: &&Detection| face.bounding_box.shorter_side() < least;
    let small: Vec<&Detection> = faces.iter().filter(is_small).collect();
    let close_up = close_up(photo, &small, alignment, keep)?;
    let cut = |face: &Detection| {
        let frame = close_up.as_ref().filter(|_| is_small(&face)).unwrap_or(&photo.overview);
        let shown = frame.face(face);
        Ok(FaceCrops {
            aligned: aligned_crop(&frame.picture, &Affine::placing(&shown, alignment)?, alignment.size()),
            margin: match keep {
                Keep::Crops => Some(MarginCrop::cut(&frame.picture, &shown.landmarks)?),
                Keep::Nothing => None,
            },
        })
    };
    Ok(faces.iter().map(cut).collect())
}

/// One frame for all the small faces: reading the file up to the last of them is most of its cost.
fn close_up(
    photo: &Photo,
    small: &[&Detection],
    alignment: &Alignment,
    keep: Keep,
) -> Result<Option<Frame>, DecodeError> {
    let read = |face: &&Detection| -> Result<BoundingBox, AlignError> {
        let for_recognizer = crop_area(&Affine::placing(face, alignment)?, alignment.size());
        Ok(match keep {
            Keep::Crops => margin::area(&face.landmarks)?.around(for_recognizer),
            Keep::Nothing => for_recognizer,
        })
    };
    let areas = small.iter().filter_map(|face| read(face).ok());
    let smallest = small.iter().map(|face| face.bounding_box.shorter_side()).min_by(f32::total_cmp);
    match (areas.reduce(BoundingBox::around), smallest) {
        (Some(area), Some(side)) => photo.close_up(area, side / alignment.width as f32),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use shared::catalogue::Catalogue;

    use super::*;
    use crate::vision::Landmarks;
    use crate::vision::decode::{DecodeLimits, camera_jpeg, decode};

    const LIMITS: DecodeLimits = DecodeLimits { max_bytes: 1 << 24, max_pixels: 10_000_000, max_side: 4_000 };

    /// Blotches of some 70 pixels.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "28 to 228")]
    fn motley(width: u32, height: u32) -> Picture {
        let wave = |at: u32| ((at as f32 / 11.0).sin() * (at as f32 / 91.0).cos()) * 100.0 + 128.0;
        let rgb =
            (0..height).flat_map(|y| (0..width).flat_map(move |x| [x + y, y, x + 3 * y].map(|at| wave(at) as u8)));
        Picture { width, height, rgb: rgb.collect() }
    }

    /// A face of that width around a point, tilted.
    fn face(center: [f32; 2], width: f32) -> Detection {
        let points = [[-0.2, -0.15], [0.2, -0.1], [0.0, 0.1], [-0.15, 0.3], [0.15, 0.33]];
        Detection {
            bounding_box: BoundingBox {
                x: center[0] - width / 2.0,
                y: center[1] - width * 0.6,
                width,
                height: width * 1.2,
            },
            landmarks: Landmarks::five(points.map(|[x, y]| [center[0] + x * width, center[1] + y * width])),
            score: 0.9,
        }
    }

    fn difference(one: &Picture, other: &Picture) -> f32 {
        let apart = one.rgb.iter().zip(&other.rgb).map(|(a, b)| f32::from(a.abs_diff(*b)));
        apart.sum::<f32>() / one.rgb.len() as f32
    }

    #[test]
    fn crops_are_those_of_the_whole_picture_at_its_own_scale() {
        let alignment = Catalogue::load(None).unwrap().pipeline("yunet-mobilefacenet").unwrap().alignment.clone();
        let file = camera_jpeg(&motley(1603, 1207));
        let full = decode(file.clone(), &LIMITS, u32::MAX).unwrap();
        let reduced = decode(file, &LIMITS, 400).unwrap();
        assert_eq!((reduced.overview.picture.width, reduced.overview.picture.height), (401, 302));
        let large = face([800.0, 600.0], 500.0);
        let cases = [
            (vec![large.clone()], 3.0),
            (vec![face([700.0, 300.0], 60.0)], 0.01),
            (vec![face([700.0, 300.0], 60.0), large.clone(), face([1500.0, 1150.0], 300.0)], 3.0),
            // Reaches out of the picture on two sides.
            (vec![face([20.0, 1190.0], 90.0)], 0.01),
        ];
        for (faces, most) in cases {
            let wanted = aligned_crops(&full, &faces, &alignment).unwrap();
            let found = aligned_crops(&reduced, &faces, &alignment).unwrap();
            for ((wanted, found), face) in wanted.iter().zip(&found).zip(&faces) {
                let apart = difference(wanted.as_ref().unwrap(), found.as_ref().unwrap());
                assert!(apart < most, "{apart} for {:?}", face.bounding_box);
            }
        }
    }

    #[test]
    fn a_face_without_an_alignment_does_not_keep_the_others_from_theirs() {
        let alignment = Catalogue::load(None).unwrap().pipeline("yunet-mobilefacenet").unwrap().alignment.clone();
        let reduced = decode(camera_jpeg(&motley(1600, 1200)), &LIMITS, 400).unwrap();
        let lost = Detection { landmarks: Landmarks::five([[f32::NAN; 2]; 5]), ..face([300.0, 300.0], 20.0) };
        let crops = aligned_crops(&reduced, &[lost, face([700.0, 300.0], 60.0)], &alignment).unwrap();
        assert_eq!(crops.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true]);
    }
}
