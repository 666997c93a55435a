//! Judges the places that a batch's complete listing did not meet: each is looked for once more, and only what is not there
//! is gone.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use shared::batch::BatchSource;
use shared::db::batches::missing::Coverage;
use shared::db::batches::sweep::{self, Left};
use shared::db::entity::batch::Model as Batch;
use shared::failpoints::failpoint;

use super::{resolved, source};
use crate::context::WorkerContext;
use crate::jobs::JobError;

/// Places of one slice, and so of one transaction.
const PLACES: u64 = 500;
/// Places of a bucket that are looked for at once.
const AT_ONCE: usize = 16;

/// Judges the next places of a batch, or deletes what is gone where none are left to judge.
pub(super) async fn step(ctx: &WorkerContext, batch: &Batch) -> Result<Left, JobError> {
    let missing = sweep::missing(&ctx.db, batch.id, PLACES).await?;
    let (coverage, there) = match source(batch)? {
        BatchSource::Folder(folder) => {
            let (roots, missing) = (ctx.import_roots.clone(), missing.clone());
            let looked = tokio::task::spawn_blocking(move || {
                let folder = resolved(&roots, &folder)?;
                let there: Vec<String> = missing.into_iter().filter(|uri| is_file_there(uri)).collect();
                Ok::<_, JobError>((coverage_of(&folder), there))
            });
            looked.await.map_err(|e| JobError::Transient(e.into()))??
        }
        BatchSource::S3(prefix) => (Coverage::of_s3(&prefix), objects_there(ctx, &missing).await?),
        BatchSource::Manifest(_) => return Ok(Left::Nothing),
    };
    if missing.is_empty() {
        return Ok(sweep::conclude(&ctx.db, batch, &coverage.prefix).await?);
    }
    let gone: Vec<String> = missing.into_iter().filter(|uri| !there.contains(uri)).collect();
    let is_judged = sweep::judge(&ctx.db, batch, &gone, &there).await?;
    failpoint("after_sweep_slice");
    Ok(if is_judged { Left::More } else { Left::Nothing })
}

/// What a listing of the folder says of places.
pub(super) fn coverage_of(folder: &Path) -> Coverage {
    Coverage::of_folder(&folder.to_string_lossy())
}

/// Whether there is a file, or nobody can tell.
fn is_file_there(uri: &str) -> bool {
    let Some(path) = uri.strip_prefix("file://").map(PathBuf::from) else { return true };
    match std::fs::metadata(path) {
        Ok(metadata) => metadata.is_file(),
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
    }
}

async fn objects_there(ctx: &WorkerContext, uris: &[String]) -> Result<Vec<String>, JobError> {
    let look = |uri: String| async move {
        // The first whose key begins so is the object itself, if there is one.
        let found = ctx.objects.list_references(&uri, None, 1).await?;
        Ok::<_, JobError>(found.first().is_some_and(|first| first.uri == uri).then_some(uri))
    };
    let looked: Vec<Option<String>> =
        stream::iter(uris.iter().cloned().map(look)).buffered(AT_ONCE).try_collect().await?;
    Ok(looked.into_iter().flatten().collect())
}
