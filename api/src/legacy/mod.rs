//! The requests of the 2018 demo, for its front end; off unless `server.legacy_api`. `docs/LEGACY.md` has what each answers.
//!
//! They are translated: the same jobs are made by the same functions as for /v1, waited for as `Prefer: wait` does, and their
//! ends put into the words that the front end knows. `input` reads what it sends, `answer` has the words.

mod answer;
mod batch;
mod input;
mod recognition;
mod registration;

use axum::Router;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use shared::access::{Grant, Reach};
use shared::db::collections::CollectionSettings;
use shared::db::entity::collection;
use shared::ids::JobId;
use tokio::time::{Duration, Instant};

use crate::auth::origin;
use crate::error::{ApiError, ApiResult};
use crate::extract;
use crate::routes::collections;
use crate::routes::jobs::{self, JobView};
use crate::state::AppState;

/// The five of them, each with and without a slash behind it.
pub(crate) fn routes() -> Router<AppState> {
    let routes = [
        ("recognition", post(recognition::recognise)),
        ("register", post(registration::register)),
        ("delete", post(registration::delete)),
        ("register_batch", post(batch::register_all)),
        ("clear", post(registration::clear)),
    ];
    let both = |router: Router<AppState>, (name, handler): (&str, axum::routing::MethodRouter<AppState>)| {
        router.route(&format!("/api/{name}"), handler.clone()).route(&format!("/api/{name}/"), handler)
    };
    routes.into_iter().fold(Router::new(), both).route_layer(middleware::from_fn(of_same_site))
}

/// Refuses what a page of another site has a browser send: two of the requests need no body, and a proxy may add a key to
/// whatever its users' browsers send.
async fn of_same_site(request: Request, next: Next) -> Response {
    if origin::is_foreign(request.headers()) {
        let detail =
            "a browser sent this for a page of another site; serve the front end from this server's own address";
        return ApiError::forbidden(detail).into_response();
    }
    next.run(request).await
}

/// The collection that the requests work on, where it is there and the grant holds for it.
async fn found(state: &AppState, grant: &Grant) -> ApiResult<Option<collection::Model>> {
    match extract::collection(state, grant, &state.config.server.legacy_collection).await {
        Ok(collection) => Ok(Some(collection)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The same, made with the server's default pipeline where it is not there.
async fn found_or_made(state: &AppState, grant: &Grant) -> ApiResult<collection::Model> {
    if let Some(collection) = found(state, grant).await? {
        return Ok(collection);
    }
    check_reach(grant)?;
    let (name, pipeline) = (&state.config.server.legacy_collection, &state.config.models.default_pipeline);
    match collections::make(state, name, pipeline, &CollectionSettings::default()).await? {
        Some(made) => Ok(made),
        // Another request made it meanwhile.
        None => extract::collection(state, grant, name).await,
    }
}

/// Refuses who may not make the collection.
fn check_reach(grant: &Grant) -> ApiResult<()> {
    match grant.reach() {
        Reach::All => Ok(()),
        Reach::Only(_) => {
            Err(ApiError::forbidden("this makes a collection, and a key of single collections makes none"))
        }
    }
}

/// When whoever asked now is answered at the latest.
fn deadline(state: &AppState) -> Instant {
    Instant::now() + Duration::from_secs(state.config.server.max_wait_s)
}

/// The job when it has ended, or as it is at the deadline.
async fn ended(state: &AppState, grant: &Grant, job: JobId, deadline: Instant) -> ApiResult<JobView> {
    let wait = deadline.saturating_duration_since(Instant::now());
    jobs::wait_for(state, grant, job, wait, &HeaderMap::new()).await
}
