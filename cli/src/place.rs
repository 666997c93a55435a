//! Where the work is done: by a server that runs, or by one that is started for it.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use shared::config::{Config, Secret};

use crate::child::Server;
use crate::client::Client;
use crate::keys::OwnKey;

/// Longest time a server may take to start or to stop.
const SERVER_TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// See the module.
pub(crate) enum Place {
    /// With the key that the command was given.
    Running(String, Option<Secret>),
    /// On a data folder that this command can write to, so that it can make a key too.
    Held(String, Option<OwnKey>),
    Started(Server),
}

impl Place {
    /// The server named, else the one of the settings, else a new one that may read `folder`.
    pub(crate) async fn find(config: &Config, named: Option<&str>, folder: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(address) = named {
            return Ok(Self::Running(address.to_owned(), config.api_key.clone()));
        }
        if config.has_services() {
            return Ok(Self::Running(format!("http://{}", config.server.bind), config.api_key.clone()));
        }
        if let Some(address) = served(&config.data_dir).await? {
            return Ok(match &config.api_key {
                Some(key) => Self::Running(address, Some(key.clone())),
                None => Self::Held(address, OwnKey::where_needed(config).await?),
            });
        }
        let mut roots = config.import.roots.clone();
        roots.extend(folder.map(Path::to_owned));
        let roots: Vec<&str> = roots
            .iter()
            .map(|root| root.to_str().filter(|r| !r.contains(',')))
            .collect::<Option<_>>()
            .context("the folder's path is no text, or has a comma in it; rename it")?;
        let settings = [("FACE_ID_IMPORT__ROOTS", roots.join(","))];
        Ok(Self::Started(Server::on_folder(config, &settings).await?))
    }

    /// A client of the server.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        match self {
            Self::Running(address, key) => Client::new(address, key.as_ref()),
            Self::Held(address, key) => Client::new(address, key.as_ref().map(OwnKey::token)),
            Self::Started(server) => server.client(),
        }
    }

    /// Stops what was started, and forgets what was made.
    pub(crate) async fn leave(self) -> anyhow::Result<()> {
        match self {
            Self::Running(..) | Self::Held(_, None) => Ok(()),
            Self::Held(_, Some(key)) => key.forget().await,
            Self::Started(server) => server.stop().await,
        }
    }
}

/// Where the server listens that holds the data folder, if one does. One that starts or stops is waited for.
async fn served(data_dir: &Path) -> anyhow::Result<Option<String>> {
    let path = data_dir.join("lock");
    let began = Instant::now();
    loop {
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("look at {}", path.display())),
        };
        if !matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock)) {
            return Ok(None);
        }
        let mut address = String::new();
        file.read_to_string(&mut address).with_context(|| format!("read {}", path.display()))?;
        if !address.is_empty() {
            return Ok(Some(address));
        }
        anyhow::ensure!(
            began.elapsed() < SERVER_TIMEOUT,
            "a server that holds the data folder {} neither starts nor stops; look at its log",
            data_dir.display()
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
