//! What the two pipelines of a reprocess run say of the same faces. A worker works it out.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;
use shared::comparison::{ComparisonReport, Outcome};
use shared::db::reprocess::comparison::{self, Comparison, Disagreement, Nearest};
use shared::ids::{FaceId, PersonId, ReprocessRunId};
use utoipa::ToSchema;

use super::instant;
use super::reprocess::run::find;
use crate::auth::{Admin, Caller, Read};
use crate::error::{ApiError, ApiResult};
use crate::extract::Path;
use crate::state::AppState;

/// A comparison of a run's two pipelines.
#[derive(Debug, Serialize, ToSchema)]
pub struct ComparisonView {
    run_id: ReprocessRunId,
    /// When it was asked for last. The report is newer unless one is being made.
    wanted_at: String,
    /// When the report was begun; null before the first one.
    made_at: Option<String>,
    report: Option<ComparisonReport>,
    /// Faces of which the two decide otherwise, the worst first: where one of them names another person, then where one
    /// names nobody, then by how far apart their scores are. Without a threshold of both, whoever is nearest counts as named.
    disagreements: Vec<DisagreementView>,
}

/// A face of which the two decide otherwise.
#[derive(Debug, Serialize, ToSchema)]
pub struct DisagreementView {
    face_id: FaceId,
    /// Whose it is.
    person_id: PersonId,
    /// By the pipeline that the collection went by when the run was made.
    from: NearestView,
    /// By the new one.
    to: NearestView,
}

/// The person that the face is most like.
#[derive(Debug, Serialize, ToSchema)]
pub struct NearestView {
    outcome: Outcome,
    /// How like; of two pipelines these cannot be compared.
    score: f64,
    /// Null once that person is gone.
    person_id: Option<PersonId>,
}

impl From<Nearest> for NearestView {
    fn from(nearest: Nearest) -> Self {
        Self { outcome: nearest.outcome, score: nearest.score, person_id: nearest.person_id }
    }
}

/// Compares a run's two pipelines again, on the collection's faces that are enrolled or were assigned by a user as they are
/// now. Once a run is ready this is done by itself.
#[utoipa::path(post, path = "/v1/reprocess-runs/{run}/comparison", tag = "reprocess", operation_id = "compare",
    security(("api_key" = ["admin"])), params(("run" = ReprocessRunId, Path)), responses(
    (status = 202, body = ComparisonView, headers(("Location" = String, description = "Where it will be")))))]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(id): Path<ReprocessRunId>,
) -> ApiResult<impl IntoResponse> {
    let run = find(&state, &caller, id).await?;
    if !comparison::want(&state.db, run.id).await? {
        let detail = "only a run that is ready or active has the vectors of both pipelines to compare";
        return Err(ApiError::conflict("reprocess_state", detail));
    }
    let path = format!("/v1/reprocess-runs/{id}/comparison");
    let location = HeaderValue::from_str(&path).map_err(|error| ApiError::internal(&error))?;
    let headers = [(header::LOCATION, location), (header::RETRY_AFTER, HeaderValue::from_static("1"))];
    Ok((StatusCode::ACCEPTED, headers, axum::Json(view(&state, id).await?)))
}

/// Shows the last comparison of a run's two pipelines.
#[utoipa::path(get, path = "/v1/reprocess-runs/{run}/comparison", tag = "reprocess", operation_id = "comparison",
    security(("api_key" = ["read"])), params(("run" = ReprocessRunId, Path)), responses(
    (status = 200, body = ComparisonView)))]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path(id): Path<ReprocessRunId>,
) -> ApiResult<axum::Json<ComparisonView>> {
    find(&state, &caller, id).await?;
    Ok(axum::Json(view(&state, id).await?))
}

async fn view(state: &AppState, id: ReprocessRunId) -> ApiResult<ComparisonView> {
    let Some(Comparison { wanted_at, made_at, report, disagreements }) = comparison::kept(&state.db, id).await? else {
        let detail = "the run's pipelines were not compared yet: that is done once it is ready";
        return Err(ApiError::not_found("comparison_not_found", detail));
    };
    let shown = |(one, person_id): (Disagreement, PersonId)| DisagreementView {
        face_id: one.face_id,
        person_id,
        from: one.from.into(),
        to: one.to.into(),
    };
    Ok(ComparisonView {
        run_id: id,
        wanted_at: instant(wanted_at),
        made_at: made_at.map(instant),
        report,
        disagreements: disagreements.into_iter().map(shown).collect(),
    })
}
