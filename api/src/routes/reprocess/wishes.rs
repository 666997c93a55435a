//! What is asked of a run that is there.

use axum::extract::State;
use serde::Deserialize;
use shared::access::Grant;
use shared::catalogue::Pipeline;
use shared::db::calibrations;
use shared::db::reprocess::prune::is_lacking;
use shared::db::reprocess::switch::{self, Lacking, Switched};
use shared::db::reprocess::{self, Run, RunState, Wish};
use shared::ids::ReprocessRunId;
use utoipa::IntoParams;

use super::registered;
use super::run::{ReprocessRunView, find, view};
use crate::auth::{Admin, Caller};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Path, Query};
use crate::routes::models::check_licence;
use crate::state::AppState;

/// How a run goes over.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct Switching {
    /// Also where faces by which people are recognised have no vector of the other pipeline: nobody is recognised by those.
    #[param(required = false)]
    accept_lacking: bool,
}

/// How a run is cancelled.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct Cancelling {
    /// Also where images were given up: what the old pipeline lacks of them is gone then.
    #[param(required = false)]
    accept_lacking: bool,
}

/// How a run is pruned.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct Pruning {
    /// Also where images were given up: what the new pipeline lacks of them is gone then.
    #[param(required = false)]
    accept_lacking: bool,
    /// How long the old pipeline's vectors are kept yet, in seconds; an hour where absent.
    #[param(maximum = 31_536_000)]
    after_s: Option<u32>,
}

/// How long a pruned run can be rolled back, in seconds, where the client does not say.
const PRUNE_AFTER_S: u32 = 3600;
/// The longest that a client may say, a year.
const LONGEST_S: u32 = 31_536_000;

/// Begins no further image until the run is resumed; the jobs that there are end.
#[utoipa::path(post, path = "/v1/reprocess-runs/{run}/pause", tag = "reprocess", security(("api_key" = ["admin"])),
    params(("run" = ReprocessRunId, Path)), responses((status = 200, body = ReprocessRunView)))]
pub async fn pause(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(id): Path<ReprocessRunId>,
) -> ApiResult<axum::Json<ReprocessRunView>> {
    wish(&state, &caller, id, Wish::Pause, "only an open run that is not paused can be paused").await
}

/// Goes on with a paused run.
#[utoipa::path(post, path = "/v1/reprocess-runs/{run}/resume", tag = "reprocess", security(("api_key" = ["admin"])),
    params(("run" = ReprocessRunId, Path)), responses((status = 200, body = ReprocessRunView)))]
pub async fn resume(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(id): Path<ReprocessRunId>,
) -> ApiResult<axum::Json<ReprocessRunView>> {
    wish(&state, &caller, id, Wish::Resume, "only a paused run can be resumed").await
}

/// Tries the images again that were given up.
#[utoipa::path(post, path = "/v1/reprocess-runs/{run}/retry", tag = "reprocess", security(("api_key" = ["admin"])),
    params(("run" = ReprocessRunId, Path)), responses((status = 200, body = ReprocessRunView)))]
pub async fn retry(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(id): Path<ReprocessRunId>,
) -> ApiResult<axum::Json<ReprocessRunView>> {
    wish(&state, &caller, id, Wish::Retry, "the run is over").await
}

/// Ends a run that is not active: what the new pipeline made is deleted.
#[utoipa::path(post, path = "/v1/reprocess-runs/{run}/cancel", tag = "reprocess", security(("api_key" = ["admin"])),
    params(("run" = ReprocessRunId, Path), Cancelling), responses((status = 200, body = ReprocessRunView)))]
pub async fn cancel(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(id): Path<ReprocessRunId>,
    Query(cancelling): Query<Cancelling>,
) -> ApiResult<axum::Json<ReprocessRunView>> {
    let run = find(&state, &caller, id).await?;
    let may_cancel = matches!(run.state, RunState::Filling | RunState::Ready);
    if may_cancel && !cancelling.accept_lacking && is_lacking(&state.db, &run, run.from()).await? {
        return Err(lacking_of("new"));
    }
    let wanted = Wish::Cancel { accept_lacking: cancelling.accept_lacking };
    wish(&state, &caller, id, wanted, "an active run is rolled back first, and one that has ended is over").await
}

/// Ends an active run: what the old pipeline made is deleted, after a time in which it can be rolled back yet.
#[utoipa::path(post, path = "/v1/reprocess-runs/{run}/prune", tag = "reprocess", security(("api_key" = ["admin"])),
    params(("run" = ReprocessRunId, Path), Pruning), responses((status = 200, body = ReprocessRunView)))]
