//! Queries on images and on which detector revisions have analysed them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sea_orm::prelude::*;
use sea_orm::{Condition, FromQueryResult, QueryFilter};
use serde_json::json;

use super::entity::image::{self, Entity, Model};
use super::rows::{self, Column, Rows};
use super::{Db, count, execute, faces, placeholders, statement};
use crate::ids::{CollectionId, ImageId, PersonId};

/// The image of that id in that collection.
pub async fn find(conn: &impl ConnectionTrait, collection: CollectionId, id: ImageId) -> Result<Option<Model>, DbErr> {
    Entity::find_by_id(id).filter(image::Column::CollectionId.eq(collection)).one(conn).await
}

/// The image with those bytes in that collection.
pub async fn find_by_sha256(
    conn: &impl ConnectionTrait,
    collection: CollectionId,
    sha256: &str,
) -> Result<Option<Model>, DbErr> {
    Entity::find()
        .filter(image::Column::CollectionId.eq(collection))
        .filter(image::Column::Sha256.eq(sha256))
        .one(conn)
        .await
}

/// A picture's bytes, and where they lie.
#[derive(Clone, Debug, Default)]
pub struct ImageSource {
    /// SHA-256 of the bytes, lower-case hex.
    pub sha256: String,
    /// Its key in our object store; `None` where it lies elsewhere.
    pub object_key: Option<String>,
    /// Where it lies, when not in our object store.
    pub uri: Option<String>,
    /// What stood for its bytes there when it was listed.
    pub fingerprint: Option<String>,
    /// When it was taken, as [`Model::captured_at`] has it.
    pub captured_at: Option<String>,
}

/// The image with those bytes, made where it is new; its size is in upright pixels. Until the
/// transaction ends, others that want the same image wait: what is read of its faces stays true.
pub async fn find_or_create(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    source: &ImageSource,
    size: [u32; 2],
) -> Result<Model, DbErr> {
    let found = find_or_create_all(txn, collection, &[(source, size)]).await?;
    found.into_iter().next().map(|(image, _)| image).ok_or(DbErr::RecordNotInserted)
}

/// The same for many images of different bytes, in the order given, each with whether it is new. Images are locked in the
/// order of their bytes' digests, so that two who want the same ones never wait for each other in a circle.
pub async fn find_or_create_all(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    wanted: &[(&ImageSource, [u32; 2])],
) -> Result<Vec<(Model, bool)>, DbErr> {
    let mut sorted: Vec<_> = wanted.iter().map(|wanted| (ImageId::new(), wanted)).collect();
    sorted.sort_unstable_by(|(_, (a, _)), (_, (b, _))| a.sha256.cmp(&b.sha256));
    let row = |(new, (source, [width, height])): &(ImageId, &(&ImageSource, [u32; 2]))| {
        json!({
            "id": rows::id(new.0), "sha256": source.sha256, "object_key": source.object_key, "uri": source.uri,
            "width": width, "height": height, "captured_at": source.captured_at,
        })
    };
    let rows = Rows::new(&NEW_IMAGE, sorted.iter().map(row).collect());
    let sql = format!(
        "INSERT INTO images (id, collection_id, sha256, object_key, uri, width, height, captured_at, created_at)
         SELECT r.id, $2, r.sha256, r.object_key, r.uri, r.width, r.height, r.captured_at, {{now}} FROM {} WHERE TRUE
         ON CONFLICT (collection_id, sha256) DO UPDATE
            SET captured_at = COALESCE(images.captured_at, excluded.captured_at), gone_at = NULL
         RETURNING id, collection_id, sha256, object_key, uri, width, height, captured_at, created_at, gone_at",
        rows.table(txn)
    );
    let found = Model::find_by_statement(statement(txn, &sql, [rows.value(), collection.into()])).all(txn).await?;
    let mut found: HashMap<String, Model> = found.into_iter().map(|image| (image.sha256.clone(), image)).collect();
    let new: HashSet<ImageId> = sorted.into_iter().map(|(id, _)| id).collect();
    let mut image = |(source, _): &(&ImageSource, [u32; 2])| {
        let image = found.remove(&source.sha256).ok_or(DbErr::RecordNotInserted)?;
        let is_new = new.contains(&image.id);
        Ok((image, is_new))
    };
    wanted.iter().map(&mut image).collect()
}

