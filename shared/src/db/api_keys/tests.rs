//! Keys on both databases: what each gives, what ends it, and what its limits let through.

use std::collections::BTreeSet;
use std::time::Duration;

use super::changes::{GRACE, LastAdmin, NewApiKey, Revoked, Rotated, create, forget, revoke, rotate};
use super::lookup::{any, any_good, look_up, touch};
use super::usage::{OverLimit, take_requests};
use super::{ApiKey, KeyLimits, KeyState, find, find_by_prefix, list};
use crate::access::token::{NewToken, Presented};
use crate::access::{Grant, Limits, Reach, Scope};
use crate::batch::BatchSource;
use crate::db::batches::{listing, read as batch_reads, submit as batch_submits};
use crate::db::entity::batch::OnGone;
use crate::db::entity::collection;
use crate::db::jobs::read::{self, JobFilter};
use crate::db::jobs::settle::{Cancel, cancel};
use crate::db::jobs::submit::{NewJob, Submitted, submit};
use crate::db::{Db, collections, execute, uploads};
use crate::ids::{ApiKeyId, CollectionId, JobId, UploadId};
use crate::job::{ImageRef, JobArgs, JobKind};

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn on_both(test: impl AsyncFn(&Db)) {
    let folder = tempfile::tempdir().unwrap();
    for db in crate::testing::databases(folder.path()).await {
        test(&db).await;
    }
}

async fn collection(db: &Db, name: &str) -> CollectionId {
    let settings = collections::CollectionSettings::default();
    collections::create(db, name, "tiny", &settings).await.unwrap().unwrap().id
}

fn wanted(scopes: &[Scope], reach: Reach) -> NewApiKey {
    let scopes = scopes.iter().copied().collect();
    NewApiKey {
        name: "key".to_owned(),
        scopes,
        reach,
        limits: KeyLimits::default(),
        expires_in: None,
        of_command: false,
    }
}

async fn key(db: &Db, new: NewApiKey) -> (ApiKey, Presented) {
    let token = NewToken::make().unwrap();
    let key = create(db, &token, new).await.unwrap();
    (key, Presented::read(token.token.expose()).unwrap())
}

async fn opens(db: &Db, token: &Presented) -> bool {
    look_up(db, &token.prefix).await.unwrap().is_some_and(|known| known.opens_with(token))
}

fn only(collections: &[CollectionId]) -> Reach {
    Reach::Only(collections.iter().copied().collect())
}

#[tokio::test]
async fn a_key_opens_with_its_own_token_until_it_ends() {
    on_both(async |db| {
        let (own, _) = key(db, NewApiKey { of_command: true, ..wanted(&[Scope::Admin], Reach::All) }).await;
        assert!(!any(db).await.unwrap(), "a command's own key is nobody's");
        assert!(any_good(db).await.unwrap(), "what the command starts is open with it");
        forget(db, own.id).await.unwrap();
        assert!(!any_good(db).await.unwrap());
        let one = collection(db, "one").await;
        let limits = KeyLimits { requests_per_minute: Some(7), jobs_in_flight: None, images_per_day: Some(0) };
        let new = NewApiKey { limits, ..wanted(&[Scope::Read, Scope::Identify], only(&[one])) };
        let (made, token) = key(db, new).await;
        assert_eq!(find(db, &Grant::everything(), made.id).await.unwrap().as_ref(), Some(&made));
        assert_eq!(find_by_prefix(db, &made.prefix).await.unwrap().as_ref(), Some(&made));
        assert_eq!((made.state, &made.reach, made.line), (KeyState::Active, &only(&[one]), made.id));
        assert_eq!(made.scopes, BTreeSet::from([Scope::Read, Scope::Identify]));
        let configured = Limits { requests_per_minute: 1, jobs_in_flight: 2, images_per_day: 3 };
        let expected = Limits { requests_per_minute: 7, jobs_in_flight: 2, images_per_day: 0 };
        assert_eq!(made.grant(configured).limits(), expected);
        assert!(opens(db, &token).await && any_good(db).await.unwrap());
        let (_, others) = key(db, wanted(&[Scope::Admin], Reach::All)).await;
        assert!(!opens(db, &Presented { prefix: token.prefix.clone(), ..others.clone() }).await, "another's secret");
        assert_eq!(revoke(db, &Grant::everything(), made.id, LastAdmin::IsKept).await.unwrap(), Revoked::Done);
        assert!(!opens(db, &token).await && opens(db, &others).await);
        expire(db, &others).await;
        assert!(!opens(db, &others).await && any(db).await.unwrap() && !any_good(db).await.unwrap());
        let states: Vec<_> = list(db, &Grant::everything(), None, 9).await.unwrap().iter().map(|k| k.state).collect();
        assert_eq!(states, [KeyState::Revoked, KeyState::Expired]);
    })
    .await;
}

