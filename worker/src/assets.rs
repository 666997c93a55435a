//! Where weights and the ONNX Runtime library are found, and that they are the right ones.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use shared::catalogue::{AllowedUse, ModelFile, Pipeline};
use shared::config::Config;
use shared::digest::hex;
use tokio::io::AsyncWriteExt;

/// Longest time one file may take to download.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest time to reach a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Folders inside folders that are looked through; a link that leads back up ends here.
const MAX_DEPTH: usize = 8;
/// Why there is no download.
const NO_ADDRESS: &str = "; there is no address to fetch it from (models/README.md says where it comes from; addresses of models that \
    were added over HTTP are not called)";
const SWITCHED_OFF: &str = "; downloads are switched off (models.allow_download)";

/// Where to look and what is allowed.
#[derive(Clone, Debug)]
pub struct Assets {
    /// An operator's own copy; weights lie anywhere below its `models` folder.
    pub assets_dir: Option<PathBuf>,
    /// Where downloads go and the runtime library lies.
    pub cache_dir: PathBuf,
    /// A library named by the environment (`ORT_DYLIB_PATH`), before any other.
    pub runtime_library: Option<PathBuf>,
    /// Whether a missing file may be fetched from the catalogue's addresses.
    pub allow_download: bool,
    /// Pipelines whose restricted licences the operator accepts.
    pub accepted_licences: Vec<String>,
}