const NEW_IMAGE: [(&str, Column); 7] = [
    ("id", Column::Id),
    ("sha256", Column::Text),
    ("object_key", Column::Text),
    ("uri", Column::Text),
    ("width", Column::Integer),
    ("height", Column::Integer),
    ("captured_at", Column::Text),
];

/// Where a picture of unknown date stands among others in the order of their capture times: behind them.
const UNDATED: &str = "undated";

impl Model {
    /// Its place in the order of capture times; equal ones are in the order of their ids.
    pub fn capture_order(&self) -> &str {
        self.captured_at.as_deref().unwrap_or(UNDATED)
    }
}

/// Up to `limit` images that show the person, in the order of their capture times, those after `after` (see
/// [`Model::capture_order`]). Faces that are hidden do not count.
pub async fn of_person(
    db: &Db,
    collection: CollectionId,
    person: PersonId,
    after: Option<(String, ImageId)>,
    limit: u64,
) -> Result<Vec<Model>, DbErr> {
    let order = format!("COALESCE(i.captured_at, '{UNDATED}')");
    let from = if after.is_some() { format!("AND ({order}, i.id) > ($3, $4)") } else { String::new() };
    let sql = format!(
        "SELECT i.* FROM images i WHERE i.collection_id = $1
            AND i.id IN (SELECT f.image_id FROM faces f JOIN collections c ON c.id = f.collection_id
                WHERE f.person_id = $2 AND NOT f.hidden AND {}) {from}
         ORDER BY {order}, i.id LIMIT {limit}",
        faces::SHOWN
    );
    let after = after.into_iter().flat_map(|(captured_at, id)| [Value::from(captured_at), id.into()]);
    let values = [collection.into(), person.into()].into_iter().chain(after);
    Model::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await
}

/// What is known of an image's times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PictureTimes {
    /// See [`Model::captured_at`].
    pub captured_at: Option<String>,
    /// See [`Model::gone_at`].
    pub gone_at: Option<i64>,
}

/// When these images were taken, and since when they are gone, of those of which either is known.
pub async fn times(conn: &impl ConnectionTrait, images: &[ImageId]) -> Result<HashMap<ImageId, PictureTimes>, DbErr> {
    if images.is_empty() {
        return Ok(HashMap::new());
    }
    let is_timed =
        Condition::any().add(image::Column::CapturedAt.is_not_null()).add(image::Column::GoneAt.is_not_null());
    let query = Entity::find().filter(image::Column::Id.is_in(images.iter().copied()));
    let times = |i: Model| (i.id, PictureTimes { captured_at: i.captured_at, gone_at: i.gone_at });
    Ok(query.filter(is_timed).all(conn).await?.into_iter().map(times).collect())
}

/// Notes that a detector revision has analysed these images and found so many faces; returns those of which that was
/// noted before.
pub async fn record_analyses(
    txn: &impl ConnectionTrait,
    detector_revision: &str,
    analysed: &[(ImageId, usize)],
) -> Result<HashSet<ImageId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        image_id: ImageId,
    }
    let row = |(image, faces): &(ImageId, usize)| json!({ "image_id": rows::id(image.0), "faces": faces });
    let rows = Rows::new(&[("image_id", Column::Id), ("faces", Column::Integer)], analysed.iter().map(row).collect());
    let sql = format!(
        "INSERT INTO image_analyses (image_id, detector_revision, faces, analysed_at)
         SELECT r.image_id, $2, r.faces, {{now}} FROM {} WHERE TRUE ON CONFLICT DO NOTHING RETURNING image_id",
        rows.table(txn)
    );
    let new = Row::find_by_statement(statement(txn, &sql, [rows.value(), detector_revision.into()])).all(txn).await?;
    let new: HashSet<ImageId> = new.into_iter().map(|row| row.image_id).collect();
    Ok(analysed.iter().map(|(image, _)| *image).filter(|image| !new.contains(image)).collect())
}

