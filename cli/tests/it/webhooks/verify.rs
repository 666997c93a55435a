use http::HeaderMap;
use standardwebhooks::Webhook;

/// Whether a message is the server's; `body` as it came, before anything reads it.
pub fn is_good(secret: &str, headers: &HeaderMap, body: &[u8]) -> bool {
    Webhook::new(secret).is_ok_and(|webhook| webhook.verify(body, headers).is_ok())
}
