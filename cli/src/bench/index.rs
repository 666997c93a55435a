//! Indexing beside the bare loop: the same pictures on the same cores, once decoded, detected and embedded and nothing else,
//! once as a batch of a server, from the request to the last result; and what identifying costs meanwhile.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use shared::catalogue::Catalogue;
use shared::config::Config;
use tokio::task::JoinSet;
use worker::analysis::analyse;
use worker::assets::Assets;
use worker::inference::{Engine, EngineOptions};
use worker::vision::decode::DecodeLimits;

use super::library::Library;
use super::usage;
use crate::child::Server;
use crate::client::Client;

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

/// Where new pictures go, and where those go that are indexed beside other requests. Made anew, and deleted at the end.
const COLLECTIONS: [&str; 2] = ["bench-index", "bench-flood"];
/// How often the batch is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a batch took.
struct Batch {
    took: Duration,
    cpu: Duration,
    faces: usize,
    /// Bytes of memory at each look.
    memory: Vec<u64>,
}

pub(crate) async fn run(config: &Config, args: &IndexArgs) -> anyhow::Result<()> {
    let library = Library::open(config, &args.images, args.limit).await?;
    let images = library.pictures.len();
    let pipeline = args.model.clone().unwrap_or_else(|| config.models.default_pipeline.clone());
    let bare = bare_loop(config, &pipeline, &library.pictures).await?;
    let server = Server::for_a_while(config, &library.settings(config)?).await?;
    let client = Client::new(&server.address)?;
    let measured = measure(&client, &server, &library, args, &pipeline).await;
    for collection in COLLECTIONS {
        client.delete(&format!("/v1/collections/{collection}")).await?;
    }
    let stopped = server.stop().await;
    library.close(config).await?;
    let Measured { new, known, idle, flood } = measured?;
    stopped?;
    let rate = |took: Duration| images as f64 / took.as_secs_f64();
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let mode = if config.has_services() { "services" } else { "embedded" };

    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["what", "figure", "ratio"]);
    let mut row = |what: &str, figure: String, ratio: Option<f64>| {
        table.add_row([what.to_owned(), figure, ratio.map(|r| format!("{r:.3}")).unwrap_or_default()]);
    };
    let index_vs_runtime = rate(new.took) / rate(bare.took);
    let a_picture = |cpu: Duration| ms(cpu) / images as f64;
    let figure = |took, faces, cpu| {
        format!("{:.1} images/s, {faces} faces, {:.2} ms of processor each", rate(took), a_picture(cpu))
    };
    row("bare loop", figure(bare.took, bare.faces, bare.cpu), None);
    row(&format!("index, {mode}"), figure(new.took, new.faces, new.cpu), Some(index_vs_runtime));
    let overhead = a_picture(known.cpu);
    row("a job without analysis", format!("{overhead:.3} ms of processor"), None);
    row("one analysis alone, median", format!("{:.1} ms", ms(bare.alone)), None);
    let idle_p50 = ms(idle.0) / ms(bare.alone);
    row("identify, idle, p50 / p99", format!("{:.1} / {:.1} ms", ms(idle.0), ms(idle.1)), Some(idle_p50));
    let flood_vs_idle = flood.1.as_secs_f64() / idle.1.as_secs_f64();
    row(
        "identify beside a batch, p50 / p99",
        format!("{:.1} / {:.1} ms", ms(flood.0), ms(flood.1)),
        Some(flood_vs_idle),
    );
    let memory = last_vs_second_quarter(&new.memory);
    let peak = new.memory.iter().max().copied().unwrap_or_default();
    row("memory, last against second quarter", format!("{} MiB at most", peak >> 20), memory);
    print(
        &table,
        &json!({
            "mode": mode, "pipeline": pipeline, "images": images, "index_vs_runtime": index_vs_runtime,
            "bare_images_per_s": rate(bare.took), "index_images_per_s": rate(new.took), "overhead_ms_per_job": overhead,
            "identify_idle_p50_vs_runtime": idle_p50, "identify_p99_flood_vs_idle": flood_vs_idle, "rss_last_vs_second_quarter": memory,
        }),
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
fn print(table: &Table, figures: &Value) {
    println!("{table}\n{figures}");
}

/// What the bare loop took.
struct Bare {
    took: Duration,
    cpu: Duration,
    faces: usize,
    /// One picture with the machine to itself, the median.
    alone: Duration,
}

async fn bare_loop(config: &Config, pipeline: &str, pictures: &[PathBuf]) -> anyhow::Result<Bare> {
    let catalogue = Catalogue::load(config.models.catalogue_dir())?;
    let options = EngineOptions::for_cpu(config.worker.sessions());
    let engine = Engine::load(catalogue.pipeline(pipeline)?, &Assets::configured(config), options).await?;
    let limits = DecodeLimits {
        max_bytes: config.vision.max_image_bytes,
        max_pixels: config.vision.max_image_pixels,
        max_side: config.vision.max_image_side,
    };
    let one = |path: PathBuf| {
        let engine = engine.clone();
        async move {
            let bytes = tokio::fs::read(&path).await.with_context(|| format!("read {}", path.display()))?;
            // A picture that cannot be decoded has no faces.
            Ok::<_, anyhow::Error>(analyse(&engine, bytes, limits).await.map_or(0, |found| found.faces.len()))
        }
    };
    let mut alone = Vec::new();
    for path in pictures.iter().step_by(pictures.len().div_ceil(50)) {
        let began = Instant::now();
        one(path.clone()).await?;
        alone.push(began.elapsed());
    }
    let (mut running, mut waiting) = (JoinSet::new(), pictures.iter().cloned());
    let own = [std::process::id()];
    let (began, cpu, mut faces) = (Instant::now(), usage::cpu(&own), 0);
    loop {
        while running.len() < config.worker.concurrency()
            && let Some(path) = waiting.next()
        {
            running.spawn(one(path));
        }
        let Some(found) = running.join_next().await else { break };
        faces += found??;
    }
    let cpu = usage::cpu(&own).saturating_sub(cpu);
    Ok(Bare { took: began.elapsed(), cpu, faces, alone: percentile(&mut alone, 50) })
}

struct Measured {
    /// Pictures that nobody knew.
    new: Batch,
    /// The same bytes again: fetched, looked up and recorded, not analysed.
    known: Batch,
    idle: (Duration, Duration),
    flood: (Duration, Duration),
}

async fn measure(
    client: &Client,
    server: &Server,
    library: &Library,
    args: &IndexArgs,
    pipeline: &str,
) -> anyhow::Result<Measured> {
    for collection in COLLECTIONS {
        client.delete(&format!("/v1/collections/{collection}")).await?;
        client.post("/v1/collections", &json!({ "name": collection, "pipeline": pipeline })).await?;
    }
    let pids = server.pids();
    let manifest = library.manifest();
    let new = followed(client, &pids, &begun(client, "bench-index", &manifest).await?).await?;
    let known = followed(client, &pids, &begun(client, "bench-index", &manifest).await?).await?;
    let probe = &library.pictures[library.pictures.len() / 2];
    let idle = identified(client, probe, args.identifies).await?;
    let batch = begun(client, "bench-flood", &manifest).await?;
    let beside = identified(client, probe, args.identifies).await?;
    let left = client.get(&format!("/v1/batches/{batch}")).await?;
    anyhow::ensure!(left["finished_at"].is_null(), "the batch ended before the requests beside it; take more pictures");
    client.post(&format!("/v1/batches/{batch}/cancel"), &json!({})).await?;
    followed(client, &pids, &batch).await?;
    Ok(Measured { new, known, idle, flood: beside })
}

/// The id of a batch that has just begun.
async fn begun(client: &Client, collection: &str, manifest: &str) -> anyhow::Result<String> {
    let path = format!("/v1/batches?collection={collection}&kind=index");
    let batch = client.post_text(&path, "application/x-ndjson", manifest.to_owned()).await?;
    Ok(batch["id"].as_str().context("the server's batch has no id")?.to_owned())
}

/// Waits for the batch's end.
async fn followed(client: &Client, pids: &[u32], batch: &str) -> anyhow::Result<Batch> {
    let (began, cpu) = (Instant::now(), usage::cpu(pids));
    let mut memory = Vec::new();
    loop {
        let now = client.get(&format!("/v1/batches/{batch}")).await?;
        memory.push(usage::resident(pids));
        if !now["finished_at"].is_null() {
            let failed = now["jobs"]["failed"].as_i64().unwrap_or_default();
            anyhow::ensure!(failed == 0, "{failed} jobs of batch {batch} failed: {}", now["problems"]);
            let faces = usize::try_from(now["faces"].as_u64().unwrap_or_default())?;
            return Ok(Batch { took: began.elapsed(), cpu: usage::cpu(pids).saturating_sub(cpu), faces, memory });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Median and 99th percentile of the time from a request to its answer.
async fn identified(client: &Client, picture: &PathBuf, times: usize) -> anyhow::Result<(Duration, Duration)> {
    let bytes = Arc::new(tokio::fs::read(picture).await?);
    let upload = client.post_bytes("/v1/collections/bench-index/uploads", bytes.to_vec()).await?;
    let mut took = Vec::with_capacity(times);
    for _ in 0..times.max(1) {
        let began = Instant::now();
        let body = json!({ "image": { "upload_id": upload["id"] } });
        let job = client.post("/v1/collections/bench-index/identify", &body).await?;
        let id = job["id"].as_str().context("the server's job has no id")?;
        let job = client.get_when_ended(&format!("/v1/jobs/{id}"), 30).await?;
        anyhow::ensure!(job["state"] == "succeeded", "an identify has not succeeded: {job}");
        took.push(began.elapsed());
    }
    Ok((percentile(&mut took, 50), percentile(&mut took, 99)))
}

fn percentile(values: &mut [Duration], percent: usize) -> Duration {
    values.sort_unstable();
    let at = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(at).copied().unwrap_or_default()
}

/// The mean of the last quarter over that of the second.
fn last_vs_second_quarter(samples: &[u64]) -> Option<f64> {
    let quarter = samples.len() / 4;
    let mean = |part: &[u64]| part.iter().sum::<u64>() as f64 / part.len() as f64;
    (quarter > 0).then(|| mean(&samples[samples.len() - quarter..]) / mean(&samples[quarter..2 * quarter]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_quarters() {
        let mut values: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut values, 50).as_millis(), 50);
        assert_eq!(percentile(&mut values, 99).as_millis(), 99);
        assert_eq!(percentile(&mut values[..1], 99).as_millis(), 1);
        assert_eq!(last_vs_second_quarter(&[9, 2, 7, 3]), Some(1.5));
        assert_eq!(last_vs_second_quarter(&[1, 2]), None);
    }
}
