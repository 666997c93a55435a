//! Webhook endpoints: who is told what.

use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use shared::access::Grant;
use shared::db::collections;
use shared::db::webhooks::endpoints::{self, Changes, Endpoint, EndpointState, MOST, NewEndpoint};
use shared::db::webhooks::events;
use shared::ids::{CollectionId, WebhookDeliveryId, WebhookEndpointId};
use shared::webhooks::EventType;
use shared::webhooks::secret::{EndpointSecret, MalformedSecret};
use shared::webhooks::target::{Target, TargetError};
use utoipa::ToSchema;

use super::instant;
use super::submit::check_text;
use crate::auth::Administrator;
use crate::cursor::{Page, PageQuery};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Json, Path, Query};
use crate::state::AppState;

/// How long both secrets are used after a rotation, where the client does not say.
const GRACE_S: u64 = 24 * 3600;
/// And at most.
const MAX_GRACE_S: u64 = 7 * 24 * 3600;
/// Types of events that a client can name.
const MAX_EVENT_TYPES: usize = 9;
/// Collections that an endpoint names at most.
const MAX_COLLECTIONS: usize = 1000;

/// An endpoint to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewWebhookEndpoint {
    /// Where messages are sent: `https://`, a public address.
    #[schema(format = "uri", max_length = 2048)]
    url: String,
    /// For people, up to 256 characters.
    #[schema(max_length = 256)]
    #[serde(default)]
    description: String,
    /// What it is told of, each once; all where absent or empty.
    #[schema(max_items = 9)]
    #[serde(default)]
    event_types: Vec<EventType>,
    /// The collections, by id, whose events it is told of; all where absent.
    #[schema(max_items = 1000)]
    collection_ids: Option<Vec<CollectionId>>,
    /// Its secret, `whsec_` and the base64 of 24 to 64 random bytes; made where absent.
    #[schema(
        pattern = r"^whsec_([A-Za-z0-9+/]{4}){8,20}([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=|[A-Za-z0-9+/][AQgw]==)?$"
    )]
    secret: Option<String>,
}

/// Changes to an endpoint; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookEndpointChanges {
    #[schema(format = "uri", max_length = 2048)]
    url: Option<String>,
    #[schema(max_length = 256)]
    description: Option<String>,
    /// Empty: everything.
    #[schema(max_items = 9)]
    event_types: Option<Vec<EventType>>,
    /// null: all.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Vec<CollectionId>>, max_items = 1000)]
    #[expect(clippy::option_option, reason = "null is another wish than no word of it")]
    collection_ids: Option<Option<Vec<CollectionId>>>,
    /// `paused`: what it would be told of waits; `disabled`: it is dropped.
    state: Option<EndpointState>,
}

/// A field that is there, be it null.
fn given<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
}

/// An address that is told of events.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookEndpointView {
    id: WebhookEndpointId,
    url: String,
    description: String,
    /// Empty: everything.
    #[schema(max_items = 9)]
    event_types: Vec<EventType>,
    /// null: all.
    collection_ids: Option<Vec<CollectionId>>,
    state: EndpointState,
    /// Why it was disabled: `gone` (it answered 410), `failing` (for too long), `by_client`.
    state_reason: Option<String>,
    /// Since when every attempt to tell it has failed.
    failing_since: Option<String>,
    version: i64,
    created_at: String,
}

/// An endpoint that was just made.
#[derive(Debug, Serialize, ToSchema)]
pub struct MadeWebhookEndpoint {
    #[serde(flatten)]
    endpoint: WebhookEndpointView,
    /// What its messages are signed with.
    secret: String,
}

/// An endpoint's secret.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookSecret {
    secret: String,
}

/// How to change an endpoint's secret.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretRotation {
    /// How long messages are signed with the old secret too, 0 to 604800 seconds; a day where absent.
    #[schema(maximum = 604_800)]
    #[serde(default, deserialize_with = "shared::whole::optional")]
    grace_s: Option<u64>,
    /// The new secret; made where absent.
    #[schema(
        pattern = r"^whsec_([A-Za-z0-9+/]{4}){8,20}([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=|[A-Za-z0-9+/][AQgw]==)?$"
    )]
    secret: Option<String>,
}