async fn expire(db: &Db, token: &Presented) {
    let sql = "UPDATE api_keys SET expires_at = {now} - 1 WHERE prefix = $1";
    assert_eq!(execute(&db.write, sql, [token.prefix.as_str().into()]).await.unwrap(), 1);
}

#[tokio::test]
async fn a_key_goes_on_as_its_successor() {
    on_both(async |db| {
        let one = collection(db, "one").await;
        let new = NewApiKey { expires_in: Some(DAY * 90), ..wanted(&[Scope::Write], only(&[one])) };
        let (old, old_token) = key(db, new).await;
        let token = NewToken::make().unwrap();
        let rotated = async |id| rotate(db, &Grant::everything(), id, &token, GRACE).await.unwrap();
        let Rotated::Into(next) = rotated(old.id).await else { panic!("the key is good") };
        assert_eq!((&next.name, &next.scopes, &next.reach, next.line), (&old.name, &old.scopes, &old.reach, old.id));
        // Where the clock does not stand still within a statement, to a second.
        let days = |key: &ApiKey| (key.expires_at.unwrap() - key.created_at + 1_000_000) / 86_400_000_000;
        assert_eq!((days(&old), days(&next)), (90, 90));
        let token = Presented::read(token.token.expose()).unwrap();
        assert!(opens(db, &old_token).await && opens(db, &token).await, "both are good for a while");
        let old = find(db, &Grant::everything(), old.id).await.unwrap().unwrap();
        assert_eq!(old.successor, Some(next.id));
        let left = old.expires_at.unwrap() - crate::db::now(&db.read).await.unwrap();
        assert!((86_000_000_000..=86_400_000_000).contains(&left), "a day is left, got {left}");
        let again = NewToken::make().unwrap();
        let twice = rotate(db, &Grant::everything(), old.id, &again, GRACE).await.unwrap();
        assert_eq!(twice, Rotated::Before(next.id));
        let mine = next.grant(Limits::default());
        assert_eq!(mine.owner(), old.grant(Limits::default()).owner(), "what one made is the other's own");
        revoke(db, &Grant::everything(), next.id, LastAdmin::MayGo).await.unwrap();
        let late = rotate(db, &Grant::everything(), next.id, &again, GRACE).await.unwrap();
        assert_eq!(late, Rotated::NotActive);
        let gone = rotate(db, &Grant::everything(), ApiKeyId::new(), &again, GRACE).await.unwrap();
        assert_eq!(gone, Rotated::NotFound);
    })
    .await;
}

#[tokio::test]
async fn a_grace_makes_no_life_longer() {
    on_both(async |db| {
        let new = NewApiKey { expires_in: Some(Duration::from_secs(60)), ..wanted(&[Scope::Read], Reach::All) };
        let (old, _) = key(db, new).await;
        let token = NewToken::make().unwrap();
        rotate(db, &Grant::everything(), old.id, &token, GRACE).await.unwrap();
        let after = find(db, &Grant::everything(), old.id).await.unwrap().unwrap();
        assert_eq!(after.expires_at, old.expires_at);
    })
    .await;
}

