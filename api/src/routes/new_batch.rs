//! What a request for a batch asks for, and whether such a batch is taken: asked only of one that is no repeat, which is
//! answered whatever went meanwhile.

use std::path::Path as FilePath;

use axum::extract::Request;
use serde::Deserialize;
use shared::access::Grant;
use shared::batch::BatchSource;
use shared::db::batches::submit::{NewBatch, find_repeated};
use shared::db::entity::batch::OnGone;
use shared::db::entity::collection;
use shared::db::idempotency::Idempotency;
use shared::ids::WebhookEndpointId;
use shared::job::JobKind;
use shared::objects::ImportRoots;
use utoipa::{IntoParams, ToSchema};

use super::batches::NDJSON;
use super::models::check_runnable;
use super::submit::{check_text, promise};
use super::webhooks::check_endpoints;
use crate::error::{ApiError, ApiResult};
use crate::extract::{self, Json, SubmitHeaders};
use crate::manifest;
use crate::state::AppState;

/// What batches' keys are sent to.
const KEYS: &str = "batches";

/// Pictures of a place, to be worked on as jobs.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchRequest {
    /// The collection, by id or name.
    collection: String,
    /// What is done with each picture: `index`.
    #[schema(value_type = String, pattern = "^index$")]
    kind: JobKind,
    /// Where the pictures are.
    #[serde(deserialize_with = "shared::object::only")]
    source: SourceInput,
    /// What becomes of images that lay there and of which no place is left: they are kept and marked (`gone_at`), or
    /// deleted with their faces.
    #[serde(default)]
    gone: OnGone,
    /// Given back with the batch and each of its jobs.
    #[schema(max_length = 256)]
    tag: Option<String>,
    /// The only webhook endpoints that are told of it and its jobs; all that want to know where absent.
    #[schema(max_items = 100)]
    webhook_endpoint_ids: Option<Vec<WebhookEndpointId>>,
}

/// One of the two; a list of pictures is sent as a manifest.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceInput {
    /// `s3://bucket/prefix` in a bucket that the operator allows: every .jpg, .jpeg, .png and .webp below it.
    s3: Option<String>,
    /// The absolute path of a folder of the server, below one that the operator allows; with `face-id serve` only.
    folder: Option<String>,
}

/// What a manifest's request says beside its lines.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ManifestQuery {
    /// With a manifest: the collection, by id or name.
    collection: Option<String>,
    /// With a manifest: what is done with each picture, `index`.
    #[param(value_type = Option<String>, pattern = "^index$")]
    kind: Option<JobKind>,
    /// With a manifest: given back with the batch and each of its jobs.
    tag: Option<String>,
    /// With a manifest: the only webhook endpoints that are told of it and its jobs, with commas between them.
    webhook_endpoint_ids: Option<String>,
}

/// A request for a batch that makes sense.
pub(super) struct Asked {
    pub(super) collection: collection::Model,
    kind: JobKind,
    source: BatchSource,
    on_gone: OnGone,
    /// What tells its pictures from another request's.
    identity: String,
    tag: Option<String>,
    webhook_endpoints: Option<Vec<WebhookEndpointId>>,
    /// Whether it is known already that such a batch is taken now.
    is_admitted: bool,
}

impl Asked {
    /// What the key stands for with it.
    pub(super) fn promise(&self, state: &AppState, grant: &Grant, key: String) -> Idempotency {
        let mut text = serde_json::json!([self.identity, self.kind, self.tag, self.on_gone]).to_string();
        if let Some(only) = &self.webhook_endpoints {
            text.push_str(&serde_json::json!(only).to_string());
        }
        promise(state, grant, (self.collection.id, KEYS), key, &text)
    }

    /// The batch that is asked for.
    pub(super) fn batch(&self, headers: &SubmitHeaders, idempotency: Idempotency) -> NewBatch {
        NewBatch {
            collection: self.collection.id,
            kind: self.kind,
            pipeline: self.collection.pipeline.clone(),
            source: self.source.clone(),
            on_gone: self.on_gone,
            tag: self.tag.clone(),
            webhook_endpoints: self.webhook_endpoints.clone(),
            traceparent: Some(headers.trace.as_str().to_owned()),
            idempotency: Some(idempotency),
        }
    }

    /// Refuses a batch that cannot be taken now.
    pub(super) async fn check_admitted(&self, state: &AppState) -> ApiResult<()> {
        if self.is_admitted {
            return Ok(());
        }
        let pointer = match &self.source {
            BatchSource::Manifest(_) => "webhook_endpoint_ids",
            BatchSource::S3(_) | BatchSource::Folder(_) => "#/webhook_endpoint_ids",
        };
        admit(state, &self.collection, pointer, self.webhook_endpoints.as_deref()).await?;
        match &self.source {
            BatchSource::S3(prefix) => {
                let checked = state.objects.check_prefix(prefix);
                checked.map_err(|e| ApiError::invalid("#/source/s3", e.to_string()))
            }
            BatchSource::Folder(folder) => check_folder(state, folder.clone()).await,
            BatchSource::Manifest(_) => Ok(()),
        }
    }

