//! The lines of a stored manifest.

use shared::batch::{Checkpoint, Manifest, ManifestLine};
use shared::db::batches::listing::Listed;
use shared::ids::CollectionId;
use shared::job::Problem;
use shared::objects::ObjectStore;

use crate::jobs::JobError;

/// Parts are a little above a mebibyte; see the API's intake.
const MAX_PART_BYTES: usize = 16 << 20;

/// Reads a manifest, keeping the part at hand.
pub(super) struct ManifestReader {
    collection: CollectionId,
    manifest: Manifest,
    part: Option<(u32, String)>,
}

impl ManifestReader {
    pub(super) fn new(collection: CollectionId, manifest: Manifest) -> Self {
        Self { collection, manifest, part: None }
    }

    /// Up to `limit` lines from the checkpoint on, all of one part.
    pub(super) async fn page(
        &mut self,
        objects: &dyn ObjectStore,
        limit: usize,
        mut checkpoint: Checkpoint,
    ) -> Result<Listed, JobError> {
        if checkpoint.part >= self.manifest.parts {
            return Ok(Listed { items: Vec::new(), checkpoint, is_last: true, coverage: None });
        }
        let text = self.read(objects, checkpoint.part).await?;
        let mut items = Vec::with_capacity(limit);
        let mut rest = text.get(checkpoint.offset..).unwrap_or_default();
        while items.len() < limit && !rest.is_empty() {
            let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
            items.push(ManifestLine::read(line).map_err(damaged)?);
            rest = after;
        }
        checkpoint.offset = text.len() - rest.len();
        if rest.is_empty() {
            (checkpoint.part, checkpoint.offset) = (checkpoint.part + 1, 0);
        }
        let is_last = checkpoint.part >= self.manifest.parts;
        Ok(Listed { items, checkpoint, is_last, coverage: None })
    }

    async fn read(&mut self, objects: &dyn ObjectStore, part: u32) -> Result<&str, JobError> {
        if self.part.as_ref().is_none_or(|(at_hand, _)| *at_hand != part) {
            let key = Manifest::part_key(self.collection, self.manifest.id, part);
            let bytes = objects.get(&key, MAX_PART_BYTES).await?;
            self.part = Some((part, String::from_utf8(bytes).map_err(damaged)?));
        }
        Ok(self.part.as_ref().map_or("", |(_, text)| text))
    }
}

/// Every line was read before it was stored.
fn damaged(error: impl std::fmt::Display) -> JobError {
    JobError::Failed(Problem::new("manifest_damaged", format!("the stored manifest cannot be read any more: {error}")))
}
