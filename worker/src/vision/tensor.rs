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
    /// The picture as `[1, 3, height, width]`.
    pub fn tensor(&self, picture: &Picture) -> Tensor {
        self.padded_tensor(picture, 1)
    }

    /// The picture as `[1, 3, height, width]`, both sides filled up to multiples of `step` with black pixels at the
    /// right and the bottom.
    pub fn padded_tensor(&self, picture: &Picture, step: u32) -> Tensor {
        let (width, height) = (picture.width as usize, picture.height as usize);
        let columns = width.next_multiple_of(step as usize);
        let rows = height.next_multiple_of(step as usize);
        let mut data = Vec::with_capacity(3 * rows * columns);
        for plane in 0..3 {
            let channel = match self.channels {
                Channels::Rgb => plane,
                Channels::Bgr => 2 - plane,
            };
            let (mean, scale) = (self.mean[plane], self.scale[plane]);
            let black = -mean * scale;
            for row in picture.rgb.chunks_exact(width * 3) {
                let (pixels, _) = row.as_chunks::<3>();
                data.extend(pixels.iter().map(|pixel| (f32::from(pixel[channel]) - mean) * scale));
                data.resize(data.len() + columns - width, black);
            }
            data.resize((plane + 1) * rows * columns, black);
        }
        Tensor {
            shape: vec![1, 3, rows as i64, columns as i64],
            data,
        }
    }
}
