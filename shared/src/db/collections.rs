//! Queries on collections.

use sea_orm::prelude::*;
use sea_orm::{ActiveValue::Set, FromQueryResult, QueryOrder, QuerySelect, SqlErr};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::entity::collection::{ActiveModel, Column, Entity, Model};
use super::{Db, count, execute, faces, is_postgres, models, now, rematches, scoped, statement, through_deadlocks};
use crate::access::Grant;
use crate::catalogue::Metric;
use crate::ids::CollectionId;

/// How a collection decides; stored as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CollectionSettings {
    /// How often an identify may name somebody for a face that nobody enrolled (false positive identification rate),
    /// whatever the size of the gallery. The threshold follows from it.
    #[schema(minimum = 1e-9, maximum = 0.5)]
    pub target_fpir: f64,
    /// How often a verify may call two persons' faces one person's (false accept rate).
    #[schema(minimum = 1e-9, maximum = 0.5)]
    pub verify_far: f64,
    /// The score from which on two faces match, in place of the one calculated from the rates: a cosine, -1 to 1; of a pipeline
    /// with the metric `euclidean` 1 less the distance, 1 at most.
    #[schema(maximum = 1)]
    pub match_cosine: Option<f32>,
    /// How many persons an identify names a face at most.
    #[serde(deserialize_with = "crate::whole::number")]
    #[schema(minimum = 1, maximum = 100)]
    pub max_matches: usize,
    /// Whether faces that nobody knows are put together where they look like one person.
    pub clustering: bool,
    /// Whether a crop of each face is kept, from which another model can make its vectors without the picture.
    pub keep_crops: bool,
    /// Whether enroll and identify look if a face is live, or a picture of one on paper or a screen.
    pub anti_spoofing: AntiSpoofingMode,
    /// The `live_score` that a face needs where that is required.
    #[schema(minimum = 0, maximum = 1)]
    pub min_live_score: f32,
}

/// What is done about pictures of faces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AntiSpoofingMode {
    /// Nothing; no model is needed.
    #[default]
    Off,
    /// The answer has each face's `live_score`.
    Score,
    /// A face below `min_live_score` is neither enrolled nor identified.
    Require,
}

impl Default for CollectionSettings {
    fn default() -> Self {
        Self {
            target_fpir: 0.01,
            verify_far: 0.001,
            match_cosine: None,
            max_matches: 5,
            clustering: true,
            keep_crops: true,
            anti_spoofing: AntiSpoofingMode::Off,
            min_live_score: 0.5,
        }
    }
}

impl CollectionSettings {
    /// Names the first setting that makes no sense with a pipeline of that metric, as (field, why).
    pub fn check(&self, metric: Metric) -> Result<(), (&'static str, &'static str)> {
        if !(1e-9..=0.5).contains(&self.target_fpir) {
            return Err(("target_fpir", "must lie between 1e-9 and 0.5"));
        }
        if !(1e-9..=0.5).contains(&self.verify_far) {
            return Err(("verify_far", "must lie between 1e-9 and 0.5"));
        }
        if self.match_cosine.is_some_and(|score| !metric.has(score)) {
            return Err(("match_cosine", metric.must()));
        }
        if !(0.0..=1.0).contains(&self.min_live_score) {
            return Err(("min_live_score", "must lie between 0 and 1"));
        }
        if !(1..=100).contains(&self.max_matches) {
            return Err(("max_matches", "must lie between 1 and 100"));
        }
        Ok(())
    }
}

/// Whether a collection may be called that: 1 to 64 letters, digits, `.`, `_` or `-`, and no UUID, which would be an id.
pub fn is_collection_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=64).contains(&name.len()) && name.chars().all(plain) && name.parse::<Uuid>().is_err()
}

impl Model {
    /// The stored settings.
    ///
    /// # Errors
    /// The row was written by something that is not face-id.
    pub fn settings(&self) -> Result<CollectionSettings, DbErr> {
        serde_json::from_str(&self.settings).map_err(|e| DbErr::Json(e.to_string()))
    }
}

/// How much a collection holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct CollectionCounts {
    pub persons: i64,
    pub faces: i64,
    pub images: i64,
    /// Faces without a person, less those that are hidden.
    pub unknown_faces: i64,
    /// Clusters of at least two faces that nobody named.
    pub clusters: i64,
}

/// What became of a collection that was to be made.
#[derive(Clone, Debug, PartialEq)]
pub enum Created {
    /// It is there.
    New(Box<Model>),
    /// Its name is taken.
    Taken,
    /// Its model is not registered.
    NoModel,
}

