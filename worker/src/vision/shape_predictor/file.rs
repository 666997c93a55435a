//! The file of a shape predictor, all little-endian:
//!
//! | bytes | |
//! | --- | --- |
//! | 8 | `fidtree` and the version, 1 |
//! | 5 x u32 | points, stages, trees a stage, splits a tree, pixels a stage |
//! | points x 2 f32 | x and y of the mean shape |
//! | for each stage, pixels x u16 | which point each pixel goes along with |
//! | pixels x 2 f32 | where each lies from there |
//! | trees x splits x (2 u16, f32) | two pixels and the threshold; then for each tree (splits + 1) x points x 2 f32 of moves |

use super::{Pixel, ShapePredictor, Split, Stage, Tree};

/// What a file begins with: a name and the version of the form.
const MAGIC: [u8; 8] = *b"fidtree\x01";
const HEADER_BYTES: u64 = 28;
/// dlib's largest has 68 points, 15 stages, 500 trees of 15 splits and 800 pixels.
const MOST: Header = Header { points: 1024, stages: 256, trees: 8192, splits: 1023, pixels: 65_536 };

/// Why bytes are no shape predictor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapePredictorError {
    /// It begins otherwise.
    #[error(
        "it is no file of regression trees of a version that can be read here; run `face-id models import dlib` again"
    )]
    Form,
    /// A count is 0 or far beyond any known.
    #[error("its header says that it has {count} {what}")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many.
        count: u32,
    },
    /// It is not as long as its header says.
    #[error("it has {found} bytes, and its header needs {wanted}")]
    Length {
        /// By the header.
        wanted: u64,
        /// In all.
        found: u64,
    },
    /// It places another number of points than its scheme has.
    #[error("it places {found} points, and {wanted} are needed; check the pipeline's landmark scheme and file")]
    Points {
        /// Of the scheme.
        wanted: usize,
        /// Of the file.
        found: usize,
    },
    /// Its parts do not fit together.
    #[error("{0}")]
    Parts(&'static str),
}

#[derive(Clone, Copy)]
struct Header {
    points: u32,
    stages: u32,
    trees: u32,
    splits: u32,
    pixels: u32,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, ShapePredictorError> {
        let numbers = bytes.strip_prefix(&MAGIC).and_then(|rest| rest.as_chunks::<4>().0.first_chunk::<5>());
        let Some(numbers) = numbers else { return Err(ShapePredictorError::Form) };
        let [points, stages, trees, splits, pixels] = numbers.map(u32::from_le_bytes);
        let header = Self { points, stages, trees, splits, pixels };
        let counts = header.counts().into_iter().zip(MOST.counts());
        for ((what, count), (_, most)) in counts {
            if count == 0 || count > most {
                return Err(ShapePredictorError::Count { what, count });
            }
        }
        let (wanted, found) = (header.file_bytes(), bytes.len() as u64);
        if wanted == found { Ok(header) } else { Err(ShapePredictorError::Length { wanted, found }) }
    }

    fn counts(&self) -> [(&'static str, u32); 5] {
        [
            ("points", self.points),
            ("stages", self.stages),
            ("trees a stage", self.trees),
            ("splits a tree", self.splits),
            ("pixels a stage", self.pixels),
        ]
    }

    /// At its largest some 2^50.
    fn file_bytes(&self) -> u64 {
        let [points, stages, trees, splits, pixels] = self.counts().map(|(_, count)| u64::from(count));
        let tree = splits * 8 + (splits + 1) * points * 8;
        HEADER_BYTES + points * 8 + stages * (pixels * 10 + trees * tree)
    }
}

/// What is left of a file whose length is known to be right.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let Some((first, rest)) = self.0.split_first_chunk::<N>() else { return [0; N] };
        self.0 = rest;
        *first
    }

    fn index(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    fn number(&mut self) -> f32 {
        f32::from_le_bytes(self.bytes())
    }

    fn pairs(&mut self, count: u32) -> Vec<[f32; 2]> {
        (0..count).map(|_| [self.number(), self.number()]).collect()
    }

    fn stage(&mut self, header: &Header) -> Stage {
        let anchors: Vec<u16> = (0..header.pixels).map(|_| self.index()).collect();
        let offsets = self.pairs(header.pixels);
        let pixels = anchors.into_iter().zip(offsets).map(|(anchor, offset)| Pixel { anchor, offset }).collect();
        let trees = (0..header.trees).map(|_| self.tree(header)).collect();
        Stage { pixels, trees }
    }

    fn tree(&mut self, header: &Header) -> Tree {
        let split = |_| Split { pixels: [self.index(), self.index()], threshold: self.number() };
        let splits = (0..header.splits).map(split).collect();
        Tree { splits, moves: self.pairs((header.splits + 1) * header.points) }
    }
}

