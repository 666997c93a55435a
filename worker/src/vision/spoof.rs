//! What an anti-spoofing network is shown of a face, and what its answer says.

use fast_image_resize::{FilterType, ResizeAlg};
use shared::catalogue::SpoofNetwork;

use crate::vision::BoundingBox;
use crate::vision::decode::DecodeError;
use crate::vision::decode::photo::Photo;
use crate::vision::frame::Frame;
use crate::vision::resize::{part, resized};
use crate::vision::tensor::{Range, Tensor};

/// The part of a picture of `size` around a face: its box enlarged `scale` times about its middle, by less where the picture is
/// smaller, and moved to lie inside. As corner and size; `None` of a box without extent.
///
/// This is `CropImage._get_new_box` of minivision-ai/Silent-Face-Anti-Spoofing, which takes both corners as part of the crop.
pub fn area(size: [u32; 2], face: &BoundingBox, scale: f32) -> Option<([i32; 2], [u32; 2])> {
    let numbers = [face.x, face.y, face.width, face.height];
    if !numbers.iter().all(|number| number.abs() < 1e6) || face.shorter_side() <= 0.0 || size.contains(&0) {
        return None;
    }
    let last = size.map(|side| (side - 1) as f32);
    let scale = scale.min(last[0] / face.width).min(last[1] / face.height);
    let along = |axis: usize, from: f32, length: f32| {
        let (middle, length) = (from + length / 2.0, length * scale);
        let (mut first, mut end) = (middle - length / 2.0, middle + length / 2.0);
        if first < 0.0 {
            (first, end) = (0.0, end - first);
        }
        if end > last[axis] {
            (first, end) = (first - (end - last[axis]), last[axis]);
        }
        #[expect(clippy::cast_possible_truncation, reason = "both lie inside of the picture, but for rounding")]
        let [first, end] = [first, end].map(|at| (at as i32).max(0));
        (first, (end - first).max(0).unsigned_abs() + 1)
    };
    let ((left, width), (top, height)) = (along(0, face.x, face.width), along(1, face.y, face.height));
    Some(([left, top], [width, height]))
}

/// What networks with these `crop_scale`s see of the faces, at the original's scale: what they look for is lost where a picture is
/// reduced. One frame for all of them; `None` where the overview has that scale, or no face has an extent.
pub fn close_up(photo: &Photo, faces: &[BoundingBox], crop_scales: &[f32]) -> Result<Option<Frame>, DecodeError> {
    let areas =
        faces.iter().flat_map(|face| crop_scales.iter().filter_map(move |scale| area(photo.size, face, *scale)));
    let boxes = areas.map(|([left, top], [width, height])| BoundingBox {
        x: left as f32,
        y: top as f32,
        width: width as f32,
        height: height as f32,
    });
    boxes.reduce(BoundingBox::around).map_or(Ok(None), |all| photo.close_up(all, 1.0))
}

/// The input of a network, `[1, planes, side, side]`, from a frame at the original's scale that has its area; `size` and `face` are
/// those of the original. `None` of a box without extent.
pub fn input(frame: &Frame, size: [u32; 2], face: &BoundingBox, network: &SpoofNetwork) -> Option<Tensor> {
    let ([left, top], size) = area(size, face, network.crop_scale)?;
    #[expect(clippy::cast_possible_truncation, reason = "whole pixels, at this scale")]
    let [first, upper] = frame.origin.map(|at| at as i32);
    let (picture, corner) = (&frame.picture, [left - first, top - upper]);
    // Without averaging, as the networks were trained: what a screen or a print adds lies between neighbouring pixels.
    let plain = ResizeAlg::Interpolation(FilterType::Bilinear);
    let shown = resized(&part(picture, corner, size), [network.side; 2], plain);
    let range = Range { channels: network.channels, mean: network.mean, scale: network.scale };
    Some(range.tensor(&shown))
}

/// How likely a face is live, 0..1: the softmax of a network's answer.
pub fn live(network: &SpoofNetwork, answer: &[f32]) -> Option<f32> {
    if answer.len() != network.classes || !answer.iter().all(|number| number.is_finite()) {
        return None;
    }
    let largest = answer.iter().copied().fold(f32::MIN, f32::max);
    let weight = |number: &f32| (number - largest).exp();
    Some(weight(answer.get(network.live_class)?) / answer.iter().map(weight).sum::<f32>())
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "small whole numbers, exact in f32")]
mod tests {
    use shared::catalogue::AntiSpoofing;

    use super::*;
    use crate::vision::Picture;
    use crate::vision::decode::{DecodeLimits, camera_jpeg, decode};

    const LIMITS: DecodeLimits = DecodeLimits { max_bytes: 1 << 24, max_pixels: 10_000_000, max_side: 4_000 };