/// What a test sends.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookTest {
    delivery_id: WebhookDeliveryId,
}

fn view(endpoint: Endpoint) -> WebhookEndpointView {
    WebhookEndpointView {
        id: endpoint.id,
        url: endpoint.url,
        description: endpoint.description,
        event_types: endpoint.event_types,
        collection_ids: endpoint.collections,
        state: endpoint.state,
        state_reason: endpoint.state_reason,
        failing_since: endpoint.failing_since.map(instant),
        version: endpoint.version,
        created_at: instant(endpoint.created_at),
    }
}

/// Makes a webhook endpoint; its secret is in the answer.
#[utoipa::path(post, path = "/v1/webhook-endpoints", tag = "webhooks", security(("api_key" = ["admin"])), request_body = NewWebhookEndpoint, responses(
    (status = 201, body = MadeWebhookEndpoint)))]
pub async fn create(
    State(state): State<AppState>,
    Administrator(grant): Administrator,
    Json(new): Json<NewWebhookEndpoint>,
) -> ApiResult<impl IntoResponse> {
    let url = check_url(&state, &new.url)?;
    check_text("#/description", &new.description)?;
    check_collections(&state, &grant, new.collection_ids.as_deref()).await?;
    let secret = secret_of(new.secret.as_deref())?;
    let new = NewEndpoint {
        url,
        description: new.description,
        event_types: each_once(new.event_types)?,
        collections: new.collection_ids,
        secret: secret.clone(),
    };
    let made = endpoints::create(&state.db, &state.secret_key, new).await?.ok_or_else(|| {
        ApiError::conflict("too_many_webhook_endpoints", format!("there are {MOST} endpoints; delete one first"))
    })?;
    tracing::info!(webhook.endpoint.id = %made.id, "webhook endpoint made");
    let location = [(header::LOCATION, format!("/v1/webhook-endpoints/{}", made.id))];
    let made = MadeWebhookEndpoint { endpoint: view(made), secret: secret.reveal() };
    Ok((StatusCode::CREATED, location, axum::Json(made)))
}

/// Lists webhook endpoints.
#[utoipa::path(get, path = "/v1/webhook-endpoints", tag = "webhooks", security(("api_key" = ["admin"])), params(PageQuery), responses(
    (status = 200, body = Page<WebhookEndpointView>)))]
pub async fn list(
    State(state): State<AppState>,
    _: Administrator,
    Query(page): Query<PageQuery>,
) -> ApiResult<axum::Json<Page<WebhookEndpointView>>> {
    let page = page.of(&state.secret_key, "webhook endpoints", &())?;
    let rows = endpoints::list(&state.db, page.after()?.map(WebhookEndpointId), page.rows()).await?;
    Ok(axum::Json(page.page(rows, |row| row.id.0, view)))
}

/// Shows a webhook endpoint.
#[utoipa::path(get, path = "/v1/webhook-endpoints/{endpoint}", tag = "webhooks", security(("api_key" = ["admin"])),
    params(("endpoint" = WebhookEndpointId, Path)), responses(
    (status = 200, body = WebhookEndpointView)))]
pub async fn get(
    State(state): State<AppState>,
    _: Administrator,
    Path(id): Path<WebhookEndpointId>,
) -> ApiResult<axum::Json<WebhookEndpointView>> {
    Ok(axum::Json(view(find(&state, id).await?)))
}

/// Changes a webhook endpoint. Enabling one that was disabled forgets its failures; what was dropped is sent again with
/// `recover`.
#[utoipa::path(patch, path = "/v1/webhook-endpoints/{endpoint}", tag = "webhooks", security(("api_key" = ["admin"])),
    params(("endpoint" = WebhookEndpointId, Path)), request_body = WebhookEndpointChanges, responses(
    (status = 200, body = WebhookEndpointView)))]
