//! What a recognizer must answer to pictures that everybody can make: the vectors of test crops.

use serde::Deserialize;

/// `[fingerprint]`
///
/// Whoever loads the recognizer shows it the same crops, made by arithmetic, and refuses it where the answers differ:
/// the same file gives other vectors under other preprocessing, and a quantized one on a processor that rounds otherwise.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// The least cosine between the vector found and the one stored here. Of a recognizer whose vectors are not normalised their
    /// lengths count too: 1 - (distance / length)² / 2, which is the cosine where the lengths are equal.
    pub min_cosine: f32,
    /// The vector of each test crop in turn, of any length but where it counts.
    pub vectors: Vec<Vec<f32>>,
}

impl Fingerprint {
    /// Numbers on a line of TOML.
    const LINE: usize = 12;

    pub(super) fn check(&self, dimension: usize) -> Result<(), String> {
        if !(self.min_cosine > 0.0 && self.min_cosine <= 1.0) {
            return Err("fingerprint.min_cosine must lie above 0 and not above 1".to_owned());
        }
        if self.vectors.is_empty() || self.vectors.iter().any(|vector| vector.len() != dimension) {
            return Err(format!("fingerprint.vectors must hold at least one vector, each of {dimension} components"));
        }
        if !self.vectors.iter().all(|vector| vector.iter().all(|c| c.is_finite()) && vector.iter().any(|c| *c != 0.0)) {
            return Err("fingerprint.vectors must be finite and not zero".to_owned());
        }
        Ok(())
    }

    /// The section as a catalogue entry holds it. Four decimals: of a unit vector of 128 components they keep the cosine
    /// to 1e-7.
    pub fn toml(&self) -> String {
        let vector = |components: &Vec<f32>| {
            let lines: Vec<String> = components
                .chunks(Self::LINE)
                .map(|line| line.iter().map(|c| format!("{c:.4}")).collect::<Vec<_>>().join(", "))
                .collect();
            format!("  [{}],\n", lines.join(",\n   "))
        };
        let vectors: String = self.vectors.iter().map(vector).collect();
        format!("[fingerprint]\nmin_cosine = {}\nvectors = [\n{vectors}]\n", self.min_cosine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint() -> Fingerprint {
        let vector = |shift: i16| (0..30i16).map(|n| f32::from(n * 7 % 30 - shift) / 100.0).collect();
        Fingerprint { min_cosine: 0.999, vectors: vec![vector(15), vector(3)] }
    }

    #[test]
    fn the_section_reads_back() {
        let text = fingerprint().toml();
        assert!(text.lines().all(|line| line.len() <= 120), "{text}");
        let read: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(read["fingerprint"].clone().try_into::<Fingerprint>().unwrap(), fingerprint());
    }

    #[test]
    fn what_could_not_be_compared_is_refused() {
        assert_eq!(fingerprint().check(30), Ok(()));
        assert!(fingerprint().check(31).unwrap_err().contains("31 components"));
        assert!(Fingerprint { vectors: Vec::new(), ..fingerprint() }.check(30).is_err());
        for min_cosine in [0.0, 1.1, f32::NAN] {
            assert!(Fingerprint { min_cosine, ..fingerprint() }.check(30).unwrap_err().contains("min_cosine"));
        }
        for component in [0.0, f32::NAN] {
            assert!(Fingerprint { vectors: vec![vec![component; 30]], ..fingerprint() }.check(30).is_err());
        }
    }
}
