//! Objects in a bucket of an S3-compatible service.

mod failure;
mod options;
mod reference;
#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::presigning::{PresignedRequest, PresigningConfig};
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::Object;

pub use options::S3Options;
pub use reference::parse_s3_uri;

use self::failure::failure;
use self::reference::parse_s3_prefix;
use super::{ListedReference, ObjectError, ObjectMeta, ObjectStore, check_key};

/// Most keys that S3 lists at once.
const PAGE: usize = 1000;
/// What the whole bucket is tried for.
const OPEN: &str = "open bucket";

/// See the module.
#[derive(Clone)]
pub struct S3Store {
    client: Client,
    bucket: String,
    operation_timeout: Duration,
    allowed_buckets: Vec<String>,
}

/// A request that whoever holds it may send until it expires, without credentials. The URL carries a signature: it is as
/// secret as what it gives access to.
pub struct Presigned {
    /// The HTTP method.
    pub method: String,
    /// The whole URL.
    pub url: String,
    /// Headers that must be sent as they are: the signature covers them.
    pub headers: Vec<(String, String)>,
}

impl S3Store {
    /// Prepares the store without asking the service; [`check`](Self::check) does.
    pub fn open(options: S3Options) -> Result<Self, ObjectError> {
        let no_address =
            options.endpoint.as_deref().is_some_and(|e| !e.starts_with("http://") && !e.starts_with("https://"));
        if no_address || !reference::is_bucket_name(&options.bucket) {
            let reason =
                if no_address { "its endpoint is no http:// or https:// address" } else { "it is no bucket name" };
            let source = ErrorKind::InvalidInput.into();
            return Err(ObjectError::Refused { action: OPEN, key: options.bucket, reason: reason.to_owned(), source });
        }
        Ok(Self {
            client: options.client(),
            bucket: options.bucket,
            operation_timeout: options.operation_timeout,
            allowed_buckets: options.allowed_buckets,
        })
    }

    /// Whether the bucket is there and the credentials open it.
    pub async fn check(&self) -> Result<(), ObjectError> {
        let checked = self.client.head_bucket().bucket(&self.bucket).send().await;
        match checked.map_err(|e| failure(OPEN, &self.bucket, e)) {
            Ok(_) => Ok(()),
            Err(ObjectError::NotFound(_)) => Err(ObjectError::Refused {
                action: OPEN,
                key: self.bucket.clone(),
                reason: "404: there is no such bucket".to_owned(),
                source: ErrorKind::NotFound.into(),
            }),
            Err(error) => Err(error),
        }
    }

    /// An object of another bucket, one of the allowed ones, unless it is longer than `max_bytes`.
    pub async fn get_from(&self, bucket: &str, key: &str, max_bytes: usize) -> Result<Vec<u8>, ObjectError> {
        self.check_bucket(bucket)?;
        if !reference::is_foreign_key(key) {
            return Err(ObjectError::BadKey(key.to_owned()));
        }
        self.read(bucket, key, max_bytes).await
    }

    /// A request with which somebody else can store exactly `size_bytes` bytes under the key; S3 knows no upper bound here.
    /// `expires` is at most a week.
    pub async fn presign_put(&self, key: &str, size_bytes: u64, expires: Duration) -> Result<Presigned, ObjectError> {
        check_key(key)?;
        let length = i64::try_from(size_bytes).map_err(|e| unsigned(key, e))?;
        let put = self.client.put_object().bucket(&self.bucket).key(key).content_length(length);
        let expires = PresigningConfig::expires_in(expires).map_err(|e| unsigned(key, e))?;
        Ok(put.presigned(expires).await.map_err(|e| failure("sign for", key, e))?.into())
    }

    /// A request with which somebody else can read the object. `expires` is at most a week.
    pub async fn presign_get(&self, key: &str, expires: Duration) -> Result<Presigned, ObjectError> {
        check_key(key)?;
        let get = self.client.get_object().bucket(&self.bucket).key(key);
        let expires = PresigningConfig::expires_in(expires).map_err(|e| unsigned(key, e))?;
        Ok(get.presigned(expires).await.map_err(|e| failure("sign for", key, e))?.into())
    }

    fn check_bucket(&self, bucket: &str) -> Result<(), ObjectError> {
        let is_allowed = self.allowed_buckets.iter().any(|b| b == bucket);
        if is_allowed { Ok(()) } else { Err(ObjectError::BucketNotAllowed(bucket.to_owned())) }
    }

