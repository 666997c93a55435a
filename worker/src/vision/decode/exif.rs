//! When a picture was taken, out of its EXIF block (EXIF 2.32, CIPA DC-008): the TIFF structure around the few tags that
//! say so. Whatever does not fit is passed over: a broken block says nothing.

/// Points from the first directory to the one with the camera's own tags.
const EXIF_DIRECTORY: u16 = 0x8769;
/// `YYYY:MM:DD HH:MM:SS` by the clock at the place.
const DATE_TIME_ORIGINAL: u16 = 0x9003;
/// `+HH:MM` or `-HH:MM`: how far that clock is before UTC.
const OFFSET_TIME_ORIGINAL: u16 = 0x9011;
const ASCII: u16 = 2;
/// Bytes of one entry of a directory.
const ENTRY: usize = 12;

/// What a clock at the place showed, as `YYYY-MM-DDTHH:MM:SS`, with `+HH:MM` behind it where the block says how far that
/// was from UTC. None where the block names no time that there is.
pub(super) fn capture_time(block: &[u8]) -> Option<String> {
    let tiff = Tiff::open(block)?;
    let first = tiff.directory(tiff.word(4)?)?;
    let camera = tiff.directory(tiff.word(first.find(EXIF_DIRECTORY)? + 8)?)?;
    let time = wall_time(tiff.ascii(camera.find(DATE_TIME_ORIGINAL)?)?)?;
    let offset = camera.find(OFFSET_TIME_ORIGINAL).and_then(|entry| offset(tiff.ascii(entry)?));
    Some(time + &offset.unwrap_or_default())
}

struct Tiff<'a> {
    bytes: &'a [u8],
    is_little_endian: bool,
}

/// The places of a directory's entries.
struct Directory<'a> {
    tiff: &'a Tiff<'a>,
    first: usize,
    entries: usize,
}

impl<'a> Tiff<'a> {
    fn open(bytes: &'a [u8]) -> Option<Self> {
        let is_little_endian = match bytes.get(..2)? {
            b"II" => true,
            b"MM" => false,
            _ => return None,
        };
        let tiff = Self { bytes, is_little_endian };
        (tiff.half(2)? == 42).then_some(tiff)
    }

    fn half(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.is_little_endian { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    }

    fn word(&self, at: usize) -> Option<usize> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        let word = if self.is_little_endian { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) };
        usize::try_from(word).ok()
    }

    fn directory(&'a self, at: usize) -> Option<Directory<'a>> {
        Some(Directory { tiff: self, first: at.checked_add(2)?, entries: self.half(at)?.into() })
    }

    /// The text of an entry that is longer than fits into it, without its end.
    fn ascii(&self, entry: usize) -> Option<&'a str> {
        let (kind, length, at) = (self.half(entry + 2)?, self.word(entry + 4)?, self.word(entry + 8)?);
        let text = self.bytes.get(at..at.checked_add(length)?)?;
        let text = std::str::from_utf8(text).ok().filter(|_| kind == ASCII && length > 4)?;
        Some(text.trim_end_matches('\0').trim())
    }
}

impl Directory<'_> {
    fn find(&self, tag: u16) -> Option<usize> {
        let places = (0..self.entries).map(|n| self.first + n * ENTRY);
        places.take_while(|at| self.tiff.half(*at).is_some()).find(|at| self.tiff.half(*at) == Some(tag))
    }
}

/// `2019:07:01 12:30:00` as `2019-07-01T12:30:00`.
fn wall_time(text: &str) -> Option<String> {
    let (date, time) = text.split_once(' ')?;
    let [year, month, day] = numbers(date, [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, [2, 2, 2])?;
    let days = match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    // Cameras whose clock was never set write zeros.
    let is_day = year > 0 && (1..=12).contains(&month) && (1..=days).contains(&day);
    let is_time = hour < 24 && minute < 60 && second < 60;
    (is_day && is_time).then(|| format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"))
}

fn offset(text: &str) -> Option<String> {
    let sign = text.chars().next().filter(|sign| matches!(sign, '+' | '-'))?;
    let (hours, minutes) = text[1..].split_once(':')?;
    let [hours] = numbers(hours, [2])?;
    let [minutes] = numbers(minutes, [2])?;
    // From Baker Island to Kiribati.
    (hours <= 14 && minutes < 60).then(|| format!("{sign}{hours:02}:{minutes:02}"))
}

/// The numbers between colons, of so many digits each.
fn numbers<const N: usize>(text: &str, digits: [usize; N]) -> Option<[u32; N]> {
    let mut numbers = [0; N];
    let mut parts = text.split(':');
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next().filter(|part| part.len() == digits && part.bytes().all(|b| b.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::exif_block as block;

    #[test]
    fn the_time_is_read_with_its_offset() {
        let (time, offset) = ((DATE_TIME_ORIGINAL, "2019:07:01 12:30:05"), (OFFSET_TIME_ORIGINAL, "+02:00"));
        for order in [true, false] {
            assert_eq!(capture_time(&block(order, &[time])).unwrap(), "2019-07-01T12:30:05");
            assert_eq!(capture_time(&block(order, &[time, offset])).unwrap(), "2019-07-01T12:30:05+02:00");
            let strange = (OFFSET_TIME_ORIGINAL, "summer");
            assert_eq!(capture_time(&block(order, &[strange, time])).unwrap(), "2019-07-01T12:30:05");
            assert_eq!(capture_time(&block(order, &[offset])), None, "an offset alone is no time");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "0000:00:00 00:00:00",
            "    :  :     :  :  ",
            "2019-07-01 12:30:05",
            "2019:02:29 12:30:05",
            "1900:02:29 00:00:00",
            "2019:13:01 12:30:05",
            "2019:07:01 24:00:00",
            "2019:07:01",
            "\u{e4}",
        ] {
            assert_eq!(capture_time(&block(true, &[(DATE_TIME_ORIGINAL, text)])), None, "{text:?}");
        }
        assert!(capture_time(&block(true, &[(DATE_TIME_ORIGINAL, "2020:02:29 00:00:00")])).is_some());
    }

    #[test]
    fn no_broken_block_is_an_error() {
        let whole = block(false, &[(DATE_TIME_ORIGINAL, "2019:07:01 12:30:05"), (OFFSET_TIME_ORIGINAL, "-10:30")]);
        assert!(capture_time(&whole).is_some());
        for length in 0..whole.len() - 10 {
            assert_eq!(capture_time(&whole[..length]), None, "{length}");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7F, 0xFF] {
                let mut spoilt = whole.clone();
                spoilt[at] = value;
                // What it says may be nonsense; that it says something, or nothing, is all that is asked.
                let said = capture_time(&spoilt);
                assert!(said.is_none_or(|text| text.len() >= 19));
            }
        }
    }
}