impl Assets {
    /// The assets that the settings describe.
    pub fn configured(config: &Config) -> Self {
        Self {
            assets_dir: config.assets_dir().map(Into::into),
            cache_dir: config.cache_dir().into(),
            runtime_library: config.runtime_library().map(Into::into),
            allow_download: config.models.allow_download,
            accepted_licences: config.models.accepted_licences.clone(),
        }
    }
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AssetError {
    /// It is nowhere.
    #[error(
        "the weights {file} of pipeline {pipeline} were not found; looked in {looked}{downloads}. Put the file below \
         FACE_ID_ASSETS_DIR/models, or run {remedy} where there is a network"
    )]
    Missing {
        /// The pipeline that needs it.
        pipeline: String,
        /// Its name.
        file: String,
        /// Every place that was looked at, and which other file has its name there.
        looked: String,
        /// What became of downloads.
        downloads: String,
        /// The command that brings it here.
        remedy: Box<str>,
    },
    /// It is there, but not the right one.
    #[error(
        "{path} is not the expected file: its sha256 is {found}, the catalogue says {wanted}. Put the right one beside it, \
         in any folder below FACE_ID_ASSETS_DIR/models, or run {remedy} where there is a network"
    )]
    Checksum {
        /// The pipeline that needs it.
        pipeline: String,
        /// Where it lies.
        path: PathBuf,
        /// What the catalogue says.
        wanted: String,
        /// What it is.
        found: String,
        /// The command that brings the right one here.
        remedy: Box<str>,
    },
    /// It is there, but not as long.
    #[error(
        "{path} is not the expected file, or its entry is wrong: it has {found} bytes, the catalogue says {wanted} (size_bytes). Put \
         the right one beside it, in any folder below FACE_ID_ASSETS_DIR/models, or run {remedy} where there is a network; or put the entry with the right size_bytes into models.catalogue_dir, where it goes before the one of its name"
    )]
    Size {
        /// The pipeline that needs it.
        pipeline: String,
        /// Where it lies.
        path: PathBuf,
        /// What the catalogue says.
        wanted: u64,
        /// What it has.
        found: u64,
        /// The command that brings the right one here.
        remedy: Box<str>,
    },
    /// The search for a file broke off.
    #[error("the search for weights broke off")]
    Broken(#[from] tokio::task::JoinError),
    /// Its licence was not accepted.
    #[error(
        "pipeline {pipeline} uses {file}, whose licence does not allow any use: {allowed_use} ({licence}). If yours is \
         allowed, say so with --accept-license {pipeline} or FACE_ID_MODELS__ACCEPTED_LICENCES={pipeline}"
    )]
    LicenceNotAccepted {
        /// The pipeline.
        pipeline: String,
        /// The restricted file.
        file: String,
        /// What its licence allows.
        allowed_use: AllowedUse,
        /// Its licence.
        licence: String,
    },
    /// There is no ONNX Runtime.
    #[error(
        "ONNX Runtime's library was not found; looked at {looked}. Run `make setup`, or point ORT_DYLIB_PATH at libonnxruntime.so"
    )]
    RuntimeMissing {
        /// Every place that was looked at.
        looked: String,
    },
    /// A file or folder cannot be read or written.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl Assets {
    /// Refuses a pipeline with a restricted licence that the operator has not accepted.
    pub fn check_licence(&self, pipeline: &Pipeline) -> Result<(), AssetError> {
        match pipeline.restricted_files().first() {
            Some(file) if !self.accepted_licences.contains(&pipeline.name) => Err(AssetError::LicenceNotAccepted {
                pipeline: pipeline.name.clone(),
                file: file.name.clone(),
                allowed_use: file.allowed_use(),
                licence: file.licence.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// The path of a file of weights with the right length and checksum: the operator's copy, else the cache's, else a download.
    /// Others may have its name: two models' files are often called alike.
    pub async fn weights(&self, pipeline: &Pipeline, file: &ModelFile) -> Result<PathBuf, AssetError> {
        self.weights_of(&pipeline.name, file).await
    }

    /// The same for the entry of that name, whatever its kind.
    pub async fn weights_of(&self, pipeline: &str, file: &ModelFile) -> Result<PathBuf, AssetError> {
        let search = self.search(file).await?;
        if !self.can_download(file) {
            let why = match (file.import, self.allow_download) {
                (Some(_), _) => "",
                (None, true) => NO_ADDRESS,
                (None, false) => SWITCHED_OFF,
            };
            return search.result(pipeline, file, || self.missing(pipeline, file, why.to_owned(), None));
        }
        let namesake = match search {
            Search::Found(path) => return Ok(path),
            Search::Missing { namesake, .. } => namesake,
        };
        let mut downloads = String::new();
        for url in &file.urls {
            match self.download(url, file).await {
                Ok(path) => return Ok(path),
                Err(why) => downloads.extend(["; ", url, " failed: ", &why.to_string()]),
            }
        }
        Err(self.missing(pipeline, file, downloads, namesake.as_ref()))
    }

    /// The same without a download.
    pub async fn here(&self, pipeline: &Pipeline, file: &ModelFile) -> Result<PathBuf, AssetError> {
        let missing = || self.missing(&pipeline.name, file, String::new(), None);
        self.search(file).await?.result(&pipeline.name, file, missing)
    }

    fn missing(&self, pipeline: &str, file: &ModelFile, downloads: String, namesake: Option<&Namesake>) -> AssetError {
        let places = self.places().iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" and ");
        AssetError::Missing {
            pipeline: pipeline.to_owned(),
            file: file.name.clone(),
            looked: places + &namesake.map_or_else(String::new, |namesake| format!("; {}", namesake.told(file))),
            downloads,
            remedy: remedy(pipeline, file),
        }
    }

    /// Whether a file that is missing may be fetched, and can be.
    pub fn can_download(&self, file: &ModelFile) -> bool {
        self.allow_download && !file.urls.is_empty()
    }

    /// Where the file of weights with the right length and checksum lies, if it is here.
    pub async fn present(&self, file: &ModelFile) -> Result<Option<PathBuf>, AssetError> {
        match self.search(file).await? {
            Search::Found(path) => Ok(Some(path)),
            Search::Missing { .. } => Ok(None),
        }
    }

    /// Where a file of that name lies, without a look at what it is.
    pub fn find(&self, file: &ModelFile) -> Option<PathBuf> {
        self.look(&file.name, &mut |found| found.map_or(ControlFlow::Continue(()), ControlFlow::Break)).break_value()
    }

    /// Looks at one file of that name after the other until one is right. In a thread of its own: weights have hundreds of
    /// megabytes. What cannot be read keeps none from being found.
    async fn search(&self, file: &ModelFile) -> Result<Search, AssetError> {
        let (assets, file) = (self.clone(), file.clone());
        let search = move || {
            let (mut namesake, mut failed) = (None, None);
            let found = assets.look(&file.name, &mut |found| {
                match found.and_then(|path| Ok((difference(&path, &file)?, path))) {
                    Ok((None, path)) => return ControlFlow::Break(path),
                    Ok((Some(difference), path)) => {
                        let found = Namesake { path, difference };
                        if namesake.as_ref().is_none_or(|known: &Namesake| !known.is_as_long() && found.is_as_long()) {
                            namesake = Some(found);
                        }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "weights are looked for elsewhere");
                        failed = failed.take().or(Some(error));
                    }
                }
                ControlFlow::Continue(())
            });
            found.break_value().map_or(Search::Missing { namesake, failed }, Search::Found)
        };
        Ok(tokio::task::spawn_blocking(search).await?)
    }

    /// Shows all files of that name, the operator's first, and what could not be listed, until that is enough.
    fn look(&self, name: &str, see: &mut See<'_>) -> ControlFlow<PathBuf> {
        self.places().iter().try_for_each(|place| look_below(place, name, MAX_DEPTH, see))
    }

    /// The ONNX Runtime library: the environment's, else the cache's newest.
    pub fn runtime_library(&self) -> Result<PathBuf, AssetError> {
        if let Some(path) = &self.runtime_library {
            let looked = format!("ORT_DYLIB_PATH={}", path.display());
            return if path.is_file() { Ok(path.clone()) } else { Err(AssetError::RuntimeMissing { looked }) };
        }
        let folder = self.cache_dir.join("onnxruntime");
        let mut found: Vec<PathBuf> = entries(&folder)?
            .into_iter()
            .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("libonnxruntime.so")))
            .collect();
        found.sort();
        let looked = format!("ORT_DYLIB_PATH (not set) and {}", folder.display());
        found.pop().ok_or(AssetError::RuntimeMissing { looked })
    }

    fn places(&self) -> Vec<PathBuf> {
        self.assets_dir.iter().chain([&self.cache_dir]).map(|p| p.join("models")).collect()
    }

    async fn download(&self, url: &str, file: &ModelFile) -> Result<PathBuf, WriteError> {
        tracing::info!(file = file.name, size_bytes = file.size_bytes, "downloading weights");
        let unfinished = self.unfinished(file).await?;
        let fetched = fetch(url, file, &unfinished).await;
        self.finished(file, &unfinished, fetched).await
    }

    /// Puts a file that was made here into the cache.
    ///
    /// # Errors
    /// It is not the one of the catalogue, or cannot be written.
    pub async fn keep(&self, file: &ModelFile, bytes: &[u8]) -> Result<PathBuf, WriteError> {
        let unfinished = self.unfinished(file).await?;
        let put = async {
            let mut written = tokio::fs::File::create(&unfinished).await?;
            written.write_all(bytes).await?;
            written.sync_all().await?;
            check_written(&unfinished, file).await
        };
        let put = put.await;
        self.finished(file, &unfinished, put).await
    }

    /// A temporary name to write under, so that a file that is there is whole.
    async fn unfinished(&self, file: &ModelFile) -> Result<PathBuf, WriteError> {
        let models = self.cache_dir.join("models");
        tokio::fs::create_dir_all(&models).await?;
        Ok(models.join(format!(".{}.{}", file.name, uuid::Uuid::new_v4())))
    }

    /// Moves what was written to a folder that is called as its checksum, where nothing but the same file can be in its place.
    async fn finished(
        &self,
        file: &ModelFile,
        unfinished: &Path,
        written: Result<(), WriteError>,
    ) -> Result<PathBuf, WriteError> {
        let moved = async {
            written?;
            let folder = self.cache_dir.join("models").join(&file.sha256);
            tokio::fs::create_dir_all(&folder).await?;
            let path = folder.join(&file.name);
            tokio::fs::rename(unfinished, &path).await?;
            Ok(path)
        };
        let moved = moved.await;
        if moved.is_err() {
            // It may not have come into being.
            let _ = tokio::fs::remove_file(unfinished).await;
        }
        moved
    }
}

