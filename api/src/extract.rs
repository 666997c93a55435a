//! Reading requests: every failure is a problem with a code.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;
use shared::access::Grant;
use shared::db::collections;
use shared::db::entity::collection;
use shared::telemetry::trace::TraceContext;
use uuid::Uuid;

use crate::buffered::NoRoom;
use crate::error::{ApiError, ApiResult};
use crate::in_flight::InFlightKey;
use crate::state::AppState;

/// A JSON body.
#[derive(Debug)]
pub struct Json<T>(pub T);

/// What the headers of a request that makes a job say.
#[derive(Debug)]
pub struct SubmitHeaders {
    /// The client's `Idempotency-Key`, 1 to 255 visible ASCII characters.
    pub idempotency_key: Option<String>,
    /// Keeps others from using the key meanwhile.
    _in_flight: Option<InFlightKey>,
    /// The trace that the job belongs to.
    pub trace: TraceContext,
}

/// Longest `Idempotency-Key` in bytes.
const MAX_KEY: usize = 255;

/// A body of whatever bytes.
#[derive(Debug)]
pub struct Body(pub Bytes);

/// Query parameters.
#[derive(Debug)]
pub struct Query<T>(pub T);

/// Path parameters.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        if !media_type(request.headers()).eq_ignore_ascii_case("application/json") {
            let detail = "send the header Content-Type: application/json";
            return Err(ApiError::unsupported_media_type("unsupported_media_type", detail));
        }
        let Body(bytes) = Body::from_request(request, state).await?;
        if bytes.is_empty() {
            return Err(ApiError::bad_request("empty_body", "the body is empty; send a JSON object"));
        }
        parse(&bytes).map(Json)
    }
}

impl FromRequestParts<AppState> for SubmitHeaders {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let trace = parts.extensions.get::<TraceContext>().cloned().unwrap_or_default();
        let Some(value) = parts.headers.get("idempotency-key") else {
            return Ok(Self { idempotency_key: None, _in_flight: None, trace });
        };
        let key = value.to_str().ok().and_then(key_of).ok_or_else(|| {
            let detail = format!("Idempotency-Key must be 1 to {MAX_KEY} visible ASCII characters");
            ApiError::bad_request("bad_idempotency_key", detail)
        })?;
        let owner = parts.extensions.get::<Arc<Grant>>().and_then(|grant| grant.owner());
        let caller = owner.map(|key| key.to_string()).unwrap_or_default();
        let in_flight = state.in_flight.take(&caller, parts.uri.path(), &key)?;
        Ok(Self { idempotency_key: Some(key), _in_flight: Some(in_flight), trace })
    }
}

impl SubmitHeaders {
    /// The same without its key, for jobs of which a request makes several.
    pub(crate) fn without_key(&self) -> Self {
        Self { idempotency_key: None, _in_flight: None, trace: self.trace.clone() }
    }

    /// The key of a request that is not taken without one.
    pub fn required_key(&self) -> ApiResult<&str> {
        self.idempotency_key.as_deref().ok_or_else(|| {
            let detail = "send an Idempotency-Key, a new one for each new request and the same for a repeat: what was \
                accepted and not answered is not made twice then";
            ApiError::bad_request("idempotency_key_missing", detail)
        })
    }
}

/// The key of a header: a string of structured fields (RFC 9651, section 3.3.3), or the same without quotes.
fn key_of(header: &str) -> Option<String> {
    let header = header.trim();
    let key = match header.strip_prefix('"') {
        Some(rest) => unquoted(rest.strip_suffix('"')?)?,
        None => header.to_owned(),
    };
    let is_printable = key.chars().all(|c| matches!(c, ' '..='~'));
    (is_printable && (1..=MAX_KEY).contains(&key.len())).then_some(key)
}

/// What stands between quotes: a backslash stands before a quote or another one, and before nothing else.
fn unquoted(text: &str) -> Option<String> {
    let (mut plain, mut characters) = (String::with_capacity(text.len()), text.chars());
    while let Some(character) = characters.next() {
        plain.push(match character {
            '"' => return None,
            '\\' => characters.next().filter(|next| matches!(next, '"' | '\\'))?,
            other => other,
        });
    }
    Some(plain)
}

impl FromRequest<AppState> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let server = &state.config.server;
        let body = state.places.bodies.admit(request).into_body();
        let read = axum::body::to_bytes(body, server.max_body_bytes);
        match tokio::time::timeout(Duration::from_secs(server.body_timeout_s), read).await {
            Err(_) => Err(ApiError::body_timeout(server.body_timeout_s)),
            Ok(Ok(bytes)) => Ok(Self(bytes)),
            Ok(Err(error)) if is_too_long(&error) => Err(ApiError::body_too_large(server.max_body_bytes)),
            Ok(Err(error)) if is_without_room(&error) => Err(ApiError::unavailable(NoRoom.to_string())),
            Ok(Err(_)) => Err(ApiError::bad_request("body_broken_off", "the body broke off; send it again")),
        }
    }
}

