//! Who calls, and what may that caller do?
//!
//! `authenticate` stands before every route that is not open: without a good key nothing gets past it. Handlers take a
//! [`Caller`] whose type names the scope that they need; what they then look up goes through the caller's grant.

mod allowance;
mod gate;
pub(crate) mod origin;

use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use shared::access::token::Presented;
use shared::access::{Grant, Reach, Scope};

pub use self::allowance::RATE_LIMIT;
pub use self::gate::{Door, Gate};
use crate::error::{ApiError, ApiResult};
use crate::state::AppState;

/// The scopes of which a handler needs one.
pub trait Needs {
    /// Any of them will do.
    const ANY_OF: &'static [Scope];
}

/// Whoever looks at a collection.
#[derive(Debug)]
pub struct Read;
/// Whoever identifies and verifies.
#[derive(Debug)]
pub struct Identify;
/// Whoever changes what a collection holds.
#[derive(Debug)]
pub struct Write;
/// Whoever administers collections and keys.
#[derive(Debug)]
pub struct Admin;
/// Whoever looks at jobs: at all of them, or at the caller's own.
#[derive(Debug)]
pub struct ReadJobs;

impl Needs for Read {
    const ANY_OF: &'static [Scope] = &[Scope::Read];
}

impl Needs for Identify {
    const ANY_OF: &'static [Scope] = &[Scope::Identify];
}

impl Needs for Write {
    const ANY_OF: &'static [Scope] = &[Scope::Write];
}

impl Needs for Admin {
    const ANY_OF: &'static [Scope] = &[Scope::Admin];
}

impl Needs for ReadJobs {
    const ANY_OF: &'static [Scope] = &[Scope::Read, Scope::Identify];
}

/// A caller who has what `N` needs; refused with 403 else. First among a handler's extractors, so that nothing of a request
/// is read before.
#[derive(Debug)]
pub struct Caller<N> {
    grant: Arc<Grant>,
    needs: PhantomData<N>,
}

impl<N> Caller<N> {
    /// What the caller may do, for what goes on after the request was answered.
    pub(crate) fn into_grant(self) -> Arc<Grant> {
        self.grant
    }
}

impl<N> Deref for Caller<N> {
    type Target = Grant;

    fn deref(&self) -> &Grant {
        &self.grant
    }
}

impl<N: Needs> FromRequestParts<AppState> for Caller<N> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, ApiError> {
        // Absent only where a route was made without its layer.
        let grant = parts.extensions.get::<Arc<Grant>>().cloned().ok_or_else(ApiError::unauthenticated)?;
        if N::ANY_OF.iter().any(|scope| grant.has(*scope)) {
            return Ok(Self { grant, needs: PhantomData });
        }
        Err(ApiError::lacks(N::ANY_OF))
    }
}

/// A caller who administers all collections: what the handler touches belongs to none of them. With its grant.
#[derive(Debug)]
pub struct Administrator(pub Arc<Grant>);

impl FromRequestParts<AppState> for Administrator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let caller = Caller::<Admin>::from_request_parts(parts, state).await?;
        match caller.reach() {
            Reach::All => Ok(Self(caller.into_grant())),
            Reach::Only(_) => Err(ApiError::forbidden("this needs a key of all collections; yours is of single ones")),
        }
    }
}

/// Lets a request through with its caller's grant, as far as that one's limit of requests allows.
pub(crate) async fn authenticate(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let grant = match state.gate.grant_of(token(request.headers()).as_ref()).await {
        Ok(grant) => grant,
        Err(error) => return error.into_response(),
    };
    if grant.key().is_none()
        && let Err(error) = let_in(request.headers())
    {
        return error.into_response();
    }
    let allowance = match state.gate.allowances().take(&grant).await {
        Ok(allowance) => allowance,
        Err(error) => return error.into_response(),
    };
    let mut response = match &allowance {
        Some(allowance) if allowance.is_spent => allowance.refusal().into_response(),
        _ => {
            request.extensions_mut().insert(grant);
            next.run(request).await
        }
    };
    if let Some(allowance) = allowance {
        allowance.tell(response.headers_mut());
    }
    response
}

/// Refuses what browsers send to an open server for pages that are not its own.
fn let_in(headers: &HeaderMap) -> ApiResult<()> {
    if !origin::is_for_this_machine(headers) {
        let detail = "without keys this server answers only who calls it localhost, 127.0.0.1 or [::1]; make a key \
            (`face-id keys create`) to call it by another name";
        return Err(ApiError::forbidden(detail));
    }
    if origin::is_foreign(headers) {
        let detail = "a browser sent this for a page of another site, and this server has no keys by which to tell who may; \
            make one (`face-id keys create`)";
        return Err(ApiError::forbidden(detail));
    }
    Ok(())
}

/// The token of `Authorization: Bearer TOKEN`, where there is one of that form.
fn token(headers: &HeaderMap) -> Option<Presented> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?.to_str().ok()?, values.next()) else { return None };
    let (scheme, token) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") { Presented::read(token.trim()) } else { None }
}

/// A header of our own making.
fn set(headers: &mut HeaderMap, name: &HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name.clone(), value);
    }
}

#[cfg(test)]
mod tests {
    use shared::access::token::NewToken;

    use super::*;

    #[test]
    fn a_token_comes_in_one_header() {
        let made = NewToken::make().unwrap();
        let read = |values: &[String]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            }
            token(&headers).map(|presented| presented.prefix)
        };
        let good = format!("Bearer {}", made.token.expose());
        assert_eq!(read(std::slice::from_ref(&good)), Some(made.prefix.clone()));
        assert_eq!(read(&[good.replace("Bearer", "bearer")]), Some(made.prefix));
        let bad = [vec![], vec![good.clone(), good.clone()], vec![good.replace("Bearer ", "Basic ")]];
        for values in bad.into_iter().chain([vec![made.token.expose().to_owned()], vec!["Bearer".to_owned()]]) {
            assert_eq!(read(&values), None, "{values:?}");
        }
    }
}
