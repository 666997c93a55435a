//! The one table of routes.

use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use axum::{Router, middleware};
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::authenticate;
use crate::docs;
use crate::legacy;
use crate::openapi::{Document, complete};
use crate::requests::observe;
use crate::routes::{
    batches, calibrations, clusters, collections, comparisons, erasures, events, export, faces, health, images, import,
    jobs, keys, models, persons, reprocess, submit, uploads, webhook_deliveries, webhooks,
};
use crate::state::AppState;

/// All routes and layers.
pub fn router(state: AppState) -> Router {
    let body_limit = DefaultBodyLimit::max(state.config.server.max_body_bytes);
    let (mut keyed, _) = keyed().split_for_parts();
    if state.config.server.legacy_api {
        keyed = keyed.merge(legacy::routes());
    }
    let (open, _) = open().split_for_parts();
    let document = complete(&documented().into_openapi()).to_string();
    let json = [("content-type", "application/json")];
    // Whatever a handler of it takes or forgets: without a good key nothing gets there.
    let keyed = keyed.route_layer(middleware::from_fn_with_state(state.clone(), authenticate));
    keyed
        .merge(open)
        .merge(docs::router())
        .route("/openapi.json", get(move || async move { (json, document) }))
        .layer(body_limit)
        .layer(middleware::from_fn(observe))
        .with_state(state)
}

/// The OpenAPI 3.1 document of all routes, as JSON.
///
/// # Panics
/// The document cannot be written, which is a bug.
pub fn openapi() -> String {
    format!("{:#}\n", complete(&documented().into_openapi()))
}

fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Document::openapi()).merge(keyed()).merge(open())
}

/// For monitoring: they tell nothing of what is stored.
fn open() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics_text))
}

/// For callers with a key.
fn keyed() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .merge(reprocessing())
        .routes(routes!(models::create, models::list))
        .routes(routes!(models::get, models::delete))
        .routes(routes!(collections::create, collections::list))
        .routes(routes!(collections::get, collections::update, collections::delete))
        .routes(routes!(calibrations::create, calibrations::list))
        .routes(routes!(calibrations::get, calibrations::delete))
        .routes(routes!(export::export))
        .routes(routes!(import::import))
        .routes(routes!(uploads::create))
        .routes(routes!(uploads::get))
        .routes(routes!(submit::enroll))
        .routes(routes!(submit::index))
        .routes(routes!(submit::identify))
        .routes(routes!(submit::verify))
        .routes(routes!(submit::rematch))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::get, jobs::cancel))
        .routes(routes!(events::of_job))
        .routes(routes!(batches::create, batches::list))
        .routes(routes!(batches::get))
        .routes(routes!(batches::jobs))
        .routes(routes!(events::of_batch))
        .routes(routes!(batches::pause))
        .routes(routes!(batches::resume))
        .routes(routes!(batches::cancel))
        .routes(routes!(batches::retry))
        .routes(routes!(persons::create, persons::list))
        .routes(routes!(persons::get, persons::update, persons::delete))
        .routes(routes!(persons::faces))
        .routes(routes!(persons::images))
        .routes(routes!(persons::merge))
        .routes(routes!(faces::list))
        .routes(routes!(faces::get, faces::update, faces::delete))
        .routes(routes!(images::delete))
        .routes(routes!(erasures::list))
        .routes(routes!(erasures::get))
        .routes(routes!(clusters::list))
        .routes(routes!(clusters::get))
        .routes(routes!(clusters::faces))
        .routes(routes!(clusters::merge))
        .routes(routes!(clusters::split))
        .routes(routes!(clusters::name))
        .routes(routes!(clusters::changes))
        .routes(routes!(clusters::undo))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::get, keys::revoke))
        .routes(routes!(keys::rotate))
        .routes(routes!(webhooks::create, webhooks::list))
        .routes(routes!(webhooks::get, webhooks::update, webhooks::delete))
        .routes(routes!(webhooks::secret))
        .routes(routes!(webhooks::rotate_secret))
        .routes(routes!(webhooks::test))
        .routes(routes!(webhook_deliveries::list))
        .routes(routes!(webhook_deliveries::get))
        .routes(routes!(webhook_deliveries::redeliver))
        .routes(routes!(webhook_deliveries::recover))
}

/// Runs that give collections another pipeline.
fn reprocessing() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(reprocess::plan::create))
        .routes(routes!(reprocess::run::list))
        .routes(routes!(reprocess::run::get))
        .routes(routes!(reprocess::run::differences))
        .routes(routes!(comparisons::create, comparisons::get))
        .routes(routes!(reprocess::wishes::pause))
        .routes(routes!(reprocess::wishes::resume))
        .routes(routes!(reprocess::wishes::retry))
        .routes(routes!(reprocess::wishes::activate))
        .routes(routes!(reprocess::wishes::rollback))
        .routes(routes!(reprocess::wishes::cancel))
        .routes(routes!(reprocess::wishes::prune))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_document_is_that_of_the_routes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        let committed = std::fs::read_to_string(path).unwrap();
        assert!(
            committed == super::openapi(),
            "docs/openapi.json is stale: run `make openapi`, and look at what changed"
        );
    }
}
