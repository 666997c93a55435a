//! Events and deliveries on both databases.

use std::time::Duration;

use sea_orm::{ConnectionTrait, FromQueryResult};
use serde_json::{Value as Json, json};

use super::deliveries::{self, Attempt, Bounds, Claimed, Recorded, Verdict};
use super::endpoints::{self, Changes, Endpoint, EndpointState, NewEndpoint};
use super::events;
use super::log::{self, DeliveryState, Redelivery};
use crate::access::Grant;
use crate::batch::BatchSource;
use crate::db::batches::{control, submit as batches};
use crate::db::entity::batch::OnGone;
use crate::db::jobs::claims::{self, Wanted};
use crate::db::jobs::recovery::recover_all;
use crate::db::jobs::settle::{self, Outcome};
use crate::db::jobs::submit::{NewJob, Submitted, submit};
use crate::db::{Db, collections, count, erasures, execute, persons, statement};
use crate::ids::{ClaimId, CollectionId, JobId, WebhookEndpointId};
use crate::job::{ImageRef, JobArgs, JobKind, Problem};
use crate::testing::{databases, secret_key};
use crate::webhooks::EventType;
use crate::webhooks::secret::EndpointSecret;

const LEASE: Duration = Duration::from_secs(3600);
const DAYS_5: Duration = Duration::from_secs(5 * 24 * 3600);
const BOUNDS: Bounds = Bounds { per_endpoint: 3, lease: LEASE };

/// Runs a test on both databases, each empty.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        $(#[tokio::test]
        async fn $name() {
            let folder = tempfile::tempdir().unwrap();
            for db in databases(folder.path()).await {
                scenes::$name(&db).await;
            }
        })*
    };
}

on_both!(
    the_end_of_a_job_is_told_once,
    what_is_rolled_back_is_not_told,
    faces_are_told_one_by_one,
    only_who_wants_to_know_is_told,
    nobody_listens_nothing_is_written,
    a_batch_is_told_once_a_round,
    an_erasure_is_told_by_its_receipt,
    claims_are_bounded_and_fenced,
    lost_claims_are_told_again,
    what_was_written_while_it_was_disabled_is_dropped,
    failing_endpoints_are_told_of_and_disabled,
    sporadic_failures_disable_nothing,
    paused_waits_disabled_drops_recover_sends_again,
    secrets_are_rotated,
    old_events_go,
);

async fn collection(db: &Db, name: &str) -> CollectionId {
    collections::create(db, name, "tiny", &collections::CollectionSettings::default()).await.unwrap().unwrap().id
}

async fn endpoint(db: &Db, types: &[EventType], collections: Option<Vec<CollectionId>>) -> WebhookEndpointId {
    let new = NewEndpoint {
        url: "https://example.com/".to_owned(),
        description: String::new(),
        event_types: types.to_vec(),
        collections,
        secret: EndpointSecret::random(),
    };
    endpoints::create(db, &secret_key(1), new).await.unwrap().unwrap().id
}

async fn found(db: &Db, id: WebhookEndpointId) -> Endpoint {
    endpoints::find(&db.write, id).await.unwrap().unwrap()
}

/// A job that waits.
async fn job(db: &Db, collection: CollectionId, kind: JobKind, only: Option<Vec<WebhookEndpointId>>) -> JobId {
    let image = ImageRef::Reference { s3: "s3://b/k".to_owned(), fingerprint: None };
    let args = match kind {
        JobKind::Index => JobArgs::Index { image },
        _ => JobArgs::Identify { image, max_matches: None },
    };
    let new = NewJob {
        collection,
        args,
        tag: Some("tag".to_owned()),
        traceparent: None,
        idempotency: None,
        inline_uploads: Vec::new(),
        webhook_endpoints: only,
    };
    match submit(db, &Grant::everything(), new).await.unwrap() {
        Submitted::New(job) => job.id,
        other => panic!("{other:?} is not new"),
    }
}

async fn begin(db: &Db, job: JobId) -> ClaimId {
    let wanted = Wanted { id: ClaimId::new(), jobs: &[job], alone: 2, owner: "test" };
    claims::claim(db, wanted, LEASE).await.unwrap().unwrap().id
}

async fn end(db: &Db, job: JobId, outcome: Outcome) {
    let claim = begin(db, job).await;
    let txn = db.begin().await.unwrap();
    assert!(settle::finish(&txn, claim, job, &outcome).await.unwrap());
    assert!(!settle::finish(&txn, claim, job, &outcome).await.unwrap(), "a job ends once");
    txn.commit().await.unwrap();
}