#[tokio::test]
async fn the_last_administrator_stays_where_that_is_asked_for() {
    on_both(async |db| {
        let one = collection(db, "one").await;
        let (admin, _) = key(db, wanted(&[Scope::Admin], Reach::All)).await;
        key(db, wanted(&[Scope::Admin], only(&[one]))).await;
        key(db, wanted(&[Scope::Write], Reach::All)).await;
        key(db, NewApiKey { expires_in: Some(DAY), ..wanted(&[Scope::Admin], Reach::All) }).await;
        let revoked = async |id, last| revoke(db, &Grant::everything(), id, last).await.unwrap();
        assert_eq!(revoked(admin.id, LastAdmin::IsKept).await, Revoked::LastAdmin);
        let (other, _) = key(db, wanted(&[Scope::Admin], Reach::All)).await;
        assert_eq!(revoked(admin.id, LastAdmin::IsKept).await, Revoked::Done);
        assert_eq!(revoked(admin.id, LastAdmin::IsKept).await, Revoked::Done, "a second time changes nothing");
        assert_eq!(revoked(other.id, LastAdmin::IsKept).await, Revoked::LastAdmin);
        assert_eq!(revoked(other.id, LastAdmin::MayGo).await, Revoked::Done);
        assert_eq!(revoked(ApiKeyId::new(), LastAdmin::MayGo).await, Revoked::NotFound);
    })
    .await;
}

#[tokio::test]
async fn who_has_single_collections_sees_no_other_keys() {
    on_both(async |db| {
        let (one, two) = (collection(db, "one").await, collection(db, "two").await);
        let mut keys = Vec::new();
        for reach in [Reach::All, only(&[one]), only(&[two]), only(&[one, two])] {
            keys.push(key(db, wanted(&[Scope::Admin], reach)).await.0);
        }
        let seen = async |grant: &Grant| {
            let listed = list(db, grant, None, 9).await.unwrap();
            for key in &keys {
                let found = find(db, grant, key.id).await.unwrap();
                assert_eq!(found.is_some(), listed.contains(key));
            }
            listed.iter().map(|key| key.reach.clone()).collect::<Vec<_>>()
        };
        let grant = |n: usize| keys[n].grant(Limits::default());
        assert_eq!(seen(&grant(0)).await.len(), 4);
        assert_eq!(seen(&grant(1)).await, [only(&[one])]);
        assert_eq!(seen(&grant(3)).await, [only(&[one]), only(&[two]), only(&[one, two])]);
        assert_eq!(revoke(db, &grant(1), keys[2].id, LastAdmin::MayGo).await.unwrap(), Revoked::NotFound);
        // With its collection, what a key sees goes; it does not become a key of all.
        collections::delete(db, one).await.unwrap();
        let left = find(db, &Grant::everything(), keys[1].id).await.unwrap().unwrap();
        assert_eq!(left.reach, only(&[]));
        let grant = left.grant(Limits::default());
        assert_eq!(list(db, &grant, None, 9).await.unwrap(), []);
        assert_eq!(collections::list(db, &grant, None, 9).await.unwrap(), []);
        assert_eq!(collections::find(&db.read, &grant, two).await.unwrap(), None);
        assert!(batch_reads::list(db, &grant, None, None, 9).await.unwrap().is_empty());
        assert!(read::list(db, &grant, JobFilter::default(), None, 9).await.unwrap().is_empty());
    })
    .await;
}

fn job(collection: CollectionId) -> NewJob {
    let image = ImageRef::Reference { s3: "s3://b/k".to_owned(), fingerprint: None };
    NewJob {
        collection,
        args: JobArgs::Identify { image, max_matches: None },
        tag: None,
        webhook_endpoints: None,
        traceparent: None,
        idempotency: None,
        inline_uploads: Vec::new(),
    }
}

async fn submitted(db: &Db, grant: &Grant, collection: CollectionId) -> JobId {
    match submit(db, grant, job(collection)).await.unwrap() {
        Submitted::New(job) => job.id,
        other => panic!("the job is new, got {other:?}"),
    }
}

