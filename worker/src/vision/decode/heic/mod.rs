//! HEIC files, through libheif: of several pictures the primary one, turned as the file says.
//!
//! The container has its own rotation and mirroring, which the library undoes. The orientation in the EXIF block says the same
//! once more and is not looked at.
#![expect(unsafe_code, reason = "calls of a C library")]

mod ffi;

use std::ffi::{CStr, c_int};
use std::ptr::{self, NonNull};

use image::RgbaImage;

use super::photo::Photo;
use super::{DecodeError, DecodeLimits, Format, exif, on_white};
use crate::vision::Picture;

/// What the library says is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct HeifError(String);

/// Longest EXIF block in bytes: what a jpeg's segment can hold, and as much again.
const MAX_EXIF: usize = 128 << 10;

/// Decodes the primary picture of a file.
pub(super) fn decode(file: &[u8], limits: &DecodeLimits) -> Result<Photo, DecodeError> {
    let context = Context::read(file)?;
    let primary = context.primary()?;
    let (width, height) = primary.size()?;
    limits.check(width, height)?;
    // A part of it may be all that is shown. Not every build of the library knows this size.
    let stored = primary.stored_size().unwrap_or((width, height));
    limits.check(stored.0, stored.1)?;
    let captured_at = primary.exif().and_then(|block| exif::capture_time(&block));
    context.limit_sides(stored);
    let rgb = primary.pixels(width, height)?;
    let mut photo = Photo::from(Picture { width, height, rgb });
    photo.captured_at = captured_at;
    Ok(photo)
}

/// A file that was opened.
struct Context<'a> {
    handle: NonNull<ffi::heif_context>,
    /// The library reads the bytes as long as the context is there.
    _file: std::marker::PhantomData<&'a [u8]>,
}

/// A picture of the file.
struct Image<'a> {
    handle: NonNull<ffi::heif_image_handle>,
    _context: std::marker::PhantomData<&'a Context<'a>>,
}

/// Pixels that the library holds.
struct Pixels(NonNull<ffi::heif_image>);

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: the context is open, and nobody has it after this.
        unsafe { ffi::heif_context_free(self.handle.as_ptr()) }
    }
}

impl Drop for Image<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and nobody has it after this.
        unsafe { ffi::heif_image_handle_release(self.handle.as_ptr()) }
    }
}

impl Drop for Pixels {
    fn drop(&mut self) {
        // SAFETY: the image is there, and nobody has it after this.
        unsafe { ffi::heif_image_release(self.0.as_ptr()) }
    }
}

impl<'a> Context<'a> {
    /// Reads the file's structure; no pixel yet.
    fn read(file: &'a [u8]) -> Result<Self, DecodeError> {
        // SAFETY: takes nothing and gives a context or null.
        let handle = NonNull::new(unsafe { ffi::heif_context_alloc() }).ok_or_else(no_memory)?;
        let context = Self { handle, _file: std::marker::PhantomData };
        // A job has one core.
        // SAFETY: the context is open.
        unsafe { ffi::heif_context_set_max_decoding_threads(handle.as_ptr(), 0) };
        // SAFETY: the pointer is that of so many bytes, which live longer than the context.
        checked(unsafe {
            ffi::heif_context_read_from_memory_without_copy(
                handle.as_ptr(),
                file.as_ptr().cast(),
                file.len(),
                ptr::null(),
            )
        })?;
        Ok(context)
    }

    fn primary(&self) -> Result<Image<'_>, DecodeError> {
        let mut handle = ptr::null_mut();
        // SAFETY: the context is open, and the place is there for a handle.
        checked(unsafe { ffi::heif_context_get_primary_image_handle(self.handle.as_ptr(), &raw mut handle) })?;
        let handle = NonNull::new(handle).ok_or_else(no_memory)?;
        Ok(Image { handle, _context: std::marker::PhantomData })
    }

    /// Has the library put nothing together that is larger than this. Some versions compare each side with the limit, where
    /// it has to be larger, others the pixels with its square.
    fn limit_sides(&self, (width, height): (u32, u32)) {
        let limit = c_int::try_from(width.max(height)).map_or(c_int::MAX, |side| side.saturating_add(1));
        // SAFETY: the context is open.
        unsafe { ffi::heif_context_set_maximum_image_size_limit(self.handle.as_ptr(), limit) }
    }
}