pub async fn update(
    State(state): State<AppState>,
    Administrator(grant): Administrator,
    Path(id): Path<WebhookEndpointId>,
    Json(changes): Json<WebhookEndpointChanges>,
) -> ApiResult<axum::Json<WebhookEndpointView>> {
    let url = changes.url.as_deref().map(|url| check_url(&state, url)).transpose()?;
    changes.description.as_ref().map_or(Ok(()), |text| check_text("#/description", text))?;
    check_collections(&state, &grant, changes.collection_ids.as_ref().and_then(|ids| ids.as_deref())).await?;
    let changes = Changes {
        url,
        description: changes.description,
        event_types: changes.event_types.map(each_once).transpose()?,
        collections: changes.collection_ids,
        state: changes.state,
    };
    if !endpoints::change(&state.db, id, &changes).await? {
        return Err(not_found(id));
    }
    Ok(axum::Json(view(find(&state, id).await?)))
}

/// Deletes a webhook endpoint, what waits for it, and the log of what it was told.
#[utoipa::path(delete, path = "/v1/webhook-endpoints/{endpoint}", tag = "webhooks", security(("api_key" = ["admin"])),
    params(("endpoint" = WebhookEndpointId, Path)), responses(
    (status = 204)))]
pub async fn delete(
    State(state): State<AppState>,
    _: Administrator,
    Path(id): Path<WebhookEndpointId>,
) -> ApiResult<StatusCode> {
    if endpoints::delete(&state.db, id).await? { Ok(StatusCode::NO_CONTENT) } else { Err(not_found(id)) }
}

/// Shows a webhook endpoint's secret.
#[utoipa::path(get, path = "/v1/webhook-endpoints/{endpoint}/secret", tag = "webhooks", security(("api_key" = ["admin"])),
    params(("endpoint" = WebhookEndpointId, Path)), responses(
    (status = 200, body = WebhookSecret)))]
pub async fn secret(
    State(state): State<AppState>,
    _: Administrator,
    Path(id): Path<WebhookEndpointId>,
) -> ApiResult<axum::Json<WebhookSecret>> {
    let endpoint = find(&state, id).await?;
    // The first is the one that holds; at the end of time no other does.
    let secrets = endpoint.secrets(&state.secret_key, i64::MAX).map_err(|error| ApiError::internal(&error))?;
    let secret = secrets.first().map(EndpointSecret::reveal).unwrap_or_default();
    Ok(axum::Json(WebhookSecret { secret }))
}

/// Gives a webhook endpoint a new secret. For `grace_s`, messages are signed with the old one too.
#[utoipa::path(post, path = "/v1/webhook-endpoints/{endpoint}/rotate-secret", tag = "webhooks", security(("api_key" = ["admin"])),
    params(("endpoint" = WebhookEndpointId, Path)), request_body = SecretRotation, responses(
    (status = 200, body = WebhookSecret)))]
pub async fn rotate_secret(
    State(state): State<AppState>,
    _: Administrator,
    Path(id): Path<WebhookEndpointId>,
    Json(rotation): Json<SecretRotation>,
) -> ApiResult<axum::Json<WebhookSecret>> {
    let grace_s = rotation.grace_s.unwrap_or(GRACE_S);
    if grace_s > MAX_GRACE_S {
        return Err(ApiError::invalid("#/grace_s", format!("must lie between 0 and {MAX_GRACE_S}")));
    }
    let secret = secret_of(rotation.secret.as_deref())?;
    let grace = Duration::from_secs(grace_s);
    if !endpoints::rotate_secret(&state.db, &state.secret_key, id, &secret, grace).await? {
        return Err(not_found(id));
    }
    tracing::info!(webhook.endpoint.id = %id, grace_s, "webhook secret rotated");
    Ok(axum::Json(WebhookSecret { secret: secret.reveal() }))
}

