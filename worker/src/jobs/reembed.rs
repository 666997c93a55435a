//! Reembed: images get what another pipeline makes of them, beside what they have. Where its detector has seen them, only the
//! kept crops of their faces are read; what has none is cut from the picture again.

use futures_util::future::try_join_all;
use sea_orm::{DatabaseTransaction, DbErr};
use serde_json::json;
use shared::db::crops::Crop;
use shared::db::entity::job::Model as Job;
use shared::db::entity::{collection, face_geometry, image};
use shared::db::reprocess::Side;
use shared::db::reprocess::record::{self, Addition, KnownFace, KnownImage, VectorOf, found_again, known};
use shared::digest::sha256_hex;
use shared::ids::{FaceId, ImageId};
use shared::job::FaceBox;
use shared::telemetry::metrics;

use super::pictures::{self, bytes_of, keeps, new_faces, stored};
use super::{Done, JobError, Recorded, settings};
use crate::analysis::{AnalysedFace, Place, Search, embed_crops, reanalyse};
use crate::context::WorkerContext;
use crate::inference::Engine;
use crate::vision::crops::Keep;
use crate::vision::margin::MAX_CROP_BYTES;
use crate::vision::{BoundingBox, Detection, Landmarks};

/// Crops that are fetched at the same time.
const FETCHED_AT_ONCE: usize = 16;

/// What is to be written of a job's images.
#[derive(Debug)]
pub struct Reembedding {
    revision: String,
    added: Vec<(ImageId, Addition)>,
}

pub(super) async fn run(
    ctx: &WorkerContext,
    job: &Job,
    collection: &collection::Model,
    (images, detects): (&[ImageId], bool),
) -> Result<Done, JobError> {
    let engine = ctx.engine(job).await?;
    let revision = engine.pipeline().detector_revision();
    let keep = keeps(&settings(ctx, collection, job).await?);
    let images = known(&ctx.db, job.collection_id, &job.pipeline, images).await?;
    let work = Work { ctx, job, engine: &engine, revision: &revision, detects, keep };
    let mut done = Reembedding { revision: revision.clone(), added: Vec::new() };
    let mut from_crops = work.vectors_of_crops(&images).await?;
    for image in &images {
        let vectors = from_crops.remove(0);
        let addition = match work.of_image(image, vectors.clone()).await {
            Ok(addition) => addition,
            // One that cannot be done keeps none of the others from it, nor what its crops gave from being stored.
            Err(JobError::Rejected(problem) | JobError::Failed(problem)) => {
                tracing::warn!(image.id = %image.image.id, code = problem.code, "an image cannot be done");
                Addition { vectors, problem: Some(problem.code), ..Addition::default() }
            }
            Err(error) => return Err(error),
        };
        done.added.push((image.image.id, addition));
    }
    Ok(Done::Reembed(Box::new(done)))
}

type Vectors = Vec<VectorOf>;

struct Work<'a> {
    ctx: &'a WorkerContext,
    job: &'a Job,
    engine: &'a Engine,
    revision: &'a str,
    /// Whether the run has faces looked for by another detector.
    detects: bool,
    keep: Keep,
}

