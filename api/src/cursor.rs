//! Opaque page tokens: the id after which the next page begins.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::error::{ApiError, ApiResult};

/// Rows of a page when the client does not say.
const DEFAULT_LIMIT: u64 = 50;
/// Rows of a page at most.
const MAX_LIMIT: u64 = 500;

/// Which page of a list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Rows of the page, 1 to 500; 50 where absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// One page of a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Ask for the next page with it; null on the last one.
    pub next_cursor: Option<String>,
}

impl PageQuery {
    /// The page that a list's own query asks for.
    pub fn new(limit: Option<u64>, cursor: Option<String>) -> Self {
        Self { limit, cursor }
    }

    /// How many rows, within bounds.
    pub fn limit(&self) -> ApiResult<u64> {
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT);
        if (1..=MAX_LIMIT).contains(&limit) {
            return Ok(limit);
        }
        Err(ApiError::invalid("limit", format!("must lie between 1 and {MAX_LIMIT}")))
    }

    /// The id after which the page begins.
    pub fn after(&self) -> ApiResult<Option<Uuid>> {
        Ok(self.token()?.map(Uuid::from_bytes))
    }

    /// What the list that gave the cursor put into it.
    pub fn token<const N: usize>(&self) -> ApiResult<Option<[u8; N]>> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(Some)
            .ok_or_else(|| ApiError::invalid("cursor", "is none that this list gave; leave it out to begin anew"))
    }
}

impl<T> Page<T> {
    /// A page from up to `limit + 1` rows: the last one only says that there are more.
    pub fn of<R>(rows: Vec<R>, limit: u64, id: impl Fn(&R) -> Uuid, show: impl FnMut(R) -> T) -> Self {
        Self::after(rows, limit, |row| *id(row).as_bytes(), show)
    }

    /// The same, where more than an id says where the next page begins.
    pub fn after<R, const N: usize>(
        mut rows: Vec<R>,
        limit: u64,
        token: impl Fn(&R) -> [u8; N],
        show: impl FnMut(R) -> T,
    ) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = rows.last().filter(|_| more).map(|r| URL_SAFE_NO_PAD.encode(token(r)));
        Self { items: rows.into_iter().map(show).collect(), next_cursor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_begins_after_the_last_row() {
        let ids: Vec<Uuid> = (0..3).map(|_| Uuid::now_v7()).collect();
        let page = Page::of(ids.clone(), 2, |id| *id, |id| id);
        assert_eq!(page.items, ids[..2]);
        let query = PageQuery { limit: None, cursor: page.next_cursor };
        assert_eq!(query.after().unwrap(), Some(ids[1]));
        assert_eq!(Page::of(ids, 3, |id| *id, |id| id).next_cursor, None);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(PageQuery { limit: Some(0), cursor: None }.limit().is_err());
        assert!(PageQuery { limit: None, cursor: Some("x".to_owned()) }.after().is_err());
    }
}
