//! What an answer of the S3 service means to the caller.

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::objects::ObjectError;

/// Codes of the 4xx class that blame the moment or the connection, not the request
/// (<https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>).
const PASSING_CODES: [&str; 6] =
    ["BadDigest", "IncompleteBody", "OperationAborted", "RequestTimeout", "SlowDown", "XAmzContentSHA256Mismatch"];
/// The same for stores that answer without a code: Request Timeout, Conflict, Too Early, Too Many Requests.
const PASSING_STATUSES: [u16; 4] = [408, 409, 425, 429];

/// The error of an operation on a key.
pub(super) fn failure<E>(action: &'static str, key: &str, error: SdkError<E, HttpResponse>) -> ObjectError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let key = key.to_owned();
    let status = error.raw_response().map(|r| r.status().as_u16());
    let code = error.code().unwrap_or_default();
    let reason = match (&error, status) {
        (SdkError::ConstructionFailure(_), _) => "no valid request".to_owned(),
        (_, Some(404)) if code != "NoSuchBucket" => return ObjectError::NotFound(key),
        (_, Some(status @ 300..500)) if !PASSING_STATUSES.contains(&status) && !PASSING_CODES.contains(&code) => {
            format!("{status} {code}").trim_end().to_owned()
        }
        _ => return ObjectError::Store { action, key, source: std::io::Error::other(error) },
    };
    ObjectError::Refused { action, key, reason, source: std::io::Error::other(error) }
}
