//! The POSTs that make jobs: check, store, enqueue, answer 202.

use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use shared::access::Grant;
use shared::db::entity::{collection, job};
use shared::db::idempotency::{self, Idempotency};
use shared::db::jobs::outbox::DueJob;
use shared::db::jobs::submit::{NewJob, Submitted, find_repeated, submit};
use shared::db::rematches;
use shared::db::uploads::NewUpload;
use shared::digest::sha256_hex;
use shared::dispatch::dispatch;
use shared::failpoints::failpoint;
use shared::ids::{CollectionId, PersonId, WebhookEndpointId};
use shared::job::{FaceChoice, ImageRef, JobArgs, JobKind, PersonRef, UploadedImage, VerifyTarget};
use shared::telemetry::metrics;
use utoipa::ToSchema;

use super::jobs::{JobView, fresh_view};
use super::models::check_runnable;
use super::webhooks::check_endpoints;
use crate::auth::{Caller, Identify, Write};
use crate::error::{ApiError, ApiResult};
use crate::extract::{self, Json, Path, SubmitHeaders};
use crate::pictures::{self, ImageInput, Picture};
use crate::state::AppState;

/// Longest external id, name or tag in characters.
const MAX_TEXT: usize = 256;
/// Longest description of a person in characters.
const MAX_DESCRIPTION: usize = 2000;
/// A client is not kept waiting for a slow queue.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(2);

/// Store one face of a picture under a person.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrollRequest {
    /// The picture.
    #[serde(deserialize_with = "shared::object::only")]
    image: ImageInput,
    /// Whose face it is.
    #[serde(deserialize_with = "shared::object::only")]
    person: PersonInput,
    /// Which face is meant when there are several.
    #[serde(default)]
    face: FaceChoice,
    /// Given back with the job.
    #[schema(max_length = 256)]
    tag: Option<String>,
    /// The only webhook endpoints that are told of it; all that want to know where absent.
    #[schema(max_items = 100)]
    webhook_endpoint_ids: Option<Vec<WebhookEndpointId>>,
}

/// A person by its id, or by the caller's own id of it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PersonInput {
    /// A person that exists.
    id: Option<PersonId>,
    /// The caller's id of the person, unique in the collection; the person is made where there is none yet.
    #[schema(max_length = 256)]
    external_id: Option<String>,
    /// A name to show, with `external_id`; kept as it was where absent.
    #[schema(max_length = 256)]
    name: Option<String>,
    /// What else is to be known of the person, with `external_id`; kept as it was where absent.
    #[schema(max_length = 2000)]
    description: Option<String>,
}

impl PersonInput {
    pub(super) fn resolved(self) -> ApiResult<PersonRef> {
        match (self.id, self.external_id) {
            (Some(_), None) if self.name.is_some() => {
                Err(ApiError::invalid("#/person/name", "is taken with external_id only"))
            }
            (Some(_), None) if self.description.is_some() => {
                Err(ApiError::invalid("#/person/description", "is taken with external_id only"))
            }
            (Some(id), None) => Ok(PersonRef::Id { id }),
            (None, Some(external_id)) => {
                Ok(PersonRef::External { external_id, name: self.name, description: self.description })
            }
            _ => Err(ApiError::invalid("#/person", "needs exactly one of id and external_id")),
        }
    }
}

/// Store every good face of a picture.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IndexRequest {
    /// The picture.
    #[serde(deserialize_with = "shared::object::only")]
    image: ImageInput,
    /// Given back with the job.
    #[schema(max_length = 256)]
    tag: Option<String>,
    /// The only webhook endpoints that are told of it; all that want to know where absent.
    #[schema(max_items = 100)]
    webhook_endpoint_ids: Option<Vec<WebhookEndpointId>>,
}

/// Find the persons on a picture.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IdentifyRequest {
    /// The picture.
    #[serde(deserialize_with = "shared::object::only")]
    image: ImageInput,
    /// Persons named a face at most, 1 to 100; the collection's setting where absent.
    #[schema(minimum = 1, maximum = 100)]
    #[serde(default, deserialize_with = "shared::whole::optional")]
    max_matches: Option<usize>,
    /// Given back with the job.
    #[schema(max_length = 256)]
    tag: Option<String>,
    /// The only webhook endpoints that are told of it; all that want to know where absent.
    #[schema(max_items = 100)]
    webhook_endpoint_ids: Option<Vec<WebhookEndpointId>>,
}