/// Sends an `endpoint.test` event to a webhook endpoint; its delivery shows what came of it.
#[utoipa::path(post, path = "/v1/webhook-endpoints/{endpoint}/test", tag = "webhooks", security(("api_key" = ["admin"])),
    params(("endpoint" = WebhookEndpointId, Path)), responses(
    (status = 202, body = WebhookTest)))]
pub async fn test(
    State(state): State<AppState>,
    _: Administrator,
    Path(id): Path<WebhookEndpointId>,
) -> ApiResult<(StatusCode, axum::Json<WebhookTest>)> {
    if find(&state, id).await?.state == EndpointState::Disabled {
        return Err(disabled());
    }
    let txn = state.db.begin().await?;
    let delivery_id = events::test(&txn, id).await?.ok_or_else(|| not_found(id))?;
    txn.commit().await?;
    Ok((StatusCode::ACCEPTED, axum::Json(WebhookTest { delivery_id })))
}

pub(super) async fn find(state: &AppState, id: WebhookEndpointId) -> ApiResult<Endpoint> {
    endpoints::find(&state.db.read, id).await?.ok_or_else(|| not_found(id))
}

pub(super) fn disabled() -> ApiError {
    let detail = "the endpoint is disabled; enable it first (PATCH with state: enabled)";
    ApiError::conflict("webhook_endpoint_disabled", detail)
}

fn not_found(id: WebhookEndpointId) -> ApiError {
    ApiError::not_found("webhook_endpoint_not_found", format!("there is no webhook endpoint {id}"))
}

/// Refuses ids of which no endpoint is told of the collection, among those that alone are told of a job or batch.
pub(super) async fn check_endpoints(
    state: &AppState,
    collection: CollectionId,
    pointer: &str,
    ids: Option<&[WebhookEndpointId]>,
) -> ApiResult<()> {
    let ids = ids.unwrap_or_default();
    if ids.len() > usize::try_from(MOST).unwrap_or_default() {
        return Err(ApiError::invalid(pointer, format!("must name at most {MOST} endpoints")));
    }
    match endpoints::missing(&state.db, collection, ids).await?.first() {
        Some(id) => {
            Err(ApiError::invalid(pointer, format!("names {id}, which is no webhook endpoint of this collection")))
        }
        None => Ok(()),
    }
}

/// The URL in its canonical spelling, if messages may be sent there.
fn check_url(state: &AppState, url: &str) -> ApiResult<String> {
    match Target::parse(url, &state.config.webhooks) {
        Ok(target) => Ok(target.as_str().to_owned()),
        Err(error @ TargetError::Refused(_)) => {
            Err(ApiError::unprocessable("webhook_address_refused", format!("the URL {error}")))
        }
        Err(error @ TargetError::Malformed(_)) => Err(ApiError::invalid("#/url", error.to_string())),
    }
}

/// They are read with every job that ends.
fn each_once(mut types: Vec<EventType>) -> ApiResult<Vec<EventType>> {
    if types.len() > MAX_EVENT_TYPES {
        return Err(ApiError::invalid(
            "#/event_types",
            format!("must be at most {MAX_EVENT_TYPES}, as many as there are"),
        ));
    }
    types.sort_unstable();
    types.dedup();
    Ok(types)
}

async fn check_collections(state: &AppState, grant: &Grant, ids: Option<&[CollectionId]>) -> ApiResult<()> {
    let ids = ids.unwrap_or_default();
    if ids.len() > MAX_COLLECTIONS {
        return Err(ApiError::invalid("#/collection_ids", format!("must name at most {MAX_COLLECTIONS} collections")));
    }
    for id in ids {
        if collections::find(&state.db.read, grant, *id).await?.is_none() {
            return Err(ApiError::invalid("#/collection_ids", format!("names {id}, which is no collection")));
        }
    }
    Ok(())
}

fn secret_of(text: Option<&str>) -> ApiResult<EndpointSecret> {
    match text {
        Some(text) => text.parse().map_err(|error: MalformedSecret| ApiError::invalid("#/secret", format!("{error}"))),
        None => Ok(EndpointSecret::random()),
    }
}
