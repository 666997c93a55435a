//! What dlib's files are made of (`dlib/serialize.h`): integers, numbers, texts and tensors.

use anyhow::{Context as _, bail, ensure};

/// Above its lower four bits, which count the bytes that follow, an integer's first byte has its sign here.
const NEGATIVE: u8 = 0x80;
const LENGTH: u8 = 0x0f;
/// Longest name of a layer is less.
const LONGEST_TEXT: usize = 64;
/// Axes of a tensor: samples, channels, rows, columns.
const AXES: usize = 4;

/// The rest of a file.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    length: usize,
}

/// `resizable_tensor`: numbers row by row of each channel of each sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tensor {
    pub(super) shape: [usize; AXES],
    pub(super) numbers: Vec<f32>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, length: bytes.len() }
    }

    /// How much of the file has been read.
    pub(super) fn position(&self) -> usize {
        self.length - self.rest.len()
    }

    pub(super) fn integer(&mut self) -> anyhow::Result<i64> {
        let first = self.byte()?;
        let count = usize::from(first & LENGTH);
        ensure!(count <= 8 && first & !(NEGATIVE | LENGTH) == 0, "no integer begins with {first:#04x}");
        let mut bytes = [0; 8];
        bytes[..count].copy_from_slice(self.take(count)?);
        let size = i64::try_from(u64::from_le_bytes(bytes)).context("an integer is too large")?;
        Ok(if first & NEGATIVE == 0 { size } else { -size })
    }

    /// An integer of 0 to `most`, named in errors.
    pub(super) fn count(&mut self, what: &str, most: usize) -> anyhow::Result<usize> {
        let found = self.integer()?;
        let count = usize::try_from(found).ok().filter(|count| *count <= most);
        count.with_context(|| format!("{found} {what} are not 0 to {most}"))
    }

    /// One that has to be this.
    pub(super) fn expect(&mut self, what: &str, wanted: i64) -> anyhow::Result<()> {
        let found = self.integer()?;
        ensure!(found == wanted, "{what} is {found}, and only {wanted} is known");
        Ok(())
    }

    pub(super) fn truth(&mut self) -> anyhow::Result<bool> {
        match self.byte()? {
            b'0' => Ok(false),
            b'1' => Ok(true),
            other => bail!("{other:#04x} is neither 0 nor 1"),
        }
    }

    /// A float or a double: a whole number times a power of two. Infinities and NaN have powers that no other number has.
    pub(super) fn number(&mut self) -> anyhow::Result<f64> {
        let (mantissa, exponent) = (self.integer()?, self.integer()?);
        ensure!(mantissa.unsigned_abs() <= 1 << 53, "a number has more digits than a double");
        // Of doubles that are not subnormal: 2 to the power of it is one too.
        let biased = exponent.checked_add(1023).and_then(|biased| u64::try_from(biased).ok());
        let biased = biased.filter(|biased| (1..=2046).contains(biased));
        let power = f64::from_bits(biased.context("a number is not finite")? << 52);
        let number = mantissa as f64 * power;
        ensure!(number.is_finite(), "a number is not finite");
        Ok(number)
    }

    /// The same as a float, which it was.
    #[expect(clippy::cast_possible_truncation, reason = "looked at afterwards")]
    pub(super) fn float(&mut self) -> anyhow::Result<f32> {
        let number = self.number()? as f32;
        ensure!(number.is_finite(), "a number is larger than a float");
        Ok(number)
    }

    pub(super) fn text(&mut self) -> anyhow::Result<&'a str> {
        let length = self.count("letters of a name", LONGEST_TEXT)?;
        std::str::from_utf8(self.take(length)?).context("a name is no text")
    }

    /// As many items as the file says, each of which takes a byte at least: more than the file has left are refused.
    pub(super) fn list<T>(
        &mut self,
        what: &str,
        read: impl FnMut(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<Vec<T>> {
        let count = self.count(what, self.rest.len())?;
        self.items(count, read)
    }

    pub(super) fn items<T>(
        &mut self,
        count: usize,
        mut read: impl FnMut(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<Vec<T>> {
        // Collected one by one, so that nothing is set aside for what does not come.
        (0..count).map(|_| read(self)).collect()
    }

    /// A column of a matrix, whose sides are stored as negative numbers since they are.
    pub(super) fn column(&mut self) -> anyhow::Result<Vec<f32>> {
        let rows = usize::try_from(-self.integer()?).ok().filter(|rows| *rows <= self.rest.len());
        self.expect("the negated number of a matrix's columns", -1)?;
        self.items(rows.context("a matrix has more rows than the file has bytes")?, Self::float)
    }

    pub(super) fn tensor(&mut self) -> anyhow::Result<Tensor> {
        self.expect("the version of a tensor", 2)?;
        let shape = self.shape()?;
        let most = self.rest.len() / size_of::<f32>();
        let count = shape.iter().try_fold(1usize, |count, side| count.checked_mul(*side)).filter(|n| *n <= most);
        let bytes = self.take(count.context("a tensor is larger than the file")? * size_of::<f32>())?;
        let numbers: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        ensure!(numbers.iter().all(|number| number.is_finite()), "a number of a tensor is not finite");
        Ok(Tensor { shape, numbers })
    }

    /// `alias_tensor`: a shape whose numbers are part of another tensor.
    pub(super) fn alias(&mut self) -> anyhow::Result<[usize; AXES]> {
        self.expect("the version of a part of a tensor", 1)?;
        self.shape()
    }

    pub(super) fn end(&self) -> anyhow::Result<()> {
        ensure!(self.rest.is_empty(), "{} bytes are left over", self.rest.len());
        Ok(())
    }

    fn shape(&mut self) -> anyhow::Result<[usize; AXES]> {
        let mut shape = [0; AXES];
        for side in &mut shape {
            *side = self.count("along an axis", u32::MAX as usize)?;
        }
        Ok(shape)
    }

    fn byte(&mut self) -> anyhow::Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, count: usize) -> anyhow::Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).context("the file ends too early")?;
        self.rest = rest;
        Ok(taken)
    }
}

