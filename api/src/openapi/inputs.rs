//! What requests may hold, as far as the types that read them do not say it: which fields exclude each other, and that no
//! text has a NUL character.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::object;

/// Text without NUL: no name or id holds one, and databases differ in what they make of it.
const NO_NUL: &str = r"^[^\u0000]*$";
/// The same, with something in it.
const NOT_BLANK: &str = r"^[^\u0000]*[^\s\u0000][^\u0000]*$";

/// How many of some fields a request gives.
enum Given {
    ExactlyOne,
    AtLeastOne,
}

/// Schemas of which these fields are given, each with the fields that are taken beside it only.
type Choice = (&'static str, Given, &'static [(&'static str, &'static [&'static str])]);

const CHOICES: &[Choice] = &[
    ("ImageInput", Given::ExactlyOne, &[("upload_id", &[]), ("base64", &[]), ("s3", &[])]),
    ("PersonInput", Given::ExactlyOne, &[("id", &[]), ("external_id", &["name"])]),
    ("VerifyOther", Given::ExactlyOne, &[("image", &[]), ("person_id", &[])]),
    ("SourceInput", Given::ExactlyOne, &[("s3", &[]), ("folder", &[])]),
    ("NewPerson", Given::AtLeastOne, &[("external_id", &[]), ("name", &[])]),
    ("FaceChanges", Given::AtLeastOne, &[("person_id", &[]), ("hidden", &[]), ("locked", &[])]),
];

/// Fields for which null is an answer of its own.
const NULL_IS_GIVEN: [&str; 1] = ["person_id"];
/// Fields that must not be blank.
const NOT_BLANK_FIELDS: [&str; 1] = ["external_id"];

/// Describes them.
pub(super) fn describe(document: &mut Value) {
    for name in request_schemas(document) {
        forbid_nul(&mut document["components"]["schemas"][&name]);
    }
    for methods in object(&mut document["paths"]).values_mut() {
        for operation in object(methods).values_mut() {
            let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
            for parameter in parameters.into_iter().flatten() {
                // What a header can hold is said where it is read.
                if parameter["in"] != "header" {
                    forbid_nul(&mut parameter["schema"]);
                }
            }
        }
    }
    for (name, given, fields) in CHOICES {
        choose(&mut document["components"]["schemas"][*name], given, fields);
    }
}

/// The schemas that requests are read by, and those that are part of them.
fn request_schemas(document: &Value) -> BTreeSet<String> {
    let operations = document["paths"].as_object().into_iter().flat_map(|paths| paths.values());
    let operations = operations.flat_map(|methods| methods.as_object().into_iter().flat_map(|all| all.values()));
    let mut open: Vec<&Value> = operations.map(|one| &one["requestBody"]).collect();
    let mut found = BTreeSet::new();
    while let Some(value) = open.pop() {
        match value {
            Value::Object(fields) => {
                let named = value["$ref"].as_str().and_then(|named| named.strip_prefix("#/components/schemas/"));
                if let Some(name) = named.filter(|name| !found.contains(*name)) {
                    found.insert(name.to_owned());
                    open.push(&document["components"]["schemas"][name]);
                }
                open.extend(fields.values());
            }
            Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
    found
}

/// Gives every text of a schema a pattern, unless it says something narrower itself.
fn forbid_nul(schema: &mut Value) {
    let is_text = match &schema["type"] {
        Value::Array(types) => types.iter().any(|one| one == "string"),
        one => one == "string",
    };
    let is_free = ["format", "pattern", "enum"].iter().all(|narrower| schema[*narrower].is_null());
    if is_text && is_free {
        schema["pattern"] = NO_NUL.into();
    }
    for (name, field) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        forbid_nul(field);
        if NOT_BLANK_FIELDS.contains(&name.as_str()) {
            field["pattern"] = NOT_BLANK.into();
        }
    }
    if let Some(items) = schema.get_mut("items") {
        forbid_nul(items);
    }
    for variants in ["oneOf", "anyOf"] {
        schema.get_mut(variants).and_then(Value::as_array_mut).into_iter().flatten().for_each(forbid_nul);
    }
}

/// Makes variants of an object's schema, one for each field that may be the given one.
fn choose(schema: &mut Value, given: &Given, fields: &[(&str, &[&str])]) {
    let whole = schema.clone();
    let variant = |(chosen, beside): &(&str, &[&str])| {
        let mut properties = whole["properties"].clone();
        if !NULL_IS_GIVEN.contains(chosen) || matches!(given, Given::ExactlyOne) {
            properties[*chosen] = without_null(&properties[*chosen]);
        }
        let others = fields.iter().flat_map(|(field, beside)| std::iter::once(field).chain(*beside));
        for other in others.filter(|other| *other != chosen && !beside.contains(other)) {
            if matches!(given, Given::ExactlyOne) {
                properties[*other] = json!({ "type": "null" });
            }
        }
        json!({ "type": "object", "title": chosen, "required": [chosen], "properties": properties,
            "additionalProperties": false })
    };
    let variants: Vec<Value> = fields.iter().map(variant).collect();
    let which = match given {
        Given::ExactlyOne => "oneOf",
        Given::AtLeastOne => "anyOf",
    };
    *schema = json!({ "description": whole["description"], which: variants });
}

/// The schema of what is there.
fn without_null(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(types) = schema["type"].as_array() {
        schema["type"] = types.iter().find(|one| *one != "null").cloned().unwrap_or_default();
    }
    // An optional value of another schema is one of null and that.
    let inner = schema["oneOf"].as_array().into_iter().flatten().find(|one| one["type"] != "null").cloned();
    inner.unwrap_or(schema)
}
