//! Clusters the faces that nobody knows: takes those that wait, finds out with [`units`] where they belong, and records it.
//!
//! The leader holds a collection's units in memory, as they were in one version of the stored clusters. A pass that meets
//! another version when it records is given up, and the units are read anew.

mod collection;
pub mod units;

use std::collections::HashMap;
use std::time::Duration;

use shared::access::Grant;
use shared::db::clusters::queue;
use shared::db::collections;
use shared::ids::CollectionId;
use shared::models::ModelsError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::collection::{Collection, PassError};
use crate::context::WorkerContext;
use crate::engines::EnginesError;
use crate::leadership::Leadership;

/// How long a collection with too many faces is left alone.
const TOO_LARGE_FOR: Duration = Duration::from_secs(3600);

/// What the leader knows of collections.
#[derive(Default)]
struct Held {
    /// Those in memory, each with when it was last worked on.
    collections: HashMap<CollectionId, (Collection, Instant)>,
    /// Those with too many faces, each with when that was found; what waits of them is folded meanwhile.
    too_large: HashMap<CollectionId, Instant>,
}

/// Clusters until `stop`.
pub async fn run(ctx: WorkerContext, stop: CancellationToken) {
    let poll = Duration::from_secs_f64(ctx.config.worker.poll_s);
    let mut leadership = Leadership::new(ctx.db.clone(), "clusters");
    let mut held = Held::default();
    loop {
        let mut pause = poll;
        if leadership.held().await {
            match step(&ctx, &mut held, &mut leadership, &stop).await {
                Ok(true) => pause = Duration::ZERO,
                Ok(false) => {}
                Err(error) => {
                    held.collections.clear();
                    tracing::warn!(error = format!("{error:#}"), "cluster faces");
                }
            }
        } else {
            // Another leader goes on.
            held.collections.clear();
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    leadership.resign().await;
}

/// One pass over the collection whose face has waited longest; false when there is nothing to do for now.
async fn step(
    ctx: &WorkerContext,
    held: &mut Held,
    leadership: &mut Leadership,
    stop: &CancellationToken,
) -> anyhow::Result<bool> {
    held.too_large.retain(|_, since| since.elapsed() < TOO_LARGE_FOR);
    let too_large: Vec<CollectionId> = held.too_large.keys().copied().collect();
    for id in &too_large {
        queue::fold(&ctx.db, *id).await?;
    }
    let Some(id) = queue::next_collection(&ctx.db, &too_large).await? else { return Ok(false) };
    let Some(row) = collections::find(&ctx.db.read, &Grant::everything(), id).await? else {
        held.collections.remove(&id);
        queue::forget(&ctx.db, id).await?;
        return Ok(true);
    };
    let by = match ctx.engines.pipeline(&row.pipeline).await {
        Ok(pipeline) => {
            let calibration = ctx.calibrations.of(&ctx.db, &pipeline, id).await?;
            calibration.map(|calibration| (calibration, pipeline.recognizer.metric))
        }
        Err(EnginesError::Models(ModelsError::Db(error))) => return Err(error.into()),
        Err(_) => None,
    };
    let by = by.filter(|_| row.settings().is_ok_and(|settings| settings.clustering));
    let Some((calibration, metric)) = by else {
        held.collections.remove(&id);
        queue::forget(&ctx.db, id).await?;
        return Ok(true);
    };
    let known = held.collections.remove(&id).map(|(collection, _)| collection);
    let known = known.filter(|known| known.pipeline() == row.pipeline);
    let collection = if let Some(collection) = known {
        Ok(collection)
    } else {
        let loaded = Collection::load(ctx, &row, metric, leadership, stop).await;
        if loaded.is_ok() {
            queue::unfold(&ctx.db, id).await?;
        }
        loaded
    };
    let passed = match collection {
        Ok(collection) => collection.pass(ctx, &calibration.calibration).await,
        Err(error) => Err(error),
    };
    match passed {
        Ok(collection) => held.keep(id, collection, ctx.config.clustering.max_faces),
        // Read anew with the next step, a little later: whoever changes clusters may go on.
        Err(PassError::Stale) => return Ok(false),
        Err(PassError::TooLarge(faces)) => {
            tracing::warn!(collection.id = %id, faces, "too many faces to cluster; see clustering.max_faces");
            held.too_large.insert(id, Instant::now());
        }
        Err(error) => return Err(error.into()),
    }
    Ok(true)
}

impl Held {
    /// Keeps the collection in memory, and lets go of those that were not worked on for longest until there are `max_faces`
    /// at most.
    fn keep(&mut self, id: CollectionId, collection: Collection, max_faces: usize) {
        self.collections.insert(id, (collection, Instant::now()));
        while self.collections.len() > 1
            && self.collections.values().map(|(collection, _)| collection.faces()).sum::<usize>() > max_faces
            && let Some(oldest) = self.collections.iter().min_by_key(|(_, (_, at))| *at).map(|(id, _)| *id)
        {
            self.collections.remove(&oldest);
        }
    }
}
