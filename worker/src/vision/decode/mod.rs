//! Bytes of a photograph to an upright [`Photo`], refusing what is hostile, broken or too large.
//!
//! The format is taken from the magic bytes only: jpeg, png, webp and, in builds with the feature `heic`, that. Size limits are checked on the file's own header
//! before any pixel memory is asked for. A file cut short is an error even where a viewer would fill the rest with grey.
//! Transparent pixels are laid on white, as a page shows them. Of an animated webp the first frame is taken.

mod exif;
#[cfg(feature = "heic")]
mod heic;
mod jpeg;
mod outline;
pub mod photo;
mod turbo;

use std::error::Error;
use std::io::{Cursor, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::codecs::{png::PngDecoder, webp::WebPDecoder};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, RgbImage, RgbaImage};
use shared::heif;

use self::jpeg::Jpeg;
use self::photo::Photo;
use crate::vision::Picture;

/// What a picture may cost at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Largest file in bytes.
    pub max_bytes: usize,
    /// Most pixels, width times height.
    pub max_pixels: u64,
    /// Longest side in pixels.
    pub max_side: u32,
}

/// Why bytes did not become a picture. All of these are true answers about the input: trying again cannot help.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// No bytes at all.
    #[error("the image is empty; send the bytes of a jpeg, png or webp file")]
    Empty,
    /// The first bytes are those of no supported format.
    #[error("the image is neither jpeg, png nor webp by its first bytes; convert it to one of these")]
    UnsupportedFormat,
    /// What phones write, in a build without the library for it.
    #[error("{}", heif::NOT_READ)]
    HeicNotRead,
    /// The file ends before the picture does.
    #[error("the {format} image ends before its last pixel; send the whole file")]
    Truncated {
        /// jpeg, png or webp.
        format: &'static str,
    },
    /// The decoder gave up.
    #[error("the {format} image cannot be decoded; save it anew with an image editor")]
    Unreadable {
        /// jpeg, png or webp.
        format: &'static str,
        /// What the decoder said; absent where it panicked or found no picture size.
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// More bytes than allowed.
    #[error("the image has {size_bytes} bytes and {max_bytes} are allowed; send a smaller file")]
    TooManyBytes {
        /// Size of the file.
        size_bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// More pixels or a longer side than allowed.
    #[error("the image is {width}x{height} and {max_pixels} pixels with sides up to {max_side} are allowed; shrink it")]
    TooManyPixels {
        /// Width in the file's header.
        width: u32,
        /// Height in the file's header.
        height: u32,
        /// The limit of width times height.
        max_pixels: u64,
        /// The limit of either side.
        max_side: u32,
    },
}

impl DecodeError {
    /// The stable code that a job's problem carries.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty => "image_empty",
            Self::UnsupportedFormat | Self::HeicNotRead => "image_unsupported_format",
            Self::Truncated { .. } => "image_truncated",
            Self::Unreadable { .. } => "image_unreadable",
            Self::TooManyBytes { .. } | Self::TooManyPixels { .. } => "image_too_large",
        }
    }
}

/// Decodes a jpeg, png or webp file to upright RGB; a jpeg at the smallest scale at which its longer side has at least
/// `side` pixels.
///
/// Grey, palette, 16-bit, CMYK and transparent files succeed; EXIF orientation is applied, and the time of capture read.
pub fn decode(bytes: Vec<u8>, limits: &DecodeLimits, side: u32) -> Result<Photo, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(DecodeError::TooManyBytes { size_bytes: bytes.len(), max_bytes: limits.max_bytes });
    }
    let format = Format::guess(&bytes).ok_or_else(|| unsupported(&bytes))?;
    // The decoders are young and their input hostile; a panic of theirs is that picture's problem, not the process'.
    catch_unwind(AssertUnwindSafe(|| match format {
        Format::Jpeg => Photo::of_jpeg(Jpeg::open(bytes, limits)?, side),
        Format::Png => png(&bytes, limits),
        Format::WebP => webp(&bytes, limits),
        #[cfg(feature = "heic")]
        Format::Heic => heic::decode(&bytes, limits),
    }))
    .unwrap_or(Err(DecodeError::Unreadable { format: format.name(), source: None }))
}

fn unsupported(bytes: &[u8]) -> DecodeError {
    if heif::is_heif(bytes) { DecodeError::HeicNotRead } else { DecodeError::UnsupportedFormat }
}

#[derive(Clone, Copy)]
enum Format {
    Jpeg,
    Png,
    WebP,
    #[cfg(feature = "heic")]
    Heic,
}

