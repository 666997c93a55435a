//! Lists what batches name, a page of each in turn, and makes jobs of it. A listing that breaks off goes on at the batch's
//! checkpoint, in this process or in another. Once the jobs have ended, known places that were not listed are judged.

mod folder;
mod manifest;
mod sweep;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use shared::access::Grant;
use shared::batch::{BatchSource, Checkpoint, is_picture_name};
use shared::db::batches::listing::{self, Listed};
use shared::db::batches::missing::Coverage;
use shared::db::batches::sweep as sweeps;
use shared::db::collections;
use shared::db::entity::batch::Model as Batch;
use shared::ids::BatchId;
use shared::job::{ImageRef, Problem};
use shared::objects::{ImportRoots, ObjectError};
use tokio_util::sync::CancellationToken;

use self::folder::FolderWalk;
use self::manifest::ManifestReader;
use crate::context::WorkerContext;
use crate::jobs::JobError;
use crate::leadership::Leadership;
use crate::retry;

/// Pictures of one page, and so of one transaction.
const PAGE: usize = 1000;
/// Batches that have a turn in one round.
const BATCHES: u64 = 16;

/// Lists until `stop`.
pub async fn run(ctx: WorkerContext, stop: CancellationToken) {
    let poll = Duration::from_secs_f64(ctx.config.worker.poll_s);
    let mut leadership = Leadership::new(ctx.db.clone(), "lister");
    let mut lister = Lister { ctx, open: HashMap::new(), turn: None, seen: HashSet::new() };
    loop {
        let mut pause = poll;
        if leadership.held().await {
            let round = tokio::select! {
                // A slow store or folder does not keep the worker from stopping.
                () = stop.cancelled() => break,
                round = lister.round() => round,
            };
            match round {
                Ok(true) => pause = Duration::ZERO,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "list the items of batches"),
            }
        } else {
            lister.open.clear();
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    leadership.resign().await;
}

struct Lister {
    ctx: WorkerContext,
    /// Sources that are cheaper to go on with than to open again.
    open: HashMap<BatchId, Open>,
    /// The batch that had the last turn.
    turn: Option<BatchId>,
    /// Batches that had a turn since the first one.
    seen: HashSet<BatchId>,
}

enum Open {
    Folder(FolderWalk),
    Manifest(ManifestReader),
}

impl Lister {
    /// Lists a page of each batch that is due, and sweeps a slice of each that is; true when there may be more.
    async fn round(&mut self) -> Result<bool, sea_orm::DbErr> {
        let is_sweeping = self.sweep().await?;
        Ok(self.list().await? || is_sweeping)
    }

    async fn list(&mut self) -> Result<bool, sea_orm::DbErr> {
        let batches = listing::due(&self.ctx.db, self.turn, BATCHES).await?;
        if batches.is_empty() {
            // What had no turn is held or has ended.
            self.open.retain(|batch, _| self.seen.contains(batch));
            self.seen.clear();
            // From the start again, unless that is where this round began.
            return Ok(self.turn.take().is_some());
        }
        for batch in &batches {
            self.seen.insert(batch.id);
            self.turn = Some(batch.id);
            let open = self.open.remove(&batch.id);
            match self.page(batch, open).await {
                Ok((listed, open)) => self.add(batch, &listed, open).await?,
                Err(error) => self.failed(batch, error).await?,
            }
        }
        Ok(true)
    }

    async fn sweep(&self) -> Result<bool, sea_orm::DbErr> {
        let mut more = false;
        for batch in sweeps::due(&self.ctx.db, BATCHES).await? {
            match sweep::step(&self.ctx, &batch).await {
                Ok(is_left) => more |= is_left,
                Err(error) => self.sweep_failed(&batch, error).await?,
            }
        }
        Ok(more)
    }

    async fn add(&mut self, batch: &Batch, listed: &Listed, open: Option<Open>) -> Result<(), sea_orm::DbErr> {
        // What it goes by now: that may be another pipeline than when the batch was made.
        let collection = collections::find(&self.ctx.db.read, &Grant::everything(), batch.collection_id).await?;
        let Some(collection) = collection else { return Ok(()) };
        let revision = match self.ctx.engines.pipeline(&collection.pipeline).await {
            Ok(pipeline) => pipeline.detector_revision(),
            // Another worker may know it.
            Err(error) => return self.failed(batch, JobError::Transient(error.into())).await,
        };
        let images_per_day = self.ctx.config.limits.images_per_day;
        let is_added = listing::add(&self.ctx.db, batch, &revision, images_per_day, listed).await?;
        if is_added {
            self.ctx.listed.notify_one();
        }
        if is_added && !listed.is_last {
            self.open.extend(open.map(|open| (batch.id, open)));
        } else if is_added {
            tracing::info!(batch.id = %batch.id, "every item of the batch is listed");
        }
        Ok(())
    }

    /// The next page of a batch, and its source where that is to be gone on with.
    async fn page(&self, batch: &Batch, open: Option<Open>) -> Result<(Listed, Option<Open>), JobError> {
        let checkpoint = batch.checkpoint()?;
        match source(batch)? {
            BatchSource::S3(prefix) => Ok((self.s3_page(&prefix, checkpoint).await?, None)),
            BatchSource::Folder(folder) => {
                let roots = self.ctx.import_roots.clone();
                let walked = tokio::task::spawn_blocking(move || {
                    let mut walk = match open {
                        Some(Open::Folder(walk)) => walk,
                        _ => FolderWalk::open(&resolved(&roots, &folder)?, checkpoint.after.as_deref())?,
                    };
                    Ok((walk.page(PAGE, checkpoint), Some(Open::Folder(walk))))
                });
                walked.await.map_err(|e| JobError::Transient(e.into()))?
            }
            BatchSource::Manifest(manifest) => {
                let mut reader = match open {
                    Some(Open::Manifest(reader)) => reader,
                    _ => ManifestReader::new(batch.collection_id, manifest),
                };
                let listed = reader.page(&*self.ctx.objects, PAGE, checkpoint).await?;
                Ok((listed, Some(Open::Manifest(reader))))
            }
        }
    }

    async fn s3_page(&self, prefix: &str, checkpoint: Checkpoint) -> Result<Listed, JobError> {
        let found = self.ctx.objects.list_references(prefix, checkpoint.after.as_deref(), PAGE).await?;
        let is_last = found.len() < PAGE;
        let after = found.last().map(|last| last.uri.clone()).or_else(|| checkpoint.after.clone());
        let items = found
            .into_iter()
            .filter(|found| is_picture_name(&found.uri))
            .map(|found| ImageRef::Reference { s3: found.uri, fingerprint: Some(found.fingerprint) })
            .collect();
        let coverage = Some(Coverage::of_s3(prefix));
        Ok(Listed { items, checkpoint: Checkpoint { after, ..checkpoint }, is_last, coverage })
    }

    /// Puts the sweep off, or gives it up: the batch ends without.
    async fn sweep_failed(&self, batch: &Batch, error: JobError) -> Result<(), sea_orm::DbErr> {
        let worker = &self.ctx.config.worker;
        let tries = batch.listing_tries + 1;
        let why = match error {
            JobError::Rejected(problem) | JobError::Failed(problem) => problem.detail,
            JobError::Transient(error) => {
                let error = format!("{error:#}");
                tracing::warn!(batch.id = %batch.id, tries, error, "look for places that were not listed");
                if tries < worker.max_attempts {
                    return sweeps::put_off(&self.ctx.db, batch.id, retry::delay(worker, tries)).await;
                }
                error
            }
        };
        let detail = format!("places that were not listed could not be looked for, and stay as they are: {why}");
        sweeps::give_up(&self.ctx.db, batch.id, &Problem::new("sweep_failed", detail)).await
    }

    /// Puts the listing off, or gives it up.
    async fn failed(&self, batch: &Batch, error: JobError) -> Result<(), sea_orm::DbErr> {
        let worker = &self.ctx.config.worker;
        let tries = batch.listing_tries + 1;
        let problem = match error {
            JobError::Rejected(problem) | JobError::Failed(problem) => problem,
            JobError::Transient(error) => {
                let error = format!("{error:#}");
                tracing::warn!(batch.id = %batch.id, tries, error, "list the items of a batch");
                if tries < worker.max_attempts {
                    let detail = format!("try {tries} to list its items failed: {error}");
                    let problem = Problem::new("attempt_failed", detail);
                    return listing::put_off(&self.ctx.db, batch.id, retry::delay(worker, tries), &problem).await;
                }
                Problem::new("attempts_exhausted", format!("gave up to list its items after {tries} tries: {error}"))
            }
        };
        tracing::error!(batch.id = %batch.id, code = problem.code, "the listing of a batch is given up");
        listing::give_up(&self.ctx.db, batch.id, &problem).await
    }
}

fn source(batch: &Batch) -> Result<BatchSource, JobError> {
    serde_json::from_str(&batch.source)
        .map_err(|e| JobError::Failed(Problem::new("internal", format!("its source cannot be read: {e}"))))
}

/// The folder's real place.
fn resolved(roots: &ImportRoots, folder: &str) -> Result<PathBuf, JobError> {
    roots.resolve(Path::new(folder)).map_err(|error| match error {
        ObjectError::NotFound(_) => {
            JobError::Rejected(Problem::new("source_gone", format!("there is no folder {folder} any more")))
        }
        error => error.into(),
    })
}