    /// Deletes what was stored for it, as it makes no batch.
    pub(super) async fn forget(&self, state: &AppState) {
        if let BatchSource::Manifest(manifest) = &self.source {
            manifest::delete(state, self.collection.id, manifest).await;
        }
    }
}

/// What a request asks for that names a place.
pub(super) async fn of_place(state: &AppState, grant: &Grant, Json(request): Json<BatchRequest>) -> ApiResult<Asked> {
    check_kind("#/kind", request.kind)?;
    request.tag.as_ref().map_or(Ok(()), |tag| check_text("#/tag", tag))?;
    let collection = extract::collection(state, grant, &request.collection).await?;
    let source = match (request.source.s3, request.source.folder) {
        (Some(prefix), None) => BatchSource::S3(prefix),
        (None, Some(folder)) => BatchSource::Folder(folder),
        _ => {
            let detail = format!("needs exactly one of s3 and folder; a list of pictures is sent as {NDJSON}");
            return Err(ApiError::invalid("#/source", detail));
        }
    };
    let identity = serde_json::json!(&source).to_string();
    let (kind, on_gone, tag, webhook_endpoints) =
        (request.kind, request.gone, request.tag, request.webhook_endpoint_ids);
    Ok(Asked { collection, kind, source, on_gone, identity, tag, webhook_endpoints, is_admitted: false })
}

/// What a request asks for that brings a manifest, which is stored then.
pub(super) async fn of_manifest(
    state: &AppState,
    grant: &Grant,
    query: ManifestQuery,
    request: Request,
    key: &str,
) -> ApiResult<Asked> {
    let absent = |name: &str| ApiError::invalid(name, "is missing in the query; a manifest needs it");
    let kind = query.kind.ok_or_else(|| absent("kind"))?;
    check_kind("kind", kind)?;
    query.tag.as_ref().map_or(Ok(()), |tag| check_text("tag", tag))?;
    let collection = extract::collection(state, grant, &query.collection.ok_or_else(|| absent("collection"))?).await?;
    let webhook_endpoints = query.webhook_endpoint_ids.as_deref().map(endpoint_ids).transpose()?;
    // Before the body is taken in, unless the key was used: only the bytes tell whether it is a repeat.
    let whatever = promise(state, grant, (collection.id, KEYS), key.to_owned(), "");
    let is_admitted = find_repeated(&state.db, &whatever).await?.is_none();
    if is_admitted {
        admit(state, &collection, "webhook_endpoint_ids", webhook_endpoints.as_deref()).await?;
    }
    let intake = manifest::take_in(state, collection.id, request.into_body()).await?;
    let (source, identity, on_gone) = (BatchSource::Manifest(intake.manifest), intake.sha256, OnGone::default());
    Ok(Asked { collection, kind, source, on_gone, identity, tag: query.tag, webhook_endpoints, is_admitted })
}

/// Refuses a batch of whatever pictures that the collection's pipeline cannot do now, or of which nobody could be told.
async fn admit(
    state: &AppState,
    collection: &collection::Model,
    pointer: &str,
    endpoints: Option<&[WebhookEndpointId]>,
) -> ApiResult<()> {
    check_runnable(state, &collection.pipeline).await?;
    state.backlog.check_bulk(&collection.pipeline)?;
    check_endpoints(state, collection.id, pointer, endpoints).await
}

fn endpoint_ids(text: &str) -> ApiResult<Vec<WebhookEndpointId>> {
    let ids = text.split(',').map(|id| id.trim().parse()).collect::<Result<_, _>>();
    ids.map_err(|_| {
        ApiError::invalid("webhook_endpoint_ids", "must be ids of webhook endpoints with commas between them")
    })
}

fn check_kind(pointer: &str, kind: JobKind) -> ApiResult<()> {
    if kind == JobKind::Index {
        Ok(())
    } else {
        Err(ApiError::invalid(pointer, "must be index; other kinds go one by one"))
    }
}

async fn check_folder(state: &AppState, folder: String) -> ApiResult<()> {
    if state.config.has_services() {
        let detail = "is read by `face-id serve` only; put the pictures into a bucket and name it by s3";
        return Err(ApiError::invalid("#/source/folder", detail));
    }
    let roots = ImportRoots::new(state.config.import.roots.clone());
    let looked = tokio::task::spawn_blocking(move || {
        roots.resolve(FilePath::new(&folder)).map(|real| real.is_dir()).map_err(|e| e.to_string())
    });
    match looked.await.map_err(|error| ApiError::internal(&error))? {
        Ok(true) => Ok(()),
        Ok(false) => Err(ApiError::invalid("#/source/folder", "is no folder")),
        Err(why) => Err(ApiError::invalid("#/source/folder", why)),
    }
}
