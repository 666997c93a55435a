//! Pictures are made here, or by Pillow where `image` has no encoder (`fixtures`: red left half, blue right half,
//! 32x16; the animation's second frame is green).

use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage};

use super::*;

pub(super) const LIMITS: DecodeLimits = DecodeLimits { max_bytes: 1 << 20, max_pixels: 1_000_000, max_side: 2_000 };
const RED: [u8; 3] = [220, 40, 40];
const BLUE: [u8; 3] = [40, 40, 220];

/// The whole file at its own scale.
pub(in crate::vision) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Picture, DecodeError> {
    super::decode(bytes.to_vec(), limits, u32::MAX).map(|photo| photo.overview.picture)
}

fn halves() -> RgbImage {
    RgbImage::from_fn(32, 16, |x, _| Rgb(if x < 16 { RED } else { BLUE }))
}

/// A photograph-like picture, so that a jpeg's scan is most of its file.
fn noise(side: u32) -> RgbImage {
    let value = |x: u32, y: u32| u8::try_from((x * x + 7 * y * x + 13 * y) % 251).unwrap();
    RgbImage::from_fn(side, side, |x, y| Rgb([value(x, y), value(y, x), value(x + 3, y)]))
}

fn jpeg(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95).encode_image(image).unwrap();
    bytes
}

fn png(data: &[u8], [width, height]: [u32; 2], colour: ExtendedColorType) -> Vec<u8> {
    let mut bytes = Vec::new();
    image::codecs::png::PngEncoder::new(&mut bytes).write_image(data, width, height, colour).unwrap();
    bytes
}

fn webp(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut bytes);
    encoder.encode(image, image.width(), image.height(), ExtendedColorType::Rgb8).unwrap();
    bytes
}

/// The jpeg with an APP1 segment that holds one EXIF entry, the orientation, behind its SOI.
pub(in crate::vision) fn oriented(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut tiff = b"Exif\0\0MM\0\x2A\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    tiff.extend([orientation, 0, 0, 0, 0, 0, 0]);
    let length = u16::try_from(tiff.len() + 2).unwrap().to_be_bytes();
    [&jpeg[..2], &[0xFF, 0xE1], &length, &tiff, &jpeg[2..]].concat()
}

/// The jpeg with this EXIF block behind its SOI.
fn with_exif(jpeg: &[u8], block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len() + 8).unwrap().to_be_bytes();
    [&jpeg[..2], &[0xFF, 0xE1], &length, b"Exif\0\0", block, &jpeg[2..]].concat()
}

#[test]
fn the_time_of_capture_is_read() {
    let taken = crate::testing::exif_block(true, &[(0x9003, "2019:07:01 12:30:05"), (0x9011, "+02:00")]);
    let captured_at = |bytes: Vec<u8>| super::decode(bytes, &LIMITS, u32::MAX).unwrap().captured_at;
    let mut png = Vec::new();
    let mut encoder = image::codecs::png::PngEncoder::new(&mut png);
    encoder.set_exif_metadata(taken.clone()).unwrap();
    encoder.write_image(&halves(), 32, 16, ExtendedColorType::Rgb8).unwrap();
    let jpeg = jpeg(&halves());
    for dated in [with_exif(&jpeg, &taken), png] {
        assert_eq!(captured_at(dated).as_deref(), Some("2019-07-01T12:30:05+02:00"));
    }
    for undated in [webp(&halves()), oriented(&jpeg, 3), with_exif(&jpeg, b"nonsense"), jpeg] {
        assert_eq!(captured_at(undated), None);
    }
}

fn pixel(picture: &Picture, x: u32, y: u32) -> [u8; 3] {
    let at = (y * picture.width + x) as usize * 3;
    picture.rgb[at..at + 3].try_into().unwrap()
}

fn near(one: [u8; 3], other: [u8; 3]) -> bool {
    one.iter().zip(other).all(|(a, b)| a.abs_diff(b) <= 12)
}

fn code(bytes: &[u8]) -> &'static str {
    decode(bytes, &LIMITS).unwrap_err().code()
}

