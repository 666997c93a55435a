//! How fit a face is for recognition: measures of one face, and the gates that turn them into reasons.

use serde::{Deserialize, Serialize};
use shared::catalogue::LandmarkScheme;

use crate::vision::{Detection, Landmarks, Picture};

/// Measures of one face. Angles are estimates from five points, good to about ten degrees.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// The detector's score.
    pub score: f32,
    /// Shorter side of the face's box in original pixels.
    pub face_size_px: f32,
    /// Variance of the Laplacian over that of the luma itself, on the aligned crop: 0.08 in the median of LFW, 0.01
    /// when that is blurred by 2 pixels. A ratio, so that a dark or flat picture does not count as blurred.
    pub sharpness: f32,
    /// Head turned: above 0 where the nose points to the image's right.
    pub yaw_deg: f32,
    /// Head nodded: above 0 where the nose points down.
    pub pitch_deg: f32,
    /// Head tilted: above 0 where the image-right eye is lower.
    pub roll_deg: f32,
    /// Mean luma of the aligned crop, 0..255.
    pub brightness: f32,
    /// Share of its pixels that are almost black, 0..1.
    pub dark_fraction: f32,
    /// Share of its pixels that are almost white, 0..1.
    pub bright_fraction: f32,
}

/// Why a face is not used. The serialised names are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QualityReason {
    /// The detector is not sure that this is a face.
    LowScore,
    /// Too few pixels.
    TooSmall,
    /// Out of focus, moved, or enlarged from very few pixels.
    TooBlurred,
    /// Underexposed.
    TooDark,
    /// Overexposed.
    TooBright,
    /// Turned or nodded too far from the camera.
    ExtremePose,
}

/// The least that a face must have; see [`Gate::identify`] and [`Gate::enroll`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gate {
    /// Lowest detector score.
    pub min_score: f32,
    /// Smallest [`Quality::face_size_px`].
    pub min_face_px: f32,
    /// Lowest [`Quality::sharpness`].
    pub min_sharpness: f32,
    /// Lowest [`Quality::brightness`].
    pub min_brightness: f32,
    /// Highest [`Quality::brightness`].
    pub max_brightness: f32,
    /// Highest [`Quality::dark_fraction`] and [`Quality::bright_fraction`].
    pub max_clipped: f32,
    /// Highest absolute [`Quality::yaw_deg`].
    pub max_yaw_deg: f32,
    /// Highest absolute [`Quality::pitch_deg`].
    pub max_pitch_deg: f32,
}

/// How far the nose tip stands out of the plane of eyes and mouth, in distances between the eyes: about 28 mm of
/// 63 mm in an adult.
const NOSE_DEPTH: f32 = 0.45;
/// How far the base of the nose stands out of the plane of the eyes, in distances between them: about 15 mm of 63 mm.
const NOSE_BASE_DEPTH: f32 = 0.24;
/// Where the nose tip lies between eye line and mouth line in a face seen from the front: the median of LFW's faces as
/// YuNet marks them.
const NOSE_HEIGHT: f32 = 0.555;
/// Luma up to here is almost black, and from 255 minus here almost white.
const CLIPPED_LUMA: u8 = 8;

impl Quality {
    /// Measures a face from where it was found and its aligned crop.
    pub fn measure(detection: &Detection, crop: &Picture) -> Self {
        let luma = Luma::of_center(crop);
        let pose = Pose::estimate(&detection.landmarks);
        Self {
            score: detection.score,
            face_size_px: detection.bounding_box.shorter_side(),
            sharpness: luma.sharpness(),
            yaw_deg: pose.yaw,
            pitch_deg: pose.pitch,
            roll_deg: pose.roll,
            brightness: luma.mean(),
            dark_fraction: luma.share(|value| value <= CLIPPED_LUMA),
            bright_fraction: luma.share(|value| value >= 255 - CLIPPED_LUMA),
        }
    }

