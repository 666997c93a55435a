//! `face-id bench index`: one library, one pipeline. Indexing beside the bare loop, a picture that is known, and what
//! identifying costs meanwhile; on services where the settings name them, else embedded.

use std::path::PathBuf;

use comfy_table::{Table, presets};
use serde_json::json;
use shared::catalogue::Catalogue;
use shared::config::Config;
use worker::assets::Assets;

use super::bare::BareLoop;
use super::interactive::{self, Interactive};
use super::library::Library;
use super::site::{Batch, Site};
use super::usage::Took;

#[derive(clap::Args)]
pub(crate) struct IndexArgs {
    /// A folder of pictures.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Pictures at most.
    #[arg(long, default_value_t = 2000)]
    limit: usize,
    /// The pipeline; the settings' default where absent.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Identify requests, one after the other, without and with a batch beside them.
    #[arg(long, default_value_t = 200)]
    identifies: usize,
}

/// All that is measured.
struct Measured {
    bare: Took,
    /// Pictures that nobody knew.
    new: Batch,
    /// The same bytes again: fetched, looked up and recorded, not analysed.
    known: Batch,
    interactive: Interactive,
}

pub(crate) async fn run(config: &Config, args: &IndexArgs) -> anyhow::Result<()> {
    let pipeline = args.model.as_ref().unwrap_or(&config.models.default_pipeline);
    let catalogue = Catalogue::load(config.models.catalogue_dir())?;
    let bare = BareLoop::load(config, &catalogue, &Assets::configured(config), pipeline).await?;
    let site = Site::open(config, Library::open(config, &args.images, args.limit).await?, &[]).await?;
    let mode = site.mode();
    let measured = measure(&site, &bare, pipeline, args.identifies).await;
    print(mode, pipeline, &site.close(measured).await?);
    Ok(())
}

async fn measure(site: &Site, bare: &BareLoop, pipeline: &str, identifies: usize) -> anyhow::Result<Measured> {
    site.warm_up(pipeline).await?;
    let took = bare.run(&site.library.pictures).await?;
    site.collection("bench-index", pipeline).await?;
    let new = site.index_into("bench-index").await?;
    let known = site.index_into("bench-index").await?;
    site.client.delete("/v1/collections/bench-index").await?;
    let interactive = interactive::measure(site, bare, pipeline, identifies).await?;
    Ok(Measured { bare: took, new, known, interactive })
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
fn print(mode: &str, pipeline: &str, measured: &Measured) {
    let Measured { bare, new, known, interactive } = measured;
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["what", "figure", "ratio"]);
    let mut row = |what: &str, figure: String, ratio: Option<f64>| {
        table.add_row([what.to_owned(), figure, ratio.map(|r| format!("{r:.3}")).unwrap_or_default()]);
    };
    let figure = |took: &Took| {
        format!("{:.1} images/s, {} faces, {:.2} ms of processor each", took.rate(), took.faces, took.cpu_ms())
    };
    let index_vs_runtime = new.took.rate() / bare.rate();
    row("bare loop", figure(bare), None);
    row(&format!("index, {mode}"), figure(&new.took), Some(index_vs_runtime));
    row("a picture that is known", format!("{:.3} ms of processor", known.took.cpu_ms()), None);
    row("one analysis alone, p50 / p99", interactive.bare.shown(), None);
    row("identify, idle, p50 / p99", interactive.idle.shown(), Some(interactive.idle_vs_bare()));
    row("identify beside a batch, p50 / p99", interactive.flood.shown(), Some(interactive.flood_vs_idle()));
    let peak = new.samples.iter().map(|sample| sample.resident).max().unwrap_or_default();
    row("memory", format!("{} MiB at most", peak >> 20), None);
    let figures = json!({
        "bench": "index", "mode": mode, "pipeline": pipeline, "images": bare.images,
        "index_vs_runtime": index_vs_runtime, "bare_images_per_s": bare.rate(), "index_images_per_s": new.took.rate(),
        "known_ms_per_job": known.took.cpu_ms(), "identify_idle_p50_vs_runtime": interactive.idle_vs_bare(),
        "identify_p99_flood_vs_idle": interactive.flood_vs_idle(),
    });
    println!("{table}\n{figures}");
}
