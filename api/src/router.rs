//! The one table of routes.

use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use axum::{Router, middleware};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::requests::observe;
use crate::routes::{batches, clusters, collections, export, faces, health, import, jobs, persons, submit, uploads};
use crate::routes::{webhook_deliveries, webhooks};
use crate::state::AppState;

/// Where the document's own facts come from.
#[derive(OpenApi)]
#[openapi(info(
    title = "face-id",
    description = "Asynchronous face recognition: enroll, index, identify and verify faces as jobs.",
    license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
))]
struct Document;

/// All routes and layers.
pub fn router(state: AppState) -> Router {
    let body_limit = DefaultBodyLimit::max(state.config.server.max_body_bytes);
    let (router, document) = documented().split_for_parts();
    let document = document.to_json().expect("the document is plain data; this is a bug");
    let json = [("content-type", "application/json")];
    router
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
    documented().into_openapi().to_pretty_json().expect("the document is plain data; this is a bug")
}

fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(collections::create, collections::list))
        .routes(routes!(collections::get, collections::update, collections::delete))
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
        .routes(routes!(batches::create, batches::list))
        .routes(routes!(batches::get))
        .routes(routes!(batches::jobs))
        .routes(routes!(batches::pause))
        .routes(routes!(batches::resume))
        .routes(routes!(batches::cancel))
        .routes(routes!(batches::retry))
        .routes(routes!(persons::create, persons::list))
        .routes(routes!(persons::get, persons::delete))
        .routes(routes!(persons::faces))
        .routes(routes!(persons::images))
        .routes(routes!(persons::merge))
        .routes(routes!(faces::list))
        .routes(routes!(faces::get, faces::update, faces::delete))
        .routes(routes!(clusters::list))
        .routes(routes!(clusters::get))
        .routes(routes!(clusters::faces))
        .routes(routes!(clusters::merge))
        .routes(routes!(clusters::split))
        .routes(routes!(clusters::name))
        .routes(routes!(clusters::changes))
        .routes(routes!(clusters::undo))
        .routes(routes!(webhooks::create, webhooks::list))
        .routes(routes!(webhooks::get, webhooks::update, webhooks::delete))
        .routes(routes!(webhooks::secret))
        .routes(routes!(webhooks::rotate_secret))
        .routes(routes!(webhooks::test))
        .routes(routes!(webhook_deliveries::list))
        .routes(routes!(webhook_deliveries::get))
        .routes(routes!(webhook_deliveries::redeliver))
        .routes(routes!(webhook_deliveries::recover))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics_text))
}
