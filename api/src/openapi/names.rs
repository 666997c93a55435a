//! Operation ids: utoipa takes the name of the function, of which there are many `get`s.

use std::collections::BTreeSet;

use serde_json::Value;

use super::each_operation;

/// Puts an operation's tag before its name.
pub(super) fn add(document: &mut Value) {
    let mut known = BTreeSet::new();
    each_operation(document, |method, path, operation| {
        let tag = operation["tags"][0].as_str().unwrap_or_default().replace('-', "_");
        let name = format!("{tag}_{}", operation["operationId"].as_str().unwrap_or_default());
        operation.insert("operationId".to_owned(), name.clone().into());
        assert!(known.insert(name), "{method} {path} needs an operation_id of its own; this is a bug");
    });
}
