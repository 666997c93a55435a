//! Events: written in the transaction that makes what they tell of, with a delivery for each endpoint that wants to know.
//! What is committed is told; what is rolled back never was.
//!
//! They are thin: ids, kinds, states and codes, from which a receiver asks for the rest with its own key. Nothing biometric,
//! no names, no places of pictures.

use std::collections::{HashMap, HashSet};

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;
use serde_json::{Value as Json, json};

use super::endpoints;
use crate::db::entity::batch;
use crate::db::entity::reprocess_run::Model as Run;
use crate::db::erasures::Erasure;
use crate::db::jobs::settle::Outcome;
use crate::db::rows::{self, Column, Rows};
use crate::db::{count, execute, is_postgres, now, placeholders, statement};
use crate::ids::{BatchId, CollectionId, JobId, WebhookDeliveryId, WebhookEndpointId, WebhookEventId};
use crate::job::{Decision, JobKind, JobState};
use crate::webhooks::EventType;

/// Whether anybody is told of anything.
pub(in crate::db) const LISTENED: &str = "EXISTS (SELECT 1 FROM webhook_endpoints WHERE state <> 'disabled')";

/// Something to be told.
struct Event<'a> {
    kind: EventType,
    collection: Option<CollectionId>,
    job: Option<JobId>,
    batch: Option<BatchId>,
    /// Only these are told.
    only: Option<&'a [WebhookEndpointId]>,
    data: Json,
}

/// An endpoint, as far as it decides what it is told of.
struct Listener {
    endpoint: WebhookEndpointId,
    types: Vec<EventType>,
    /// All of its collections that are asked about; `None`: it takes any.
    collections: Option<HashSet<CollectionId>>,
}

impl Listener {
    fn wants(&self, event: &Event<'_>) -> bool {
        let of_collection = match (&self.collections, event.collection) {
            (None, _) => true,
            (Some(own), Some(collection)) => own.contains(&collection),
            // What is about no collection is for those that may see all.
            (Some(_), None) => false,
        };
        of_collection && self.takes(event.kind) && event.only.is_none_or(|only| only.contains(&self.endpoint))
    }

    fn takes(&self, kind: EventType) -> bool {
        self.types.is_empty() || self.types.contains(&kind)
    }
}

#[derive(FromQueryResult)]
struct Ended {
    id: JobId,
    collection_id: CollectionId,
    batch_id: Option<BatchId>,
    kind: JobKind,
    state: JobState,
    problem_code: Option<String>,
    tag: Option<String>,
    finished_at: Option<i64>,
    webhook_endpoint_ids: Option<String>,
}

/// Tells of jobs that have ended in this transaction, and of the faces that they found. Of a rematch
/// or a reembed nobody is told: what they change is asked for.
pub(in crate::db) async fn jobs_ended(
    txn: &impl ConnectionTrait,
    jobs: &[JobId],
    outcomes: &[(JobId, &Outcome)],
) -> Result<(), DbErr> {
    let sql = format!(
        "SELECT * FROM jobs WHERE kind NOT IN ('rematch', 'reembed') AND id IN ({}) ORDER BY id",
        placeholders(1, jobs.len())
    );
    let ended = statement(txn, &sql, jobs.iter().map(|id| Value::from(*id)));
    let ended = Ended::find_by_statement(ended).all(txn).await?;
    let listeners = listeners(txn, ended.iter().map(|job| job.collection_id)).await?;
    let outcomes: HashMap<JobId, &Outcome> = outcomes.iter().copied().collect();
    let only: Vec<_> = ended.iter().map(|job| only(job.webhook_endpoint_ids.as_deref())).collect::<Result<_, _>>()?;
    let mut events = Vec::new();
    let mut at = 0;
    for (job, only) in ended.iter().zip(&only) {
        at = job.finished_at.unwrap_or(at);
        let answer = match outcomes.get(&job.id) {
            Some(Outcome::Succeeded(answer)) => Some(answer),
            _ => None,
        };
        events.extend(of_job(job, only.as_deref(), answer));
    }
    write(txn, &listeners, events, at).await
}

