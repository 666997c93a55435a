//! Pages of lists, and the opaque tokens that lead from one to the next.
//!
//! A token is made of its version, where the next page begins, and a code over both and over what list it is of: one that
//! somebody made up, of another list or of other filters is refused, and does not skip or repeat rows in silence.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use shared::secret_key::SecretKey;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::error::{ApiError, ApiResult};

/// Rows of a page when the client does not say.
const DEFAULT_LIMIT: u64 = 50;
/// Rows of a page at most.
const MAX_LIMIT: u64 = 500;
/// The form of a token, its first byte.
const VERSION: u8 = 1;
/// What the key of the codes is derived by.
const PURPOSE: &str = "cursor";

/// Which page of a list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Rows of the page, 1 to 500; 50 where absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before, with the same filters.
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

/// A page that was asked for: how many rows, after which one, of which list.
#[derive(Debug)]
pub struct Paging<'a> {
    key: &'a SecretKey,
    /// What list it is, with its filters.
    list: String,
    /// Rows of the page, within bounds.
    limit: u64,
    cursor: Option<String>,
}

impl PageQuery {
    /// The page that a list's own query asks for.
    pub fn new(limit: Option<u64>, cursor: Option<String>) -> Self {
        Self { limit, cursor }
    }

    /// The page of a list: `list` names it, `filters` is all that the rows depend on beside the caller's grant.
    ///
    /// # Errors
    /// It is larger than a page may be.
    pub fn of<'a>(self, key: &'a SecretKey, list: &str, filters: &impl Serialize) -> ApiResult<Paging<'a>> {
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(ApiError::invalid("limit", format!("must lie between 1 and {MAX_LIMIT}")));
        }
        let list = serde_json::to_string(&(list, filters)).map_err(|error| ApiError::internal(&error))?;
        Ok(Paging { key, list, limit, cursor: self.cursor })
    }
}

