//! Runs that give a collection another pipeline without losing a person, an id or a second of service.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use shared::access::Grant;
use shared::catalogue::Pipeline;
use shared::db::calibrations;
use shared::db::entity::collection;
use shared::db::reprocess::plan::{Progress, plan, progress};
use shared::db::reprocess::prune::is_lacking;
use shared::db::reprocess::record::{self, Difference};
use shared::db::reprocess::switch::{self, Lacking, Switched};
use shared::db::reprocess::{self, Begun, NewRun, Run, RunState, Side, Wish};
use shared::db::workers::{self, Served, Serving};
use shared::ids::{CollectionId, FaceId, ImageId, ReprocessRunId};
use shared::job::FaceBox;
use shared::models::ModelsError;
use utoipa::{IntoParams, ToSchema};

use super::instant;
use super::models::{ModelFileView, alive_for, check_licence, check_pipeline, files, licence_accepted, named};
use super::submit::check_text;
use crate::auth::{Admin, Caller, Read};
use crate::cursor::{Page, PageQuery};
use crate::error::{ApiError, ApiResult};
use crate::etag::Version;
use crate::extract::{self, Json, Path, Query};
use crate::state::AppState;

/// What a collection is to be given.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewReprocess {
    /// A pipeline of the catalogue, another one than the collection goes by.
    pipeline: String,
    /// Only says what there would be to do.
    #[serde(default)]
    dry_run: bool,
    /// The setting of that name once the collection goes by this pipeline: a threshold says nothing of another model's
    /// scores, so that the present one does not go over.
    #[schema(minimum = -1, maximum = 1)]
    match_cosine: Option<f32>,
    /// Given back with the run and with its events.
    #[schema(max_length = 256)]
    tag: Option<String>,
}

/// How a run goes over.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct Switching {
    /// Also where faces by which people are recognised have no vector of the other pipeline: nobody is recognised by those.
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

/// What a run has to do.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReprocessPlan {
    collection_id: CollectionId,
    from_pipeline: String,
    pipeline: String,
    /// Whether faces are looked for again: the two have different detectors, or the same with other settings.
    detects: bool,
    images: i64,
    faces: i64,
    /// Faces that have the new pipeline's vector already.
    embedded: i64,
    /// Faces of which the kept crop is read, and nothing else.
    from_crops: i64,
    /// Pictures that are read.
    from_images: i64,
    /// At most so long, in seconds, where the new pipeline is no slower: by the speed at which the collection's last
    /// pictures were indexed. Faces that are cut from kept crops take a part of that.
    estimate_s: Option<f64>,
    /// The new pipeline's weights, with what their licences allow.
    files: Vec<ModelFileView>,
    /// Whether this server's operator accepts what restricts the use of these; null where nothing does. Without that no run
    /// begins.
    licence_accepted: Option<bool>,
    /// Workers that take the new pipeline's jobs now.
    workers: usize,
}

/// A run that gives a collection another pipeline.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReprocessRunView {
    id: ReprocessRunId,
    collection_id: CollectionId,
    /// What the collection went by when the run was made.
    from_pipeline: String,
    pipeline: String,
    /// Whether faces are looked for again.
    detects: bool,
    /// Workers that take the new pipeline's jobs now.
    workers: usize,
    /// Why nothing goes on, where it should: no worker runs the new pipeline; what keeps each from it, for keys with the scope
    /// `admin`.
    problem: Option<String>,
    state: RunState,
    /// No further image is begun until the run is resumed.
    paused: bool,
    images: i64,
    /// Images that lack something of the new pipeline, those that were given up among them.
    images_missing: i64,
    /// Images that were given up, by the code of why.
    images_failed: BTreeMap<String, i64>,
    /// The part of the images that lack nothing, 0 to 1; absent once the run has ended.
    coverage: Option<f64>,
    /// Faces that only the old detector found. Those that somebody named keep their place and have a vector.
    faces_lost: i64,
    /// Faces that only the new detector found.
    faces_new: i64,
    images_per_second: Option<f64>,
    eta_s: Option<f64>,
    tag: Option<String>,
    version: i64,
    created_at: String,
    completed_at: Option<String>,
    activated_at: Option<String>,
    /// When what the old pipeline made will be deleted.
    prune_after: Option<String>,
    ended_at: Option<String>,
}

