//! Entity tags (RFC 9110, section 8.8.3): what a client says it has seen, and may change.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use shared::digest::sha256_hex;

/// A version of a resource; it never holds a quote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version(String);

impl Version {
    /// From numbers that change with the resource.
    pub(crate) fn of(numbers: &[i64]) -> Self {
        Self(numbers.iter().map(i64::to_string).collect::<Vec<_>>().join("."))
    }

    /// From what can be changed of the resource.
    pub(crate) fn of_content(content: &serde_json::Value) -> Self {
        Self(sha256_hex(content.to_string())[..16].to_owned())
    }

    /// As an event's id.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The `ETag` header.
    pub(crate) fn header(&self) -> (HeaderName, HeaderValue) {
        let value =
            HeaderValue::from_str(&format!("\"{}\"", self.0)).expect("digits, letters and points; this is a bug");
        (header::ETAG, value)
    }

    /// Whether the client has this version, by its `If-None-Match`.
    pub(crate) fn is_known(&self, headers: &HeaderMap) -> bool {
        self.is_among(headers, &header::IF_NONE_MATCH, |tag| tag.strip_prefix("W/").unwrap_or(tag))
    }

    /// The answer to a `GET` of the resource: 304 where the client has this version.
    pub(crate) fn answer(&self, headers: &HeaderMap, body: impl Serialize) -> Response {
        let etag = [self.header()];
        if self.is_known(headers) {
            return (StatusCode::NOT_MODIFIED, etag).into_response();
        }
        (etag, axum::Json(body)).into_response()
    }

    /// Whether the client may change this version, by its `If-Match`; without that header any will do.
    pub(crate) fn may_change(&self, headers: &HeaderMap) -> bool {
        !headers.contains_key(header::IF_MATCH) || self.is_among(headers, &header::IF_MATCH, |tag| tag)
    }

    /// Whether a list of tags has this version's, by what `opaque` leaves of each: a weak tag is good enough for reading only.
    fn is_among(&self, headers: &HeaderMap, name: &HeaderName, opaque: fn(&str) -> &str) -> bool {
        let lists = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        lists
            .flat_map(|list| list.split(','))
            .map(|tag| opaque(tag.trim()))
            .any(|tag| tag == "*" || tag.strip_prefix('"').and_then(|t| t.strip_suffix('"')) == Some(self.0.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_among_tags() {
        let version = Version::of(&[3, 14]);
        assert_eq!(version.header().1, "\"3.14\"");
        let known = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static(value));
            version.is_known(&headers)
        };
        assert!(known("\"3.14\"") && known("W/\"3.14\"") && known("\"1\", \"3.14\"") && known("*"));
        assert!(!known("\"3.1\"") && !known("3.14") && !known(""));
    }

    #[test]
    fn what_changed_meanwhile_may_not_be_changed() {
        let mut headers = HeaderMap::new();
        assert!(Version::of(&[2]).may_change(&headers));
        headers.insert(header::IF_MATCH, HeaderValue::from_static("\"2\""));
        assert!(Version::of(&[2]).may_change(&headers));
        assert!(!Version::of(&[3]).may_change(&headers));
        headers.insert(header::IF_MATCH, HeaderValue::from_static("W/\"2\""));
        assert!(!Version::of(&[2]).may_change(&headers));
    }

    #[test]
    fn another_content_is_another_version() {
        let of = |name: &str| Version::of_content(&serde_json::json!([name]));
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        assert_eq!(of("a").header().1.len(), 18);
    }
}
