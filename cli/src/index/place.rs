//! Where the work is done: by a server that runs, or by one that is started for it.

use std::fs::File;
use std::path::Path;

use anyhow::Context as _;
use shared::config::Config;

use crate::child::Server;

/// See the module.
pub(super) enum Place {
    Running(String),
    Started(Server),
}

impl Place {
    /// The server named, else the one of the settings, else a new one that may read `folder`.
    pub(super) async fn find(config: &Config, named: Option<&str>, folder: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(address) = named {
            return Ok(Self::Running(address.to_owned()));
        }
        if config.has_services() || is_served(&config.data_dir)? {
            return Ok(Self::Running(format!("http://{}", config.server.bind)));
        }
        let mut roots = config.import.roots.clone();
        roots.extend(folder.map(Path::to_owned));
        let roots: Vec<&str> = roots
            .iter()
            .map(|root| root.to_str().filter(|r| !r.contains(',')))
            .collect::<Option<_>>()
            .context("the folder's path is no text, or has a comma in it; rename it")?;
        let settings = [("FACE_ID_IMPORT__ROOTS", roots.join(","))];
        Ok(Self::Started(Server::on_folder(&config.data_dir, &settings).await?))
    }

    pub(super) fn address(&self) -> &str {
        match self {
            Self::Running(address) => address,
            Self::Started(server) => &server.address,
        }
    }

    /// Stops what was started.
    pub(super) async fn leave(self) -> anyhow::Result<()> {
        match self {
            Self::Running(_) => Ok(()),
            Self::Started(server) => server.stop().await,
        }
    }
}

/// Whether a server holds the data folder.
fn is_served(data_dir: &Path) -> anyhow::Result<bool> {
    let path = data_dir.join("lock");
    match File::open(&path) {
        Ok(file) => Ok(matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("look at {}", path.display())),
    }
}