/// Why weights could not be written; nobody asks for more than its text.
pub type WriteError = Box<dyn std::error::Error + Send + Sync>;

/// Writes what the address gives, as long as the catalogue says and with its checksum.
async fn fetch(url: &str, file: &ModelFile, target: &Path) -> Result<(), WriteError> {
    let client = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(DOWNLOAD_TIMEOUT).build()?;
    let mut response = client.get(url).send().await?.error_for_status()?;
    let mut written = tokio::fs::File::create(target).await?;
    let mut size_bytes = 0;
    while let Some(chunk) = response.chunk().await? {
        size_bytes += chunk.len() as u64;
        if size_bytes > file.size_bytes {
            return Err(format!("it is longer than the {} bytes of the catalogue", file.size_bytes).into());
        }
        written.write_all(&chunk).await?;
    }
    written.sync_all().await?;
    check_written(target, file).await
}

async fn check_written(path: &Path, file: &ModelFile) -> Result<(), WriteError> {
    let (path, wanted) = (path.to_owned(), file.clone());
    let difference = tokio::task::spawn_blocking(move || difference(&path, &wanted)).await??;
    difference.map_or(Ok(()), |difference| Err(difference.told(file).into()))
}

/// The command that brings weights here, in words.
fn remedy(pipeline: &str, file: &ModelFile) -> Box<str> {
    let remedy = match file.import {
        Some(import) => format!("`face-id models import {import}`"),
        None => format!("`face-id models pull` with {pipeline}, or with its entry's file,"),
    };
    remedy.into()
}

