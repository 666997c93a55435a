//! Models: the pipelines that are registered, by whose names collections go.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sea_orm::DbErr;
use serde::Serialize;
use shared::access::{Grant, Scope};
use shared::catalogue::{AllowedUse, Entry, Metric, ModelFile, Origin, Pipeline};
use shared::db::is_lock_timeout;
use shared::db::models::{self as rows, Model};
use shared::db::workers::{self, Served, Serving};
use shared::models::{self, Added, MOST, ModelsError, Removed};
use utoipa::ToSchema;

use super::instant;
use crate::auth::{Administrator, Caller, Read};
use crate::cursor::{Page, PageQuery};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Body, Path, Query, media_type};
use crate::state::{AppState, Workers};

/// What an entry comes as.
const TOML: &str = "application/toml";
/// Longest name of a model, which a cursor has room for.
const LONGEST_NAME: usize = 64;

/// A registered model: what finds, aligns and recognises faces. Fields named `pipeline` hold its name.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelView {
    name: String,
    description: String,
    origin: OriginView,
    /// Its weights.
    files: Vec<ModelFileView>,
    /// Whether this server's operator accepts what restricts the use of its files (`models.accepted_licences`); null where
    /// nothing does.
    licence_accepted: Option<bool>,
    /// Changes whenever faces could be found elsewhere.
    detector_revision: String,
    /// Components of a vector.
    dimension: usize,
    /// How its vectors are compared, which is what scores and thresholds are.
    metric: MetricView,
    /// Features of which a processor needs one.
    requires: Vec<String>,
    /// How often two persons' faces score how much; null where nobody measured it.
    calibration: Option<ModelCalibration>,
    /// Workers that take its jobs now.
    workers: usize,
    /// What keeps other workers from it; for keys with the scope `admin`, since paths of the workers' machines are in it.
    problems: Vec<String>,
    registered_at: String,
    /// When its entry changed last.
    changed_at: String,
}

/// A registered model with its entry.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelEntryView {
    #[serde(flatten)]
    model: ModelView,
    /// The catalogue entry, TOML.
    entry: String,
}

/// How two vectors are compared. More is more alike, whichever it is.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MetricView {
    /// A score is the cosine of their angle, -1 to 1.
    Cosine,
    /// A score is 1 less their distance: 1 at most, and without an end below.
    Euclidean,
}

/// Where a model's entry comes from.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OriginView {
    /// It is part of the program.
    BuiltIn,
    /// It lies in the folder of `models.catalogue_dir`.
    Folder,
    /// It was added over HTTP. Its weights are not fetched from the addresses that it names.
    Added,
}

/// A file of weights.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelFileView {
    part: ModelPart,
    name: String,
    sha256: String,
    size_bytes: u64,
    urls: Vec<String>,
    /// Of the weights, and what is to be known of their training.
    licence: String,
    #[serde(rename = "use")]
    allowed_use: AllowedUseView,
}

/// What a file of weights does.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelPart {
    /// It finds faces, or is a stage of what does.
    Detector,
    /// It places points on a face.
    Landmarks,
    /// It makes vectors.
    Recognizer,
    /// It checks those whom a search has found.
    SecondStage,
}

/// What a licence allows.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AllowedUseView {
    /// Any use.
    Permissive,
    /// Research only.
    NonCommercial,
    /// No licence is stated.
    None,
}

/// False accept rates of one comparison of two persons' faces.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelCalibration {
    /// The faces and pairs.
    measured_on: String,
    /// Rates, falling.
    far: Vec<f64>,
    /// The score from which on each holds, rising: a cosine, or 1 less the distance.
    cosine: Vec<f32>,
}

