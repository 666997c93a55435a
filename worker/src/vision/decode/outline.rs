//! What the markers of a jpeg file say (ITU-T T.81, annex B), without decoding it.

/// The decoder accepts a file without an end and fills the rest with grey, so the end is looked for here. A thumbnail's own
/// end inside an `APPn` segment does not count.
#[derive(Default)]
pub(super) struct Outline<'a> {
    /// Width and height.
    pub(super) size: Option<(u32, u32)>,
    /// The EXIF block, without its name.
    pub(super) exif: Option<&'a [u8]>,
    /// Whether the end was found.
    pub(super) is_complete: bool,
}

impl<'a> Outline<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Self {
        let mut outline = Self::default();
        let mut rest = bytes.get(2..).unwrap_or_default();
        while let Some(at) = memchr::memchr(0xFF, rest) {
            rest = &rest[at + 1..];
            match rest.first() {
                Some(0xD9) => {
                    outline.is_complete = true;
                    return outline;
                }
                // Stuffed data, restart markers, TEM and fill bytes carry no length.
                Some(0x00 | 0x01 | 0xD0..=0xD8 | 0xFF) => {}
                Some(&marker) => {
                    let Some(&[high, low]) = rest.get(1..3) else {
                        return outline;
                    };
                    let length = usize::from(u16::from_be_bytes([high, low]));
                    outline.note(marker, rest.get(3..1 + length).unwrap_or_default());
                    rest = rest.get(1 + length..).unwrap_or_default();
                }
                None => return outline,
            }
        }
        outline
    }

    fn note(&mut self, marker: u8, segment: &'a [u8]) {
        match (marker, segment) {
            // SOF0 to SOF15 without DHT, JPG and DAC, which share the range.
            (0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF, &[_, y1, y0, x1, x0, ..]) => {
                let side = |high, low| u32::from(u16::from_be_bytes([high, low]));
                self.size = Some((side(x1, x0), side(y1, y0)));
            }
            (0xE1, &[b'E', b'x', b'i', b'f', 0, 0, ref exif @ ..]) if self.exif.is_none() => self.exif = Some(exif),
            _ => {}
        }
    }
}