    /// What keeps the face from passing `gate`; empty where it passes.
    pub fn reasons(&self, gate: &Gate) -> Vec<QualityReason> {
        let dark = self.brightness < gate.min_brightness || self.dark_fraction > gate.max_clipped;
        let bright = self.brightness > gate.max_brightness || self.bright_fraction > gate.max_clipped;
        let turned = self.yaw_deg.abs() > gate.max_yaw_deg || self.pitch_deg.abs() > gate.max_pitch_deg;
        [
            (self.score < gate.min_score, QualityReason::LowScore),
            (self.face_size_px < gate.min_face_px, QualityReason::TooSmall),
            (self.sharpness < gate.min_sharpness, QualityReason::TooBlurred),
            (dark, QualityReason::TooDark),
            (bright, QualityReason::TooBright),
            (turned, QualityReason::ExtremePose),
        ]
        .into_iter()
        .filter_map(|(failed, reason)| failed.then_some(reason))
        .collect()
    }
}

impl Gate {
    /// For a face that is looked up or indexed: keeps out what cannot be recognised at all. `min_score` is the
    /// detector's `match_score`.
    ///
    /// 150 LFW faces of about 90 pixels, spoilt until they are near a limit of size, sharpness or brightness (24 pixels,
    /// blurred by 3 pixels, a tenth or three times as bright), keep a median cosine of 0.54 to 0.57 with themselves.
    /// The angles are set by how rare they are on LFW.
    pub fn identify(min_score: f32) -> Self {
        Self {
            min_score,
            min_face_px: 24.0,
            min_sharpness: 0.006,
            min_brightness: 18.0,
            max_brightness: 230.0,
            max_clipped: 0.6,
            max_yaw_deg: 65.0,
            max_pitch_deg: 45.0,
        }
    }

    /// For a face that others are compared with from then on. `min_score` is the detector's `match_score`.
    ///
    /// As [`Gate::identify`], at median cosines of 0.92 (48 pixels, blurred by 1.5 pixels, 0.3 times as bright) and 0.82
    /// (twice as bright).
    pub fn enroll(min_score: f32) -> Self {
        Self {
            min_score,
            min_face_px: 48.0,
            min_sharpness: 0.014,
            min_brightness: 35.0,
            max_brightness: 210.0,
            max_clipped: 0.35,
            max_yaw_deg: 45.0,
            max_pitch_deg: 30.0,
        }
    }
}

/// Head angles in degrees, signs as in [`Quality`].
struct Pose {
    yaw: f32,
    pitch: f32,
    roll: f32,
}

impl Pose {
    fn estimate(landmarks: &Landmarks) -> Self {
        if let Some([left_eye, right_eye, nose, left_mouth, right_mouth]) =
            landmarks.as_scheme(LandmarkScheme::FivePoint).as_deref()
        {
            return Self::of_five([*left_eye, *right_eye, *nose, *left_mouth, *right_mouth]);
        }
        match landmarks.points() {
            [right_outer, right_inner, left_outer, left_inner, nose_base] => {
                Self::of_corners(middle(*left_outer, *left_inner), middle(*right_outer, *right_inner), *nose_base)
            }
            _ => unreachable!("the only other scheme has five points"),
        }
    }

    /// From the eyes and the base of the nose, which do not tell a nod from a long nose: no pitch.
    fn of_corners(left_eye: [f32; 2], right_eye: [f32; 2], nose_base: [f32; 2]) -> Self {
        let across = [right_eye[0] - left_eye[0], right_eye[1] - left_eye[1]];
        let eyes = middle(left_eye, right_eye);
        let roll = across[1].atan2(across[0]);
        let (sin, cos) = roll.sin_cos();
        let sideways = (nose_base[0] - eyes[0]) * cos + (nose_base[1] - eyes[1]) * sin;
        let sideways = sideways / across[0].hypot(across[1]).max(1e-3);
        Self { yaw: (sideways / NOSE_BASE_DEPTH).atan().to_degrees(), pitch: 0.0, roll: roll.to_degrees() }
    }