    #[test]
    fn the_originals_pixels_are_shown_whatever_scale_faces_were_looked_for_at() {
        let network = &AntiSpoofing::load(None, "minifasnet").unwrap().networks[0];
        let level = |n: u32| u8::try_from(n % 251).unwrap();
        let pixel = |x: u32, y: u32| [level(x * x + 7 * y), level(y * y + 5 * x), level(x * y)];
        let rgb = (0..1207).flat_map(|y| (0..1603).flat_map(move |x| pixel(x, y)));
        let file = camera_jpeg(&Picture { width: 1603, height: 1207, rgb: rgb.collect() });
        let [full, reduced] = [u32::MAX, 400].map(|side| decode(file.clone(), &LIMITS, side).unwrap());
        assert!(reduced.overview.scale > 1.0);
        for [x, y, width, height] in [[700.0, 300.0, 60.0, 80.0], [5.0, 1100.0, 90.0, 100.0]] {
            let face = BoundingBox { x, y, width, height };
            assert!(close_up(&full, &[face], &[network.crop_scale]).unwrap().is_none());
            let frame = close_up(&reduced, &[face], &[network.crop_scale]).unwrap().unwrap();
            let wanted = input(&full.overview, full.size, &face, network).unwrap();
            let found = input(&frame, reduced.size, &face, network).unwrap();
            let apart = wanted.data.iter().zip(&found.data).map(|(a, b)| (a - b).abs());
            let mean = apart.sum::<f32>() / wanted.data.len() as f32;
            assert!(mean < 0.05, "{mean} for {face:?}");
        }
    }

    #[test]
    fn areas_are_those_of_the_reference() {
        // By CropImage._get_new_box: picture, box, scale, and both corners.
        let cases = [
            ([640, 480], [300.0, 200.0, 50.0, 60.0], 2.7, [257, 149, 392, 311]),
            // Moved inside, at the left and at the lower right.
            ([640, 480], [10.0, 20.0, 100.0, 120.0], 2.7, [0, 0, 270, 324]),
            ([640, 480], [560.0, 400.0, 60.0, 70.0], 4.0, [399, 199, 639, 479]),
            // Higher than the picture: the scale is what it has, 479 / 200.
            ([640, 480], [200.0, 100.0, 150.0, 200.0], 4.0, [95, 0, 454, 479]),
            // Reaches out of the picture itself.
            ([100, 80], [-10.0, -5.0, 40.0, 30.0], 2.0, [0, 0, 80, 60]),
        ];
        for (size, [x, y, width, height], scale, [left, top, right, bottom]) in cases {
            let face = BoundingBox { x, y, width, height };
            let (corner, found) = area(size, &face, scale).unwrap();
            let end = [0, 1].map(|axis| corner[axis] + i32::try_from(found[axis]).unwrap() - 1);
            assert_eq!((corner, end), ([left, top], [right, bottom]), "{face:?} on {size:?}");
        }
        for width in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(area([640, 480], &BoundingBox { x: 0.0, y: 0.0, width, height: 9.0 }, 2.7).is_none());
        }
    }

    #[test]
    fn every_area_lies_inside_of_the_picture() {
        for size in [[1u32, 1], [7, 300], [640, 480]] {
            for (x, y, width, height) in [(-50.0, 3.3, 20.0, 9.0), (630.7, 470.2, 55.5, 33.3), (2.0, 2.0, 1e5, 0.01)] {
                let face = BoundingBox { x, y, width, height };
                let ([left, top], [wide, high]) = area(size, &face, 4.0).unwrap();
                let [left, top] = [left, top].map(|at| u32::try_from(at).unwrap());
                assert!(
                    left + wide <= size[0] && top + high <= size[1] && wide > 0 && high > 0,
                    "{face:?} on {size:?}"
                );
            }
        }
    }

    #[test]
    fn the_input_is_the_area_at_the_networks_size() {
        let network = &AntiSpoofing::load(None, "minifasnet").unwrap().networks[0];
        let rgb = (0..160 * 160).flat_map(|n: u32| [u8::try_from(n % 160).unwrap(), 7, u8::try_from(n / 160).unwrap()]);
        let frame = Frame::from(Picture { width: 160, height: 160, rgb: rgb.collect() });
        let face = BoundingBox { x: 60.0, y: 60.0, width: 30.0, height: 30.0 };
        let input = input(&frame, [160, 160], &face, network).unwrap();
        assert_eq!(input.shape, [1, 3, 80, 80]);
        // From 34 to 115: 82 pixels, the first plane blue, which grows downwards.
        let plane = |n: usize| &input.data[n * 6400..(n + 1) * 6400];
        assert_eq!([plane(0)[0], plane(0)[6399], plane(1)[5], plane(2)[0]], [34.0, 115.0, 7.0, 34.0]);
    }

    #[test]
    fn an_answer_is_a_share_of_its_classes() {
        let network = &AntiSpoofing::load(None, "minifasnet").unwrap().networks[0];
        assert!((live(network, &[0.0, 0.0, 0.0]).unwrap() - 1.0 / 3.0).abs() < 1e-6);
        assert!(live(network, &[-5.0, 900.0, 3.0]).unwrap() > 0.999);
        assert!((live(network, &[0.0, 1f32.ln_1p(), 0.0]).unwrap() - 0.5).abs() < 1e-6);
        assert_eq!(live(network, &[0.0, 1.0]), None);
        assert_eq!(live(network, &[0.0, f32::NAN, 1.0]), None);
    }
}
