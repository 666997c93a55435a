//! Where pictures lie: bytes under a key.

#[cfg(any(test, feature = "testing"))]
pub mod contract;
mod folder;
mod import;
mod s3;

use std::time::{Duration, SystemTime};

use async_trait::async_trait;

pub use folder::FolderStore;
pub use import::{ImportRoots, file_fingerprint};
pub use s3::{Presigned, S3Options, S3Store, parse_s3_uri};

/// A listed object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its key.
    pub key: String,
    /// Its length.
    pub size_bytes: u64,
    /// When it was last written, by the store's clock.
    pub modified: SystemTime,
}

/// A listed object of another bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedReference {
    /// `s3://bucket/key`.
    pub uri: String,
    /// Its `ETag`, or its length and time where the store gives none: it changes whenever the bytes do.
    pub fingerprint: String,
}

/// Why the store did not do as told.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// There is nothing under the key.
    #[error("no object {0}")]
    NotFound(String),
    /// The key is none: empty, absolute, or with an empty, `.` or `..` part.
    #[error("{0:?} is no object key")]
    BadKey(String),
    /// The object is longer than the caller allows.
    #[error("object {key} is longer than {max_bytes} bytes")]
    TooLarge {
        /// The object's key.
        key: String,
        /// What the caller allowed.
        max_bytes: usize,
    },
    /// The text is no reference to an object of an S3 store.
    #[error("{0:?} is no reference to an object; write s3://bucket/key")]
    BadReference(String),
    /// There is no S3 store to read references from.
    #[error("this installation has no S3 store and reads no s3:// references; send the picture itself")]
    NoReferences,
    /// The reference names a bucket that the operator has not allowed.
    #[error("bucket {0:?} is not among objects.allowed_buckets; send the picture itself, or have the bucket added")]
    BucketNotAllowed(String),
    /// The file lies outside the folders that the operator allows.
    #[error("{0} is not below one of import.roots; send the picture itself, or have its folder added")]
    NotImportable(String),
    /// The store will not do it until its operator changes something: wrong credentials, missing rights, no such bucket.
    #[error("the object store refused to {action} {key} ({reason}); check the bucket, the access key and its rights")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// On which key or bucket.
        key: String,
        /// HTTP status and error code.
        reason: String,
        /// The whole answer.
        #[source]
        source: std::io::Error,
    },
    /// The store failed; it may work later.
    #[error("the object store failed to {action} {key}")]
    Store {
        /// What was tried.
        action: &'static str,
        /// On which key.
        key: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl ObjectError {
    /// Whether the same call may succeed later although nobody changed anything. A refusal is not: repeating it for every
    /// job would hide from the operator what only the operator can mend.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store { .. })
    }
}

/// A store of objects. Keys are `/`-separated, never empty, never absolute.
///
/// Every implementation promises, and `contract` checks:
/// - what `put` stored is there, whole and durable, when it returns; a half-written object is never seen;
/// - `delete` of what is not there succeeds;
/// - `list` gives keys in ascending order of their bytes.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// Stores the bytes, replacing what was there.
    async fn put(&self, key: &str, bytes: &[u8]) -> Result<(), ObjectError>;

    /// The bytes, unless they are more than `max_bytes`.
    async fn get(&self, key: &str, max_bytes: usize) -> Result<Vec<u8>, ObjectError>;

    /// The bytes of an object of another bucket, one of the allowed ones, unless they are more than `max_bytes`.
    async fn get_reference(&self, uri: &str, max_bytes: usize) -> Result<Vec<u8>, ObjectError>;

    /// Refuses a reference that [`ObjectStore::get_reference`] would never follow.
    fn check_reference(&self, uri: &str) -> Result<(), ObjectError>;

    /// Up to `limit` objects of another bucket, one of the allowed ones, below `s3://bucket/prefix`, whose reference comes
    /// after `after`, in ascending order of their keys' bytes.
    async fn list_references(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ListedReference>, ObjectError>;

    /// Refuses a prefix that [`ObjectStore::list_references`] would never list.
    fn check_prefix(&self, prefix: &str) -> Result<(), ObjectError>;

    /// What is known of the object.
    async fn head(&self, key: &str) -> Result<ObjectMeta, ObjectError>;

    /// Removes the object.
    async fn delete(&self, key: &str) -> Result<(), ObjectError>;

    /// Up to `limit` objects whose key starts with `prefix` and comes after `after`.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>, ObjectError>;

    /// Removes what interrupted writes left behind longer ago than `age`.
    async fn clean(&self, age: Duration) -> Result<(), ObjectError>;
}

/// Refuses what is no key, so that none leads out of the store.
fn check_key(key: &str) -> Result<(), ObjectError> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0']);
    if key.split('/').all(plain) { Ok(()) } else { Err(ObjectError::BadKey(key.to_owned())) }
}
