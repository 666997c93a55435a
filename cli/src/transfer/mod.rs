//! `face-id export` and `face-id import`: a collection's people and faces out of a server into a file, and back.

pub(crate) mod file;
mod report;
mod upload;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use shared::config::Config;
use shared::transfer::Header;

use self::file::Written;
use crate::child::interrupted;
use crate::client::{Client, Refused};
use crate::place::Place;

/// Longest time in which nothing comes from the server, or goes to it.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub(crate) struct ExportArgs {
    /// The file to write; `-` is the standard output. One that is there is replaced once the new one is whole.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The collection's name.
    #[arg(long, value_name = "NAME")]
    collection: String,
    #[command(flatten)]
    server: ServerArgs,
    /// Print the counts as one line of JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct ImportArgs {
    /// What `face-id export` wrote.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The collection's name; the one that it had where absent. It is made, with the file's pipeline and settings, where there
    /// is none.
    #[arg(long, value_name = "NAME")]
    collection: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    /// Print the counts as one line of JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct ServerArgs {
    /// A server that runs, http://host:port. Without it: the one that holds the data folder, or else one that is started
    /// for as long as it takes; with services, the one at server.bind.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Where the database of a server that is started lives.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl ServerArgs {
    /// The server to ask.
    pub(crate) async fn find(self, mut config: Config) -> anyhow::Result<Place> {
        if let Some(data_dir) = self.data_dir {
            config.data_dir = data_dir;
        }
        Place::find(&config, self.server.as_deref(), None).await
    }
}

/// Writes the file; where that breaks off, there is none.
pub(crate) async fn export(config: Config, args: ExportArgs) -> anyhow::Result<()> {
    let place = args.server.find(config).await?;
    let client = place.client()?;
    let written = tokio::select! {
        written = file::fetch(&client, &args.collection, &args.file) => written,
        () = interrupted() => Err(anyhow::anyhow!("interrupted; no file was written")),
    };
    let left = place.leave().await;
    let Written { counts, bytes } = written?;
    left?;
    // The standard output is the file's then.
    if args.file != Path::new("-") {
        report::exported(&args.file, counts, bytes, args.json);
    }
    Ok(())
}

/// Reads the whole file before anything is sent, so that a bad one changes nothing.
pub(crate) async fn import(config: Config, args: ImportArgs) -> anyhow::Result<()> {
    let path = args.file.clone();
    let header = tokio::task::spawn_blocking(move || file::check(&path)).await??;
    let collection = args.collection.unwrap_or_else(|| header.collection.name.clone());
    let place = args.server.find(config).await?;
    let client = place.client()?;
    let work = async {
        make_collection(&client, &collection, &header).await?;
        upload::send(&client, &collection, &args.file).await
    };
    let imported = tokio::select! {
        imported = work => imported,
        () = interrupted() => Err(anyhow::anyhow!("interrupted; run the same command again to go on")),
    };
    let left = place.leave().await;
    report::imported(&collection, &imported?, args.json);
    left
}

async fn make_collection(client: &Client, name: &str, header: &Header) -> anyhow::Result<()> {
    let of_file = &header.collection;
    let body = json!({ "name": name, "pipeline": of_file.pipeline, "settings": of_file.settings });
    match client.post("/v1/collections", &body).await {
        Ok(_) => Ok(()),
        Err(error) if error.downcast_ref::<Refused>().is_some_and(|r| r.code == "collection_exists") => {
            let known = client.get(&format!("/v1/collections/{name}")).await?;
            let pipeline = known["pipeline"].as_str().unwrap_or_default();
            anyhow::ensure!(
                pipeline == of_file.pipeline,
                "the file is of a collection with the pipeline {}, and {name} has {pipeline}; name another collection",
                of_file.pipeline
            );
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("make the collection {name}")),
    }
}
