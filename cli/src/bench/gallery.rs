//! A gallery of synthetic persons: each has a direction of its own, and faces scattered around it.

use anyhow::Context as _;
use shared::catalogue::Metric;
use shared::db::collections::{self, CollectionSettings};
use shared::db::faces::{self, AssignedBy, NewFace, Origin};
use shared::db::images::{self, ImageSource};
use shared::db::{Db, persons};
use shared::embedding::Embedding;
use shared::face_index::Gallery;
use shared::ids::{CollectionId, PersonId};
use shared::job::{FaceBox, PersonRef};

/// Components of a vector, as the default model has them.
pub(super) const DIMENSION: usize = 128;
/// The vectors' own pipeline, so that nothing real is touched.
pub(super) const PIPELINE: &str = "bench";
/// Faces of each person.
const FACES: usize = 5;
/// How far faces lie from their person's direction, beside a component's own spread: faces of one person then have a
/// cosine of about 0.5, as those of the default model have.
const SCATTER: f32 = 1.0;
/// Persons stored in one transaction.
const PERSONS_A_TRANSACTION: usize = 100;

/// A small generator whose numbers are the same in every run (xorshift64*, Vigna 2016).
pub(super) struct Random(pub(super) u64);

impl Random {
    /// Numbers of a seed's own, whatever the seed; the generator itself has no use for zero, and neighbours begin alike.
    pub(super) fn seeded(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// One of the numbers below `limit`, all equally likely.
    pub(super) fn below(&mut self, limit: u16) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to below `limit`")]
        let number = (self.uniform() * f32::from(limit)) as usize;
        number
    }

    /// About normally distributed, by the sum of uniform numbers.
    fn normal(&mut self) -> f32 {
        (0..4).map(|_| self.uniform() - 0.5).sum::<f32>() * 1.73
    }

    /// From 0 to below 1.
    pub(super) fn uniform(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 48;
        f32::from(u16::try_from(bits).unwrap_or_default()) / 65_536.0
    }

    /// A whole number from 1 to `most` that is n or more with a probability of n^-`exponent`.
    pub(super) fn power(&mut self, exponent: f32, most: f32) -> usize {
        let number = (1.0 - self.uniform()).powf(-exponent.recip()).min(most);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to `most`")]
        let number = number as usize;
        number
    }

    pub(super) fn direction(&mut self) -> Vec<f32> {
        (0..DIMENSION).map(|_| self.normal()).collect()
    }

    /// A face of the person with that direction.
    pub(super) fn face(&mut self, person: &[f32]) -> anyhow::Result<Embedding> {
        Ok(Embedding::normalised(person.iter().map(|c| c + SCATTER * self.normal()).collect())?)
    }
}

/// Makes an empty gallery.
pub(super) async fn make(db: &Db, name: &str) -> anyhow::Result<Gallery> {
    let made = collections::create(db, name, PIPELINE, &CollectionSettings::default()).await?;
    let collection = made.with_context(|| format!("there is a collection {name} already"))?.id;
    Ok(Gallery { collection, pipeline: PIPELINE.to_owned(), metric: Metric::Cosine })
}

/// Stores `count` faces of persons whose directions come from `random`, and gives those persons.
pub(super) async fn fill(
    db: &Db,
    gallery: &Gallery,
    count: usize,
    random: &mut Random,
    mut progress: impl FnMut(usize),
) -> anyhow::Result<Vec<(PersonId, Vec<f32>)>> {
    let mut stored = Vec::new();
    let directions: Vec<Vec<f32>> = (0..count.div_ceil(FACES)).map(|_| random.direction()).collect();
    for chunk in directions.chunks(PERSONS_A_TRANSACTION) {
        let txn = db.begin().await?;
        for direction in chunk {
            let vectors = (0..FACES).map(|_| random.face(direction)).collect::<Result<Vec<_>, _>>()?;
            stored.push((store(&txn, gallery.collection, vectors).await?, direction.clone()));
        }
        txn.commit().await?;
        progress(stored.len() * FACES);
    }
    Ok(stored)
}

/// One image with one person's faces, through the same queries that a job uses.
async fn store(
    txn: &impl sea_orm::ConnectionTrait,
    collection: CollectionId,
    vectors: Vec<Embedding>,
) -> anyhow::Result<PersonId> {
    let name = uuid::Uuid::now_v7().to_string();
    let source =
        ImageSource { sha256: name.clone(), object_key: Some(format!("bench/{name}")), ..ImageSource::default() };
    let image = images::find_or_create(txn, collection, &source, [1000, 1000]).await?.id;
    let origin = Origin { collection, image, detector_revision: "bench", pipeline: PIPELINE };
    let new: Vec<_> = vectors
        .into_iter()
        .zip([0.0, 100.0, 200.0, 300.0, 400.0])
        .map(|(embedding, x)| NewFace {
            face_box: FaceBox { x, y: 0.0, width: 90.0, height: 90.0 },
            landmarks: "[]".to_owned(),
            score: 1.0,
            quality: "{}".to_owned(),
            embedding: Some(embedding),
            crop: None,
        })
        .collect();
    let named = PersonRef::External { external_id: name, name: None, description: None };
    let person = persons::find_or_create(txn, collection, &named).await?.context("a new person")?.id;
    for face in faces::place(txn, origin, &new).await? {
        faces::assign(txn, face.id, person, AssignedBy::Enrolled).await?;
    }
    Ok(person)
}