/// Compare a face with another picture's or with a person's.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// The picture.
    #[serde(deserialize_with = "shared::object::only")]
    image: ImageInput,
    /// What it is compared with.
    #[serde(deserialize_with = "shared::object::only")]
    other: VerifyOther,
    /// Which face is meant when there are several, on either picture.
    #[serde(default)]
    face: FaceChoice,
    /// Given back with the job.
    #[schema(max_length = 256)]
    tag: Option<String>,
    /// The only webhook endpoints that are told of it; all that want to know where absent.
    #[schema(max_items = 100)]
    webhook_endpoint_ids: Option<Vec<WebhookEndpointId>>,
}

/// One of the two.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyOther {
    /// Another picture.
    image: Option<ImageInput>,
    /// A person of the collection.
    person_id: Option<PersonId>,
}

/// A request that makes sense, its pictures not yet stored. Whether what it names is there is looked at once it is known to be
/// no repeat: that is answered whatever went meanwhile.
struct Checked {
    kind: JobKind,
    pictures: Vec<Picture>,
    /// Whom it names.
    person: Option<PersonRef>,
    /// What else tells two requests apart, as JSON.
    rest: serde_json::Value,
    tag: Option<String>,
    webhook_endpoints: Option<Vec<WebhookEndpointId>>,
}

/// Enrolls a face.
#[utoipa::path(post, path = "/v1/collections/{collection}/enroll", tag = "jobs", security(("api_key" = ["write"])), request_body = EnrollRequest,
    params(("collection" = String, Path, description = "Its id or name"),
        ("Idempotency-Key" = Option<String>, Header, description = "Repeats with the same key give the same job",
            pattern = r#"^("([ !#-\[\]-~]|\\["\\]){1,253}"|[!#-~]([ -~]{0,253}[!-~])?)$"#)),
    responses((status = 202, body = JobView, headers(("Location" = String, description = "The job's path"))), (status = 410)))]
pub async fn enroll(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path(collection): Path<String>,
    headers: SubmitHeaders,
    Json(request): Json<EnrollRequest>,
) -> ApiResult<Response> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let person = request.person.resolved()?;
    check_choice(request.face)?;
    let picture = pictures::resolve(&state, &caller, collection.id, &request.image, "#/image").await?;
    let wanted = Enrollment {
        picture,
        person,
        face: request.face,
        tag: request.tag,
        webhook_endpoints: request.webhook_endpoint_ids,
    };
    enroll_picture(&state, &caller, &collection, &headers, wanted).await.map(accepted)
}

/// A picture's face that is to be a person's.
pub(crate) struct Enrollment {
    pub(crate) picture: Picture,
    pub(crate) person: PersonRef,
    pub(crate) face: FaceChoice,
    pub(crate) tag: Option<String>,
    pub(crate) webhook_endpoints: Option<Vec<WebhookEndpointId>>,
}

/// Makes the job that enrolls it.
pub(crate) async fn enroll_picture(
    state: &AppState,
    grant: &Grant,
    collection: &collection::Model,
    headers: &SubmitHeaders,
    Enrollment { picture, person, face, tag, webhook_endpoints }: Enrollment,
) -> ApiResult<JobView> {
    let rest = serde_json::json!([&person, face]);
    let (kind, pictures, named) = (JobKind::Enroll, vec![picture], Some(person.clone()));
    let checked = Checked { kind, pictures, person: named, rest, tag, webhook_endpoints };
    let args = |mut images: Vec<ImageRef>| JobArgs::Enroll { image: images.remove(0), person, face };
    accept(state, grant, collection, headers, checked, args).await
}

/// Indexes a picture.
#[utoipa::path(post, path = "/v1/collections/{collection}/index", tag = "jobs", security(("api_key" = ["write"])), request_body = IndexRequest,
    params(("collection" = String, Path, description = "Its id or name"),
        ("Idempotency-Key" = Option<String>, Header, description = "Repeats with the same key give the same job",
            pattern = r#"^("([ !#-\[\]-~]|\\["\\]){1,253}"|[!#-~]([ -~]{0,253}[!-~])?)$"#)),
    responses((status = 202, body = JobView, headers(("Location" = String, description = "The job's path")))))]
pub async fn index(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path(collection): Path<String>,
    headers: SubmitHeaders,
    Json(request): Json<IndexRequest>,
) -> ApiResult<Response> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let picture = pictures::resolve(&state, &caller, collection.id, &request.image, "#/image").await?;
    let checked = Checked {
        kind: JobKind::Index,
        pictures: vec![picture],
        person: None,
        rest: serde_json::Value::Null,
        tag: request.tag,
        webhook_endpoints: request.webhook_endpoint_ids,
    };
    let args = |mut images: Vec<ImageRef>| JobArgs::Index { image: images.remove(0) };
    accept(&state, &caller, &collection, &headers, checked, args).await.map(accepted)
}

