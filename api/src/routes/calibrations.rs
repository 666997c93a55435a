//! Calibrations: which thresholds were measured for a pipeline, in general or for one collection.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use shared::access::Reach;
use shared::db::calibrations::{self, CalibrationFilter, CalibrationPoint, Measured};
use shared::db::entity::calibration;
use shared::ids::{CalibrationId, CollectionId};
use utoipa::{IntoParams, ToSchema};

use super::submit::check_text;
use super::{instant, models};
use crate::auth::{Admin, Caller, Read};
use crate::cursor::{Page, PageQuery};
use crate::error::{ApiError, ApiResult};
use crate::extract::{self, Json, Path, Query};
use crate::state::AppState;

/// What was measured, as `face-id calibrate` does it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCalibration {
    /// The pipeline whose scores it is about.
    pipeline: String,
    /// The collection that it holds for, by id or name; all that have none of their own where absent.
    collection: Option<String>,
    /// The faces it was measured on, in words; up to 256 characters.
    #[schema(min_length = 1, max_length = 256, pattern = r"^[^\u0000]*[^\s\u0000][^\u0000]*$")]
    measured_on: String,
    /// Thresholds by false accept rate: rates fall and thresholds rise.
    #[schema(min_items = 2, max_items = 32)]
    points: Vec<CalibrationPoint>,
    /// The lowest of the rates for which comparisons were counted; those below it lie on the line beyond it.
    #[schema(exclusive_minimum = 0, exclusive_maximum = 1)]
    measured_far: f64,
    /// How many people were compared with each other.
    #[schema(minimum = 2, maximum = 4_294_967_295_u32, format = Int64)]
    #[serde(deserialize_with = "shared::whole::number")]
    people: u32,
    /// How many faces they have.
    #[schema(minimum = 2, maximum = 4_294_967_295_u32, format = Int64)]
    #[serde(deserialize_with = "shared::whole::number")]
    faces: u32,
    /// How many comparisons of two persons' faces that made.
    #[schema(minimum = 1, maximum = 9_223_372_036_854_775_807_u64)]
    #[serde(deserialize_with = "shared::whole::number")]
    comparisons: u64,
    /// How sure the bounds of the rates are.
    #[schema(exclusive_minimum = 0, exclusive_maximum = 1)]
    confidence: f64,
}

/// Thresholds that were measured for a pipeline. A collection goes by its own newest ones, else by the newest general ones,
/// else by the catalogue's.
#[derive(Debug, Serialize, ToSchema)]
pub struct CalibrationView {
    id: CalibrationId,
    pipeline: String,
    /// The collection that they hold for; null: all that have none of their own.
    collection_id: Option<CollectionId>,
    measured_on: String,
    points: Vec<CalibrationPointView>,
    people: i64,
    faces: i64,
    comparisons: i64,
    /// How sure the bounds are, 0 to 1.
    confidence: f64,
    created_at: String,
}

/// A threshold with the false accept rate at it.
#[derive(Debug, Serialize, ToSchema)]
pub struct CalibrationPointView {
    /// How often one comparison of two persons' faces reaches the threshold.
    far: f64,
    /// The threshold, a score by the pipeline's metric: a cosine, or 1 less the distance.
    cosine: f32,
    /// The rate is at least this, as surely as the calibration says.
    lower: f64,
    /// And at most this.
    upper: f64,
    /// Whether the figures are a guess: the rate is lower than any for which comparisons were counted, or than 1e-5, below
    /// which labelled faces measure their wrong labels.
    extrapolated: bool,
}

/// Which calibrations to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CalibrationQuery {
    /// Of this collection, by id or name.
    collection: Option<String>,
    /// For this pipeline.
    pipeline: Option<String>,
    /// Rows of the page, 1 to 500; 50 where absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

fn view(row: calibration::Model) -> ApiResult<CalibrationView> {
    let (points, calibration) = (row.points()?, row.calibration()?);
    let shown = |CalibrationPoint { far, cosine, lower, upper }| CalibrationPointView {
        far,
        cosine,
        lower,
        upper,
        extrapolated: calibration.is_extrapolated(far),
    };
    Ok(CalibrationView {
        id: row.id,
        pipeline: row.pipeline,
        collection_id: row.collection_id,
        measured_on: row.measured_on,
        points: points.into_iter().map(shown).collect(),
        people: row.people,
        faces: row.faces,
        comparisons: row.comparisons,
        confidence: row.confidence,
        created_at: instant(row.created_at),
    })
}

fn not_found(id: CalibrationId) -> ApiError {
    ApiError::not_found("calibration_not_found", format!("there is no calibration {id}"))
}

