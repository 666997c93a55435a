//! The pictures that are measured with, and the manifest that names them to a server.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;
use shared::batch::is_picture_name;
use shared::config::Config;
use shared::objects::ObjectStore as _;

/// Where a server finds the pictures.
pub(super) struct Library {
    pub(super) pictures: Vec<PathBuf>,
    folder: PathBuf,
    /// In services mode the prefix in the installation's own bucket that copies of them lie under.
    prefix: Option<String>,
}

impl Library {
    /// Up to `limit` pictures below the folder, in the order of their names; put into the bucket where there is one.
    pub(super) async fn open(config: &Config, folder: &Path, limit: usize) -> anyhow::Result<Self> {
        let folder = folder.canonicalize().with_context(|| format!("look for the folder {}", folder.display()))?;
        let mut pictures = Vec::new();
        gather(&folder, &mut pictures)?;
        pictures.sort_unstable();
        pictures.truncate(limit);
        anyhow::ensure!(!pictures.is_empty(), "there is no picture below {}", folder.display());
        let prefix = config.objects.bucket().map(|bucket| format!("s3://{bucket}/bench"));
        let library = Self { pictures, folder, prefix };
        if library.prefix.is_some() {
            let store = shared::backends::open_objects(config)?;
            for (n, picture) in library.pictures.iter().enumerate() {
                let bytes = tokio::fs::read(picture).await.with_context(|| format!("read {}", picture.display()))?;
                store
                    .put(&format!("bench/{n:06}"), &bytes)
                    .await
                    .with_context(|| format!("store {}", picture.display()))?;
            }
        }
        Ok(library)
    }

    /// Takes the copies out of the bucket.
    pub(super) async fn close(&self, config: &Config) -> anyhow::Result<()> {
        if self.prefix.is_some() {
            let store = shared::backends::open_objects(config)?;
            for n in 0..self.pictures.len() {
                store.delete(&format!("bench/{n:06}")).await?;
            }
        }
        Ok(())
    }

    /// What a server has to be told so that it may read them.
    pub(super) fn settings(&self, config: &Config) -> anyhow::Result<Vec<(&'static str, String)>> {
        if let Some(bucket) = config.objects.bucket() {
            return Ok(vec![("FACE_ID_OBJECTS__ALLOWED_BUCKETS", bucket.to_owned())]);
        }
        let folder = self.folder.to_str().filter(|folder| !folder.contains(','));
        let folder =
            folder.with_context(|| format!("the path {} is no text, or has a comma in it", self.folder.display()))?;
        Ok(vec![("FACE_ID_IMPORT__ROOTS", folder.to_owned())])
    }

    /// The manifest of all pictures.
    pub(super) fn manifest(&self) -> String {
        let line = |(n, picture): (usize, &PathBuf)| match &self.prefix {
            Some(prefix) => json!({ "s3": format!("{prefix}/{n:06}") }).to_string() + "\n",
            None => json!({ "file": picture }).to_string() + "\n",
        };
        self.pictures.iter().enumerate().map(line).collect()
    }
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
