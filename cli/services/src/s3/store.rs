//! The store behind the server: s3s-fs with its deviations from S3 mended and the faults built in.

use std::future::Future;
use std::io::Cursor;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use s3s::access::{S3Access, S3AccessContext};
use s3s::{S3, S3Error, S3Request, S3Response, S3Result, dto, s3_error};
use s3s_fs::FileSystem;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Sleep;
use tokio_util::io::ReaderStream;

use super::fault::{Fault, Faults};

/// Largest object that is accepted, in bytes: four times the largest picture that face-id takes by default.
pub(super) const MAX_OBJECT_BYTES: i64 = 100 << 20;
/// How long a truncated body stands still before its connection is cut, so that what was sent reaches the client.
const CUT_AFTER: Duration = Duration::from_millis(50);
/// How long one that stalls does: longer than any client waits.
const STALL: Duration = Duration::from_secs(3600);

/// See the module.
#[derive(Clone)]
pub(super) struct Store {
    files: Arc<FileSystem>,
    root: PathBuf,
    faults: Faults,
}

/// What an operation of [`S3`] gives back: the trait's methods, written without the macro that made them.
type Answer<'f, T> = Pin<Box<dyn Future<Output = S3Result<S3Response<T>>> + Send + 'f>>;

impl Store {
    pub(super) fn new(files: FileSystem, root: PathBuf, faults: Faults) -> Self {
        Self { files: Arc::new(files), root, faults }
    }

    /// s3s-fs answers a missing bucket as a missing key, and makes the bucket when something is put into it.
    fn check_bucket(&self, bucket: &str) -> S3Result<()> {
        if self.root.join(bucket).is_dir() { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
    }

    /// s3s-fs takes the folder that keys lead through for an object of its own.
    fn is_folder(&self, bucket: &str, key: &str) -> bool {
        self.root.join(bucket).join(key).is_dir()
    }

    async fn get(&self, req: S3Request<dto::GetObjectInput>) -> S3Result<S3Response<dto::GetObjectOutput>> {
        let (bucket, key) = (&req.input.bucket, &req.input.key);
        self.check_bucket(bucket)?;
        if self.is_folder(bucket, key) {
            return Err(s3_error!(NoSuchKey));
        }
        let path = self.root.join(bucket).join(key);
        let mut answer = self.files.get_object(req).await?;
        let short = match self.faults.now() {
            Fault::Truncate(length) => Some((length, CUT_AFTER)),
            Fault::Stall(length) => Some((length, STALL)),
            _ => None,
        };
        if let Some((length, wait)) = short {
            let mut bytes = tokio::fs::read(path).await.map_err(S3Error::internal_error)?;
            bytes.truncate(length);
            answer.output.body = Some(dto::StreamingBlob::wrap(ReaderStream::new(CutShort::new(bytes, wait))));
        }
        Ok(answer)
    }

    async fn head(&self, req: S3Request<dto::HeadObjectInput>) -> S3Result<S3Response<dto::HeadObjectOutput>> {
        self.check_bucket(&req.input.bucket)?;
        if self.is_folder(&req.input.bucket, &req.input.key) {
            return Err(s3_error!(NoSuchKey));
        }
        self.files.head_object(req).await
    }

    async fn put(&self, req: S3Request<dto::PutObjectInput>) -> S3Result<S3Response<dto::PutObjectOutput>> {
        self.check_bucket(&req.input.bucket)?;
        match req.input.content_length {
            None => Err(s3_error!(MissingContentLength)),
            Some(length) if length > MAX_OBJECT_BYTES => Err(s3_error!(EntityTooLarge)),
            Some(_) => self.files.put_object(req).await,
        }
    }

    async fn delete(&self, req: S3Request<dto::DeleteObjectInput>) -> S3Result<S3Response<dto::DeleteObjectOutput>> {
        if self.is_folder(&req.input.bucket, &req.input.key) {
            return Ok(S3Response::new(dto::DeleteObjectOutput::default()));
        }
        self.files.delete_object(req).await
    }
}

/// Methods of [`S3`] that call a method of the field or of the store itself.
macro_rules! answer {
    ($($operation:ident($input:ident) -> $output:ident by $($owner:ident).+;)*) => {$(
        fn $operation<'s, 'f>(&'s self, req: S3Request<dto::$input>) -> Answer<'f, dto::$output>
        where
            's: 'f,
            Self: 'f,
        {
            Box::pin(self.$($owner).+(req))
        }
    )*};
}

impl S3 for Store {
    answer! {
        get_object(GetObjectInput) -> GetObjectOutput by get;
        head_object(HeadObjectInput) -> HeadObjectOutput by head;
        put_object(PutObjectInput) -> PutObjectOutput by put;
        delete_object(DeleteObjectInput) -> DeleteObjectOutput by delete;
        create_bucket(CreateBucketInput) -> CreateBucketOutput by files.create_bucket;
        delete_bucket(DeleteBucketInput) -> DeleteBucketOutput by files.delete_bucket;
        head_bucket(HeadBucketInput) -> HeadBucketOutput by files.head_bucket;
        list_buckets(ListBucketsInput) -> ListBucketsOutput by files.list_buckets;
        list_objects(ListObjectsInput) -> ListObjectsOutput by files.list_objects;
        list_objects_v2(ListObjectsV2Input) -> ListObjectsV2Output by files.list_objects_v2;
        delete_objects(DeleteObjectsInput) -> DeleteObjectsOutput by files.delete_objects;
    }
}

impl S3Access for Store {
    fn check<'s, 'c, 'x, 'f>(
        &'s self,
        context: &'c mut S3AccessContext<'x>,
    ) -> Pin<Box<dyn Future<Output = S3Result<()>> + Send + 'f>>
    where
        's: 'f,
        'c: 'f,
        'x: 'f,
        Self: 'f,
    {
        let is_anonymous = context.credentials().is_none();
        Box::pin(async move { if is_anonymous { Err(s3_error!(AccessDenied)) } else { self.faults.meet().await } })
    }
}

/// Bytes that end in an error.
struct CutShort {
    bytes: Cursor<Vec<u8>>,
    cut: Pin<Box<Sleep>>,
}

impl CutShort {
    fn new(bytes: Vec<u8>, wait: Duration) -> Self {
        Self { bytes: Cursor::new(bytes), cut: Box::pin(tokio::time::sleep(wait)) }
    }
}

impl AsyncRead for CutShort {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.bytes).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            return Poll::Ready(Ok(()));
        }
        ready!(self.cut.as_mut().poll(context));
        Poll::Ready(Err(std::io::ErrorKind::ConnectionAborted.into()))
    }
}