impl Tensor {
    /// The first numbers as a tensor of this shape, and the rest.
    pub(super) fn split(self, shape: [usize; AXES]) -> anyhow::Result<(Self, Vec<f32>)> {
        let count = shape.iter().try_fold(1usize, |count, side| count.checked_mul(*side));
        let count = count.filter(|count| *count <= self.numbers.len()).context("a part is larger than its tensor")?;
        let mut numbers = self.numbers;
        let rest = numbers.split_off(count);
        Ok((Self { shape, numbers }, rest))
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "read to the bit")]
mod tests {
    use super::*;

    #[test]
    fn integers_and_numbers_are_read_as_dlib_writes_them() {
        let bytes = [&[0x01, 0x2a, 0x02, 0x00, 0x01, 0x81, 0x03, 0x00][..], &[0x01, 0x03, 0x81, 0x01]].concat();
        let mut reader = Reader::new(&bytes);
        let integers: Vec<i64> = (0..4).map(|_| reader.integer().unwrap()).collect();
        assert_eq!(integers, [42, 256, -3, 0]);
        assert_eq!(reader.number().unwrap(), 1.5);
        reader.end().unwrap();
        // 0.6 as a float: 10066330 times 2 to the power of -24.
        let mut reader = Reader::new(&[0x03, 0x9a, 0x99, 0x99, 0x81, 0x18]);
        assert_eq!(reader.float().unwrap(), 0.6);
    }

    #[test]
    fn texts_truths_columns_and_tensors_are_read() {
        let mut reader = Reader::new(b"\x01\x05relu_10\x81\x02\x81\x01\x01\x03\x00\x01\x01\x81\x01");
        assert_eq!(reader.text().unwrap(), "relu_");
        assert_eq!([reader.truth().unwrap(), reader.truth().unwrap()], [true, false]);
        assert_eq!(reader.column().unwrap(), [3.0, 0.5]);
        reader.end().unwrap();
        let mut bytes = b"\x01\x02\x01\x01\x01\x01\x01\x02\x01\x01".to_vec();
        bytes.extend([1.0f32, -2.0].iter().flat_map(|number| number.to_le_bytes()));
        let tensor = Reader::new(&bytes).tensor().unwrap();
        assert_eq!(tensor, Tensor { shape: [1, 1, 2, 1], numbers: vec![1.0, -2.0] });
        let (first, rest) = tensor.clone().split([1, 1, 1, 1]).unwrap();
        assert_eq!((first.numbers, rest), (vec![1.0], vec![-2.0]));
        assert!(tensor.split([3, 1, 1, 1]).is_err());
        for length in 0..bytes.len() {
            assert!(Reader::new(&bytes[..length]).tensor().is_err(), "{length}");
        }
    }

    #[test]
    fn absurd_lengths_are_refused_without_room_for_them() {
        let huge = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(Reader::new(&huge).integer().unwrap(), i64::MAX);
        assert!(Reader::new(&huge).text().is_err());
        assert!(Reader::new(&huge).list("items", Reader::integer).is_err());
        let tensor = [&[0x01, 0x02][..], &[4, 255, 255, 255, 255].repeat(4)].concat();
        assert!(Reader::new(&tensor).tensor().unwrap_err().to_string().contains("larger than the file"));
        let negative = [0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0x81, 0x01];
        assert!(Reader::new(&negative).column().is_err());
        assert!(Reader::new(&negative).list("items", Reader::integer).is_err());
        for first in [0x09, 0x11, 0xff] {
            assert!(Reader::new(&[first; 20]).integer().is_err(), "{first}");
        }
        assert!(Reader::new(&[8, 0, 0, 0, 0, 0, 0, 0, 0x80]).integer().is_err());
        // How dlib writes infinity: a power of 32000.
        assert!(Reader::new(&[0x01, 0x01, 0x02, 0x00, 0x7d]).number().is_err());
        assert!(Reader::new(b"2").truth().is_err());
        assert!(Reader::new(b"2").end().is_err());
    }
}
