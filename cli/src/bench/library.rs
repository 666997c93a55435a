//! The pictures that are measured with, and the manifest that names them to a server.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;
use shared::batch::is_picture_name;
use shared::config::Config;
use shared::objects::{ObjectStore as _, S3Store};

/// Where a server finds the pictures.
pub(super) struct Library {
    pub(super) pictures: Vec<PathBuf>,
    folder: PathBuf,
    /// In services mode the bucket that copies of them lie in, under `bench/`: the first that jobs may read.
    bucket: Option<String>,
}

/// Up to `limit` pictures below a folder, in the order of their names.
pub(super) fn pictures(folder: &Path, limit: usize) -> anyhow::Result<Vec<PathBuf>> {
    let folder = folder.canonicalize().with_context(|| format!("look for the folder {}", folder.display()))?;
    let mut pictures = Vec::new();
    gather(&folder, &mut pictures)?;
    pictures.sort_unstable();
    pictures.truncate(limit);
    anyhow::ensure!(!pictures.is_empty(), "there is no picture below {}", folder.display());
    Ok(pictures)
}

impl Library {
    /// Up to `limit` pictures below the folder; put into a bucket where the settings name services.
    pub(super) async fn open(config: &Config, folder: &Path, limit: usize) -> anyhow::Result<Self> {
        let pictures = pictures(folder, limit)?;
        let folder = folder.canonicalize().with_context(|| format!("look for the folder {}", folder.display()))?;
        let mut library = Self { pictures, folder, bucket: None };
        if config.has_services() {
            let bucket = config.objects.allowed_buckets.first().context(
                "objects.allowed_buckets names no bucket for the pictures; one beside objects.bucket is needed, which \
                 `make services` sets up when it starts anew",
            )?;
            library.bucket = Some(bucket.clone());
            library.store(config).await?;
        }
        Ok(library)
    }

    /// Puts copies into the bucket, where there is one.
    pub(super) async fn store(&self, config: &Config) -> anyhow::Result<()> {
        let Some(bucket) = &self.bucket else { return Ok(()) };
        let store = store(config, bucket)?;
        for (n, picture) in self.pictures.iter().enumerate() {
            let bytes = tokio::fs::read(picture).await.with_context(|| format!("read {}", picture.display()))?;
            store.put(&key(n), &bytes).await.with_context(|| format!("store {}", picture.display()))?;
        }
        Ok(())
    }

    /// Takes the copies out of the bucket.
    pub(super) async fn close(&self, config: &Config) -> anyhow::Result<()> {
        let Some(bucket) = &self.bucket else { return Ok(()) };
        let store = store(config, bucket)?;
        for n in 0..self.pictures.len() {
            store.delete(&key(n)).await?;
        }
        Ok(())
    }

    /// What a server has to be told so that it may read them.
    pub(super) fn settings(&self) -> anyhow::Result<Vec<(&'static str, String)>> {
        if let Some(bucket) = &self.bucket {
            return Ok(vec![("FACE_ID_OBJECTS__ALLOWED_BUCKETS", bucket.clone())]);
        }
        let folder = self.folder.to_str().filter(|folder| !folder.contains(','));
        let folder =
            folder.with_context(|| format!("the path {} is no text, or has a comma in it", self.folder.display()))?;
        Ok(vec![("FACE_ID_IMPORT__ROOTS", folder.to_owned())])
    }

    /// The manifest of all pictures, or of the first `limit`.
    pub(super) fn manifest(&self, limit: usize) -> String {
        let line = |(n, picture): (usize, &PathBuf)| match &self.bucket {
            Some(bucket) => json!({ "s3": format!("s3://{bucket}/{}", key(n)) }).to_string() + "\n",
            None => json!({ "file": picture }).to_string() + "\n",
        };
        self.pictures.iter().enumerate().take(limit).map(line).collect()
    }
}

fn key(n: usize) -> String {
    format!("bench/{n:06}")
}

fn store(config: &Config, bucket: &str) -> anyhow::Result<S3Store> {
    let mut config = config.clone();
    config.objects.allowed_buckets.clear();
    Ok(shared::backends::open_bucket(&config, bucket)?)
}

fn gather(folder: &Path, pictures: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let failed = || format!("read the folder {}", folder.display());
    for entry in std::fs::read_dir(folder).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        if entry.file_type().with_context(failed)?.is_dir() {
            gather(&entry.path(), pictures)?;
        } else if is_picture_name(&entry.file_name().to_string_lossy()) {
            pictures.push(entry.path());
        }
    }
    Ok(())
}
