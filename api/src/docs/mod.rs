//! `/docs`: the OpenAPI document as a page, by Swagger UI. All of it comes from this server.

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::state::AppState;

/// The page loads nothing from elsewhere, sends nothing elsewhere, and is shown in no other page. Styles stand in elements
/// too, as Swagger UI makes them; scripts do not.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Each path with its media type and what it gives.
const FILES: [(&str, &str, &str); 4] = [
    ("/docs", "text/html; charset=utf-8", include_str!("index.html")),
    ("/docs/initializer.js", "text/javascript; charset=utf-8", include_str!("initializer.js")),
    (
        "/docs/swagger-ui-bundle.js",
        "text/javascript; charset=utf-8",
        include_str!(concat!(env!("OUT_DIR"), "/swagger-ui-bundle.js")),
    ),
    ("/docs/swagger-ui.css", "text/css; charset=utf-8", include_str!(concat!(env!("OUT_DIR"), "/swagger-ui.css"))),
];

/// The page and what it is made of: open like the document, since it says no more.
pub(crate) fn router() -> Router<AppState> {
    FILES.into_iter().fold(Router::new(), |router, (path, media_type, text)| {
        router.route(path, get(move || async move { file(media_type, text) }))
    })
}

fn file(media_type: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, media_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // It changes with the server.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    let headers: [(HeaderName, HeaderValue); 5] = headers.map(|(name, value)| (name, HeaderValue::from_static(value)));
    (headers, text)
}