impl Format {
    fn guess(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Some(Self::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            #[cfg(feature = "heic")]
            _ if heif::is_heif(bytes) => Some(Self::Heic),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::WebP => "webp",
            #[cfg(feature = "heic")]
            Self::Heic => "heic",
        }
    }

    fn truncated(self) -> DecodeError {
        DecodeError::Truncated { format: self.name() }
    }

    fn refused(self, error: ImageError) -> DecodeError {
        match error {
            ImageError::IoError(cause) if cause.kind() == ErrorKind::UnexpectedEof => self.truncated(),
            source => DecodeError::Unreadable { format: self.name(), source: Some(source.into()) },
        }
    }
}

fn png(bytes: &[u8], limits: &DecodeLimits) -> Result<Photo, DecodeError> {
    let (width, height) = png_size(bytes).ok_or_else(|| Format::Png.truncated())?;
    limits.check(width, height)?;
    let decoder =
        PngDecoder::with_limits(Cursor::new(bytes), limits.allocation()).map_err(|e| Format::Png.refused(e))?;
    read_upright(Format::Png, decoder, limits)
}

fn webp(bytes: &[u8], limits: &DecodeLimits) -> Result<Photo, DecodeError> {
    if !riff_is_complete(bytes) {
        return Err(Format::WebP.truncated());
    }
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(|e| Format::WebP.refused(e))?;
    read_upright(Format::WebP, decoder, limits)
}

fn read_upright(format: Format, mut decoder: impl ImageDecoder, limits: &DecodeLimits) -> Result<Photo, DecodeError> {
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    decoder.set_limits(limits.allocation()).map_err(|e| format.refused(e))?;
    // A broken EXIF block says nothing about the pixels.
    let exif = decoder.exif_metadata().ok().flatten();
    let captured_at = exif.as_deref().and_then(exif::capture_time);
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let image = match DynamicImage::from_decoder(decoder).map_err(|e| format.refused(e))? {
        DynamicImage::ImageRgb8(rgb) => rgb,
        other if other.color().has_alpha() => on_white(&other.into_rgba8()),
        other => other.into_rgb8(),
    };
    let mut photo = Photo::from(upright(image, orientation));
    photo.captured_at = captured_at;
    Ok(photo)
}

fn upright(image: RgbImage, orientation: Orientation) -> Picture {
    let mut image = DynamicImage::ImageRgb8(image);
    image.apply_orientation(orientation);
    Picture { width: image.width(), height: image.height(), rgb: image.into_rgb8().into_raw() }
}

fn on_white(rgba: &RgbaImage) -> RgbImage {
    let mut rgb = RgbImage::new(rgba.width(), rgba.height());
    for (to, from) in rgb.pixels_mut().zip(rgba.pixels()) {
        let [colour @ .., alpha] = from.0;
        let alpha = u16::from(alpha);
        to.0 = colour.map(|value| {
            let mixed = (u16::from(value) * alpha + 255 * (255 - alpha) + 127) / 255;
            u8::try_from(mixed).unwrap_or(u8::MAX)
        });
    }
    rgb
}

impl DecodeLimits {
    fn check(&self, width: u32, height: u32) -> Result<(), DecodeError> {
        let pixels = u64::from(width) * u64::from(height);
        if width.max(height) <= self.max_side && pixels <= self.max_pixels {
            return Ok(());
        }
        Err(DecodeError::TooManyPixels { width, height, max_pixels: self.max_pixels, max_side: self.max_side })
    }

    /// What a decoder itself may take in bytes: the largest pixel here has 8 (16-bit RGBA, or the frequencies of a
    /// progressive CMYK file); the rest is its working room.
    fn working_bytes(&self) -> u64 {
        self.max_pixels.saturating_mul(8).saturating_add(64 << 20)
    }

    fn allocation(&self) -> image::Limits {
        let mut limits = image::Limits::default();
        limits.max_image_width = Some(self.max_side);
        limits.max_image_height = Some(self.max_side);
        limits.max_alloc = Some(self.working_bytes());
        limits
    }
}

/// Width and height of a png's IHDR, which by the format is the first chunk.
fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    Some((word(16)?, word(20)?))
}

/// Whether a RIFF file is as long as its header says.
fn riff_is_complete(bytes: &[u8]) -> bool {
    bytes
        .get(4..8)
        .and_then(|size| size.try_into().ok())
        .is_some_and(|size| bytes.len() as u64 >= 8 + u64::from(u32::from_le_bytes(size)))
}

#[cfg(test)]
pub(super) use self::turbo::tests::camera_jpeg;

#[cfg(test)]
pub(super) mod tests;