/// Makes a collection of a registered model, which stays registered from then on.
pub async fn create_of_registered(
    db: &Db,
    name: &str,
    pipeline: &str,
    settings: &CollectionSettings,
) -> Result<Created, DbErr> {
    let txn = db.begin().await?;
    if !models::hold(&txn, pipeline).await? {
        return Ok(Created::NoModel);
    }
    let Some(made) = insert(&txn, name, pipeline, settings).await? else { return Ok(Created::Taken) };
    txn.commit().await?;
    Ok(Created::New(Box::new(made)))
}

/// Makes a collection, of whatever pipeline; `None` when its name is taken.
pub async fn create(
    db: &Db,
    name: &str,
    pipeline: &str,
    settings: &CollectionSettings,
) -> Result<Option<Model>, DbErr> {
    insert(&db.write, name, pipeline, settings).await
}

async fn insert(
    conn: &impl ConnectionTrait,
    name: &str,
    pipeline: &str,
    settings: &CollectionSettings,
) -> Result<Option<Model>, DbErr> {
    let row = ActiveModel {
        id: Set(CollectionId::new()),
        name: Set(name.to_owned()),
        pipeline: Set(pipeline.to_owned()),
        settings: Set(to_json(settings)?),
        created_at: Set(now(conn).await?),
        hidden_revision: Set(None),
        shown_revision: Set(None),
        erased_at: Set(None),
    };
    match row.insert(conn).await {
        Ok(model) => Ok(Some(model)),
        Err(error) if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The collection of that id, if the grant holds for it.
pub async fn find(conn: &impl ConnectionTrait, grant: &Grant, id: CollectionId) -> Result<Option<Model>, DbErr> {
    Entity::find_by_id(id).filter(scoped::filter(grant, Column::Id)).one(conn).await
}

/// The collection of that name, if the grant holds for it.
pub async fn find_by_name(conn: &impl ConnectionTrait, grant: &Grant, name: &str) -> Result<Option<Model>, DbErr> {
    Entity::find().filter(Column::Name.eq(name)).filter(scoped::filter(grant, Column::Id)).one(conn).await
}

/// Up to `limit` collections of the grant whose id comes after `after`, in the order of their ids.
pub async fn list(db: &Db, grant: &Grant, after: Option<CollectionId>, limit: u64) -> Result<Vec<Model>, DbErr> {
    let mut query = Entity::find().filter(scoped::filter(grant, Column::Id)).order_by_asc(Column::Id).limit(limit);
    if let Some(after) = after {
        query = query.filter(Column::Id.gt(after));
    }
    query.all(&db.read).await
}

/// Replaces the settings where the collection still is what the caller takes it for; false, and nothing changed, where not, or
/// where it is not there. Where others decide from then on who matches, faces are matched again.
pub async fn update_settings(
    db: &Db,
    id: CollectionId,
    settings: &CollectionSettings,
    is_expected: impl Fn(&Model) -> bool,
) -> Result<bool, DbErr> {
    let txn = db.begin().await?;
    // Locked as the change locks it, so that two who have read the same do not both change it; jobs are not held up by it.
    lock(&txn, id, "FOR NO KEY UPDATE").await?;
    let Some(before) = find(&txn, &Grant::everything(), id).await? else { return Ok(false) };
    if !is_expected(&before) {
        return Ok(false);
    }
    let before = before.settings()?;
    let sql = "UPDATE collections SET settings = $1 WHERE id = $2";
    execute(&txn, sql, [to_json(settings)?.into(), id.into()]).await?;
    if (before.target_fpir, before.match_cosine) != (settings.target_fpir, settings.match_cosine) {
        rematches::request(&txn, id, None, None).await?;
    }
    txn.commit().await?;
    Ok(true)
}

/// The pipeline that the collection goes by: it stays that until the transaction ends. `None`: the collection is gone.
pub async fn hold_pipeline(txn: &impl ConnectionTrait, id: CollectionId) -> Result<Option<String>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        pipeline: String,
    }
    let lock = if is_postgres(txn) { "FOR KEY SHARE" } else { "" };
    let sql = format!("SELECT pipeline FROM collections WHERE id = $1 {lock}");
    let row = Row::find_by_statement(statement(txn, &sql, [id.into()])).one(txn).await?;
    Ok(row.map(|row| row.pipeline))
}