impl Work<'_> {
    /// The vectors of those faces of each image that have a crop, all made in one go.
    async fn vectors_of_crops(&self, images: &[KnownImage]) -> Result<Vec<Vectors>, JobError> {
        let mut wanted: Vec<(usize, FaceId, Crop)> = Vec::new();
        for (at, image) in images.iter().enumerate().filter(|(_, image)| !self.has_to_detect(image)) {
            let faces = image.faces.iter().filter(|face| self.is_missing(face));
            wanted.extend(faces.filter_map(|face| Some((at, face.face.id, self.crop_of(face)?.clone()))));
        }
        let mut fetched = Vec::with_capacity(wanted.len());
        for some in wanted.chunks(FETCHED_AT_ONCE) {
            fetched.extend(try_join_all(some.iter().map(|(at, face, crop)| self.fetched(*at, *face, crop))).await?);
        }
        let (places, crops): (Vec<_>, Vec<_>) =
            fetched.into_iter().flatten().map(|(at, face, crop)| ((at, face), crop)).unzip();
        let mut vectors: Vec<Vectors> = vec![Vec::new(); images.len()];
        if crops.is_empty() {
            return Ok(vectors);
        }
        let embedded = embed_crops(self.engine, crops, self.ctx.decode_limits()).await?;
        for ((at, face), embedding) in places.into_iter().zip(embedded) {
            vectors[at].extend(embedding.map(|embedding| (face, embedding, None)));
        }
        Ok(vectors)
    }

    async fn fetched(
        &self,
        at: usize,
        face: FaceId,
        crop: &Crop,
    ) -> Result<Option<(usize, FaceId, (Vec<u8>, Landmarks))>, JobError> {
        let Ok(landmarks) = serde_json::from_str::<Landmarks>(&crop.points) else { return Ok(None) };
        // From other points than the alignment's, only the picture tells where these are.
        if !landmarks.scheme().gives(self.engine.pipeline().alignment.scheme) {
            return Ok(None);
        }
        metrics::crop_read();
        match self.ctx.objects.get(&crop.object_key, MAX_CROP_BYTES).await {
            Ok(file) => Ok(Some((at, face, (file, landmarks)))),
            Err(error) if error.is_transient() => Err(error.into()),
            // The picture is read in its place.
            Err(error) => {
                tracing::warn!(face.id = %face, %error, "a kept crop cannot be read");
                Ok(None)
            }
        }
    }

    fn has_to_detect(&self, image: &KnownImage) -> bool {
        self.detects && image.lacks_detection(self.revision)
    }

    /// Whether a vector of it is made without a detector. What this one did not find and nobody has named is left as it is.
    fn is_missing(&self, face: &KnownFace) -> bool {
        !face.is_embedded && (!self.detects || face.is_seen_by(self.revision) || face.is_labelled())
    }

    /// The crop that is read of a face: of its place by this detector, or else by the other one.
    fn crop_of<'f>(&self, face: &'f KnownFace) -> Option<&'f Crop> {
        if !self.engine.pipeline().reads_crops() {
            return None;
        }
        let seen = face.seen_by(self.revision)?;
        face.crops.iter().find(|crop| crop.detector_revision == seen.detector_revision)
    }

    /// The rest of what an image lacks, from the picture.
    async fn of_image(&self, image: &KnownImage, vectors: Vectors) -> Result<Addition, JobError> {
        let detects = self.has_to_detect(image);
        let has = |face: &KnownFace| vectors.iter().any(|(id, ..)| *id == face.face.id);
        let missing: Vec<KnownFace> =
            image.faces.iter().filter(|face| (detects || self.is_missing(face)) && !has(face)).cloned().collect();
        if !detects && missing.is_empty() {
            return Ok(Addition { vectors, ..Addition::default() });
        }
        let bytes = bytes_of(self.ctx, &place_of(&image.image)).await?;
        if sha256_hex(&bytes) != image.image.sha256 {
            let detail =
                "at the picture's place lies another one now; index it, and delete this image where it is gone";
            return Err(JobError::rejected("image_changed", detail));
        }
        let pixels = self.ctx.stages.decode(self.job.lane).await;
        let (revision, keep) = (self.revision.to_owned(), self.keep);
        let faces = missing.clone();
        // Of what the detector does not find again, only what somebody has named stays of use.
        let wanted = move |found: Option<&[AnalysedFace]>| wanted(&faces, found, &revision, keep);
        let places = wanted.clone();
        let search = detects.then(|| Search { known: image.faces.iter().flat_map(boxes).collect(), keep });
        let analysed = reanalyse(self.engine, bytes, self.ctx.decode_limits(), search, move |found| {
            places(found).into_iter().map(|(_, place)| place).collect()
        })
        .await?;
        drop(pixels);
        let found = analysed.detected.as_ref().map(|analysis| analysis.faces.as_slice());
        let faces = wanted(found);
        let mut addition = Addition { vectors, ..Addition::default() };
        if let Some(found) = found {
            addition.detected = Some(new_faces(self.ctx, self.job, found, self.engine.pipeline()).await?);
        }
        for ((face, _), embedded) in faces.into_iter().zip(analysed.embedded) {
            let Some((embedding, crop)) = embedded else { continue };
            let crop = match &crop {
                Some(crop) => Some((face.1, stored(self.ctx, self.job, crop).await?)),
                None => None,
            };
            addition.vectors.push((face.0, embedding, crop));
        }
        Ok(addition)
    }
}

/// The faces that are cut from the picture at the places that are known, with the detector revision of each place.
fn wanted(
    faces: &[KnownFace],
    found: Option<&[AnalysedFace]>,
    revision: &str,
    keep: Keep,
) -> Vec<((FaceId, String), Place)> {
    let places: Vec<FaceBox> = found.iter().copied().flatten().map(|new| new.detection.bounding_box.into()).collect();
    let found_again = found_again(faces, &places);
    let is_left = |face: &&KnownFace| {
        !face.is_embedded && (found.is_none() || (face.is_labelled() && !found_again.contains(&face.face.id)))
    };
    let left = faces.iter().filter(is_left);
    left.filter_map(|face| {
        let seen = face.seen_by(revision)?;
        let has_crop = face.crops.iter().any(|crop| crop.detector_revision == seen.detector_revision);
        let keep = if has_crop { Keep::Nothing } else { keep };
        Some(((face.face.id, seen.detector_revision.clone()), (detection(seen)?, keep)))
    })
    .collect()
}

fn detection(seen: &face_geometry::Model) -> Option<Detection> {
    let landmarks: Landmarks = serde_json::from_str(&seen.landmarks).ok()?;
    Some(Detection { bounding_box: bounding_box(seen), landmarks, score: seen.score })
}

/// Each place at which a face was seen.
fn boxes(face: &KnownFace) -> impl Iterator<Item = BoundingBox> {
    face.seen.iter().map(bounding_box)
}

fn bounding_box(seen: &face_geometry::Model) -> BoundingBox {
    BoundingBox { x: seen.x, y: seen.y, width: seen.width, height: seen.height }
}

/// Where the picture lies.
fn place_of(image: &image::Model) -> pictures::Place<'_> {
    if let Some(key) = &image.object_key {
        return pictures::Place::Object(key);
    }
    let uri = image.uri.as_deref().unwrap_or_default();
    match uri.strip_prefix("file://") {
        Some(file) => pictures::Place::File(file),
        None => pictures::Place::Reference(uri),
    }
}

impl Reembedding {
    /// Writes what was added.
    pub(super) async fn record(&self, txn: &DatabaseTransaction, job: &Job) -> Result<Recorded, DbErr> {
        let side = Side { pipeline: &job.pipeline, revision: &self.revision };
        let by = (job.collection_id, job.id);
        let vectors = record::record(txn, by, side, &self.added).await?;
        let failed = self.added.iter().filter_map(|(image, addition)| Some((image, addition.problem.as_ref()?)));
        let problems: Vec<_> = failed.map(|(image, code)| json!({ "image_id": image, "code": code })).collect();
        let images = self.added.len() - problems.len();
        let answer = json!({ "images": images, "vectors": vectors, "problems": problems });
        Ok(Recorded::answer(answer))
    }
}
