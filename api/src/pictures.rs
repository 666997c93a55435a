//! Taking in pictures: what they are by their first bytes, where they are put, which one a request means.

use std::path::PathBuf;
use std::time::Duration;

use axum::body::Bytes;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use shared::access::Grant;
use shared::db::entity::image;
use shared::db::uploads::{self, NewUpload};
use shared::digest::sha256_hex;
use shared::heif;
use shared::ids::{CollectionId, UploadId};
use shared::job::{ImageRef, UploadedImage};
use shared::objects::ImportRoots;
use utoipa::ToSchema;

use crate::error::{ApiError, ApiResult};
use crate::state::AppState;

/// Base64 with or without padding.
pub(crate) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Which picture a request means.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageInput {
    /// An upload of the same collection.
    pub upload_id: Option<UploadId>,
    /// The picture's bytes in base64, instead of an upload.
    #[schema(format = Byte)]
    pub base64: Option<String>,
    /// `s3://bucket/key` of a picture in a bucket that the operator allows, instead of an upload.
    pub s3: Option<String>,
}

/// A picture of a request that is not stored yet, or an upload that is.
#[derive(Debug)]
pub enum Picture {
    /// Stored before, or lies elsewhere.
    There(ImageRef),
    /// To be stored once the request is known to be new.
    Inline(InlinePicture),
}

/// A picture that came inside the request.
#[derive(Debug)]
pub struct InlinePicture {
    bytes: Bytes,
    sha256: String,
    content_type: &'static str,
}

impl Picture {
    /// What tells it from other pictures: the SHA-256 of its bytes, or its address.
    pub fn identity(&self) -> &str {
        match self {
            Self::There(ImageRef::Upload(upload)) => &upload.sha256,
            Self::There(ImageRef::Reference { s3, .. }) => s3,
            Self::There(ImageRef::File { file, .. }) => file,
            Self::Inline(picture) => &picture.sha256,
        }
    }
}

impl InlinePicture {
    /// Refuses what is no picture by its first bytes.
    pub fn new(bytes: Bytes) -> ApiResult<Self> {
        if bytes.is_empty() {
            return Err(ApiError::bad_request("empty_body", "there is no picture in the request; send its bytes"));
        }
        let Some(content_type) = content_type(&bytes) else {
            if heif::is_heif(&bytes) {
                return Err(ApiError::unsupported_media_type("image_unsupported_format", heif::NOT_READ));
            }
            let detail = "the bytes are neither a jpeg, a png nor a webp picture; convert it to one of these";
            return Err(ApiError::unsupported_media_type("image_unsupported_format", detail));
        };
        let sha256 = sha256_hex(&bytes);
        Ok(Self { bytes, sha256, content_type })
    }

    /// Puts the bytes into the object store; the row is the caller's.
    pub async fn store(self, state: &AppState, collection: CollectionId, inline: bool) -> ApiResult<NewUpload> {
        let id = UploadId::new();
        let object_key = format!("collections/{collection}/uploads/{id}");
        state.objects.put(&object_key, &self.bytes).await?;
        Ok(NewUpload {
            id,
            collection,
            object_key,
            sha256: self.sha256,
            size_bytes: i64::try_from(self.bytes.len()).unwrap_or(i64::MAX),
            content_type: self.content_type.to_owned(),
            inline,
            keep: Duration::from_secs(u64::from(state.config.retention.upload_hours) * 3600),
        })
    }
}

/// What the picture says of itself in its first bytes; the client's own word on it is not asked.
fn content_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ if heif::IS_READ && heif::is_heif(bytes) => Some("image/heic"),
        _ => None,
    }
}

/// The picture that a request means; `pointer` says where in its body.
pub async fn resolve(
    state: &AppState,
    grant: &Grant,
    collection: CollectionId,
    input: &ImageInput,
    pointer: &str,
) -> ApiResult<Picture> {
    match (input.upload_id, &input.base64, &input.s3) {
        (Some(id), None, None) => {
            let found = uploads::find(&state.db.read, grant, collection, id).await?.ok_or_else(|| {
                let detail =
                    format!("there is no upload {id} in this collection (uploads expire); send the picture again");
                ApiError::not_found("upload_not_found", detail)
            })?;
            let upload = UploadedImage { upload_id: id, object_key: found.object_key, sha256: found.sha256 };
            Ok(Picture::There(ImageRef::Upload(upload)))
        }
        (None, Some(text), None) => {
            let bytes = BASE64
                .decode(text.trim_ascii())
                .map_err(|e| ApiError::invalid(format!("{pointer}/base64"), format!("is no base64: {e}")))?;
            InlinePicture::new(bytes.into()).map(Picture::Inline)
        }
        (None, None, Some(uri)) => {
            state
                .objects
                .check_reference(uri)
                .map_err(|e| ApiError::invalid(format!("{pointer}/s3"), e.to_string()))?;
            Ok(Picture::There(ImageRef::Reference { s3: uri.clone(), fingerprint: None }))
        }
        _ => Err(ApiError::invalid(pointer, "needs exactly one of upload_id, base64 and s3")),
    }
}

/// The bytes of a collection's image, wherever they lie; `None` where they are not there any more, or may not be read.
pub(crate) async fn stored(state: &AppState, image: &image::Model) -> ApiResult<Option<Vec<u8>>> {
    let most = state.config.vision.max_image_bytes;
    let file = image.uri.as_deref().and_then(|uri| uri.strip_prefix("file://")).map(PathBuf::from);
    let read = match (&image.object_key, file, &image.uri) {
        (Some(key), _, _) => state.objects.get(key, most).await,
        (None, Some(file), _) => {
            let roots = ImportRoots::new(state.config.import.roots.clone());
            let read = tokio::task::spawn_blocking(move || roots.read(&file, most));
            read.await.map_err(|error| ApiError::internal(&error))?
        }
        (None, None, Some(uri)) => state.objects.get_reference(uri, most).await,
        (None, None, None) => return Ok(None),
    };
    match read {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is_transient() => Err(error.into()),
        Err(_) => {
            // The error names the place, which may be called like a person.
            tracing::warn!(image.id = %image.id, "a stored picture cannot be read any more");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_first_bytes() {
        assert_eq!(content_type(b"\xff\xd8\xff\xe0rest"), Some("image/jpeg"));
        assert_eq!(content_type(b"\x89PNG\r\n\x1a\nrest"), Some("image/png"));
        assert_eq!(content_type(b"RIFF\0\0\0\0WEBPVP8 "), Some("image/webp"));
        for other in [&b""[..], b"GIF89a", b"<html>", b"\xff\xd8", b"RIFF\0\0\0\0WAVE"] {
            assert_eq!(content_type(other), None, "{other:?}");
        }
    }
}