#[test]
fn every_format_and_colour_type_shows_the_same_picture() {
    let rgb = halves();
    let deep: Vec<u8> = rgb.iter().flat_map(|&v| (u16::from(v) * 257).to_ne_bytes()).collect();
    let opaque: Vec<u8> = rgb.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2], 255]).collect();
    let cases: [(&str, Vec<u8>); 9] = [
        ("jpeg", jpeg(&rgb)),
        ("png", png(&rgb, [32, 16], ExtendedColorType::Rgb8)),
        ("16-bit png", png(&deep, [32, 16], ExtendedColorType::Rgb16)),
        ("rgba png", png(&opaque, [32, 16], ExtendedColorType::Rgba8)),
        ("webp", webp(&rgb)),
        ("lossy webp", include_bytes!("fixtures/lossy.webp").to_vec()),
        ("first frame of an animated webp", include_bytes!("fixtures/animated.webp").to_vec()),
        ("cmyk jpeg", include_bytes!("fixtures/cmyk.jpg").to_vec()),
        ("progressive jpeg", include_bytes!("fixtures/progressive.jpg").to_vec()),
    ];
    for (name, bytes) in cases {
        let picture = decode(&bytes, &LIMITS).unwrap();
        assert_eq!((picture.width, picture.height, picture.rgb.len()), (32, 16, 32 * 16 * 3), "{name}");
        assert!(near(pixel(&picture, 6, 8), RED), "{name}: {:?}", pixel(&picture, 6, 8));
        assert!(near(pixel(&picture, 26, 8), BLUE), "{name}: {:?}", pixel(&picture, 26, 8));
    }
}

#[test]
fn grey_becomes_rgb_and_transparent_becomes_white() {
    let grey = decode(&png(&[90; 12], [4, 3], ExtendedColorType::L8), &LIMITS).unwrap();
    assert_eq!(pixel(&grey, 3, 2), [90; 3]);
    let faint = [[200, 0, 100, 0], [200, 0, 100, 255], [200, 0, 100, 51]].concat();
    let laid = decode(&png(&faint, [3, 1], ExtendedColorType::Rgba8), &LIMITS).unwrap();
    assert_eq!([0, 1, 2].map(|x| pixel(&laid, x, 0)), [[255; 3], [200, 0, 100], [244, 204, 224]]);
}

#[test]
fn orientation_is_undone() {
    // Where a viewer shows the file's first pixel, for each value of the tag (EXIF 2.32, 4.6.4).
    let corners = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0), (1, 0), (1, 1), (0, 1)];
    let mut marked = RgbImage::from_pixel(48, 32, Rgb(BLUE));
    (0..16).for_each(|at| (0..16).for_each(|y| marked.put_pixel(at, y, Rgb(RED))));
    let plain = jpeg(&marked);
    for (value, (right, bottom)) in (1..=8).zip(corners) {
        let picture = decode(&oriented(&plain, value), &LIMITS).unwrap();
        let size = if value < 5 { (48, 32) } else { (32, 48) };
        assert_eq!((picture.width, picture.height), size, "orientation {value}");
        let at = [right * (picture.width - 9) + 4, bottom * (picture.height - 9) + 4];
        assert!(near(pixel(&picture, at[0], at[1]), RED), "orientation {value}");
    }
    for broken in [0, 9, 255] {
        assert_eq!(decode(&oriented(&plain, broken), &LIMITS).unwrap().width, 48);
    }
}

#[test]
fn what_is_no_picture_has_its_code() {
    assert_eq!(code(b""), "image_empty");
    for bytes in [&b"hello"[..], b"GIF89a.......", b"<svg/>", b"\xFF\xD8", b"RIFF\0\0\0\0WAVE"] {
        assert_eq!(code(bytes), "image_unsupported_format");
    }
    if !heif::IS_READ {
        let error = decode(include_bytes!("fixtures/halves.heic"), &LIMITS).unwrap_err();
        assert_eq!(error.code(), "image_unsupported_format");
        assert!(error.to_string().contains("HEIC") && error.to_string().contains("feature `heic`"), "{error}");
    }
    assert_eq!(code(&vec![0xFF; (1 << 20) + 1]), "image_too_large");
    // A whole file by its markers, and nothing to decode in it.
    assert_eq!(code(b"\xFF\xD8\xFF\xE0\0\x04ab\xFF\xD9"), "image_unreadable");
    assert_eq!(code(b"RIFF\x04\0\0\0WEBP"), "image_truncated");
    assert_eq!(code(b"RIFF\x0C\0\0\0WEBPnope\0\0\0\0"), "image_unreadable");
}

