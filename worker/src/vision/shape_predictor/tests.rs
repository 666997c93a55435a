use super::*;

/// Two points, one stage of one tree with one split: is the first pixel, at the left one, lighter than the second, at the
/// right one, by more than 50?
fn predictor() -> ShapePredictor {
    let pixels = vec![Pixel { anchor: 0, offset: [0.0, 0.1] }, Pixel { anchor: 1, offset: [0.0, 0.1] }];
    let tree = Tree {
        splits: vec![Split { pixels: [0, 1], threshold: 50.0 }],
        moves: vec![[0.1, 0.0], [0.1, 0.0], [0.0, 0.2], [0.0, 0.3]],
    };
    ShapePredictor::new(vec![[0.25, 0.5], [0.75, 0.5]], vec![Stage { pixels, trees: vec![tree] }]).unwrap()
}

/// Left half and right half of these greys.
fn halves(left: u8, right: u8) -> Picture {
    let row = |_| [[left; 3 * 20], [right; 3 * 20]].concat();
    Picture { width: 40, height: 40, rgb: (0..40).flat_map(row).collect() }
}

/// From the middle of pixel 0 to that of pixel 40.
const FACE: BoundingBox = BoundingBox { x: 0.0, y: 0.0, width: 41.0, height: 41.0 };

#[test]
fn a_tree_moves_the_mean_shape_by_what_it_sees() {
    let placed = |picture: &Picture| predictor().place(picture, &FACE).unwrap();
    assert_eq!(placed(&halves(101, 50)), [[14.0, 20.0], [34.0, 20.0]]);
    assert_eq!(placed(&halves(100, 50)), [[10.0, 28.0], [30.0, 32.0]], "50 is not more than 50");
    let colours = Picture { rgb: halves(0, 0).rgb.chunks(3).flat_map(|_| [255, 2, 1]).collect(), ..halves(0, 0) };
    assert_eq!(brightness(&colours, [3.0, 3.0]), 86.0);
}

#[test]
fn the_picture_is_black_outside() {
    let picture = halves(200, 200);
    let face = BoundingBox { x: 20.0, ..FACE };
    // The second pixel, at 50, lies outside.
    assert_eq!(predictor().place(&picture, &face).unwrap(), [[34.0, 20.0], [54.0, 20.0]]);
    assert_eq!([-0.6, -0.5, 39.4, 39.5].map(|x| brightness(&picture, [x, 0.0])), [0.0, 200.0, 200.0, 0.0]);
    for width in [0.0, 1.0, f32::NAN, f32::INFINITY] {
        assert_eq!(predictor().place(&picture, &BoundingBox { width, ..FACE }), None);
    }
}

#[test]
fn another_number_of_points_is_refused() {
    assert_eq!(predictor().placing(68), Err(ShapePredictorError::Points { wanted: 68, found: 2 }));
}

#[test]
fn pixels_turn_with_the_shape() {
    let shape = [[0.0, 0.0], [1.0, 0.0], [0.5, 0.5]];
    // By a quarter, and to twice the size.
    let turned = shape.map(|[x, y]| [3.0 - 2.0 * y, 2.0 * x - 1.0]);
    assert_eq!(turn(&shape, &turned), [0.0, 2.0]);
    assert_eq!(turn(&shape, &shape), [1.0, 0.0]);
}

#[test]
fn a_file_is_read_as_it_was_written() {
    let bytes = predictor().to_bytes();
    assert_eq!(bytes.len(), 28 + 2 * 8 + 2 * 10 + 8 + 2 * 2 * 8);
    assert_eq!(bytes[..12], *b"fidtree\x01\x02\x00\x00\x00");
    assert_eq!(ShapePredictor::read(&bytes), Ok(predictor()));
}

#[test]
fn damaged_files_are_refused() {
    let bytes = predictor().to_bytes();
    for length in 0..bytes.len() {
        assert!(ShapePredictor::read(&bytes[..length]).is_err(), "{length}");
    }
    assert!(matches!(ShapePredictor::read(&[&bytes[..], &[0]].concat()), Err(ShapePredictorError::Length { .. })));
    let with = |at: usize, new: &[u8]| {
        let mut damaged = bytes.clone();
        damaged[at..at + new.len()].copy_from_slice(new);
        ShapePredictor::read(&damaged)
    };
    assert_eq!(with(7, &[2]), Err(ShapePredictorError::Form));
    assert_eq!(with(8, &[0xff; 4]), Err(ShapePredictorError::Count { what: "points", count: u32::MAX }));
    // As much as the bounds allow: nothing is set aside for it.
    let most = [1024, 256, 8192, 1023, 65_536].map(u32::to_le_bytes).concat();
    assert!(matches!(with(8, &most), Err(ShapePredictorError::Length { .. })));
    // The mean shape, a pixel's point, a split's pixel, a threshold, a move.
    for (at, new) in [(28, f32::NAN.to_le_bytes()), (44, [2, 0, 0, 0]), (64, [0, 0, 2, 0]), (68, [0, 0, 0xc0, 0x7f])] {
        assert!(matches!(with(at, &new), Err(ShapePredictorError::Parts(_))), "{at}");
    }
    assert!(matches!(with(bytes.len() - 4, &f32::INFINITY.to_le_bytes()), Err(ShapePredictorError::Parts(_))));
}

#[test]
fn parts_that_do_not_fit_make_no_predictor() {
    let refused = |change: &dyn Fn(&mut ShapePredictor)| {
        let mut predictor = predictor();
        change(&mut predictor);
        ShapePredictor::new(predictor.shape, predictor.stages).unwrap_err()
    };
    assert!(matches!(refused(&|p| p.stages.clear()), ShapePredictorError::Count { what: "stages", .. }));
    refused(&|p| p.shape.push([0.5, 0.9]));
    refused(&|p| p.shape[1] = p.shape[0]);
    refused(&|p| p.stages[0].trees[0].splits.push(Split { pixels: [0, 1], threshold: 1.0 }));
    refused(&|p| {
        let stage = Stage { trees: Vec::new(), ..p.stages[0].clone() };
        p.stages.push(stage);
    });
}
