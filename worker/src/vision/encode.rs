//! libjpeg-turbo: pixels into a jpeg file, some five times as fast as the `image` crate does it.
#![expect(unsafe_code, reason = "calls of a C library")]

use std::ffi::c_int;

use turbojpeg_sys as tj;

use super::Picture;

/// A jpeg of this quality, 1 to 100, with colours at the full resolution.
///
/// # Panics
/// Where there is no memory for it.
pub(super) fn jpeg(picture: &Picture, quality: u8) -> Vec<u8> {
    let [width, height] = [picture.width, picture.height].map(u32::cast_signed);
    let sampling = tj::TJSAMP_TJSAMP_444;
    assert_eq!(picture.rgb.len(), picture.width as usize * picture.height as usize * 3, "it has all its pixels");
    let settings: [(tj::TJPARAM, c_int); 3] = [
        (tj::TJPARAM_TJPARAM_QUALITY, quality.into()),
        (tj::TJPARAM_TJPARAM_SUBSAMP, sampling),
        (tj::TJPARAM_TJPARAM_NOREALLOC, 1),
    ];
    // SAFETY: takes numbers.
    let mut length = unsafe { tj::tj3JPEGBufSize(width, height, sampling) };
    let mut file = vec![0; usize::try_from(length).unwrap_or_default()];
    let mut place = file.as_mut_ptr();
    // SAFETY: the handle is looked at before it is used, and not used after it is given back. The pixels are as many as is said,
    // and the library writes no more into the file than it said that it needs, and allocates none of its own.
    let is_written = unsafe {
        let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS.cast_signed());
        assert!(!handle.is_null(), "there is memory for an encoder");
        let is_set = settings.iter().all(|(parameter, value)| tj::tj3Set(handle, parameter.cast_signed(), *value) == 0);
        let pixels = picture.rgb.as_ptr();
        let format = tj::TJPF_TJPF_RGB;
        let status = tj::tj3Compress8(handle, pixels, width, 0, height, format, &raw mut place, &raw mut length);
        tj::tj3Destroy(handle);
        is_set && status == 0
    };
    assert!(is_written, "the pixels of a picture can be written");
    file.truncate(usize::try_from(length).unwrap_or_default());
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for [width, height] in [[1, 1], [97, 224], [224, 200]] {
            let shade = |at: u32| u8::try_from(at % 256).unwrap();
            let rgb: Vec<u8> = (0..height)
                .flat_map(|y| (0..width).flat_map(move |x| [shade(x), shade(y), shade(x / 2 + y / 2)]))
                .collect();
            let file = jpeg(&Picture { width, height, rgb: rgb.clone() }, 95);
            let read = image::load_from_memory(&file).unwrap().into_rgb8();
            assert_eq!(read.dimensions(), (width, height));
            let apart = read.as_raw().iter().zip(&rgb).map(|(one, other)| u64::from(one.abs_diff(*other))).sum::<u64>();
            assert!(apart <= 3 * rgb.len() as u64, "{apart} for {} values", rgb.len());
            assert!(file.len() < rgb.len() + 1000);
        }
    }
}
