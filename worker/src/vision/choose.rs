//! Which face of a picture is meant.

use shared::job::{FaceBox, FaceChoice};

use crate::vision::{BoundingBox, Detection};

/// A second face with more than this share of the largest one's area makes `only` ambiguous.
const RIVAL_AREA: f32 = 1.0 / 3.0;
/// A box picks a face that overlaps it by more than this `IoU`.
const MIN_BOX_IOU: f32 = 0.3;

/// Why no face was chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ChooseError {
    /// There is none to choose from.
    #[error("there is no face on the picture; send one that shows the face")]
    NoFace,
    /// There are several of similar size, and the caller said that there is only one.
    #[error("there are {} faces of similar size on the picture; crop it or say which one is meant", boxes.len())]
    MultipleFaces {
        /// The largest first.
        boxes: Vec<BoundingBox>,
    },
    /// The box given lies on none of them.
    #[error("no face lies in the box that was given; the faces are where identify reports them")]
    NoSuchFace,
}

impl ChooseError {
    /// The stable code that a job's problem carries.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoFace => "no_face",
            Self::MultipleFaces { .. } => "multiple_faces",
            Self::NoSuchFace => "no_such_face",
        }
    }
}

/// The index of the face meant, of `faces` on a picture of `width` x `height` pixels.
///
/// `faces` are those good enough to count: what the caller leaves out cannot make `only` ambiguous.
pub fn choose_face(faces: &[Detection], choice: FaceChoice, [width, height]: [u32; 2]) -> Result<usize, ChooseError> {
    let best_by = |value: &dyn Fn(&BoundingBox) -> f32| {
        (0..faces.len())
            .max_by(|&a, &b| value(&faces[a].bounding_box).total_cmp(&value(&faces[b].bounding_box)))
            .ok_or(ChooseError::NoFace)
    };
    match choice {
        FaceChoice::Only => {
            let largest = best_by(&BoundingBox::area)?;
            let rivals = similar_to(&faces[largest].bounding_box, faces);
            if rivals.len() > 1 {
                return Err(ChooseError::MultipleFaces { boxes: rivals });
            }
            Ok(largest)
        }
        FaceChoice::Largest => best_by(&BoundingBox::area),
        FaceChoice::Center => {
            let middle = [width as f32 / 2.0, height as f32 / 2.0];
            best_by(&|face| {
                let [x, y] = face.center();
                face.area() - 2.0 * ((x - middle[0]).powi(2) + (y - middle[1]).powi(2))
            })
        }
        FaceChoice::Box(wanted) => {
            let wanted = BoundingBox::from(wanted);
            let best = best_by(&|face| face.iou(&wanted))?;
            if faces[best].bounding_box.iou(&wanted) > MIN_BOX_IOU { Ok(best) } else { Err(ChooseError::NoSuchFace) }
        }
    }
}

fn similar_to(largest: &BoundingBox, faces: &[Detection]) -> Vec<BoundingBox> {
    let mut boxes: Vec<BoundingBox> =
        faces.iter().map(|face| face.bounding_box).filter(|face| face.area() > largest.area() * RIVAL_AREA).collect();
    boxes.sort_by(|a, b| b.area().total_cmp(&a.area()));
    boxes
}

impl From<FaceBox> for BoundingBox {
    fn from(wire: FaceBox) -> Self {
        Self { x: wire.x, y: wire.y, width: wire.width, height: wire.height }
    }
}

impl From<BoundingBox> for FaceBox {
    fn from(found: BoundingBox) -> Self {
        Self { x: found.x, y: found.y, width: found.width, height: found.height }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::Landmarks;

    fn face(x: f32, y: f32, side: f32) -> Detection {
        Detection {
            bounding_box: BoundingBox { x, y, width: side, height: side },
            landmarks: Landmarks::five([[0.0; 2]; 5]),
            score: 0.9,
        }
    }

    const SIZE: [u32; 2] = [250, 250];

    #[test]
    fn each_choice_picks_its_face() {
        let faces = [face(75.0, 75.0, 100.0), face(0.0, 0.0, 104.0), face(200.0, 0.0, 20.0)];
        assert_eq!(choose_face(&faces, FaceChoice::Largest, SIZE), Ok(1));
        assert_eq!(choose_face(&faces, FaceChoice::Center, SIZE), Ok(0));
        let around_third = FaceBox { x: 195.0, y: 0.0, width: 25.0, height: 25.0 };
        assert_eq!(choose_face(&faces, FaceChoice::Box(around_third), SIZE), Ok(2));
        let nowhere = FaceBox { x: 120.0, y: 200.0, width: 25.0, height: 25.0 };
        assert_eq!(choose_face(&faces, FaceChoice::Box(nowhere), SIZE), Err(ChooseError::NoSuchFace));
    }

    #[test]
    fn only_is_refused_beside_a_face_of_similar_size() {
        let faces = [face(75.0, 75.0, 100.0), face(0.0, 0.0, 60.0), face(200.0, 0.0, 50.0)];
        let boxes = vec![faces[0].bounding_box, faces[1].bounding_box];
        let refused = choose_face(&faces, FaceChoice::Only, SIZE).unwrap_err();
        assert_eq!(refused.code(), "multiple_faces");
        assert_eq!(refused, ChooseError::MultipleFaces { boxes });
        assert_eq!(choose_face(&[faces[0].clone(), faces[2].clone()], FaceChoice::Only, SIZE), Ok(0));
    }

    #[test]
    fn no_choice_finds_a_face_where_there_is_none() {
        let somewhere = FaceBox { x: 0.0, y: 0.0, width: 25.0, height: 25.0 };
        for choice in [FaceChoice::Only, FaceChoice::Largest, FaceChoice::Center, FaceChoice::Box(somewhere)] {
            assert_eq!(choose_face(&[], choice, SIZE).unwrap_err().code(), "no_face");
        }
    }
}