/// The bodies of all events, in their order.
async fn bodies(db: &Db) -> Vec<Json> {
    #[derive(FromQueryResult)]
    struct Row {
        body: String,
    }
    let rows = Row::find_by_statement(statement(&db.write, "SELECT body FROM webhook_events ORDER BY id", []));
    let rows = rows.all(&db.write).await.unwrap();
    rows.iter().map(|row| serde_json::from_str(&row.body).unwrap()).collect()
}

async fn types(db: &Db) -> Vec<String> {
    bodies(db).await.iter().map(|body| body["type"].as_str().unwrap().to_owned()).collect()
}

async fn deliveries_of(db: &Db, id: WebhookEndpointId) -> Vec<DeliveryState> {
    log::list(db, id, None, None, 100).await.unwrap().into_iter().map(|d| d.row.state).collect()
}

async fn test_events(db: &Db, id: WebhookEndpointId, n: usize) {
    let txn = db.begin().await.unwrap();
    for _ in 0..n {
        events::test(&txn, id).await.unwrap().unwrap();
    }
    txn.commit().await.unwrap();
}

async fn claim(db: &Db, id: WebhookEndpointId) -> Vec<Claimed> {
    deliveries::claim(db, id, 100, BOUNDS).await.unwrap()
}

async fn record(db: &Db, claimed: &Claimed, verdict: Verdict, disable_after: Duration) -> Recorded {
    let attempt = Attempt { status: Some(500), response: Some("no".to_owned()), ..Attempt::default() };
    deliveries::record(db, claimed, &attempt, verdict, disable_after).await.unwrap()
}

/// One attempt of a new event fails for good.
async fn fail(db: &Db, id: WebhookEndpointId) -> Recorded {
    test_events(db, id, 1).await;
    let claimed = claim(db, id).await;
    record(db, &claimed[0], Verdict::Failed, DAYS_5).await
}

async fn run(db: &Db, sql: &str) {
    execute(&db.write, sql, []).await.unwrap();
}

async fn rows(conn: &impl ConnectionTrait, table: &str) -> i64 {
    count(conn, &format!("SELECT count(*) AS n FROM {table}"), []).await.unwrap()
}

mod scenes {
    use super::*;

    pub(super) async fn the_end_of_a_job_is_told_once(db: &Db) {
        let c = collection(db, "c").await;
        let id = endpoint(db, &[], None).await;
        let problem = || Problem::new("no_face", "none");
        let ids = [
            job(db, c, JobKind::Identify, None).await,
            job(db, c, JobKind::Identify, None).await,
            job(db, c, JobKind::Identify, None).await,
            job(db, c, JobKind::Identify, None).await,
        ];
        end(db, ids[0], Outcome::Succeeded(json!({ "decision": "match", "faces": [] }))).await;
        end(db, ids[1], Outcome::Rejected(problem())).await;
        end(db, ids[2], Outcome::Failed(problem())).await;
        settle::cancel(db, &Grant::everything(), ids[3]).await.unwrap();
        settle::cancel(db, &Grant::everything(), ids[3]).await.unwrap();
        assert_eq!(types(db).await, ["job.succeeded", "job.rejected", "job.failed", "job.cancelled"]);
        assert_eq!(deliveries_of(db, id).await, [DeliveryState::Pending; 4]);
        let first = &bodies(db).await[0];
        let data = json!({ "job_id": ids[0], "collection_id": c, "tag": "tag", "kind": "identify", "state": "succeeded",
            "decision": "match" });
        assert_eq!(first["data"], data, "and nothing else");
        assert!(first["timestamp"].as_str().unwrap().ends_with('Z'));
        assert_eq!(bodies(db).await[1]["data"]["problem_code"], "no_face");
    }

    pub(super) async fn what_is_rolled_back_is_not_told(db: &Db) {
        let c = collection(db, "c").await;
        endpoint(db, &[], None).await;
        let job = job(db, c, JobKind::Identify, None).await;
        let claim = begin(db, job).await;
        let txn = db.begin().await.unwrap();
        assert!(settle::finish(&txn, claim, job, &Outcome::Succeeded(json!({}))).await.unwrap());
        assert_eq!((rows(&txn, "webhook_events").await, rows(&txn, "webhook_deliveries").await), (1, 1));
        txn.rollback().await.unwrap();
        assert_eq!((rows(&db.write, "webhook_events").await, rows(&db.write, "webhook_deliveries").await), (0, 0));
    }