#[tokio::test]
async fn a_grant_shows_its_own_part_of_everything() {
    on_both(async |db| {
        let (one, two) = (collection(db, "one").await, collection(db, "two").await);
        let grant = async |scopes: &[Scope], reach| key(db, wanted(scopes, reach)).await.0.grant(Limits::default());
        let reader = grant(&[Scope::Read], only(&[one])).await;
        let kiosk = grant(&[Scope::Identify], only(&[one])).await;
        let writer = grant(&[Scope::Write], only(&[one, two])).await;
        let (own, others) = (submitted(db, &kiosk, one).await, submitted(db, &writer, one).await);
        let far = submitted(db, &writer, two).await;
        let listed = async |grant: &Grant| {
            let rows = read::list(db, grant, JobFilter::default(), None, 9).await.unwrap();
            let ids: BTreeSet<JobId> = rows.iter().map(|row| row.job.id).collect();
            for job in [own, others, far] {
                assert_eq!(read::find(db, grant, job).await.unwrap().is_some(), ids.contains(&job));
            }
            ids
        };
        assert_eq!(listed(&Grant::everything()).await, BTreeSet::from([own, others, far]));
        assert_eq!(listed(&writer).await, BTreeSet::from([own, others, far]));
        assert_eq!(listed(&reader).await, BTreeSet::from([own, others]));
        assert_eq!(listed(&kiosk).await, BTreeSet::from([own]));
        assert_eq!(cancel(db, &kiosk, others).await.unwrap(), Cancel::NotAllowed);
        assert_eq!(cancel(db, &reader, own).await.unwrap(), Cancel::NotAllowed);
        assert_eq!(cancel(db, &kiosk, far).await.unwrap(), Cancel::NotAllowed);
        assert_eq!(cancel(db, &kiosk, own).await.unwrap(), Cancel::Done);
        assert_eq!(cancel(db, &writer, others).await.unwrap(), Cancel::Done);
        let names = |rows: Vec<collection::Model>| rows.into_iter().map(|row| row.name).collect::<Vec<_>>();
        assert_eq!(names(collections::list(db, &reader, None, 9).await.unwrap()), ["one"]);
        assert!(collections::find_by_name(&db.read, &reader, "two").await.unwrap().is_none());
        let upload = upload(db, two).await;
        assert!(uploads::find(&db.read, &writer, two, upload).await.unwrap().is_some());
        assert!(uploads::find(&db.read, &reader, two, upload).await.unwrap().is_none());
    })
    .await;
}

async fn upload(db: &Db, collection: CollectionId) -> UploadId {
    let id = UploadId::new();
    let new = uploads::NewUpload {
        id,
        collection,
        object_key: id.to_string(),
        sha256: String::new(),
        size_bytes: 1,
        content_type: "image/png".to_owned(),
        inline: false,
        keep: DAY,
    };
    uploads::create(&db.write, new).await.unwrap().id
}

#[tokio::test]
async fn what_was_used_is_noted_once_a_minute() {
    on_both(async |db| {
        let (made, _) = key(db, wanted(&[Scope::Read], Reach::All)).await;
        let used = async || find(db, &Grant::everything(), made.id).await.unwrap().unwrap().last_used_at;
        assert_eq!(used().await, None);
        touch(db, made.id).await.unwrap();
        let first = used().await;
        assert!(first.is_some());
        touch(db, made.id).await.unwrap();
        assert_eq!(used().await, first);
        let sql = "UPDATE api_keys SET last_used_at = last_used_at - 60000000 WHERE id = $1";
        execute(&db.write, sql, [made.id.into()]).await.unwrap();
        touch(db, made.id).await.unwrap();
        assert!(used().await >= first);
    })
    .await;
}

