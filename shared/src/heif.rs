//! HEIC, the format of iPhones: which files are of it, and whether this build reads it.

/// Whether this build reads it: the cargo feature `heic`, which needs the C library libheif.
pub const IS_READ: bool = cfg!(feature = "heic");
/// What is to be done about a picture in a build that does not read it.
pub const NOT_READ: &str = "the image is HEIC, which this build of face-id does not read; convert it to jpeg, or have face-id \
    built with its cargo feature `heic` (docs/DEPLOY.md)";

/// Brands of files whose main picture may be HEVC (ISO/IEC 23008-12, annex B); those of AVIF alone are none of them.
const BRANDS: [&[u8; 4]; 10] =
    [b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"];

/// Whether the first bytes are those of such a file.
pub fn is_heif(bytes: &[u8]) -> bool {
    let brand = bytes.get(8..12).filter(|_| bytes[4..8] == *b"ftyp");
    brand.is_some_and(|brand| BRANDS.iter().any(|known| brand == *known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_brand() {
        for brand in ["heic", "heix", "mif1", "msf1"] {
            assert!(is_heif(format!("\0\0\0\u{18}ftyp{brand}\0\0\0\0").as_bytes()), "{brand}");
        }
        for other in [&b""[..], b"\0\0\0\x18ftyp", b"\0\0\0\x18ftypavif", b"\0\0\0\x18ftypmp42", b"\0\0\0\x18freeheic"]
        {
            assert!(!is_heif(other), "{other:?}");
        }
    }
}