/// What lies under a name.
enum Search {
    /// The right file.
    Found(PathBuf),
    /// At most others, of which this is the first, one of the right length before any other; and the first thing that could
    /// not be read.
    Missing { namesake: Option<Namesake>, failed: Option<AssetError> },
}

impl Search {
    /// The right file, or what tells most of why there is none.
    fn result(
        self,
        pipeline: &str,
        file: &ModelFile,
        missing: impl FnOnce() -> AssetError,
    ) -> Result<PathBuf, AssetError> {
        match self {
            Self::Found(path) => Ok(path),
            Self::Missing { namesake: Some(namesake), .. } => Err(namesake.refused(pipeline, file)),
            Self::Missing { failed: Some(error), .. } => Err(error),
            Self::Missing { .. } => Err(missing()),
        }
    }
}

/// A file that has another's name.
struct Namesake {
    path: PathBuf,
    difference: Difference,
}

/// What a file is instead.
enum Difference {
    /// So many bytes long.
    Size(u64),
    /// Of this checksum.
    Checksum(String),
}

impl Difference {
    fn told(&self, file: &ModelFile) -> String {
        match self {
            Self::Size(found) => format!("it has {found} bytes, the catalogue says {}", file.size_bytes),
            Self::Checksum(found) => format!("its sha256 is {found}, the catalogue says {}", file.sha256),
        }
    }
}

impl Namesake {
    fn is_as_long(&self) -> bool {
        matches!(self.difference, Difference::Checksum(_))
    }

    fn told(&self, file: &ModelFile) -> String {
        format!("{} has its name, but {}", self.path.display(), self.difference.told(file))
    }

    fn refused(self, pipeline: &str, file: &ModelFile) -> AssetError {
        let remedy = remedy(pipeline, file);
        let (pipeline, path) = (pipeline.to_owned(), self.path);
        match self.difference {
            Difference::Size(found) => AssetError::Size { pipeline, path, wanted: file.size_bytes, found, remedy },
            Difference::Checksum(found) => {
                AssetError::Checksum { pipeline, path, wanted: file.sha256.clone(), found, remedy }
            }
        }
    }
}

