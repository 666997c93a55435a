//! The load: enroll jobs, each with a key of its own, sent again with that key until it is acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::rig::{Rig, external_id};
use crate::server::photo;

/// Clients that send at once.
const CLIENTS: usize = 6;
/// Pause of each client between two jobs.
const PAUSE: Duration = Duration::from_millis(100);
/// How long one job is tried to be sent.
const GIVE_UP: Duration = Duration::from_secs(60);

/// A load that is being sent.
pub(crate) struct Load {
    clients: JoinSet<Vec<(usize, String)>>,
    acknowledged: Arc<AtomicUsize>,
}

impl Load {
    /// Begins to send `jobs` jobs.
    pub(crate) fn begin(rig: &Rig, fault: usize, jobs: usize) -> Self {
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let next = Arc::new(AtomicUsize::new(0));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (next, acknowledged) = (Arc::clone(&next), Arc::clone(&acknowledged));
            let (http, url) = (rig.http.clone(), format!("{}/v1/collections/c/enroll", rig.address));
            clients.spawn(async move {
                let mut taken = Vec::new();
                loop {
                    let job = next.fetch_add(1, Ordering::SeqCst);
                    if job >= jobs {
                        return taken;
                    }
                    if let Some(id) = send(&http, &url, fault, job).await {
                        acknowledged.fetch_add(1, Ordering::SeqCst);
                        taken.push((job, id));
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

    /// Waits until all were sent; number and id of those that were acknowledged.
    pub(crate) async fn end(mut self) -> Vec<(usize, String)> {
        let mut all = Vec::new();
        while let Some(taken) = self.clients.join_next().await {
            all.extend(taken.unwrap());
        }
        all
    }
}

/// Sends one job until it is acknowledged; its id.
async fn send(http: &reqwest::Client, url: &str, fault: usize, job: usize) -> Option<String> {
    let key = external_id(fault, job);
    let seed = u32::try_from(fault * 10_000 + job).unwrap();
    let picture = base64::engine::general_purpose::STANDARD.encode(photo(&[seed]));
    let body = json!({ "image": { "base64": picture }, "person": { "external_id": key } });
    let began = Instant::now();
    while began.elapsed() < GIVE_UP {
        let sent = http.post(url).header("idempotency-key", &key).json(&body).send().await;
        if let Ok(answer) = sent {
            let status = answer.status();
            if status == StatusCode::ACCEPTED
                && let Ok(job) = answer.json::<Value>().await
            {
                return job["id"].as_str().map(str::to_owned);
            }
            assert!(!status.is_client_error(), "{status} is nobody's fault but the client's");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    None
}
