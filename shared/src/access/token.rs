//! The token that a client sends: `fid_PREFIX_SECRET`. The prefix finds the key's row, and the row holds a digest of the
//! secret. That has 256 random bits, so a plain SHA-256 keeps it; a slow hash is for what people choose.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::config::Secret;
use crate::digest::hex;

/// What each token begins with, so that scanners for leaked secrets know it.
const MARK: &str = "fid";
/// Random bytes of a prefix, written as hex digits.
const PREFIX_BYTES: usize = 6;
/// Random bytes of a secret, written as base64url.
const SECRET_BYTES: usize = 32;

/// SHA-256 of a secret: what is stored of it.
#[derive(Clone, Copy, Debug)]
pub struct SecretHash([u8; 32]);

/// A token that was just made.
pub struct NewToken {
    /// What finds the key's row.
    pub prefix: String,
    /// What is stored of the secret.
    pub hash: SecretHash,
    /// The whole of it, shown once.
    pub token: Secret,
}

/// A token as a client sent it.
#[derive(Clone, Debug)]
pub struct Presented {
    /// Which key it claims to be.
    pub prefix: String,
    /// Of the secret that it came with.
    pub hash: SecretHash,
}

/// The operating system gives no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("take random bytes from the operating system: {0}")]
pub struct NoRandomness(getrandom::Error);

impl NewToken {
    /// Makes one out of the operating system's random bytes.
    pub fn make() -> Result<Self, NoRandomness> {
        let (mut prefix, mut secret) = ([0; PREFIX_BYTES], [0; SECRET_BYTES]);
        getrandom::fill(&mut prefix).map_err(NoRandomness)?;
        getrandom::fill(&mut secret).map_err(NoRandomness)?;
        let (prefix, secret) = (hex(&prefix), URL_SAFE_NO_PAD.encode(secret));
        let token = Secret::from(format!("{MARK}_{prefix}_{secret}"));
        Ok(Self { hash: SecretHash::of(&secret), prefix, token })
    }
}

impl Presented {
    /// Reads a token; `None` where it is none by its form.
    pub fn read(token: &str) -> Option<Self> {
        let rest = token.strip_prefix(MARK)?.strip_prefix('_')?;
        // A secret may hold underscores.
        let (prefix, secret) = rest.split_once('_')?;
        let is_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        let is_prefix = prefix.len() == 2 * PREFIX_BYTES && prefix.bytes().all(is_hex);
        let is_secret = URL_SAFE_NO_PAD.decode(secret).is_ok_and(|bytes| bytes.len() == SECRET_BYTES);
        (is_prefix && is_secret).then(|| Self { prefix: prefix.to_owned(), hash: SecretHash::of(secret) })
    }
}

impl SecretHash {
    fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// As rows hold it.
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }

    /// Whether it is the one that a row holds, compared in a time that does not tell how much of it is right.
    pub fn is(&self, stored: &str) -> bool {
        self.to_hex().as_bytes().ct_eq(stored.as_bytes()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_made() {
        let made = NewToken::make().unwrap();
        let token = made.token.expose();
        let read = Presented::read(token).unwrap();
        assert_eq!(read.prefix, made.prefix);
        assert!(read.hash.is(&made.hash.to_hex()));
        assert!(!read.hash.is(&NewToken::make().unwrap().hash.to_hex()));
        assert!(!format!("{:?}", made.token).contains(token), "a token does not print");
        assert!(!made.hash.to_hex().contains(token.rsplit('_').next().unwrap()));
    }

    #[test]
    fn what_is_no_token_is_not_read() {
        let token = NewToken::make().unwrap().token.expose().to_owned();
        let broken = [
            String::new(),
            "fid".to_owned(),
            "fid__".to_owned(),
            token.replacen("fid", "sk", 1),
            token[..token.len() - 1].to_owned(),
            format!("{token}A"),
            token.replacen('_', "", 1),
            token.to_uppercase(),
        ];
        for text in broken {
            assert!(Presented::read(&text).is_none(), "{text:?}");
        }
    }
}
