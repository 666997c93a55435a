//! Prometheus metrics: one function a thing that happens, so that names and labels stand in one place.
//!
//! Labels are kinds, lanes, states and routes, never ids: their number stays bounded.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};

use crate::db::entity::face;
use crate::job::{JobKind, JobState, Lane};

/// Upper bounds of the latency buckets, in seconds.
const LATENCY_S: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];
/// Upper bounds of the buckets of a share.
const SHARE: [f64; 8] = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0];

static EXPORTER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Begins to gather; what happened before is not counted. Call it once at start.
///
/// # Errors
/// Another recorder was installed.
pub fn install() -> Result<(), BuildError> {
    if EXPORTER.get().is_some() {
        return Ok(());
    }
    let handle = PrometheusBuilder::new()
        .set_buckets(&LATENCY_S)?
        .set_buckets_for_metric(
            metrics_exporter_prometheus::Matcher::Full("face_id_inference_batch_fill".to_owned()),
            &SHARE,
        )?
        .install_recorder()?;
    describe();
    let _ = EXPORTER.set(handle);
    Ok(())
}

/// The metrics in Prometheus' text format; empty before [`install`].
pub fn render() -> String {
    EXPORTER.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// Folds what was gathered since the last call; without it memory grows while nobody reads the metrics.
pub fn fold() {
    if let Some(handle) = EXPORTER.get() {
        handle.run_upkeep();
    }
}

fn describe() {
    for (name, text) in [
        ("face_id_jobs_accepted_total", "Jobs answered with 202, by kind."),
        ("face_id_jobs_ended_total", "Jobs that ended, by kind and state."),
        ("face_id_jobs_refused_total", "Jobs and batches refused because too much waits, by lane and code."),
        ("face_id_http_connections_refused_total", "Connections for which there was no place."),
        ("face_id_attempts_failed_total", "Attempts that failed and are repeated, by kind."),
        ("face_id_images_read_total", "Pictures fetched for a job, by where they lie: object, reference or file."),
        ("face_id_crops_read_total", "Kept crops of faces fetched in place of pictures."),
        ("face_id_faces_changed_total", "Changes of faces by hand: assigned, unassigned, hidden or unhidden."),
        ("face_id_faces_clustered_total", "Unknown faces that were looked at for where they belong."),
        ("face_id_clusters_merged_total", "Times that two clusters, or faces alone, became one by themselves."),
        ("face_id_messages_published_total", "Messages handed to the queue, by result."),
        ("face_id_messages_delivered_total", "Messages received from the queue, by lane and whether they came again."),
        ("face_id_dead_letters_total", "Messages that the queue gave up."),
        ("face_id_stale_writes_refused_total", "Attempts that wanted to write after their claim was taken away."),
        ("face_id_leases_expired_total", "Jobs whose worker went silent, by what became of them."),
        ("face_id_webhook_attempts_total", "Attempts to tell a webhook endpoint of an event, by outcome."),
        ("face_id_queue_epochs_total", "Times the queue was found new or without its messages."),
    ] {
        describe_counter!(name, text);
    }
    describe_levels();
    describe_distributions();
}

fn describe_levels() {
    for (name, unit, text) in [
        ("face_id_queue_connected", Unit::Count, "1 while the connection to the broker stands, by direction."),
        ("face_id_queue_blocked", Unit::Count, "1 while the broker takes no messages (memory or disk alarm)."),
        (
            "face_id_outbox_jobs",
            Unit::Count,
            "Jobs that are due and not dispatched, by lane; up to the queue's capacity.",
        ),
        ("face_id_outbox_oldest_age_seconds", Unit::Seconds, "How long the oldest of them has been due, by lane."),
        (
            "face_id_waiting_jobs",
            Unit::Count,
            "Jobs of no batch that wait for a worker, by pipeline and lane; up to server.max_queued_jobs.",
        ),
        ("face_id_waiting_oldest_age_seconds", Unit::Seconds, "How long the first of them has been due."),
        ("face_id_http_connections", Unit::Count, "Connections of clients."),
        ("face_id_last_progress_timestamp_seconds", Unit::Seconds, "When this worker last ended a job (Unix time)."),
        ("face_id_webhook_pending", Unit::Count, "Events that wait to be told to an endpoint; up to 100000."),
        ("face_id_webhook_oldest_pending_age_seconds", Unit::Seconds, "How long the oldest of them has waited."),
        ("face_id_webhook_endpoints_disabled", Unit::Count, "Webhook endpoints that are disabled."),
        ("face_id_pipelines_loaded", Unit::Count, "Pipelines whose models are in memory."),
        (
            "face_id_pipeline_loaded_bytes",
            Unit::Bytes,
            "What a pipeline's loaded models are counted with against worker.models_memory_mib; 0 when unloaded.",
        ),
        ("face_id_pipelines_bound", Unit::Count, "1 while this worker takes the jobs of a pipeline."),
        ("face_id_leader", Unit::Count, "1 while this worker leads, by role."),
    ] {
        describe_gauge!(name, unit, text);
    }
}

fn describe_distributions() {
    for (name, unit, text) in [
        ("face_id_job_wait_seconds", Unit::Seconds, "From a job's creation to its first attempt, by lane."),
        (
            "face_id_job_run_seconds",
            Unit::Seconds,
            "From the start of the last attempt to the job's end, by kind and lane.",
        ),
        ("face_id_webhook_attempt_seconds", Unit::Seconds, "Attempts to tell a webhook endpoint, by outcome."),
        ("face_id_http_request_seconds", Unit::Seconds, "HTTP requests, by route, method and status."),
        (
            "face_id_inference_batch_fill",
            Unit::Count,
            "Share of a batch's rows that were inputs; the others were padding. By stage and the batch's rows.",
        ),
    ] {
        describe_histogram!(name, unit, text);
    }
}

/// A job was accepted.
pub fn job_accepted(kind: JobKind) {
    counter!("face_id_jobs_accepted_total", "kind" => kind.as_str()).increment(1);
}

/// A job's first attempt begins, `waited` after the job was made.
pub fn job_started(lane: Lane, waited: Duration) {
    histogram!("face_id_job_wait_seconds", "lane" => lane.as_str()).record(waited);
}

/// A job ended; its last attempt took `run`.
pub fn job_ended(kind: JobKind, lane: Lane, state: JobState, run: Duration) {
    counter!("face_id_jobs_ended_total", "kind" => kind.as_str(), "state" => state.as_str()).increment(1);
    histogram!("face_id_job_run_seconds", "kind" => kind.as_str(), "lane" => lane.as_str()).record(run);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    gauge!("face_id_last_progress_timestamp_seconds").set(now.as_secs_f64());
}

/// An attempt failed and is repeated.
pub fn attempt_failed(kind: JobKind) {
    counter!("face_id_attempts_failed_total", "kind" => kind.as_str()).increment(1);
}

/// A picture was fetched; `place` is object, reference or file.
pub fn image_read(place: &'static str) {
    counter!("face_id_images_read_total", "place" => place).increment(1);
}

/// A kept crop was fetched.
pub fn crop_read() {
    counter!("face_id_crops_read_total").increment(1);
}

/// So many connections of clients stand.
pub fn connections(open: usize) {
    gauge!("face_id_http_connections").set(open as f64);
}

/// A connection found no place.
pub fn connection_refused() {
    counter!("face_id_http_connections_refused_total").increment(1);
}

/// A face was changed by hand.
pub fn face_changed(before: &face::Model, after: &face::Model) {
    let assigned = if after.person_id.is_some() { "assigned" } else { "unassigned" };
    let hidden = if after.hidden { "hidden" } else { "unhidden" };
    let changes = [(before.person_id != after.person_id, assigned), (before.hidden != after.hidden, hidden)];
    for (_, change) in changes.into_iter().filter(|(changed, _)| *changed) {
        counter!("face_id_faces_changed_total", "change" => change).increment(1);
    }
}

/// Unknown faces were placed, and clusters became one.
pub fn faces_clustered(faces: usize, merges: usize) {
    counter!("face_id_faces_clustered_total").increment(faces as u64);
    counter!("face_id_clusters_merged_total").increment(merges as u64);
}

/// A message was handed to the queue; `result` is ack, full or unavailable.
pub fn published(result: &'static str) {
    counter!("face_id_messages_published_total", "result" => result).increment(1);
}

/// A message came.
pub fn delivered(lane: Lane, redelivered: bool) {
    let redelivered = if redelivered { "true" } else { "false" };
    counter!("face_id_messages_delivered_total", "lane" => lane.as_str(), "redelivered" => redelivered).increment(1);
}

/// The queue gave up a message.
pub fn dead_letter() {
    counter!("face_id_dead_letters_total").increment(1);
}

/// An attempt wanted to write after its claim was taken away.
pub fn stale_write_refused() {
    counter!("face_id_stale_writes_refused_total").increment(1);
}

/// So many pipelines have their models in memory.
pub fn pipelines_loaded(count: usize) {
    gauge!("face_id_pipelines_loaded").set(count as f64);
}

/// A pipeline's models are in memory and take so much, or nothing any more; there are few pipelines.
pub fn pipeline_loaded(pipeline: &str, bytes: u64) {
    gauge!("face_id_pipeline_loaded_bytes", "pipeline" => pipeline.to_owned()).set(bytes as f64);
}

/// This worker takes the jobs of a pipeline or not.
pub fn pipeline_bound(pipeline: &str, bound: bool) {
    gauge!("face_id_pipelines_bound", "pipeline" => pipeline.to_owned()).set(f64::from(u8::from(bound)));
}

/// Jobs lost their worker.
pub fn leases_expired(requeued: usize, ended: usize) {
    counter!("face_id_leases_expired_total", "became" => "queued").increment(requeued as u64);
    counter!("face_id_leases_expired_total", "became" => "ended").increment(ended as u64);
}

/// The queue has lost its messages, or is new.
pub fn queue_epoch_begun() {
    counter!("face_id_queue_epochs_total").increment(1);
}

/// The broker's connection for that direction (publish or consume) stands or not.
pub fn queue_connected(direction: &'static str, up: bool) {
    gauge!("face_id_queue_connected", "direction" => direction).set(f64::from(u8::from(up)));
}

/// The broker takes messages or not.
pub fn queue_blocked(blocked: bool) {
    gauge!("face_id_queue_blocked").set(f64::from(u8::from(blocked)));
}

/// What waits to be dispatched in a lane.
pub fn outbox(lane: Lane, jobs: usize, oldest: Duration) {
    gauge!("face_id_outbox_jobs", "lane" => lane.as_str()).set(jobs as f64);
    gauge!("face_id_outbox_oldest_age_seconds", "lane" => lane.as_str()).set(oldest.as_secs_f64());
}

/// What waits for a worker in a lane of a pipeline; there are few pipelines.
pub fn waiting(pipeline: &str, lane: Lane, jobs: u64, oldest: Duration) {
    let labels = [("pipeline", pipeline.to_owned()), ("lane", lane.as_str().to_owned())];
    gauge!("face_id_waiting_jobs", &labels).set(jobs as f64);
    gauge!("face_id_waiting_oldest_age_seconds", &labels).set(oldest.as_secs_f64());
}

/// A job or batch was refused because too much waits.
pub fn job_refused(lane: Lane, code: &'static str) {
    counter!("face_id_jobs_refused_total", "lane" => lane.as_str(), "code" => code).increment(1);
}

/// This process leads in a role or not.
pub fn leads(role: &'static str, leads: bool) {
    gauge!("face_id_leader", "role" => role).set(f64::from(u8::from(leads)));
}

/// A run of a model took `inputs` in a batch of `rows`, which has few values; `stage` is detector or recognizer.
pub fn batch_run(stage: &'static str, inputs: usize, rows: usize) {
    let fill = inputs as f64 / rows.max(1) as f64;
    histogram!("face_id_inference_batch_fill", "stage" => stage, "rows" => rows.to_string()).record(fill);
}

/// A webhook endpoint was told; `outcome` is `delivered`, `redirect`, `client_error`, `server_error` or `no_answer`.
pub fn webhook_attempted(outcome: &'static str, took: Duration) {
    counter!("face_id_webhook_attempts_total", "outcome" => outcome).increment(1);
    histogram!("face_id_webhook_attempt_seconds", "outcome" => outcome).record(took);
}

/// What waits to be told, and how many endpoints are not told any more.
pub fn webhook_backlog(pending: i64, oldest: Duration, disabled: i64) {
    gauge!("face_id_webhook_pending").set(pending as f64);
    gauge!("face_id_webhook_oldest_pending_age_seconds").set(oldest.as_secs_f64());
    gauge!("face_id_webhook_endpoints_disabled").set(disabled as f64);
}

/// A request was answered.
pub fn http_answered(route: String, method: &'static str, status: u16, took: Duration) {
    histogram!("face_id_http_request_seconds", "route" => route, "method" => method, "status" => status.to_string())
        .record(took);
}
