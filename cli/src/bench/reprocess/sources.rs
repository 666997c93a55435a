//! Labelled pictures that a collection is indexed from, in a copy that can be taken away.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use shared::config::Config;

use super::super::library::{Library, pictures};

/// See the module.
pub(super) struct Sources {
    folder: tempfile::TempDir,
    /// Of each person, in the order of their names.
    by_person: BTreeMap<String, Vec<PathBuf>>,
}

impl Sources {
    /// Copies up to `limit` pictures of `DIR/<person>/<picture>`, in the order of their names.
    pub(super) fn copy(images: &Path, limit: usize) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for a copy of the pictures")?;
        let mut by_person: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for picture in pictures(images, limit)? {
            let person = picture.parent().and_then(Path::file_name).context("a picture lies in no folder")?;
            let copy = here(&folder).join(person);
            std::fs::create_dir_all(&copy)?;
            let copy = copy.join(picture.file_name().context("a picture has no name")?);
            std::fs::copy(&picture, &copy).with_context(|| format!("copy {}", picture.display()))?;
            by_person.entry(person.to_string_lossy().into_owned()).or_default().push(picture);
        }
        Ok(Self { folder, by_person })
    }

    /// As a library for a server.
    pub(super) async fn library(&self, config: &Config) -> anyhow::Result<Library> {
        Library::open(config, &here(&self.folder), usize::MAX).await
    }

    /// Two pictures each of up to `count` people of whom there are as many, from where they are not taken away.
    pub(super) fn pairs(&self, count: usize) -> Vec<(&str, [&Path; 2])> {
        let pairs = self.by_person.iter().filter_map(|(person, pictures)| match pictures.as_slice() {
            [one, other, ..] => Some((person.as_str(), [one.as_path(), other.as_path()])),
            _ => None,
        });
        pairs.take(count).collect()
    }

    /// Nobody can read them from now on.
    pub(super) async fn take_away(&self, config: &Config, library: &Library) -> anyhow::Result<()> {
        if config.has_services() {
            return library.close(config).await;
        }
        Ok(std::fs::rename(here(&self.folder), away(&self.folder))?)
    }

    /// They lie where they lay.
    pub(super) async fn put_back(&self, config: &Config, library: &Library) -> anyhow::Result<()> {
        if config.has_services() {
            return library.store(config).await;
        }
        Ok(std::fs::rename(away(&self.folder), here(&self.folder))?)
    }
}

fn here(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("pictures")
}

fn away(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("away")
}
