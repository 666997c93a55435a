//! Tells webhook endpoints what happened. Every worker takes part: a delivery is claimed under a lease, sent, and what came of
//! it is written, fenced on the claim. A worker that dies in between leaves a claim that runs out, and the event is told
//! again: at least once, with the same id and body.

mod attempt;
mod dial;
#[cfg(test)]
mod tests;

use std::time::Duration;

use sea_orm::DbErr;
use shared::db::webhooks::deliveries::{self, Bounds, Claimed, Recorded};
use shared::db::webhooks::endpoints;
use shared::failpoints::failpoint;
use shared::telemetry::metrics;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::WorkerContext;
use dial::Dialer;

/// How soon to look again while there is something to tell.
const BUSY_POLL: Duration = Duration::from_millis(100);
/// A claim outlives the longest attempt by this: enough to write what came of it, through a short outage too.
const LEASE_MARGIN: Duration = Duration::from_secs(20);
/// How often what waits is tidied, and dropped where nobody is told any more.
const TIDY_EVERY: Duration = Duration::from_secs(10);
/// Tries to write what came of an attempt. After them the claim runs out, and the event is told again.
const WRITE_TRIES: u32 = 5;

/// Tells until `stop`; attempts that are under way then have their own time to end.
pub(crate) async fn run(ctx: WorkerContext, stop: CancellationToken) {
    let dialer = match Dialer::new(&ctx.config.webhooks) {
        Ok(dialer) => dialer,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "set up TLS for webhooks");
            return;
        }
    };
    let poll = Duration::from_secs_f64(ctx.config.worker.poll_s);
    let mut attempts = JoinSet::new();
    let mut tidied: Option<Instant> = None;
    loop {
        while let Some(ended) = attempts.try_join_next() {
            tell_of_panic(ended);
        }
        let begun = begin(&ctx, &dialer, &mut attempts).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "look for events to tell");
            0
        });
        if tidied.is_none_or(|at| at.elapsed() > TIDY_EVERY) {
            tidied = Some(Instant::now());
            tidy(&ctx).await;
        }
        let is_busy = begun > 0 || !attempts.is_empty();
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(if is_busy { poll.min(BUSY_POLL) } else { poll }) => {}
        }
    }
    // Each ends within its own time limits.
    while let Some(ended) = attempts.join_next().await {
        tell_of_panic(ended);
    }
}

/// The claim of an attempt that panicked runs out, and the event is told again.
fn tell_of_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an attempt to tell a webhook endpoint ended in a bug; it is made again");
    }
}

/// Begins what is due, as far as there is room; how many attempts.
async fn begin(ctx: &WorkerContext, dialer: &Dialer, attempts: &mut JoinSet<()>) -> Result<usize, DbErr> {
    let settings = &ctx.config.webhooks;
    let lost = deliveries::reap(&ctx.db).await?;
    if lost > 0 {
        tracing::warn!(lost, "a worker went silent while it told events; they are told again");
    }
    let bounds = Bounds {
        per_endpoint: settings.max_in_flight_per_endpoint,
        lease: Duration::from_secs_f64(settings.timeout_s) + LEASE_MARGIN,
    };
    let mut begun = 0;
    for endpoint in deliveries::due_endpoints(&ctx.db).await? {
        let room = settings.max_in_flight.saturating_sub(attempts.len());
        if room == 0 {
            break;
        }
        for claimed in deliveries::claim(&ctx.db, endpoint, room, bounds).await? {
            begun += 1;
            failpoint("webhook_claimed");
            let (ctx, dialer) = (ctx.clone(), dialer.clone());
            attempts.spawn(async move { tell(&ctx, &dialer, &claimed).await });
        }
    }
    Ok(begun)
}

async fn tell(ctx: &WorkerContext, dialer: &Dialer, claimed: &Claimed) {
    let endpoint = match endpoints::find(&ctx.db.read, claimed.endpoint_id).await {
        Ok(Some(endpoint)) => endpoint,
        // Its deliveries went with it.
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(%error, "read a webhook endpoint; the event is told later");
            if let Err(error) = deliveries::release(&ctx.db, claimed).await {
                tracing::warn!(%error, "give a delivery back; its claim runs out");
            }
            return;
        }
    };
    let (attempt, verdict) = attempt::run(dialer, &ctx.secret_key, &ctx.config.webhooks, &endpoint, claimed).await;
    failpoint("webhook_told");
    metrics::webhook_attempted(attempt::outcome(&attempt), attempt.latency);
    let (delivery, latency_ms) = (claimed.id, attempt.latency.as_secs_f64() * 1e3);
    tracing::debug!(webhook.endpoint.id = %claimed.endpoint_id, webhook.delivery.id = %delivery, attempt = claimed.attempt,
        http.status = attempt.status, latency_ms, ?verdict, "told a webhook endpoint");
    let after = Duration::from_secs_f64(ctx.config.webhooks.disable_after_s);
    for tries in 1.. {
        match deliveries::record(&ctx.db, claimed, &attempt, verdict, after).await {
            Ok(Recorded::Written) => {}
            Ok(Recorded::EndpointDisabled) => {
                tracing::warn!(webhook.endpoint.id = %claimed.endpoint_id, "a webhook endpoint was disabled");
            }
            Ok(Recorded::Lost) => metrics::stale_write_refused(),
            Err(error) if tries < WRITE_TRIES => {
                tracing::warn!(%error, tries, "write what came of telling an event");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Err(error) => tracing::error!(%error, "write what came of telling an event; it is told again"),
        }
        break;
    }
}

async fn tidy(ctx: &WorkerContext) {
    if let Err(error) = deliveries::drop_disabled(&ctx.db).await {
        tracing::warn!(%error, "drop what waits for disabled webhook endpoints");
    }
    match deliveries::backlog(&ctx.db).await {
        Ok(backlog) => metrics::webhook_backlog(backlog.pending, backlog.oldest, backlog.disabled),
        Err(error) => tracing::warn!(%error, "count the events to be told"),
    }
}