impl Image<'_> {
    /// Width and height once it is upright.
    fn size(&self) -> Result<(u32, u32), DecodeError> {
        // SAFETY: the handle is open.
        size(unsafe {
            (
                ffi::heif_image_handle_get_width(self.handle.as_ptr()),
                ffi::heif_image_handle_get_height(self.handle.as_ptr()),
            )
        })
    }

    /// The same before it is cropped and turned.
    fn stored_size(&self) -> Result<(u32, u32), DecodeError> {
        // SAFETY: the handle is open.
        size(unsafe {
            (
                ffi::heif_image_handle_get_ispe_width(self.handle.as_ptr()),
                ffi::heif_image_handle_get_ispe_height(self.handle.as_ptr()),
            )
        })
    }

    /// The TIFF structure of its EXIF block.
    fn exif(&self) -> Option<Vec<u8>> {
        let (handle, mut id) = (self.handle.as_ptr(), 0);
        let mut block = Vec::new();
        // SAFETY: the handle is open, there is place for one id, and for as many bytes as the block has.
        unsafe {
            if ffi::heif_image_handle_get_list_of_metadata_block_IDs(handle, c"Exif".as_ptr(), &raw mut id, 1) != 1 {
                return None;
            }
            let size = ffi::heif_image_handle_get_metadata_size(handle, id);
            if size > MAX_EXIF {
                return None;
            }
            block.resize(size, 0u8);
            checked(ffi::heif_image_handle_get_metadata(handle, id, block.as_mut_ptr().cast())).ok()?;
        }
        // Where in what follows the structure begins.
        let (offset, rest) = block.split_first_chunk::<4>()?;
        let offset = usize::try_from(u32::from_be_bytes(*offset)).ok()?;
        rest.get(offset..).map(<[u8]>::to_vec)
    }

    /// RGB, interleaved, of the size that the header announced.
    fn pixels(&self, width: u32, height: u32) -> Result<Vec<u8>, DecodeError> {
        // SAFETY: the handle is open.
        let has_alpha = unsafe { ffi::heif_image_handle_has_alpha_channel(self.handle.as_ptr()) } != 0;
        let (chroma, channels) =
            if has_alpha { (ffi::CHROMA_INTERLEAVED_RGBA, 4) } else { (ffi::CHROMA_INTERLEAVED_RGB, 3) };
        let pixels = self.decoded(chroma)?;
        let raw = pixels.rows(width, height, channels)?;
        if !has_alpha {
            return Ok(raw);
        }
        let rgba = RgbaImage::from_raw(width, height, raw).expect("there are four bytes a pixel; this is a bug");
        Ok(on_white(&rgba).into_raw())
    }

    fn decoded(&self, chroma: c_int) -> Result<Pixels, DecodeError> {
        // SAFETY: gives options with the library's defaults, or null; all the fields that are set here are in those of
        // every version that has the functions called here.
        let options = unsafe { ffi::heif_decoding_options_alloc() };
        let options = NonNull::new(options).ok_or_else(no_memory)?;
        let mut image = ptr::null_mut();
        // SAFETY: as above; the handle is open, the place is there for an image, and the options are freed once.
        let decoded = unsafe {
            (*options.as_ptr()).convert_hdr_to_8bit = 1;
            (*options.as_ptr()).strict_decoding = 1;
            let handle = self.handle.as_ptr();
            let error = ffi::heif_decode_image(
                handle,
                &raw mut image,
                ffi::COLORSPACE_RGB,
                chroma,
                options.as_ptr().cast_const(),
            );
            ffi::heif_decoding_options_free(options.as_ptr());
            error
        };
        checked(decoded)?;
        NonNull::new(image).map(Pixels).ok_or_else(no_memory)
    }
}

impl Pixels {
    /// The rows without what fills them up, where they are of this size.
    fn rows(&self, width: u32, height: u32, channels: usize) -> Result<Vec<u8>, DecodeError> {
        let (image, mut stride) = (self.0.as_ptr(), 0);
        // SAFETY: the image is there.
        let (size, plane) = unsafe {
            let channel = ffi::CHANNEL_INTERLEAVED;
            let size = (ffi::heif_image_get_width(image, channel), ffi::heif_image_get_height(image, channel));
            (size, ffi::heif_image_get_plane_readonly(image, channel, &raw mut stride))
        };
        let (row, stride) = (width as usize * channels, usize::try_from(stride).unwrap_or_default());
        let as_announced = u32::try_from(size.0) == Ok(width) && u32::try_from(size.1) == Ok(height);
        if plane.is_null() || !as_announced || stride < row {
            return Err(unreadable("the picture has another size than its header says".to_owned()));
        }
        let mut pixels = Vec::with_capacity(row * height as usize);
        for y in 0..height as usize {
            // SAFETY: the plane has `height` rows of `stride` bytes, of which the first `row` are the picture's.
            pixels.extend_from_slice(unsafe { std::slice::from_raw_parts(plane.add(y * stride), row) });
        }
        Ok(pixels)
    }
}

fn size(size: (c_int, c_int)) -> Result<(u32, u32), DecodeError> {
    match (u32::try_from(size.0), u32::try_from(size.1)) {
        (Ok(width @ 1..), Ok(height @ 1..)) => Ok((width, height)),
        _ => Err(unreadable("the picture has no size".to_owned())),
    }
}