impl Paging<'_> {
    /// How many rows to read: one more than the page has, which says that there are more.
    pub fn rows(&self) -> u64 {
        self.limit + 1
    }

    /// The id after which the page begins.
    ///
    /// # Errors
    /// The cursor is none that this list gave.
    pub fn after(&self) -> ApiResult<Option<Uuid>> {
        Ok(self.token()?.map(Uuid::from_bytes))
    }

    /// What the list put into the cursor that it gave.
    ///
    /// # Errors
    /// The cursor is none that this list gave.
    pub fn token<const N: usize>(&self) -> ApiResult<Option<[u8; N]>> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        self.open(cursor).map(Some).ok_or_else(|| {
            let detail = "the cursor is none that this list gave for these filters; send next_cursor of the page before \
                          with the filters of that page, or leave it out to begin anew";
            ApiError::bad_request("bad_cursor", detail)
        })
    }

    /// A page from up to [`Self::rows`] rows, each of which has an id by which they are ordered.
    pub fn page<R, T>(&self, rows: Vec<R>, id: impl Fn(&R) -> Uuid, show: impl FnMut(R) -> T) -> Page<T> {
        self.page_after(rows, |row| *id(row).as_bytes(), show)
    }

    /// The same, where more than an id says where the next page begins.
    pub fn page_after<R, T, const N: usize>(
        &self,
        mut rows: Vec<R>,
        token: impl Fn(&R) -> [u8; N],
        show: impl FnMut(R) -> T,
    ) -> Page<T> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = rows.last().filter(|_| more).map(|row| self.seal(&token(row)));
        Page { items: rows.into_iter().map(show).collect(), next_cursor }
    }

    fn seal(&self, position: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode([&[VERSION], position, &self.key.code(PURPOSE, &self.parts(position))].concat())
    }

    fn open<const N: usize>(&self, cursor: &str) -> Option<[u8; N]> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (version, rest) = bytes.split_first()?;
        let (position, code) = rest.split_at_checked(N)?;
        let is_good = *version == VERSION && self.key.is_code(PURPOSE, &self.parts(position), code);
        if is_good { position.try_into().ok() } else { None }
    }

    /// What a token's code is over.
    fn parts<'a>(&'a self, position: &'a [u8]) -> [&'a [u8]; 3] {
        [&[VERSION], position, self.list.as_bytes()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SecretKey {
        let text = shared::digest::hex(&[0xa0 | byte; 32]);
        let variables = [("FACE_ID_SERVER__SECRET_KEY".to_owned(), text)].into_iter().collect();
        SecretKey::configured(&shared::config::Config::from_sources(None, variables).unwrap()).unwrap()
    }

    fn asked<'a>(key: &'a SecretKey, list: &str, filters: &[&str], cursor: Option<String>) -> Paging<'a> {
        PageQuery::new(Some(2), cursor).of(key, list, &filters).unwrap()
    }

    fn code_of(error: &ApiError) -> String {
        format!("{error:?}")
    }

    #[test]
    fn the_next_page_begins_after_the_last_row() {
        let (key, ids) = (key(1), [(); 3].map(|()| Uuid::now_v7()).to_vec());
        let first = asked(&key, "jobs", &["queued"], None);
        assert_eq!((first.rows(), first.after().unwrap()), (3, None));
        let page = first.page(ids.clone(), |id| *id, |id| id);
        assert_eq!(page.items, ids[..2]);
        let second = asked(&key, "jobs", &["queued"], page.next_cursor);
        assert_eq!(second.after().unwrap(), Some(ids[1]));
        assert_eq!(second.page(ids[2..].to_vec(), |id| *id, |id| id).next_cursor, None);
    }

    #[test]
    fn a_cursor_is_its_own_lists_only() {
        let (ours, theirs) = (key(1), key(2));
        let ids = [(); 3].map(|()| Uuid::now_v7()).to_vec();
        let given = asked(&ours, "jobs", &["a", "b"], None).page(ids, |id| *id, |id| id).next_cursor;
        assert!(asked(&ours, "jobs", &["a", "b"], given.clone()).after().is_ok());
        let others = [
            asked(&theirs, "jobs", &["a", "b"], given.clone()),
            asked(&ours, "batches", &["a", "b"], given.clone()),
            asked(&ours, "jobs", &["a"], given.clone()),
            asked(&ours, "jobs", &["ab"], given.clone()),
            asked(&ours, "jobs", &["b", "a"], given.clone()),
        ];
        for other in others {
            assert!(code_of(&other.after().unwrap_err()).contains("bad_cursor"), "{other:?}");
        }
        assert!(asked(&ours, "jobs", &["a", "b"], given).token::<24>().is_err(), "of another form");
    }

    #[test]
    fn what_was_made_up_or_changed_is_refused() {
        let key = key(1);
        let ids = [(); 3].map(|()| Uuid::now_v7()).to_vec();
        let given = asked(&key, "jobs", &[], None).page(ids.clone(), |id| *id, |id| id).next_cursor.unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(&given).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let error = asked(&key, "jobs", &[], Some(URL_SAFE_NO_PAD.encode(changed))).after().unwrap_err();
            assert!(code_of(&error).contains("bad_cursor"), "bit {bit}");
        }
        // What an id alone was, once.
        let made_up = [String::new(), "x".to_owned(), format!("{given}A"), URL_SAFE_NO_PAD.encode(ids[0].as_bytes())];
        for cursor in made_up {
            assert!(asked(&key, "jobs", &[], Some(cursor.clone())).after().is_err(), "{cursor}");
        }
    }

    #[test]
    fn a_page_is_bounded() {
        let key = key(1);
        for (limit, is_good) in [(0, false), (1, true), (500, true), (501, false)] {
            assert_eq!(PageQuery::new(Some(limit), None).of(&key, "jobs", &()).is_ok(), is_good, "{limit}");
        }
    }
}
