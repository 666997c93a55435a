//! The failures that an operation can have by what it is, so that no handler has to list them; and the headers of answers.

use serde_json::{Map, Value, json};

use super::{each_operation, object, parameters};

/// Every status of a failure, and what it means.
const FAILURES: [(&str, &str); 14] = [
    ("400", "The request cannot be read"),
    ("401", "There is no key, or none that is valid"),
    ("403", "The key is not for this"),
    ("404", "What the path, the query or the body names is not there"),
    ("408", "The body took too long"),
    ("409", "It cannot be done in the present state"),
    ("410", "The person was merged into another, which the detail names"),
    ("412", "It was changed since that ETag was given"),
    ("413", "The body is too long"),
    ("415", "The body is of a media type or a format that is not taken here"),
    ("422", "The request can be read, and something in it is wrong; `errors` points at it"),
    ("429", "The key has had as much as it may, or too much waits for bulk work"),
    ("500", "The server failed; its log has the request's id"),
    ("503", "The server is busy, or something that it needs is out of reach"),
];

/// Adds them.
pub(super) fn add(document: &mut Value) {
    let responses: Map<_, _> =
        FAILURES.iter().map(|(status, what)| (component(status), failure(status, what))).collect();
    document["components"]["responses"] = responses.into();
    each_operation(document, |method, _, operation| {
        let failures = failures_of(method, operation);
        let responses = object(operation.entry("responses").or_insert_with(|| json!({})));
        for status in failures {
            responses.entry(status).or_insert(Value::Null);
        }
        for (status, response) in responses {
            // A handler that has a failure which others do not have names its status only.
            if status.as_str() >= "400" && response["content"].is_null() {
                *response = json!({ "$ref": format!("#/components/responses/{}", component(status)) });
            }
            tell_where(status, response);
        }
    });
}

/// What the component with a status is called.
fn component(status: &str) -> String {
    format!("Problem{status}")
}

fn failure(status: &str, description: &str) -> Value {
    let mut headers = json!({ "X-Request-Id": header("The request's id, also in the server's log") });
    match status {
        "401" => headers["WWW-Authenticate"] = header("Bearer"),
        "429" | "503" => headers["Retry-After"] = header("Seconds until it makes sense to try again"),
        _ => {}
    }
    json!({
        "description": description,
        "headers": headers,
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/ProblemBody" } } },
    })
}

fn header(description: &str) -> Value {
    json!({ "description": description, "required": true, "schema": { "type": "string" } })
}

fn failures_of(method: &str, operation: &Map<String, Value>) -> Vec<&'static str> {
    let has = |place: &'static str| parameters(operation, place).next().is_some();
    let (has_key, has_body) = (operation.contains_key("security"), operation.contains_key("requestBody"));
    let names_collection = parameters(operation, "query").any(|one| one["name"] == "collection");
    let is_conditional = parameters(operation, "header").any(|one| one["name"] == "If-Match");
    // A NUL character in the path or query, and a panic.
    let mut failures = vec!["400", "500"];
    let mut may = |applies: bool, statuses: &[&'static str]| {
        if applies {
            failures.extend(statuses);
        }
    };
    may(has_key, &["401", "403", "429", "503"]);
    may(has("path") || has_body || names_collection, &["404"]);
    may(has_key && method != "get", &["409"]);
    may(is_conditional, &["412"]);
    may(has_body, &["408", "413", "415"]);
    may(has_body || has("query"), &["422"]);
    failures
}

/// Where what was made is found.
fn tell_where(status: &str, response: &mut Value) {
    let schema = response["content"]["application/json"]["schema"]["$ref"].as_str().unwrap_or_default();
    let is_accepted = status == "202" && response["headers"]["Location"].is_object();
    if status == "201" && !schema.is_empty() {
        response["headers"]["Location"] = header("Its path");
    } else if is_accepted {
        response["headers"]["Retry-After"] = header("Seconds until it makes sense to look");
    }
}
