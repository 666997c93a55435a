//! `s3://bucket/key` references.

use crate::objects::ObjectError;

/// Longest key of S3, in bytes.
const MAX_KEY_BYTES: usize = 1024;

/// Bucket and key of an `s3://bucket/key` reference. The key is taken as it is written: nothing is percent-decoded.
///
/// Refuses what is no bucket name, an empty or too long key, and a key with control characters or a `.` or `..` part,
/// which a proxy in front of the store might resolve into another bucket.
pub fn parse_s3_uri(uri: &str) -> Result<(&str, &str), ObjectError> {
    let bad = || ObjectError::BadReference(uri.to_owned());
    let (bucket, key) = uri.strip_prefix("s3://").and_then(|rest| rest.split_once('/')).ok_or_else(bad)?;
    if is_bucket_name(bucket) && is_foreign_key(key) { Ok((bucket, key)) } else { Err(bad()) }
}

/// Bucket and prefix of `s3://bucket/prefix`; the prefix may be empty, and need not end at a `/`.
pub(super) fn parse_s3_prefix(uri: &str) -> Result<(&str, &str), ObjectError> {
    let bad = || ObjectError::BadReference(uri.to_owned());
    let rest = uri.strip_prefix("s3://").ok_or_else(bad)?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if is_bucket_name(bucket) && (prefix.is_empty() || is_foreign_key(prefix)) {
        Ok((bucket, prefix))
    } else {
        Err(bad())
    }
}

/// The naming rules of general purpose buckets, as far as they matter for addressing one
/// (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html>).
pub(super) fn is_bucket_name(name: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (3..=63).contains(&name.len())
        && name.bytes().all(|b| is_plain(b) || b == b'-' || b == b'.')
        && name.bytes().next().is_some_and(is_plain)
        && name.bytes().next_back().is_some_and(is_plain)
        && !name.contains("..")
}

/// Whether a key that another program chose can be asked for.
pub(super) fn is_foreign_key(key: &str) -> bool {
    !key.is_empty()
        && key.len() <= MAX_KEY_BYTES
        && !key.chars().any(char::is_control)
        && !key.split('/').any(|part| part == "." || part == "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_reference_apart() {
        assert_eq!(parse_s3_uri("s3://photos/a.jpg").unwrap(), ("photos", "a.jpg"));
        assert_eq!(parse_s3_uri("s3://my.photos-1/a//b c/%2F+ü?x#y").unwrap(), ("my.photos-1", "a//b c/%2F+ü?x#y"));
        let long = format!("s3://photos/{}", "k".repeat(MAX_KEY_BYTES));
        assert_eq!(parse_s3_uri(&long).unwrap().1.len(), MAX_KEY_BYTES);
    }

    #[test]
    fn takes_a_prefix_apart() {
        for (uri, wanted) in
            [("s3://photos", ("photos", "")), ("s3://photos/", ("photos", "")), ("s3://photos/a/b", ("photos", "a/b"))]
        {
            assert_eq!(parse_s3_prefix(uri).unwrap(), wanted);
        }
        for uri in ["", "photos/a", "s3://", "s3://ph_tos/a", "s3://photos/../other"] {
            assert!(parse_s3_prefix(uri).is_err(), "{uri:?}");
        }
    }

    #[test]
    fn refuses_what_is_no_reference() {
        let too_long = format!("s3://photos/{}", "k".repeat(MAX_KEY_BYTES + 1));
        let long_bucket = format!("s3://{}/key", "b".repeat(64));
        for uri in [
            "",
            "photos/a.jpg",
            "S3://photos/a.jpg",
            "https://photos/a.jpg",
            "s3:/photos/a.jpg",
            "s3://",
            "s3://photos",
            "s3://photos/",
            "s3:///a.jpg",
            "s3://ab/key",
            "s3://Photos/key",
            "s3://-photos/key",
            "s3://photos-/key",
            "s3://pho..tos/key",
            "s3://pho_tos/key",
            "s3://user@photos/key",
            "s3://photos/../other/key",
            "s3://photos/a/./b",
            "s3://photos/..",
            "s3://photos/a\nb",
            "s3://photos/a\0b",
            &too_long,
            &long_bucket,
        ] {
            assert!(matches!(parse_s3_uri(uri), Err(ObjectError::BadReference(_))), "{uri:?}");
        }
    }
}