/// Waits until the minute is young enough for what follows.
async fn young_minute(db: &Db) {
    while crate::db::now(&db.read).await.unwrap() % 60_000_000 > 50_000_000 {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
async fn a_minute_is_given_out_once() {
    on_both(async |db| {
        let line = ApiKeyId::new();
        young_minute(db).await;
        // As many processes at once, each of which wants more than its part.
        let slices = futures_util::future::join_all((0..8).map(|_| take_requests(db, line, 20, 3))).await;
        let mut granted: Vec<u32> = slices.iter().map(|slice| slice.as_ref().unwrap().granted).collect();
        granted.sort_unstable();
        assert_eq!(granted, [0, 2, 3, 3, 3, 3, 3, 3]);
        let left = take_requests(db, line, 20, 3).await.unwrap();
        assert_eq!((left.granted, left.left), (0, 0));
        assert!(left.ends_in <= Duration::from_secs(60));
        let sql = "UPDATE api_key_usage SET minute = minute - 1 WHERE line_id = $1";
        execute(&db.write, sql, [line.into()]).await.unwrap();
        let next = take_requests(db, line, 20, 3).await.unwrap();
        assert_eq!((next.granted, next.left), (3, 17), "a new minute");
    })
    .await;
}

#[tokio::test]
async fn jobs_at_once_do_not_pass_a_limit() {
    on_both(async |db| {
        let one = collection(db, "one").await;
        let limits = KeyLimits { jobs_in_flight: Some(3), ..KeyLimits::default() };
        let (made, _) = key(db, NewApiKey { limits, ..wanted(&[Scope::Identify], Reach::All) }).await;
        let grant = made.grant(Limits::default());
        let all = futures_util::future::join_all((0..8).map(|_| submit(db, &grant, job(one)))).await;
        let mut new = Vec::new();
        for done in all {
            match done.unwrap() {
                Submitted::New(job) => new.push(job.id),
                Submitted::OverLimit(over) => assert_eq!(over, OverLimit::JobsInFlight(3)),
                other => panic!("no key is used twice, got {other:?}"),
            }
        }
        assert_eq!(new.len(), 3);
        submitted(db, &Grant::everything(), one).await;
        cancel(db, &grant, new[0]).await.unwrap();
        submitted(db, &grant, one).await;
        let more = submit(db, &grant, job(one)).await.unwrap();
        assert!(matches!(more, Submitted::OverLimit(_)));
    })
    .await;
}

#[tokio::test]
async fn pictures_of_a_day_are_counted_for_jobs_and_batches() {
    on_both(async |db| {
        let one = collection(db, "one").await;
        let (made, _) = key(db, wanted(&[Scope::Write], Reach::All)).await;
        let grant = made.grant(Limits { images_per_day: 4, ..Limits::default() });
        let new = batch_submits::NewBatch {
            collection: one,
            kind: JobKind::Index,
            pipeline: "tiny".to_owned(),
            source: BatchSource::S3("s3://b/".to_owned()),
            on_gone: OnGone::Keep,
            tag: None,
            webhook_endpoints: None,
            traceparent: None,
            idempotency: None,
        };
        let batch_submits::Submitted::New(batch) = batch_submits::submit(db, &grant, new).await.unwrap() else {
            panic!("it is new")
        };
        let place = |n: usize| ImageRef::Reference { s3: format!("s3://b/{n}"), fingerprint: Some("f".to_owned()) };
        let listed = |from: usize| listing::Listed {
            items: (from..from + 3).map(place).collect(),
            checkpoint: crate::batch::Checkpoint { after: Some(from.to_string()), ..Default::default() },
            is_last: false,
            coverage: None,
        };
        let row = async || batch_reads::find(db, &grant, batch).await.unwrap().unwrap().batch;
        let add = async |from| listing::add(db, &row().await, "r", 4, &listed(from)).await.unwrap();
        submitted(db, &grant, one).await;
        // Begun within the limit, a page goes through whole; the next one waits, and so does a job.
        assert!(add(0).await);
        submitted(db, &Grant::everything(), one).await;
        let over = submit(db, &grant, job(one)).await.unwrap();
        assert!(matches!(over, Submitted::OverLimit(OverLimit::ImagesOfDay(4, rest)) if rest <= DAY), "{over:?}");
        assert!(!add(3).await);
        let waiting = row().await;
        assert_eq!((waiting.items, waiting.listing_tries), (3, 0));
        assert!(waiting.problem.unwrap().contains("daily_images_spent"));
        assert!(waiting.list_after > crate::db::now(&db.read).await.unwrap());
        let sql = "UPDATE api_key_usage SET day = day - 1 WHERE line_id = $1";
        execute(&db.write, sql, [made.id.into()]).await.unwrap();
        assert!(add(3).await, "tomorrow");
        assert_eq!((row().await.items, row().await.problem), (6, None));
        submitted(db, &grant, one).await;
    })
    .await;
}

#[tokio::test]
async fn a_commands_own_key_leaves_nothing() {
    on_both(async |db| {
        let one = collection(db, "one").await;
        let (made, token) = key(db, wanted(&[Scope::Admin], only(&[one]))).await;
        take_requests(db, made.line, 5, 1).await.unwrap();
        forget(db, made.id).await.unwrap();
        assert!(!opens(db, &token).await);
        for table in ["api_keys", "api_key_collections", "api_key_usage"] {
            let rows = crate::db::count(&db.read, &format!("SELECT count(*) AS n FROM {table}"), []).await.unwrap();
            assert_eq!(rows, 0, "{table}");
        }
    })
    .await;
}
