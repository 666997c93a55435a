//! An api and two workers on services of their own, and the hands that break them.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use services::postgres::Postgres;
use services::rabbitmq::RabbitMq;
use services::s3::{ACCESS_KEY, Fault, S3Server, SECRET_KEY};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;
use tokio::time::Instant;

use super::Tally;
use crate::server::command;

/// Jobs a worker takes at once.
const CONCURRENCY: &str = "4";
const LEASE: Duration = Duration::from_secs(3);
/// A leader keeps its role for ten seconds.
const LEADERSHIP: Duration = Duration::from_secs(13);
const START_TIMEOUT: Duration = Duration::from_secs(60);
const DATABASE: &str = "faults";

/// A process of face-id, and where its worker's probes listen.
struct Process {
    child: Child,
    address: String,
}

pub(crate) struct Rig {
    pub(crate) address: String,
    pub(crate) http: reqwest::Client,
    pub(crate) postgres: Postgres,
    pub(crate) rabbitmq: RabbitMq,
    s3: S3Server,
    folder: tempfile::TempDir,
    settings: Vec<(String, String)>,
    api: Process,
    workers: Vec<Process>,
    logs: usize,
}

/// Whom the job enrolls; also its idempotency key.
pub(crate) fn external_id(fault: usize, job: usize) -> String {
    format!("fault-{fault:02}-{job:05}")
}

impl Rig {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("face-id-faults").tempdir().unwrap();
        open_to_all(folder.path());
        let (postgres_dir, rabbitmq_dir) = (folder.path().join("postgres"), folder.path().join("rabbitmq"));
        let (postgres, rabbitmq) =
            tokio::try_join!(Postgres::start(&postgres_dir, false), RabbitMq::start(&rabbitmq_dir)).unwrap();
        let s3 = S3Server::start(&folder.path().join("s3"), 0).await.unwrap();
        s3.create_bucket("faults").await.unwrap();
        let settings = [
            ("FACE_ID_DATABASE__URL", postgres.create_database(DATABASE).await.unwrap()),
            ("FACE_ID_QUEUE__URL", rabbitmq.url()),
            ("FACE_ID_OBJECTS__BUCKET", "faults".to_owned()),
            ("FACE_ID_OBJECTS__ENDPOINT", s3.endpoint()),
            ("FACE_ID_OBJECTS__ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("FACE_ID_OBJECTS__SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("FACE_ID_OBJECTS__OPERATION_TIMEOUT_S", "8".to_owned()),
            ("FACE_ID_WORKER__LEASE_S", LEASE.as_secs().to_string()),
            ("FACE_ID_WORKER__HEARTBEAT_S", "1".to_owned()),
            ("FACE_ID_WORKER__REAP_S", "0.5".to_owned()),
            ("FACE_ID_WORKER__RETRY_BASE_S", "0.5".to_owned()),
            ("FACE_ID_WORKER__RETRY_MAX_S", "2".to_owned()),
            ("FACE_ID_WORKER__MAX_ATTEMPTS", "20".to_owned()),
            ("FACE_ID_WORKER__CONCURRENCY", CONCURRENCY.to_owned()),
            ("FACE_ID_WORKER__SESSIONS", "1".to_owned()),
            ("FACE_ID_QUEUE__PUBLISH_TIMEOUT_S", "3".to_owned()),
        ];
        let settings: Vec<_> = settings.map(|(name, value)| (name.to_owned(), value)).into();
        let migrated = command().arg("migrate").envs(settings.clone()).output().await.unwrap();
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        let http = reqwest::Client::builder().timeout(Duration::from_secs(15)).no_proxy().build().unwrap();
        let mut logs = 0;
        let api_arguments = ["api", "--bind", "127.0.0.1:0"];
        let api = start(&settings, &api_arguments, &[], "listening on ", next_log(&folder, &mut logs)).await;
        let mut workers = Vec::new();
        for _ in 0..2 {
            workers.push(start(&settings, &["worker"], &[], "probes on ", next_log(&folder, &mut logs)).await);
        }
        let address = api.address.clone();
        let rig = Self { address, http, postgres, rabbitmq, s3, folder, settings, api, workers, logs };
        let made = rig.http.post(format!("{}/v1/collections", rig.address)).json(&json!({ "name": "c" })).send().await;
        assert!(made.unwrap().status().is_success());
        rig
    }

    /// Adds a worker that dies at a point of its work, and waits until it has.
    pub(crate) async fn worker_that_dies_at(&mut self, point: &str) {
        let log = next_log(&self.folder, &mut self.logs);
        let crash = [("FACE_ID_CRASH_AT", point)];
        let mut doomed = start(&self.settings, &["worker"], &crash, "probes on ", log).await;
        // The load must reach it: the others stand back meanwhile.
        for worker in &self.workers {
            signal(&worker.child, Signal::STOP);
        }
        let died = tokio::time::timeout(START_TIMEOUT, doomed.child.wait()).await;
        for worker in &self.workers {
            signal(&worker.child, Signal::CONT);
        }
        let status = died.unwrap_or_else(|_| panic!("the worker never reached {point}")).unwrap();
        assert!(!status.success());
    }