/// The files of a pipeline, with what their licences allow.
pub(super) fn files(pipeline: &Pipeline) -> Vec<ModelFileView> {
    let view = |part, file: &ModelFile| ModelFileView {
        part,
        name: file.name.clone(),
        sha256: file.sha256.clone(),
        size_bytes: file.size_bytes,
        urls: file.urls.clone(),
        licence: file.licence.clone(),
        allowed_use: match file.allowed_use() {
            AllowedUse::Permissive => AllowedUseView::Permissive,
            AllowedUse::NonCommercial => AllowedUseView::NonCommercial,
            AllowedUse::None => AllowedUseView::None,
        },
    };
    let detector = std::iter::once(&pipeline.detector.file).chain(&pipeline.detector.stages);
    let detector = detector.map(|file| view(ModelPart::Detector, file));
    let landmarks = pipeline.landmarks.iter().map(|model| view(ModelPart::Landmarks, &model.file));
    let second = pipeline.second_stage.iter().map(|stage| view(ModelPart::SecondStage, &stage.file));
    detector.chain(landmarks).chain([view(ModelPart::Recognizer, &pipeline.recognizer.file)]).chain(second).collect()
}

/// Whether the operator accepts what restricts a pipeline's use; `None` where nothing does.
pub(super) fn licence_accepted(state: &AppState, pipeline: &Pipeline) -> Option<bool> {
    let accepted = &state.config.models.accepted_licences;
    (!pipeline.restricted_files().is_empty()).then(|| accepted.contains(&pipeline.name))
}

/// The registered model that the body's field `pipeline` names.
pub(super) async fn named(state: &AppState, pipeline: &str) -> ApiResult<Arc<Pipeline>> {
    state.models.pipeline(pipeline).await.map_err(|error| match error {
        ModelsError::Db(error) => error.into(),
        error => ApiError::invalid("#/pipeline", error.to_string()),
    })
}

/// Refuses pipelines that no collection of this server can have.
pub(super) async fn check_pipeline(state: &AppState, pipeline: &str) -> ApiResult<Arc<Pipeline>> {
    let entry = named(state, pipeline).await?;
    check_licence(state, &entry)?;
    check_runnable(state, pipeline).await?;
    Ok(entry)
}

/// Refuses work that would wait for good: where jobs are run in this process, no other worker comes that runs the pipeline.
pub(super) async fn check_runnable(state: &AppState, pipeline: &str) -> ApiResult<()> {
    if state.workers == Workers::Elsewhere {
        return Ok(());
    }
    let serving = Serving::of(pipeline, &workers::alive(&state.db).await?);
    // One that was just added may not have been tried yet.
    if serving.workers > 0 || serving.problems.is_empty() {
        return Ok(());
    }
    let detail = format!(
        "this server cannot run {pipeline} now; its log and /readyz say why. Fetch its weights (face-id models pull {pipeline}), \
         accept its licence (models.accepted_licences), or put its entry in models.catalogue_dir right, whichever they name, and \
         jobs that wait are run; or give the collection a model that runs here (reprocess)"
    );
    Err(ApiError::unprocessable("pipeline_not_runnable", detail))
}

/// Refuses pipelines whose licence has to be accepted and is not.
pub(super) fn check_licence(state: &AppState, pipeline: &Pipeline) -> ApiResult<()> {
    if licence_accepted(state, pipeline) != Some(false) {
        return Ok(());
    }
    let detail = format!(
        "{} has weights for non-commercial use only, and this server's operator has not accepted that",
        pipeline.name
    );
    Err(ApiError::unprocessable("licence_not_accepted", detail))
}

/// Registers a model: a catalogue entry (`models/README.md`), as it is. Processes that run take it up within seconds; its
/// weights have to lie where workers find them.
#[utoipa::path(post, path = "/v1/models", tag = "models", security(("api_key" = ["admin"])),
    request_body(content = String, content_type = "application/toml", description = "The entry, up to 256 KiB"), responses(
    (status = 200, body = ModelEntryView, description = "It was registered before, with the same content"),
    (status = 201, body = ModelEntryView)))]
