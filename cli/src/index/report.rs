//! What became of a batch: a table for the reader, and a file with a line for every picture.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::Context as _;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::id;
use crate::client::Client;

/// Refuses a name that says no format, before the work is done.
pub(super) fn check_name(file: Option<&Path>) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    let is_known = file.extension().is_some_and(|e| e == "csv" || e == "json");
    anyhow::ensure!(is_known, "{}: the report's name must end in .csv or .json", file.display());
    Ok(())
}

/// The summary.
#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(super) fn print(batch: &Value) -> anyhow::Result<()> {
    let number = |value: &Value| value.as_i64().unwrap_or_default();
    let jobs = &batch["jobs"];
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    let mut row = |what: &str, count: i64, note: String| {
        table.add_row([what.to_owned(), count.to_string(), note]);
    };
    row("pictures listed", number(&batch["items"]), String::new());
    row("unchanged since they were indexed", number(&batch["unchanged"]), String::new());
    row("indexed", number(&jobs["succeeded"]), format!("{} faces found", number(&batch["faces"])));
    for state in ["rejected", "failed", "cancelled"] {
        if number(&jobs[state]) > 0 {
            row(state, number(&jobs[state]), problems(batch, state));
        }
    }
    println!("{table}");
    println!(
        "{}",
        json!({ "batch": id(batch)?, "items": batch["items"], "unchanged": batch["unchanged"], "jobs": jobs, "faces": batch["faces"] })
    );
    Ok(())
}

/// The codes of that state with their numbers.
fn problems(batch: &Value, state: &str) -> String {
    let all = batch["problems"].as_array().cloned().unwrap_or_default();
    let of_state = all.iter().filter(|p| p["state"] == state);
    of_state.map(|p| format!("{} {}", p["jobs"], p["code"].as_str().unwrap_or_default())).collect::<Vec<_>>().join(", ")
}

/// A line for every picture that the batch looked at, read page by page.
pub(super) async fn write(client: &Client, batch: &Value, file: &Path) -> anyhow::Result<()> {
    let writing = || format!("write the report {}", file.display());
    let mut out = BufWriter::new(File::create(file).with_context(writing)?);
    let is_csv = file.extension().is_some_and(|e| e == "csv");
    if is_csv {
        out.write_all(b"picture,state,faces,code,detail\n").with_context(writing)?;
    }
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("/v1/batches/{}/jobs?limit=500{cursor}", id(batch)?)).await?;
        for job in page["items"].as_array().into_iter().flatten() {
            let line = line(job);
            let text = if is_csv { csv(&line) } else { line.to_string() };
            writeln!(out, "{text}").with_context(writing)?;
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    out.flush().with_context(writing)
}

fn line(job: &Value) -> Value {
    let image = &job["image"];
    let picture = [&image["s3"], &image["file"], &image["upload_id"]].into_iter().find(|v| v.is_string());
    json!({
        "picture": picture,
        "state": job["state"],
        "faces": job["result"]["faces"].as_array().map(Vec::len),
        "code": job["problem"]["code"],
        "detail": job["problem"]["detail"],
    })
}

/// The values of a line as RFC 4180 has them.
fn csv(line: &Value) -> String {
    let field = |name: &str| match &line[name] {
        Value::String(text) if text.contains([',', '"', '\n', '\r']) => format!("\"{}\"", text.replace('"', "\"\"")),
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    ["picture", "state", "faces", "code", "detail"].map(field).join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_csv_is_quoted_where_it_must_be() {
        let job = json!({
            "state": "rejected", "image": { "file": "/a, b/\"c\".jpg" },
            "problem": { "code": "image_truncated", "detail": "cut" },
        });
        assert_eq!(csv(&line(&job)), "\"/a, b/\"\"c\"\".jpg\",rejected,,image_truncated,cut");
        let job = json!({ "state": "succeeded", "image": { "s3": "s3://b/k" }, "result": { "faces": [1, 2] } });
        assert_eq!(csv(&line(&job)), "s3://b/k,succeeded,2,,");
    }
}