/// What tells a file from the one of the catalogue; its checksum is looked at only where the length is right.
fn difference(path: &Path, file: &ModelFile) -> Result<Option<Difference>, AssetError> {
    let failed = |source| AssetError::Io { action: "read", path: path.to_owned(), source };
    let size_bytes = std::fs::metadata(path).map_err(failed)?.len();
    if size_bytes != file.size_bytes {
        return Ok(Some(Difference::Size(size_bytes)));
    }
    let found = sha256_of(path)?;
    Ok((found != file.sha256).then_some(Difference::Checksum(found)))
}

/// SHA-256 of a file, lower-case hex.
pub fn sha256_of(path: &Path) -> Result<String, AssetError> {
    let failed = |source| AssetError::Io { action: "read", path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = file.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&buffer[..count]);
    }
}

/// Is shown a file, or what could not be read, and says whether that was the one.
type See<'a> = dyn FnMut(Result<PathBuf, AssetError>) -> ControlFlow<PathBuf> + 'a;

/// Shows the files of that name down to `depth` folders below, the upper ones first, then in the order of the folders' names.
fn look_below(folder: &Path, name: &str, depth: usize, see: &mut See<'_>) -> ControlFlow<PathBuf> {
    let mut inside = match entries(folder) {
        Ok(inside) => inside,
        Err(error) => return see(Err(error)),
    };
    inside.sort();
    for path in inside.iter().filter(|path| path.is_file() && path.file_name().is_some_and(|n| n == name)) {
        see(Ok(path.clone()))?;
    }
    let folders = inside.iter().filter(|path| depth > 0 && path.is_dir());
    folders.into_iter().try_for_each(|path| look_below(path, name, depth - 1, see))
}