/// Remembers what lies at these places, and since when, so that a batch that lists them again need not fetch them. One that
/// is no picture has no image.
pub async fn remember_sources(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    seen: impl IntoIterator<Item = (Option<&str>, Option<&str>, Option<ImageId>)>,
) -> Result<(), DbErr> {
    let mut by_uri = BTreeMap::new();
    for (uri, fingerprint, image) in seen {
        if let (Some(uri), Some(fingerprint)) = (uri, fingerprint) {
            let image = rows::id(image.map(|image| image.0));
            by_uri.insert(uri, json!({ "uri": uri, "fingerprint": fingerprint, "image_id": image }));
        }
    }
    if by_uri.is_empty() {
        return Ok(());
    }
    let columns = &[("uri", Column::Text), ("fingerprint", Column::Text), ("image_id", Column::Id)];
    let rows = Rows::new(columns, by_uri.into_values().collect());
    let sql = format!(
        "INSERT INTO image_sources (collection_id, uri, fingerprint, image_id, seen_at)
         SELECT $2, r.uri, r.fingerprint, r.image_id, {{now}} FROM {} WHERE TRUE
         ON CONFLICT (collection_id, uri) DO UPDATE SET fingerprint = excluded.fingerprint,
            image_id = excluded.image_id, seen_at = CASE
                WHEN image_sources.image_id IS NOT DISTINCT FROM excluded.image_id THEN image_sources.seen_at
                ELSE excluded.seen_at END",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value(), collection.into()]).await?;
    Ok(())
}

/// Remembers where these pictures were found: as [`remember_sources`], and what no listing has named too, so that an image
/// which a client sent, or named by another place, is not taken for gone when its file is.
pub async fn remember_found(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    found: &[(&ImageSource, ImageId)],
) -> Result<(), DbErr> {
    let place = |(source, image): &(&ImageSource, ImageId)| {
        let ImageSource { uri, fingerprint, object_key, sha256, .. } = source;
        match (uri, fingerprint) {
            (Some(uri), None) => Some((uri.clone(), *image)),
            (None, _) if object_key.is_some() => Some((format!("{SENT}{sha256}"), *image)),
            _ => None,
        }
    };
    let unlisted: BTreeMap<String, ImageId> = found.iter().filter_map(place).collect();
    if !unlisted.is_empty() {
        let row = |(uri, image): (String, ImageId)| json!({ "uri": uri, "image_id": rows::id(image.0) });
        let columns = &[("uri", Column::Text), ("image_id", Column::Id)];
        let rows = Rows::new(columns, unlisted.into_iter().map(row).collect());
        // One of our own store is never gone, and where an image was found first its own row says. `CROSS` has SQLite begin with
        // the few rows.
        let sql = format!(
            "INSERT INTO image_sources (collection_id, uri, fingerprint, image_id, seen_at)
             SELECT $2, r.uri, '{UNLISTED}', i.id, {{now}} FROM {} CROSS JOIN images i
             WHERE i.id = r.image_id AND i.object_key IS NULL AND i.uri IS DISTINCT FROM r.uri
             ON CONFLICT (collection_id, uri) DO UPDATE
                SET fingerprint = excluded.fingerprint, image_id = excluded.image_id, seen_at = excluded.seen_at
                WHERE image_sources.image_id IS DISTINCT FROM excluded.image_id",
            rows.table(txn)
        );
        execute(txn, &sql, [rows.value(), collection.into()]).await?;
    }
    let listed = found.iter().map(|(s, image)| (s.uri.as_deref(), s.fingerprint.as_deref(), Some(*image)));
    remember_sources(txn, collection, listed).await
}

/// What stands for the bytes at a place that no listing named: none that does ever says so.
pub(super) const UNLISTED: &str = "(not listed)";
/// How the place of a picture begins that a client sent, and that lay somewhere else before; no listing names such a place.
pub(super) const SENT: &str = "sent:";

/// Notes that images which were taken for gone are there, and locks them until the transaction ends; false when one of them
/// was deleted.
pub async fn returned(txn: &impl ConnectionTrait, images: &[ImageId]) -> Result<bool, DbErr> {
    let images: BTreeSet<ImageId> = images.iter().copied().collect();
    if images.is_empty() {
        return Ok(true);
    }
    let list = placeholders(1, images.len());
    let values = || images.iter().map(|id| Value::from(*id));
    // A sweep that marks one at this moment is waited for, so that its mark is seen.
    let lock = format!("SELECT id FROM images WHERE id IN ({list}) ORDER BY id {{for update}}");
    let locked = txn.query_all_raw(statement(txn, &lock, values())).await?;
    let sql = format!("UPDATE images SET gone_at = NULL WHERE gone_at IS NOT NULL AND id IN ({list})");
    execute(txn, &sql, values()).await?;
    Ok(locked.len() == images.len())
}

/// Whether a detector revision has analysed the image.
pub async fn is_analysed(conn: &impl ConnectionTrait, image: ImageId, detector_revision: &str) -> Result<bool, DbErr> {
    let sql = "SELECT count(*) AS n FROM image_analyses WHERE image_id = $1 AND detector_revision = $2";
    Ok(count(conn, sql, [image.into(), detector_revision.into()]).await? > 0)
}

/// Whether what lies at a place with that fingerprint shows a face that was enrolled for the person of that external id.
pub async fn is_enrolled_from(
    conn: &impl ConnectionTrait,
    collection: CollectionId,
    (uri, fingerprint): (&str, &str),
    external_id: &str,
) -> Result<bool, DbErr> {
    let sql = "SELECT count(*) AS n FROM image_sources s
        JOIN faces f ON f.image_id = s.image_id AND f.assigned_by = 'enrolled'
        JOIN persons p ON p.id = f.person_id AND p.external_id = $4
        WHERE s.collection_id = $1 AND s.uri = $2 AND s.fingerprint = $3";
    Ok(count(conn, sql, [collection.into(), uri.into(), fingerprint.into(), external_id.into()]).await? > 0)
}

/// Locks the image: a job that stores faces of it at this moment is waited for.
pub(super) async fn lock(txn: &impl ConnectionTrait, image: ImageId) -> Result<(), DbErr> {
    let sql = "SELECT count(*) AS n FROM (SELECT id FROM images WHERE id = $1 {for update}) AS locked";
    count(txn, sql, [image.into()]).await?;
    Ok(())
}

/// Locks these images as [`lock`] does; returns those that are there.
pub(super) async fn lock_all(txn: &impl ConnectionTrait, images: &[ImageId]) -> Result<HashSet<ImageId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: ImageId,
    }
    if images.is_empty() {
        return Ok(HashSet::new());
    }
    // In the order in which those are locked that are stored together.
    let sql =
        format!("SELECT id FROM images WHERE id IN ({}) ORDER BY sha256 {{for update}}", placeholders(1, images.len()));
    let locked =
        Row::find_by_statement(statement(txn, &sql, images.iter().map(|id| Value::from(*id)))).all(txn).await?;
    Ok(locked.into_iter().map(|row| row.id).collect())
}