    async fn list_bucket(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Object>, ObjectError> {
        let mut found: Vec<Object> = Vec::new();
        let mut next = None;
        while found.len() < limit {
            let page = (limit - found.len()).min(PAGE);
            let list = self.client.list_objects_v2().bucket(bucket).prefix(prefix);
            let list = list.set_start_after(after.map(str::to_owned)).set_continuation_token(next);
            let listed = list.max_keys(i32::try_from(page).unwrap_or(i32::MAX)).send().await;
            let listed = listed.map_err(|e| failure("list", prefix, e))?;
            found.extend(listed.contents.unwrap_or_default());
            next = listed.next_continuation_token;
            if next.is_none() {
                break;
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    /// The client's own timeout ends with the answer's header; this one covers the body.
    async fn read(&self, bucket: &str, key: &str, max_bytes: usize) -> Result<Vec<u8>, ObjectError> {
        let read = async {
            let got = self.client.get_object().bucket(bucket).key(key).send().await;
            body(got.map_err(|e| failure("read", key, e))?, key, max_bytes).await
        };
        match tokio::time::timeout(self.operation_timeout, read).await {
            Ok(read) => read,
            Err(late) => Err(broken("read", key, std::io::Error::new(ErrorKind::TimedOut, late))),
        }
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn put(&self, key: &str, bytes: &[u8]) -> Result<(), ObjectError> {
        check_key(key)?;
        let body = ByteStream::from(bytes.to_vec());
        let put = self.client.put_object().bucket(&self.bucket).key(key).body(body).send().await;
        put.map(|_| ()).map_err(|e| failure("write", key, e))
    }

    async fn get(&self, key: &str, max_bytes: usize) -> Result<Vec<u8>, ObjectError> {
        check_key(key)?;
        self.read(&self.bucket, key, max_bytes).await
    }

    async fn get_reference(&self, uri: &str, max_bytes: usize) -> Result<Vec<u8>, ObjectError> {
        let (bucket, key) = parse_s3_uri(uri)?;
        self.get_from(bucket, key, max_bytes).await
    }

    fn check_reference(&self, uri: &str) -> Result<(), ObjectError> {
        let (bucket, _) = parse_s3_uri(uri)?;
        self.check_bucket(bucket)
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, ObjectError> {
        check_key(key)?;
        let head = self.client.head_object().bucket(&self.bucket).key(key).send().await;
        let head = head.map_err(|e| failure("look at", key, e))?;
        meta("look at", key, head.content_length, head.last_modified)
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        check_key(key)?;
        let deleted = self.client.delete_object().bucket(&self.bucket).key(key).send().await;
        match deleted.map_err(|e| failure("delete", key, e)) {
            // S3 itself does not say so, some of its likes do.
            Ok(_) | Err(ObjectError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>, ObjectError> {
        let listed = self.list_bucket(&self.bucket, prefix, after, limit).await?;
        listed.into_iter().map(listed_meta).collect()
    }

    async fn list_references(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ListedReference>, ObjectError> {
        self.check_prefix(prefix)?;
        let (bucket, prefix) = parse_s3_prefix(prefix)?;
        // Not looked at as a reference is: a key that nobody could name may stand at the end of a page.
        let own = format!("s3://{bucket}/");
        let after = after.and_then(|after| after.strip_prefix(&own));
        let listed = self.list_bucket(bucket, prefix, after, limit).await?;
        listed.into_iter().map(|object| listed_reference(bucket, object)).collect()
    }

    fn check_prefix(&self, prefix: &str) -> Result<(), ObjectError> {
        let (bucket, _) = parse_s3_prefix(prefix)?;
        self.check_bucket(bucket)
    }

    /// Does nothing: S3 keeps nothing of a single put that was cut off, and this store makes no multipart uploads.
    async fn clean(&self, _age: Duration) -> Result<(), ObjectError> {
        Ok(())
    }
}

impl From<PresignedRequest> for Presigned {
    fn from(request: PresignedRequest) -> Self {
        Self {
            method: request.method().to_owned(),
            url: request.uri().to_owned(),
            headers: request.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        }
    }
}

/// The whole body, if it is as long as announced and not longer than `max_bytes`.
async fn body(mut got: GetObjectOutput, key: &str, max_bytes: usize) -> Result<Vec<u8>, ObjectError> {
    let too_large = || ObjectError::TooLarge { key: key.to_owned(), max_bytes };
    let announced = got.content_length.and_then(|l| usize::try_from(l).ok());
    if announced.is_some_and(|l| l > max_bytes) {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(announced.unwrap_or_default());
    while let Some(chunk) = got.body.try_next().await.map_err(|e| broken("read", key, e.into()))? {
        if chunk.len() > max_bytes - bytes.len() {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    if announced.is_some_and(|l| l != bytes.len()) {
        return Err(broken("read", key, ErrorKind::UnexpectedEof.into()));
    }
    Ok(bytes)
}

fn listed_reference(bucket: &str, object: Object) -> Result<ListedReference, ObjectError> {
    let etag = object.e_tag.clone().map(|etag| etag.trim_matches('"').to_owned()).filter(|etag| !etag.is_empty());
    let meta = listed_meta(object)?;
    let since_epoch = meta.modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let fingerprint = etag.unwrap_or_else(|| format!("{}-{}", meta.size_bytes, since_epoch.as_millis()));
    Ok(ListedReference { uri: format!("s3://{bucket}/{}", meta.key), fingerprint })
}

fn listed_meta(object: Object) -> Result<ObjectMeta, ObjectError> {
    let key = object.key.ok_or_else(|| unreadable("list", "objects", "the answer lists an object without a key"))?;
    meta("list", &key, object.size, object.last_modified)
}

fn meta(
    action: &'static str,
    key: &str,
    size: Option<i64>,
    modified: Option<DateTime>,
) -> Result<ObjectMeta, ObjectError> {
    let size_bytes = size.and_then(|s| u64::try_from(s).ok());
    let modified = modified.and_then(|m| SystemTime::try_from(m).ok());
    let (Some(size_bytes), Some(modified)) = (size_bytes, modified) else {
        return Err(unreadable(action, key, "the answer lacks the object's length or time"));
    };
    Ok(ObjectMeta { key: key.to_owned(), size_bytes, modified })
}

fn broken(action: &'static str, key: &str, source: std::io::Error) -> ObjectError {
    ObjectError::Store { action, key: key.to_owned(), source }
}

fn unreadable(action: &'static str, key: &str, what: &'static str) -> ObjectError {
    broken(action, key, std::io::Error::new(ErrorKind::InvalidData, what))
}

/// The error of a request that cannot be signed as asked for.
fn unsigned(key: &str, error: impl std::error::Error + Send + Sync + 'static) -> ObjectError {
    let source = std::io::Error::new(ErrorKind::InvalidInput, error);
    ObjectError::Refused { action: "sign for", key: key.to_owned(), reason: "no valid request".to_owned(), source }
}
