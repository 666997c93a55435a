//! `face-id models template`: entries of models whose weights the operator brings.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use comfy_table::{Table, presets};
use shared::catalogue::{Pipeline, Template, templates};

#[derive(clap::Args)]
pub(crate) struct TemplateArgs {
    /// Which one; all are listed where absent.
    #[arg(requires = "weights")]
    name: Option<String>,
    /// The recognizer's weights, an ONNX file.
    #[arg(long, value_name = "FILE", requires = "name")]
    weights: Option<PathBuf>,
    /// Write the entry to this file, which must not be there yet; it is printed where absent.
    #[arg(long, value_name = "FILE", requires = "name")]
    output: Option<PathBuf>,
}

/// Lists the templates, or prints the entry that one of them makes with a file.
#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(super) fn run(args: &TemplateArgs) -> anyhow::Result<()> {
    if let (Some(name), Some(weights)) = (&args.name, &args.weights) {
        let template = templates().find(|template| template.name == name);
        let template = template.with_context(|| format!("no template {name}; `face-id models template` lists them"))?;
        let text = entry(template, weights)?;
        match &args.output {
            Some(output) => write_new(output, &text).with_context(|| format!("write {}", output.display()))?,
            None => print!("{text}"),
        }
        return Ok(());
    }
    println!("{}", table()?);
    println!(
        "`face-id models template NAME --weights FILE.onnx --output NAME.toml` makes an entry, which `face-id models add NAME.toml`"
    );
    println!(
        "registers with a server, and `models.catalogue_dir` takes for good; the file belongs below FACE_ID_ASSETS_DIR/models."
    );
    Ok(())
}

fn write_new(file: &Path, text: &str) -> std::io::Result<()> {
    std::fs::File::create_new(file)?.write_all(text.as_bytes())
}

/// The entry with the file's name, checksum and length.
fn entry(template: Template, weights: &PathBuf) -> anyhow::Result<String> {
    let bytes = std::fs::read(weights).with_context(|| format!("read {}", weights.display()))?;
    let name = weights.file_name().and_then(|name| name.to_str()).context("the file's name is no text")?;
    let known = template.pipeline()?.recognizer.file.name;
    let text = template.filled(&shared::digest::sha256_hex(&bytes), bytes.len() as u64);
    let text = text.replace(&format!("name = {known:?}"), &format!("name = {name:?}"));
    Pipeline::parse(template.name, &text)?;
    Ok(text)
}

fn table() -> anyhow::Result<Table> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["template", "what it is", "input", "use", "licence"]);
    for template in templates() {
        let pipeline = template.pipeline()?;
        let [width, height] = pipeline.alignment.size();
        let file = &pipeline.recognizer.file;
        let row = [
            template.name.to_owned(),
            pipeline.description.clone(),
            format!("{width}x{height}"),
            file.allowed_use().to_string(),
            file.licence.clone(),
        ];
        table.add_row(row);
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_makes_an_entry_of_its_own_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.onnx");
        std::fs::write(&file, "weights").unwrap();
        let template = templates().find(|template| template.name == "mtcnn-sphereface20").unwrap();
        let pipeline = Pipeline::parse("x", &entry(template, &file).unwrap()).unwrap();
        assert_eq!((pipeline.recognizer.file.name.as_str(), pipeline.recognizer.file.size_bytes), ("mine.onnx", 7));
        assert!(entry(template, &folder.path().join("nowhere.onnx")).unwrap_err().to_string().contains("nowhere.onnx"));
        let shown = table().unwrap().to_string();
        assert!(templates().all(|template| shown.contains(template.name)), "{shown}");
    }
}
