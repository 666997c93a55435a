//! Follows the registered models: what is added while this process runs is tried out, its queues are bound, and everybody is
//! told what this worker runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sea_orm::DbErr;
use shared::db::Db;
use shared::db::workers::{self, Served};
use shared::health::Check;
use shared::models::LOOK_EVERY;
use shared::telemetry::metrics;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::context::WorkerContext;
use crate::offer::{Obstacles, Offer};

/// How often missing weights are looked for again.
const WEIGHTS_EVERY: Duration = Duration::from_secs(20);

/// What this worker runs now; cheap to clone.
#[derive(Clone, Debug)]
pub struct Running {
    worker: Uuid,
    offer: Arc<RwLock<Offer>>,
}

impl Running {
    /// At the start, that.
    pub fn new(offer: Offer) -> Self {
        Self { worker: Uuid::now_v7(), offer: Arc::new(RwLock::new(offer)) }
    }

    /// What it is now.
    pub fn served(&self) -> Served {
        self.offer.read().unwrap_or_else(PoisonError::into_inner).served()
    }

    /// The same for `/readyz`, which it does not turn red.
    pub fn check(&self) -> Check {
        let running = self.clone();
        Check::note("pipelines", move || running.told())
    }

    /// Says that this worker is alive, and what it runs.
    pub async fn beat(&self, db: &Db) -> Result<(), DbErr> {
        workers::beat(db, self.worker, &self.served()).await
    }

    fn told(&self) -> String {
        let Served { pipelines, left_out } = self.served();
        let mut lines = vec![format!("takes jobs of {}", pipelines.join(", "))];
        lines.extend(left_out.iter().map(|(name, why)| format!("without {name}: {why}")));
        lines.join("; ")
    }

    fn offer(&self) -> Offer {
        self.offer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, offer: Offer) {
        *self.offer.write().unwrap_or_else(PoisonError::into_inner) = offer;
    }
}

/// Follows them until `stop`.
pub(crate) async fn run(ctx: WorkerContext, stop: CancellationToken) {
    let mut followed = Followed::new(&ctx);
    loop {
        if let Err(error) = followed.step(&ctx).await {
            tracing::warn!(%error, "look at the registered models");
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
    if let Err(error) = workers::leave(&ctx.db, ctx.running.worker).await {
        tracing::warn!(%error, "say that this worker stops; it is not counted when it has been silent for a while");
    }
}

struct Followed {
    /// The catalogue that the offer is of.
    catalogue: Arc<shared::catalogue::Catalogue>,
    look_for_weights: Instant,
    beat: Instant,
}

impl Followed {
    fn new(ctx: &WorkerContext) -> Self {
        let now = Instant::now();
        log(&ctx.running.served().left_out, &BTreeMap::new());
        tell_metrics(&ctx.running.served(), &Served::default());
        // The first look compares with what was tried at the start, entry by entry.
        Self { catalogue: Arc::default(), look_for_weights: now + WEIGHTS_EVERY, beat: now }
    }

    async fn step(&mut self, ctx: &WorkerContext) -> Result<(), DbErr> {
        // A database that is away for a moment keeps nobody from what is known.
        let refreshed = ctx.engines.models().refresh().await;
        let (now, offer) = (Instant::now(), ctx.running.offer());
        let catalogue = ctx.engines.models().now();
        let are_due = offer.may_grow() && now >= self.look_for_weights;
        if are_due || !Arc::ptr_eq(&catalogue, &self.catalogue) {
            let obstacles = if are_due { Obstacles::MayPass } else { Obstacles::Stay };
            let (assets, options) = (ctx.engines.assets(), ctx.engines.options());
            let before = offer.served();
            ctx.running.set(offer.again(&catalogue, assets, options, obstacles).await);
            self.look_for_weights = Instant::now() + WEIGHTS_EVERY;
            self.catalogue = catalogue;
            self.changed(ctx, &before).await;
        }
        if now >= self.beat {
            ctx.running.beat(&ctx.db).await?;
            self.beat = now + workers::BEAT;
        }
        refreshed
    }

    async fn changed(&mut self, ctx: &WorkerContext, before: &Served) {
        let served = ctx.running.served();
        ctx.engines.forget_removed().await;
        // Without a change too: at the start nothing is bound yet.
        if let Err(error) = ctx.queue.bind(&served.pipelines).await {
            tracing::warn!(%error, "bind to the queues of the models that this worker runs");
        }
        if served != *before {
            tracing::info!(pipelines = served.pipelines.join(","), "this worker runs other models now");
            log(&served.left_out, &before.left_out);
            tell_metrics(&served, before);
            self.beat = Instant::now();
        }
    }
}

/// Says in the log what is left out and was not before.
fn log(left_out: &BTreeMap<String, String>, before: &BTreeMap<String, String>) {
    for (pipeline, why) in left_out.iter().filter(|(name, why)| before.get(*name) != Some(why)) {
        tracing::info!(pipeline, why, "a pipeline cannot be run by this process");
    }
}

fn tell_metrics(served: &Served, before: &Served) {
    let names = [served, before].into_iter().flat_map(|one| one.pipelines.iter().chain(one.left_out.keys()));
    for name in names.collect::<BTreeSet<_>>() {
        metrics::pipeline_bound(name, served.pipelines.contains(name));
    }
}

#[cfg(test)]
mod tests {
    use shared::catalogue::Catalogue;
    use shared::health::Health;

    use super::*;
    use crate::inference::EngineOptions;
    use crate::testing;

    #[tokio::test]
    async fn readiness_names_what_is_run_and_what_is_not() {
        // No others: what was imported or fetched on this machine runs too.
        let all = testing::catalogue();
        let named = ["tiny", "scrfd-mobilefacenet"].map(|name| Arc::clone(all.find(name).unwrap()));
        let catalogue: Catalogue = named.into_iter().collect();
        let options = EngineOptions { features: &[], ..EngineOptions::for_cpu(1) };
        let running = Running::new(Offer::of_all(&catalogue, &testing::tiny_assets(), &options).await);
        let health = Health::of(&[running.check()]).await;
        assert!(health.is_ok());
        let shown = serde_json::to_string(&health).unwrap();
        for part in ["takes jobs of tiny", "without scrfd-mobilefacenet: ", "--accept-license"] {
            assert!(shown.contains(part), "{shown}");
        }
        running.set(Offer::default());
        assert_eq!(running.told(), "takes jobs of ");
    }
}
