//! What a detector is shown of a picture, and what its answers mean.
//!
//! Every picture is shown twice: once at a side that finds small faces, once small, which finds faces so large that
//! the first pass cannot take them in. Both answers are mapped back to upright original pixels and merged.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{Filter, FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use shared::catalogue::{Detector, DetectorFamily};

use crate::vision::tensor::{Range, Tensor};
use crate::vision::{Detection, Picture, nms, scrfd, yunet};

/// Cell sizes of both families' three output levels, in input pixels.
pub(crate) const STRIDES: [u32; 3] = [8, 16, 32];

/// Pictures below this side are enlarged: YuNet on LFW's 250-pixel pictures gives 99.02 % at 256 and 99.28 % at 384.
const MIN_SIDE: u32 = 384;

/// Longer side of the second pass. On LFW faces enlarged until they fill the picture, 160 to 256 find all and place
/// landmarks alike; 192 costs a quarter of the smallest main pass.
const SMALL_SIDE: u32 = 192;

/// From this size of a face in main-pass pixels, the second pass scores it higher and places its landmarks better:
/// a face 640 pixels wide scores 0.83 in the main pass and 0.94 in the second, one of 380 pixels the same in both.
const LARGE_FACE: f32 = 448.0;

/// Both sides of an input are multiples of the coarsest stride.
const SIDE_STEP: u32 = 32;

/// One showing of a picture: the tensor to run, and how to read what comes back.
#[derive(Debug)]
pub struct Pass {
    /// The detector's input, `[1, 3, height, width]`.
    pub input: Tensor,
    /// How to read the detector's answer to it.
    pub view: View,
}

/// The geometry of a [`Pass`].
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Sides of the input with its padding.
    size: [u32; 2],
    /// Input pixels times this are original pixels, along x and y.
    to_picture: [f32; 2],
}

/// Why a detector's answer could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// The file is not of the family that the catalogue says.
    #[error(
        "output {index} of the detector has shape {shape:?}, but {rows} rows of {columns} were expected for an input of \
         {width}x{height}; check the pipeline's detector family and file"
    )]
    Shape {
        /// Position among the outputs.
        index: usize,
        /// Its shape, empty where there is no such output.
        shape: Vec<i64>,
        /// Rows that belong there.
        rows: usize,
        /// Numbers a row.
        columns: usize,
        /// Input width.
        width: u32,
        /// Input height.
        height: u32,
    },
}

/// The inputs to run for `picture`: the main pass, then the small one.
pub fn passes(picture: &Picture, detector: &Detector) -> [Pass; 2] {
    let range = Range {
        channels: detector.channels,
        mean: detector.mean,
        scale: detector.scale,
    };
    let longest = picture.width.max(picture.height);
    let main = resized(picture, longest.clamp(MIN_SIDE, detector.input_side.max(MIN_SIDE)));
    // The smaller of the two has all that the small pass can show and is read faster.
    let source = if main.width < picture.width { &main } else { picture };
    let small = resized(source, SMALL_SIDE);
    [main, small].map(|shown| Pass {
        view: View {
            size: [shown.width, shown.height].map(|side| side.next_multiple_of(SIDE_STEP)),
            to_picture: [
                picture.width as f32 / shown.width as f32,
                picture.height as f32 / shown.height as f32,
            ],
        },
        input: range.padded_tensor(&shown, SIDE_STEP),
    })
}

/// Faces of at least the detector's `store_score`, best first, from the answers to the main and the small pass.
pub fn merge(detector: &Detector, answers: [(View, &[Tensor]); 2]) -> Result<Vec<Detection>, DetectError> {
    let [main, small] = answers;
    let fits = |face: &Detection| {
        let [x, y] = main.0.to_picture;
        (face.bounding_box.width / x).max(face.bounding_box.height / y) <= LARGE_FACE
    };
    let (sharp, too_large): (Vec<_>, Vec<_>) = read(detector, main)?.into_iter().partition(fits);
    // A face that both passes see is told by the one that takes it in better, whatever the scores.
    let ranked = [sharp, read(detector, small)?, too_large].map(nms::best_first).concat();
    Ok(nms::best_first(nms::suppress(ranked)))
}

fn read(detector: &Detector, (view, outputs): (View, &[Tensor])) -> Result<Vec<Detection>, DetectError> {
    let head = Head { size: view.size, outputs };
    let found = match detector.family {
        DetectorFamily::Yunet => yunet::read(&head, detector.store_score),
        DetectorFamily::Scrfd => scrfd::read(&head, detector.store_score),
    }?;
    Ok(found.into_iter().map(|face| face.scaled(view.to_picture)).collect())
}

/// A detector's outputs beside the size of the input they answer.
pub(crate) struct Head<'a> {
    size: [u32; 2],
    outputs: &'a [Tensor],
}

impl<'a> Head<'a> {
    /// Cells in a row at `stride`.
    pub(crate) fn columns(&self, stride: u32) -> usize {
        (self.size[0] / stride) as usize
    }

    /// Cells in all at `stride`.
    pub(crate) fn cells(&self, stride: u32) -> usize {
        self.columns(stride) * (self.size[1] / stride) as usize
    }

    /// The numbers of output `index`, which must be `rows` x `columns`, with or without a leading batch of one.
    pub(crate) fn rows(&self, index: usize, rows: usize, columns: usize) -> Result<&'a [f32], DetectError> {
        let output = self.outputs.get(index);
        let wanted = [rows as i64, columns as i64];
        match output {
            Some(tensor) if tensor.data.len() == rows * columns && tensor.shape.ends_with(&wanted) => Ok(&tensor.data),
            _ => Err(DetectError::Shape {
                index,
                shape: output.map(|tensor| tensor.shape.clone()).unwrap_or_default(),
                rows,
                columns,
                width: self.size[0],
                height: self.size[1],
            }),
        }
    }
}

/// `picture` with `side` as its longer side.
fn resized(picture: &Picture, side: u32) -> Picture {
    let longest = picture.width.max(picture.height);
    if longest == side {
        return picture.clone();
    }
    let scale = f64::from(side) / f64::from(longest);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most `side`")]
    let fit = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
    let (width, height) = (fit(picture.width), fit(picture.height));
    let mut target = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(kernel()));
    ImageRef::new(picture.width, picture.height, &picture.rgb, PixelType::U8x3)
        .map_err(|cause| cause.to_string())
        .and_then(|source| Resizer::new().resize(&source, &mut target, &options).map_err(|cause| cause.to_string()))
        .expect("resize RGB pixels; this is a bug: a picture holds width x height x 3 bytes");
    Picture { width, height, rgb: target.into_vec() }
}

/// Radius of the resizing kernel, in target pixels when shrinking and in source pixels when enlarging.
///
/// Plain interpolation would skip most pixels of a large photograph and shift landmarks with it. The detectors learned
/// from such sharp, aliased pictures, though, so this triangle is narrower than the usual 1: embeddings keep a median
/// cosine of 0.981 with those of plain interpolation instead of 0.973, and LFW gives 99.30 % instead of 99.23 %.
const KERNEL_RADIUS: f64 = 0.6;

fn kernel() -> FilterType {
    let triangle = |distance: f64| (1.0 - distance.abs() / KERNEL_RADIUS).max(0.0);
    let filter = Filter::new("triangle", triangle, KERNEL_RADIUS);
    FilterType::Custom(filter.expect("make a kernel of a positive radius; this is a bug: it is a constant"))
}