pub async fn create(
    State(state): State<AppState>,
    Administrator(grant): Administrator,
    headers: HeaderMap,
    Body(bytes): Body,
) -> ApiResult<Response> {
    if !media_type(&headers).eq_ignore_ascii_case(TOML) {
        let detail = format!("send the header Content-Type: {TOML}");
        return Err(ApiError::unsupported_media_type("unsupported_media_type", detail));
    }
    let refused = |why: String| ApiError::unprocessable("invalid_model", why);
    let text = String::from_utf8(bytes.to_vec()).map_err(|_| refused("the body is no UTF-8 text".to_owned()))?;
    let entry = Entry::parse(Origin::Added, "the body", text).map_err(|error| refused(error.to_string()))?;
    let name = entry.pipeline.name.clone();
    let (status, row) = match models::add(&state.db, &entry, grant.owner()).await.map_err(busy)? {
        Added::New(row) => (StatusCode::CREATED, row),
        Added::Known(row) => (StatusCode::OK, row),
        Added::Taken => {
            let detail = format!("there is a model {name}, and its entry is another; give this one another name");
            return Err(ApiError::conflict("model_exists", detail));
        }
        Added::Used(used) => {
            let detail = format!(
                "no model {name} is registered, and nobody could tell whether this one made what there is: {}; give it \
                 another name, or put the entry that it was into models.catalogue_dir",
                used.as_str()
            );
            return Err(ApiError::conflict("model_in_use", detail));
        }
        Added::TooMany => {
            let detail =
                format!("{MOST} models are registered, and more there may not be; delete one that nothing uses");
            return Err(ApiError::conflict("too_many_models", detail));
        }
    };
    state.models.refresh().await?;
    tracing::info!(model = name, is_new = status == StatusCode::CREATED, "a model was added");
    let location = [(header::LOCATION, format!("/v1/models/{name}"))];
    let view = entry_view(&state, &grant, *row).await?;
    Ok((status, location, axum::Json(view)).into_response())
}

/// Lists the registered models by name.
#[utoipa::path(get, path = "/v1/models", tag = "models", security(("api_key" = ["read"])), params(PageQuery), responses(
    (status = 200, body = Page<ModelView>)))]
pub async fn list(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Query(page): Query<PageQuery>,
) -> ApiResult<axum::Json<Page<ModelView>>> {
    let page = page.of(&state.secret_key, "models", &())?;
    let after =
        page.token::<LONGEST_NAME>()?.map(|token| String::from_utf8_lossy(&token).trim_end_matches('\0').to_owned());
    let alive = alive_for(&state, &caller).await?;
    let found = rows::list(&state.db.read, after.as_deref(), page.rows()).await?;
    let Page { items, next_cursor } = page.page_after(found, token, |row| row);
    // One that a newer program registered is not shown by an older one.
    let shown = |row: Model| Some(view(&state, &row, &models::parsed(&row).ok()?, &alive));
    Ok(axum::Json(Page { items: items.into_iter().filter_map(shown).collect(), next_cursor }))
}

/// Shows a model with its entry, its licences, what was measured of it, and who runs it.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "models", security(("api_key" = ["read"])),
    params(("model" = String, Path, description = "Its name")), responses((status = 200, body = ModelEntryView)))]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path(name): Path<String>,
) -> ApiResult<axum::Json<ModelEntryView>> {
    let row = rows::find(&state.db.read, known_as(&name)?).await?.ok_or_else(|| not_found(&name))?;
    Ok(axum::Json(entry_view(&state, &caller, row).await?))
}

/// Forgets a model that nothing uses: no collection goes by it, and no vector that it made is stored.
#[utoipa::path(delete, path = "/v1/models/{model}", tag = "models", security(("api_key" = ["admin"])),
    params(("model" = String, Path, description = "Its name")), responses((status = 204)))]
pub async fn delete(
    State(state): State<AppState>,
    _: Administrator,
    Path(name): Path<String>,
) -> ApiResult<StatusCode> {
    let name = known_as(&name)?;
    if name == state.config.models.default_pipeline {
        let detail =
            format!("the model {name} stays: collections that name no model go by it (models.default_pipeline)");
        return Err(ApiError::conflict("model_in_use", detail));
    }
    let why = match models::remove(&state.db, name).await.map_err(busy)? {
        Removed::Done => {
            state.models.refresh().await?;
            tracing::info!(model = name, "a model was deleted");
            return Ok(StatusCode::NO_CONTENT);
        }
        Removed::NotFound => return Err(not_found(name)),
        Removed::BuiltIn => "it is part of the program",
        Removed::Used(used) => used.as_str(),
    };
    Err(ApiError::conflict("model_in_use", format!("the model {name} stays: {why}")))
}