fn of_job<'a>(job: &'a Ended, only: Option<&'a [WebhookEndpointId]>, answer: Option<&Json>) -> Vec<Event<'a>> {
    let ids = json!({ "job_id": job.id, "batch_id": job.batch_id, "collection_id": job.collection_id, "tag": job.tag });
    let event = |kind, more: Json| Event {
        kind,
        collection: Some(job.collection_id),
        job: Some(job.id),
        batch: job.batch_id,
        only,
        data: joined(&ids, more),
    };
    let kind = match job.state {
        JobState::Succeeded => EventType::JobSucceeded,
        JobState::Rejected => EventType::JobRejected,
        JobState::Failed => EventType::JobFailed,
        // What has not ended is not here.
        JobState::Cancelled | JobState::Queued | JobState::Running => EventType::JobCancelled,
    };
    // Of a verify there is one; of others, each face has its own.
    let decision = answer.and_then(|answer| answer.get("decision"));
    let code = job.problem_code.as_ref().filter(|_| matches!(job.state, JobState::Rejected | JobState::Failed));
    let more = json!({ "kind": job.kind, "state": job.state, "decision": decision, "problem_code": code });
    let mut events = vec![event(kind, more)];
    if matches!(job.kind, JobKind::Identify | JobKind::Index) {
        events.extend(answer.map(faces).unwrap_or_default().into_iter().map(|(kind, data)| {
            let data = joined(&data, json!({ "kind": job.kind }));
            event(kind, data)
        }));
    }
    events
}

/// What an answer says of its faces: each once, so that the same picture that comes again tells nothing new.
fn faces(answer: &Json) -> Vec<(EventType, Json)> {
    if answer["already_indexed"] == true {
        return Vec::new();
    }
    let faces = answer["faces"].as_array().map(Vec::as_slice).unwrap_or_default();
    let told = faces.iter().enumerate().filter_map(|(face, found)| {
        let decision: Decision = serde_json::from_value(found["decision"].clone()).ok()?;
        let is_match = decision == Decision::Match;
        let person = found["matches"][0].get("person_id").filter(|_| is_match);
        let kind = if is_match { EventType::FaceMatched } else { EventType::FaceUnknown };
        let data = json!({ "face": face, "face_id": found.get("face_id"), "person_id": person, "decision": decision });
        Some((kind, data))
    });
    told.collect()
}

/// Tells of batches that have ended in this transaction.
pub(in crate::db) async fn batches_ended(txn: &impl ConnectionTrait, ended: &[batch::Model]) -> Result<(), DbErr> {
    if ended.is_empty() {
        return Ok(());
    }
    let listeners = listeners(txn, ended.iter().map(|batch| batch.collection_id)).await?;
    for batch in ended {
        let only = only(batch.webhook_endpoint_ids.as_deref())?;
        let data = json!({
            "batch_id": batch.id,
            "collection_id": batch.collection_id,
            "tag": batch.tag,
            "kind": batch.kind,
            "state": batch.state,
            "round": batch.round,
            "jobs": { "succeeded": batch.succeeded, "rejected": batch.rejected, "failed": batch.failed,
                "cancelled": batch.cancelled },
        });
        let event = Event {
            kind: EventType::BatchCompleted,
            collection: Some(batch.collection_id),
            job: None,
            batch: Some(batch.id),
            only: only.as_deref(),
            data,
        };
        write(txn, &listeners, vec![event], batch.finished_at.unwrap_or_default()).await?;
    }
    Ok(())
}

/// Tells that a run has nothing left to do.
pub(in crate::db) async fn reprocess_completed(txn: &impl ConnectionTrait, run: &Run) -> Result<(), DbErr> {
    of_run(txn, run, EventType::ReprocessCompleted, &run.pipeline).await
}

/// Tells that a collection goes by that pipeline of its run.
pub(in crate::db) async fn reprocess_activated(
    txn: &impl ConnectionTrait,
    run: &Run,
    pipeline: &str,
) -> Result<(), DbErr> {
    of_run(txn, run, EventType::ReprocessActivated, pipeline).await
}

