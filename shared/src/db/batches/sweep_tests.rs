//! Places that are gone, on both databases: found by the order of their bytes whatever the pages are, and judged once.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::deltas::{Folded, fold};
use super::listing::{self, Listed};
use super::missing::Coverage;
use super::sweep;
use super::tests::{REVISION, begin, end, found, jobs_of, new_batch_that, on_both};
use super::{control, missing};
use crate::access::Grant;
use crate::batch::Checkpoint;
use crate::db::entity::batch::{OnGone, Sweep};
use crate::db::faces::{NewFace, Origin};
use crate::db::images::{self, ImageSource};
use crate::db::jobs::settle::Outcome;
use crate::db::{Db, count, execute, faces};
use crate::ids::{BatchId, CollectionId, ImageId};
use crate::job::{FaceBox, ImageRef, Problem};

/// Names of which some come in another order by the rules of a language.
const NAMES: [&str; 9] = ["B.jpg", "a-1.jpg", "a.jpg", "a/1.jpg", "a/b/2.jpg", "a0.jpg", "aé.jpg", "b.jpg", "é.jpg"];

fn uri(name: &str) -> String {
    format!("file:///photos/{name}")
}

/// An image at these places, which were known long before any batch.
async fn image_at(db: &Db, collection: CollectionId, names: &[&str]) -> ImageId {
    let txn = db.begin().await.unwrap();
    let sha256 = ImageId::new().to_string();
    let source = ImageSource { sha256, uri: names.first().map(|name| uri(name)), ..ImageSource::default() };
    let image = images::find_or_create(&txn, collection, &source, [10, 10]).await.unwrap().id;
    images::record_analyses(&txn, REVISION, &[(image, 0)]).await.unwrap();
    let places: Vec<String> = names.iter().map(|name| uri(name)).collect();
    let seen = places.iter().map(|place| (Some(place.as_str()), Some("f"), Some(image)));
    images::remember_sources(&txn, collection, seen).await.unwrap();
    txn.commit().await.unwrap();
    image
}

fn face() -> NewFace {
    NewFace {
        face_box: FaceBox { x: 0.0, y: 0.0, width: 5.0, height: 5.0 },
        landmarks: "[]".to_owned(),
        score: 0.9,
        quality: "{}".to_owned(),
        embedding: None,
        crop: None,
    }
}

async fn age(db: &Db) {
    execute(&db.write, "UPDATE image_sources SET seen_at = seen_at - 60000000", []).await.unwrap();
}

fn page(names: &[&str], is_last: bool) -> Listed {
    let item = |name: &&str| ImageRef::File { file: format!("/photos/{name}"), fingerprint: Some("f".to_owned()) };
    let after = names.last().map(|name| format!("/photos/{name}"));
    Listed {
        items: names.iter().map(item).collect(),
        checkpoint: Checkpoint { after, ..Checkpoint::default() },
        is_last,
        coverage: Some(Coverage::of_folder("/photos")),
    }
}

/// Lists these pictures to the end, so many a page.
async fn list(db: &Db, id: BatchId, names: &[&str], a_page: usize) {
    let pages: Vec<&[&str]> = names.chunks(a_page).collect();
    for (n, names) in pages.iter().enumerate() {
        let listed = page(names, n + 1 == pages.len());
        let batch = found(db, id).await.batch;
        // As a lister does that was cut off before it wrote the page's jobs.
        missing::note(db, &batch, &listed).await.unwrap();
        let mut turns = 0;
        while !listing::add(db, &found(db, id).await.batch, REVISION, 0, &listed).await.unwrap() {
            turns += 1;
            assert!(turns < 10, "the page is never added");
        }
    }
}

/// Ends every job of the batch as succeeded.
async fn work(db: &Db, id: BatchId) {
    let jobs = jobs_of(db, id).await;
    if !jobs.is_empty() {
        let claim = begin(db, &jobs).await.unwrap();
        for job in &claim.jobs {
            end(db, claim.id, job.job.id, &Outcome::Succeeded(json!({}))).await;
        }
    }
    while fold(db).await.unwrap() != Folded::Nothing {}
}

