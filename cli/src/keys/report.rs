//! Keys as a table, or as JSON.

use api::routes::keys::{KeyView, MadeKeyView};
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use shared::ids::ApiKeyId;

/// How a key that was made is shown.
#[derive(Clone, Copy)]
pub(super) enum Form {
    Table,
    Json,
    Token,
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(super) fn made(made: &MadeKeyView, form: Form) {
    let made = json!(made);
    match form {
        Form::Token => println!("{}", text(&made["token"])),
        Form::Json => println!("{made}"),
        Form::Table => {
            println!("{}", table(std::slice::from_ref(&made)));
            println!("{}", text(&made["token"]));
            println!(
                "This is its token, shown this once: send it as `Authorization: Bearer ...`, or set FACE_ID_API_KEY."
            );
        }
    }
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(super) fn listed(keys: &[KeyView], json: bool) {
    let keys: Vec<Value> = keys.iter().map(|key| json!(key)).collect();
    if json {
        println!("{}", json!(keys));
    } else {
        println!("{}", table(&keys));
    }
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(super) fn revoked(key: ApiKeyId, json: bool) {
    if json {
        println!("{}", json!({ "revoked": key }));
    } else {
        println!("{key} is revoked");
    }
}

fn table(keys: &[Value]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["id", "name", "prefix", "scopes", "collections", "state", "expires", "last used"]);
    for key in keys {
        let collections = key["collections"].as_array().map_or_else(|| "all".to_owned(), |c| c.len().to_string());
        let scopes: Vec<&str> = key["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        table.add_row([
            text(&key["id"]),
            text(&key["name"]),
            text(&key["prefix"]),
            &scopes.join(", "),
            &collections,
            text(&key["state"]),
            text(&key["expires_at"]),
            text(&key["last_used_at"]),
        ]);
    }
    table
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}