/// The media type of a request's body, without its parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// Whether reading ended at the limit: that error has a type of its own, somewhere among the causes.
fn is_too_long(error: &axum::Error) -> bool {
    has_cause(error, |cause| cause.to_string().contains("length limit exceeded"))
}

/// Whether reading ended because other bodies fill the memory.
pub(crate) fn is_without_room(error: &(dyn std::error::Error + 'static)) -> bool {
    has_cause(error, |cause| cause.to_string() == NoRoom.to_string())
}

fn has_cause(error: &(dyn std::error::Error + 'static), is_it: impl Fn(&dyn std::error::Error) -> bool) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if is_it(error) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A body: an object, whatever it is of.
#[derive(serde::Deserialize)]
#[serde(transparent, bound = "T: DeserializeOwned")]
struct Object<T>(#[serde(deserialize_with = "shared::object::only")] T);

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> ApiResult<T> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut reader).map(|Object(parsed)| parsed).map_err(|error| {
        let pointer = pointer(error.path());
        let inner = error.into_inner();
        if inner.is_data() {
            ApiError::invalid(pointer, format!("is wrong: {inner}"))
        } else {
            ApiError::bad_request("malformed_json", format!("the body is no JSON: {inner}"))
        }
    })?;
    reader.end().map_err(|e| ApiError::bad_request("malformed_json", format!("the body is no JSON: {e}")))?;
    Ok(parsed)
}

/// The path as a JSON pointer in the form of a URI fragment (RFC 6901, section 6).
fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter().fold("#".to_owned(), |pointer, segment| match segment {
        Segment::Seq { index } => format!("{pointer}/{index}"),
        Segment::Map { key } => format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1")),
        Segment::Enum { variant } => format!("{pointer}/{variant}"),
        Segment::Unknown => pointer,
    })
}

impl<T: DeserializeOwned> FromRequestParts<AppState> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let axum::extract::Query(query) = axum::extract::Query::from_request_parts(parts, state)
            .await
            .map_err(|e| ApiError::invalid("query", format!("is wrong: {}", e.body_text())))?;
        Ok(Self(query))
    }
}

impl<T: DeserializeOwned + Send> FromRequestParts<AppState> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let axum::extract::Path(path) = axum::extract::Path::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::not_found("not_found", "an id in the path is no UUID, so nothing can have it"))?;
        Ok(Self(path))
    }
}

/// The collection that a path names by its id or its name, if the caller's grant holds for it.
pub async fn collection(state: &AppState, grant: &Grant, named: &str) -> ApiResult<collection::Model> {
    let found = match named.parse::<Uuid>() {
        Ok(id) => collections::find(&state.db.read, grant, shared::ids::CollectionId(id)).await?,
        // No name holds a NUL character, and PostgreSQL fails where one is asked for.
        Err(_) if named.contains('\0') => None,
        Err(_) => collections::find_by_name(&state.db.read, grant, named).await?,
    };
    found.ok_or_else(|| {
        ApiError::not_found("collection_not_found", "there is no such collection; make one with POST /v1/collections")
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only errors are looked at")]
    struct Wanted {
        faces: Vec<u32>,
    }

    #[test]
    fn a_key_may_be_quoted() {
        assert_eq!(key_of("k-1").as_deref(), Some("k-1"));
        assert_eq!(key_of(r#""k-1""#).as_deref(), Some("k-1"));
        assert_eq!(key_of(r#""a\"b\\c""#).as_deref(), Some(r#"a"b\c"#));
        for bad in ["", "\"", "\"\"", "\"open", "\"a\"b\"", r#""a\b""#, "a\tb", &"x".repeat(256)] {
            assert_eq!(key_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_wrong_field_is_pointed_at() {
        let error = format!("{:?}", parse::<Wanted>(br#"{"faces":[1,"x"]}"#).unwrap_err());
        assert!(error.contains("#/faces/1"), "{error}");
        let error = format!("{:?}", parse::<Wanted>(b"[[1]]").unwrap_err());
        assert!(error.contains("an object"), "{error}");
        for malformed in [&br#"{"faces":"#[..], br#"{"faces":[]} x"#] {
            let error = format!("{:?}", parse::<Wanted>(malformed).unwrap_err());
            assert!(error.contains("malformed_json"), "{error}");
        }
    }
}