pub async fn prune(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(id): Path<ReprocessRunId>,
    Query(pruning): Query<Pruning>,
) -> ApiResult<axum::Json<ReprocessRunView>> {
    let after_s = pruning.after_s.unwrap_or(PRUNE_AFTER_S);
    if after_s > LONGEST_S {
        return Err(ApiError::invalid("after_s", format!("must be at most {LONGEST_S}, a year")));
    }
    let run = find(&state, &caller, id).await?;
    if run.state == RunState::Active && !pruning.accept_lacking && is_lacking(&state.db, &run, run.to()).await? {
        return Err(lacking_of("old"));
    }
    let wanted = Wish::Prune { after_s, accept_lacking: pruning.accept_lacking };
    wish(&state, &caller, id, wanted, "only an active run can be pruned").await
}

/// Has the collection go by the new pipeline, at once for everybody. No answer mixes the two.
#[utoipa::path(post, path = "/v1/reprocess-runs/{run}/activate", tag = "reprocess", security(("api_key" = ["admin"])),
    params(("run" = ReprocessRunId, Path), Switching), responses((status = 200, body = ReprocessRunView)))]
pub async fn activate(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(id): Path<ReprocessRunId>,
    Query(switching): Query<Switching>,
) -> ApiResult<axum::Json<ReprocessRunView>> {
    let run = find(&state, &caller, id).await?;
    let entry = registered(&state, &run.pipeline).await?;
    check_licence(&state, &entry)?;
    if run.state == RunState::Ready {
        check_run_decides(&state, &run, &entry).await?;
    }
    let switched = switch::activate(&state.db, id, lacking(&switching)).await?;
    answer(&state, switched, "only a run that is ready can be activated").await
}

/// Has the collection go by the old pipeline again, at once for everybody.
#[utoipa::path(post, path = "/v1/reprocess-runs/{run}/rollback", tag = "reprocess", security(("api_key" = ["admin"])),
    params(("run" = ReprocessRunId, Path), Switching), responses((status = 200, body = ReprocessRunView)))]
pub async fn rollback(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(id): Path<ReprocessRunId>,
    Query(switching): Query<Switching>,
) -> ApiResult<axum::Json<ReprocessRunView>> {
    let run = find(&state, &caller, id).await?;
    if run.state == RunState::Active {
        let entry = registered(&state, &run.from_pipeline).await?;
        check_run_decides(&state, &run, &entry).await?;
    }
    let switched = switch::roll_back(&state.db, id, lacking(&switching)).await?;
    answer(&state, switched, "only an active run can be rolled back").await
}

/// Refuses to go over to a pipeline by which nothing could be decided: its calibration may be gone since the run began.
async fn check_run_decides(state: &AppState, run: &Run, entry: &Pipeline) -> ApiResult<()> {
    if run.match_cosine.is_some() || calibrations::has_any(&state.db.read, entry, run.collection_id).await? {
        return Ok(());
    }
    let detail = format!("{} has no measured thresholds any more: calibrate it first", entry.name);
    Err(ApiError::conflict("no_calibration", detail))
}

/// The refusal to end a run by which what only one of its pipelines made would be lost.
fn lacking_of(pipeline: &str) -> ApiError {
    let detail = format!(
        "images were given up, or faces have a vector of the {pipeline} pipeline alone, and nobody would be recognised by \
         these any more; retry what was given up, try again in a moment, or send accept_lacking"
    );
    ApiError::conflict("reprocess_lacking", detail)
}

fn lacking(switching: &Switching) -> Lacking {
    if switching.accept_lacking { Lacking::Accept } else { Lacking::Refuse }
}

async fn answer(state: &AppState, switched: Switched, otherwise: &str) -> ApiResult<axum::Json<ReprocessRunView>> {
    match switched {
        Switched::Done(run) => {
            tracing::info!(run.id = %run.id, collection.id = %run.collection_id, state = ?run.state, "the collection went over");
            Ok(axum::Json(view(state, *run).await?))
        }
        Switched::NotNow(_) => Err(ApiError::conflict("reprocess_state", otherwise)),
        Switched::Lacking(faces) => {
            let detail = format!(
                "{faces} faces by which people are recognised have no vector of the other pipeline; where more was \
                 enrolled just now, try again in a moment; where images were given up, retry them, or send \
                 accept_lacking"
            );
            Err(ApiError::conflict("reprocess_lacking", detail))
        }
    }
}

async fn wish(
    state: &AppState,
    grant: &Grant,
    id: ReprocessRunId,
    wish: Wish,
    otherwise: &str,
) -> ApiResult<axum::Json<ReprocessRunView>> {
    let run = find(state, grant, id).await?;
    if !reprocess::change(&state.db, &run, wish).await? {
        return Err(ApiError::conflict("reprocess_state", otherwise));
    }
    tracing::info!(run.id = %id, ?wish, "reprocess run changed");
    Ok(axum::Json(view(state, find(state, grant, id).await?).await?))
}
