//! Points of a face, and what follows from them for other schemes.

use serde::{Deserialize, Serialize};
use shared::catalogue::LandmarkScheme;

/// Points of a face in upright original pixels, in the order of their scheme. "Image-left" is the person's right in a frontal,
/// unmirrored picture.
///
/// Stored as a plain list where they are the usual five, and else with the scheme's name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "Stored", try_from = "Stored")]
pub struct Landmarks {
    scheme: LandmarkScheme,
    points: Vec<[f32; 2]>,
}

/// A list of points that is not as long as its scheme says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{found} points are not the {wanted} of {scheme}")]
pub struct LandmarksError {
    scheme: LandmarkScheme,
    wanted: usize,
    found: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Stored {
    Five([[f32; 2]; 5]),
    Named { scheme: LandmarkScheme, points: Vec<[f32; 2]> },
}

impl Landmarks {
    /// The five that most detectors place: image-left eye, image-right eye, nose tip, image-left mouth corner, image-right mouth
    /// corner.
    pub fn five(points: [[f32; 2]; 5]) -> Self {
        Self { scheme: LandmarkScheme::FivePoint, points: points.to_vec() }
    }

    /// Of a face on which a landmark model is still to place points: no alignment follows from them.
    pub(crate) fn unplaced() -> Self {
        Self::five([[f32::NAN; 2]; 5])
    }

    /// As many points as the scheme has.
    pub fn of(scheme: LandmarkScheme, points: Vec<[f32; 2]>) -> Result<Self, LandmarksError> {
        let (wanted, found) = (scheme.points(), points.len());
        if wanted == found { Ok(Self { scheme, points }) } else { Err(LandmarksError { scheme, wanted, found }) }
    }

    /// Which points they are.
    pub fn scheme(&self) -> LandmarkScheme {
        self.scheme
    }

    /// As many as the scheme has, `[x, y]` each.
    pub fn points(&self) -> &[[f32; 2]] {
        &self.points
    }

    /// Whether all are numbers.
    pub fn is_finite(&self) -> bool {
        self.points.iter().flatten().all(|at| at.is_finite())
    }

    /// The same points somewhere else.
    #[must_use]
    pub fn map(&self, place: impl FnMut([f32; 2]) -> [f32; 2]) -> Self {
        Self { scheme: self.scheme, points: self.points.iter().copied().map(place).collect() }
    }

    /// The points of another scheme, where they follow from these.
    pub fn as_scheme(&self, wanted: LandmarkScheme) -> Option<Vec<[f32; 2]>> {
        match (self.scheme, wanted) {
            (has, wanted) if has == wanted => Some(self.points.clone()),
            (LandmarkScheme::Ibug68, LandmarkScheme::FivePoint) => Some(self.five_of_68().to_vec()),
            _ => None,
        }
    }

    /// Eye centres, nose tip and mouth corners: 36..41 and 42..47 lie around the eyes, 30 on the nose tip, 48 and 54 at the
    /// mouth's corners.
    fn five_of_68(&self) -> [[f32; 2]; 5] {
        let points = &self.points;
        [middle(&points[36..42]), middle(&points[42..48]), points[30], points[48], points[54]]
    }
}

fn middle(points: &[[f32; 2]]) -> [f32; 2] {
    [0, 1].map(|axis| points.iter().map(|point| point[axis]).sum::<f32>() / points.len() as f32)
}

impl From<Landmarks> for Stored {
    fn from(landmarks: Landmarks) -> Self {
        match (landmarks.scheme, <[[f32; 2]; 5]>::try_from(landmarks.points)) {
            (LandmarkScheme::FivePoint, Ok(points)) => Self::Five(points),
            (scheme, points) => {
                Self::Named { scheme, points: points.map_or_else(|points| points, |five| five.to_vec()) }
            }
        }
    }
}

impl TryFrom<Stored> for Landmarks {
    type Error = LandmarksError;

    fn try_from(stored: Stored) -> Result<Self, LandmarksError> {
        match stored {
            Stored::Five(points) => Ok(Self::five(points)),
            Stored::Named { scheme, points } => Self::of(scheme, points),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sixty_eight() -> Landmarks {
        let points = (0..68u8).map(|n| [f32::from(n), f32::from(n) * 2.0]).collect();
        Landmarks::of(LandmarkScheme::Ibug68, points).unwrap()
    }

    #[test]
    fn the_scheme_is_stored_beside_all_but_the_usual_five() {
        let five = Landmarks::five([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [9.0, 10.0]]);
        assert_eq!(json!(five), json!([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [9.0, 10.0]]));
        let corners = Landmarks::of(LandmarkScheme::Dlib5, five.points().to_vec()).unwrap();
        assert_eq!(json!(corners)["scheme"], "dlib-5");
        for landmarks in [five, corners, sixty_eight()] {
            assert_eq!(serde_json::from_value::<Landmarks>(json!(landmarks)).unwrap(), landmarks);
        }
        let short = json!({ "scheme": "ibug-68", "points": [[1.0, 2.0]] });
        let error = serde_json::from_value::<Landmarks>(short).unwrap_err().to_string();
        assert!(error.contains("68"), "{error}");
    }

    #[test]
    fn five_points_follow_from_sixty_eight_and_not_the_other_way() {
        let five = sixty_eight().as_scheme(LandmarkScheme::FivePoint).unwrap();
        assert_eq!(five, [[38.5, 77.0], [44.5, 89.0], [30.0, 60.0], [48.0, 96.0], [54.0, 108.0]]);
        assert_eq!(Landmarks::five([[0.0; 2]; 5]).as_scheme(LandmarkScheme::Ibug68), None);
    }
}
