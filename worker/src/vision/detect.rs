//! What a detector is shown of a picture, and what its answers mean.
//!
//! To detectors that see many sizes, every picture is shown at a side that finds small faces, and where that is a large one a
//! second time, small, which finds faces so large that the first pass cannot take them in; to those that see one size, at
//! many scales. The answers are mapped back to upright original pixels and merged.

use fast_image_resize::{Filter, FilterType, ResizeAlg};
use shared::catalogue::{Detector, DetectorFamily};

use crate::vision::resize::{part, resized};
use crate::vision::tensor::{Range, Tensor};
use crate::vision::{BoundingBox, Detection, LandmarksError, Picture, mmod, mtcnn, nms, scrfd, ultraface, yunet};

/// Cell sizes of both families' three output levels, in input pixels.
pub(crate) const STRIDES: [u32; 3] = [8, 16, 32];

/// Pictures below this side are enlarged: YuNet on LFW's 250-pixel pictures gives 99.02 % at 256 and 99.28 % at 384.
const MIN_SIDE: u32 = 384;

/// Longer side of the second pass. On 120 LFW faces enlarged until they fill the picture, 160, 192, 224 and
/// 256 find all and place landmarks about alike; 192 has a quarter of the pixels of the smallest main pass.
const SMALL_SIDE: u32 = 192;

/// From this size of a face in main-pass pixels, the second pass scores it higher and places its landmarks better:
/// a face 640 pixels wide scores 0.83 in the main pass and 0.94 in the second, one of 380 pixels the same in both.
const LARGE_FACE: f32 = 448.0;

/// Both sides of an input are multiples of the coarsest stride.
const SIDE_STEP: u32 = 32;

/// Where another detector has seen a face, this part of `store_score` is enough for it to be the same one. Of 3561 faces that
/// `YuNet` finds on 3000 of LFW's pictures, SCRFD finds 3490 at its own `store_score`, 3552 with half of it, and 3558 with a fifth.
const KNOWN_FACE_SHARE: f32 = 0.5;

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
    /// Input pixels before the picture begins, along x and y.
    padding: f32,
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
    /// A stage of a cascade answers in other shapes.
    #[error(
        "stage {stage} of the detector gave outputs of the shapes {shapes:?}, which are not those of its family; check the \
         pipeline's detector family and stages"
    )]
    Cascade {
        /// Which one, from 1.
        stage: usize,
        /// What came out.
        shapes: Vec<Vec<i64>>,
    },
    /// A landmark model answers with another number of points.
    #[error("check the pipeline's landmark model and scheme")]
    Landmarks(#[from] LandmarksError),
}

/// The longer side from which a picture at a reduced scale shows the detector what the original would.
///
/// Twice the largest input: nearer to it, landmarks move. Embeddings of the 67 faces of six photographs, enlarged, agree
/// with those of the original scale to a median cosine of 0.955 at 1.0, 0.978 at 1.6, 0.993 at 2.0 and 0.998 at 3.2 times
/// the input; all of the faces are found from 1.6.
///
/// Single faces of 13 to 25 input pixels agree to 0.43 to 0.87 only. That is the detector, not the scale: their landmarks
/// move by a twentieth to a seventh of the face's width, and as far when the whole picture is shown 5 % larger or smaller
/// (cosines of 0.44 to 0.98 to the answer at 640). With the landmarks of the whole picture, their vectors agree to 1.000.
pub fn overview_side(detector: &Detector) -> u32 {
    2 * largest_side(detector)
}

fn largest_side(detector: &Detector) -> u32 {
    detector.input_side.max(MIN_SIDE)
}

/// The inputs to run for `picture`, of a cascade none: `crate::analysis` leads it from stage to stage.
pub fn passes(picture: &Picture, detector: &Detector) -> Vec<Pass> {
    let range = Range { channels: detector.channels, mean: detector.mean, scale: detector.scale };
    match detector.family {
        DetectorFamily::Yunet | DetectorFamily::Scrfd => two_passes(picture, detector, &range),
        DetectorFamily::Mmod => pyramid(picture, detector, &range),
        DetectorFamily::Ultraface => vec![fixed(picture, &range)],
        DetectorFamily::Mtcnn => Vec::new(),
    }
}

/// The picture as a cascade sees it: at its own size up to the detector's, and what its pixels are of the picture's.
pub(crate) fn cascade_view(picture: &Picture, detector: &Detector) -> (Picture, [f32; 2]) {
    let longest = picture.width.max(picture.height);
    let shown = shown_at(picture, longest.min(detector.input_side));
    let to_picture = to_picture(picture, &shown);
    (shown, to_picture)
}

