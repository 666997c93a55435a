//! What became of a batch: a table for the reader, and a file with a line for every picture.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::clusters::Unknown;
use super::id;
use crate::client::Client;

/// The summary, with what is known of the collection's unknown faces.
#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(super) fn print(batch: &Value, collection: &str, unknown: Option<&Unknown>) -> anyhow::Result<()> {
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
    if number(&batch["moved"]) > 0 {
        row("moved", number(&batch["moved"]), "from places that are gone".to_owned());
    }
    if number(&batch["gone"]) > 0 {
        row("gone", number(&batch["gone"]), gone_note(batch).to_owned());
    }
    if let Some(unknown) = unknown {
        row("faces nobody was named for", unknown.faces, in_clusters(unknown));
    }
    println!("{table}");
    if unknown.is_some_and(|unknown| unknown.clusters > 0) {
        println!(
            "GET /v1/collections/{collection}/clusters of a server (face-id serve) lists the clusters, largest first"
        );
    }
    if let Some(problem) = batch["problem"]["detail"].as_str() {
        println!("{problem}");
    }
    println!(
        "{}",
        json!({
            "batch": id(batch)?, "items": batch["items"], "unchanged": batch["unchanged"], "jobs": jobs,
            "faces": batch["faces"], "moved": batch["moved"], "gone": batch["gone"], "problem": batch["problem"],
            "unknown_faces": unknown.map(|u| u.faces), "clusters": unknown.map(|u| u.clusters),
            "pending": unknown.map(|u| u.pending),
        })
    );
    Ok(())
}

fn in_clusters(unknown: &Unknown) -> String {
    match unknown.pending {
        _ if !unknown.is_clustering => "the collection's settings want no clusters".to_owned(),
        0 => format!("in {} clusters of two or more, and alone", unknown.clusters),
        pending => format!("in {} clusters so far, {pending} wait; a running server goes on", unknown.clusters),
    }
}

/// What became of pictures that are gone.
fn gone_note(batch: &Value) -> &'static str {
    match batch["problem"]["code"].as_str() {
        Some("gone_named") => "deleted with their faces, but for those with a face that you named or locked",
        code if batch["on_gone"] == "delete" && code != Some("gone_kept") => "deleted with their faces",
        _ => "kept and marked; --delete-gone deletes them",
    }
}

/// The codes of that state with their numbers.
fn problems(batch: &Value, state: &str) -> String {
    let all = batch["problems"].as_array().cloned().unwrap_or_default();
    let of_state = all.iter().filter(|p| p["state"] == state);
    of_state.map(|p| format!("{} {}", p["jobs"], p["code"].as_str().unwrap_or_default())).collect::<Vec<_>>().join(", ")
}

/// A file with a line for every picture that was looked at.
pub(super) struct Report {
    path: PathBuf,
    out: BufWriter<File>,
    is_csv: bool,
}

impl Report {
    /// Makes the file.
    pub(super) fn begin(path: &Path) -> anyhow::Result<Self> {
        let ending = path.extension().and_then(|e| e.to_str());
        let is_csv = ending == Some("csv");
        anyhow::ensure!(is_csv || ending == Some("json"), "{}: the name must end in .csv or .json", path.display());
        let file = File::create(path).with_context(|| format!("make the report {}", path.display()))?;
        let mut report = Self { path: path.to_owned(), out: BufWriter::new(file), is_csv };
        if is_csv {
            report.line("picture,state,faces,code,detail")?;
        }
        Ok(report)
    }

    /// Adds the pictures of a batch, read page by page.
    pub(super) async fn add(&mut self, client: &Client, batch: &Value) -> anyhow::Result<()> {
        let mut cursor = String::new();
        loop {
            let page = client.get(&format!("/v1/batches/{}/jobs?limit=500{cursor}", id(batch)?)).await?;
            for job in page["items"].as_array().into_iter().flatten() {
                let line = line(job);
                self.line(&if self.is_csv { csv(&line) } else { line.to_string() })?;
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        self.out.flush().with_context(|| format!("write the report {}", self.path.display()))
    }

    fn line(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.out, "{line}").with_context(|| format!("write the report {}", self.path.display()))
    }
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
