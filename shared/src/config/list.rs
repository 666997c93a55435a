//! Lists of numbers that may have one element: the environment's `0.5` is a number where `0.5,1` is a list.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// Reads a list, or a number as a list of it.
pub(super) fn numbers<'de, D: Deserializer<'de>, T: Number<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_any(Numbers(PhantomData))
}

/// An element.
pub(super) trait Number<'de>: Deserialize<'de> {
    fn of(value: f64) -> Option<Self>;
}

impl Number<'_> for f64 {
    fn of(value: f64) -> Option<Self> {
        Some(value)
    }
}

impl Number<'_> for usize {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked before")]
    fn of(value: f64) -> Option<Self> {
        (value >= 0.0 && value <= f64::from(u32::MAX) && value.fract() == 0.0).then_some(value as Self)
    }
}

struct Numbers<T>(PhantomData<T>);

impl<'de, T: Number<'de>> Visitor<'de> for Numbers<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(values)
    }

    #[expect(clippy::cast_precision_loss, reason = "settings are small")]
    fn visit_i64<E: Error>(self, value: i64) -> Result<Vec<T>, E> {
        self.visit_f64(value as f64)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Vec<T>, E> {
        T::of(value).map(|value| vec![value]).ok_or_else(|| E::custom(format!("{value} is not such a number")))
    }
}
