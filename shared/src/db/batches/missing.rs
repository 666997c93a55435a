//! Places that the collection knows and a listing does not meet: found page by page, as listings are in the order of the
//! places' bytes, and judged by [`super::sweep`] once the listing is complete.

use std::borrow::Cow;
use std::collections::HashSet;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde_json::json;

use super::listing::Listed;
use crate::batch::{Checkpoint, is_picture_name};
use crate::db::entity::batch::Model;
use crate::db::rows::{Column, Rows};
use crate::db::{Db, execute, statement};
use crate::job::ImageRef;

/// Known places that are compared at once.
const SLICE: usize = 1000;
/// Slices of one turn: other batches want theirs.
const SLICES: usize = 16;

/// What a page says of places that it does not name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// How every place begins that the whole listing would name.
    pub prefix: String,
    /// Places that could not be looked at: nothing is said of them, nor of what lies below them. `None`: too many.
    pub unread: Option<Vec<String>>,
    /// Folders that hold nothing. One below which the collection knows pictures counts as unread: a disk may be away.
    pub empty: Vec<String>,
}

impl Coverage {
    /// Of a folder, by its real path.
    pub fn of_folder(folder: &str) -> Self {
        Self::of(format!("file://{}/", folder.trim_end_matches('/')))
    }

    /// Of an `s3://bucket/prefix`.
    pub fn of_s3(prefix: &str) -> Self {
        // Without the slash another bucket's name could begin like this one's.
        let is_bucket = !prefix.trim_start_matches("s3://").contains('/');
        Self::of(if is_bucket { format!("{prefix}/") } else { prefix.to_owned() })
    }

    fn of(prefix: String) -> Self {
        Self { prefix, unread: Some(Vec::new()), empty: Vec::new() }
    }

    /// Whether a listing that does not name the place says that it is not there.
    fn denies(&self, place: &str) -> bool {
        let Some(below) = place.strip_prefix(&self.prefix) else { return false };
        let is_unread = |unread: &String| {
            place.strip_prefix(unread.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        // A manifest may have named what a listing passes over.
        let is_passed_over = below.split('/').any(|part| part.starts_with('.')) && place.starts_with("file://");
        let Some(unread) = &self.unread else { return false };
        is_picture_name(place) && !is_passed_over && !unread.iter().any(is_unread)
    }
}

/// Notes the known places between the batch's checkpoint and the end of this page that the page says are not there; the last
/// that was compared, when there are more than are compared in one turn. May be done again for the same page; whether the
/// places are really gone is looked at when they are judged.
pub async fn note(db: &Db, batch: &Model, listed: &Listed) -> Result<Option<String>, DbErr> {
    let Some(coverage) = listed.coverage.as_ref().filter(|c| c.unread.is_some()) else { return Ok(None) };
    let named: HashSet<String> = listed.items.iter().filter_map(ImageRef::uri).collect();
    let end = listed.checkpoint.after.as_deref().filter(|_| !listed.is_last).map(place);
    let Checkpoint { after, compared, .. } = batch.checkpoint()?;
    let mut after = compared.or_else(|| after.as_deref().map(place)).unwrap_or_default();
    if !after.starts_with(&coverage.prefix) {
        after.clone_from(&coverage.prefix);
    }
    for _ in 0..SLICES {
        let known = known_after(db, batch, &after).await?;
        let is_full = known.len() == SLICE;
        let is_within = |uri: &&String| {
            uri.starts_with(&coverage.prefix) && end.as_ref().is_none_or(|end| uri.as_str() <= end.as_str())
        };
        let within: Vec<&String> = known.iter().take_while(is_within).collect();
        let is_end = !is_full || within.len() < known.len();
        let missing = within.into_iter().filter(|uri| coverage.denies(uri) && !named.contains(*uri));
        insert(db, batch, missing).await?;
        match known.into_iter().next_back() {
            Some(last) if !is_end => after = last,
            _ => return Ok(None),
        }
    }
    Ok(Some(after))
}

/// The page, in which each empty folder counts as unread below which the collection knows a picture.
pub(super) async fn with_emptied<'a>(db: &Db, batch: &Model, listed: &'a Listed) -> Result<Cow<'a, Listed>, DbErr> {
    let empty = listed.coverage.iter().flat_map(|coverage| &coverage.empty);
    let emptied = emptied(db, batch, empty).await?;
    let Some(first) = emptied.first() else { return Ok(Cow::Borrowed(listed)) };
    let first = first.trim_start_matches("file://");
    let why =
        format!("{first}: it is empty, and held pictures before; mount its disk, or delete it if they are deleted");
    let mut listed = listed.clone();
    listed.checkpoint.skipped += emptied.len() as u64;
    listed.checkpoint.first_skipped.get_or_insert(why);
    if let Some(unread) = listed.coverage.as_mut().and_then(|coverage| coverage.unread.as_mut()) {
        unread.extend(emptied);
    }
    Ok(Cow::Owned(listed))
}