/// Whether any detector has analysed the image: else only single faces of it were stored.
pub(super) async fn is_analysed_by_any(conn: &impl ConnectionTrait, image: ImageId) -> Result<bool, DbErr> {
    let sql = "SELECT count(*) AS n FROM image_analyses WHERE image_id = $1";
    Ok(count(conn, sql, [image.into()]).await? > 0)
}

/// Deletes the locked image if no face and no analysis is left of it, and leaves its object to the sweeper.
pub(super) async fn delete_if_empty(txn: &impl ConnectionTrait, image: ImageId) -> Result<(), DbErr> {
    let empty = "id = $1 AND NOT EXISTS (SELECT 1 FROM faces f WHERE f.image_id = images.id)
        AND NOT EXISTS (SELECT 1 FROM image_analyses a WHERE a.image_id = images.id)";
    let orphan = format!(
        "INSERT INTO orphaned_objects (object_key) SELECT object_key FROM images
         WHERE {empty} AND object_key IS NOT NULL AND NOT EXISTS (SELECT 1 FROM uploads u WHERE u.object_key = images.object_key)
         ON CONFLICT DO NOTHING"
    );
    execute(txn, &orphan, [image.into()]).await?;
    execute(txn, &format!("DELETE FROM images WHERE {empty}"), [image.into()]).await?;
    Ok(())
}
