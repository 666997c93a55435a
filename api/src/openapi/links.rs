//! Links: what an answer gives that other operations take. Clients, and tools that try sequences of requests, follow them.

use serde_json::{Map, Value, json};

use super::object;

/// From an answer of some operations to other operations.
struct Links {
    /// Operations and the status of their answer.
    from: (&'static [&'static str], &'static str),
    to: &'static [&'static str],
    /// What their parameters are, as runtime expressions.
    parameters: &'static [(&'static str, &'static str)],
}

const ID: &str = "$response.body#/id";
const FIRST: &str = "$response.body#/items/0/id";
const IN_PATH: &str = "$request.path.collection";

/// What acts on a whole collection.
const OF_COLLECTION: &[&str] = &[
    "collections_get",
    "collections_update",
    "collections_delete",
    "collections_export",
    "collections_import",
    "persons_create",
    "persons_list",
    "faces_list",
    "clusters_list",
    "clusters_changes",
    "uploads_create",
    "jobs_enroll",
    "jobs_index",
    "jobs_identify",
    "jobs_verify",
    "jobs_rematch",
    "reprocess_create",
];
const OF_RUN: &[&str] = &[
    "reprocess_get",
    "reprocess_differences",
    "reprocess_comparison",
    "reprocess_compare",
    "reprocess_pause",
    "reprocess_resume",
    "reprocess_retry",
    "reprocess_activate",
    "reprocess_rollback",
    "reprocess_cancel",
    "reprocess_prune",
];
const OF_PERSON: &[&str] =
    &["persons_get", "persons_update", "persons_delete", "persons_faces", "persons_images", "persons_merge"];
const OF_FACE: &[&str] = &["faces_get", "faces_update", "faces_delete"];
const OF_CLUSTER: &[&str] = &["clusters_get", "clusters_faces", "clusters_merge", "clusters_split", "clusters_name"];
const OF_MODEL: &[&str] = &["models_get", "models_delete"];
const OF_JOB: &[&str] = &["jobs_get", "jobs_cancel", "jobs_of_job"];
const OF_BATCH: &[&str] = &[
    "batches_get",
    "batches_jobs",
    "batches_of_batch",
    "batches_pause",
    "batches_resume",
    "batches_cancel",
    "batches_retry",
];
const OF_KEY: &[&str] = &["api_keys_get", "api_keys_rotate", "api_keys_revoke"];
const OF_ENDPOINT: &[&str] = &[
    "webhooks_get",
    "webhooks_update",
    "webhooks_delete",
    "webhooks_secret",
    "webhooks_rotate_secret",
    "webhooks_test",
    "webhooks_list_deliveries",
    "webhooks_recover",
];
const OF_DELIVERY: &[&str] = &["webhooks_get_delivery", "webhooks_redeliver"];