/// The shapes of inputs that each stage of a detector takes.
pub(crate) fn probe_shapes(detector: &Detector) -> Vec<[i64; 4]> {
    let [width, height] = ultraface::INPUT.map(i64::from);
    match detector.family {
        DetectorFamily::Yunet | DetectorFamily::Scrfd => {
            let side = i64::from(detector.fixed_side.unwrap_or(2 * SIDE_STEP));
            vec![[1, 3, side, side]]
        }
        DetectorFamily::Mmod => vec![[1, 3, 96, 96]],
        DetectorFamily::Ultraface => vec![[1, 3, height, width]],
        DetectorFamily::Mtcnn => {
            let [refine, output] = mtcnn::SIDES.map(i64::from);
            vec![[1, 3, 64, 64], [1, 3, refine, refine], [1, 3, output, output]]
        }
    }
}

fn to_picture(picture: &Picture, shown: &Picture) -> [f32; 2] {
    [picture.width as f32 / shown.width as f32, picture.height as f32 / shown.height as f32]
}

/// The main pass, and a small one where the main one has room for a face that is too large for it.
fn two_passes(picture: &Picture, detector: &Detector, range: &Range) -> Vec<Pass> {
    let longest = picture.width.max(picture.height);
    let side = longest.clamp(MIN_SIDE, largest_side(detector));
    let main = shown_at(picture, side);
    // The smaller of the two has all that the small pass can show and is read faster.
    let source = if main.width < picture.width { &main } else { picture };
    // What takes one size only takes as long for a small picture as for a large one.
    let takes_small = detector.fixed_side.is_none() && side as f32 > LARGE_FACE;
    let small = takes_small.then(|| shown_at(source, SMALL_SIDE));
    let step = detector.fixed_side.unwrap_or(SIDE_STEP);
    let pass = |shown: Picture| Pass {
        view: View {
            size: [shown.width, shown.height].map(|side| side.next_multiple_of(step)),
            padding: 0.0,
            to_picture: to_picture(picture, &shown),
        },
        input: range.padded_tensor(&shown, step),
    };
    std::iter::once(main).chain(small).map(pass).collect()
}

/// The picture and smaller ones, each in a frame of black.
fn pyramid(picture: &Picture, detector: &Detector, range: &Range) -> Vec<Pass> {
    let longest = picture.width.max(picture.height).clamp(MIN_SIDE, largest_side(detector));
    let sides = std::iter::successors(Some(f64::from(longest)), |side| Some(side * mmod::STEP));
    let levels = sides.map(|side| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most the detector's side")]
        shown_at(picture, side.round() as u32)
    });
    // The first is run whatever the picture's shape.
    let is_large = |(n, level): &(usize, Picture)| *n == 0 || level.width.min(level.height) >= mmod::LEAST_SIDE;
    let pass = |(_, level): (usize, Picture)| {
        #[expect(clippy::cast_possible_wrap, reason = "some pixels")]
        let corner = [-(mmod::PADDING as i32); 2];
        let framed = part(&level, corner, [level.width, level.height].map(|side| side + 2 * mmod::PADDING));
        let view = View {
            size: [framed.width, framed.height],
            padding: mmod::PADDING as f32,
            to_picture: to_picture(picture, &level),
        };
        Pass { view, input: range.tensor(&framed) }
    };
    levels.enumerate().take_while(is_large).map(pass).collect()
}

/// The picture as large as it fits into an input of one size, at its upper left.
fn fixed(picture: &Picture, range: &Range) -> Pass {
    let size = ultraface::INPUT;
    let (wide, high) = (u64::from(picture.width) * u64::from(size[1]), u64::from(picture.height) * u64::from(size[0]));
    // As the longer side of what fits: the input's own, or what the other side leaves.
    let along = |one: u32, other: u32, room: u32| {
        u32::try_from(u64::from(one) * u64::from(room) / u64::from(other.max(1))).unwrap_or(room).max(1)
    };
    let fit = if wide >= high {
        [size[0], along(picture.height, picture.width, size[0])]
    } else {
        [along(picture.width, picture.height, size[1]), size[1]]
    };
    let shown = resized(picture, fit, ResizeAlg::Convolution(kernel()));
    let view = View { size, padding: 0.0, to_picture: to_picture(picture, &shown) };
    Pass { view, input: range.tensor(&part(&shown, [0, 0], size)) }
}

