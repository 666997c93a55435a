//! JSON objects and nothing else: what serde derives for a struct takes a list of its fields' values too, in their order.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// For `deserialize_with`: an object.
///
/// # Errors
/// It is none, or not of this type.
pub fn only<'de, T: Deserialize<'de>, D: Deserializer<'de>>(value: D) -> Result<T, D::Error> {
    value.deserialize_map(Object(PhantomData))
}

struct Object<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

#[cfg(test)]
mod tests {
    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Pair {
        a: u8,
        b: Option<u8>,
    }

    #[test]
    fn a_list_is_no_object() {
        let read = |text: &str| super::only::<Pair, _>(&mut serde_json::Deserializer::from_str(text)).ok();
        assert_eq!(read(r#"{"a": 1}"#), Some(Pair { a: 1, b: None }));
        assert_eq!(serde_json::from_str::<Pair>("[1, null]").unwrap(), Pair { a: 1, b: None }, "as it is derived");
        for other in ["[1, null]", "null", "1", "\"a\"", "{}"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
