//! What the old front end sends: pictures, boxes and ids in any of the forms that it had for them.

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;
use shared::job::FaceBox;

use crate::error::{ApiError, ApiResult};
use crate::pictures::{BASE64, InlinePicture, Picture};
use base64::Engine as _;

/// The picture of a field `picture`: base64, alone or as a `data:` URL.
pub(super) fn picture(text: &str) -> ApiResult<Picture> {
    let text = match text.strip_prefix("data:") {
        Some(url) => url.split_once(";base64,").map(|(_, data)| data).ok_or_else(|| {
            ApiError::invalid("#/picture", "is a data: URL without base64; write data:image/jpeg;base64,...")
        })?,
        None => text,
    };
    // A canvas or an encoder may have broken it into lines.
    let text: String = text.split_ascii_whitespace().collect();
    let bytes = BASE64.decode(text).map_err(|e| ApiError::invalid("#/picture", format!("is no base64: {e}")))?;
    InlinePicture::new(bytes.into()).map(Picture::Inline)
}

/// The box of a field `boundingbox`: an object `{left, top, right, bottom}`, an array `[x1, y1, x2, y2]`, or either as a
/// string. `None` where there is none: absent, null or an empty string.
pub(super) fn face_box(value: Option<&Value>) -> ApiResult<Option<FaceBox>> {
    let wrong = |detail: &str| ApiError::invalid("#/boundingbox", detail);
    let form =
        "must be {\"left\":, \"top\":, \"right\":, \"bottom\":} or [x1, y1, x2, y2] in pixels, or either as a string";
    let read;
    let value = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => {
            read = serde_json::from_str(text).map_err(|_| wrong(form))?;
            &read
        }
        Some(value) => value,
    };
    let [left, top, right, bottom] = edges(value).ok_or_else(|| wrong(form))?;
    let (width, height) = (right - left, bottom - top);
    if width > 0.0 && height > 0.0 {
        Ok(Some(FaceBox { x: left, y: top, width, height }))
    } else {
        Err(wrong("must have its right edge right of the left one, and its bottom below its top"))
    }
}

fn edges(value: &Value) -> Option<[f32; 4]> {
    let named = |name: &str| number(value.get(name)?);
    match value {
        Value::Object(_) => Some([named("left")?, named("top")?, named("right")?, named("bottom")?]),
        Value::Array(edges) => edges.iter().map(number).collect::<Option<Vec<f32>>>()?.try_into().ok(),
        _ => None,
    }
}

/// A number, or one that was written as text.
fn number(value: &Value) -> Option<f32> {
    let number: f32 = match value {
        Value::Number(number) => number.to_string().parse().ok()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

/// An id or a name, which may be a number.
#[derive(Debug)]
pub(super) struct Text(pub(super) String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self(text)),
            Value::Number(number) => Ok(Self(number.to_string())),
            _ => Err(D::Error::custom("neither a string nor a number")),
        }
    }
}

/// Whether a field says anything.
pub(super) fn is_given(value: Option<&Value>) -> bool {
    !matches!(value, None | Some(Value::Null)) && value.and_then(Value::as_str).is_none_or(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_box_comes_in_four_forms() {
        let expected = FaceBox { x: 10.0, y: 20.5, width: 30.0, height: 40.0 };
        let object = json!({ "left": 10, "top": 20.5, "right": "40", "bottom": 60.5 });
        let array = json!([10, 20.5, 40, 60.5]);
        for value in [object.clone(), array.clone(), json!(object.to_string()), json!(array.to_string())] {
            assert_eq!(face_box(Some(&value)).unwrap(), Some(expected), "{value}");
        }
        for none in [None, Some(&Value::Null), Some(&json!(" "))] {
            assert_eq!(face_box(none).unwrap(), None);
        }
        let wrong = [
            json!([1, 2, 3]),
            json!([1, 2, 3, 4, 5]),
            json!([1, 2, "x", 4]),
            json!({ "left": 1, "top": 2, "right": 3 }),
            json!("1,2,3,4"),
            json!(7),
            json!([40, 0, 10, 10]),
            json!(["inf", 0, 1, 1]),
            json!("\"[1,2,3,4]\""),
        ];
        for value in wrong {
            let error = format!("{:?}", face_box(Some(&value)).unwrap_err());
            assert!(error.contains("#/boundingbox"), "{value}: {error}");
        }
    }

    #[test]
    fn a_picture_may_be_a_data_url() {
        for text in ["/9j/4AAQ", "data:image/jpeg;base64,/9j/4AAQ", "/9j/\n4AAQ\n"] {
            assert!(matches!(picture(text), Ok(Picture::Inline(_))), "{text}");
        }
        for text in ["data:image/jpeg,/9j/4AAQ", "?"] {
            let error = format!("{:?}", picture(text).unwrap_err());
            assert!(error.contains("#/picture"), "{text}: {error}");
        }
    }

    #[test]
    fn an_id_may_be_a_number() {
        let read = |value: Value| serde_json::from_value::<Text>(value).map(|text| text.0).ok();
        assert_eq!(read(json!("a 1")).as_deref(), Some("a 1"));
        assert_eq!(read(json!(17)).as_deref(), Some("17"));
        assert_eq!(read(json!([17])), None);
    }
}
