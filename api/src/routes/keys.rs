//! API keys.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use shared::access::token::NewToken;
use shared::access::{Grant, Limits, Reach, Scope};
use shared::db::api_keys::changes::{self, LastAdmin, NewApiKey, Revoked, Rotated};
use shared::db::api_keys::{self, ApiKey, KeyLimits, KeyState};
use shared::db::now;
use shared::ids::{ApiKeyId, CollectionId};
use utoipa::ToSchema;

use super::instant;
use super::submit::check_text;
use crate::auth::{Admin, Caller};
use crate::cursor::{Page, PageQuery};
use crate::error::{ApiError, ApiResult};
use crate::extract::{self, Json, Path, Query};
use crate::state::AppState;

/// Collections that one key may name.
const MAX_COLLECTIONS: usize = 100;
/// Longest life and longest grace in seconds: ten years.
const MAX_LIFE_S: u64 = 10 * 365 * 24 * 3600;

/// A key to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// What it is for, to be told from others; up to 256 characters.
    #[schema(min_length = 1, max_length = 256, pattern = r"^[^\u0000]*[^\s\u0000][^\u0000]*$")]
    name: String,
    /// What it may do. `admin` includes all others, `write` includes `read` and `identify`.
    #[schema(value_type = Vec<Scope>, min_items = 1)]
    scopes: BTreeSet<Scope>,
    /// The collections that it holds for, by id or name; all where absent, those too that are made later.
    #[schema(min_items = 1, max_items = 100)]
    collections: Option<Vec<String>>,
    /// How long it is good for, in seconds; until it is revoked where absent. No longer than the key that makes it.
    #[schema(maximum = 315_360_000)]
    #[serde(default, deserialize_with = "shared::whole::optional")]
    expires_in_s: Option<u64>,
    /// How much it may take.
    #[serde(default, deserialize_with = "shared::object::only")]
    limits: LimitsView,
}

/// A key's own limits: the configured one where null, none at all where 0.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsView {
    /// Requests in a minute.
    #[schema(maximum = 4_294_967_295_u32, format = Int64)]
    #[serde(default, deserialize_with = "shared::whole::optional")]
    requests_per_minute: Option<u32>,
    /// Single jobs that have not ended.
    #[schema(maximum = 4_294_967_295_u32, format = Int64)]
    #[serde(default, deserialize_with = "shared::whole::optional")]
    jobs_in_flight: Option<u32>,
    /// Pictures in a day (UTC).
    #[schema(maximum = 4_294_967_295_u32, format = Int64)]
    #[serde(default, deserialize_with = "shared::whole::optional")]
    images_per_day: Option<u32>,
}

/// A key; nothing of it opens anything.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyView {
    id: ApiKeyId,
    name: String,
    /// The part of its token that is no secret.
    prefix: String,
    scopes: BTreeSet<Scope>,
    /// Null of one for all collections. Of those that are named, the ones that are there.
    collections: Option<BTreeSet<CollectionId>>,
    limits: LimitsView,
    state: KeyStateView,
    created_at: String,
    expires_at: Option<String>,
    revoked_at: Option<String>,
    /// To the minute.
    last_used_at: Option<String>,
    /// The key that it was rotated into.
    successor_id: Option<ApiKeyId>,
}

/// Whether a key opens anything.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyStateView {
    /// It does.
    Active,
    /// Its time is over.
    Expired,
    /// Somebody ended it.
    Revoked,
}

/// A key that was just made, with its token.
#[derive(Serialize, ToSchema)]
pub struct MadeKeyView {
    #[serde(flatten)]
    key: KeyView,
    /// What `Authorization: Bearer ...` takes. It is shown this once.
    token: String,
}

/// How a key is rotated.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RotateRequest {
    /// How long the old token stays good, in seconds; a day where absent.
    #[schema(maximum = 315_360_000)]
    #[serde(default, deserialize_with = "shared::whole::optional")]
    grace_s: Option<u64>,
}

impl From<ApiKey> for KeyView {
    fn from(key: ApiKey) -> Self {
        Self {
            id: key.id,
            name: key.name,
            prefix: key.prefix,
            scopes: key.scopes,
            collections: match key.reach {
                Reach::All => None,
                Reach::Only(collections) => Some(collections),
            },
            limits: LimitsView {
                requests_per_minute: key.limits.requests_per_minute,
                jobs_in_flight: key.limits.jobs_in_flight,
                images_per_day: key.limits.images_per_day,
            },
            state: match key.state {
                KeyState::Active => KeyStateView::Active,
                KeyState::Expired => KeyStateView::Expired,
                KeyState::Revoked => KeyStateView::Revoked,
            },
            created_at: instant(key.created_at),
            expires_at: key.expires_at.map(instant),
            revoked_at: key.revoked_at.map(instant),
            last_used_at: key.last_used_at.map(instant),
            successor_id: key.successor,
        }
    }
}