/// Stores what was measured; it counts from now on, before those that were stored earlier. Faces that nobody was named for,
/// or only by a match, are looked up again.
#[utoipa::path(post, path = "/v1/calibrations", tag = "calibrations", security(("api_key" = ["admin"])),
    request_body = NewCalibration, responses((status = 201, body = CalibrationView)))]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Json(new): Json<NewCalibration>,
) -> ApiResult<impl IntoResponse> {
    check_text("#/measured_on", &new.measured_on)?;
    if new.measured_on.trim().is_empty() {
        return Err(ApiError::invalid("#/measured_on", "must not be empty: say which faces it was measured on"));
    }
    let collection = match &new.collection {
        Some(named) => Some(extract::collection(&state, &caller, named).await?.id),
        None if caller.reach() != &Reach::All => {
            let detail = "a key of single collections calibrates these only; name one of them";
            return Err(ApiError::forbidden(detail));
        }
        None => None,
    };
    let pipeline = models::named(&state, &new.pipeline).await?;
    let measured = Measured {
        pipeline: new.pipeline,
        measured_on: new.measured_on,
        points: new.points,
        measured_far: new.measured_far,
        people: new.people,
        faces: new.faces,
        comparisons: new.comparisons,
        confidence: new.confidence,
    };
    measured.check(pipeline.recognizer.metric).map_err(|(pointer, why)| ApiError::invalid(pointer, why))?;
    let stored = calibrations::store(&state.db, collection, &measured, pipeline.calibration.is_none()).await?;
    let row = stored
        .ok_or_else(|| ApiError::conflict("gone_meanwhile", "the collection or the model was deleted meanwhile"))?;
    tracing::info!(calibration.id = %row.id, pipeline = row.pipeline, "calibration stored");
    let location = [(header::LOCATION, format!("/v1/calibrations/{}", row.id))];
    Ok((StatusCode::CREATED, location, axum::Json(view(row)?)))
}

/// Lists calibrations, newest first. With a collection: its own only.
#[utoipa::path(get, path = "/v1/calibrations", tag = "calibrations", security(("api_key" = ["read"])), params(CalibrationQuery),
    responses((status = 200, body = Page<CalibrationView>)))]
pub async fn list(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Query(query): Query<CalibrationQuery>,
) -> ApiResult<axum::Json<Page<CalibrationView>>> {
    let collection = match &query.collection {
        Some(named) => Some(extract::collection(&state, &caller, named).await?.id),
        None => None,
    };
    // No pipeline has a NUL character in its name, and PostgreSQL fails where one is asked for.
    if query.pipeline.as_ref().is_some_and(|name| name.contains('\0')) {
        return Err(ApiError::invalid("pipeline", "must be a text without NUL"));
    }
    let filters = (collection, &query.pipeline);
    let page = PageQuery::new(query.limit, query.cursor).of(&state.secret_key, "calibrations", &filters)?;
    let filter = CalibrationFilter { collection, pipeline: query.pipeline };
    let before = page.after()?.map(CalibrationId);
    let rows = calibrations::list(&state.db, &caller, &filter, before, page.rows()).await?;
    let Page { items, next_cursor } = page.page(rows, |row| row.id.0, |row| row);
    Ok(axum::Json(Page { items: items.into_iter().map(view).collect::<ApiResult<_>>()?, next_cursor }))
}

/// Shows a calibration.
#[utoipa::path(get, path = "/v1/calibrations/{calibration}", tag = "calibrations", security(("api_key" = ["read"])),
    params(("calibration" = CalibrationId, Path)), responses((status = 200, body = CalibrationView)))]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path(id): Path<CalibrationId>,
) -> ApiResult<axum::Json<CalibrationView>> {
    let row = calibrations::find(&state.db.read, &caller, id).await?.ok_or_else(|| not_found(id))?;
    Ok(axum::Json(view(row)?))
}

/// Refuses to delete what somebody has to decide by.
async fn check_needed(state: &AppState, row: &calibration::Model) -> ApiResult<()> {
    let now = state.models.now();
    if now.find(&row.pipeline).is_some_and(|pipeline| pipeline.calibration.is_some()) {
        return Ok(());
    }
    if let Some(collection) = calibrations::needed_by(&state.db.read, row).await? {
        let detail = format!(
            "the collection {collection} has no other calibration, and {} none in the catalogue: store another one, or set \
             match_cosine of the collection, first",
            row.pipeline
        );
        return Err(ApiError::conflict("no_calibration", detail));
    }
    Ok(())
}

/// Deletes a calibration: the one that was stored before it counts again, at last the catalogue's. Refused (409) where a
/// collection would have none then, and has no `match_cosine`. Faces that nobody was named
/// for, or only by a match, are looked up again.
#[utoipa::path(delete, path = "/v1/calibrations/{calibration}", tag = "calibrations", security(("api_key" = ["admin"])),
    params(("calibration" = CalibrationId, Path)), responses((status = 204)))]
pub async fn delete(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(id): Path<CalibrationId>,
) -> ApiResult<StatusCode> {
    let row = calibrations::find(&state.db.read, &caller, id).await?.ok_or_else(|| not_found(id))?;
    check_needed(&state, &row).await?;
    if !calibrations::delete(&state.db, &caller, id).await? {
        return Err(not_found(id));
    }
    tracing::info!(calibration.id = %id, "calibration deleted");
    Ok(StatusCode::NO_CONTENT)
}