/// Identifies the faces of a picture.
#[utoipa::path(post, path = "/v1/collections/{collection}/identify", tag = "jobs", security(("api_key" = ["identify"])), request_body = IdentifyRequest,
    params(("collection" = String, Path, description = "Its id or name"),
        ("Idempotency-Key" = Option<String>, Header, description = "Repeats with the same key give the same job",
            pattern = r#"^("([ !#-\[\]-~]|\\["\\]){1,253}"|[!#-~]([ -~]{0,253}[!-~])?)$"#)),
    responses((status = 202, body = JobView, headers(("Location" = String, description = "The job's path")))))]
pub async fn identify(
    State(state): State<AppState>,
    caller: Caller<Identify>,
    Path(collection): Path<String>,
    headers: SubmitHeaders,
    Json(request): Json<IdentifyRequest>,
) -> ApiResult<Response> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    if request.max_matches.is_some_and(|k| !(1..=100).contains(&k)) {
        return Err(ApiError::invalid("#/max_matches", "must lie between 1 and 100"));
    }
    let picture = pictures::resolve(&state, &caller, collection.id, &request.image, "#/image").await?;
    let wanted = Identification {
        picture,
        max_matches: request.max_matches,
        tag: request.tag,
        webhook_endpoints: request.webhook_endpoint_ids,
    };
    identify_picture(&state, &caller, &collection, &headers, wanted).await.map(accepted)
}

/// A picture whose faces are to be identified, checked.
pub(crate) struct Identification {
    pub(crate) picture: Picture,
    pub(crate) max_matches: Option<usize>,
    pub(crate) tag: Option<String>,
    pub(crate) webhook_endpoints: Option<Vec<WebhookEndpointId>>,
}

/// Makes the job that identifies them.
pub(crate) async fn identify_picture(
    state: &AppState,
    grant: &Grant,
    collection: &collection::Model,
    headers: &SubmitHeaders,
    Identification { picture, max_matches, tag, webhook_endpoints }: Identification,
) -> ApiResult<JobView> {
    let rest = serde_json::json!(max_matches);
    let (kind, pictures) = (JobKind::Identify, vec![picture]);
    let checked = Checked { kind, pictures, person: None, rest, tag, webhook_endpoints };
    let args = |mut images: Vec<ImageRef>| JobArgs::Identify { image: images.remove(0), max_matches };
    accept(state, grant, collection, headers, checked, args).await
}

/// Verifies a face.
#[utoipa::path(post, path = "/v1/collections/{collection}/verify", tag = "jobs", security(("api_key" = ["identify"])), request_body = VerifyRequest,
    params(("collection" = String, Path, description = "Its id or name"),
        ("Idempotency-Key" = Option<String>, Header, description = "Repeats with the same key give the same job",
            pattern = r#"^("([ !#-\[\]-~]|\\["\\]){1,253}"|[!#-~]([ -~]{0,253}[!-~])?)$"#)),
    responses((status = 202, body = JobView, headers(("Location" = String, description = "The job's path"))), (status = 410)))]
pub async fn verify(
    State(state): State<AppState>,
    caller: Caller<Identify>,
    Path(collection): Path<String>,
    headers: SubmitHeaders,
    Json(request): Json<VerifyRequest>,
) -> ApiResult<Response> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    check_choice(request.face)?;
    let mut found = vec![pictures::resolve(&state, &caller, collection.id, &request.image, "#/image").await?];
    match (&request.other.image, request.other.person_id) {
        (Some(image), None) => {
            found.push(pictures::resolve(&state, &caller, collection.id, image, "#/other/image").await?);
        }
        (None, Some(_)) => {}
        _ => return Err(ApiError::invalid("#/other", "needs exactly one of image and person_id")),
    }
    let checked = Checked {
        kind: JobKind::Verify,
        pictures: found,
        person: request.other.person_id.map(|id| PersonRef::Id { id }),
        rest: serde_json::json!([request.other.person_id, request.face]),
        tag: request.tag,
        webhook_endpoints: request.webhook_endpoint_ids,
    };
    accept(&state, &caller, &collection, &headers, checked, |mut images| JobArgs::Verify {
        image: images.remove(0),
        other: match request.other.person_id {
            Some(id) => VerifyTarget::Person(id),
            None => VerifyTarget::Image(images.remove(0)),
        },
        face: request.face,
    })
    .await
    .map(accepted)
}

