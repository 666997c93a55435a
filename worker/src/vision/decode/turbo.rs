//! libjpeg-turbo: pixels of a jpeg file, of all or a part of it, at a reduced scale. Only this file,
//! `vision/encode.rs` and those of `heic` call C.
//!
//! The library ends a faulty file with a `longjmp` among its own frames and says so in a return value, so nothing unwinds
//! through Rust.
#![expect(unsafe_code, reason = "calls of a C library")]

use std::ffi::{CStr, c_int, c_void};
use std::ptr::NonNull;

use turbojpeg_sys as tj;

/// A progressive file has about ten scans. One of some kilobytes can have so many that it keeps a core busy for minutes.
const MAX_SCANS: c_int = 100;

/// What the library says is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct TurboError(String);

/// What a file's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) width: u32,
    pub(super) height: u32,
    /// All of the file is read before the first row comes out.
    pub(super) is_progressive: bool,
    /// It holds no frequencies, so that there are no other scales and no parts.
    pub(super) is_lossless: bool,
    is_cmyk: bool,
    /// Pixels across one coded unit; none where the file is sampled in a way the library takes apart only as a whole.
    unit: Option<u32>,
}

/// A rectangle in pixels of some scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) left: u32,
    pub(super) top: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

/// Reads a file's header.
pub(super) fn header(file: &[u8]) -> Result<Header, TurboError> {
    Decompressor::new()?.header(file)
}

/// Decodes a file at `1 / scale` of its sides, rounded up: 1, 2, 4 or 8, for a lossless file 1. Of the region, which is in
/// pixels of that scale and not empty, as much more comes as the file's structure makes necessary. RGB, interleaved.
///
/// The library's own memory stays below `max_memory` bytes. A damaged file gives what can be made of it.
pub(super) fn decompress(
    file: &[u8],
    scale: u32,
    region: Option<Region>,
    max_memory: u64,
) -> Result<(Region, Vec<u8>), TurboError> {
    let mut decompressor = Decompressor::new()?;
    let header = decompressor.header(file)?;
    if header.is_lossless && (scale != 1 || region.is_some()) {
        return Err(TurboError("a lossless file has only its own scale".to_owned()));
    }
    let whole = Region { left: 0, top: 0, width: header.width.div_ceil(scale), height: header.height.div_ceil(scale) };
    let region = region.map_or(whole, |wanted| header.widened(wanted, scale, whole));
    decompressor.limit(max_memory)?;
    decompressor.choose(scale, (region != whole).then_some(region))?;
    let pixels =
        decompressor.pixels(file, region, if header.is_cmyk { tj::TJPF_TJPF_CMYK } else { tj::TJPF_TJPF_RGB })?;
    Ok((region, if header.is_cmyk { rgb_of(&pixels) } else { pixels }))
}

impl Header {
    /// The least rectangle around `wanted` that can be decoded by itself.
    fn widened(&self, wanted: Region, scale: u32, whole: Region) -> Region {
        let Some(unit) = self.unit else { return whole };
        let unit = unit.div_ceil(scale);
        let left = wanted.left.min(whole.width - 1) / unit * unit;
        let top = wanted.top.min(whole.height - 1);
        let right = (wanted.left + wanted.width).clamp(left + 1, whole.width);
        let bottom = (wanted.top + wanted.height).clamp(top + 1, whole.height);
        Region { left, top, width: right - left, height: bottom - top }
    }
}

/// A handle of the library.
struct Decompressor(NonNull<c_void>);

impl Drop for Decompressor {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and nobody has it after this.
        unsafe { tj::tj3Destroy(self.0.as_ptr()) }
    }
}

