//! The OpenAPI document: what utoipa reads off the routes, and what holds for many of them at once.
//!
//! - [`names`] makes operation ids that are one operation's only
//! - [`answers`] adds the failures that an operation can have, and headers
//! - [`links`] says what to do with what an answer gave
//! - [`inputs`] says of requests what their Rust types cannot

mod answers;
mod inputs;
mod links;
mod names;

use serde_json::{Map, Value};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use crate::error::ProblemBody;

/// Where the document's own facts come from.
#[derive(OpenApi)]
#[openapi(modifiers(&ApiKey), components(schemas(ProblemBody)), info(
    title = "face-id",
    description = "Asynchronous face recognition: enroll, index, identify and verify faces as jobs.",
    license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
))]
pub(crate) struct Document;

/// How callers say who they are; each operation names the scope that it needs.
struct ApiKey;

impl Modify for ApiKey {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("fid_PREFIX_SECRET")
            .description(Some("An API key; `face-id keys create` makes one."));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("api_key", SecurityScheme::Http(scheme.build()));
    }
}

/// The document of these routes, whole.
///
/// # Panics
/// It is no JSON, or names what is not there, which is a bug.
pub(crate) fn complete(routes: &utoipa::openapi::OpenApi) -> Value {
    let mut document = serde_json::to_value(routes).expect("the document is plain data; this is a bug");
    names::add(&mut document);
    inputs::describe(&mut document);
    answers::add(&mut document);
    links::add(&mut document);
    document
}

/// Does something to each operation, with its method and path.
fn each_operation(document: &mut Value, mut change: impl FnMut(&str, &str, &mut Map<String, Value>)) {
    for (path, methods) in object(&mut document["paths"]) {
        for (method, operation) in object(methods) {
            change(method, path, object(operation));
        }
    }
}

fn object(value: &mut Value) -> &mut Map<String, Value> {
    value.as_object_mut().expect("this part of a document is an object; this is a bug")
}

/// The parameters of an operation that lie in the path, the query or a header.
fn parameters<'a>(operation: &'a Map<String, Value>, place: &'a str) -> impl Iterator<Item = &'a Value> {
    operation.get("parameters").and_then(Value::as_array).into_iter().flatten().filter(move |one| one["in"] == place)
}
