//! `face-id models add`: a catalogue entry is registered with a server that runs, over HTTP.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use comfy_table::{Table, presets};
use serde_json::Value;
use shared::catalogue::{Entry, Origin};
use shared::config::Config;

use crate::place::Place;

#[derive(clap::Args)]
pub(crate) struct AddArgs {
    /// The entry: a file as models/README.md describes it.
    #[arg(value_name = "FILE.toml")]
    file: PathBuf,
    /// A server that runs, http://host:port. Without it: the one that holds the data folder, or else one that is started
    /// for as long as it takes; with services, the one at server.bind.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Where the database and the pictures of a server that is started live.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Registers it, and shows what is to be known of it before a collection goes by it.
pub(super) async fn run(config: &Config, args: AddArgs) -> anyhow::Result<()> {
    let entry = read(&args.file)?;
    let mut config = config.clone();
    config.data_dir = args.data_dir.unwrap_or(config.data_dir);
    let place = Place::find(&config, args.server.as_deref(), None).await?;
    let added = async { place.client()?.post_text("/v1/models", "application/toml", entry.text).await }.await;
    let left = place.leave().await;
    print(&added.context("register the model")?, &args.file);
    left
}

/// An entry of a file, checked as a server checks it.
pub(super) fn read(file: &Path) -> anyhow::Result<Entry> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(Entry::parse(Origin::Added, &file.display().to_string(), text)?)
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
fn print(model: &Value, file: &Path) {
    println!("{}", terms(model));
    let text = |name: &str| model[name].as_str().unwrap_or_default().to_owned();
    match model["calibration"]["measured_on"].as_str() {
        Some(measured_on) => println!("thresholds were measured on: {measured_on}"),
        None => println!("nobody measured its thresholds: a collection that goes by it needs match_cosine"),
    }
    println!(
        "{} is registered. Its weights have to lie where each worker looks (`face-id models pull {}` fetches them there)",
        text("name"),
        file.display()
    );
    println!("{model}");
}

/// The files of a model, or of a plan, with what their licences allow, for people.
pub(crate) fn terms(model: &Value) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["file", "use", "licence"]);
    for file in model["files"].as_array().into_iter().flatten() {
        let text = |name: &str| file[name].as_str().unwrap_or_default().to_owned();
        table.add_row([text("name"), allowed(&text("use"), &model["licence_accepted"]), text("licence")]);
    }
    table
}

fn allowed(allowed_use: &str, accepted: &Value) -> String {
    match (allowed_use, accepted.as_bool()) {
        ("permissive", _) => "any use".to_owned(),
        (restricted, accepted) => {
            let restricted = if restricted == "none" { "no licence stated" } else { restricted };
            let accepted = if accepted == Some(true) { "accepted" } else { "not accepted" };
            format!("{restricted}, {accepted} by the server's operator")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn restricted_files_say_whether_that_is_accepted() {
        let file = |name: &str, allowed: &str| json!({ "name": name, "use": allowed, "licence": "L" });
        let files = [file("a.onnx", "permissive"), file("b.onnx", "non-commercial")];
        let shown = terms(&json!({ "files": files, "licence_accepted": false })).to_string();
        assert!(shown.contains("any use") && shown.contains("non-commercial, not accepted"), "{shown}");
        let shown = terms(&json!({ "files": files, "licence_accepted": true })).to_string();
        assert!(shown.contains("non-commercial, accepted"), "{shown}");
    }
}
