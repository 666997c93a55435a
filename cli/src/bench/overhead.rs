//! What a bulk job costs beside its analysis: the processor time of our own processes for a job, less that of the bare loop
//! for the same picture. The pipeline is `models/tiny`, whose models take little, on pictures of one face each that has to
//! be recorded.

use std::path::Path;

use anyhow::Context as _;
use shared::catalogue::Catalogue;
use shared::config::Config;
use worker::assets::Assets;

use super::bare::BareLoop;
use super::library::Library;
use super::setting::{Setting, say};
use super::site::Site;
use super::synthetic;

const PIPELINE: &str = "tiny";

/// Milliseconds of processor time a job.
pub(super) struct Overhead {
    pub(super) mode: &'static str,
    /// Of our own processes, without the analysis.
    pub(super) own_ms: f64,
    /// Of a job whose picture is known already: fetched, hashed, looked up and recorded.
    pub(super) known_ms: f64,
    /// The servers', each by itself; none where they are not processes of this machine.
    pub(super) servers_ms: Option<Vec<(&'static str, f64)>>,
}

/// One of several rounds, in milliseconds of processor time a job.
struct Round {
    job: f64,
    bare: f64,
    known: f64,
    servers: Option<Vec<(&'static str, f64)>>,
}

/// Measures with so many pictures, on services where `config` names them.
pub(super) async fn measure(setting: &Setting, config: &Config, images: usize) -> anyhow::Result<Overhead> {
    let folder = tempfile::tempdir()?;
    synthetic::draw(folder.path(), images).await?;
    let models = setting.repository.join("models/tiny");
    let catalogue = Catalogue::load(Some(&models)).context("read models/tiny; run this from the repository")?;
    let assets = Assets { assets_dir: Some(setting.repository.clone()), ..setting.assets.clone() };
    let bare = BareLoop::load(config, &catalogue, &assets, PIPELINE).await?;
    let site = Site::open(config, Library::open(config, folder.path(), images).await?, &settings(&setting.repository)?)
        .await?;
    say(&format!("{images} jobs with the tiny models, {}", site.mode()));
    let measured = rounds(&site, &bare, setting.rounds).await;
    let mode = site.mode();
    let mut rounds = site.close(measured).await?;
    rounds.sort_by(|a, b| (a.job - a.bare).total_cmp(&(b.job - b.bare)));
    let median = rounds.swap_remove(rounds.len() / 2);
    Ok(Overhead { mode, own_ms: median.job - median.bare, known_ms: median.known, servers_ms: median.servers })
}

async fn rounds(site: &Site, bare: &BareLoop, rounds: usize) -> anyhow::Result<Vec<Round>> {
    site.warm_up(PIPELINE).await?;
    let pictures = &site.library.pictures;
    bare.run(&pictures[..pictures.len().min(40)]).await?;
    let mut measured = Vec::new();
    for _ in 0..rounds {
        let alone = bare.run(pictures).await?;
        site.collection("bench-overhead", PIPELINE).await?;
        let new = site.index_into("bench-overhead").await?;
        let known = site.index_into("bench-overhead").await?;
        site.client.delete("/v1/collections/bench-overhead").await?;
        for took in [&alone, &new.took] {
            anyhow::ensure!(took.faces == pictures.len(), "{} faces on {} pictures", took.faces, pictures.len());
        }
        anyhow::ensure!(known.took.faces == 0, "{} faces were new the second time", known.took.faces);
        let a_job = |d: std::time::Duration| d.as_secs_f64() * 1e3 / pictures.len() as f64;
        measured.push(Round {
            job: new.took.cpu_ms(),
            bare: alone.cpu_ms(),
            known: known.took.cpu_ms(),
            servers: new.servers.map(|used| used.into_iter().map(|(name, d)| (name, a_job(d))).collect()),
        });
    }
    Ok(measured)
}

/// A server with the tiny models alone.
fn settings(repository: &Path) -> anyhow::Result<Vec<(&'static str, String)>> {
    let repository = std::path::absolute(repository)?;
    let text = |path: &Path| path.to_str().map(str::to_owned).context("the repository's path is no text");
    Ok(vec![
        ("FACE_ID_ASSETS_DIR", text(&repository)?),
        ("FACE_ID_MODELS__CATALOGUE_DIR", text(&repository.join("models/tiny"))?),
        ("FACE_ID_MODELS__DEFAULT_PIPELINE", PIPELINE.to_owned()),
        ("FACE_ID_WORKER__PIPELINES", PIPELINE.to_owned()),
    ])
}