impl MadeKeyView {
    /// The key with the token that it was made for.
    pub fn new(key: ApiKey, token: &NewToken) -> Self {
        Self { key: key.into(), token: token.token.expose().to_owned() }
    }
}

fn not_found(id: ApiKeyId) -> ApiError {
    ApiError::not_found("api_key_not_found", format!("there is no API key {id}"))
}

/// Makes a key, which may do no more than the caller. Its token is in this answer only.
#[utoipa::path(post, path = "/v1/api-keys", tag = "api-keys", security(("api_key" = ["admin"])), request_body = NewKey,
    responses((status = 201, body = MadeKeyView)))]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Json(new): Json<NewKey>,
) -> ApiResult<impl IntoResponse> {
    let new = checked(&state, &caller, new).await?;
    let token = NewToken::make().map_err(|error| ApiError::internal(&error))?;
    let key = changes::create(&state.db, &token, new).await?;
    state.gate.forget();
    tracing::info!(api_key.id = %key.id, "API key made");
    Ok(made(key, &token))
}

fn made(key: ApiKey, token: &NewToken) -> impl IntoResponse + use<> {
    let headers =
        [(header::LOCATION, format!("/v1/api-keys/{}", key.id)), (header::CACHE_CONTROL, "no-store".to_owned())];
    (StatusCode::CREATED, headers, axum::Json(MadeKeyView::new(key, token)))
}

async fn checked(state: &AppState, caller: &Grant, new: NewKey) -> ApiResult<NewApiKey> {
    check_text("#/name", &new.name)?;
    if new.name.trim().is_empty() {
        return Err(ApiError::invalid("#/name", "must not be empty: say what the key is for"));
    }
    if new.scopes.is_empty() {
        return Err(ApiError::invalid("#/scopes", "must name one of read, identify, write and admin"));
    }
    if let Some(scope) = new.scopes.iter().find(|scope| !caller.has(**scope)) {
        return Err(ApiError::lacks(&[*scope]));
    }
    let reach = reach(state, caller, new.collections).await?;
    let limits = KeyLimits {
        requests_per_minute: new.limits.requests_per_minute,
        jobs_in_flight: new.limits.jobs_in_flight,
        images_per_day: new.limits.images_per_day,
    };
    check_limits(caller.limits(), limits.or(state.config.limits))?;
    let expires_in = seconds("#/expires_in_s", new.expires_in_s)?;
    if let Some(left) = ends_later(state, caller, expires_in).await? {
        let detail = format!("must be at most {}: your own key ends then", left.as_secs());
        return Err(ApiError::invalid("#/expires_in_s", detail));
    }
    Ok(NewApiKey { name: new.name, scopes: new.scopes, reach, limits, expires_in, of_command: false })
}

/// How long the caller's own key is good yet, where a key of that life would be good for longer.
async fn ends_later(state: &AppState, caller: &Grant, expires_in: Option<Duration>) -> ApiResult<Option<Duration>> {
    let Some(own) = caller.key() else { return Ok(None) };
    let Some(end) = api_keys::find(&state.db, caller, own.id).await?.and_then(|key| key.expires_at) else {
        return Ok(None);
    };
    let left = Duration::from_micros(u64::try_from(end - now(&state.db.read).await?).unwrap_or_default());
    Ok(expires_in.is_none_or(|wanted| wanted > left).then_some(left))
}

/// The collections of a new key, each of which the caller has.
async fn reach(state: &AppState, caller: &Grant, named: Option<Vec<String>>) -> ApiResult<Reach> {
    let Some(named) = named else {
        return match caller.reach() {
            Reach::All => Ok(Reach::All),
            Reach::Only(_) => {
                Err(ApiError::forbidden("a key of single collections makes none for all: name collections"))
            }
        };
    };
    if !(1..=MAX_COLLECTIONS).contains(&named.len()) {
        let detail = format!("must name 1 to {MAX_COLLECTIONS}; leave it out for all collections");
        return Err(ApiError::invalid("#/collections", detail));
    }
    let mut collections = BTreeSet::new();
    for name in named {
        collections.insert(extract::collection(state, caller, &name).await?.id);
    }
    Ok(Reach::Only(collections))
}

/// Refuses limits that are wider than the caller's own.
fn check_limits(own: Limits, new: Limits) -> ApiResult<()> {
    let pairs = [
        ("requests_per_minute", own.requests_per_minute, new.requests_per_minute),
        ("jobs_in_flight", own.jobs_in_flight, new.jobs_in_flight),
        ("images_per_day", own.images_per_day, new.images_per_day),
    ];
    match pairs.into_iter().find(|(_, own, new)| *own > 0 && !(1..=*own).contains(new)) {
        None => Ok(()),
        Some((limit, own, _)) => {
            Err(ApiError::invalid(format!("#/limits/{limit}"), format!("must lie between 1 and {own}, your own key's")))
        }
    }
}