    pub(super) async fn faces_are_told_one_by_one(db: &Db) {
        let c = collection(db, "c").await;
        endpoint(db, &[EventType::FaceMatched, EventType::FaceUnknown], None).await;
        let person = uuid::Uuid::now_v7();
        let face = uuid::Uuid::now_v7();
        let matches = json!([{ "person_id": person, "name": "Ada", "score": 0.9 }]);
        let answer = json!({ "already_indexed": false, "faces": [
            { "face_id": face, "decision": "match", "matches": matches, "score": 0.99, "box": {} },
            { "decision": "uncertain", "matches": matches }, { "decision": "unknown", "matches": [] }] });
        end(db, job(db, c, JobKind::Index, None).await, Outcome::Succeeded(answer.clone())).await;
        let told = bodies(db).await;
        assert_eq!(types(db).await, ["face.matched", "face.unknown", "face.unknown"]);
        assert_eq!((&told[0]["data"]["person_id"], &told[0]["data"]["face_id"]), (&json!(person), &json!(face)));
        assert_eq!((&told[1]["data"]["decision"], &told[1]["data"]["person_id"]), (&json!("uncertain"), &Json::Null));
        assert_eq!(told[2]["data"]["face"], 2);
        let text = serde_json::to_string(&told).unwrap();
        assert!(!text.contains("Ada") && !text.contains("score") && !text.contains("box"), "{text}");
        let mut again = answer;
        again["already_indexed"] = json!(true);
        end(db, job(db, c, JobKind::Index, None).await, Outcome::Succeeded(again)).await;
        assert_eq!(types(db).await.len(), 3, "a picture that is known tells nothing new");
    }

    pub(super) async fn only_who_wants_to_know_is_told(db: &Db) {
        let (c, d) = (collection(db, "c").await, collection(db, "d").await);
        let all = endpoint(db, &[], None).await;
        let of_c = endpoint(db, &[], Some(vec![c])).await;
        let failures = endpoint(db, &[EventType::JobFailed], None).await;
        let of_none = endpoint(db, &[], Some(vec![d])).await;
        collections::delete(db, d).await.unwrap();
        end(db, job(db, c, JobKind::Identify, None).await, Outcome::Succeeded(json!({}))).await;
        let told = async |id| deliveries_of(db, id).await.len();
        assert_eq!((told(all).await, told(of_c).await, told(failures).await, told(of_none).await), (1, 1, 0, 0));
        let only = Some(vec![of_c, WebhookEndpointId::new()]);
        end(db, job(db, c, JobKind::Identify, only).await, Outcome::Succeeded(json!({}))).await;
        assert_eq!((told(all).await, told(of_c).await), (1, 2));
        end(db, job(db, c, JobKind::Identify, Some(vec![])).await, Outcome::Succeeded(json!({}))).await;
        assert_eq!(rows(&db.write, "webhook_events").await, 2, "a job of which nobody is told");
    }

    pub(super) async fn nobody_listens_nothing_is_written(db: &Db) {
        let c = collection(db, "c").await;
        let id = endpoint(db, &[], None).await;
        let disabled = Changes { state: Some(EndpointState::Disabled), ..Changes::default() };
        endpoints::change(db, id, &disabled).await.unwrap();
        end(db, job(db, c, JobKind::Identify, None).await, Outcome::Succeeded(json!({}))).await;
        assert_eq!(rows(&db.write, "webhook_events").await, 0);
        assert!(endpoints::delete(db, id).await.unwrap() && !endpoints::delete(db, id).await.unwrap());
    }