/// Sweeps with all that is missing gone, `slice` places at once; how many were moved, and how many are gone.
async fn swept(db: &Db, id: BatchId, slice: u64) -> (i64, i64) {
    while let Some(batch) = sweep::due(db, 100).await.unwrap().into_iter().find(|batch| batch.id == id) {
        let missing = sweep::missing(db, id, slice).await.unwrap();
        if missing.is_empty() {
            let doomed = sweep::conclude(db, &batch, "file:///photos/").await.unwrap();
            let images: Vec<ImageId> = doomed.iter().map(|image| image.id).collect();
            sweep::delete(db, &batch, &images, &[]).await.unwrap();
            continue;
        }
        assert!(sweep::judge(db, &batch, &missing, &[]).await.unwrap());
        // As a second worker does that sweeps too.
        assert!(sweep::judge(db, &batch, &missing, &[]).await.unwrap());
    }
    let batch = found(db, id).await.batch;
    assert_eq!(batch.sweep, Some(Sweep::Done));
    (batch.moved, batch.gone)
}

async fn places(db: &Db, collection: CollectionId) -> i64 {
    let sql = "SELECT count(*) AS n FROM image_sources WHERE collection_id = $1";
    count(&db.read, sql, [collection.into()]).await.unwrap()
}

async fn is_gone(db: &Db, collection: CollectionId, image: ImageId) -> Option<bool> {
    Some(images::find(&db.read, collection, image).await.unwrap()?.gone_at.is_some())
}