fn seconds(pointer: &str, seconds: Option<u64>) -> ApiResult<Option<Duration>> {
    if seconds.is_some_and(|s| s > MAX_LIFE_S) {
        return Err(ApiError::invalid(pointer, format!("must be at most {MAX_LIFE_S}, ten years")));
    }
    Ok(seconds.map(Duration::from_secs))
}

/// Lists the keys whose collections the caller has, in the order in which they were made.
#[utoipa::path(get, path = "/v1/api-keys", tag = "api-keys", security(("api_key" = ["admin"])), params(PageQuery),
    responses((status = 200, body = Page<KeyView>)))]
pub async fn list(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Query(page): Query<PageQuery>,
) -> ApiResult<axum::Json<Page<KeyView>>> {
    let page = page.of(&state.secret_key, "api keys", &())?;
    let rows = api_keys::list(&state.db, &caller, page.after()?.map(ApiKeyId), page.rows()).await?;
    Ok(axum::Json(page.page(rows, |key| key.id.0, KeyView::from)))
}

/// Shows a key.
#[utoipa::path(get, path = "/v1/api-keys/{key}", tag = "api-keys", security(("api_key" = ["admin"])),
    params(("key" = ApiKeyId, Path)), responses((status = 200, body = KeyView)))]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(id): Path<ApiKeyId>,
) -> ApiResult<axum::Json<KeyView>> {
    let found = api_keys::find(&state.db, &caller, id).await?;
    Ok(axum::Json(found.ok_or_else(|| not_found(id))?.into()))
}

/// Makes a key like this one, with a token of its own; the old one stays good for a while.
#[utoipa::path(post, path = "/v1/api-keys/{key}/rotate", tag = "api-keys", security(("api_key" = ["admin"])),
    request_body(content = RotateRequest), params(("key" = ApiKeyId, Path)),
    responses((status = 201, body = MadeKeyView)))]
pub async fn rotate(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(id): Path<ApiKeyId>,
    Json(request): Json<RotateRequest>,
) -> ApiResult<impl IntoResponse> {
    let grace = seconds("#/grace_s", request.grace_s)?.unwrap_or(changes::GRACE);
    let key = api_keys::find(&state.db, &caller, id).await?.ok_or_else(|| not_found(id))?;
    if check_limits(caller.limits(), key.limits.or(state.config.limits)).is_err() {
        return Err(ApiError::forbidden("the key has wider limits than yours, and you would be given one like it"));
    }
    let life = key.expires_at.map(|end| Duration::from_micros(u64::try_from(end - key.created_at).unwrap_or_default()));
    // Whoever holds a key may go on with it under another token; of another's they would have one that lives on.
    if caller.owner() != Some(key.line) && ends_later(&state, &caller, life).await?.is_some() {
        return Err(ApiError::forbidden("the key's successor would live longer than your own key"));
    }
    let token = NewToken::make().map_err(|error| ApiError::internal(&error))?;
    let successor = match changes::rotate(&state.db, &caller, id, &token, grace).await? {
        Rotated::Into(successor) => *successor,
        Rotated::Before(successor) => {
            let detail = format!("the key was rotated into {successor} before; rotate that one");
            return Err(ApiError::conflict("api_key_rotated", detail));
        }
        Rotated::NotActive => {
            let detail = "the key is expired or revoked; make a new one";
            return Err(ApiError::conflict("api_key_not_active", detail));
        }
        Rotated::NotFound => return Err(not_found(id)),
    };
    state.gate.forget();
    tracing::info!(api_key.id = %id, successor.id = %successor.id, "API key rotated");
    Ok(made(successor, &token))
}

/// Revokes a key, for good. Other processes hear of it within two seconds.
#[utoipa::path(delete, path = "/v1/api-keys/{key}", tag = "api-keys", security(("api_key" = ["admin"])),
    params(("key" = ApiKeyId, Path)), responses((status = 204)))]
pub async fn revoke(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(id): Path<ApiKeyId>,
) -> ApiResult<StatusCode> {
    match changes::revoke(&state.db, &caller, id, LastAdmin::IsKept).await? {
        Revoked::Done => {
            state.gate.forget();
            tracing::info!(api_key.id = %id, "API key revoked");
            Ok(StatusCode::NO_CONTENT)
        }
        Revoked::NotFound => Err(not_found(id)),
        Revoked::LastAdmin => Err(ApiError::conflict(
            "last_admin_key",
            "no other key of all collections may administer for as long as this one; make one first, or use \
             `face-id keys revoke` beside the database",
        )),
    }
}