    fn of_five([left_eye, right_eye, nose, left_mouth, right_mouth]: [[f32; 2]; 5]) -> Self {
        let across = [right_eye[0] - left_eye[0], right_eye[1] - left_eye[1]];
        let eyes = middle(left_eye, right_eye);
        let mouth = middle(left_mouth, right_mouth);
        let down = [mouth[0] - eyes[0], mouth[1] - eyes[1]];
        let roll = across[1].atan2(across[0]);
        // The nose in a frame of the face: right along the eye line, down along eyes to mouth.
        let (sin, cos) = roll.sin_cos();
        let turn = |point: [f32; 2]| [point[0] * cos + point[1] * sin, point[1] * cos - point[0] * sin];
        let nose = turn([nose[0] - eyes[0], nose[1] - eyes[1]]);
        let down = turn(down);
        let (eye_distance, face_height) = (across[0].hypot(across[1]).max(1e-3), down[1].abs().max(1e-3));
        let share = nose[1] / face_height;
        let sideways = (nose[0] - down[0] * share.clamp(0.0, 1.0)) / eye_distance;
        // Turning narrows the eye distance and nodding the face's height, so each ratio grows with the tangent.
        let upright_ratio = face_height / eye_distance * yaw_cosine(sideways);
        Self {
            yaw: (sideways / NOSE_DEPTH).atan().to_degrees(),
            pitch: ((share - NOSE_HEIGHT) * upright_ratio / NOSE_DEPTH).atan().to_degrees(),
            roll: roll.to_degrees(),
        }
    }
}

/// Cosine of the yaw that moves the nose `sideways` eye distances.
fn yaw_cosine(sideways: f32) -> f32 {
    (sideways / NOSE_DEPTH).hypot(1.0).recip()
}

fn middle(one: [f32; 2], other: [f32; 2]) -> [f32; 2] {
    [f32::midpoint(one[0], other[0]), f32::midpoint(one[1], other[1])]
}

/// Brightness values of a crop's middle three quarters, which are face in every alignment.
struct Luma {
    width: usize,
    values: Vec<u8>,
}

impl Luma {
    fn of_center(crop: &Picture) -> Self {
        let (width, height) = (crop.width as usize, crop.height as usize);
        let (left, top) = (width / 8, height / 8);
        let (pixels, _) = crop.rgb.as_chunks::<3>();
        let values = pixels
            .chunks_exact(width.max(1))
            .take(height - top)
            .skip(top)
            .flat_map(|row| &row[left..width - left])
            // ITU-R BT.601 in 256ths.
            .map(|&[r, g, b]| ((77 * u32::from(r) + 150 * u32::from(g) + 29 * u32::from(b)) >> 8).to_le_bytes()[0])
            .collect();
        Self { width: width - 2 * left, values }
    }

    fn mean(&self) -> f32 {
        self.values.iter().map(|&value| u32::from(value)).sum::<u32>() as f32 / self.values.len().max(1) as f32
    }

    fn share(&self, wanted: impl Fn(u8) -> bool) -> f32 {
        self.values.iter().filter(|&&value| wanted(value)).count() as f32 / self.values.len().max(1) as f32
    }

    fn sharpness(&self) -> f32 {
        let rows: Vec<&[u8]> = self.values.chunks_exact(self.width.max(1)).collect();
        let mut edges = Spread::default();
        for three in rows.windows(3) {
            for (x, around) in three[1].windows(3).enumerate() {
                let [above, below] = [three[0][x + 1], three[2][x + 1]].map(i32::from);
                let [left, here, right] = [around[0], around[1], around[2]].map(i32::from);
                edges.add(4 * here - left - right - above - below);
            }
        }
        let mut luma = Spread::default();
        self.values.iter().for_each(|&value| luma.add(i32::from(value)));
        edges.variance() / luma.variance().max(1.0)
    }
}

#[derive(Default)]
struct Spread {
    count: i64,
    sum: i64,
    squares: i64,
}

impl Spread {
    fn add(&mut self, value: i32) {
        let value = i64::from(value);
        self.count += 1;
        self.sum += value;
        self.squares += value * value;
    }