/// What lies in a folder; nothing where there is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, AssetError> {
    let failed = |source| AssetError::Io { action: "list", path: folder.to_owned(), source };
    match std::fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(failed(e)),
        Ok(listing) => listing.map(|e| e.map(|e| e.path()).map_err(failed)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use shared::catalogue::{Catalogue, Import};

    use super::*;

    fn assets(folder: &Path) -> Assets {
        Assets {
            assets_dir: Some(folder.join("assets")),
            cache_dir: folder.join("cache"),
            runtime_library: None,
            allow_download: false,
            accepted_licences: Vec::new(),
        }
    }

    fn tiny_file(content: &[u8]) -> ModelFile {
        let sha256 = shared::digest::sha256_hex(content);
        let catalogue = Catalogue::load(None).unwrap();
        let file = catalogue.pipeline("yunet-mobilefacenet").unwrap().detector.file.clone();
        ModelFile { name: "x.onnx".to_owned(), sha256, size_bytes: content.len() as u64, ..file }
    }

    #[tokio::test]
    async fn looks_in_the_operators_copy_then_in_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let assets = assets(folder.path());
        let catalogue = Catalogue::load(None).unwrap();
        let pipeline = catalogue.pipeline("yunet-mobilefacenet").unwrap();
        let file = tiny_file(b"weights");

        let missing = assets.weights(pipeline, &file).await.unwrap_err().to_string();
        for part in ["x.onnx", "assets/models", "cache/models", "models pull", "switched off"] {
            assert!(missing.contains(part), "{missing} lacks {part}");
        }
        let cached = folder.path().join("cache/models");
        std::fs::create_dir_all(&cached).unwrap();
        std::fs::write(cached.join("x.onnx"), b"weights").unwrap();
        assert_eq!(assets.weights(pipeline, &file).await.unwrap(), cached.join("x.onnx"));
        let deep = folder.path().join("assets/models/a/b");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("x.onnx"), b"others").unwrap();
        let found = assets.weights(pipeline, &file).await.unwrap();
        assert_eq!(found, cached.join("x.onnx"), "another one has its name");
        assert_eq!(assets.weights(pipeline, &tiny_file(b"others")).await.unwrap(), deep.join("x.onnx"));

        std::fs::remove_file(cached.join("x.onnx")).unwrap();
        assert_eq!(assets.present(&file).await.unwrap(), None);
        let wrong = assets.weights(pipeline, &file).await.unwrap_err();
        assert!(matches!(wrong, AssetError::Size { wanted: 7, found: 6, .. }), "{wrong}");
        assert!(wrong.to_string().contains("a/b/x.onnx") && wrong.to_string().contains("says 7"), "{wrong}");
        std::fs::write(deep.join("x.onnx"), b"badness").unwrap();
        let wrong = assets.weights(pipeline, &file).await.unwrap_err().to_string();
        assert!(wrong.contains("a/b/x.onnx") && wrong.contains(&file.sha256), "{wrong}");
        let imported = ModelFile { import: Some(Import::Dlib), ..tiny_file(b"imported") };
        for allow_download in [false, true] {
            let assets = Assets { allow_download, ..assets.clone() };
            let missing = assets.weights(pipeline, &imported).await.unwrap_err().to_string();
            assert!(missing.contains("models import dlib") && !missing.contains("models pull"), "{missing}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_keeps_nothing_from_being_found() {
        let folder = tempfile::tempdir().unwrap();
        let assets = assets(folder.path());
        let catalogue = Catalogue::load(None).unwrap();
        let pipeline = catalogue.pipeline("yunet-mobilefacenet").unwrap();
        let file = tiny_file(b"weights");
        // A file where a folder is expected cannot be listed, by whomever.
        std::fs::create_dir_all(folder.path().join("assets")).unwrap();
        std::fs::write(folder.path().join("assets/models"), b"").unwrap();
        let failed = assets.weights(pipeline, &file).await.unwrap_err();
        assert!(matches!(failed, AssetError::Io { action: "list", .. }), "{failed}");
        let cached = folder.path().join("cache/models");
        std::fs::create_dir_all(&cached).unwrap();
        std::fs::write(cached.join("x.onnx"), b"weights").unwrap();
        assert_eq!(assets.weights(pipeline, &file).await.unwrap(), cached.join("x.onnx"));
        assert_eq!(assets.find(&file), Some(cached.join("x.onnx")));
    }

    /// Answers each connection with the next of these, then ends; on a free port of this machine.
    async fn serve(answers: Vec<&'static str>) -> (String, tokio::task::JoinHandle<()>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/x.onnx", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            for body in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                assert!(tokio::io::AsyncReadExt::read(&mut stream, &mut request).await.unwrap() > 0);
                let status = if body.is_empty() { "404 Not Found" } else { "200 OK" };
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            }
        });
        (url, server)
    }

    #[tokio::test]
    async fn downloads_are_bounded_checked_and_tried_in_turn() {
        let folder = tempfile::tempdir().unwrap();
        let assets = Assets { allow_download: true, ..assets(folder.path()) };
        let catalogue = Catalogue::load(None).unwrap();
        let pipeline = catalogue.pipeline("yunet-mobilefacenet").unwrap();
        let (url, server) = serve(vec!["short", "too long a file", "badness", "", "too long a file", "weights"]).await;
        let file = ModelFile { urls: vec![url; 3], ..tiny_file(b"weights") };

        let missing = assets.weights(pipeline, &file).await.unwrap_err().to_string();
        for part in ["it has 5 bytes", "longer than the 7 bytes", "its sha256 is", "models pull"] {
            assert!(missing.contains(part), "{missing} lacks {part}");
        }
        let models = folder.path().join("cache/models");
        assert_eq!(std::fs::read_dir(&models).unwrap().count(), 0);

        let own = models.join(&file.sha256).join("x.onnx");
        assert_eq!(assets.weights(pipeline, &file).await.unwrap(), own);
        assert_eq!(std::fs::read(&own).unwrap(), b"weights");
        assert_eq!(std::fs::read_dir(&models).unwrap().count(), 1);
        server.await.unwrap();
        assert!(assets.weights(pipeline, &file).await.is_ok());

        let (url, server) = serve(vec!["namesake"]).await;
        let namesake = ModelFile { urls: vec![url], ..tiny_file(b"namesake") };
        let beside = models.join(&namesake.sha256).join("x.onnx");
        assert_eq!(assets.weights(pipeline, &namesake).await.unwrap(), beside);
        server.await.unwrap();
        for (file, path) in [(&namesake, beside), (&file, own)] {
            assert_eq!(assets.weights(pipeline, file).await.unwrap(), path);
        }
    }

    #[tokio::test]
    async fn what_was_made_here_is_kept_where_it_is_the_right_file() {
        let folder = tempfile::tempdir().unwrap();
        let assets = assets(folder.path());
        let file = tiny_file(b"weights");
        for other in [&b"other"[..], b"badness"] {
            let refused = assets.keep(&file, other).await.unwrap_err().to_string();
            assert!(refused.contains("the catalogue says"), "{refused}");
        }
        let models = folder.path().join("cache/models");
        assert_eq!(std::fs::read_dir(&models).unwrap().count(), 0);
        let own = models.join(&file.sha256).join("x.onnx");
        for _ in 0..2 {
            assert_eq!(assets.keep(&file, b"weights").await.unwrap(), own);
        }
        assert_eq!(assets.present(&file).await.unwrap(), Some(own));
    }

    #[tokio::test]
    async fn who_can_fetch_nothing_is_told_what_lies_there() {
        let folder = tempfile::tempdir().unwrap();
        let assets = Assets { allow_download: true, ..assets(folder.path()) };
        let catalogue = Catalogue::load(None).unwrap();
        let pipeline = catalogue.pipeline("yunet-mobilefacenet").unwrap();
        let file = ModelFile { urls: vec!["http://127.0.0.1:9/x.onnx".to_owned()], ..tiny_file(b"weights") };
        let cached = folder.path().join("cache/models");
        for (name, content) in [("a", "others"), ("b", "badness")] {
            std::fs::create_dir_all(cached.join(name)).unwrap();
            std::fs::write(cached.join(name).join("x.onnx"), content).unwrap();
        }
        let missing = assets.weights(pipeline, &file).await.unwrap_err();
        assert!(matches!(missing, AssetError::Missing { .. }), "{missing}");
        let missing = missing.to_string();
        for part in ["b/x.onnx has its name", "its sha256 is", "127.0.0.1:9/x.onnx failed", "models pull"] {
            assert!(missing.contains(part), "{missing} lacks {part}");
        }
        let damaged = assets.here(pipeline, &file).await.unwrap_err();
        assert!(matches!(damaged, AssetError::Checksum { .. }), "{damaged}");
        std::fs::remove_dir_all(&cached).unwrap();
        let missing = assets.here(pipeline, &file).await.unwrap_err().to_string();
        assert!(missing.contains("models pull") && !missing.contains("switched off"), "{missing}");
    }

    #[test]
    fn a_restricted_licence_must_be_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let mut assets = assets(folder.path());
        let catalogue = Catalogue::load(None).unwrap();
        let pipeline = catalogue.pipeline("scrfd-mobilefacenet").unwrap();
        let refused = assets.check_licence(pipeline).unwrap_err().to_string();
        assert!(refused.contains("det_500m.onnx") && refused.contains("--accept-license"), "{refused}");
        assets.accepted_licences.push("scrfd-mobilefacenet".to_owned());
        assert!(assets.check_licence(pipeline).is_ok());
    }

    #[test]
    fn a_missing_runtime_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let mut assets = assets(folder.path());
        assert!(assets.runtime_library().unwrap_err().to_string().contains("make setup"));
        let library = folder.path().join("cache/onnxruntime/libonnxruntime.so.1.32.0");
        std::fs::create_dir_all(library.parent().unwrap()).unwrap();
        std::fs::write(&library, b"").unwrap();
        assert_eq!(assets.runtime_library().unwrap(), library);
        assets.runtime_library = Some(folder.path().join("gone.so"));
        assert!(assets.runtime_library().is_err());
    }
}
