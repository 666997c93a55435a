//! What a pair network is shown of two faces.

use shared::catalogue::{PairInput, PairTensors};

use crate::vision::Picture;
use crate::vision::resize::{resized, triangle};
use crate::vision::tensor::{Range, Tensor};

/// The inputs of the network, in its order: both aligned crops at its size.
pub fn inputs(wanted: &PairInput, one: &Picture, other: &Picture) -> Vec<Tensor> {
    let range = Range { channels: wanted.channels, mean: wanted.mean, scale: wanted.scale };
    let input = |crop: &Picture| range.tensor(&resized(crop, [wanted.width, wanted.height], triangle()));
    let (mut first, second) = (input(one), input(other));
    match wanted.tensors {
        PairTensors::Two => vec![first, second],
        PairTensors::One => {
            first.shape[1] += second.shape[1];
            first.data.extend(second.data);
            vec![first]
        }
    }
}

/// Shapes of the inputs without their batch axis.
pub(crate) fn input_shapes(wanted: &PairInput) -> Vec<[i64; 3]> {
    let planes = wanted.channels.planes() as i64;
    let of = |planes| [planes, wanted.height.into(), wanted.width.into()];
    match wanted.tensors {
        PairTensors::Two => vec![of(planes); 2],
        PairTensors::One => vec![of(2 * planes)],
    }
}

#[cfg(test)]
mod tests {
    use shared::catalogue::Channels;

    use super::*;

    #[test]
    fn both_crops_are_shown_in_their_order() {
        let flat = |value: u8| Picture { width: 4, height: 2, rgb: vec![value; 24] };
        let mut wanted = PairInput {
            width: 2,
            height: 1,
            channels: Channels::Rgb,
            mean: [10.0; 3],
            scale: [0.5; 3],
            tensors: PairTensors::Two,
        };
        let two = inputs(&wanted, &flat(30), &flat(50));
        assert_eq!((two.len(), two[0].shape.as_slice()), (2, [1, 3, 1, 2].as_slice()));
        assert_eq!((two[0].data.as_slice(), two[1].data.as_slice()), ([10.0; 6].as_slice(), [20.0; 6].as_slice()));
        assert_eq!(input_shapes(&wanted), [[3, 1, 2]; 2]);
        wanted.tensors = PairTensors::One;
        wanted.channels = Channels::Gray;
        let one = inputs(&wanted, &flat(30), &flat(50));
        assert_eq!((one.len(), one[0].shape.as_slice()), (1, [1, 2, 1, 2].as_slice()));
        assert!(one[0].data.iter().zip([10.0, 10.0, 20.0, 20.0]).all(|(found, wanted)| (found - wanted).abs() < 1e-3));
        assert_eq!(input_shapes(&wanted), [[2, 1, 2]]);
    }
}
