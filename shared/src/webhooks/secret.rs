//! An endpoint's secret: `whsec_` and base64 for people, encrypted in the database.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};

use crate::ids::WebhookEndpointId;
use crate::secret_key::{SecretKey, random_bytes};

/// What secrets begin with.
const PREFIX: &str = "whsec_";
/// Bytes of a secret that we make.
const OWN_BYTES: usize = 32;
/// Bytes of a secret that Standard Webhooks allows.
const BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Of the cipher: long enough that random ones never meet.
const NONCE_BYTES: usize = 24;
/// The purpose of the key that encrypts.
const LABEL: &str = "webhook endpoint secrets";

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub struct EndpointSecret(Vec<u8>);

/// Why a text is no secret.
#[derive(Debug, thiserror::Error)]
#[error("must be whsec_ and the base64 of 24 to 64 random bytes; leave it out to have one made")]
pub struct MalformedSecret;

/// Why a stored secret cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("a webhook endpoint's secret cannot be decrypted: was server.secret_key changed?")]
pub struct SealedWithAnother;

impl EndpointSecret {
    /// A new one.
    pub fn random() -> Self {
        Self(random_bytes::<OWN_BYTES>().to_vec())
    }

    /// What messages are signed with.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The secret, for the client that has to verify with it.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", STANDARD.encode(&self.0))
    }

    /// The secret encrypted for storing; only this endpoint's row can be read again.
    pub fn seal(&self, key: &SecretKey, endpoint: WebhookEndpointId) -> String {
        let nonce: [u8; NONCE_BYTES] = random_bytes();
        let payload = Payload { msg: &self.0, aad: endpoint.0.as_bytes() };
        let sealed = cipher(key).encrypt(&XNonce::from(nonce), payload).expect("64 bytes are few; this is a bug");
        STANDARD.encode([nonce.as_slice(), &sealed].concat())
    }

    /// The stored secret of an endpoint.
    ///
    /// # Errors
    /// It was stored with another key, or for another endpoint.
    pub fn open(sealed: &str, key: &SecretKey, endpoint: WebhookEndpointId) -> Result<Self, SealedWithAnother> {
        let bytes = STANDARD.decode(sealed).map_err(|_| SealedWithAnother)?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_BYTES>().ok_or(SealedWithAnother)?;
        let payload = Payload { msg: sealed, aad: endpoint.0.as_bytes() };
        cipher(key).decrypt(&XNonce::from(*nonce), payload).map(Self).map_err(|_| SealedWithAnother)
    }
}

fn cipher(key: &SecretKey) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&key.derive(LABEL).into())
}

impl FromStr for EndpointSecret {
    type Err = MalformedSecret;

    fn from_str(text: &str) -> Result<Self, MalformedSecret> {
        let bytes = text.strip_prefix(PREFIX).and_then(|text| STANDARD.decode(text).ok()).ok_or(MalformedSecret)?;
        if BYTES.contains(&bytes.len()) { Ok(Self(bytes)) } else { Err(MalformedSecret) }
    }
}

impl fmt::Debug for EndpointSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EndpointSecret(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::secret_key;

    #[test]
    fn only_its_own_row_and_key_open_it() {
        let (key, endpoint) = (secret_key(1), WebhookEndpointId::new());
        let secret = EndpointSecret::random();
        let sealed = secret.seal(&key, endpoint);
        assert_ne!(sealed, secret.seal(&key, endpoint), "nobody sees that two secrets are one");
        assert_eq!(EndpointSecret::open(&sealed, &key, endpoint).unwrap(), secret);
        assert!(EndpointSecret::open(&sealed, &key, WebhookEndpointId::new()).is_err());
        assert!(EndpointSecret::open(&sealed, &secret_key(2), endpoint).is_err());
        assert!(EndpointSecret::open("AAAA", &key, endpoint).is_err());
    }

    #[test]
    fn clients_may_bring_their_own() {
        let text = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![9; bytes]));
        assert_eq!(text(24).parse::<EndpointSecret>().unwrap().reveal(), text(24));
        assert!(text(64).parse::<EndpointSecret>().is_ok());
        for wrong in [text(23), text(65), "whsec_".to_owned(), STANDARD.encode([9; 32]), "whsec_*".to_owned()] {
            assert!(wrong.parse::<EndpointSecret>().is_err(), "{wrong}");
        }
    }
}
