//! What is seen of a run.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use shared::access::Grant;
use shared::db::reprocess::plan::{Progress, progress};
use shared::db::reprocess::prune::stands_still;
use shared::db::reprocess::record::{self, Difference};
use shared::db::reprocess::{self, Run, RunState};
use shared::db::workers::{self, Served, Serving};
use shared::ids::{CollectionId, FaceId, ImageId, ReprocessRunId};
use shared::job::FaceBox;
use utoipa::{IntoParams, ToSchema};

use crate::auth::{Caller, Read};
use crate::cursor::{Page, PageQuery};
use crate::error::{ApiError, ApiResult};
use crate::etag::Version;
use crate::extract::{self, Path, Query};
use crate::routes::instant;
use crate::routes::models::alive_for;
use crate::state::AppState;

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
    /// `admin`. Or images were given up while it ends.
    problem: Option<String>,
    state: RunState,
    /// No further image is begun until the run is resumed.
    paused: bool,
    images: i64,
    /// Images that lack something of the new pipeline, those that were given up among them.
    images_missing: i64,
    /// Images that were given up, by the code of why.
    images_failed: BTreeMap<String, i64>,
    /// The part of the images that lack nothing, 0 to 1. As all figures, of a run that ends or has ended what it was when its
    /// end began; null where an older version began or made that end.
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
        ("run" = ReprocessRunId, Path),
        ("If-None-Match" = Option<String>, Header, description = "The ETag of the version that is known")), responses(
    (status = 200, body = ReprocessRunView, headers(("ETag" = String, description = "The version"))),
    (status = 304, description = "It is that version still")))]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path(id): Path<ReprocessRunId>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let alive = alive_for(&state, &caller).await?;
    let run = view_beside(&state, find(&state, &caller, id).await?, &alive).await?;
    let content = serde_json::to_value(&run).map_err(|error| ApiError::internal(&error))?;
    Ok(Version::of_content(&content).answer(&headers, content))
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

pub(in crate::routes) async fn find(state: &AppState, grant: &Grant, id: ReprocessRunId) -> ApiResult<Run> {
    let found = reprocess::find(&state.db.write, grant, id).await?;
    found.ok_or_else(|| ApiError::not_found("reprocess_run_not_found", format!("there is no reprocess run {id}")))
}

pub(super) async fn view(state: &AppState, run: Run) -> ApiResult<ReprocessRunView> {
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
    let problem = match problem(&run, &serving) {
        None if stands_still(&state.db, &run).await? => {
            Some("images were given up while it ends; retry them, or end it with accept_lacking".to_owned())
        }
        problem => problem,
    };
    let is_ending = run.ended_at.is_some() || run.kept_and_gone().is_some();
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
        problem,
        workers: serving.workers,
        from_pipeline: run.from_pipeline,
        pipeline: run.pipeline,
        state: run.state,
        paused: run.paused,
        images,
        images_missing: missing,
        images_failed: failed,
        // What an end deletes is not there to be counted.
        coverage: (run.figures.is_some() || !is_ending).then_some(coverage),
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
