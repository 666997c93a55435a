//! The load: jobs of one picture each, alone or in a batch. Each request has a key of its own and is sent again with that
//! key until it is acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::rig::Rig;
use crate::server::{inline, photo};

/// Clients that send at once.
const CLIENTS: usize = 6;
/// Pause of each client between two jobs.
const PAUSE: Duration = Duration::from_millis(100);
/// How long one job is tried to be sent.
const GIVE_UP: Duration = Duration::from_secs(60);

/// What a job of the load does: each kind stores one face.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Under a person of its own; in the interactive lane.
    Enroll,
    /// In the bulk lane.
    Index,
}

/// A batch of pictures, whose jobs travel in common messages and are recorded together.
pub(crate) struct Batch {
    place: String,
    pub(crate) pictures: usize,
}

/// A load that is being sent.
pub(crate) struct Load {
    clients: JoinSet<Vec<String>>,
    acknowledged: Arc<AtomicUsize>,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Enroll => "enroll",
            Self::Index => "index",
        }
    }
}

/// A job's body; the key is its tag too, and whom it enrolls.
pub(crate) fn request(kind: Kind, key: &str, seed: u32) -> Value {
    let mut body = json!({ "image": inline(&photo(&[seed])), "tag": key });
    if matches!(kind, Kind::Enroll) {
        body["person"] = json!({ "external_id": key });
    }
    body
}

impl Batch {
    /// Puts the pictures where a batch finds them.
    pub(crate) async fn put(rig: &Rig, fault: usize, pictures: usize) -> Self {
        for n in 0..pictures {
            let picture = photo(&[u32::try_from(fault * 10_000 + 5_000 + n).unwrap()]);
            rig.library.put(&format!("fault-{fault:02}/{n:05}.png"), &picture).await;
        }
        Self { place: format!("s3://{}/fault-{fault:02}/", rig.library.name), pictures }
    }

    /// Has them indexed; the batch's id.
    pub(crate) async fn post(&self, rig: &Rig) -> String {
        let body = json!({ "collection": "c", "kind": "index", "source": { "s3": self.place } });
        let sent = send(&rig.http, &format!("{}/v1/batches", rig.address), &self.place, &body).await;
        sent.expect("no batch is accepted although nothing is wrong")
    }
}

impl Load {
    /// Begins to send `jobs` jobs of these kinds in turn.
    pub(crate) fn begin(rig: &Rig, fault: usize, jobs: usize, kinds: &'static [Kind]) -> Self {
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let next = Arc::new(AtomicUsize::new(0));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (next, acknowledged) = (Arc::clone(&next), Arc::clone(&acknowledged));
            let (http, collection) = (rig.http.clone(), format!("{}/v1/collections/c", rig.address));
            clients.spawn(async move {
                let mut taken = Vec::new();
                loop {
                    let job = next.fetch_add(1, Ordering::SeqCst);
                    if job >= jobs {
                        return taken;
                    }
                    let (kind, key) = (kinds[job % kinds.len()], format!("fault-{fault:02}-{job:05}"));
                    let body = request(kind, &key, u32::try_from(fault * 10_000 + job).unwrap());
                    if let Some(id) = send(&http, &format!("{collection}/{}", kind.as_str()), &key, &body).await {
                        acknowledged.fetch_add(1, Ordering::SeqCst);
                        taken.push(id);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        Self { clients, acknowledged }
    }

    /// Waits until so many jobs were acknowledged.
    pub(crate) async fn reached(&self, jobs: usize) {
        let began = Instant::now();
        while self.acknowledged.load(Ordering::SeqCst) < jobs {
            assert!(began.elapsed() < GIVE_UP, "no job is accepted although nothing is wrong");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until all were sent; the ids of those that were acknowledged.
    pub(crate) async fn end(mut self) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(taken) = self.clients.join_next().await {
            all.extend(taken.unwrap());
        }
        all
    }
}

/// Sends one job until it is acknowledged; its id.
async fn send(http: &reqwest::Client, url: &str, key: &str, body: &Value) -> Option<String> {
    let began = Instant::now();
    while began.elapsed() < GIVE_UP {
        let sent = http.post(url).header("idempotency-key", key).json(body).send().await;
        if let Ok(answer) = sent {
            let status = answer.status();
            if status == StatusCode::ACCEPTED
                && let Ok(job) = answer.json::<Value>().await
            {
                return job["id"].as_str().map(str::to_owned);
            }
            // An earlier try of the same job may be committed at this moment.
            let is_ours = status.is_client_error() && status != StatusCode::CONFLICT;
            assert!(!is_ours, "{status} is nobody's fault but the client's");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    None
}