#[tokio::test]
async fn what_is_not_listed_is_found_whatever_the_pages() {
    on_both(async |db, collection| {
        for name in NAMES {
            image_at(db, collection, &[name]).await;
        }
        image_at(db, collection, &["../elsewhere.jpg"]).await;
        image_at(db, collection, &[".hidden/a.jpg"]).await;
        age(db).await;
        for listed in [&["a.jpg", "b.jpg"][..], &["B.jpg", "a-1.jpg", "a/b/2.jpg", "é.jpg"], &["aé.jpg"], &NAMES] {
            for a_page in [1, 2, 100] {
                let id = new_batch_that(db, collection, OnGone::Keep).await;
                list(db, id, listed, a_page).await;
                let wanted: Vec<String> = NAMES.iter().filter(|name| !listed.contains(name)).map(|n| uri(n)).collect();
                assert_eq!(sweep::missing(db, id, 100).await.unwrap(), wanted, "{listed:?}, {a_page} a page");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn many_places_are_compared_in_slices() {
    on_both(async |db, collection| {
        let sql = if crate::db::is_postgres(&db.write) {
            "INSERT INTO image_sources (collection_id, uri, fingerprint, seen_at)
             SELECT $1, 'file:///photos/' || lpad(n::text, 5, '0') || '.jpg', 'f', 0 FROM generate_series(1, 3500) n"
        } else {
            "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 3500)
             INSERT INTO image_sources (collection_id, uri, fingerprint, seen_at)
             SELECT $1, 'file:///photos/' || printf('%05d', n) || '.jpg', 'f', 0 FROM t"
        };
        execute(&db.write, sql, [collection.into()]).await.unwrap();
        let id = new_batch_that(db, collection, OnGone::Keep).await;
        list(db, id, &["00001.jpg", "03000.jpg"], 1).await;
        assert_eq!(sweep::missing(db, id, 10_000).await.unwrap().len(), 3498);
        work(db, id).await;
        assert_eq!(swept(db, id, 500).await, (0, 0), "what was no picture is forgotten, and no image is gone");
        assert_eq!(places(db, collection).await, 2);
    })
    .await;
}

#[tokio::test]
async fn each_image_is_judged_once() {
    on_both(async |db, collection| {
        let kept = image_at(db, collection, &["kept.jpg"]).await;
        let gone = image_at(db, collection, &["gone.jpg", "z-gone.jpg"]).await;
        let moved = image_at(db, collection, &["moved.jpg"]).await;
        let copied = image_at(db, collection, &["copied.jpg", "the-copy.jpg"]).await;
        let stored = image_at(db, collection, &["stored.jpg"]).await;
        let sql = "UPDATE images SET object_key = $1, uri = NULL WHERE id = $2";
        execute(&db.write, sql, [collection.to_string().into(), stored.into()]).await.unwrap();
        let unnamed = image_at(db, collection, &["unnamed.jpg"]).await;
        let sql = "UPDATE images SET uri = 's3://bucket/never-listed.jpg' WHERE id = $1";
        execute(&db.write, sql, [unnamed.into()]).await.unwrap();
        age(db).await;

        let id = new_batch_that(db, collection, OnGone::Keep).await;
        list(db, id, &["kept.jpg", "new-place.jpg", "the-copy.jpg"], 2).await;
        assert!(sweep::due(db, 100).await.unwrap().is_empty(), "the job of the new place has not run");
        let new_place = uri("new-place.jpg");
        let txn = db.begin().await.unwrap();
        images::remember_sources(&txn, collection, [(Some(new_place.as_str()), Some("f"), Some(moved))]).await.unwrap();
        txn.commit().await.unwrap();
        work(db, id).await;
        assert_eq!(control::finish(db).await.unwrap(), [], "not before the places are judged");
        assert_eq!(swept(db, id, 2).await, (1, 1));
        assert_eq!(control::finish(db).await.unwrap(), [id]);
        let mut marks = BTreeMap::new();
        for (name, image) in [("kept", kept), ("gone", gone), ("moved", moved), ("copied", copied), ("stored", stored)]
        {
            marks.insert(name, is_gone(db, collection, image).await);
        }
        let wanted = ["copied", "gone", "kept", "moved", "stored"].map(|name| (name, Some(name == "gone")));
        assert_eq!(marks.into_iter().collect::<Vec<_>>(), wanted);
        assert_eq!(is_gone(db, collection, unnamed).await, Some(false), "where it was found first nobody has looked");
        let row = images::find(&db.read, collection, moved).await.unwrap().unwrap();
        assert_eq!(row.uri, Some(new_place), "it is shown where it lies");

        // The disk is mounted again: what it holds is known by its fingerprint.
        let id = new_batch_that(db, collection, OnGone::Keep).await;
        list(db, id, &["kept.jpg", "new-place.jpg", "the-copy.jpg", "z-gone.jpg"], 10).await;
        let batch = found(db, id).await.batch;
        assert_eq!((batch.unchanged, is_gone(db, collection, gone).await), (4, Some(false)));
    })
    .await;
}

#[tokio::test]
async fn gone_images_are_deleted_with_their_faces_when_all_was_seen() {
    on_both(async |db, collection| {
        let earlier = image_at(db, collection, &["earlier.jpg"]).await;
        let elsewhere = image_at(db, collection, &["elsewhere.jpg"]).await;
        let sql = "UPDATE images SET uri = 'file:///other/elsewhere.jpg' WHERE id = $1";
        execute(&db.write, sql, [elsewhere.into()]).await.unwrap();
        let sql = "UPDATE images SET gone_at = 1 WHERE id IN ($1, $2)";
        execute(&db.write, sql, [earlier.into(), elsewhere.into()]).await.unwrap();
        let now = image_at(db, collection, &["now.jpg"]).await;
        age(db).await;
        let txn = db.begin().await.unwrap();
        let origin = Origin { collection, image: now, detector_revision: REVISION, pipeline: "tiny" };
        faces::place(&txn, origin, &[face()]).await.unwrap();
        txn.commit().await.unwrap();

        let id = new_batch_that(db, collection, OnGone::Delete).await;
        list(db, id, &["fails.jpg"], 1).await;
        let claim = begin(db, &jobs_of(db, id).await).await.unwrap();
        let why = Problem::new("attempts_exhausted", "a test");
        end(db, claim.id, claim.jobs[0].job.id, &Outcome::Failed(why)).await;
        while fold(db).await.unwrap() != Folded::Nothing {}
        assert_eq!(swept(db, id, 10).await, (0, 1));
        let batch = found(db, id).await.batch;
        assert!(batch.problem.unwrap().contains("gone_kept"), "any of them may be what could not be read");
        assert_eq!(is_gone(db, collection, now).await, Some(true));
        assert_eq!(control::finish(db).await.unwrap(), [id]);

        assert!(control::change(db, &Grant::everything(), id, control::Wish::Retry).await.unwrap());
        while control::reopen_slice(db, id).await.unwrap() {}
        work(db, id).await;
        assert_eq!(swept(db, id, 10).await, (0, 2), "the one of before is counted once it is deleted");
        assert!(found(db, id).await.batch.problem.is_none());
        assert_eq!((is_gone(db, collection, now).await, is_gone(db, collection, earlier).await), (None, None));
        assert_eq!(is_gone(db, collection, elsewhere).await, Some(true), "it lay somewhere else");
        let faces = count(&db.read, "SELECT count(*) AS n FROM faces WHERE collection_id = $1", [collection.into()]);
        assert_eq!(faces.await.unwrap(), 0);
        assert_eq!(sweep::missing(db, id, 10).await.unwrap(), Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn nothing_is_judged_unless_the_listing_is_complete() {
    on_both(async |db, collection| {
        let image = image_at(db, collection, &["gone.jpg"]).await;
        image_at(db, collection, &["z.jpg"]).await;
        age(db).await;
        let id = new_batch_that(db, collection, OnGone::Delete).await;
        let batch = found(db, id).await.batch;
        assert!(listing::add(db, &batch, REVISION, 0, &page(&["z.jpg"], false)).await.unwrap());
        listing::give_up(db, id, &Problem::new("source_gone", "a test")).await.unwrap();
        assert!(sweep::due(db, 10).await.unwrap().is_empty(), "the listing was given up");
        assert_eq!(control::finish(db).await.unwrap(), [id]);
        assert_eq!(is_gone(db, collection, image).await, Some(false));

        // Tried again it goes on behind the page, and what that page did not meet is judged.
        assert!(control::change(db, &Grant::everything(), id, control::Wish::Retry).await.unwrap());
        while control::reopen_slice(db, id).await.unwrap() {}
        let batch = found(db, id).await.batch;
        assert!(listing::add(db, &batch, REVISION, 0, &page(&[], true)).await.unwrap());
        let due = sweep::due(db, 10).await.unwrap();
        assert_eq!(due.len(), 1);
        sweep::put_off(db, id, Duration::from_secs(60)).await.unwrap();
        assert!(sweep::due(db, 10).await.unwrap().is_empty(), "not before its time");
        assert!(control::change(db, &Grant::everything(), id, control::Wish::Cancel).await.unwrap());
        assert!(!sweep::judge(db, &due[0], &[uri("gone.jpg")], &[]).await.unwrap(), "it was cancelled");
        assert_eq!(control::finish(db).await.unwrap(), [id]);

        let id = new_batch_that(db, collection, OnGone::Keep).await;
        let batch = found(db, id).await.batch;
        assert!(listing::add(db, &batch, REVISION, 0, &page(&[], true)).await.unwrap());
        let batch = found(db, id).await.batch;
        assert_eq!(batch.sweep, None, "nothing at all was listed");
        assert!(batch.problem.unwrap().contains("source_empty"));
        assert_eq!(sweep::missing(db, id, 10).await.unwrap(), Vec::<String>::new());
        assert_eq!(is_gone(db, collection, image).await, Some(false));
    })
    .await;
}

#[tokio::test]
async fn a_page_goes_on_where_its_turn_ended() {
    on_both(async |db, collection| {
        let sql = if crate::db::is_postgres(&db.write) {
            "INSERT INTO image_sources (collection_id, uri, fingerprint, seen_at)
             SELECT $1, 'file:///photos/' || lpad(n::text, 5, '0') || '.jpg', 'f', 0 FROM generate_series(1, 17500) n"
        } else {
            "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 17500)
             INSERT INTO image_sources (collection_id, uri, fingerprint, seen_at)
             SELECT $1, 'file:///photos/' || printf('%05d', n) || '.jpg', 'f', 0 FROM t"
        };
        execute(&db.write, sql, [collection.into()]).await.unwrap();
        let id = new_batch_that(db, collection, OnGone::Keep).await;
        let last = page(&["17400.jpg"], true);
        let add = async || listing::add(db, &found(db, id).await.batch, REVISION, 0, &last).await.unwrap();
        assert!(!add().await, "too many to compare in one turn");
        let batch = found(db, id).await.batch;
        assert_eq!((batch.items, batch.listed_at), (0, None));
        assert_eq!(batch.checkpoint().unwrap().compared, Some(uri("16000.jpg")));
        assert!(add().await);
        let batch = found(db, id).await.batch;
        assert_eq!((batch.unchanged, batch.checkpoint().unwrap().compared), (1, None));
        assert_eq!(sweep::missing(db, id, 20_000).await.unwrap().len(), 17_499);
    })
    .await;
}

#[tokio::test]
async fn nothing_is_said_of_what_lay_below_an_empty_folder() {
    on_both(async |db, collection| {
        for name in ["a.jpg", "away/1.jpg", "away/b/2.jpg", "away0.jpg", "gone/3.jpg"] {
            image_at(db, collection, &[name]).await;
        }
        age(db).await;
        let id = new_batch_that(db, collection, OnGone::Delete).await;
        let mut listed = page(&["a.jpg"], true);
        listed.coverage.as_mut().unwrap().empty =
            ["always", "away"].map(|name| format!("file:///photos/{name}")).to_vec();
        let batch = found(db, id).await.batch;
        assert!(listing::add(db, &batch, REVISION, 0, &listed).await.unwrap());
        assert_eq!(sweep::missing(db, id, 10).await.unwrap(), ["away0.jpg", "gone/3.jpg"].map(uri));
        let checkpoint = found(db, id).await.batch.checkpoint().unwrap();
        assert_eq!(checkpoint.skipped, 1, "the other one never held anything");
        assert!(checkpoint.first_skipped.unwrap().starts_with("/photos/away: it is empty"));
        work(db, id).await;
        assert_eq!(swept(db, id, 10).await, (0, 2));
        assert!(found(db, id).await.batch.problem.unwrap().contains("gone_kept"));
        assert_eq!(places(db, collection).await, 5);
    })
    .await;
}

#[tokio::test]
async fn only_what_nobody_named_and_no_place_holds_is_deleted() {
    on_both(async |db, collection| {
        let deleted = image_at(db, collection, &["deleted.jpg"]).await;
        let there = image_at(db, collection, &["there.jpg", "z.jpg"]).await;
        let elsewhere = image_at(db, collection, &["elsewhere.jpg", "other/elsewhere.jpg"]).await;
        let sql = "UPDATE image_sources SET uri = 'file:///other/elsewhere.jpg' WHERE uri = $1 AND collection_id = $2";
        execute(&db.write, sql, [uri("other/elsewhere.jpg").into(), collection.into()]).await.unwrap();
        let by_hand = image_at(db, collection, &["by-hand.jpg"]).await;
        execute(&db.write, "UPDATE images SET gone_at = 1 WHERE collection_id = $1", [collection.into()])
            .await
            .unwrap();
        image_at(db, collection, &["a.jpg"]).await;
        age(db).await;
        let txn = db.begin().await.unwrap();
        let origin = Origin { collection, image: by_hand, detector_revision: REVISION, pipeline: "tiny" };
        let placed = faces::place(&txn, origin, &[face()]).await.unwrap().swap_remove(0);
        txn.commit().await.unwrap();
        let id = new_batch_that(db, collection, OnGone::Delete).await;
        list(db, id, &["a.jpg"], 1).await;
        let batch = sweep::due(db, 100).await.unwrap().into_iter().find(|batch| batch.id == id).unwrap();
        let doomed = async || sweep::conclude(db, &batch, "file:///photos/").await.unwrap();
        let ids: Vec<ImageId> = doomed().await.iter().map(|image| image.id).collect();
        assert_eq!(ids, [deleted, there, by_hand]);
        assert_eq!(doomed().await[1].places, ["there.jpg", "z.jpg"].map(uri), "each of them is looked at");

        // Between the look and the deletion.
        execute(&db.write, "UPDATE faces SET locked = TRUE WHERE id = $1", [placed.id.into()]).await.unwrap();
        assert!(sweep::delete(db, &batch, &[deleted, by_hand], &[there]).await.unwrap());
        let mut marks = Vec::new();
        for image in [deleted, there, elsewhere, by_hand] {
            marks.push(is_gone(db, collection, image).await);
        }
        assert_eq!(marks, [None, Some(false), Some(true), Some(true)]);
        assert_eq!(doomed().await, []);
        let batch = found(db, id).await.batch;
        assert_eq!((batch.sweep, batch.gone), (Some(Sweep::Done), 1));
        assert!(batch.problem.unwrap().contains("gone_named"));
    })
    .await;
}

#[tokio::test]
async fn a_picture_that_was_rejected_may_be_the_one_that_is_gone() {
    on_both(async |db, collection| {
        let image = image_at(db, collection, &["gone.jpg"]).await;
        age(db).await;
        let id = new_batch_that(db, collection, OnGone::Delete).await;
        list(db, id, &["half-copied.jpg"], 1).await;
        let claim = begin(db, &jobs_of(db, id).await).await.unwrap();
        let why = Problem::new("image_truncated", "a test");
        end(db, claim.id, claim.jobs[0].job.id, &Outcome::Rejected(why)).await;
        while fold(db).await.unwrap() != Folded::Nothing {}
        assert_eq!(swept(db, id, 10).await, (0, 1));
        assert!(found(db, id).await.batch.problem.unwrap().contains("gone_kept"));
        assert_eq!(is_gone(db, collection, image).await, Some(true));
    })
    .await;
}

#[tokio::test]
async fn what_was_sent_or_named_elsewhere_is_not_gone() {
    on_both(async |db, collection| {
        let sent = image_at(db, collection, &["sent.jpg"]).await;
        let named = image_at(db, collection, &["named.jpg"]).await;
        let again = image_at(db, collection, &["again.jpg"]).await;
        image_at(db, collection, &["a.jpg"]).await;
        age(db).await;
        let sources = [
            ImageSource { object_key: Some("k".to_owned()), sha256: "s".to_owned(), ..ImageSource::default() },
            ImageSource { uri: Some("s3://bucket/named.jpg".to_owned()), ..ImageSource::default() },
            ImageSource { uri: Some(uri("again.jpg")), ..ImageSource::default() },
        ];
        let found_at: Vec<_> = sources.iter().zip([sent, named, again]).collect();
        let txn = db.begin().await.unwrap();
        images::remember_found(&txn, collection, &found_at).await.unwrap();
        txn.commit().await.unwrap();
        age(db).await;
        let id = new_batch_that(db, collection, OnGone::Delete).await;
        list(db, id, &["a.jpg"], 1).await;
        assert_eq!(swept(db, id, 10).await, (0, 1), "one was only named where it lay");
        let mut kept = Vec::new();
        for image in [sent, named] {
            let row = images::find(&db.read, collection, image).await.unwrap().unwrap();
            kept.push((row.uri.unwrap(), row.gone_at));
        }
        assert_eq!(kept, [(uri("sent.jpg"), None), ("s3://bucket/named.jpg".to_owned(), None)]);
        assert_eq!(is_gone(db, collection, again).await, None);
    })
    .await;
}

#[tokio::test]
async fn what_returns_while_it_is_marked_is_not_gone() {
    on_both(async |db, collection| {
        let image = image_at(db, collection, &["a.jpg"]).await;
        let txn = db.begin().await.unwrap();
        execute(&txn, "UPDATE images SET gone_at = 1 WHERE id = $1", [image.into()]).await.unwrap();
        let returns = async {
            let txn = db.begin().await.unwrap();
            assert!(images::returned(&txn, &[image, image]).await.unwrap());
            txn.commit().await.unwrap();
        };
        let marks = async {
            // Time for the other to come to the mark, which it does not see.
            tokio::time::sleep(Duration::from_millis(300)).await;
            txn.commit().await.unwrap();
        };
        tokio::join!(returns, marks);
        assert_eq!(is_gone(db, collection, image).await, Some(false));
        let txn = db.begin().await.unwrap();
        assert!(!images::returned(&txn, &[image, ImageId::new()]).await.unwrap(), "one was deleted");
    })
    .await;
}