    pub(super) async fn a_batch_is_told_once_a_round(db: &Db) {
        let c = collection(db, "c").await;
        endpoint(db, &[EventType::BatchCompleted], None).await;
        let new = batches::NewBatch {
            collection: c,
            kind: JobKind::Index,
            pipeline: "tiny".to_owned(),
            source: BatchSource::Folder("/photos".to_owned()),
            on_gone: OnGone::Keep,
            tag: Some("b".to_owned()),
            webhook_endpoints: None,
            traceparent: None,
            idempotency: None,
        };
        let batches::Submitted::New(id) = batches::submit(db, &Grant::everything(), new).await.unwrap() else {
            panic!("it is new")
        };
        run(db, "UPDATE batches SET listed_at = 1").await;
        let ended: usize = {
            let (one, two) = tokio::join!(control::finish(db), control::finish(db));
            one.unwrap().len() + two.unwrap().len()
        };
        control::finish(db).await.unwrap();
        let told = bodies(db).await;
        assert_eq!((ended, told.len()), (1, 1), "two that end it at once tell once");
        let data = &told[0]["data"];
        assert_eq!((&data["batch_id"], &data["state"], &data["round"]), (&json!(id), &json!("completed"), &json!(1)));
        assert!(control::change(db, &Grant::everything(), id, control::Wish::Retry).await.unwrap());
        control::reopen_slice(db, id).await.unwrap();
        control::finish(db).await.unwrap();
        assert_eq!(bodies(db).await[1]["data"]["round"], 2);
    }

    pub(super) async fn an_erasure_is_told_by_its_receipt(db: &Db) {
        let (c, d) = (collection(db, "c").await, collection(db, "d").await);
        let all = endpoint(db, &[EventType::ErasureCompleted], None).await;
        let of_c = endpoint(db, &[], Some(vec![c])).await;
        let of_d = endpoint(db, &[], Some(vec![d])).await;
        let key = secret_key(1);
        let person =
            persons::create(db, c, Some("ann".to_owned()), Some("Ann".to_owned()), None).await.unwrap().unwrap();
        let erased = erasures::request::person(db, &key, (c, person.id), false).await.unwrap().unwrap();
        for _ in 0..2 {
            erasures::finish(db, erased.id).await.unwrap();
        }
        let told = bodies(db).await;
        assert_eq!(told.len(), 1, "once, however often it is ended");
        assert_eq!(told[0]["type"], "erasure.completed");
        let data = json!({ "erasure_id": erased.id, "collection_id": c, "subject": "person" });
        assert_eq!(told[0]["data"], data, "and nothing else");
        assert_eq!(deliveries_of(db, all).await.len(), 1);
        assert_eq!((deliveries_of(db, of_c).await.len(), deliveries_of(db, of_d).await.len()), (1, 0));

        let erased = erasures::request::collection(db, &key, c, false).await.unwrap().unwrap();
        erasures::rows::all_slices(db, &key, &erased).await.unwrap();
        erasures::finish(db, erased.id).await.unwrap();
        let told = bodies(db).await.pop().unwrap();
        let data = json!({ "erasure_id": erased.id, "subject": "collection" });
        assert_eq!(told["data"], data, "not even which");
        assert_eq!(deliveries_of(db, all).await.len(), 2);
        assert_eq!((deliveries_of(db, of_c).await.len(), deliveries_of(db, of_d).await.len()), (1, 0));
    }

    pub(super) async fn claims_are_bounded_and_fenced(db: &Db) {
        let (one, two) = (endpoint(db, &[], None).await, endpoint(db, &[], None).await);
        test_events(db, one, 5).await;
        test_events(db, two, 1).await;
        assert_eq!(deliveries::due_endpoints(db).await.unwrap(), [one, two], "the longest wait first");
        assert_eq!(deliveries::claim(db, one, 2, BOUNDS).await.unwrap().len(), 2, "as much as there is room for");
        let third = claim(db, one).await;
        assert_eq!(third.len(), 1, "three at once and no more");
        assert!(claim(db, one).await.is_empty());
        assert_eq!(claim(db, two).await.len(), 1, "another endpoint is not kept waiting");
        let claimed = &third[0];
        assert_eq!((claimed.attempt, claimed.body.contains("endpoint.test")), (1, true));
        assert_eq!(record(db, claimed, Verdict::Retry(LEASE), DAYS_5).await, Recorded::Written);
        assert_eq!(record(db, claimed, Verdict::Delivered, DAYS_5).await, Recorded::Lost, "each claim is written once");
        assert_eq!(claim(db, one).await.len(), 1, "what is to be tried later is not due, another one is");
        let logged = log::find(db, claimed.id).await.unwrap().unwrap();
        assert_eq!((logged.row.state, logged.attempts.len()), (DeliveryState::Pending, 1));
        assert_eq!(logged.attempts[0].response.as_deref(), Some("no"));
        assert_eq!(log::redeliver(db, claimed.id).await.unwrap(), Redelivery::Pending);
    }

