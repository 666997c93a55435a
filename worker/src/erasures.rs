//! Takes erasures further, by their receipts: deletes what is left of the rows, looks through jobs and events for what is
//! erased, deletes the objects, and ends the receipt. No job of a queue: one of a collection could not outlive it, and each
//! would need a worker of the collection's pipeline. Every step may be repeated, and each begins where a crash left it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sea_orm::{DatabaseBackend, DbErr};
use shared::db::erasures::rows::{self, Sliced};
use shared::db::erasures::traces::{Slice, Traces, events_of_collection};
use shared::db::erasures::{self, ErasedObject, Erasure};
use shared::failpoints::failpoint;
use shared::ids::{CollectionId, ErasureId, FaceId, JobId};
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
/// The longest pause before the database is asked again to forget what somebody still reads.
const JOURNAL_PAUSE: Duration = Duration::from_secs(60);
/// Objects of one page.
const PAGE: usize = 500;

/// Looks after erasures until `stop`.
pub(crate) async fn run(ctx: WorkerContext, stop: CancellationToken) {
    let poll = Duration::from_secs_f64(ctx.config.worker.poll_s);
    let leadership = Leadership::new(ctx.db.clone(), "erasures");
    let mut eraser = Eraser {
        ctx,
        leadership,
        stop: stop.clone(),
        after: None,
        stages: BTreeMap::new(),
        passes: BTreeMap::new(),
        has_failed: false,
    };
    loop {
        let mut pause = poll;
        if eraser.leadership.held().await {
            match eraser.round().await {
                Ok(true) => pause = BUSY_POLL.min(poll),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "look for erasures"),
            }
        } else {
            // Somebody else takes them further.
            (eraser.stages, eraser.passes) = (BTreeMap::new(), BTreeMap::new());
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    eraser.leadership.resign().await;
}

struct Eraser {
    ctx: WorkerContext,
    leadership: Leadership,
    stop: CancellationToken,
    /// Behind which one the next round begins.
    after: Option<ErasureId>,
    /// How far each is, as far as this process knows.
    stages: BTreeMap<ErasureId, Stage>,
    /// Of each collection that is looked through, what waits for its jobs.
    passes: BTreeMap<CollectionId, Pass>,
    /// A step of this round failed: the next one waits as if there were nothing to do.
    has_failed: bool,
}

/// What is known of an erasure.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Rows may be left; those of a person's faces up to that one are not.
    Rows(Option<FaceId>),
    NoRows,
    NoTraces,
    /// Only the database's own files still know it.
    Journal {
        again_at: Instant,
        pause: Duration,
    },
}

/// A look through jobs and events for some erasures of a collection.
struct Pass {
    traces: Traces,
    erasures: Vec<Erasure>,
    /// Once all jobs were looked at: those that are to be looked at again.
    running: Option<Vec<JobId>>,
}

impl Eraser {
    /// Whether this process may go on.
    async fn may_go_on(&mut self) -> bool {
        !self.stop.is_cancelled() && self.leadership.held().await
    }