/// A face that only one of a run's two detectors found.
#[derive(Debug, Serialize, ToSchema)]
pub struct DifferenceView {
    face_id: FaceId,
    image_id: ImageId,
    difference: DifferenceKind,
    /// Where it lies, in upright original pixels.
    #[serde(rename = "box")]
    face_box: FaceBox,
}

/// Which of the two found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// The old one.
    Lost,
    /// The new one.
    New,
}

/// Which runs to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RunQuery {
    /// Of this collection, by id or name.
    collection: Option<String>,
    /// Rows of the page, 1 to 500; 50 where absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Which faces to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DifferenceQuery {
    /// Only these.
    difference: Option<DifferenceKind>,
    /// Rows of the page, 1 to 500; 50 where absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Gives the collection's images what another pipeline makes of them, beside what they have: vectors from the crops that
/// are kept of their faces, and where the detector is another one, faces from the pictures. The collection goes by its old
/// pipeline until the run is activated. With `dry_run` it is only said what there would be to do.
#[utoipa::path(post, path = "/v1/collections/{collection}/reprocess", tag = "reprocess", security(("api_key" = ["admin"])),
    request_body = NewReprocess, params(("collection" = String, Path, description = "Its id or name")), responses(
    (status = 200, body = ReprocessPlan, description = "Of a dry run"),
    (status = 202, body = ReprocessRunView, headers(("Location" = String, description = "The run's path")))))]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(collection): Path<String>,
    Json(new): Json<NewReprocess>,
) -> ApiResult<Response> {
    new.tag.as_ref().map_or(Ok(()), |tag| check_text("#/tag", tag))?;
    if new.match_cosine.is_some_and(|cosine| !(-1.0..=1.0).contains(&cosine)) {
        return Err(ApiError::invalid("#/match_cosine", "must lie between -1 and 1"));
    }
    let collection = extract::collection(&state, &caller, &collection).await?;
    let entry = named(&state, &new.pipeline).await?;
    if new.pipeline == collection.pipeline {
        let detail = format!("the collection goes by {} already", new.pipeline);
        return Err(ApiError::conflict("pipeline_active", detail));
    }
    let from = registered(&state, &collection.pipeline).await?.detector_revision();
    let to = entry.detector_revision();
    let from = Side { pipeline: &collection.pipeline, revision: &from };
    let to = Side { pipeline: &new.pipeline, revision: &to };
    if new.dry_run {
        return Ok(axum::Json(planned(&state, &collection, from, (to, &entry)).await?).into_response());
    }
    check_pipeline(&state, &new.pipeline).await?;
    check_decides(&state, &entry, &new, collection.id).await?;
    let wanted =
        NewRun { collection: collection.id, from, to, match_cosine: new.match_cosine, tag: new.tag, traceparent: None };
    let run = match reprocess::begin(&state.db, &caller, wanted).await? {
        Begun::New(run) => *run,
        Begun::Open(run) => {
            let detail = format!("run {run} of the collection has not ended; prune or cancel it first");
            return Err(ApiError::conflict("reprocess_open", detail));
        }
        Begun::Changed => {
            let detail = "the collection went over to another pipeline at this moment; look at it again";
            return Err(ApiError::conflict("collection_changed", detail));
        }
        Begun::NoModel => return Err(ApiError::conflict("gone_meanwhile", "the model was deleted meanwhile")),
    };
    tracing::info!(run.id = %run.id, collection.id = %collection.id, pipeline = run.pipeline, "reprocess run begun");
    let path = format!("/v1/reprocess-runs/{}", run.id);
    let location = HeaderValue::from_str(&path).map_err(|error| ApiError::internal(&error))?;
    let headers = [(header::LOCATION, location), (header::RETRY_AFTER, HeaderValue::from_static("1"))];
    Ok((StatusCode::ACCEPTED, headers, axum::Json(view(&state, run).await?)).into_response())
}

