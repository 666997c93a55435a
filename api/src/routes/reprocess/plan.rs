//! What a run would have to do, and how it begins.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use shared::access::Grant;
use shared::catalogue::Pipeline;
use shared::db::calibrations;
use shared::db::entity::collection;
use shared::db::idempotency::Idempotency;
use shared::db::reprocess::plan::plan;
use shared::db::reprocess::{self, Begun, NewRun, Side};
use shared::db::workers::{self, Serving};
use shared::ids::CollectionId;
use utoipa::ToSchema;

use super::registered;
use super::run::{ReprocessRunView, find, view};
use crate::auth::{Admin, Caller};
use crate::error::{ApiError, ApiResult};
use crate::extract::{self, Json, Path, SubmitHeaders};
use crate::routes::models::{ModelFileView, check_pipeline, files, licence_accepted, named};
use crate::routes::submit::{check_text, key_reused, promise};
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
    /// scores, so that the present one does not go over. A cosine, -1 to 1; of a pipeline with the metric `euclidean` 1 less
    /// the distance, 1 at most.
    #[schema(maximum = 1)]
    match_cosine: Option<f32>,
    /// Given back with the run and with its events.
    #[schema(max_length = 256)]
    tag: Option<String>,
}

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

/// Gives the collection's images what another pipeline makes of them, beside what they have: vectors from the crops that
/// are kept of their faces, and where the detector is another one, faces from the pictures. The collection goes by its old
/// pipeline until the run is activated. With `dry_run` it is only said what there would be to do.
#[utoipa::path(post, path = "/v1/collections/{collection}/reprocess", tag = "reprocess", security(("api_key" = ["admin"])),
    request_body = NewReprocess,
    params(("collection" = String, Path, description = "Its id or name"),
        ("Idempotency-Key" = Option<String>, Header, description = "Repeats with the same key give the same run",
            pattern = r#"^("([ !#-\[\]-~]|\\["\\]){1,253}"|[!#-~]([ -~]{0,253}[!-~])?)$"#)),
    responses(
    (status = 200, body = ReprocessPlan, description = "Of a dry run"),
    (status = 202, body = ReprocessRunView, headers(("Location" = String, description = "The run's path")))))]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(collection): Path<String>,
    headers: SubmitHeaders,
    Json(new): Json<NewReprocess>,
) -> ApiResult<Response> {
    new.tag.as_ref().map_or(Ok(()), |tag| check_text("#/tag", tag))?;
    let collection = extract::collection(&state, &caller, &collection).await?;
    let idempotency = promised(&state, &caller, &headers, collection.id, &new);
    if let Some(idempotency) = &idempotency
        && let Some(repeated) = reprocess::find_repeated(&state.db.write, idempotency).await?
    {
        return answer(&state, &caller, repeated).await;
    }
    let entry = named(&state, &new.pipeline).await?;
    if new.match_cosine.is_some_and(|score| !entry.recognizer.metric.has(score)) {
        return Err(ApiError::invalid("#/match_cosine", entry.recognizer.metric.must()));
    }
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
    let wanted = NewRun {
        collection: collection.id,
        from,
        to,
        match_cosine: new.match_cosine,
        tag: new.tag,
        traceparent: Some(headers.trace.as_str().to_owned()),
        idempotency,
    };
    let begun = reprocess::begin(&state.db, &caller, wanted).await?;
    if let Begun::New(run) = &begun {
        tracing::info!(run.id = %run.id, collection.id = %collection.id, pipeline = run.pipeline, "reprocess run begun");
    }
    answer(&state, &caller, begun).await
}

/// What a key stands for; a dry run makes nothing that could be made twice.
fn promised(
    state: &AppState,
    grant: &Grant,
    headers: &SubmitHeaders,
    collection: CollectionId,
    new: &NewReprocess,
) -> Option<Idempotency> {
    let key = headers.idempotency_key.clone().filter(|_| !new.dry_run)?;
    let text = serde_json::json!([new.pipeline, new.match_cosine, new.tag]).to_string();
    Some(promise(state, grant, (collection, "reprocess"), key, &text))
}

async fn answer(state: &AppState, grant: &Grant, begun: Begun) -> ApiResult<Response> {
    let run = match begun {
        Begun::New(run) => *run,
        Begun::Existing(run) => find(state, grant, run).await?,
        Begun::KeyReused => return Err(key_reused()),
        Begun::KeyInFlight => return Err(ApiError::key_in_flight()),
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
    let path = format!("/v1/reprocess-runs/{}", run.id);
    let location = HeaderValue::from_str(&path).map_err(|error| ApiError::internal(&error))?;
    let headers = [(header::LOCATION, location), (header::RETRY_AFTER, HeaderValue::from_static("1"))];
    Ok((StatusCode::ACCEPTED, headers, axum::Json(view(state, run).await?)).into_response())
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
        "{} has no measured thresholds: calibrate it, or say from which score on two faces match",
        new.pipeline
    );
    Err(ApiError::invalid("#/match_cosine", detail))
}

async fn planned(
    state: &AppState,
    collection: &collection::Model,
    from: Side<'_>,
    (to, entry): (Side<'_>, &Pipeline),
) -> ApiResult<ReprocessPlan> {
    let plan = plan(&state.db, collection.id, from, to, entry.reads_crops()).await?;
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