    /// Whether a step is done; why it failed goes to the log.
    fn succeeded(&mut self, step: anyhow::Result<bool>) -> bool {
        step.unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "an erasure goes on later");
            self.has_failed = true;
            false
        })
    }

    /// Takes some erasures a little further, each round the next ones; true while there are any that need not wait. One that
    /// fails or waits keeps no other from it.
    async fn round(&mut self) -> Result<bool, DbErr> {
        let open = erasures::open(&self.ctx.db, self.after, ROUND).await?;
        self.after = open.last().map(|last| last.id).filter(|_| open.len() as u64 == ROUND);
        let mut is_busy = self.after.is_some();
        self.has_failed = false;
        let mut to_trace: BTreeMap<CollectionId, Vec<Erasure>> = BTreeMap::new();
        for erasure in open {
            let stage = self.stages.get(&erasure.id).copied().unwrap_or(Stage::Rows(None));
            is_busy |= !matches!(stage, Stage::Journal { .. });
            if let Stage::Rows(after) = stage {
                let are_gone = self.rows_are_gone(&erasure, after).await;
                if !self.succeeded(are_gone) {
                    continue;
                }
                self.stages.insert(erasure.id, Stage::NoRows);
            }
            let stage = self.stages.get(&erasure.id).copied();
            if let (Some(Stage::NoRows), Some(collection)) = (stage, erasure.collection_id) {
                to_trace.entry(collection).or_default().push(erasure);
            } else {
                let ended = self.end(&erasure).await;
                self.succeeded(ended);
            }
        }
        for (collection, some) in to_trace {
            self.trace(collection, some).await;
        }
        Ok(is_busy && !self.has_failed)
    }

    /// Goes on with the pass over a collection's jobs and events, or begins one for these erasures; whatever comes while one
    /// waits for jobs is for the next.
    async fn trace(&mut self, collection: CollectionId, some: Vec<Erasure>) {
        let pass = match self.passes.remove(&collection) {
            Some(pass) => Ok(pass),
            None => Traces::of(&self.ctx.db, collection, &some).await.map(|traces| Pass {
                traces,
                erasures: some,
                running: None,
            }),
        };
        let mut pass = match pass {
            Ok(pass) => pass,
            Err(error) => {
                self.succeeded(Err(error.into()));
                return;
            }
        };
        match self.no_trace_is_left(&mut pass).await {
            Ok(true) => {
                for erasure in &pass.erasures {
                    self.stages.insert(erasure.id, Stage::NoTraces);
                    let ended = self.end(erasure).await;
                    self.succeeded(ended);
                }
            }
            Ok(false) => _ = self.passes.insert(collection, pass),
            // From its beginning.
            Err(error) => {
                self.succeeded(Err(error));
            }
        }
    }

    /// Deletes some of what is left of the rows; true when nothing is.
    async fn rows_are_gone(&mut self, erasure: &Erasure, mut after: Option<FaceId>) -> anyhow::Result<bool> {
        for _ in 0..SLICES {
            if !self.may_go_on().await {
                return Ok(false);
            }
            match rows::slice(&self.ctx.db, &self.ctx.secret_key, erasure, after).await? {
                Sliced::Done => return Ok(true),
                Sliced::More(last) => after = last,
            }
            self.stages.insert(erasure.id, Stage::Rows(after));
            failpoint("erasing_rows");
        }
        Ok(false)
    }

    /// Looks through jobs and events for what some erasures of a collection have erased; true when nothing names it any more,
    /// false while jobs run that may.
    async fn no_trace_is_left(&mut self, pass: &mut Pass) -> anyhow::Result<bool> {
        let db = self.ctx.db.clone();
        let traces = &pass.traces;
        let running = match pass.running.take() {
            Some(running) => {
                let slice = traces.jobs_again(&db, &running).await?;
                self.announce(&slice);
                slice.running
            }
            None if traces.wait_for_jobs(&db).await? => return Ok(false),
            None => {
                // First, so that no job takes over from these what it was looked through for.
                traces.queues(&db).await?;
                traces.tags(&db).await?;
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
                        break running;
                    }
                }
            }
        };
        if !running.is_empty() {
            pass.running = Some(running);
            return Ok(false);
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

    /// Deletes the objects, and ends the erasure once the database's own files have forgotten it too; true when it is done.
    async fn end(&mut self, erasure: &Erasure) -> anyhow::Result<bool> {
        let pause = match self.stages.get(&erasure.id).copied() {
            Some(Stage::Journal { again_at, .. }) if Instant::now() < again_at => return Ok(false),
            Some(Stage::Journal { pause, .. }) => (pause * 2).min(JOURNAL_PAUSE),
            _ if self.nothing_is_left(erasure).await? => BUSY_POLL,
            _ => return Ok(false),
        };
        let db = self.ctx.db.clone();
        if !erasures::forget_journal(&db).await? {
            self.stages.insert(erasure.id, Stage::Journal { again_at: Instant::now() + pause, pause });
            return Ok(false);
        }
        erasures::finish(&db, erasure.id).await?;
        self.stages.remove(&erasure.id);
        // What the receipt itself knew until now.
        erasures::forget_journal(&db).await?;
        tracing::info!(erasure.id = %erasure.id, "erased");
        Ok(true)
    }

    /// Deletes the objects, and what the index in memory knows; false when somebody else has to go on.
    async fn nothing_is_left(&mut self, erasure: &Erasure) -> anyhow::Result<bool> {
        let db = self.ctx.db.clone();
        if erasure.collection_id.is_none() {
            let mut after = None;
            loop {
                after = events_of_collection(&db, erasure, after).await?;
                if after.is_none() {
                    break;
                }
                if !self.may_go_on().await {
                    return Ok(false);
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
                    return Ok(false);
                }
            }
        }
        // Crops that were made for jobs which were then discarded. Those of a collection that goes lie below its prefix.
        if let Some(collection) = erasure.collection_id {
            let prefix = format!("collections/{collection}/");
            if !sweeper::delete_orphans(&self.ctx, &prefix, &self.stop).await? {
                return Ok(false);
            }
        } else if let Err(error) = sweeper::delete_orphans(&self.ctx, "", &self.stop).await {
            tracing::warn!(error = format!("{error:#}"), "orphaned objects are left to the sweeper");
        }
        // Whoever is told to stop leaves the rest of them.
        if self.stop.is_cancelled() {
            return Ok(false);
        }
        if db.write.get_database_backend() == DatabaseBackend::Sqlite {
            // The index in memory, and the log from which it learns, forget the vectors and the ids.
            self.ctx.face_index.maintain().await?;
        }
        failpoint("erasing_end");
        Ok(true)
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
