//! Entries for anti-spoofing, which are no pipelines.

use shared::catalogue::{AntiSpoofing, Catalogue, CatalogueError};
use shared::config::Config;
use worker::assets::Assets;
use worker::inference::EngineOptions;
use worker::liveness::LiveNetworks;

/// The entry for anti-spoofing of that name; `None` where a pipeline is called that, or nothing is.
pub(super) fn entry(
    config: &Config,
    catalogue: &Catalogue,
    name: &str,
) -> Result<Option<AntiSpoofing>, CatalogueError> {
    if catalogue.find(name).is_some() {
        return Ok(None);
    }
    match AntiSpoofing::load(config.models.catalogue_dir(), name) {
        Ok(entry) => Ok(Some(entry)),
        Err(CatalogueError::Unknown { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(super) async fn pull(config: &Config, entry: &AntiSpoofing) -> anyhow::Result<()> {
    let assets = Assets { allow_download: true, ..Assets::configured(config) };
    for file in entry.files() {
        let path = assets.weights_of(&entry.name, file).await?;
        println!("{}  {}  {}", file.sha256, path.display(), file.licence);
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(super) async fn verify(config: &Config, entry: AntiSpoofing) -> anyhow::Result<()> {
    let name = entry.name.clone();
    let assets = Assets { allow_download: false, ..Assets::configured(config) };
    for file in entry.files() {
        let path = assets.weights_of(&name, file).await?;
        println!("{}  {}", file.sha256, path.display());
    }
    LiveNetworks::load(entry, &assets, &EngineOptions::for_cpu(1)).await?;
    println!("{name}: all networks load");
    Ok(())
}
