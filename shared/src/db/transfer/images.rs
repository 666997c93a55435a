//! The pictures of a file in a collection, with what looked at them and the places at which they were listed.

use std::collections::{BTreeMap, HashMap, HashSet};

use sea_orm::prelude::*;
use serde_json::json;

use super::export::ExportedImage;
use super::persons::{substitute, taken};
use crate::db::rows::{self, Column, Rows};
use crate::db::{execute, images};
use crate::ids::{CollectionId, ImageId};
use crate::transfer::{ImageLine, PlaceLine};

/// A picture of the file as it is stored.
pub(super) struct StoredImage {
    pub(super) id: ImageId,
    pub(super) is_new: bool,
}

/// Adds the pictures that are not there, and holds all of them: nobody else adds faces to them until the transaction ends.
pub(super) async fn write_images(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    lines: &[ExportedImage],
) -> Result<Vec<StoredImage>, DbErr> {
    let known = known_images(txn, collection, lines).await?;
    let new = || lines.iter().map(|(image, ..)| image).filter(|image| !known.contains_key(&image.sha256));
    let used = taken(txn, "images", new().map(|image| image.id.0)).await?;
    let id = |image: &ImageLine| match known.get(&image.sha256) {
        // What is there stops the row before its id counts.
        Some(_) => ImageId::new(),
        None if used.contains(&image.id.0) => ImageId(substitute(collection, image.id.0)),
        None => image.id,
    };
    let row = |image: &ImageLine| {
        let id = id(image);
        // Those that lay in the exporter's own store have a key under which nothing lies.
        let key = image.uri.is_none().then(|| format!("collections/{collection}/imported/{id}"));
        json!({
            "id": rows::id(id.0), "sha256": image.sha256, "object_key": key, "uri": image.uri,
            "width": image.width, "height": image.height, "captured_at": image.captured_at,
            "gone_at": image.gone_at, "created_at": image.created_at,
        })
    };
    let mut sorted: Vec<&ImageLine> = lines.iter().map(|(image, ..)| image).collect();
    // As whoever else locks several does.
    sorted.sort_unstable_by(|a, b| a.sha256.cmp(&b.sha256));
    sorted.dedup_by(|a, b| a.sha256 == b.sha256);
    let rows = Rows::new(&IMAGE, sorted.iter().map(|image| row(image)).collect());
    let sql = format!(
        "INSERT INTO images (id, collection_id, sha256, object_key, uri, width, height, captured_at, gone_at, created_at)
         SELECT r.id, $2, r.sha256, r.object_key, r.uri, r.width, r.height, r.captured_at, r.gone_at, r.created_at
         FROM {} WHERE TRUE
         ON CONFLICT (collection_id, sha256) DO UPDATE
            SET captured_at = COALESCE(images.captured_at, excluded.captured_at)",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value(), collection.into()]).await?;
    // Who came first between the two statements counts.
    let stored = known_images(txn, collection, lines).await?;
    let mut seen = HashSet::new();
    let image = |(line, ..): &ExportedImage| {
        let found = *stored.get(&line.sha256).ok_or(DbErr::RecordNotInserted)?;
        let is_new = !known.contains_key(&line.sha256) && found == id(line) && seen.insert(found);
        Ok(StoredImage { id: found, is_new })
    };
    let ids: Vec<StoredImage> = lines.iter().map(image).collect::<Result<_, DbErr>>()?;
    write_analyses(txn, lines, &ids).await?;
    Ok(ids)
}

const IMAGE: [(&str, Column); 9] = [
    ("id", Column::Id),
    ("sha256", Column::Text),
    ("object_key", Column::Text),
    ("uri", Column::Text),
    ("width", Column::Integer),
    ("height", Column::Integer),
    ("captured_at", Column::Text),
    ("gone_at", Column::Integer),
    ("created_at", Column::Integer),
];

async fn known_images(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    lines: &[ExportedImage],
) -> Result<HashMap<String, ImageId>, DbErr> {
    use crate::db::entity::image::{Column, Entity};
    let digests = lines.iter().map(|(image, ..)| image.sha256.as_str());
    let query = Entity::find().filter(Column::CollectionId.eq(collection)).filter(Column::Sha256.is_in(digests));
    Ok(query.all(txn).await?.into_iter().map(|image| (image.sha256, image.id)).collect())
}

async fn write_analyses(txn: &impl ConnectionTrait, lines: &[ExportedImage], ids: &[StoredImage]) -> Result<(), DbErr> {
    let mut by_revision: BTreeMap<&str, Vec<(ImageId, usize)>> = BTreeMap::new();
    for ((image, ..), stored) in lines.iter().zip(ids) {
        for (revision, faces) in &image.analyses {
            let faces = usize::try_from(*faces).unwrap_or_default();
            by_revision.entry(revision).or_default().push((stored.id, faces));
        }
    }
    for (revision, analysed) in by_revision {
        images::record_analyses(txn, revision, &analysed).await?;
    }
    Ok(())
}

/// Notes the places of pictures, where nothing is known of what lies there.
pub(super) async fn write_places(
    txn: &impl ConnectionTrait,
    collection: CollectionId,
    lines: &[ExportedImage],
    ids: &[StoredImage],
) -> Result<u64, DbErr> {
    let of_image = |((_, places, _), stored): (&ExportedImage, &StoredImage)| {
        let image = rows::id(stored.id.0);
        let row = |place: &PlaceLine| json!({ "uri": place.uri, "fingerprint": place.fingerprint, "image_id": image });
        places.iter().map(row).collect::<Vec<_>>()
    };
    let columns = &[("uri", Column::Text), ("fingerprint", Column::Text), ("image_id", Column::Id)];
    let rows = Rows::new(columns, lines.iter().zip(ids).flat_map(of_image).collect());
    let sql = format!(
        "INSERT INTO image_sources (collection_id, uri, fingerprint, image_id, seen_at)
         SELECT $2, r.uri, r.fingerprint, r.image_id, {{now}} FROM {} WHERE TRUE ON CONFLICT DO NOTHING",
        rows.table(txn)
    );
    execute(txn, &sql, [rows.value(), collection.into()]).await
}