    pub(super) async fn lost_claims_are_told_again(db: &Db) {
        let id = endpoint(db, &[], None).await;
        test_events(db, id, 1).await;
        let lost = claim(db, id).await.remove(0);
        assert_eq!(deliveries::reap(db).await.unwrap(), 0, "the lease stands");
        run(db, "UPDATE webhook_deliveries SET lease_expires_at = 1").await;
        assert_eq!(deliveries::reap(db).await.unwrap(), 1);
        let again = claim(db, id).await.remove(0);
        assert_eq!((again.id, again.event_id, again.attempt), (lost.id, lost.event_id, 2), "the attempt counts");
        let logged = log::find(db, lost.id).await.unwrap().unwrap().attempts;
        assert!(logged[0].error.as_deref().unwrap().starts_with("worker_lost"), "{logged:?}");
        assert_eq!(again.body, lost.body);
        assert_eq!(record(db, &lost, Verdict::Delivered, DAYS_5).await, Recorded::Lost);
        recover_all(db).await.unwrap();
        let third = claim(db, id).await.remove(0);
        assert_eq!(record(db, &again, Verdict::Delivered, DAYS_5).await, Recorded::Lost);
        assert_eq!(record(db, &third, Verdict::Delivered, DAYS_5).await, Recorded::Written);
        assert_eq!(deliveries_of(db, id).await, [DeliveryState::Delivered]);
        test_events(db, id, 1).await;
        claim(db, id).await;
        run(db, "UPDATE webhook_deliveries SET lease_expires_at = 1, attempt = 50 WHERE claim_id IS NOT NULL").await;
        assert_eq!(deliveries::reap(db).await.unwrap(), 1);
        assert_eq!(deliveries_of(db, id).await[0], DeliveryState::Failed, "an attempt that kills its worker ends");
    }

    pub(super) async fn what_was_written_while_it_was_disabled_is_dropped(db: &Db) {
        let id = endpoint(db, &[], None).await;
        test_events(db, id, 3).await;
        // As a transaction leaves it that read the endpoint before.
        run(db, "UPDATE webhook_endpoints SET state = 'disabled', state_reason = 'gone'").await;
        assert!(deliveries::due_endpoints(db).await.unwrap().is_empty());
        assert_eq!(deliveries::backlog(db).await.unwrap().pending, 0);
        deliveries::drop_disabled(db).await.unwrap();
        assert_eq!(deliveries_of(db, id).await, [DeliveryState::Dropped; 3]);
        let again = Changes { state: Some(EndpointState::Disabled), ..Changes::default() };
        endpoints::change(db, id, &again).await.unwrap();
        assert_eq!(found(db, id).await.state_reason.as_deref(), Some("gone"), "the first reason stays");
    }

    pub(super) async fn failing_endpoints_are_told_of_and_disabled(db: &Db) {
        let (bad, other) = (endpoint(db, &[], None).await, endpoint(db, &[EventType::EndpointFailing], None).await);
        let restricted = endpoint(db, &[], Some(vec![collection(db, "c").await])).await;
        for _ in 0..6 {
            assert_eq!(fail(db, bad).await, Recorded::Written);
        }
        assert_eq!(deliveries_of(db, other).await.len(), 1, "told once, at the fourth");
        assert!(found(db, bad).await.failing_since.is_some());
        run(db, "UPDATE webhook_endpoints SET failing_since = failing_since - 432000000000 WHERE failures > 0").await;
        assert_eq!(fail(db, bad).await, Recorded::EndpointDisabled);
        let disabled = found(db, bad).await;
        assert_eq!((disabled.state, disabled.state_reason.as_deref()), (EndpointState::Disabled, Some("failing")));
        assert_eq!(deliveries_of(db, other).await.len(), 2);
        test_events(db, other, 1).await;
        let gone = claim(db, other).await;
        assert_eq!(record(db, &gone[2], Verdict::Gone, DAYS_5).await, Recorded::EndpointDisabled);
        assert_eq!(found(db, other).await.state_reason.as_deref(), Some("gone"));
        assert!(deliveries_of(db, restricted).await.is_empty(), "it may not know of others");
        let failing: Vec<Json> = bodies(db).await.into_iter().filter(|b| b["type"] == "endpoint.failing").collect();
        assert_eq!(failing[1]["data"], json!({ "webhook_endpoint_id": bad, "disabled": true, "reason": "failing" }));
    }

