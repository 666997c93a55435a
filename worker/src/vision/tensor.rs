//! Pixels to model input: planar f32 tensors in the channel order and number range a model was trained on.

use shared::catalogue::Channels;

use crate::vision::Picture;

/// A dense f32 array with its shape, row-major; model inputs are NCHW.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    /// Length of each dimension.
    pub shape: Vec<i64>,
    /// As many numbers as the product of `shape`.
    pub data: Vec<f32>,
}

impl std::fmt::Debug for Tensor {
    // Tensors hold pixels and embeddings: a stray `{:?}` must not print them.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Tensor({:?})", self.shape)
    }
}

/// How a model wants its pixels: channel order, then `(value - mean) * scale` on 0..255.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// Order of the colour planes.
    pub channels: Channels,
    /// Subtracted, in the model's channel order.
    pub mean: [f32; 3],
    /// Multiplied afterwards, in the model's channel order.
    pub scale: [f32; 3],
}

impl Range {
    /// The picture as `[1, 3, height, width]`, or `[1, 1, height, width]` of [`Channels::Gray`].
    pub fn tensor(&self, picture: &Picture) -> Tensor {
        if self.channels == Channels::Gray { self.gray_tensor(picture) } else { self.padded_tensor(picture, 1) }
    }

    fn gray_tensor(&self, picture: &Picture) -> Tensor {
        // ITU-R BT.601.
        let luma = |[r, g, b]: &[u8; 3]| f32::from(*r) * 0.299 + f32::from(*g) * 0.587 + f32::from(*b) * 0.114;
        let value = |pixel: &[u8; 3]| (luma(pixel) - self.mean[0]) * self.scale[0];
        let data = picture.rgb.as_chunks::<3>().0.iter().map(value).collect();
        Tensor { shape: vec![1, 1, picture.height.into(), picture.width.into()], data }
    }

    /// The picture as `[1, 3, height, width]`, both sides filled up to multiples of `step` with black pixels at the
    /// right and the bottom.
    pub fn padded_tensor(&self, picture: &Picture, step: u32) -> Tensor {
        let (width, height) = (picture.width as usize, picture.height as usize);
        let columns = width.next_multiple_of(step as usize);
        let rows = height.next_multiple_of(step as usize);
        let black = [0, 1, 2].map(|plane| -self.mean[plane] * self.scale[plane]);
        let mut data = Vec::with_capacity(3 * rows * columns);
        for (plane, &black) in black.iter().enumerate() {
            data.resize((plane + 1) * rows * columns, black);
        }
        let (first, rest) = data.split_at_mut(rows * columns);
        let (second, third) = rest.split_at_mut(rows * columns);
        let order = match self.channels {
            Channels::Rgb | Channels::Gray => [0, 1, 2],
            Channels::Bgr => [2, 1, 0],
        };
        for (y, row) in picture.rgb.chunks_exact(width * 3).enumerate() {
            let at = y * columns..y * columns + width;
            let planes = first[at.clone()].iter_mut().zip(&mut second[at.clone()]).zip(&mut third[at]);
            for (pixel, ((one, two), three)) in row.as_chunks::<3>().0.iter().zip(planes) {
                let value = |plane: usize| (f32::from(pixel[order[plane]]) - self.mean[plane]) * self.scale[plane];
                (*one, *two, *three) = (value(0), value(1), value(2));
            }
        }
        Tensor { shape: vec![1, 3, rows as i64, columns as i64], data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_follow_the_channel_order_and_the_padding_is_black() {
        let picture = Picture { width: 3, height: 1, rgb: vec![10, 20, 30, 11, 21, 31, 12, 22, 32] };
        let range = Range { channels: Channels::Bgr, mean: [30.0, 20.0, 10.0], scale: [1.0, 2.0, 3.0] };
        let plain = range.tensor(&picture);
        assert_eq!(plain.shape, [1, 3, 1, 3]);
        assert_eq!(plain.data, [0.0, 1.0, 2.0, 0.0, 2.0, 4.0, 0.0, 3.0, 6.0]);
        let padded = range.padded_tensor(&picture, 4);
        assert_eq!(padded.shape, [1, 3, 4, 4]);
        assert_eq!(padded.data[..5], [0.0, 1.0, 2.0, -30.0, -30.0]);
        assert_eq!(padded.data[16..20], [0.0, 2.0, 4.0, -40.0]);
        assert_eq!(padded.data[44..], [-30.0; 4]);
    }

    #[test]
    fn debug_shows_no_number() {
        assert_eq!(format!("{:?}", Tensor { shape: vec![1, 2], data: vec![0.5; 2] }), "Tensor([1, 2])");
    }
}