    pub(crate) async fn kill_worker(&mut self) {
        self.workers[0].child.kill().await.unwrap();
    }

    /// Stops a worker in the middle of its jobs until others have taken them, and lets it go on.
    pub(crate) async fn zombie(&mut self) {
        // Pictures come slowly, so that it has jobs in its hands when it is stopped.
        self.s3.faults().set(Fault::Slow(Duration::from_millis(400)));
        tokio::time::sleep(Duration::from_millis(800)).await;
        signal(&self.workers[0].child, Signal::STOP);
        let before = self.metric(1, "face_id_leases_expired_total{became=\"queued\"}").await;
        tokio::time::sleep(LEASE + Duration::from_secs(4)).await;
        self.s3.faults().set(Fault::None);
        // If the stopped one led the reapers, the other has to take that over first.
        let began = Instant::now();
        while self.metric(1, "face_id_leases_expired_total{became=\"queued\"}").await <= before {
            assert!(began.elapsed() < LEADERSHIP + LEASE * 3, "nobody missed the stopped worker's jobs");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        signal(&self.workers[0].child, Signal::CONT);
        let began = Instant::now();
        while self.metric(0, "face_id_stale_writes_refused_total").await < 1.0 {
            assert!(began.elapsed() < Duration::from_secs(30), "the zombie never met the fence");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Replaces the api by one that dies at a point of its work, and that by an ordinary one.
    pub(crate) async fn api_that_dies_at(&mut self, point: &str) {
        self.replace_api(&[("FACE_ID_CRASH_AT", point)]).await;
        let died = tokio::time::timeout(START_TIMEOUT, self.api.child.wait()).await;
        let status = died.unwrap_or_else(|_| panic!("the api never reached {point}")).unwrap();
        assert!(!status.success());
        self.replace_api(&[]).await;
    }

    async fn replace_api(&mut self, variables: &[(&str, &str)]) {
        let _ = self.api.child.kill().await;
        let bind = self.address.strip_prefix("http://").unwrap().to_owned();
        let log = next_log(&self.folder, &mut self.logs);
        self.api = start(&self.settings, &["api", "--bind", &bind], variables, "listening on ", log).await;
    }

    pub(crate) async fn memory_alarm(&mut self, lasts: Duration) {
        self.rabbitmq.set_memory_alarm(true).await.unwrap();
        tokio::time::sleep(lasts).await;
        self.rabbitmq.set_memory_alarm(false).await.unwrap();
    }

    pub(crate) async fn terminate_sessions(&mut self) {
        for _ in 0..3 {
            let sql =
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'face-id'";
            self.postgres.psql(DATABASE, sql).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    pub(crate) async fn s3_for(&mut self, fault: Fault, lasts: Duration) {
        self.s3.faults().set(fault);
        tokio::time::sleep(lasts).await;
        self.s3.faults().set(Fault::None);
    }

    /// Takes the roles away from their holders, who trust in them for a while longer, so that two lead at once.
    pub(crate) async fn two_leaders(&mut self) {
        for _ in 0..8 {
            self.postgres.psql(DATABASE, "DELETE FROM leaders").await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Stops the process that leads the dispatchers, lets another take over, and lets it go on.
    pub(crate) async fn stop_the_leader(&mut self) {
        let role = "face_id_leader{role=\"dispatcher\"}";
        let began = Instant::now();
        let (leader, other) = loop {
            match (self.metric(0, role).await > 0.0, self.metric(1, role).await > 0.0) {
                (true, false) => break (0, 1),
                (false, true) => break (1, 0),
                _ => tokio::time::sleep(Duration::from_millis(200)).await,
            }
            assert!(began.elapsed() < LEADERSHIP * 2, "there is never just one leader");
        };
        signal(&self.workers[leader].child, Signal::STOP);
        let began = Instant::now();
        while self.metric(other, role).await < 1.0 {
            assert!(began.elapsed() < LEADERSHIP * 2, "nobody took the role over");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        signal(&self.workers[leader].child, Signal::CONT);
    }

    /// SIGTERM to a worker while it works, and how it ended.
    pub(crate) async fn stop_worker(&mut self, worker: usize) {
        signal(&self.workers[worker].child, Signal::TERM);
        let ended = tokio::time::timeout(START_TIMEOUT, self.workers[worker].child.wait()).await;
        assert!(ended.unwrap().unwrap().success());
    }

    /// Waits until a worker's readiness is as expected, and gives the time that took.
    pub(crate) async fn until_ready_is(&self, worker: usize, expected: bool, patience: Duration) -> Duration {
        let began = Instant::now();
        loop {
            let answer = self.http.get(format!("{}/readyz", self.workers[worker].address)).send().await.unwrap();
            if answer.status().is_success() == expected {
                return began.elapsed();
            }
            let found = answer.text().await.unwrap();
            assert!(began.elapsed() < patience, "ready should become {expected}: {found}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Replaces processes that died.
    pub(crate) async fn heal(&mut self) {
        for at in 0..self.workers.len() {
            if self.workers[at].child.try_wait().unwrap().is_some() {
                let log = next_log(&self.folder, &mut self.logs);
                self.workers[at] = start(&self.settings, &["worker"], &[], "probes on ", log).await;
            }
        }
        assert!(self.api.child.try_wait().unwrap().is_none(), "the api died\n{}", self.logs());
    }

    /// Waits for the acknowledged jobs of a fault and compares what they did with what they should have.
    pub(crate) async fn check(
        &self,
        fault: usize,
        attempted: usize,
        taken: &[(usize, String)],
        patience: Duration,
    ) -> Tally {
        let began = Instant::now();
        let mut states: HashMap<String, String> = HashMap::new();
        while began.elapsed() < patience {
            states = self.pairs("SELECT id, state FROM jobs").await;
            let is_over = |id: &String| states.get(id).is_none_or(|s| s != "queued" && s != "running");
            if taken.iter().all(|(_, id)| is_over(id)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        let faces = self
            .pairs(
                "SELECT p.external_id, count(f.id) FROM persons p LEFT JOIN faces f ON f.person_id = p.id
                 GROUP BY p.id, p.external_id",
            )
            .await;
        // An answer that names a face which is not its person's was written over somebody else's.
        let stale = self
            .pairs(
                "SELECT j.id, 'x' FROM jobs j JOIN job_payloads a ON a.job_id = j.id
                 WHERE j.state = 'succeeded' AND NOT EXISTS (SELECT 1 FROM faces f JOIN persons p ON p.id = f.person_id
                     WHERE f.id::text = a.result::json ->> 'face_id' AND p.external_id = a.result::json ->> 'external_id')",
            )
            .await;
        let mut tally = Tally { attempted, acknowledged: taken.len(), ..Tally::default() };
        for (job, id) in taken {
            let effects: usize = faces.get(&external_id(fault, *job)).map_or(0, |n| n.parse().unwrap());
            match states.get(id).map(String::as_str) {
                Some("succeeded") if effects >= 1 => tally.completed += 1,
                Some("queued" | "running") => tally.unfinished += 1,
                _ => tally.lost += 1,
            }
            tally.doubled += effects.saturating_sub(1);
            tally.stale_writes += usize::from(stale.contains_key(id));
        }
        tally
    }

    /// What the processes logged last, for whoever has to find out why.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for n in 0..self.logs {
            let log = std::fs::read_to_string(self.folder.path().join(format!("{n}.log"))).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            write!(text, "\n--- {n}\n{}", lines[lines.len().saturating_sub(40)..].join("\n")).unwrap();
        }
        text
    }

    /// Ends everything as a service manager would.
    pub(crate) async fn stop(mut self) {
        for process in self.workers.iter_mut().chain([&mut self.api]) {
            signal(&process.child, Signal::TERM);
            let status = tokio::time::timeout(START_TIMEOUT, process.child.wait()).await.unwrap().unwrap();
            assert!(status.success(), "SIGTERM ends it cleanly, got {status}");
        }
        tokio::try_join!(self.postgres.stop(), self.rabbitmq.stop()).unwrap();
    }

    async fn pairs(&self, sql: &str) -> HashMap<String, String> {
        let rows = self.postgres.psql(DATABASE, sql).await.unwrap();
        rows.lines().filter_map(|row| row.split_once('|')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
    }

    /// Rows of the database, two columns each.
    pub(crate) async fn jobs_by_attempt(&self) -> HashMap<String, String> {
        self.pairs("SELECT state || ' ' || attempt, count(*) FROM jobs GROUP BY 1").await
    }

    /// A worker's metric; 0 where it has none.
    pub(crate) async fn metric(&self, worker: usize, name: &str) -> f64 {
        let answer = self.http.get(format!("{}/metrics", self.workers[worker].address)).send().await.unwrap();
        let text = answer.text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }
}

fn next_log(folder: &tempfile::TempDir, logs: &mut usize) -> PathBuf {
    *logs += 1;
    folder.path().join(format!("{}.log", *logs - 1))
}

async fn start(
    settings: &[(String, String)],
    arguments: &[&str],
    variables: &[(&str, &str)],
    prefix: &str,
    log: PathBuf,
) -> Process {
    let mut child = command()
        .args(arguments)
        .envs(settings.iter().cloned())
        .envs(variables.iter().copied())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(START_TIMEOUT, lines.next_line()).await.unwrap().unwrap();
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let line = line.unwrap_or_else(|| panic!("{arguments:?} ended at once:\n{}", said()));
    let address = line.strip_prefix(prefix).unwrap().to_owned();
    Process { child, address }
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).unwrap())) {
        kill_process(pid, signal).unwrap();
    }
}

/// The database server runs as another user where this is root.
fn open_to_all(folder: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}