impl Decompressor {
    fn new() -> Result<Self, TurboError> {
        // SAFETY: takes a number and gives a handle or null.
        let handle = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS.cast_signed()) };
        NonNull::new(handle).map(Self).ok_or_else(|| TurboError("no memory for a decoder".to_owned()))
    }

    fn header(&mut self, file: &[u8]) -> Result<Header, TurboError> {
        // SAFETY: the handle is open, and the pointer is that of so many bytes.
        unsafe { tj::tj3DecompressHeader(self.0.as_ptr(), file.as_ptr(), file.len() as tj::size_t) };
        // A mere warning is returned as an error too. Without a header, these two stay below zero.
        let mut side = |parameter| u32::try_from(self.get(parameter)).ok().filter(|&length| length > 0);
        let sides = side(tj::TJPARAM_TJPARAM_JPEGWIDTH).zip(side(tj::TJPARAM_TJPARAM_JPEGHEIGHT));
        let (width, height) = sides.ok_or_else(|| self.error())?;
        let colours = self.get(tj::TJPARAM_TJPARAM_COLORSPACE);
        Ok(Header {
            width,
            height,
            is_progressive: self.get(tj::TJPARAM_TJPARAM_PROGRESSIVE) == 1,
            is_lossless: self.get(tj::TJPARAM_TJPARAM_LOSSLESS) == 1,
            is_cmyk: [tj::TJCS_TJCS_CMYK, tj::TJCS_TJCS_YCCK].map(tj::TJCS::cast_signed).contains(&colours),
            unit: unit(self.get(tj::TJPARAM_TJPARAM_SUBSAMP)),
        })
    }

    fn limit(&mut self, max_memory: u64) -> Result<(), TurboError> {
        let megabytes = c_int::try_from(max_memory >> 20).unwrap_or(c_int::MAX);
        self.set(tj::TJPARAM_TJPARAM_MAXMEMORY, megabytes)?;
        self.set(tj::TJPARAM_TJPARAM_SCANLIMIT, MAX_SCANS)
    }

    fn choose(&mut self, scale: u32, region: Option<Region>) -> Result<(), TurboError> {
        let factor = tj::tjscalingfactor { num: 1, denom: scale.cast_signed() };
        // SAFETY: the handle is open.
        let status = unsafe { tj::tj3SetScalingFactor(self.0.as_ptr(), factor) };
        self.checked(status)?;
        let Some(region) = region else { return Ok(()) };
        let [x, y, w, h] = [region.left, region.top, region.width, region.height].map(u32::cast_signed);
        // SAFETY: the handle is open.
        let status = unsafe { tj::tj3SetCroppingRegion(self.0.as_ptr(), tj::tjregion { x, y, w, h }) };
        self.checked(status)
    }

    /// What was chosen, which is of the size of `region`.
    fn pixels(&mut self, file: &[u8], region: Region, format: tj::TJPF) -> Result<Vec<u8>, TurboError> {
        let row = region.width as usize * if format == tj::TJPF_TJPF_CMYK { 4 } else { 3 };
        let mut pixels = vec![0; row * region.height as usize];
        // The library tells a file that it gave up and one that is damaged and decoded to its end apart only if there was
        // no warning before; rows come from the top, so the last one tells.
        let mark = |at: usize| if at.is_multiple_of(2) { 0 } else { 255 };
        let last = pixels.len() - row;
        pixels[last..].iter_mut().enumerate().for_each(|(at, value)| *value = mark(at));
        // SAFETY: the handle is open, the file's pointer is that of so many bytes, and the library writes `region.height`
        // rows of `region.width` pixels: the header's size at the scale that was set, or the region that was set.
        let status = unsafe {
            tj::tj3Decompress8(self.0.as_ptr(), file.as_ptr(), file.len() as tj::size_t, pixels.as_mut_ptr(), 0, format)
        };
        let is_untouched = pixels[last..].iter().enumerate().all(|(at, value)| *value == mark(at));
        if status != 0 && is_untouched { Err(self.error()) } else { Ok(pixels) }
    }

    fn get(&mut self, parameter: tj::TJPARAM) -> c_int {
        // SAFETY: the handle is open.
        unsafe { tj::tj3Get(self.0.as_ptr(), parameter.cast_signed()) }
    }

    fn set(&mut self, parameter: tj::TJPARAM, value: c_int) -> Result<(), TurboError> {
        // SAFETY: the handle is open.
        let status = unsafe { tj::tj3Set(self.0.as_ptr(), parameter.cast_signed(), value) };
        self.checked(status)
    }

    fn checked(&mut self, status: c_int) -> Result<(), TurboError> {
        if status == 0 { Ok(()) } else { Err(self.error()) }
    }

    /// Why the last call failed.
    fn error(&mut self) -> TurboError {
        // SAFETY: the handle is open; the text ends with a zero and is copied before the next call.
        let text = unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.0.as_ptr())) };
        TurboError(text.to_string_lossy().into_owned())
    }
}