/// Keeps imports of the collection from beginning until the transaction ends, which is to erase something of it: one that is
/// about to begin is waited for. Jobs are not held up by it, nor are other erasures.
pub(super) async fn hold_from_imports(txn: &impl ConnectionTrait, id: CollectionId) -> Result<(), DbErr> {
    lock(txn, id, "FOR SHARE").await
}

/// Keeps erasures of something of the collection from being requested until the transaction ends, in which an import begins:
/// those that are being requested are waited for. Jobs are not held up by it.
pub(super) async fn hold_from_erasures(txn: &impl ConnectionTrait, id: CollectionId) -> Result<(), DbErr> {
    lock(txn, id, "FOR NO KEY UPDATE").await
}

/// Locks the collection's row in one of the ways of `PostgreSQL`; `SQLite`'s one writer needs none.
async fn lock(txn: &impl ConnectionTrait, id: CollectionId, how: &str) -> Result<(), DbErr> {
    let how = if is_postgres(txn) { how } else { "" };
    let sql = format!("SELECT count(*) AS n FROM (SELECT id FROM collections WHERE id = $1 {how}) AS locked");
    count(txn, &sql, [id.into()]).await?;
    Ok(())
}

/// Counts what the collection holds and shows.
pub async fn counts(db: &Db, id: CollectionId) -> Result<CollectionCounts, DbErr> {
    let of = async |rows: &str| {
        count(&db.read, &format!("SELECT count(*) AS n FROM {rows} AND collection_id = $1"), [id.into()]).await
    };
    let sql = "SELECT count(*) AS n FROM collections
        WHERE id = $1 AND (hidden_revision IS NOT NULL OR shown_revision IS NOT NULL)";
    // Only where there is something that is not shown, each face has to be looked at.
    let shown = if count(&db.read, sql, [id.into()]).await? > 0 {
        format!("faces f JOIN collections c ON c.id = f.collection_id WHERE {}", faces::SHOWN)
    } else {
        "faces f WHERE TRUE".to_owned()
    };
    Ok(CollectionCounts {
        persons: of("persons WHERE erased_at IS NULL").await?,
        faces: of(&shown).await?,
        images: of("images WHERE TRUE").await?,
        unknown_faces: of(&format!("{shown} AND f.person_id IS NULL AND NOT f.hidden")).await?,
        clusters: of("clusters WHERE person_id IS NULL AND faces > 1").await?,
    })
}

/// Jobs that are deleted in one transaction.
const SLICE: u32 = 5000;

/// Deletes the collection and all it holds at once and without a receipt; its objects are left to the sweeper. False when it
/// is not there.
pub async fn delete(db: &Db, id: CollectionId) -> Result<bool, DbErr> {
    delete_jobs(db, id).await?;
    through_deadlocks(|| delete_once(db, id)).await
}

/// There may be millions of them: these go in slices, what is left goes with the collection.
async fn delete_jobs(db: &Db, id: CollectionId) -> Result<(), DbErr> {
    let sql = format!(
        "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE collection_id = $1 ORDER BY id LIMIT {SLICE} {{for update}})"
    );
    while through_deadlocks(|| execute(&db.write, &sql, [id.into()])).await? >= u64::from(SLICE) {}
    Ok(())
}

async fn delete_once(db: &Db, id: CollectionId) -> Result<bool, DbErr> {
    let txn = db.begin().await?;
    let deleted = delete_in(&txn, id).await?;
    txn.commit().await?;
    Ok(deleted)
}

pub(super) async fn delete_in(txn: &impl ConnectionTrait, id: CollectionId) -> Result<bool, DbErr> {
    let orphan = "INSERT INTO orphaned_objects (object_key)
        SELECT object_key FROM images WHERE collection_id = $1 AND object_key IS NOT NULL
        UNION SELECT object_key FROM uploads WHERE collection_id = $1
        UNION SELECT object_key FROM crops WHERE collection_id = $1
        ON CONFLICT DO NOTHING";
    execute(txn, orphan, [id.into()]).await?;
    let deleted = execute(txn, "DELETE FROM collections WHERE id = $1", [id.into()]).await?;
    // A claim whose jobs are gone would be found expired for ever.
    execute(txn, "DELETE FROM claims WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE claim_id = claims.id)", []).await?;
    Ok(deleted > 0)
}

fn to_json(settings: &CollectionSettings) -> Result<String, DbErr> {
    serde_json::to_string(settings).map_err(|e| DbErr::Json(e.to_string()))
}
