//! The signature of a message, as Standard Webhooks has it: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::secret::EndpointSecret;
use crate::secret_key::hmac_sha256;

/// The value of `webhook-signature`: one signature a secret, so that receivers with the old or the new one accept it while
/// a secret is rotated. `timestamp` is in seconds since the epoch.
pub fn sign(secrets: &[EndpointSecret], id: &str, timestamp: i64, body: &[u8]) -> String {
    let timestamp = timestamp.to_string();
    let parts: [&[u8]; 5] = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
    let one = |secret: &EndpointSecret| format!("v1,{}", STANDARD.encode(hmac_sha256(secret.bytes(), &parts)));
    secrets.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk";
    const BODY: &[u8] = br#"{"email":"test@example.com","username":"test_user"}"#;

    fn secret(text: &str) -> EndpointSecret {
        text.parse().unwrap()
    }

    #[test]
    fn the_known_vector() {
        let secret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD".parse().unwrap();
        let signature = sign(&[secret], ID, 1_649_367_553, BODY);
        assert_eq!(signature, "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=");
    }

    #[test]
    fn receivers_with_either_secret_accept() {
        let (old, new) = (EndpointSecret::random(), EndpointSecret::random());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let signature = sign(&[new.clone(), old.clone()], ID, i64::try_from(now).unwrap(), BODY);
        let mut headers = [("webhook-id", ID.to_owned()), ("webhook-timestamp", now.to_string())]
            .into_iter()
            .chain([("webhook-signature", signature)])
            .map(|(name, value)| (name.to_owned(), value))
            .collect::<std::collections::HashMap<_, _>>();
        let verified = |secret: &EndpointSecret, headers: &std::collections::HashMap<String, String>, body: &[u8]| {
            let mut map = http::HeaderMap::new();
            for (name, value) in headers {
                let name: http::HeaderName = name.parse().unwrap();
                map.insert(name, value.parse().unwrap());
            }
            standardwebhooks::Webhook::new(&secret.reveal()).unwrap().verify(body, &map).is_ok()
        };
        assert!(verified(&old, &headers, BODY) && verified(&new, &headers, BODY));
        assert!(!verified(&EndpointSecret::random(), &headers, BODY), "another secret");
        assert!(!verified(&new, &headers, b"{}"), "another body");
        headers.insert("webhook-id".to_owned(), "msg_other".to_owned());
        assert!(!verified(&new, &headers, BODY), "another id");
    }

    #[test]
    fn the_secret_decides() {
        let one = sign(&[secret("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")], ID, 1, BODY);
        assert_ne!(one, sign(&[EndpointSecret::random()], ID, 1, BODY));
    }
}
