//! `/docs` shows the document, and all that it is made of comes from this server.

use reqwest::{Method, StatusCode};

use crate::server::{Server, Site, http, on_both};

on_both!(the_page_needs_no_other_server);

async fn the_page_needs_no_other_server(site: Site) {
    let site = crate::keys::keyed(site).await;
    let server = Server::start(&site).await;
    let page = text(&server, "/docs", "text/html").await;
    let assets = named(&page, &["src=\"", "href=\""]);
    assert!(assets.len() >= 4, "{assets:?}");
    let mut scripts = 0;
    for asset in assets.iter().filter(|asset| *asset != "data:,") {
        assert!(asset.starts_with("/docs/"), "{asset} is no file of the page");
        let is_script = asset.strip_suffix(".js").is_some();
        scripts += usize::from(is_script);
        let body = text(&server, asset, if is_script { "text/javascript" } else { "text/css" }).await;
        assert!(!body.contains("sourceMappingURL="), "{asset} names a map that is not there");
        for inner in named(&body, &["url(", "@import "]).iter().filter(|_| !is_script) {
            assert!(inner.starts_with("data:"), "{asset} names {inner}");
        }
    }
    assert_eq!(scripts, 2);
    // What the scripts ask for: the document, and no validator of somebody else's.
    let initializer = text(&server, "/docs/initializer.js", "text/javascript").await;
    assert!(initializer.contains("url: \"/openapi.json\"") && initializer.contains("validatorUrl: null"));
    assert!(!initializer.contains("//validator") && !initializer.contains("http"));
    let document: serde_json::Value =
        serde_json::from_str(&text(&server, "/openapi.json", "application/json").await).unwrap();
    assert_eq!(document["info"]["title"], "face-id");
    server.stop().await;
}

/// Fetches it without a key; a browser takes it for nothing but this, and lets it load from nowhere else.
async fn text(server: &Server, path: &str, media_type: &str) -> String {
    let client = http(None, std::time::Duration::from_secs(60));
    let answer = client.request(Method::GET, format!("{}{path}", server.address)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    assert!(header("content-type").unwrap().starts_with(media_type), "{path}");
    if path.starts_with("/docs") {
        assert_eq!(header("x-content-type-options").as_deref(), Some("nosniff"));
        let policy = header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none';"), "{policy}");
        let allowed = ["'none'", "'self'", "'unsafe-inline'", "data:"];
        for directive in policy.split(';') {
            let mut words = directive.split_whitespace();
            let name = words.next().unwrap();
            let sources: Vec<&str> = words.collect();
            assert!(sources.iter().all(|source| allowed.contains(source)), "{directive}");
            assert!(name != "script-src" || sources == ["'self'"], "no script stands in the page");
        }
    }
    answer.text().await.unwrap()
}

/// What stands behind each of these marks, up to the end of the attribute or address.
fn named(text: &str, marks: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for mark in marks {
        for (at, _) in text.match_indices(mark) {
            let rest = text[at + mark.len()..].trim_start_matches(['"', '\'']);
            found.push(rest.split(['"', '\'', ')', ';']).next().unwrap_or_default().to_owned());
        }
    }
    found
}
