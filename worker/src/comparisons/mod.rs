//! Compares the two models of reprocess runs on faces whose persons are known: reads a bounded number of them, has
//! [`figures`] work in a thread of its own, and keeps what comes of it.

mod figures;
mod sample;
mod scores;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use shared::access::Grant;
use shared::catalogue::Metric;
use shared::comparison::ComparisonReport;
use shared::db::collections::{self, CollectionSettings};
use shared::db::reprocess::comparison::{Disagreement, Labelled, due, keep, labelled, postpone, vectors};
use shared::db::reprocess::{Run, match_cosines};
use shared::embedding::Embedding;
use shared::ids::{FaceId, PersonId};
use shared::template;
use tokio_util::sync::CancellationToken;

use self::figures::{Faces, compare};
use self::sample::{MOST, sample};
use crate::context::WorkerContext;
use crate::leadership::Leadership;
use crate::thresholds::{Terms, Thresholds};

/// Faces of a page.
const PAGE: u64 = 5_000;
/// Vectors that are read in one step.
const VECTORS: usize = 500;
/// How often the role is renewed while figures are worked out.
const RENEW: Duration = Duration::from_secs(1);
/// Pause after a comparison that failed: most often it would again.
const AFTER_FAILURE: Duration = Duration::from_secs(30);

/// Compares what is to be compared until `stop`.
pub(crate) async fn run(ctx: WorkerContext, stop: CancellationToken) {
    let poll = Duration::from_secs_f64(ctx.config.worker.poll_s);
    let mut leadership = Leadership::new(ctx.db.clone(), "comparisons");
    loop {
        let mut pause = poll;
        if leadership.held().await {
            match step(&ctx, &mut leadership, &stop).await {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "compare the two models of a run");
                    pause = AFTER_FAILURE;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    leadership.resign().await;
}

/// Makes the comparison that has waited longest, if one does. One that is broken off is made anew; one that fails, after the
/// others.
async fn step(ctx: &WorkerContext, leadership: &mut Leadership, stop: &CancellationToken) -> anyhow::Result<()> {
    let Some((run, began)) = due(&ctx.db).await? else { return Ok(()) };
    let made = make(ctx, leadership, stop, &run, began).await;
    if made.is_err() {
        postpone(&ctx.db, run.id).await?;
    }
    made.with_context(|| format!("run {}", run.id))
}

async fn make(
    ctx: &WorkerContext,
    leadership: &mut Leadership,
    stop: &CancellationToken,
    run: &Run,
    began: i64,
) -> anyhow::Result<()> {
    let mut all = Vec::new();
    loop {
        let page = labelled(&ctx.db, run, all.last().map(|last: &Labelled| last.face_id), PAGE).await?;
        let is_last = (page.len() as u64) < PAGE;
        all.extend(page);
        if is_last {
            break;
        }
        if stop.is_cancelled() || !leadership.held().await {
            return Ok(());
        }
    }
    let labelled_faces = all.len();
    let seed = run.id.0.as_u128();
    let choosing = tokio::task::spawn_blocking(move || (comparisons_of_one(&all), sample(all, seed, MOST)));
    let (comparisons, chosen) = choosing.await.context("choosing faces panicked")?;
    let faces = read(ctx, run, chosen).await?;
    let thresholds = Both::of(ctx, run, comparisons).await?;
    let made = within_thread(leadership, stop, move |stopped| {
        compare(&faces, labelled_faces, thresholds.pipelines(), &thresholds.each(), stopped)
    });
    let Some((report, disagreements)) = made.await? else { return Ok(()) };
    keep(&ctx.db, run.id, began, &report, &disagreements).await?;
    tracing::info!(run.id = %run.id, faces = report.faces, "the two models of a run were compared");
    Ok(())
}

/// The vectors of both pipelines; a face that lost one meanwhile is left out.
async fn read(ctx: &WorkerContext, run: &Run, chosen: Vec<Labelled>) -> anyhow::Result<Faces> {
    let mut faces = Faces::default();
    for part in chosen.chunks(VECTORS) {
        let ids: Vec<FaceId> = part.iter().map(|face| face.face_id).collect();
        let mut from: HashMap<FaceId, Embedding> = vectors(&ctx.db, &run.from_pipeline, &ids).await?;
        let mut to = vectors(&ctx.db, &run.pipeline, &ids).await?;
        for face in part {
            if let (Some(from), Some(to)) = (from.remove(&face.face_id), to.remove(&face.face_id)) {
                faces.push(*face, from, to);
            }
        }
    }
    Ok(faces)
}

/// How many comparisons it is to look up one of these faces among the others.
fn comparisons_of_one(faces: &[Labelled]) -> usize {
    let persons = faces.iter().fold(HashMap::<PersonId, usize>::new(), |mut persons, face| {
        *persons.entry(face.person_id).or_default() += 1;
        persons
    });
    persons.into_values().map(template::comparisons).sum::<usize>().saturating_sub(1)
}

/// What the collection decides by with each pipeline, or would.
struct Both {
    terms: [Terms; 2],
    comparisons: usize,
}

impl Both {
    async fn of(ctx: &WorkerContext, run: &Run, comparisons: usize) -> anyhow::Result<Self> {
        let row = collections::find(&ctx.db.read, &Grant::everything(), run.collection_id).await?;
        let row = row.context("the collection is gone")?;
        let settings = row.settings()?;
        let cosines = match_cosines(&ctx.db, run.collection_id).await?.context("the collection is gone")?;
        let of = async |name: &str| {
            let pipeline = ctx.engines.pipeline(name).await?;
            // A threshold says nothing of another model's scores.
            let match_cosine = cosines.of(name);
            anyhow::Ok(Terms {
                pipeline: name.to_owned(),
                metric: pipeline.recognizer.metric,
                settings: CollectionSettings { match_cosine, ..settings.clone() },
                calibration: ctx.calibrations.of(&ctx.db, &pipeline, run.collection_id).await?,
            })
        };
        Ok(Self { terms: [of(&run.from_pipeline).await?, of(&run.pipeline).await?], comparisons })
    }

    fn pipelines(&self) -> [(&str, Metric); 2] {
        self.terms.each_ref().map(|terms| (terms.pipeline.as_str(), terms.metric))
    }

    /// The threshold of each at the collection's size; none where nothing says one.
    fn each(&self) -> [Option<Thresholds<'_>>; 2] {
        self.terms.each_ref().map(|terms| Thresholds::identify(terms, self.comparisons).ok())
    }
}

/// Runs work in a thread of its own while the role is renewed; `None` where it was broken off.
async fn within_thread(
    leadership: &mut Leadership,
    stop: &CancellationToken,
    work: impl FnOnce(&AtomicBool) -> Option<(ComparisonReport, Vec<Disagreement>)> + Send + 'static,
) -> anyhow::Result<Option<(ComparisonReport, Vec<Disagreement>)>> {
    let stopped = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stopped);
    let mut working = tokio::task::spawn_blocking(move || work(&asked));
    loop {
        tokio::select! {
            made = &mut working => return made.context("comparing panicked"),
            () = stop.cancelled(), if !stopped.load(Ordering::Relaxed) => stopped.store(true, Ordering::Relaxed),
            () = tokio::time::sleep(RENEW) => {
                if !leadership.held().await {
                    stopped.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}
