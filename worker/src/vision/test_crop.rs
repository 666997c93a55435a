//! Crops that are the same on every machine: whole-number arithmetic, no photograph.

use crate::vision::Picture;

/// Colours along each side; between them they are blended.
const NODES: u32 = 8;
/// Parts of the way from one colour to the next.
const STEPS: u32 = 256;

/// A smooth pattern of random colours, another for each seed. Its colours go over the whole range, so that the sums in a
/// recognizer are as large as a photograph's and rounding shows.
///
/// # Panics
/// A side is shorter than two pixels; the catalogue's entries have longer ones.
pub fn test_crop(seed: u64, width: u32, height: u32) -> Picture {
    let mut state = seed;
    let colours: Vec<[u8; 3]> = (0..NODES * NODES)
        .map(|_| {
            let [red, green, blue, ..] = splitmix64(&mut state).to_le_bytes();
            [red, green, blue]
        })
        .collect();
    let colour = |row: u32, column: u32| colours[(row * NODES + column) as usize].map(u32::from);
    let mut rgb = Vec::with_capacity(3 * (width * height) as usize);
    for y in 0..height {
        let (row, down) = place(y, height);
        for x in 0..width {
            let (column, right) = place(x, width);
            let [top, bottom] = [row, row + 1].map(|row| {
                let (left, next) = (colour(row, column), colour(row, column + 1));
                [0, 1, 2].map(|plane| left[plane] * (STEPS - right) + next[plane] * right)
            });
            rgb.extend([0, 1, 2].map(|plane| {
                // The weights add up to the square of STEPS, so this is at most 255.
                let blended = (top[plane] * (STEPS - down) + bottom[plane] * down) / (STEPS * STEPS);
                u8::try_from(blended).unwrap_or(u8::MAX)
            }));
        }
    }
    Picture { width, height, rgb }
}

/// The colour before a pixel, and how far it is from there to the next in [`STEPS`].
fn place(pixel: u32, side: u32) -> (u32, u32) {
    let way = pixel * (NODES - 1) * STEPS / (side - 1);
    let node = (way / STEPS).min(NODES - 2);
    (node, way - node * STEPS)
}

/// The next output of the generator, whose state moves on (Steele, Lea, Flood 2014).
pub(crate) fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use shared::digest::sha256_hex;

    use super::*;

    #[test]
    fn crops_never_change() {
        // Catalogue entries hold the vectors of exactly these pixels.
        let digests = [1, 2].map(|seed| sha256_hex(&test_crop(seed, 112, 112).rgb));
        let known = [
            "885eceb337491c221df225e7ced5cc48af41a582ca5509f760d5b2fadade4278",
            "9d32c40f31a47c87868624797e19421e437d70481b38dc5da159ee3edb9c7ca1",
        ];
        assert_eq!(digests, known);
    }

    #[test]
    fn corners_are_the_colours_themselves_at_any_size() {
        let small = test_crop(7, 16, 16);
        let large = test_crop(7, 1024, 300);
        let corner = |picture: &Picture, x: u32, y: u32| {
            let at = 3 * (y * picture.width + x) as usize;
            picture.rgb[at..at + 3].to_vec()
        };
        for [right, down] in [[0, 0], [1, 0], [0, 1], [1, 1]] {
            let of = |picture: &Picture| corner(picture, right * (picture.width - 1), down * (picture.height - 1));
            assert_eq!(of(&small), of(&large));
        }
        assert_ne!(small.rgb, test_crop(8, 16, 16).rgb);
    }
}