/// A name as it may be looked for: no name holds a NUL character, and PostgreSQL fails where one is asked for.
fn known_as(name: &str) -> ApiResult<&str> {
    if name.contains('\0') { Err(not_found("of that name")) } else { Ok(name) }
}

fn not_found(name: &str) -> ApiError {
    ApiError::not_found("model_not_found", format!("there is no model {name}; GET /v1/models lists them"))
}

fn busy(error: DbErr) -> ApiError {
    if is_lock_timeout(&error) {
        return ApiError::unavailable("the place for vectors is in use; try again in a moment");
    }
    error.into()
}

fn token(row: &Model) -> [u8; LONGEST_NAME] {
    let mut token = [0; LONGEST_NAME];
    token.iter_mut().zip(row.name.bytes()).for_each(|(to, from)| *to = from);
    token
}

/// What each worker says that is alive, without what only administrators may read.
pub(super) async fn alive_for(state: &AppState, grant: &Grant) -> ApiResult<Vec<Served>> {
    let mut alive = workers::alive(&state.db).await?;
    if !grant.has(Scope::Admin) {
        for served in &mut alive {
            served.left_out.clear();
        }
    }
    Ok(alive)
}

async fn entry_view(state: &AppState, grant: &Grant, row: Model) -> ApiResult<ModelEntryView> {
    let pipeline = models::parsed(&row).map_err(|error| {
        let detail = format!("a newer version of this program registered the model {}: {error}", row.name);
        ApiError::not_found("model_not_found", detail)
    })?;
    let model = view(state, &row, &pipeline, &alive_for(state, grant).await?);
    Ok(ModelEntryView { model, entry: row.entry })
}

fn view(state: &AppState, row: &Model, pipeline: &Pipeline, alive: &[Served]) -> ModelView {
    let Serving { workers, problems } = Serving::of(&row.name, alive);
    let calibration = pipeline.calibration.as_ref().map(|measured| ModelCalibration {
        measured_on: measured.measured_on.clone(),
        far: measured.far.clone(),
        cosine: measured.score.clone(),
    });
    ModelView {
        name: row.name.clone(),
        description: pipeline.description.clone(),
        origin: match row.origin() {
            Origin::BuiltIn => OriginView::BuiltIn,
            Origin::Folder => OriginView::Folder,
            Origin::Added => OriginView::Added,
        },
        files: files(pipeline),
        licence_accepted: licence_accepted(state, pipeline),
        detector_revision: pipeline.detector_revision(),
        dimension: pipeline.recognizer.dimension,
        metric: match pipeline.recognizer.metric {
            Metric::Cosine => MetricView::Cosine,
            Metric::Euclidean => MetricView::Euclidean,
        },
        requires: pipeline.requires.iter().map(ToString::to_string).collect(),
        calibration,
        workers,
        problems,
        registered_at: instant(row.registered_at),
        changed_at: instant(row.changed_at),
    }
}

#[cfg(test)]
mod tests {
    use shared::catalogue::Catalogue;

    use super::*;

    #[test]
    fn every_file_of_a_model_is_shown() {
        let catalogue = Catalogue::load(None).unwrap();
        let mut pipelines: Vec<Pipeline> = catalogue.pipelines().cloned().collect();
        let tiny = include_str!("../../../models/tiny/tiny.toml");
        let second = format!(
            "{tiny}\n[second_stage]\nkind = \"joint-bayesian\"\nthreshold = 0.0\n[second_stage.file]\nname = \"second.jb\"\n\
             sha256 = \"{}\"\nsize_bytes = 5\nlicence = \"own\"\nuse = \"non-commercial\"\n",
            "a".repeat(64)
        );
        pipelines.push(Pipeline::parse("second.toml", &second).unwrap());
        for pipeline in &pipelines {
            let shown: Vec<String> = files(pipeline).into_iter().map(|file| file.sha256).collect();
            let wanted: Vec<String> = pipeline.files().into_iter().map(|file| file.sha256.clone()).collect();
            assert_eq!(shown, wanted, "{}", pipeline.name);
        }
        let last = files(&pipelines[pipelines.len() - 1]).pop().unwrap();
        assert!(matches!(last.part, ModelPart::SecondStage) && last.name == "second.jb");
    }
}
