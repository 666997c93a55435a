//! Judges the places that a batch's complete listing did not meet: each is looked for once more, and only what is not there
//! for certain is gone. Before an image is deleted all its places are looked at again.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use shared::batch::BatchSource;
use shared::db::batches::missing::Coverage;
use shared::db::batches::sweep::{self, Doomed};
use shared::db::entity::batch::Model as Batch;
use shared::failpoints::failpoint;

use super::{resolved, source};
use crate::context::WorkerContext;
use crate::jobs::JobError;

/// Places of one slice, and so of one transaction.
const PLACES: u64 = 500;
/// Places of a bucket that are looked for at once.
const AT_ONCE: usize = 16;

/// Where a batch's pictures lie.
enum Library {
    /// A folder, by its real path.
    Folder(PathBuf),
    /// A bucket, from a prefix on.
    Bucket(String),
}

/// Judges the next places of a batch, or deletes what is gone where none are left to judge; false when there is no more.
pub(super) async fn step(ctx: &WorkerContext, batch: &Batch) -> Result<bool, JobError> {
    let library = match source(batch)? {
        BatchSource::Folder(folder) => {
            let roots = ctx.import_roots.clone();
            let resolve = tokio::task::spawn_blocking(move || resolved(&roots, &folder));
            Library::Folder(resolve.await.map_err(|e| JobError::Transient(e.into()))??)
        }
        BatchSource::S3(prefix) => Library::Bucket(prefix),
        BatchSource::Manifest(_) => return Ok(false),
    };
    let missing = sweep::missing(&ctx.db, batch.id, PLACES).await?;
    if missing.is_empty() {
        return delete(ctx, batch, &library).await;
    }
    let gone = library.gone(ctx, &missing).await?;
    let (gone, there): (Vec<_>, Vec<_>) = missing.into_iter().partition(|place| gone.contains(place));
    let is_judged = sweep::judge(&ctx.db, batch, &gone, &there).await?;
    failpoint("after_sweep_slice");
    Ok(is_judged)
}

/// Deletes the next images, those of which no place holds anything at this moment.
async fn delete(ctx: &WorkerContext, batch: &Batch, library: &Library) -> Result<bool, JobError> {
    let doomed = sweep::conclude(&ctx.db, batch, &library.coverage().prefix).await?;
    if doomed.is_empty() {
        return Ok(false);
    }
    let places: Vec<String> = doomed.iter().flat_map(|image| image.places.iter().cloned()).collect();
    let empty = library.gone(ctx, &places).await?;
    let (gone, there): (Vec<_>, Vec<_>) =
        doomed.iter().partition(|image| image.places.iter().all(|p| empty.contains(p)));
    let ids = |images: Vec<&Doomed>| images.into_iter().map(|image| image.id).collect::<Vec<_>>();
    Ok(sweep::delete(&ctx.db, batch, &ids(gone), &ids(there)).await?)
}

impl Library {
    fn coverage(&self) -> Coverage {
        match self {
            Self::Folder(folder) => coverage_of(folder),
            Self::Bucket(prefix) => Coverage::of_s3(prefix),
        }
    }

    /// Those of the places that hold nothing for certain.
    async fn gone(&self, ctx: &WorkerContext, places: &[String]) -> Result<HashSet<String>, JobError> {
        match self {
            Self::Folder(folder) => {
                let (folder, places) = (folder.clone(), places.to_vec());
                let look = move || places.into_iter().filter(|place| is_gone(&folder, place)).collect();
                tokio::task::spawn_blocking(look).await.map_err(|e| JobError::Transient(e.into()))
            }
            Self::Bucket(_) => objects_gone(ctx, places).await,
        }
    }
}

/// What a listing of the folder says of places.
pub(super) fn coverage_of(folder: &Path) -> Coverage {
    Coverage::of_folder(&folder.to_string_lossy())
}

/// Whether there is no file at a place below the library, for certain: the folder on the way to it that is there, within
/// the library, has to hold something else. One that is empty may be where a disk is to be mounted.
fn is_gone(library: &Path, place: &str) -> bool {
    let Some(path) = place.strip_prefix("file://").map(Path::new) else { return false };
    if path.components().any(|part| part == Component::ParentDir) {
        return false;
    }
    match fs::metadata(path) {
        Ok(found) => !found.is_file(),
        Err(error) if is_absence(path, &error) => {
            let mut folders = path.ancestors().skip(1).take_while(|folder| folder.starts_with(library));
            folders.find_map(holds_something).unwrap_or(false)
        }
        Err(_) => false,
    }
}

/// Whether the folder is known to hold anything that is not hidden; `None` when there is no such folder.
fn holds_something(folder: &Path) -> Option<bool> {
    let is_seen = |entry: std::io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
    };
    match fs::read_dir(folder) {
        Ok(mut entries) => Some(entries.any(is_seen)),
        Err(error) if is_absence(folder, &error) => None,
        Err(_) => Some(false),
    }
}

/// Whether the error says that nothing has this name. A link may lead to where a disk is to be mounted.
fn is_absence(path: &Path, error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
        && !fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink())
}

async fn objects_gone(ctx: &WorkerContext, uris: &[String]) -> Result<HashSet<String>, JobError> {
    let look = |uri: String| async move {
        // The first whose key begins so is the object itself, if there is one.
        let found = ctx.objects.list_references(&uri, None, 1).await?;
        Ok::<_, JobError>(found.first().is_none_or(|first| first.uri != uri).then_some(uri))
    };
    let looked: Vec<Option<String>> =
        stream::iter(uris.iter().cloned().map(look)).buffered(AT_ONCE).try_collect().await?;
    Ok(looked.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_there_for_certain_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("library");
        let make = |name: &str| {
            let path = library.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        };
        for name in ["there.jpg", "album/there.jpg", "file", "hidden/.keep", "deep/folder/.keep"] {
            make(name);
        }
        fs::create_dir_all(library.join("empty")).unwrap();
        fs::create_dir_all(library.join("a.jpg")).unwrap();
        for name in ["link", "link.jpg"] {
            std::os::unix::fs::symlink(library.join("away"), library.join(name)).unwrap();
        }
        let is_gone = |name: &str| is_gone(&library, &format!("file://{}", library.join(name).display()));
        for gone in ["gone.jpg", "album/gone.jpg", "no/album/gone.jpg", "file/gone.jpg", "a.jpg"] {
            assert!(is_gone(gone), "{gone}");
        }
        for kept in [
            "there.jpg",
            "album/there.jpg",
            "empty/a.jpg",
            "empty/sub/a.jpg",
            "hidden/a.jpg",
            "deep/folder/a.jpg",
            "link/a.jpg",
            "link.jpg",
            "../elsewhere.jpg",
        ] {
            assert!(!is_gone(kept), "{kept}");
        }
        fs::remove_dir_all(&library).unwrap();
        fs::write(folder.path().join("other"), "").unwrap();
        assert!(!is_gone("gone.jpg"), "all of the library is away");
    }
}
