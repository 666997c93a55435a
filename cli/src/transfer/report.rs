//! What was written or taken in: a table, or one line of JSON.

use std::path::Path;

use comfy_table::{Table, presets};
use serde_json::{Value, json};
use shared::transfer::Counts;

/// Kinds of lines, as [`Counts`] names them and as readers do.
const KINDS: [(&str, &str); 6] = [
    ("persons", "persons"),
    ("merges", "persons merged into others"),
    ("images", "pictures (without pixels)"),
    ("places", "places of pictures"),
    ("faces", "faces"),
    ("vectors", "vectors"),
];

#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(super) fn exported(file: &Path, counts: Counts, bytes: u64, as_json: bool) {
    let counts = json!(counts);
    if as_json {
        println!("{}", json!({ "file": file, "bytes": bytes, "counts": counts }));
        return;
    }
    let mut table = table();
    table.set_header(["", "written"]);
    for (key, name) in KINDS {
        table.add_row([name.to_owned(), counts[key].to_string()]);
    }
    println!("{table}\n{} ({bytes} bytes)", file.display());
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(super) fn imported(collection: &str, answer: &Value, as_json: bool) {
    if as_json {
        println!(
            "{}",
            json!({ "collection": collection, "read": answer["read"], "added": answer["added"], "erased": answer["erased"] })
        );
        return;
    }
    let mut table = table();
    table.set_header(["", "in the file", "new", "erased meanwhile"]);
    for (key, name) in KINDS {
        let counts = ["read", "added", "erased"].map(|what| answer[what][key].to_string());
        table.add_row([name.to_owned()].into_iter().chain(counts));
    }
    println!("{table}\ninto the collection {collection}");
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table
}