const LINKS: &[Links] = &[
    Links { from: (&["collections_create"], "201"), to: OF_COLLECTION, parameters: &[("collection", ID)] },
    Links { from: (&["collections_list"], "200"), to: OF_COLLECTION, parameters: &[("collection", FIRST)] },
    Links {
        from: (&["persons_create"], "201"),
        to: OF_PERSON,
        parameters: &[("collection", "$response.body#/collection_id"), ("person", ID)],
    },
    Links {
        from: (&["persons_list"], "200"),
        to: OF_PERSON,
        parameters: &[("collection", IN_PATH), ("person", FIRST)],
    },
    Links { from: (&["faces_list"], "200"), to: OF_FACE, parameters: &[("collection", IN_PATH), ("face", FIRST)] },
    Links {
        from: (&["clusters_list"], "200"),
        to: OF_CLUSTER,
        parameters: &[("collection", IN_PATH), ("cluster", FIRST)],
    },
    Links {
        from: (&["clusters_merge", "clusters_split", "clusters_name"], "200"),
        to: &["clusters_undo"],
        parameters: &[("collection", IN_PATH), ("change", "$response.body#/change_id")],
    },
    Links {
        from: (&["uploads_create"], "201"),
        to: &["uploads_get"],
        parameters: &[("collection", IN_PATH), ("upload", ID)],
    },
    Links {
        from: (&["jobs_enroll", "jobs_index", "jobs_identify", "jobs_verify", "jobs_rematch"], "202"),
        to: OF_JOB,
        parameters: &[("job", ID)],
    },
    Links { from: (&["batches_create"], "202"), to: OF_BATCH, parameters: &[("batch", ID)] },
    Links {
        from: (&["calibrations_create"], "201"),
        to: &["calibrations_get", "calibrations_delete"],
        parameters: &[("calibration", ID)],
    },
    Links { from: (&["reprocess_create"], "202"), to: OF_RUN, parameters: &[("run", ID)] },
    Links {
        from: (&["collections_delete", "persons_delete", "faces_delete", "images_delete"], "202"),
        to: &["erasures_get"],
        parameters: &[("erasure", ID)],
    },
    Links { from: (&["erasures_list"], "200"), to: &["erasures_get"], parameters: &[("erasure", FIRST)] },
    Links { from: (&["api_keys_create", "api_keys_rotate"], "201"), to: OF_KEY, parameters: &[("key", ID)] },
    Links { from: (&["models_create"], "201"), to: OF_MODEL, parameters: &[("model", "$response.body#/name")] },
    Links { from: (&["webhooks_create"], "201"), to: OF_ENDPOINT, parameters: &[("endpoint", ID)] },
    Links {
        from: (&["webhooks_test"], "202"),
        to: OF_DELIVERY,
        parameters: &[("delivery", "$response.body#/delivery_id")],
    },
    Links { from: (&["webhooks_list_deliveries"], "200"), to: OF_DELIVERY, parameters: &[("delivery", FIRST)] },
];

/// Adds them.
///
/// # Panics
/// One leads from or to what is not there, which is a bug.
pub(super) fn add(document: &mut Value) {
    for links in LINKS {
        for to in links.to {
            let target = operation(document, to);
            for (name, _) in links.parameters {
                let known = target["parameters"].as_array().into_iter().flatten().any(|one| one["name"] == *name);
                assert!(known, "{to} has no parameter {name}; this is a bug");
            }
        }
        for from in links.from.0 {
            let response = &mut operation(document, from)["responses"][links.from.1];
            assert!(response.is_object(), "{from} does not answer {}; this is a bug", links.from.1);
            for to in links.to {
                let parameters: Map<String, Value> =
                    links.parameters.iter().map(|(name, what)| ((*name).to_owned(), json!(what))).collect();
                response["links"][*to] = json!({ "operationId": to, "parameters": parameters });
            }
        }
    }
    link_pages(document);
}

/// Links each page of a list to the next.
fn link_pages(document: &mut Value) {
    for methods in object(&mut document["paths"]).values_mut() {
        let Some(list) = methods.get_mut("get") else { continue };
        let named = |place: &str| -> Vec<String> {
            let parameters = list["parameters"].as_array().into_iter().flatten().filter(|one| one["in"] == place);
            parameters.map(|one| one["name"].as_str().unwrap_or_default().to_owned()).collect()
        };
        if !named("query").iter().any(|name| name == "cursor") {
            continue;
        }
        let mut parameters = Map::new();
        for name in named("path") {
            parameters.insert(name.clone(), format!("$request.path.{name}").into());
        }
        parameters.insert("cursor".to_owned(), "$response.body#/next_cursor".into());
        let next = json!({ "operationId": list["operationId"], "parameters": parameters,
            "description": "The next page; the other parameters of the query stay as they are" });
        list["responses"]["200"]["links"]["next_page"] = next;
    }
}

fn operation<'a>(document: &'a mut Value, id: &str) -> &'a mut Value {
    let mut all = object(&mut document["paths"]).values_mut().flat_map(|methods| object(methods).values_mut());
    all.find(|one| one["operationId"] == id).unwrap_or_else(|| panic!("there is no operation {id}; this is a bug"))
}