    pub(super) async fn sporadic_failures_disable_nothing(db: &Db) {
        let id = endpoint(db, &[], None).await;
        for _ in 0..5 {
            fail(db, id).await;
            let age = "UPDATE webhook_endpoints SET failing_since = failing_since - 518400000000,
                last_failure_at = last_failure_at - 518400000000";
            run(db, age).await;
        }
        assert_eq!(found(db, id).await.state, EndpointState::Enabled, "nothing was tried between the failures");
        fail(db, id).await;
        fail(db, id).await;
        test_events(db, id, 1).await;
        let claimed = claim(db, id).await;
        record(db, &claimed[0], Verdict::Delivered, DAYS_5).await;
        assert!(found(db, id).await.failing_since.is_none(), "a success ends the row of failures");
    }

    pub(super) async fn paused_waits_disabled_drops_recover_sends_again(db: &Db) {
        let id = endpoint(db, &[], None).await;
        let set = async |state| {
            endpoints::change(db, id, &Changes { state: Some(state), ..Changes::default() }).await.unwrap();
        };
        set(EndpointState::Paused).await;
        test_events(db, id, 2).await;
        assert!(deliveries::due_endpoints(db).await.unwrap().is_empty() && claim(db, id).await.is_empty());
        set(EndpointState::Enabled).await;
        let under_way = claim(db, id).await;
        assert_eq!(under_way.len(), 2, "what waited is told");
        set(EndpointState::Disabled).await;
        assert_eq!(deliveries_of(db, id).await, [DeliveryState::Dropped; 2]);
        assert_eq!(record(db, &under_way[0], Verdict::Delivered, DAYS_5).await, Recorded::Lost);
        assert_eq!(log::recover(db, id, 0).await.unwrap(), 0, "not while it is disabled");
        assert_eq!(log::redeliver(db, under_way[0].id).await.unwrap(), Redelivery::Disabled);
        set(EndpointState::Enabled).await;
        assert_eq!(log::recover(db, id, i64::MAX).await.unwrap(), 0, "nothing is so young");
        assert_eq!(log::recover(db, id, 0).await.unwrap(), 2);
        let again = claim(db, id).await;
        assert_eq!((again.len(), again[0].attempt, again[0].begun_at_attempt), (2, 2, 1), "the schedule begins anew");
    }

    pub(super) async fn secrets_are_rotated(db: &Db) {
        let (key, id) = (secret_key(1), endpoint(db, &[], None).await);
        let (new, now) = (EndpointSecret::random(), crate::db::now(&db.write).await.unwrap());
        let old = found(db, id).await.secrets(&key, now).unwrap();
        assert_eq!(old.len(), 1);
        let hour = Duration::from_secs(3600);
        assert!(endpoints::rotate_secret(db, &key, id, &new, hour).await.unwrap());
        let rotated = found(db, id).await;
        assert_eq!(rotated.secrets(&key, now).unwrap(), [new.clone(), old[0].clone()]);
        assert_eq!(rotated.secrets(&key, now + 3_700_000_000).unwrap(), [new]);
        assert_eq!(endpoints::forget_secrets(db).await.unwrap(), 0);
        run(db, "UPDATE webhook_endpoints SET previous_secret_until = 1").await;
        assert_eq!(endpoints::forget_secrets(db).await.unwrap(), 1, "its grace is over");
        assert!(rotated.secrets(&secret_key(2), now).is_err(), "another key reads nothing");
        let text = format!("{rotated:?}");
        assert!(!text.contains(&old[0].reveal()));
    }

    pub(super) async fn old_events_go(db: &Db) {
        let id = endpoint(db, &[], None).await;
        test_events(db, id, 3).await;
        assert_eq!(log::delete_old(db, DAYS_5, 2).await.unwrap(), 0);
        run(db, "UPDATE webhook_events SET created_at = created_at - 432000000001").await;
        assert_eq!(log::delete_old(db, DAYS_5, 2).await.unwrap(), 0, "what is yet to be told stays");
        assert_eq!(deliveries::backlog(db).await.unwrap().pending, 3);
        let paused = Changes { state: Some(EndpointState::Paused), ..Changes::default() };
        endpoints::change(db, id, &paused).await.unwrap();
        assert_eq!(deliveries::backlog(db).await.unwrap().oldest, Duration::ZERO, "nobody wants to be told");
        assert_eq!(log::delete_old(db, DAYS_5, 2).await.unwrap(), 2, "in slices");
        assert_eq!(log::delete_old(db, DAYS_5, 2).await.unwrap(), 1);
        assert_eq!(rows(&db.write, "webhook_deliveries").await, 0);
    }
}
