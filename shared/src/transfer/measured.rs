//! What a detector measured of a face, as it is stored: plain figures and few, whatever the version that wrote them.

use serde_json::Value;

/// Most points of a face; five or 68 are stored.
const MAX_POINTS: usize = 128;
/// Most figures of a face's quality, and reasons why it is not good enough.
const MAX_FIGURES: usize = 64;
/// Longest name of one in bytes.
const MAX_NAME: usize = 64;

/// Refuses what is no list of points, or no figures by their names.
pub(super) fn check(landmarks: &Value, quality: &Value) -> Result<(), String> {
    let are_points = |points: &Vec<Value>| points.len() <= MAX_POINTS && points.iter().all(is_point);
    // A list, or one beside the name of its scheme.
    let points = match landmarks.as_object() {
        Some(named) if named.len() == 2 && named.get("scheme").and_then(Value::as_str).is_some_and(is_name) => {
            named.get("points")
        }
        Some(_) => None,
        None => Some(landmarks),
    };
    if !points.and_then(Value::as_array).is_some_and(are_points) {
        return Err(format!(
            "has landmarks that are not up to {MAX_POINTS} points of two numbers, by themselves or with their scheme"
        ));
    }
    let is_figure = |(name, value): (&String, &Value)| is_name(name) && is_figure(value);
    if !quality.as_object().is_some_and(|all| all.len() <= MAX_FIGURES && all.iter().all(is_figure)) {
        return Err(format!("has a quality that is not up to {MAX_FIGURES} figures by their names"));
    }
    Ok(())
}

fn is_point(point: &Value) -> bool {
    point.as_array().is_some_and(|numbers| numbers.len() == 2 && numbers.iter().all(is_number))
}

/// What is not finite is stored as null.
fn is_number(value: &Value) -> bool {
    value.is_number() || value.is_null()
}

fn is_figure(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
        Value::String(text) => is_name(text),
        Value::Array(reasons) => {
            reasons.len() <= MAX_FIGURES && reasons.iter().all(|reason| reason.as_str().is_some_and(is_name))
        }
        Value::Object(_) => false,
    }
}

fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME && !text.contains('\0')
}