/// Refuses a pipeline by which nothing could be decided: once the collection goes by it, every job would fail.
async fn check_decides(
    state: &AppState,
    entry: &Pipeline,
    new: &NewReprocess,
    collection: CollectionId,
) -> ApiResult<()> {
    if new.match_cosine.is_some() || calibrations::has_any(&state.db.read, entry, collection).await? {
        return Ok(());
    }
    let detail = format!(
        "{} has no measured thresholds: calibrate it, or say from which cosine on two faces match",
        new.pipeline
    );
    Err(ApiError::invalid("#/match_cosine", detail))
}

/// The same of a run whose calibration may be gone since it began.
async fn check_run_decides(state: &AppState, run: &Run, entry: &Pipeline) -> ApiResult<()> {
    if run.match_cosine.is_some() || calibrations::has_any(&state.db.read, entry, run.collection_id).await? {
        return Ok(());
    }
    let detail = format!("{} has no measured thresholds any more: calibrate it first", run.pipeline);
    Err(ApiError::conflict("no_calibration", detail))
}

/// The model that a collection or run goes by.
async fn registered(state: &AppState, pipeline: &str) -> ApiResult<Arc<Pipeline>> {
    state.models.pipeline(pipeline).await.map_err(|error| match error {
        ModelsError::Db(error) => error.into(),
        error => ApiError::unprocessable("pipeline_unknown", error.to_string()),
    })
}

async fn planned(
    state: &AppState,
    collection: &collection::Model,
    from: Side<'_>,
    (to, entry): (Side<'_>, &Pipeline),
) -> ApiResult<ReprocessPlan> {
    let plan = plan(&state.db, collection.id, from, to).await?;
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let estimate_s = plan.indexed_per_s.map(|pace| plan.images as f64 / pace);
    Ok(ReprocessPlan {
        collection_id: collection.id,
        from_pipeline: from.pipeline.to_owned(),
        pipeline: to.pipeline.to_owned(),
        detects: plan.detects,
        images: plan.images,
        faces: plan.faces,
        embedded: plan.embedded,
        from_crops: plan.from_crops,
        from_images: plan.from_images,
        estimate_s,
        files: files(entry),
        licence_accepted: licence_accepted(state, entry),
        workers: Serving::of(to.pipeline, &workers::alive(&state.db).await?).workers,
    })
}

/// Lists runs, newest first.
#[utoipa::path(get, path = "/v1/reprocess-runs", tag = "reprocess", security(("api_key" = ["read"])), params(RunQuery), responses(
    (status = 200, body = Page<ReprocessRunView>)))]
pub async fn list(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Query(query): Query<RunQuery>,
) -> ApiResult<axum::Json<Page<ReprocessRunView>>> {
    let collection = match &query.collection {
        Some(named) => Some(extract::collection(&state, &caller, named).await?.id),
        None => None,
    };
    let page = PageQuery::new(query.limit, query.cursor).of(&state.secret_key, "reprocess runs", &collection)?;
    let rows = reprocess::list(&state.db, &caller, collection, page.after()?.map(ReprocessRunId), page.rows()).await?;
    let Page { items, next_cursor } = page.page(rows, |run| run.id.0, |run| run);
    let alive = alive_for(&state, &caller).await?;
    let mut views = Vec::with_capacity(items.len());
    for run in items {
        views.push(view_beside(&state, run, &alive).await?);
    }
    Ok(axum::Json(Page { items: views, next_cursor }))
}

/// Shows a run.
#[utoipa::path(get, path = "/v1/reprocess-runs/{run}", tag = "reprocess", security(("api_key" = ["read"])), params(
        ("run" = ReprocessRunId, Path)), responses(
    (status = 200, body = ReprocessRunView, headers(("ETag" = String, description = "The version")))))]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path(id): Path<ReprocessRunId>,
) -> ApiResult<impl IntoResponse> {
    let alive = alive_for(&state, &caller).await?;
    let run = view_beside(&state, find(&state, &caller, id).await?, &alive).await?;
    let content = serde_json::to_value(&run).map_err(|error| ApiError::internal(&error))?;
    Ok(([Version::of_content(&content).header()], axum::Json(run)))
}

/// Lists the faces that only one of a run's two detectors found, for somebody to look at.
#[utoipa::path(get, path = "/v1/reprocess-runs/{run}/differences", tag = "reprocess", security(("api_key" = ["read"])),
    params(("run" = ReprocessRunId, Path), DifferenceQuery), responses((status = 200, body = Page<DifferenceView>)))]