fn checked(error: ffi::heif_error) -> Result<(), DecodeError> {
    if error.code == 0 {
        return Ok(());
    }
    if error.subcode == ffi::SUBERROR_END_OF_DATA {
        return Err(Format::Heic.truncated());
    }
    if error.message.is_null() {
        return Err(unreadable(format!("error {} {}", error.code, error.subcode)));
    }
    // SAFETY: the text ends with a zero and is copied before the next call.
    Err(unreadable(unsafe { CStr::from_ptr(error.message) }.to_string_lossy().into_owned()))
}

fn no_memory() -> DecodeError {
    unreadable("no memory for a decoder".to_owned())
}

fn unreadable(why: String) -> DecodeError {
    DecodeError::Unreadable { format: Format::Heic.name(), source: Some(HeifError(why).into()) }
}

#[cfg(test)]
mod tests {
    //! The files were made with pillow-heif: red left half, blue right half, 128x64. `turned` is turned by a quarter by its
    //! container, with the same orientation (6) in its EXIF block; in `transparent` the right half is.

    use super::super::tests::{LIMITS, decode};
    use super::super::{DecodeLimits, decode as decode_photo};
    use crate::vision::Picture;

    const PLAIN: &[u8] = include_bytes!("../fixtures/halves.heic");
    const TURNED: &[u8] = include_bytes!("../fixtures/turned.heic");
    const TRANSPARENT: &[u8] = include_bytes!("../fixtures/transparent.heic");

    fn is_near(picture: &Picture, [x, y]: [u32; 2], wanted: [u8; 3]) -> bool {
        let at = (y * picture.width + x) as usize * 3;
        picture.rgb[at..at + 3].iter().zip(wanted).all(|(a, b)| a.abs_diff(b) <= 16)
    }

    const RED: [u8; 3] = [220, 40, 40];
    const BLUE: [u8; 3] = [40, 40, 220];

    #[test]
    fn the_picture_is_shown_as_it_is_meant() {
        let plain = decode(PLAIN, &LIMITS).unwrap();
        assert_eq!((plain.width, plain.height, plain.rgb.len()), (128, 64, 128 * 64 * 3));
        assert!(is_near(&plain, [20, 30], RED) && is_near(&plain, [100, 30], BLUE));
        let transparent = decode(TRANSPARENT, &LIMITS).unwrap();
        assert!(is_near(&transparent, [20, 30], RED) && is_near(&transparent, [100, 30], [255; 3]));
    }

    #[test]
    fn it_is_turned_once() {
        let turned = decode(TURNED, &LIMITS).unwrap();
        assert_eq!((turned.width, turned.height), (64, 128));
        assert!(is_near(&turned, [30, 20], RED) && is_near(&turned, [30, 100], BLUE), "what was left is above");
    }

    #[test]
    fn the_time_of_capture_is_read() {
        for file in [PLAIN, TURNED] {
            let photo = decode_photo(file.to_vec(), &LIMITS, u32::MAX).unwrap();
            assert_eq!(photo.captured_at.as_deref(), Some("2019-07-01T12:30:05+02:00"));
        }
        assert_eq!(decode_photo(TRANSPARENT.to_vec(), &LIMITS, u32::MAX).unwrap().captured_at, None);
    }

    #[test]
    fn limits_are_kept_from_the_header() {
        for limits in [DecodeLimits { max_side: 127, ..LIMITS }, DecodeLimits { max_pixels: 8191, ..LIMITS }] {
            for file in [PLAIN, TURNED] {
                assert_eq!(decode(file, &limits).unwrap_err().code(), "image_too_large");
            }
        }
        // The size that the file announces is changed, the pixels are not.
        let mut huge = PLAIN.to_vec();
        let size = huge.windows(4).position(|bytes| bytes == b"ispe").unwrap() + 8;
        huge[size..size + 8].copy_from_slice(&[0, 0, 0x70, 0, 0, 0, 0x70, 0]);
        assert_eq!(decode(&huge, &LIMITS).unwrap_err().code(), "image_too_large");
    }

    #[test]
    fn a_file_cut_short_anywhere_is_an_error() {
        for length in 12..PLAIN.len() {
            let code = decode(&PLAIN[..length], &LIMITS).unwrap_err().code();
            assert!(matches!(code, "image_truncated" | "image_unreadable"), "cut to {length}: {code}");
        }
    }

    #[test]
    fn a_damaged_file_is_a_picture_of_its_size_or_an_error() {
        for file in [PLAIN, TURNED, TRANSPARENT] {
            for at in 12..file.len() {
                for value in [0, 0x7F, 0xFF] {
                    let mut damaged = file.to_vec();
                    damaged[at] = value;
                    if let Ok(picture) = decode(&damaged, &LIMITS) {
                        let size = (u64::from(picture.width) * u64::from(picture.height), picture.rgb.len() as u64);
                        assert!(size.0 <= LIMITS.max_pixels && size.1 == size.0 * 3, "byte {at}");
                    }
                }
            }
        }
    }
}
