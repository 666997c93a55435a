//! `face-id models`: which pipelines there are, and their weights.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use comfy_table::{Table, presets};
use indicatif::ProgressBar;
use shared::catalogue::{Catalogue, Pipeline};
use shared::config::Config;
use worker::assets::{Assets, sha256_of};
use worker::inference::{Engine, EngineOptions};

const SPINNER_TICK: Duration = Duration::from_millis(100);

#[derive(clap::Subcommand)]
pub(crate) enum ModelsCommand {
    /// Show all pipelines, their licences, and where their weights lie.
    List,
    /// Fetch a pipeline's weights into the cache.
    Pull {
        /// Its name; see `face-id models list`.
        name: String,
    },
    /// Check the weights' checksums, load them and run them once.
    Verify {
        /// One pipeline; all whose weights are there where absent.
        name: Option<String>,
    },
}

pub(crate) async fn run(config: &Config, command: ModelsCommand) -> anyhow::Result<()> {
    let catalogue = Catalogue::load(config.models.catalogue_dir())?;
    match command {
        ModelsCommand::List => list(config, &catalogue),
        ModelsCommand::Pull { name } => pull(config, catalogue.pipeline(&name)?).await,
        ModelsCommand::Verify { name: Some(name) } => verify(config, catalogue.pipeline(&name)?).await,
        ModelsCommand::Verify { name: None } => {
            let mut checked = 0;
            for pipeline in catalogue.pipelines() {
                let there = pipeline.files().into_iter().map(|f| Assets::configured(config).find(f)).collect::<Result<
                    Vec<_>,
                    _,
                >>(
                )?;
                if there.iter().all(Option::is_some) && Assets::configured(config).check_licence(pipeline).is_ok() {
                    verify(config, pipeline).await?;
                    checked += 1;
                }
            }
            anyhow::ensure!(checked > 0, "no pipeline has all its weights here; run `face-id models pull NAME`");
            Ok(())
        }
    }
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
fn list(config: &Config, catalogue: &Catalogue) -> anyhow::Result<()> {
    let assets = Assets::configured(config);
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["pipeline", "file", "use", "found"]);
    for pipeline in catalogue.pipelines() {
        for (n, file) in pipeline.files().into_iter().enumerate() {
            let found = assets.find(file)?.map_or_else(|| "missing".to_owned(), |p| p.display().to_string());
            let name = if n == 0 { pipeline.name.as_str() } else { "" };
            table.add_row([name, &file.name, &file.allowed_use.to_string(), &found]);
        }
    }
    println!("{table}");
    let licences: BTreeMap<_, _> =
        catalogue.pipelines().flat_map(Pipeline::files).map(|f| (&f.name, &f.licence)).collect();
    for (file, licence) in licences {
        println!("licence of {file}: {licence}");
    }
    println!("default pipeline: {}", config.models.default_pipeline);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
async fn pull(config: &Config, pipeline: &Pipeline) -> anyhow::Result<()> {
    let mut assets = Assets::configured(config);
    assets.allow_download = true;
    for file in pipeline.files() {
        let spinner = ProgressBar::new_spinner().with_message(format!("{} ({} bytes)", file.name, file.size_bytes));
        spinner.enable_steady_tick(SPINNER_TICK);
        let found = assets.weights(pipeline, file).await;
        spinner.finish_and_clear();
        println!("{}  {}  {}", file.sha256, found?.display(), file.licence);
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
async fn verify(config: &Config, pipeline: &Pipeline) -> anyhow::Result<()> {
    let assets = Assets::configured(config);
    for file in pipeline.files() {
        let path = assets
            .find(file)?
            .with_context(|| format!("{} is missing; run `face-id models pull {}`", file.name, pipeline.name))?;
        let found = sha256_of(&path)?;
        anyhow::ensure!(
            found == file.sha256,
            "{} has sha256 {found}, the catalogue says {}",
            path.display(),
            file.sha256
        );
        println!("{found}  {}", path.display());
    }
    Engine::load(pipeline, &assets, EngineOptions::for_cpu(1)).await?;
    println!("{}: both models load and run", pipeline.name);
    Ok(())
}