pub async fn differences(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path(id): Path<ReprocessRunId>,
    Query(query): Query<DifferenceQuery>,
) -> ApiResult<axum::Json<Page<DifferenceView>>> {
    let run = find(&state, &caller, id).await?;
    let filters = (id, query.difference);
    let page = PageQuery::new(query.limit, query.cursor).of(&state.secret_key, "reprocess differences", &filters)?;
    let wanted = query.difference.map(|difference| match difference {
        DifferenceKind::Lost => "lost",
        DifferenceKind::New => "new",
    });
    let rows = record::differences(&state.db, &run, wanted, page.after()?.map(FaceId), page.rows()).await?;
    let shown = |row: Difference| DifferenceView {
        face_id: row.face_id,
        image_id: row.image_id,
        face_box: FaceBox { x: row.x, y: row.y, width: row.width, height: row.height },
        difference: if row.difference == "lost" { DifferenceKind::Lost } else { DifferenceKind::New },
    };
    Ok(axum::Json(page.page(rows, |row| row.face_id.0, shown)))
}

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
    params(("run" = ReprocessRunId, Path)), responses((status = 200, body = ReprocessRunView)))]
pub async fn cancel(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(id): Path<ReprocessRunId>,
) -> ApiResult<axum::Json<ReprocessRunView>> {
    wish(&state, &caller, id, Wish::Cancel, "an active run is rolled back first, and one that has ended is over").await
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
    if !pruning.accept_lacking && is_lacking(&state.db, &run).await? {
        let detail = "images were given up, and nobody would be recognised by their faces any more; retry them, or send \
                      accept_lacking";
        return Err(ApiError::conflict("reprocess_lacking", detail));
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
    find(&state, &caller, id).await?;
    let switched = switch::roll_back(&state.db, id, lacking(&switching)).await?;
    answer(&state, switched, "only an active run can be rolled back").await
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

pub(super) async fn find(state: &AppState, grant: &Grant, id: ReprocessRunId) -> ApiResult<Run> {
    let found = reprocess::find(&state.db.write, grant, id).await?;
    found.ok_or_else(|| ApiError::not_found("reprocess_run_not_found", format!("there is no reprocess run {id}")))
}

async fn view(state: &AppState, run: Run) -> ApiResult<ReprocessRunView> {
    view_beside(state, run, &workers::alive(&state.db).await?).await
}

/// Why a run stands still that should go on.
fn problem(run: &Run, serving: &Serving) -> Option<String> {
    let should_go_on = run.state == RunState::Filling && !run.paused;
    (should_go_on && serving.workers == 0).then(|| {
        let what = format!("no worker runs {} now", run.pipeline);
        [&[what], &serving.problems[..]].concat().join("; ")
    })
}

/// The run, and who of these workers runs its pipeline.
async fn view_beside(state: &AppState, run: Run, alive: &[Served]) -> ApiResult<ReprocessRunView> {
    let serving = Serving::of(&run.pipeline, alive);
    let Progress { images, missing, failed, lost, new } = progress(&state.db, &run).await?;
    let left = missing - failed.values().sum::<i64>();
    let pace = run.pace.filter(|pace| *pace > 0.0);
    #[expect(clippy::cast_precision_loss, reason = "figures to read")]
    let (coverage, eta_s) = (
        if images > 0 { (images - missing).max(0) as f64 / images as f64 } else { 1.0 },
        pace.map(|pace| left as f64 / pace),
    );
    Ok(ReprocessRunView {
        id: run.id,
        collection_id: run.collection_id,
        detects: run.changes_detector(),
        problem: problem(&run, &serving),
        workers: serving.workers,
        from_pipeline: run.from_pipeline,
        pipeline: run.pipeline,
        state: run.state,
        paused: run.paused,
        images,
        images_missing: missing,
        images_failed: failed,
        coverage: run.ended_at.is_none().then_some(coverage),
        faces_lost: lost,
        faces_new: new,
        images_per_second: pace,
        eta_s,
        tag: run.tag,
        version: run.version,
        created_at: instant(run.created_at),
        completed_at: run.completed_at.map(instant),
        activated_at: run.activated_at.map(instant),
        prune_after: run.prune_after.map(instant),
        ended_at: run.ended_at.map(instant),
    })
}
