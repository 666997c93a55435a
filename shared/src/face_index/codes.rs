//! A gallery's vectors as int8 codes: a quarter of their bytes, and for every query a bound on each score.
//!
//! A vector x is `scale * code + rest`, with codes of -127..=127 and a scale of its own. A query q is coded likewise, but
//! finer, as `s * g + r`. Then
//!
//! ```text
//! q.x = scale * s * (g.code) + r.(scale * code) + q.rest
//! ```
//!
//! where, by Cauchy-Schwarz, the last two terms are at most `|r| |scale * code|` and `|q| |rest|`. The largest
//! `|scale * code|` and the largest `|rest| / scale` of all vectors are known, so that a row's bound takes its codes and
//! its scale and nothing else of it. At 128 components most bounds lie less than 0.02 above their scores.

use std::ops::Range;

use super::kernel::{Kernel, LINE, Line};

/// Rows of which bounds are worked out at once.
pub(super) const BLOCK_ROWS: usize = 256;
/// The largest code of a row.
const LARGEST: i16 = 127;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Codes {
    /// Row-major; each row filled up with zeros to whole lines.
    lines: Vec<Line>,
    lines_a_row: usize,
    scales: Vec<f32>,
    /// The largest |rest| / scale of all vectors that were ever here.
    rest: f64,
    /// The largest length of all vectors that were ever here, as they were or as their codes say.
    length: f64,
}

/// What the bounds of one query's scores need.
#[derive(Debug)]
pub(super) struct Bounds {
    codes: Vec<[i16; LINE]>,
    scale: f32,
    /// What a bound has for each unit of the row's scale.
    a_scale: f32,
    /// What every bound has.
    constant: f32,
}

impl Codes {
    /// Takes the next row, of as many components as those before it.
    #[expect(clippy::cast_possible_truncation, reason = "no code is larger than LARGEST")]
    pub(super) fn push(&mut self, vector: &[f32]) {
        let coded = Coded::new(vector, LARGEST);
        self.lines.extend(lines(&coded.codes).map(|line| Line(line.map(|code| code as i8))));
        self.lines_a_row = vector.len().div_ceil(LINE);
        self.scales.push(coded.scale);
        self.rest = self.rest.max(coded.rest / f64::from(coded.scale));
        self.length = self.length.max(coded.length).max(norm(vector));
    }

    /// Moves the last row into the place of the removed one.
    pub(super) fn swap_remove(&mut self, row: usize) {
        self.scales.swap_remove(row);
        let last = self.scales.len() * self.lines_a_row;
        self.lines.copy_within(last.., row * self.lines_a_row);
        self.lines.truncate(last);
    }

    /// What the bounds of the scores of `query` need, as long as no row is added.
    #[expect(clippy::cast_possible_truncation, reason = "the slack covers the rounding")]
    pub(super) fn bounds(&self, query: &[f32]) -> Bounds {
        // As fine as a sum of products with the largest codes, in an i32, allows.
        let finest = i32::MAX as usize / (LARGEST as usize * query.len());
        let coded = Coded::new(query, i16::try_from(finest).unwrap_or(i16::MAX));
        let norm = norm(query);
        // An f32 sum of n products has an error of at most n / 2^24 of the lengths' product, in whatever order it is
        // summed (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). Twice that, and the bound's own rounding.
        let slack = (query.len() as f64 + 32.0) * f64::from(f32::EPSILON) * norm * self.length;
        Bounds {
            codes: lines(&coded.codes).collect(),
            scale: coded.scale,
            a_scale: (norm * self.rest) as f32,
            constant: (coded.rest * self.length + slack) as f32,
        }
    }

    /// For each of at most [`BLOCK_ROWS`] rows a number that its f32 score, by whatever kernel, does not exceed.
    pub(super) fn upper_bounds(&self, kernel: Kernel, bounds: &Bounds, rows: Range<usize>, upper: &mut [f32]) {
        let mut dots = [0; BLOCK_ROWS];
        let dots = &mut dots[..rows.len()];
        kernel.code_dots(&bounds.codes, &self.lines[rows.start * self.lines_a_row..rows.end * self.lines_a_row], dots);
        for ((upper, dot), scale) in upper.iter_mut().zip(dots).zip(&self.scales[rows]) {
            *upper = scale * (bounds.scale * *dot as f32 + bounds.a_scale) + bounds.constant;
        }
    }
}

/// A vector that was coded.
struct Coded {
    codes: Vec<i16>,
    scale: f32,
    /// |vector - scale * codes|
    rest: f64,
    /// |scale * codes|
    length: f64,
}

impl Coded {
    /// With codes of `-largest..=largest`.
    #[expect(clippy::cast_possible_truncation, reason = "the cast saturates")]
    fn new(vector: &[f32], largest: i16) -> Self {
        let longest = vector.iter().fold(0.0_f32, |longest, v| longest.max(v.abs()));
        // Any scale does for a vector of zeros.
        let scale = (longest / f32::from(largest)).max(f32::MIN_POSITIVE);
        let code = |value: &f32| ((value / scale).round() as i16).clamp(-largest, largest);
        let codes: Vec<_> = vector.iter().map(code).collect();
        let (mut rest, mut length) = (0.0, 0.0);
        for (value, code) in vector.iter().zip(&codes) {
            let coded = f64::from(scale) * f64::from(*code);
            rest += (f64::from(*value) - coded).powi(2);
            length += coded.powi(2);
        }
        Self { codes, scale, rest: rest.sqrt(), length: length.sqrt() }
    }
}

/// Whole lines, the last one filled up with zeros.
fn lines(codes: &[i16]) -> impl Iterator<Item = [i16; LINE]> {
    codes.chunks(LINE).map(|chunk| {
        let mut line = [0; LINE];
        line[..chunk.len()].copy_from_slice(chunk);
        line
    })
}

/// The length of a vector.
pub(super) fn norm(vector: &[f32]) -> f64 {
    vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}
