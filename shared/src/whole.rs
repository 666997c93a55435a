//! Whole numbers in JSON: to JSON Schema (2020-12, validation, section 6.1.1) `5.0` is an integer too, and some languages write
//! it so.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserializer;
use serde::de::{Error, Visitor};

/// The first number that is above every `u64`.
const END: f64 = 18_446_744_073_709_551_616.0;

/// For `deserialize_with`: a whole number that fits.
///
/// # Errors
/// It is none, or it does not.
pub fn number<'de, T: TryFrom<u64>, D: Deserializer<'de>>(value: D) -> Result<T, D::Error> {
    value.deserialize_u64(Whole(PhantomData))
}

/// For `deserialize_with`, with `default`: the same, or null.
///
/// # Errors
/// It is none, or it does not.
pub fn optional<'de, T: TryFrom<u64>, D: Deserializer<'de>>(value: D) -> Result<Option<T>, D::Error> {
    value.deserialize_option(Optional(PhantomData))
}

struct Whole<T>(PhantomData<T>);
struct Optional<T>(PhantomData<T>);

impl<T: TryFrom<u64>> Visitor<'_> for Whole<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number that is not negative")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        T::try_from(number).map_err(|_| E::custom(format!("{number} is too large")))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it was looked at")]
        if number.fract() == 0.0 && (0.0..END).contains(&number) {
            return self.visit_u64(number as u64);
        }
        Err(E::invalid_value(serde::de::Unexpected::Float(number), &self))
    }
}

impl<'de, T: TryFrom<u64>> Visitor<'de> for Optional<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number that is not negative, or null")
    }

    fn visit_none<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<Option<T>, D::Error> {
        number(value).map(Some)
    }
}

#[cfg(test)]
mod tests {
    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Limits {
        #[serde(deserialize_with = "super::number")]
        one: u32,
        #[serde(default, deserialize_with = "super::optional")]
        other: Option<u64>,
    }

    #[test]
    fn a_fraction_of_zero_is_none() {
        let read = |text: &str| serde_json::from_str::<Limits>(text).ok();
        assert_eq!(read(r#"{"one": 5.0, "other": 7.0}"#), Some(Limits { one: 5, other: Some(7) }));
        assert_eq!(read(r#"{"one": 5, "other": null}"#), Some(Limits { one: 5, other: None }));
        assert_eq!(read(r#"{"one": 5}"#), Some(Limits { one: 5, other: None }));
        for wrong in ["5.5", "-1", "-1.0", "4294967296", "4294967296.0", "1e300", "\"5\"", "null", "true"] {
            assert_eq!(read(&format!(r#"{{"one": {wrong}}}"#)), None, "{wrong}");
        }
        assert_eq!(read(r#"{"one": 1, "other": 18446744073709551616.0}"#), None);
    }
}
