//! Taking in a manifest of any size: each line is looked at as it comes, and all are stored in parts of whole lines, so that
//! no more than a part is ever held in memory.

use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};
use shared::batch::{Manifest, ManifestLine};
use shared::digest::hex;
use shared::ids::CollectionId;
use shared::job::ImageRef;
use uuid::Uuid;

use crate::error::{ApiError, ApiResult};
use crate::state::AppState;

/// A part is stored as soon as it has so many bytes.
const PART_BYTES: usize = 1 << 20;
/// Longest line in bytes: a longest S3 key, escaped, has room in it.
const MAX_LINE_BYTES: usize = 16 << 10;

/// A manifest that was taken in.
pub(crate) struct Intake {
    pub(crate) manifest: Manifest,
    /// SHA-256 of its bytes, lower-case hex.
    pub(crate) sha256: String,
}

/// Stores the manifest that a request's body holds. Of one that is refused nothing stays but what the sweeper finds.
pub(crate) async fn take_in(state: &AppState, collection: CollectionId, body: Body) -> ApiResult<Intake> {
    let mut parts = Parts::new(state, collection);
    let taken = take_lines(state, &mut parts, body).await;
    match taken {
        Ok(sha256) => Ok(Intake { manifest: parts.manifest, sha256 }),
        Err(error) => {
            delete(state, collection, &parts.manifest).await;
            Err(error)
        }
    }
}

async fn take_lines(state: &AppState, parts: &mut Parts<'_>, body: Body) -> ApiResult<String> {
    let idle = Duration::from_secs(state.config.server.body_timeout_s);
    let mut digest = Sha256::new();
    let mut chunks = body.into_data_stream();
    // What has come of a line that is not whole yet.
    let mut rest = Vec::new();
    loop {
        let chunk = tokio::time::timeout(idle, chunks.next()).await;
        let chunk = match chunk.map_err(|_| ApiError::body_timeout(idle.as_secs()))? {
            Some(Ok(chunk)) => chunk,
            Some(Err(_)) => return Err(ApiError::bad_request("body_broken_off", "the body broke off; send it again")),
            None => break,
        };
        digest.update(&chunk);
        let mut lines = chunk.split(|byte| *byte == b'\n');
        let last = lines.next_back().unwrap_or_default();
        for line in lines {
            rest.extend_from_slice(line);
            parts.add(&rest).await?;
            rest.clear();
        }
        rest.extend_from_slice(last);
        if rest.len() > MAX_LINE_BYTES {
            return Err(too_long(parts.seen + 1));
        }
    }
    parts.add(&rest).await?;
    parts.flush().await?;
    if parts.manifest.lines == 0 {
        return Err(ApiError::bad_request("empty_body", "the manifest has no lines; send a JSON object a line"));
    }
    Ok(hex(&digest.finalize()))
}

/// The parts that are stored, and the one at hand.
struct Parts<'a> {
    state: &'a AppState,
    collection: CollectionId,
    manifest: Manifest,
    part: Vec<u8>,
    /// Lines seen, empty ones too.
    seen: u64,
}

impl<'a> Parts<'a> {
    fn new(state: &'a AppState, collection: CollectionId) -> Self {
        let manifest = Manifest { id: Uuid::now_v7(), parts: 0, lines: 0 };
        Self { state, collection, manifest, part: Vec::with_capacity(PART_BYTES + MAX_LINE_BYTES), seen: 0 }
    }

    /// Adds a line; an empty one is passed over.
    async fn add(&mut self, line: &[u8]) -> ApiResult<()> {
        self.seen += 1;
        let number = self.seen;
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        if line.len() > MAX_LINE_BYTES {
            return Err(too_long(number));
        }
        let text = std::str::from_utf8(line).map_err(|_| wrong(number, "is no UTF-8 text"))?;
        check(self.state, text).map_err(|why| wrong(number, why))?;
        self.part.extend_from_slice(text.trim().as_bytes());
        self.part.push(b'\n');
        self.manifest.lines += 1;
        if self.part.len() >= PART_BYTES { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> ApiResult<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        let key = Manifest::part_key(self.collection, self.manifest.id, self.manifest.parts);
        self.state.objects.put(&key, &self.part).await?;
        self.manifest.parts += 1;
        self.part.clear();
        Ok(())
    }
}

/// Deletes the parts of a manifest that no batch has.
pub(crate) async fn delete(state: &AppState, collection: CollectionId, manifest: &Manifest) {
    for part in 0..manifest.parts {
        if let Err(error) = state.objects.delete(&Manifest::part_key(collection, manifest.id, part)).await {
            tracing::warn!(%error, "delete a part of a manifest that is not needed; the sweeper does it");
        }
    }
}

/// Refuses a line that no worker could ever follow.
fn check(state: &AppState, line: &str) -> Result<(), String> {
    match ManifestLine::read(line)? {
        ImageRef::Reference { s3, .. } => state.objects.check_reference(&s3).map_err(|e| e.to_string()),
        ImageRef::File { file, .. } if state.config.has_services() || !Path::new(&file).is_absolute() => {
            Err("names a file that is not an absolute path of this server's own (`face-id serve`)".to_owned())
        }
        ImageRef::File { .. } | ImageRef::Upload(_) => Ok(()),
    }
}

fn wrong(line: u64, why: impl Into<String>) -> ApiError {
    ApiError::invalid(format!("line {line}"), why)
}

fn too_long(line: u64) -> ApiError {
    wrong(line, format!("is longer than {MAX_LINE_BYTES} bytes; each line is one JSON object"))
}