/// Faces of at least the detector's `store_score`, best first, from the answers to the main pass and those after it.
pub fn merge(detector: &Detector, answers: &[(View, Vec<Tensor>)]) -> Result<Vec<Detection>, DetectError> {
    let same_face = match detector.family {
        DetectorFamily::Yunet | DetectorFamily::Scrfd => return merge_two(detector, answers),
        DetectorFamily::Mmod => mmod::SAME_FACE_IOU,
        DetectorFamily::Ultraface | DetectorFamily::Mtcnn => nms::SAME_FACE_IOU,
    };
    let found = answers.iter().map(|answer| read(detector, answer)).collect::<Result<Vec<_>, _>>()?.concat();
    Ok(nms::suppress(nms::best_first(found), same_face))
}

fn merge_two(detector: &Detector, answers: &[(View, Vec<Tensor>)]) -> Result<Vec<Detection>, DetectError> {
    let Some((main, small)) = answers.split_first() else { return Ok(Vec::new()) };
    let fits = |face: &Detection| {
        let [x, y] = main.0.to_picture;
        small.is_empty() || (face.bounding_box.width / x).max(face.bounding_box.height / y) <= LARGE_FACE
    };
    let (sharp, too_large): (Vec<_>, Vec<_>) = read(detector, main)?.into_iter().partition(fits);
    let small = small.iter().map(|answer| read(detector, answer)).collect::<Result<Vec<_>, _>>()?.concat();
    // A face that both passes see is told by the one that takes it in better, whatever the scores.
    let ranked = [sharp, small, too_large].map(nms::best_first).concat();
    Ok(nms::best_first(nms::suppress(ranked, nms::SAME_FACE_IOU)))
}

/// The detector as it looks for faces that are known already.
pub fn less_sure(detector: &Detector) -> Detector {
    Detector { store_score: detector.store_score * KNOWN_FACE_SHARE, ..detector.clone() }
}

/// What was found, best first, with those of the `unsure` detections that lie where a face is known of which nothing was found.
pub fn with_known(mut found: Vec<Detection>, unsure: Vec<Detection>, known: &[BoundingBox]) -> Vec<Detection> {
    let is_same = |one: &BoundingBox, other: &BoundingBox| one.iou(other) > shared::db::faces::SAME_FACE_IOU;
    for face in unsure {
        let is_missed =
            |k: &BoundingBox| is_same(k, &face.bounding_box) && !found.iter().any(|f| is_same(k, &f.bounding_box));
        let is_apart = !found.iter().any(|f| f.bounding_box.iou(&face.bounding_box) > nms::SAME_FACE_IOU);
        if is_apart && known.iter().any(is_missed) {
            found.push(face);
        }
    }
    nms::best_first(found)
}