#[test]
fn a_file_cut_short_anywhere_is_an_error() {
    let image = noise(96);
    let files = [
        ("jpeg", jpeg(&image)),
        ("jpeg with a thumbnail's end in its EXIF", {
            let thumbnail = b"\xFF\xE1\0\x06\xFF\xD9\xFF\xD9";
            [&jpeg(&image)[..2], thumbnail, &jpeg(&image)[2..]].concat()
        }),
        ("progressive jpeg", include_bytes!("fixtures/progressive.jpg").to_vec()),
        ("png", png(&image, [96, 96], ExtendedColorType::Rgb8)),
        ("webp", webp(&image)),
        ("lossy webp", include_bytes!("fixtures/lossy.webp").to_vec()),
    ];
    for (name, whole) in files {
        assert!(decode(&whole, &LIMITS).is_ok(), "{name}");
        // The last 12 bytes of a png are its IEND, after every pixel.
        let needed = whole.len() - if name == "png" { 16 } else { 1 };
        for length in (12..=needed).filter(|l| l % 7 == 0 || needed - l < 4) {
            let found = code(&whole[..length]);
            assert!(matches!(found, "image_truncated" | "image_unreadable"), "{name} cut to {length}: {found}");
        }
        for part in 1..10 {
            let cut = &whole[..whole.len() * part / 10];
            assert!(decode(cut, &LIMITS).is_err(), "{name} cut to {part} tenths");
        }
    }
}

#[test]
fn an_announced_size_over_the_limit_is_refused_from_the_header() {
    let mut huge = png(&[0; 3], [1, 1], ExtendedColorType::Rgb8);
    huge[16..24].copy_from_slice(&[0, 1, 0x86, 0xA0, 0, 1, 0x86, 0xA0]);
    assert_eq!(code(&huge), "image_too_large");
    assert_eq!(code(&huge[..33]), "image_too_large");
    let generous = DecodeLimits { max_bytes: usize::MAX, max_pixels: u64::MAX, max_side: 100_000 };
    // With no limit of ours the file's own contradiction (a bad checksum) must still end it, not memory.
    assert_eq!(decode(&huge, &generous).unwrap_err().code(), "image_unreadable");

    let mut wide = jpeg(&noise(32));
    let frame = wide.windows(2).position(|m| m == [0xFF, 0xC0]).unwrap();
    wide[frame + 5..frame + 9].copy_from_slice(&[0xFF, 0xFF, 0xFF, 0xFF]);
    assert_eq!(code(&wide), "image_too_large");

    let pixels = DecodeLimits { max_pixels: 511, ..LIMITS };
    let side = DecodeLimits { max_side: 31, ..LIMITS };
    for limits in [pixels, side] {
        for bytes in [jpeg(&halves()), webp(&halves()), png(&halves(), [32, 16], ExtendedColorType::Rgb8)] {
            assert_eq!(decode(&bytes, &limits).unwrap_err().code(), "image_too_large");
        }
    }
}

#[test]
fn data_after_the_picture_does_not_matter() {
    for mut bytes in [jpeg(&halves()), webp(&halves()), png(&halves(), [32, 16], ExtendedColorType::Rgb8)] {
        bytes.extend(b"trailing bytes of a camera \xFF\xD8\xFF");
        assert!(decode(&bytes, &LIMITS).is_ok());
    }
}

proptest::proptest! {
    #[test]
    fn damaged_files_never_panic_and_never_exceed_the_limits(
        at in 0usize..4000,
        value: u8,
        kind in 0usize..3,
    ) {
        let image = noise(40);
        let mut bytes = match kind {
            0 => jpeg(&image),
            1 => webp(&image),
            _ => png(&image, [40, 40], ExtendedColorType::Rgb8),
        };
        let at = at % bytes.len();
        bytes[at] = value;
        if let Ok(picture) = decode(&bytes, &LIMITS) {
            proptest::prop_assert!(u64::from(picture.width) * u64::from(picture.height) <= LIMITS.max_pixels);
            proptest::prop_assert_eq!(picture.rgb.len(), (picture.width * picture.height * 3) as usize);
        }
    }
}