async fn emptied(db: &Db, batch: &Model, folders: impl Iterator<Item = &String>) -> Result<Vec<String>, DbErr> {
    let folders: Vec<_> = folders.map(|uri| json!({ "uri": uri })).collect();
    if folders.is_empty() {
        return Ok(Vec::new());
    }
    let rows = Rows::new(&[("uri", Column::Text)], folders);
    // What begins with a folder and a slash comes before the same with what follows a slash.
    let sql = format!(
        "SELECT r.uri FROM {} WHERE EXISTS (SELECT 1 FROM image_sources s WHERE s.collection_id = $2
            AND s.uri > r.uri || '/' AND s.uri < r.uri || '0' AND s.image_id IS NOT NULL)",
        rows.table(&db.read)
    );
    let values = [rows.value(), batch.collection_id.into()];
    let rows = Place::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await?;
    Ok(rows.into_iter().map(|row| row.uri).collect())
}

/// Whether the collection knows a place there from before the batch.
pub async fn knows_any(db: &Db, batch: &Model, coverage: &Coverage) -> Result<bool, DbErr> {
    let known = known_after(db, batch, &coverage.prefix).await?;
    Ok(known.first().is_some_and(|uri| uri.starts_with(&coverage.prefix)))
}

/// The place of what a checkpoint names.
fn place(after: &str) -> String {
    if after.starts_with("s3://") { after.to_owned() } else { format!("file://{after}") }
}

#[derive(FromQueryResult)]
struct Place {
    uri: String,
}

/// The next places, in the order of their bytes, that were known before the batch was made, less those of images that are
/// gone already.
async fn known_after(db: &Db, batch: &Model, after: &str) -> Result<Vec<String>, DbErr> {
    let sql = format!(
        "SELECT s.uri FROM image_sources s WHERE s.collection_id = $1 AND s.uri > $2 AND s.seen_at < $3
            AND NOT EXISTS (SELECT 1 FROM images i WHERE i.id = s.image_id AND i.gone_at IS NOT NULL)
         ORDER BY s.uri LIMIT {SLICE}"
    );
    let values = [batch.collection_id.into(), after.into(), batch.created_at.into()];
    let rows = Place::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await?;
    Ok(rows.into_iter().map(|row| row.uri).collect())
}

async fn insert(db: &Db, batch: &Model, missing: impl Iterator<Item = &String>) -> Result<(), DbErr> {
    let missing: Vec<_> = missing.map(|uri| json!({ "uri": uri })).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let rows = Rows::new(&[("uri", Column::Text)], missing);
    let sql = format!(
        "INSERT INTO batch_missing (batch_id, uri) SELECT $2, r.uri FROM {} WHERE TRUE ON CONFLICT DO NOTHING",
        rows.table(&db.write)
    );
    execute(&db.write, &sql, [rows.value(), batch.id.into()]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_denies_what_it_would_have_named() {
        let unread = Some(vec!["file:///p/shut".to_owned(), "file:///p/broken.jpg".to_owned()]);
        let folder = Coverage { unread, ..Coverage::of_folder("/p") };
        for gone in ["file:///p/a.jpg", "file:///p/shutter/a.jpg", "file:///p/x/b.PNG"] {
            assert!(folder.denies(gone), "{gone}");
        }
        for kept in [
            "file:///p/shut/a.jpg",
            "file:///p/broken.jpg",
            "file:///p/.hidden/a.jpg",
            "file:///p/a.tiff",
            "file:///pictures/a.jpg",
            "s3://p/a.jpg",
        ] {
            assert!(!folder.denies(kept), "{kept}");
        }
        assert!(!Coverage { unread: None, ..folder }.denies("file:///p/a.jpg"), "too much was not looked at");
        assert_eq!(Coverage::of_folder("/").prefix, "file:///");
        for (prefix, wanted) in [("s3://bkt", "s3://bkt/"), ("s3://bkt/", "s3://bkt/"), ("s3://bkt/a", "s3://bkt/a")] {
            assert_eq!(Coverage::of_s3(prefix).prefix, wanted);
        }
        assert!(Coverage::of_s3("s3://bkt/a").denies("s3://bkt/a.b/.c/d.jpg"));
    }
}
