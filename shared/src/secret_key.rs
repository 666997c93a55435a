//! The installation's secret key, and the keys that are derived from it: one a purpose, so that what one part of the program
//! shows says nothing about another's.

use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::OsRng;
use chacha20poly1305::aead::rand_core::RngCore as _;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use crate::config::Config;
use crate::digest::hex;

/// Bytes of the key, and of each that is derived from it.
const BYTES: usize = 32;
/// Bytes of a code that a key makes.
pub const CODE_BYTES: usize = 16;
/// The embedded mode's own key, in its data folder.
const FILE: &str = "secret.key";
/// What makes a key, for people.
const HOW: &str = "make one with `openssl rand -base64 32`, keep it, and give the same to every api and worker";

/// The key; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey([u8; BYTES]);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum SecretKeyError {
    /// None is set, and this set-up cannot make its own.
    #[error("setting server.secret_key: is empty; {HOW} as FACE_ID_SERVER__SECRET_KEY")]
    Missing,
    /// What is set is no key.
    #[error("setting server.secret_key: must be 32 bytes, as 44 characters of base64 or 64 of hex; {HOW}")]
    Malformed,
    /// The data folder's own file does not hold a key.
    #[error("{0} does not hold a key of 32 bytes in base64: put back the one that was there")]
    MalformedFile(String),
    /// The data folder's own file cannot be read or made.
    #[error("read or make {0}: {1}")]
    File(String, #[source] std::io::Error),
    /// Another key was used with this database.
    #[error(
        "server.secret_key is not the key that this database was first used with, and what is encrypted in it cannot be \
         read with another: set the first one again"
    )]
    Wrong,
    /// The database does not answer.
    #[error("compare server.secret_key with the database: {0}")]
    Db(#[from] sea_orm::DbErr),
}

impl SecretKey {
    /// The key that is set.
    ///
    /// # Errors
    /// There is none, or what is set is none.
    pub fn configured(config: &Config) -> Result<Self, SecretKeyError> {
        match config.server.secret_key.expose() {
            "" => Err(SecretKeyError::Missing),
            text => Self::parse(text).ok_or(SecretKeyError::Malformed),
        }
    }

    /// The key that is set, or else the one of the data folder, which is made where there is none: for the process that
    /// holds the folder's lock.
    ///
    /// # Errors
    /// What is set, or stands in the folder's file, is no key; or the file cannot be read or written.
    pub fn configured_or_own(config: &Config) -> Result<Self, SecretKeyError> {
        if config.server.secret_key.expose().is_empty() {
            return Self::of_folder(&config.data_dir);
        }
        Self::configured(config)
    }

    fn of_folder(folder: &Path) -> Result<Self, SecretKeyError> {
        let path = folder.join(FILE);
        let failed = |error| SecretKeyError::File(path.display().to_string(), error);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).ok_or_else(|| SecretKeyError::MalformedFile(path.display().to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = Self::random();
                write_new(folder, &STANDARD.encode(key.0)).map_err(failed)?;
                Ok(key)
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn random() -> Self {
        Self(random_bytes())
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let bytes = if text.len() == 2 * BYTES { crate::digest::unhex(text) } else { STANDARD.decode(text).ok() };
        Some(Self(bytes?.try_into().ok()?))
    }

    /// The key for one purpose: HMAC-SHA256 over its label.
    pub fn derive(&self, label: &str) -> [u8; BYTES] {
        hmac_sha256(&self.0, &[label.as_bytes()])
    }

    /// What nobody can make of the parts without the key: HMAC-SHA256 over each part and its length, with the key for one
    /// purpose, cut to 128 bits (RFC 2104, section 5).
    pub fn code(&self, purpose: &str, parts: &[&[u8]]) -> [u8; CODE_BYTES] {
        let lengths: Vec<[u8; 8]> = parts.iter().map(|part| (part.len() as u64).to_be_bytes()).collect();
        // So that no byte can pass from one part to the next.
        let told: Vec<&[u8]> = lengths.iter().zip(parts).flat_map(|(length, part)| [&length[..], *part]).collect();
        let whole = hmac_sha256(&self.derive(purpose), &told);
        let mut code = [0; CODE_BYTES];
        code.copy_from_slice(&whole[..CODE_BYTES]);
        code
    }

    /// Whether this is the code of the parts, compared in a time that does not tell how much of it is right.
    pub fn is_code(&self, purpose: &str, parts: &[&[u8]], code: &[u8]) -> bool {
        self.code(purpose, parts).ct_eq(code).into()
    }

    /// What tells the key from another without saying anything about it.
    pub(crate) fn fingerprint(&self) -> String {
        hex(&self.derive("fingerprint"))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(***)")
    }
}

/// Written as a whole or not at all: a crash must not leave half a key.
fn write_new(folder: &Path, text: &str) -> std::io::Result<()> {
    let (new, path) = (folder.join("secret.key.new"), folder.join(FILE));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, &path)?;
    std::fs::File::open(folder)?.sync_all()
}

/// Bytes of the operating system's random numbers.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    OsRng.fill_bytes(&mut bytes);
    bytes
}