async fn of_run(txn: &impl ConnectionTrait, run: &Run, kind: EventType, pipeline: &str) -> Result<(), DbErr> {
    let listeners = listeners(txn, [run.collection_id]).await?;
    let data = json!({
        "reprocess_run_id": run.id, "collection_id": run.collection_id, "pipeline": pipeline, "state": run.state,
        "tag": run.tag,
    });
    let event = Event {
        kind,
        collection: Some(run.collection_id),
        job: None,
        batch: None,
        only: None,
        data: joined(&data, json!({})),
    };
    write(txn, &listeners, vec![event], now(txn).await?).await
}

/// Tells that nothing is left of what was erased, by its receipt: not who or what it was. Of a collection, and of what was in
/// one that is gone, whoever may see all is told.
pub(in crate::db) async fn erasure_completed(txn: &impl ConnectionTrait, done: &Erasure) -> Result<(), DbErr> {
    let listeners = listeners(txn, done.collection_id).await?;
    let data = json!({ "erasure_id": done.id, "collection_id": done.collection_id, "subject": done.subject });
    let event = Event {
        kind: EventType::ErasureCompleted,
        collection: done.collection_id,
        job: None,
        batch: None,
        only: None,
        data: joined(&data, json!({})),
    };
    write(txn, &listeners, vec![event], done.finished_at.unwrap_or_default()).await
}

/// Tells the other endpoints that one cannot be told: for the fourth time in a row, or because it was disabled.
pub(super) async fn endpoint_failing(
    txn: &impl ConnectionTrait,
    failing: WebhookEndpointId,
    disabled: Option<&str>,
) -> Result<(), DbErr> {
    let mut listeners = listeners(txn, []).await?;
    listeners.retain(|listener| listener.endpoint != failing);
    let data = json!({ "webhook_endpoint_id": failing, "disabled": disabled.is_some(), "reason": disabled });
    let at = now(txn).await?;
    write(txn, &listeners, vec![about_no_job(EventType::EndpointFailing, data)], at).await
}

/// Tells one endpoint that it is tried, whatever it wants to know. The delivery, or `None` where there is no such endpoint.
pub async fn test(txn: &impl ConnectionTrait, endpoint: WebhookEndpointId) -> Result<Option<WebhookDeliveryId>, DbErr> {
    let lock = if is_postgres(txn) { "FOR KEY SHARE" } else { "" };
    let sql = format!("SELECT count(*) AS n FROM (SELECT id FROM webhook_endpoints WHERE id = $1 {lock}) AS held");
    if count(txn, &sql, [endpoint.into()]).await? == 0 {
        return Ok(None);
    }
    let data = json!({ "webhook_endpoint_id": endpoint });
    let listener = Listener { endpoint, types: Vec::new(), collections: None };
    let at = now(txn).await?;
    let told = write_all(txn, &[listener], &[about_no_job(EventType::EndpointTest, data)], at).await?;
    Ok(told.first().copied())
}

fn about_no_job(kind: EventType, data: Json) -> Event<'static> {
    Event { kind, collection: None, job: None, batch: None, only: None, data }
}

fn only(text: Option<&str>) -> Result<Option<Vec<WebhookEndpointId>>, DbErr> {
    text.map(serde_json::from_str).transpose().map_err(|e| DbErr::Json(e.to_string()))
}

/// The fields of both, those that are null left out.
fn joined(one: &Json, two: Json) -> Json {
    let Json::Object(two) = two else { return one.clone() };
    let one = one.as_object().cloned().unwrap_or_default();
    Json::Object(one.into_iter().chain(two).filter(|(_, value)| !value.is_null()).collect())
}