    fn variance(&self) -> f32 {
        let count = self.count.max(1) as f32;
        let mean = self.sum as f32 / count;
        (self.squares as f32 / count - mean * mean).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::BoundingBox;

    const FRONT: [[f32; 2]; 5] = [[38.3, 51.6], [73.5, 51.6], [55.9, 74.2], [41.5, 92.3], [70.3, 92.3]];

    fn detection(landmarks: [[f32; 2]; 5]) -> Detection {
        let bounding_box = BoundingBox { x: 0.0, y: 0.0, width: 90.0, height: 110.0 };
        Detection { bounding_box, landmarks: Landmarks::five(landmarks), score: 0.93 }
    }

    fn crop(value: impl Fn(usize, usize) -> u8) -> Picture {
        let rgb = (0..112).flat_map(|y| (0..112).map(move |x| (x, y))).flat_map(|(x, y)| [value(x, y); 3]).collect();
        Picture { width: 112, height: 112, rgb }
    }

    /// Blotches about `period` pixels wide around `mean`.
    fn textured(mean: f32, period: f32) -> Picture {
        let wave = |at: usize| (at as f32 * std::f32::consts::TAU / period).sin();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, as light does")]
        crop(|x, y| (mean * (1.0 + 0.5 * wave(x) * wave(y))) as u8)
    }

    fn enroll_reasons(landmarks: [[f32; 2]; 5], crop: &Picture) -> Vec<QualityReason> {
        Quality::measure(&detection(landmarks), crop).reasons(&Gate::enroll(0.8))
    }

    #[test]
    fn each_fault_is_named_alone() {
        assert_eq!(enroll_reasons(FRONT, &textured(120.0, 16.0)), []);
        assert_eq!(enroll_reasons(FRONT, &textured(120.0, 60.0)), [QualityReason::TooBlurred]);
        assert_eq!(enroll_reasons(FRONT, &textured(20.0, 16.0)), [QualityReason::TooDark]);
        assert_eq!(enroll_reasons(FRONT, &textured(400.0, 16.0)), [QualityReason::TooBright]);
        let mut aside = FRONT;
        aside[2][0] += 20.0;
        assert_eq!(enroll_reasons(aside, &textured(120.0, 16.0)), [QualityReason::ExtremePose]);
        let measured = Quality::measure(&detection(FRONT), &textured(120.0, 16.0));
        let small = Quality { face_size_px: 30.0, score: 0.75, ..measured };
        assert_eq!(small.reasons(&Gate::enroll(0.8)), [QualityReason::LowScore, QualityReason::TooSmall]);
        assert_eq!(small.reasons(&Gate::identify(0.7)), []);
    }

    #[test]
    fn exposure_does_not_change_sharpness() {
        let sharpness = |mean| Quality::measure(&detection(FRONT), &textured(mean, 16.0)).sharpness;
        assert!((sharpness(75.0) / sharpness(150.0) - 1.0).abs() < 0.1);
    }

    #[test]
    fn a_flat_crop_is_blurred_and_finite() {
        let quality = Quality::measure(&detection(FRONT), &crop(|_, _| 128));
        assert!(quality.sharpness.abs() < f32::EPSILON && (quality.brightness - 128.0).abs() < 1.0);
    }

    #[test]
    fn angles_have_their_signs_and_ignore_one_another() {
        let turned = |degrees: f32| {
            let (sin, cos) = degrees.to_radians().sin_cos();
            FRONT.map(|[x, y]| [x * cos - y * sin, x * sin + y * cos])
        };
        for roll in [-40.0, 0.0, 25.0] {
            let pose = Pose::estimate(&Landmarks::five(turned(roll)));
            assert!((pose.roll - roll).abs() < 0.5 && pose.yaw.abs() < 1.0 && pose.pitch.abs() < 1.0);
        }
        let nose = |dx: f32, dy: f32| {
            let mut points = FRONT;
            points[2] = [points[2][0] + dx, points[2][1] + dy];
            Pose::estimate(&Landmarks::five(points))
        };
        assert!(nose(8.0, 0.0).yaw > 20.0 && nose(-8.0, 0.0).yaw < -20.0);
        assert!(nose(0.0, 8.0).pitch > 15.0 && nose(0.0, -8.0).pitch < -15.0);
    }

    #[test]
    fn degenerate_landmarks_give_finite_angles() {
        let pose = Pose::estimate(&Landmarks::five([[3.0; 2]; 5]));
        assert!([pose.yaw, pose.pitch, pose.roll].iter().all(|angle| angle.is_finite()));
    }

    #[test]
    fn codes_are_stable() {
        let all = [
            QualityReason::LowScore,
            QualityReason::TooSmall,
            QualityReason::TooBlurred,
            QualityReason::TooDark,
            QualityReason::TooBright,
            QualityReason::ExtremePose,
        ];
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(text, r#"["low_score","too_small","too_blurred","too_dark","too_bright","extreme_pose"]"#);
    }
}
