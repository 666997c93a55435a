//! Where a browser had a request from. Who has no key to show is let in for where it comes from: a page of another site must
//! not have the browser use that.

use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName};

/// Which page a request comes from, as a browser says it (Fetch Metadata).
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether a browser sent it for a page of another site.
pub(crate) fn is_foreign(headers: &HeaderMap) -> bool {
    match text(headers, &FETCH_SITE) {
        Some(site) => matches!(site, "cross-site" | "same-site"),
        // Browsers say it over https and to this machine only; elsewhere they name the page's origin.
        None => text(headers, &ORIGIN)
            .is_some_and(|origin| origin.split_once("://").map(|(_, host)| host) != text(headers, &HOST)),
    }
}

/// Whether it calls the server by a name of this machine. A page whose own name leads here too (DNS rebinding) calls it by that.
pub(super) fn is_for_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = text(headers, &HOST).and_then(|host| host.parse::<Authority>().ok()) else { return false };
    let host = host.host().trim_end_matches('.').to_ascii_lowercase();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    // Browsers take every name below it for this machine (RFC 6761, section 6.3).
    host == "localhost"
        || host.ends_with(".localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("null"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), axum::http::HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_page_of_another_site_is_foreign() {
        let host = (HOST, "192.168.0.7:8080");
        for (pairs, foreign) in [
            (vec![], false),
            (vec![(FETCH_SITE, "cross-site")], true),
            (vec![(FETCH_SITE, "same-site")], true),
            (vec![(FETCH_SITE, "same-origin"), (ORIGIN, "http://elsewhere")], false),
            (vec![(FETCH_SITE, "none")], false),
            (vec![(ORIGIN, "http://192.168.0.7:8080")], false),
            (vec![(ORIGIN, "http://192.168.0.7")], true),
            (vec![(ORIGIN, "https://evil.example")], true),
            (vec![(ORIGIN, "null")], true),
        ] {
            let all: Vec<_> = pairs.iter().cloned().chain([host.clone()]).collect();
            assert_eq!(is_foreign(&headers(&all)), foreign, "{pairs:?}");
        }
    }

    #[test]
    fn this_machine_has_few_names() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "localhost.",
            "a.localhost:80",
            "127.0.0.1:8080",
            "127.3.2.1",
            "[::1]:8080",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(is_for_this_machine(&headers(&[(HOST, host)])), "{host}");
        }
        for host in [
            "evil.example",
            "evillocalhost",
            "localhost.evil.example:8080",
            "10.0.0.1",
            "[::2]",
            "127.0.0.1.evil.example",
            "",
        ] {
            assert!(!is_for_this_machine(&headers(&[(HOST, host)])), "{host}");
        }
        assert!(!is_for_this_machine(&HeaderMap::new()));
    }
}