/// Everybody who is told anything, with those of their collections that are asked about. None of them is deleted before the
/// transaction ends.
async fn listeners(
    txn: &impl ConnectionTrait,
    collections: impl IntoIterator<Item = CollectionId>,
) -> Result<Vec<Listener>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: WebhookEndpointId,
        event_types: String,
        all_collections: bool,
        collection_id: Option<CollectionId>,
    }
    let asked: HashSet<CollectionId> = collections.into_iter().collect();
    let lock = if is_postgres(txn) { "FOR KEY SHARE OF e" } else { "" };
    let of = if asked.is_empty() {
        "FALSE".to_owned()
    } else {
        format!("c.collection_id IN ({})", placeholders(1, asked.len()))
    };
    let sql = format!(
        "SELECT e.id, e.event_types, e.all_collections, c.collection_id FROM webhook_endpoints e
         LEFT JOIN webhook_endpoint_collections c ON c.endpoint_id = e.id AND {of}
         WHERE e.state <> 'disabled' ORDER BY e.id {lock}"
    );
    let rows = Row::find_by_statement(statement(txn, &sql, asked.into_iter().map(Value::from))).all(txn).await?;
    let mut listeners: Vec<Listener> = Vec::new();
    for row in rows {
        if listeners.last().is_none_or(|last| last.endpoint != row.id) {
            let collections = (!row.all_collections).then(HashSet::new);
            listeners.push(Listener { endpoint: row.id, types: endpoints::types(&row.event_types)?, collections });
        }
        if let Some(own) = listeners.last_mut().and_then(|last| last.collections.as_mut()) {
            own.extend(row.collection_id);
        }
    }
    Ok(listeners)
}

/// Writes those events that somebody wants.
async fn write(
    txn: &impl ConnectionTrait,
    listeners: &[Listener],
    mut events: Vec<Event<'_>>,
    at: i64,
) -> Result<(), DbErr> {
    events.retain(|event| listeners.iter().any(|listener| listener.wants(event)));
    if !events.is_empty() {
        write_all(txn, listeners, &events, at).await?;
    }
    Ok(())
}

const EVENT: [(&str, Column); 6] = [
    ("id", Column::Id),
    ("type", Column::Text),
    ("collection_id", Column::Id),
    ("job_id", Column::Id),
    ("batch_id", Column::Id),
    ("body", Column::Text),
];
const DELIVERY: [(&str, Column); 3] = [("id", Column::Id), ("event_id", Column::Id), ("endpoint_id", Column::Id)];

/// Writes events that happened at `at`; returns their deliveries.
async fn write_all(
    txn: &impl ConnectionTrait,
    listeners: &[Listener],
    events: &[Event<'_>],
    at: i64,
) -> Result<Vec<WebhookDeliveryId>, DbErr> {
    let (mut event_rows, mut delivery_rows, mut deliveries) = (Vec::new(), Vec::new(), Vec::new());
    for event in events {
        let id = WebhookEventId::new();
        event_rows.push(json!({
            "id": rows::id(id.0),
            "type": event.kind,
            "collection_id": rows::id(event.collection.map(|id| id.0)),
            "job_id": rows::id(event.job.map(|id| id.0)),
            "batch_id": rows::id(event.batch.map(|id| id.0)),
            "body": body(event, at),
        }));
        for listener in listeners.iter().filter(|listener| listener.wants(event)) {
            let delivery = WebhookDeliveryId::new();
            let endpoint = rows::id(listener.endpoint.0);
            delivery_rows
                .push(json!({ "id": rows::id(delivery.0), "event_id": rows::id(id.0), "endpoint_id": endpoint }));
            deliveries.push(delivery);
        }
    }
    let event_rows = Rows::new(&EVENT, event_rows);
    let sql = format!(
        "INSERT INTO webhook_events (id, type, collection_id, job_id, batch_id, body, created_at)
         SELECT r.id, r.type, r.collection_id, r.job_id, r.batch_id, r.body, {{now}} FROM {}",
        event_rows.table(txn)
    );
    execute(txn, &sql, [event_rows.value()]).await?;
    let delivery_rows = Rows::new(&DELIVERY, delivery_rows);
    let sql = format!(
        "INSERT INTO webhook_deliveries (id, event_id, endpoint_id, state, attempt, begun_at_attempt, run_at, created_at)
         SELECT r.id, r.event_id, r.endpoint_id, 'pending', 0, 0, {{now}}, {{now}} FROM {}",
        delivery_rows.table(txn)
    );
    execute(txn, &sql, [delivery_rows.value()]).await?;
    Ok(deliveries)
}

/// The exact text that is signed and sent, each time the same.
fn body(event: &Event<'_>, at: i64) -> String {
    let since = std::time::Duration::from_micros(u64::try_from(at).unwrap_or_default());
    let timestamp = humantime::format_rfc3339_micros(std::time::UNIX_EPOCH + since).to_string();
    json!({ "type": event.kind, "timestamp": timestamp, "data": event.data }).to_string()
}