/// Matches the faces of the collection again that nobody was named for, or only by a match. Where a job waits to do so, that
/// one is the answer.
#[utoipa::path(post, path = "/v1/collections/{collection}/rematch", tag = "jobs", security(("api_key" = ["write"])),
    params(("collection" = String, Path, description = "Its id or name")),
    responses((status = 202, body = JobView, headers(("Location" = String, description = "The job's path")))))]
pub async fn rematch(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path(collection): Path<String>,
    headers: SubmitHeaders,
) -> ApiResult<Response> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    match rematches::enqueue(&state.db, &collection, Some(headers.trace.as_str().to_owned())).await? {
        Submitted::New(job) => Ok(accepted(fresh(&state, job, JobArgs::Rematch { all: true, progress: None }).await)),
        waiting => again(&state, &caller, waiting).await.map(accepted),
    }
}

pub(crate) async fn check_person(
    state: &AppState,
    collection: &collection::Model,
    person: &PersonRef,
) -> ApiResult<()> {
    match person {
        PersonRef::Id { id } => {
            super::persons::find(state, collection.id, *id).await?;
            Ok(())
        }
        PersonRef::External { external_id, name, description } => {
            check_external_id("#/person/external_id", external_id)?;
            name.as_ref().map_or(Ok(()), |name| check_text("#/person/name", name))?;
            description.as_ref().map_or(Ok(()), |text| check_description("#/person/description", text))?;
            super::persons::check_merged(state, collection.id, person).await
        }
    }
}

pub(crate) fn check_external_id(pointer: &str, external_id: &str) -> ApiResult<()> {
    if external_id.trim().is_empty() {
        return Err(ApiError::invalid(pointer, "must not be empty"));
    }
    check_text(pointer, external_id)
}

pub(crate) fn check_text(pointer: &str, text: &str) -> ApiResult<()> {
    check_length(pointer, text, MAX_TEXT)
}

/// As [`check_text`], for the description of a person.
pub(crate) fn check_description(pointer: &str, text: &str) -> ApiResult<()> {
    check_length(pointer, text, MAX_DESCRIPTION)
}

fn check_length(pointer: &str, text: &str, most: usize) -> ApiResult<()> {
    if text.chars().count() > most || text.contains('\0') {
        return Err(ApiError::invalid(pointer, format!("must be at most {most} characters without NUL")));
    }
    Ok(())
}

fn check_choice(face: FaceChoice) -> ApiResult<()> {
    let FaceChoice::Box(b) = face else { return Ok(()) };
    let finite = [b.x, b.y, b.width, b.height].iter().all(|v| v.is_finite());
    if finite && b.width > 0.0 && b.height > 0.0 {
        return Ok(());
    }
    Err(ApiError::invalid("#/face/box", "must have finite numbers, and a width and height above zero"))
}

/// Stores the pictures and the job, and announces it.
async fn accept(
    state: &AppState,
    grant: &Grant,
    collection: &collection::Model,
    headers: &SubmitHeaders,
    checked: Checked,
    args: impl FnOnce(Vec<ImageRef>) -> JobArgs,
) -> ApiResult<JobView> {
    if let Some(tag) = &checked.tag {
        check_text("#/tag", tag)?;
    }
    let idempotency = promised(state, grant, collection, headers, &checked);
    if let Some(idempotency) = &idempotency
        && let Some(repeated) = find_repeated(&state.db, idempotency).await?
    {
        return again(state, grant, repeated).await;
    }
    if let Some(person) = &checked.person {
        check_person(state, collection, person).await?;
    }
    check_endpoints(state, collection.id, "#/webhook_endpoint_ids", checked.webhook_endpoints.as_deref()).await?;
    check_runnable(state, &collection.pipeline).await?;
    let admission = state.backlog.admit(&collection.pipeline, checked.kind.lane())?;
    let (images, inline_uploads) = stored(state, collection, checked.pictures).await?;
    let args = args(images);
    let keys: Vec<String> = inline_uploads.iter().map(|u| u.object_key.clone()).collect();
    let new = NewJob {
        collection: collection.id,
        args: args.clone(),
        tag: checked.tag,
        webhook_endpoints: checked.webhook_endpoints,
        traceparent: Some(headers.trace.as_str().to_owned()),
        idempotency,
        inline_uploads,
    };
    let submitted = submit(&state.db, grant, new).await;
    if matches!(
        submitted,
        Ok(Submitted::Existing(_) | Submitted::KeyReused | Submitted::KeyInFlight | Submitted::OverLimit(_))
    ) {
        // No row names these objects. After an error one may, if only the answer to the commit was lost; the sweeper sees.
        for key in keys {
            if let Err(error) = state.objects.delete(&key).await {
                tracing::warn!(%error, "delete the picture of a repeated request; the sweeper does it");
            }
        }
    }
    match submitted? {
        Submitted::New(job) => {
            admission.made();
            Ok(fresh(state, job, args).await)
        }
        repeated => again(state, grant, repeated).await,
    }
}