fn read(detector: &Detector, (view, outputs): &(View, Vec<Tensor>)) -> Result<Vec<Detection>, DetectError> {
    let head = Head { size: view.size, outputs };
    let found = match detector.family {
        DetectorFamily::Yunet => yunet::read(&head, detector.store_score),
        DetectorFamily::Scrfd => scrfd::read(&head, detector.store_score),
        DetectorFamily::Mmod => mmod::read(&head, detector.store_score),
        DetectorFamily::Ultraface => ultraface::read(&head, detector.store_score),
        DetectorFamily::Mtcnn => Ok(Vec::new()),
    }?;
    let shift = view.to_picture.map(|factor| -view.padding * factor);
    Ok(found.into_iter().map(|face| face.placed(view.to_picture, shift)).collect())
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

    /// The numbers of output `index`, which must be one map with as many cells as `along` gives for a side of the input, and
    /// how many columns it has.
    pub(crate) fn map(&self, index: usize, along: impl Fn(u32) -> usize) -> Result<(&'a [f32], usize), DetectError> {
        let [columns, rows] = self.size.map(along);
        Ok((self.rows(index, rows, columns)?, columns))
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
fn shown_at(picture: &Picture, side: u32) -> Picture {
    let longest = picture.width.max(picture.height);
    let scale = f64::from(side) / f64::from(longest);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most `side`")]
    let fit = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
    resized(picture, [fit(picture.width), fit(picture.height)], ResizeAlg::Convolution(kernel()))
}

/// Radius of the resizing kernel, in target pixels when shrinking and in source pixels when enlarging.
///
/// Plain interpolation would skip most pixels of a large photograph and shift landmarks with it. This triangle averages
/// them, a little more sharply than an area mean does. It was picked among some fifteen kernels for its agreement with
/// embeddings made by plain interpolation (median cosine 0.981; an area mean 0.980, radius 1 0.973), which is no proof
/// that it is better: LFW gives 99.17 % to 99.30 % over these kernels without a trend (radius 0.55 99.17, 0.6 99.30,
/// 1 99.23), which is the jitter of landmarks.
const KERNEL_RADIUS: f64 = 0.6;

fn kernel() -> FilterType {
    let triangle = |distance: f64| (1.0 - distance.abs() / KERNEL_RADIUS).max(0.0);
    let filter = Filter::new("triangle", triangle, KERNEL_RADIUS);
    FilterType::Custom(filter.expect("make a kernel of a positive radius; this is a bug: it is a constant"))
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "small whole numbers, exact in f32")]
mod tests {
    use shared::catalogue::Catalogue;

    use super::*;

    fn detector(family: DetectorFamily) -> Detector {
        let pipeline = Catalogue::load(None).unwrap().pipeline("yunet-mobilefacenet").unwrap().clone();
        Detector { family, ..pipeline.detector }
    }

    fn grey(width: u32, height: u32) -> Picture {
        Picture { width, height, rgb: vec![128; (width * height * 3) as usize] }
    }

    /// Outputs of `counts` tensors with `columns` numbers a row, for an input of `size`, all zero.
    fn outputs(size: [u32; 2], columns: &[i64], anchors: u32, batch: &[i64]) -> Vec<Tensor> {
        let level = |&columns: &i64, stride: &u32| {
            let rows = i64::from(size[0] / stride * (size[1] / stride) * anchors);
            let shape = [batch, &[rows, columns]].concat();
            Tensor { data: vec![0.0; usize::try_from(rows * columns).unwrap()], shape }
        };
        columns.iter().flat_map(|columns| STRIDES.iter().map(move |stride| level(columns, stride))).collect()
    }

    #[test]
    fn a_picture_is_shown_at_its_own_size_within_the_limits() {
        let cases = [
            ((250, 250), vec![[384, 384]]),
            ((448, 300), vec![[448, 320]]),
            ((449, 300), vec![[480, 320], [192, 128]]),
            ((500, 250), vec![[512, 256], [192, 96]]),
            ((3000, 2171), vec![[640, 480], [192, 160]]),
            ((480, 640), vec![[480, 640], [160, 192]]),
            ((10_000, 1), vec![[640, 32], [192, 32]]),
            ((1, 1), vec![[384, 384]]),
        ];
        for ((width, height), sizes) in cases {
            let passes = passes(&grey(width, height), &detector(DetectorFamily::Yunet));
            assert_eq!(passes.len(), sizes.len(), "{width}x{height}");
            for (pass, size) in passes.iter().zip(sizes) {
                assert_eq!(pass.view.size, size, "{width}x{height}");
                assert_eq!(pass.input.shape, [1, 3, i64::from(size[1]), i64::from(size[0])]);
                assert!(pass.input.data.iter().all(|value| [0.0, 128.0].contains(value)), "{width}x{height}");
            }
        }
    }

    #[test]
    fn yunet_rows_become_faces_in_picture_pixels() {
        let view = View { size: [64, 32], padding: 0.0, to_picture: [2.0, 3.0] };
        let mut main = outputs(view.size, &[1, 1, 4, 10], 1, &[1]);
        // Stride 16: cell (2, 1) of 4 x 2.
        (main[1].data[6], main[4].data[6]) = (0.81, 1.2);
        main[7].data[24..28].copy_from_slice(&[0.5, 0.25, 0.0, 2f32.ln()]);
        main[10].data[60..62].copy_from_slice(&[0.5, -0.25]);
        let small = outputs(view.size, &[1, 1, 4, 10], 1, &[1]);
        let faces = merge(&detector(DetectorFamily::Yunet), &[(view, main), (view, small)]).unwrap();
        assert_eq!(faces.len(), 1);
        assert!((faces[0].score - 0.9).abs() < 1e-6);
        let found = faces[0].bounding_box;
        let wanted = [(40.0 - 8.0) * 2.0, (20.0 - 16.0) * 3.0, 16.0 * 2.0, 32.0 * 3.0];
        for (found, wanted) in [found.x, found.y, found.width, found.height].into_iter().zip(wanted) {
            assert!((found - wanted).abs() < 1e-4, "{faces:?}");
        }
        assert_eq!(faces[0].landmarks.points()[0], [40.0 * 2.0, 12.0 * 3.0]);
        assert_eq!(faces[0].landmarks.points()[1], [32.0 * 2.0, 16.0 * 3.0]);
    }

    #[test]
    fn scrfd_rows_become_faces_with_or_without_a_batch_axis() {
        let view = View { size: [64, 32], padding: 0.0, to_picture: [1.0, 1.0] };
        for batch in [&[][..], &[1]] {
            let mut main = outputs(view.size, &[1, 4, 10], 2, batch);
            // Stride 32: second anchor of cell (1, 0) of 2 x 1.
            main[2].data[3] = 0.75;
            main[5].data[12..16].copy_from_slice(&[0.5, 0.25, 1.0, 0.5]);
            main[8].data[30..32].copy_from_slice(&[0.25, 0.125]);
            let small = outputs(view.size, &[1, 4, 10], 2, batch);
            let faces = merge(&detector(DetectorFamily::Scrfd), &[(view, main), (view, small)]).unwrap();
            assert_eq!(faces.len(), 1);
            let wanted = crate::vision::BoundingBox { x: 16.0, y: -8.0, width: 48.0, height: 24.0 };
            assert_eq!(faces[0].bounding_box, wanted);
            assert_eq!(faces[0].landmarks.points()[0], [40.0, 4.0]);
        }
    }

    #[test]
    fn each_face_is_told_by_the_pass_that_takes_it_in_better() {
        let (main, small) = (
            View { size: [640, 640], padding: 0.0, to_picture: [1.0; 2] },
            View { size: [192, 192], padding: 0.0, to_picture: [3.2; 2] },
        );
        // One face of `side` picture pixels around (320, 320), seen by both passes with these scores.
        let seen = |view: View, side: f32, score: f32| {
            let mut head = outputs(view.size, &[1, 1, 4, 10], 1, &[1]);
            let columns = view.size[0] / 32;
            let cell = (columns / 2 * columns + columns / 2) as usize;
            (head[2].data[cell], head[5].data[cell]) = (score, score);
            let length = (side / view.to_picture[0] / 32.0).ln();
            head[8].data[cell * 4 + 2..cell * 4 + 4].copy_from_slice(&[length; 2]);
            head
        };
        for (side, wanted) in [(300.0, 0.75), (600.0, 0.95)] {
            let answers = [(main, seen(main, side, 0.75)), (small, seen(small, side, 0.95))];
            let faces = merge(&detector(DetectorFamily::Yunet), &answers).unwrap();
            assert_eq!(faces.iter().map(|face| face.score).collect::<Vec<_>>(), [wanted]);
        }
    }

    #[test]
    fn a_known_face_needs_less_to_be_found() {
        let face = |x: f32, score: f32| Detection {
            bounding_box: BoundingBox { x, y: 0.0, width: 100.0, height: 100.0 },
            landmarks: crate::vision::Landmarks::five([[x, 0.0]; 5]),
            score,
        };
        let known = [0.0, 300.0, 600.0].map(|x| face(x, 0.9).bounding_box);
        let (found, unsure) = (vec![face(10.0, 0.9)], vec![face(0.0, 0.3), face(310.0, 0.3), face(900.0, 0.3)]);
        let all = with_known(found.clone(), unsure, &known);
        assert_eq!(
            all.iter().map(|f| f.bounding_box.x).collect::<Vec<_>>(),
            [10.0, 310.0],
            "of known places, one each"
        );
        // Both lie at the face that is known at 0 and far enough from each other.
        let beside = with_known(vec![face(-30.0, 0.9)], vec![face(30.0, 0.3)], &known);
        assert_eq!(beside.len(), 1, "that face was found already");
        assert_eq!(with_known(found, vec![face(310.0, 0.3)], &[]).len(), 1);
    }

    #[test]
    fn outputs_of_another_family_are_refused() {
        let view = View { size: [64, 32], padding: 0.0, to_picture: [1.0; 2] };
        let right = outputs(view.size, &[1, 1, 4, 10], 1, &[1]);
        let other_family = outputs(view.size, &[1, 4, 10], 2, &[]);
        let other_size = outputs([64, 64], &[1, 1, 4, 10], 1, &[1]);
        for wrong in [other_family, other_size, right[..11].to_vec()] {
            let answers = [(view, right.clone()), (view, wrong)];
            let error = merge(&detector(DetectorFamily::Yunet), &answers).unwrap_err();
            assert!(error.to_string().contains("64x32"), "{error}");
        }
    }
}
