//! A cascade of regression trees that places points on a face: Kazemi and Sullivan 2014, as dlib's `shape_predictor` runs it.
//! `file` is the form in which one is kept.

mod file;

use crate::vision::{BoundingBox, Picture};

pub use file::ShapePredictorError;

/// What places points, from the mean shape of a face to this one in a few stages.
#[derive(Clone, PartialEq)]
pub struct ShapePredictor {
    shape: Vec<[f32; 2]>,
    stages: Vec<Stage>,
}

/// Trees that look at the same pixels, each of which moves the shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// What the trees look at.
    pub pixels: Vec<Pixel>,
    /// As many in each stage.
    pub trees: Vec<Tree>,
}

/// A pixel that goes along with a point of the shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pixel {
    /// Which point.
    pub anchor: u16,
    /// From there, in parts of the box, turned and scaled as the shape is against the mean one.
    pub offset: [f32; 2],
}

/// A full binary tree: below split `n` are `2 n + 1` and `2 n + 2`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    /// One less than a power of two.
    pub splits: Vec<Split>,
    /// What each leaf, one more than splits, moves each point by, in parts of the box; leaf after leaf.
    pub moves: Vec<[f32; 2]>,
}

/// A question about two pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Split {
    /// Which of the stage's.
    pub pixels: [u16; 2],
    /// The first branch is taken where the first pixel is lighter than the second by more than this, of 0..255.
    pub threshold: f32,
}

impl ShapePredictor {
    /// A predictor with a mean shape, in parts of the box.
    ///
    /// # Errors
    /// Its parts do not fit together, or a number is not finite.
    pub fn new(shape: Vec<[f32; 2]>, stages: Vec<Stage>) -> Result<Self, ShapePredictorError> {
        let predictor = Self { shape, stages };
        predictor.check()?;
        Ok(predictor)
    }

    /// The same, where it places so many points.
    ///
    /// # Errors
    /// It places another number.
    pub fn placing(self, points: usize) -> Result<Self, ShapePredictorError> {
        let found = self.shape.len();
        if found == points { Ok(self) } else { Err(ShapePredictorError::Points { wanted: points, found }) }
    }

    /// The points of the face in this box, in pixels of the picture, of which a whole number is the middle of one. None for a
    /// box without extent.
    pub fn place(&self, picture: &Picture, face: &BoundingBox) -> Option<Vec<[f32; 2]>> {
        let unit = Unit::of(face)?;
        let mut shape = self.shape.clone();
        let mut seen = Vec::new();
        for stage in &self.stages {
            let turn = turn(&self.shape, &shape);
            let look = |pixel: &Pixel| {
                let [x, y] = pixel.offset;
                let [from_x, from_y] = shape[usize::from(pixel.anchor)];
                let at = [turn[0] * x - turn[1] * y + from_x, turn[1] * x + turn[0] * y + from_y];
                brightness(picture, unit.to_picture(at))
            };
            seen.clear();
            seen.extend(stage.pixels.iter().map(look));
            for tree in &stage.trees {
                let moves = tree.leaf(&seen, self.shape.len());
                for (point, by) in shape.iter_mut().zip(moves) {
                    *point = [point[0] + by[0], point[1] + by[1]];
                }
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "pixel positions fit f32")]
        let placed = shape.into_iter().map(|point| unit.to_picture(point).map(|at| at as f32)).collect();
        Some(placed)
    }
}

impl std::fmt::Debug for ShapePredictor {
    // It has millions of numbers.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "ShapePredictor({} points, {} stages)", self.shape.len(), self.stages.len())
    }
}

impl Tree {
    /// What the leaf moves the shape by to which these pixels lead.
    fn leaf(&self, seen: &[f32], points: usize) -> &[[f32; 2]] {
        let mut at = 0;
        while let Some(Split { pixels: [one, other], threshold }) = self.splits.get(at) {
            let is_lighter = seen[usize::from(*one)] - seen[usize::from(*other)] > *threshold;
            at = 2 * at + if is_lighter { 1 } else { 2 };
        }
        let leaf = at - self.splits.len();
        &self.moves[leaf * points..(leaf + 1) * points]
    }
}

/// The box as the unit square: 0 is the middle of its first pixel, 1 that of its last.
struct Unit {
    corner: [f64; 2],
    size: [f64; 2],
}

impl Unit {
    fn of(face: &BoundingBox) -> Option<Self> {
        let numbers = [face.x, face.y, face.width, face.height];
        let is_box = numbers.iter().all(|number| number.abs() < 1e6) && face.shorter_side() > 1.0;
        let size = [face.width, face.height].map(|side| f64::from(side) - 1.0);
        is_box.then(|| Self { corner: [face.x, face.y].map(f64::from), size })
    }

    fn to_picture(&self, [x, y]: [f32; 2]) -> [f64; 2] {
        [f64::from(x) * self.size[0] + self.corner[0], f64::from(y) * self.size[1] + self.corner[1]]
    }
}

/// How a shape is turned and scaled against another, `[a, b]` of `x' = a x - b y`, `y' = b x + a y`: least squares (Umeyama
/// 1991).
#[expect(clippy::cast_possible_truncation, reason = "it is about 1")]
fn turn(from: &[[f32; 2]], to: &[[f32; 2]]) -> [f32; 2] {
    let middle = |shape: &[[f32; 2]]| {
        [0, 1].map(|axis| shape.iter().map(|point| f64::from(point[axis])).sum::<f64>() / shape.len() as f64)
    };
    let (from_middle, to_middle) = (middle(from), middle(to));
    let (mut dot, mut cross, mut spread) = (0.0, 0.0, 0.0);
    for (one, other) in from.iter().zip(to) {
        let [px, py] = [0, 1].map(|axis| f64::from(one[axis]) - from_middle[axis]);
        let [qx, qy] = [0, 1].map(|axis| f64::from(other[axis]) - to_middle[axis]);
        dot += px * qx + py * qy;
        cross += px * qy - py * qx;
        spread += px * px + py * py;
    }
    [(dot / spread) as f32, (cross / spread) as f32]
}

/// The mean of the three colours, without what is behind the point, at the nearest pixel; 0 outside of the picture.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "looked at before")]
fn brightness(picture: &Picture, at: [f64; 2]) -> f32 {
    let [x, y] = at.map(|along| (along + 0.5).floor());
    if !(x >= 0.0 && y >= 0.0 && x < f64::from(picture.width) && y < f64::from(picture.height)) {
        return 0.0;
    }
    let first = (y as usize * picture.width as usize + x as usize) * 3;
    let sum: u16 = picture.rgb[first..first + 3].iter().map(|colour| u16::from(*colour)).sum();
    f32::from(sum / 3)
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "small whole numbers, exact in f32")]
mod tests;