impl ShapePredictor {
    /// Reads what [`ShapePredictor::to_bytes`] wrote; nothing is taken from a file that is not as long as its header says.
    pub fn read(bytes: &[u8]) -> Result<Self, ShapePredictorError> {
        let header = Header::read(bytes)?;
        let mut rest = Rest(&bytes[MAGIC.len() + 20..]);
        let shape = rest.pairs(header.points);
        let stages = (0..header.stages).map(|_| rest.stage(&header)).collect();
        Self::new(shape, stages)
    }

    /// The file, the same bytes for the same predictor.
    pub fn to_bytes(&self) -> Vec<u8> {
        let counts = self.header().counts().map(|(_, count)| count);
        let mut bytes = MAGIC.to_vec();
        for count in counts {
            bytes.extend(count.to_le_bytes());
        }
        let put =
            |bytes: &mut Vec<u8>, pair: &[f32; 2]| pair.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        self.shape.iter().for_each(|point| put(&mut bytes, point));
        for stage in &self.stages {
            stage.pixels.iter().for_each(|pixel| bytes.extend(pixel.anchor.to_le_bytes()));
            stage.pixels.iter().for_each(|pixel| put(&mut bytes, &pixel.offset));
            for tree in &stage.trees {
                for split in &tree.splits {
                    split.pixels.iter().for_each(|pixel| bytes.extend(pixel.to_le_bytes()));
                    bytes.extend(split.threshold.to_le_bytes());
                }
                tree.moves.iter().for_each(|by| put(&mut bytes, by));
            }
        }
        bytes
    }

    /// By its first stage and tree; [`ShapePredictor::check`] sees that the others are alike.
    fn header(&self) -> Header {
        let stage = self.stages.first();
        let tree = stage.and_then(|stage| stage.trees.first());
        let count = |count: Option<usize>| u32::try_from(count.unwrap_or_default()).unwrap_or(u32::MAX);
        Header {
            points: count(Some(self.shape.len())),
            stages: count(Some(self.stages.len())),
            trees: count(stage.map(|stage| stage.trees.len())),
            splits: count(tree.map(|tree| tree.splits.len())),
            pixels: count(stage.map(|stage| stage.pixels.len())),
        }
    }

    pub(super) fn check(&self) -> Result<(), ShapePredictorError> {
        let refuse = |why| Err(ShapePredictorError::Parts(why));
        let header = self.header();
        for ((what, count), (_, most)) in header.counts().into_iter().zip(MOST.counts()) {
            if count == 0 || count > most {
                return Err(ShapePredictorError::Count { what, count });
            }
        }
        if !(header.splits + 1).is_power_of_two() {
            return refuse("its trees are no full binary trees");
        }
        if self.shape.iter().any(|point| !is_finite(*point))
            || self.shape.iter().all(|point| same(*point, self.shape[0]))
        {
            return refuse("its mean shape has numbers that are not finite, or lies on one point");
        }
        for stage in &self.stages {
            let [trees, pixels] = [stage.trees.len(), stage.pixels.len()].map(|count| count as u64);
            if [trees, pixels] != [header.trees, header.pixels].map(u64::from) {
                return refuse("its stages are not as large as each other");
            }
            if stage.pixels.iter().any(|p| usize::from(p.anchor) >= self.shape.len() || !is_finite(p.offset)) {
                return refuse("a pixel of it goes along with a point that is not there, or lies nowhere");
            }
            stage.trees.iter().try_for_each(|tree| self.check_tree(tree, &header))?;
        }
        Ok(())
    }

    fn check_tree(&self, tree: &Tree, header: &Header) -> Result<(), ShapePredictorError> {
        let refuse = |why| Err(ShapePredictorError::Parts(why));
        let moves = (tree.splits.len() + 1) * self.shape.len();
        if tree.splits.len() as u64 != u64::from(header.splits) || tree.moves.len() != moves {
            return refuse("its trees are not as large as each other");
        }
        let is_known = |pixel: &u16| u32::from(*pixel) < header.pixels;
        if !tree.splits.iter().all(|s| s.threshold.is_finite() && s.pixels.iter().all(is_known)) {
            return refuse("a tree of it asks for a pixel that is not there, or has a threshold that is not finite");
        }
        if !tree.moves.iter().copied().all(is_finite) {
            return refuse("a tree of it moves a point by what is not finite");
        }
        Ok(())
    }
}

/// Whether two points are one, to the bit.
fn same(one: [f32; 2], other: [f32; 2]) -> bool {
    one.map(f32::to_bits) == other.map(f32::to_bits)
}

fn is_finite(pair: [f32; 2]) -> bool {
    pair.iter().all(|number| number.is_finite())
}