/// Pixels across a coded unit, which cannot be taken apart, by how its colours are sampled.
fn unit(sampling: c_int) -> Option<u32> {
    match sampling {
        tj::TJSAMP_TJSAMP_444 | tj::TJSAMP_TJSAMP_GRAY | tj::TJSAMP_TJSAMP_440 | tj::TJSAMP_TJSAMP_441 => Some(8),
        tj::TJSAMP_TJSAMP_422 | tj::TJSAMP_TJSAMP_420 => Some(16),
        tj::TJSAMP_TJSAMP_411 => Some(32),
        _ => None,
    }
}

/// Such files hold what is left of the light, as Adobe's programs write them.
fn rgb_of(cmyk: &[u8]) -> Vec<u8> {
    let (pixels, _) = cmyk.as_chunks::<4>();
    let mixed = |colour: u8, black: u8| ((u16::from(colour) * u16::from(black) + 127) / 255).to_le_bytes()[0];
    pixels.iter().flat_map(|&[cyan, magenta, yellow, black]| [cyan, magenta, yellow].map(|c| mixed(c, black))).collect()
}

#[cfg(test)]
pub(in crate::vision) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vision::Picture;

    const MEMORY: u64 = 64 << 20;
    const SAMPLINGS: [tj::TJSAMP; 7] = [
        tj::TJSAMP_TJSAMP_444,
        tj::TJSAMP_TJSAMP_422,
        tj::TJSAMP_TJSAMP_420,
        tj::TJSAMP_TJSAMP_GRAY,
        tj::TJSAMP_TJSAMP_440,
        tj::TJSAMP_TJSAMP_411,
        tj::TJSAMP_TJSAMP_441,
    ];

    /// A jpeg as cameras write it, of quality 90 and with colours at half the resolution.
    pub(in crate::vision) fn camera_jpeg(picture: &Picture) -> Vec<u8> {
        jpeg(picture, tj::TJSAMP_TJSAMP_420, tj::TJPARAM_TJPARAM_OPTIMIZE)
    }

    /// A jpeg of quality 90, with one of the library's switches on.
    fn jpeg(picture: &Picture, sampling: tj::TJSAMP, switch: tj::TJPARAM) -> Vec<u8> {
        let (mut bytes, mut length) = (std::ptr::null_mut(), 0);
        // SAFETY: the handle is open, the pixels are as many as is said; the bytes are copied before they are freed.
        unsafe {
            let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS.cast_signed());
            for (parameter, value) in
                [(tj::TJPARAM_TJPARAM_QUALITY, 90), (tj::TJPARAM_TJPARAM_SUBSAMP, sampling), (switch, 1)]
            {
                assert_eq!(tj::tj3Set(handle, parameter.cast_signed(), value), 0);
            }
            let [width, height] = [picture.width, picture.height].map(u32::cast_signed);
            let pixels = picture.rgb.as_ptr();
            let status =
                tj::tj3Compress8(handle, pixels, width, 0, height, tj::TJPF_TJPF_RGB, &raw mut bytes, &raw mut length);
            assert_eq!(status, 0);
            let copy = std::slice::from_raw_parts(bytes, usize::try_from(length).unwrap()).to_vec();
            tj::tj3Free(bytes.cast());
            tj::tj3Destroy(handle);
            copy
        }
    }

    /// Blotches of all sizes and colours.
    fn motley(width: u32, height: u32) -> Picture {
        let wave = |at: u32| ((at as f32 / 3.0).sin() + (at as f32 / 17.0).cos()) * 50.0 + 128.0;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "28 to 228")]
        let rgb = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x, y, x + 2 * y].map(|at| wave(at) as u8)));
        Picture { width, height, rgb: rgb.collect() }
    }

    proptest! {
        #[test]
        fn a_region_is_the_same_part_of_the_whole(
            sampling in prop::sample::select(&SAMPLINGS[..]),
            scale in prop::sample::select(&[1u32, 2, 4, 8][..]),
            (left, top, width, height) in (0u32..220, 0u32..140, 1u32..200, 1u32..200),
        ) {
            let file = jpeg(&motley(211, 133), sampling, tj::TJPARAM_TJPARAM_OPTIMIZE);
            let (whole, all) = decompress(&file, scale, None, MEMORY).unwrap();
            prop_assert_eq!((whole.width, whole.height), (211u32.div_ceil(scale), 133u32.div_ceil(scale)));
            prop_assert_eq!(all.len(), (whole.width * whole.height * 3) as usize);
            let wanted = Region { left, top, width, height };
            let (part, pixels) = decompress(&file, scale, Some(wanted), MEMORY).unwrap();
            prop_assert_eq!(pixels.len(), (part.width * part.height * 3) as usize);
            prop_assert!(part.left <= left && part.top <= top);
            prop_assert!(part.left + part.width >= (left + width).min(whole.width));
            prop_assert!(part.top + part.height >= (top + height).min(whole.height));
            // At its left and right edge a region lacks the neighbour whose colour is mixed in.
            for y in 0..part.height {
                for x in 2..part.width.saturating_sub(2) {
                    let at = ((y * part.width + x) * 3) as usize;
                    let other = (((part.top + y) * whole.width + part.left + x) * 3) as usize;
                    prop_assert_eq!(&pixels[at..at + 3], &all[other..other + 3], "{} {} of {:?}", x, y, part);
                }
            }
        }
    }

    #[test]
    fn a_lossless_file_has_its_own_scale_only() {
        let file = jpeg(&motley(40, 30), tj::TJSAMP_TJSAMP_444, tj::TJPARAM_TJPARAM_LOSSLESS);
        assert!(header(&file).unwrap().is_lossless);
        assert_eq!(decompress(&file, 1, None, MEMORY).unwrap().1, motley(40, 30).rgb);
        assert!(decompress(&file, 2, None, MEMORY).is_err());
        assert!(decompress(&file, 1, Some(Region { left: 0, top: 0, width: 8, height: 8 }), MEMORY).is_err());
    }

    #[test]
    fn a_file_of_many_scans_is_refused() {
        let file = include_bytes!("fixtures/progressive.jpg");
        let marker = |wanted: [u8; 2]| file.windows(2).rposition(|bytes| bytes == wanted).unwrap();
        let (last_scan, end) = (marker([0xFF, 0xDA]), marker([0xFF, 0xD9]));
        let repeated = |times| [&file[..last_scan], &file[last_scan..end].repeat(times), &file[end..]].concat();
        assert!(decompress(&repeated(10), 1, None, MEMORY).is_ok());
        let error = decompress(&repeated(200), 1, None, MEMORY).unwrap_err().to_string();
        assert!(error.contains("scans"), "{error}");
    }

    #[test]
    fn a_file_that_is_given_up_is_an_error_even_after_a_warning() {
        let file = include_bytes!("fixtures/progressive.jpg");
        let tables: Vec<usize> =
            file.windows(2).enumerate().filter(|(_, b)| *b == [0xFF, 0xC4]).map(|(at, _)| at).collect();
        let [.., second, last] = tables[..] else { panic!("the file has several tables") };
        let stray = b"more bytes than the scan before them takes for its own";
        let warned = [&file[..second], stray, &file[second..]].concat();
        assert!(decompress(&warned, 1, None, MEMORY).is_ok());
        let mut fatal = warned;
        // The class and number of a table, behind marker and length.
        fatal[last + stray.len() + 4] = 0xFF;
        assert!(decompress(&fatal, 1, None, MEMORY).is_err());
    }

    #[test]
    fn more_memory_than_allowed_is_refused() {
        let file = jpeg(&motley(1000, 800), tj::TJSAMP_TJSAMP_444, tj::TJPARAM_TJPARAM_PROGRESSIVE);
        assert!(decompress(&file, 1, None, MEMORY).is_ok());
        assert!(decompress(&file, 1, None, 2 << 20).is_err());
    }
}