/// The pictures as a job names them, and those that came within the request, which are stored now.
async fn stored(
    state: &AppState,
    collection: &collection::Model,
    pictures: Vec<Picture>,
) -> ApiResult<(Vec<ImageRef>, Vec<NewUpload>)> {
    let (mut images, mut inline_uploads) = (Vec::new(), Vec::new());
    for picture in pictures {
        images.push(match picture {
            Picture::There(image) => image,
            Picture::Inline(picture) => {
                let stored = picture.store(state, collection.id, true).await?;
                let image = ImageRef::Upload(UploadedImage {
                    upload_id: stored.id,
                    object_key: stored.object_key.clone(),
                    sha256: stored.sha256.clone(),
                });
                inline_uploads.push(stored);
                image
            }
        });
    }
    Ok((images, inline_uploads))
}

fn promised(
    state: &AppState,
    grant: &Grant,
    collection: &collection::Model,
    headers: &SubmitHeaders,
    checked: &Checked,
) -> Option<Idempotency> {
    let key = headers.idempotency_key.clone()?;
    let pictures: Vec<&str> = checked.pictures.iter().map(Picture::identity).collect();
    let mut text = serde_json::json!([pictures, checked.rest, checked.tag]).to_string();
    if let Some(only) = &checked.webhook_endpoints {
        text.push_str(&serde_json::json!(only).to_string());
    }
    Some(promise(state, grant, (collection.id, checked.kind.as_str()), key, &text))
}

/// What a key stands for that a caller sends with this text to something of a collection.
pub(super) fn promise(
    state: &AppState,
    grant: &Grant,
    (collection, to): (CollectionId, &str),
    key: String,
    text: &str,
) -> Idempotency {
    Idempotency {
        route: idempotency::route(grant, collection, to),
        key,
        fingerprint: sha256_hex(text),
        keep: Duration::from_secs(u64::from(state.config.retention.idempotency_hours) * 3600),
    }
}

/// Tells the queue at once. The job is durable: where this fails or takes long, the dispatcher finds it.
async fn announce(state: &AppState, job: &job::Model) {
    let announced = async {
        let due = DueJob::submitted(&state.db, job).await?;
        dispatch(&state.db, &*state.queue, &[due]).await
    };
    match tokio::time::timeout(ANNOUNCE_TIMEOUT, announced).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, job.id = %job.id, "announce a job"),
        Err(_) => tracing::warn!(job.id = %job.id, "announcing a job took too long; the dispatcher does it"),
    }
}

/// A job that was just made.
async fn fresh(state: &AppState, job: job::Model, args: JobArgs) -> JobView {
    failpoint("after_submit");
    metrics::job_accepted(job.kind);
    announce(state, &job).await;
    tracing::info!(job.id = %job.id, job.kind = job.kind.as_str(), collection.id = %job.collection_id, "job accepted");
    fresh_view(job, args)
}

/// The answer to a request that made no job.
async fn again(state: &AppState, grant: &Grant, submitted: Submitted) -> ApiResult<JobView> {
    match submitted {
        Submitted::New(job) | Submitted::Existing(job) => super::jobs::load(state, grant, job.id).await,
        Submitted::KeyReused => Err(key_reused()),
        Submitted::KeyInFlight => Err(ApiError::key_in_flight()),
        Submitted::OverLimit(over) => Err(over.into()),
    }
}

fn accepted(job: JobView) -> Response {
    let headers = [(header::LOCATION, format!("/v1/jobs/{}", job.id)), (header::RETRY_AFTER, "1".to_owned())];
    (StatusCode::ACCEPTED, headers, axum::Json(job)).into_response()
}

/// The answer to a key that was sent with another request.
pub(super) fn key_reused() -> ApiError {
    let detail = "this Idempotency-Key was sent with another request; use a new key for a new request";
    ApiError::unprocessable("idempotency_key_reused", detail)
}