/// HMAC-SHA256 (RFC 2104) of the parts, one after the other.
pub(crate) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; BYTES] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length; this is a bug");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn config(folder: &Path, key: &str) -> Config {
        let variables = HashMap::from([("FACE_ID_SERVER__SECRET_KEY".to_owned(), key.to_owned())]);
        let mut config = Config::from_sources(None, variables).unwrap();
        config.data_dir = folder.to_owned();
        config
    }

    #[test]
    fn reads_base64_and_hex() {
        let folder = tempfile::tempdir().unwrap();
        let base64 = SecretKey::configured(&config(folder.path(), &STANDARD.encode([0xa7; 32]))).unwrap();
        let hexed = SecretKey::configured(&config(folder.path(), &hex(&[0xa7; 32]))).unwrap();
        assert!(base64 == hexed);
        assert!(matches!(SecretKey::configured(&config(folder.path(), "")), Err(SecretKeyError::Missing)));
        for short in ["x".to_owned(), STANDARD.encode([7; 31]), hex(&[7; 31]), "z".repeat(64)] {
            assert!(matches!(SecretKey::configured(&config(folder.path(), &short)), Err(SecretKeyError::Malformed)));
        }
    }

    #[test]
    fn a_folder_keeps_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let unset = config(folder.path(), "");
        let made = SecretKey::configured_or_own(&unset).unwrap();
        assert!(made == SecretKey::configured_or_own(&unset).unwrap());
        let mode = std::fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "nobody else reads it");
        std::fs::write(folder.path().join(FILE), "x").unwrap();
        assert!(matches!(SecretKey::configured_or_own(&unset), Err(SecretKeyError::MalformedFile(_))));
    }

    #[test]
    fn purposes_have_keys_of_their_own() {
        let key = SecretKey([1; 32]);
        assert_ne!(key.derive("a"), key.derive("b"));
        assert_eq!(key.derive("a"), key.derive("a"));
        assert!(!format!("{key:?}").contains('1'));
    }

    #[test]
    fn a_code_is_of_its_parts_and_purpose() {
        let (key, other) = (SecretKey([1; 32]), SecretKey([2; 32]));
        let code = key.code("a", &[b"ab", b"c"]);
        assert!(key.is_code("a", &[b"ab", b"c"], &code));
        assert!(!key.is_code("a", &[b"a", b"bc"], &code) && !key.is_code("a", &[b"abc"], &code));
        assert!(!key.is_code("b", &[b"ab", b"c"], &code) && !other.is_code("a", &[b"ab", b"c"], &code));
        assert!(!key.is_code("a", &[b"ab", b"c"], &code[..15]) && !key.is_code("a", &[b"ab", b"c"], b""));
    }
}
