//! What of an answer stays when somebody that it names is erased. Pure.

use sea_orm::prelude::Uuid;
use serde_json::Value;

/// What became of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redacted {
    /// It names nobody that is erased.
    Untouched,
    /// Parts were taken out.
    Changed,
    /// It is about who is erased: nothing of it may stay.
    Nothing,
}

/// The ids in a text, wherever they stand.
pub fn uuids(text: &str) -> impl Iterator<Item = Uuid> + '_ {
    const LENGTH: usize = 36;
    let words = text.split(|c: char| !(c.is_ascii_hexdigit() || c == '-'));
    words.filter(|word| word.len() == LENGTH).filter_map(|word| word.parse().ok())
}

/// All ids in an answer.
pub fn uuids_of(value: &Value) -> Vec<Uuid> {
    match value {
        Value::String(text) => uuids(text).collect(),
        Value::Array(items) => items.iter().flat_map(uuids_of).collect(),
        Value::Object(fields) => fields.values().flat_map(uuids_of).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

/// Takes out of an answer each element of a list that names who is erased. A face goes with its best match, as it was most
/// likely theirs; a match that came after it goes alone.
pub fn redact(answer: &mut Value, is_erased: &impl Fn(Uuid) -> bool) -> Redacted {
    let Value::Object(fields) = answer else {
        return if names(answer, is_erased) { Redacted::Nothing } else { Redacted::Untouched };
    };
    let mut changed = false;
    for value in fields.values_mut() {
        match value {
            Value::Array(items) => {
                let before = items.len();
                items.retain_mut(|item| keeps(item, is_erased, &mut changed));
                changed |= items.len() < before;
            }
            other if names(other, is_erased) => return Redacted::Nothing,
            _ => {}
        }
    }
    if changed { Redacted::Changed } else { Redacted::Untouched }
}

/// Whether an element of a list stays, perhaps without some of its matches.
fn keeps(item: &mut Value, is_erased: &impl Fn(Uuid) -> bool, changed: &mut bool) -> bool {
    if let Some(matches) = item.get_mut("matches").and_then(Value::as_array_mut) {
        let is_best = matches.first().is_some_and(|best| names(best, is_erased));
        let before = matches.len();
        matches.retain(|one| !names(one, is_erased));
        *changed |= matches.len() < before;
        if is_best && item["decision"] != "unknown" {
            return false;
        }
    }
    !names(item, is_erased)
}

fn names(value: &Value, is_erased: &impl Fn(Uuid) -> bool) -> bool {
    uuids_of(value).into_iter().any(is_erased)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ANN: &str = "0190a000-0000-7000-8000-000000000001";
    const BOB: &str = "0190a000-0000-7000-8000-000000000002";

    fn redacted(mut answer: Value) -> (Redacted, Value) {
        let ann: Uuid = ANN.parse().unwrap();
        (redact(&mut answer, &|id| id == ann), answer)
    }

    #[test]
    fn ids_are_found_in_texts() {
        let text = format!("there is no person {ANN} in it; name {BOB}.");
        assert_eq!(uuids(&text).collect::<Vec<_>>(), [ANN.parse::<Uuid>().unwrap(), BOB.parse().unwrap()]);
        assert_eq!(uuids("0190a000-0000-7000-8000-00000000000 and-so-on").count(), 0);
    }

    #[test]
    fn a_face_goes_with_its_best_match() {
        let face = |decision: &str, matches: &[&str]| {
            let matches: Vec<_> = matches.iter().map(|id| json!({ "person_id": id, "name": "x" })).collect();
            json!({ "decision": decision, "matches": matches })
        };
        let answer =
            json!({ "faces": [face("match", &[ANN, BOB]), face("match", &[BOB, ANN]), face("unknown", &[ANN])] });
        let left = json!({ "faces": [face("match", &[BOB]), face("unknown", &[])] });
        assert_eq!(redacted(answer), (Redacted::Changed, left));
    }

    #[test]
    fn an_answer_about_them_goes_as_a_whole() {
        let enrolled = json!({ "person_id": ANN, "face_id": BOB });
        assert_eq!(redacted(enrolled).0, Redacted::Nothing);
        assert_eq!(redacted(json!({ "other": { "person_id": ANN } })).0, Redacted::Nothing);
        let others = json!({ "person_id": BOB, "faces": [{ "face_id": BOB }] });
        assert_eq!(redacted(others.clone()), (Redacted::Untouched, others));
        let known = json!({ "image_id": BOB, "faces": [{ "face_id": ANN }, { "face_id": BOB }] });
        assert_eq!(redacted(known), (Redacted::Changed, json!({ "image_id": BOB, "faces": [{ "face_id": BOB }] })));
    }
}
