//! Takes erasures further, by their receipts: deletes what is left of the rows, looks through jobs and events for what is
//! erased, deletes the objects, and ends the receipt. No job of a queue: one of a collection could not outlive it, and each
//! would need a worker of the collection's pipeline. Every step may be repeated, and each begins where a crash left it.

use std::collections::BTreeMap;
use std::time::Duration;

use sea_orm::{DatabaseBackend, DbErr};
use shared::db::erasures::traces::{Slice, Traces, events_of_collection};
use shared::db::erasures::{self, ErasedObject, Erasure, rows};
use shared::failpoints::failpoint;
use shared::ids::CollectionId;
use tokio_util::sync::CancellationToken;

use crate::context::WorkerContext;
use crate::leadership::Leadership;
use crate::sweeper;

/// How soon to look again while there is something to do.
const BUSY_POLL: Duration = Duration::from_millis(100);
/// Erasures that are looked after at once.
const ROUND: u64 = 256;
/// Slices of one erasure before the next one has its turn.
const SLICES: usize = 20;
/// Objects of one page.
const PAGE: usize = 500;

/// Looks after erasures until `stop`.
pub(crate) async fn run(ctx: WorkerContext, stop: CancellationToken) {
    let poll = Duration::from_secs_f64(ctx.config.worker.poll_s);
    let leadership = Leadership::new(ctx.db.clone(), "erasures");
    let mut eraser = Eraser { ctx, leadership, stop: stop.clone() };
    loop {
        let mut pause = poll;
        if eraser.leadership.held().await {
            match eraser.round().await {
                Ok(true) => pause = BUSY_POLL.min(poll),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "look for erasures"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    eraser.leadership.resign().await;
}

/// Whether a step is done; why it failed goes to the log.
fn succeeded(step: anyhow::Result<bool>) -> bool {
    step.unwrap_or_else(|error| {
        tracing::warn!(error = format!("{error:#}"), "an erasure goes on later");
        false
    })
}

struct Eraser {
    ctx: WorkerContext,
    leadership: Leadership,
    stop: CancellationToken,
}

impl Eraser {
    /// Whether this process may go on.
    async fn may_go_on(&mut self) -> bool {
        !self.stop.is_cancelled() && self.leadership.held().await
    }

    /// Takes each erasure a little further; true while there are any. One that fails keeps no other from it.
    async fn round(&mut self) -> Result<bool, DbErr> {
        let open = erasures::open(&self.ctx.db, ROUND).await?;
        let is_busy = !open.is_empty();
        let mut without_rows: BTreeMap<Option<CollectionId>, Vec<Erasure>> = BTreeMap::new();
        for erasure in open {
            if succeeded(self.rows_are_gone(&erasure).await) {
                without_rows.entry(erasure.collection_id).or_default().push(erasure);
            }
        }
        for (collection, some) in without_rows {
            if let Some(collection) = collection
                && !succeeded(self.no_trace_is_left(collection, &some).await)
            {
                continue;
            }
            for erasure in &some {
                succeeded(self.end(erasure).await.map(|()| true));
            }
        }
        Ok(is_busy)
    }

    /// Deletes some of what is left of the rows; true when nothing is.
    async fn rows_are_gone(&mut self, erasure: &Erasure) -> anyhow::Result<bool> {
        for _ in 0..SLICES {
            if !self.may_go_on().await {
                return Ok(false);
            }
            if !rows::slice(&self.ctx.db, &self.ctx.secret_key, erasure).await? {
                return Ok(true);
            }
            failpoint("erasing_rows");
        }
        Ok(false)
    }

    /// Looks through jobs and events for what some erasures of a collection have erased; true when nothing names it any more.
    async fn no_trace_is_left(&mut self, collection: CollectionId, erased: &[Erasure]) -> anyhow::Result<bool> {
        let db = self.ctx.db.clone();
        let traces = Traces::of(&db, collection, erased).await?;
        while traces.wait_for_jobs(&db).await? {
            tokio::time::sleep(BUSY_POLL).await;
            if !self.may_go_on().await {
                return Ok(false);
            }
        }
        let mut running = Vec::new();
        let mut after = None;
        loop {
            if !self.may_go_on().await {
                return Ok(false);
            }
            let slice = traces.jobs(&db, after).await?;
            self.announce(&slice);
            running.extend(slice.running);
            after = slice.last;
            failpoint("erasing_jobs");
            if after.is_none() {
                break;
            }
        }
        while !running.is_empty() {
            tokio::time::sleep(BUSY_POLL).await;
            if !self.may_go_on().await {
                return Ok(false);
            }
            let slice = traces.jobs_again(&db, &running).await?;
            self.announce(&slice);
            running = slice.running;
        }
        let mut after = None;
        loop {
            after = traces.events(&db, after).await?;
            if after.is_none() {
                break;
            }
            if !self.may_go_on().await {
                return Ok(false);
            }
        }
        traces.queues(&db).await?;
        Ok(true)
    }

    fn announce(&self, slice: &Slice) {
        for job in &slice.cancelled {
            self.ctx.finished.announce(*job);
        }
    }

    /// Deletes the objects, and ends the erasure once the database's own files have forgotten it too.
    async fn end(&mut self, erasure: &Erasure) -> anyhow::Result<()> {
        let db = self.ctx.db.clone();
        if erasure.collection_id.is_none() {
            let mut after = None;
            loop {
                after = events_of_collection(&db, erasure, after).await?;
                if after.is_none() {
                    break;
                }
                if !self.may_go_on().await {
                    return Ok(());
                }
            }
        }
        loop {
            let objects = erasures::objects(&db, erasure.id, PAGE as u64).await?;
            if objects.is_empty() {
                break;
            }
            for object in &objects {
                if !self.delete(erasure, object).await? {
                    return Ok(());
                }
            }
        }
        // Crops that were made for jobs which were then discarded.
        sweeper::delete_orphans(&self.ctx, &self.stop).await?;
        if db.write.get_database_backend() == DatabaseBackend::Sqlite {
            // The index in memory, and the log from which it learns, forget the vectors and the ids.
            self.ctx.face_index.maintain().await?;
        }
        failpoint("erasing_end");
        if !erasures::forget_journal(&db).await? {
            return Ok(());
        }
        erasures::finish(&db, erasure.id).await?;
        // What the receipt itself knew until now.
        erasures::forget_journal(&db).await?;
        tracing::info!(erasure.id = %erasure.id, "erased");
        Ok(())
    }

    /// Deletes an object, or all that have a prefix; false when somebody else has to go on.
    async fn delete(&mut self, erasure: &Erasure, object: &ErasedObject) -> anyhow::Result<bool> {
        let db = self.ctx.db.clone();
        loop {
            if !self.may_go_on().await {
                return Ok(false);
            }
            let keys = if object.is_prefix {
                let page = self.ctx.objects.list(&object.key, None, PAGE).await?;
                page.into_iter().map(|object| object.key).collect()
            } else {
                vec![object.key.clone()]
            };
            for key in &keys {
                self.ctx.objects.delete(key).await?;
            }
            let is_done = !object.is_prefix || keys.len() < PAGE;
            if object.is_prefix && is_done {
                erasures::forget_orphans(&db, &object.key).await?;
            }
            erasures::objects_deleted(&db, erasure.id, &keys, is_done.then_some(object)).await?;
            failpoint("erasing_objects");
            if is_done {
                return Ok(true);
            }
        }
    }
}
