//! An api and two workers on services of their own, and what became of their jobs.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use services::postgres::Postgres;
use services::rabbitmq::RabbitMq;
use services::s3::{ACCESS_KEY, S3Server, SECRET_KEY};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;
use tokio::time::Instant;

use super::history::{self, Found, History, Job, is_terminal};
use super::tally::Tally;
use crate::server::{API_KEY, Bucket, command, http, make_key, until_ready_is};

/// Jobs a worker takes at once.
const CONCURRENCY: &str = "4";
pub(super) const LEASE: Duration = Duration::from_secs(3);
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(60);
pub(super) const DATABASE: &str = "faults";
const DATABASE_URL: &str = "FACE_ID_DATABASE__URL";

/// A process of face-id, and where its worker's probes listen.
pub(super) struct Process {
    pub(super) child: Child,
    pub(super) address: String,
}

pub(crate) struct Rig {
    pub(crate) address: String,
    pub(crate) http: reqwest::Client,
    pub(crate) postgres: Postgres,
    pub(crate) rabbitmq: RabbitMq,
    pub(crate) s3: S3Server,
    /// Pictures of batches.
    pub(crate) library: Bucket,
    pub(super) folder: tempfile::TempDir,
    pub(super) settings: Vec<(String, String)>,
    pub(super) api: Process,
    pub(super) workers: Vec<Process>,
    pub(super) logs: usize,
    /// Acknowledged jobs that a fault sent itself since the last check.
    pub(super) more: Vec<String>,
    /// What the history held at the last check.
    found: Found,
}

impl Rig {
    /// Starts everything; `own` are further settings.
    pub(crate) async fn start(own: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("face-id-faults").tempdir().unwrap();
        open_to_all(folder.path());
        let (postgres_dir, rabbitmq_dir) = (folder.path().join("postgres"), folder.path().join("rabbitmq"));
        let (postgres, rabbitmq) =
            tokio::try_join!(Postgres::start(&postgres_dir, false), RabbitMq::start(&rabbitmq_dir)).unwrap();
        let s3 = S3Server::start(&folder.path().join("s3"), 0).await.unwrap();
        s3.create_bucket("faults").await.unwrap();
        let library = Bucket::make(&s3, "library".to_owned()).await;
        let settings = [
            (DATABASE_URL, postgres.create_database(DATABASE).await.unwrap()),
            ("FACE_ID_QUEUE__URL", rabbitmq.url()),
            ("FACE_ID_OBJECTS__BUCKET", "faults".to_owned()),
            ("FACE_ID_OBJECTS__ENDPOINT", s3.endpoint()),
            ("FACE_ID_OBJECTS__ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("FACE_ID_OBJECTS__SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("FACE_ID_OBJECTS__ALLOWED_BUCKETS", library.name.clone()),
            ("FACE_ID_SERVER__SECRET_KEY", services::FACE_ID_SECRET_KEY.to_owned()),
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
        let own = own.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let mut settings: Vec<_> =
            settings.into_iter().chain(own).map(|(name, value)| (name.to_owned(), value)).collect();
        let migrated = command().arg("migrate").envs(settings.clone()).output().await.unwrap();
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        history::begin(&postgres, DATABASE).await;
        let key = make_key(&settings, &["--scope", "admin"]).await["token"].as_str().unwrap().to_owned();
        let http = http(Some(&key), Duration::from_secs(15));
        settings.push((API_KEY.to_owned(), key));
        let mut logs = 0;
        let api_arguments = ["api", "--bind", "127.0.0.1:0"];
        let api = start(&settings, &api_arguments, &[], "listening on ", next_log(&folder, &mut logs)).await;
        let mut workers = Vec::new();
        for _ in 0..2 {
            workers.push(start(&settings, &["worker"], &[], "probes on ", next_log(&folder, &mut logs)).await);
        }
        let address = api.address.clone();
        let (more, found) = (Vec::new(), Found::default());
        let rig =
            Self { address, http, postgres, rabbitmq, s3, library, folder, settings, api, workers, logs, more, found };
        let made = rig.http.post(format!("{}/v1/collections", rig.address)).json(&json!({ "name": "c" })).send().await;
        assert!(made.unwrap().status().is_success());
        rig
    }

    /// SIGTERM to a worker while it works, and how long it took to end.
    pub(crate) async fn stop_worker(&mut self, worker: usize) -> Duration {
        let began = Instant::now();
        signal(&self.workers[worker].child, Signal::TERM);
        let ended = tokio::time::timeout(START_TIMEOUT, self.workers[worker].child.wait()).await;
        assert!(ended.unwrap().unwrap().success());
        began.elapsed()
    }

    /// Waits until a worker's readiness is as expected.
    pub(crate) async fn until_ready_is(&self, worker: usize, expected: bool, patience: Duration) {
        until_ready_is(&self.workers[worker].address, expected, patience).await;
    }

    /// Jobs that a worker runs.
    pub(crate) async fn running(&self, worker: usize) -> usize {
        let pid = self.workers[worker].child.id().unwrap();
        let sql =
            format!("SELECT count(*) FROM jobs j JOIN claims c ON c.id = j.claim_id WHERE c.owner LIKE '% pid {pid}'");
        self.count(&sql).await
    }

    /// How often a job was given back.
    pub(crate) async fn given_back(&self) -> usize {
        self.count("SELECT count(*) FROM history WHERE before = 'running' AND after = 'queued'").await
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

    /// Waits for the end of every job there is, acknowledged or not, and compares what they did with what they should have
    /// since the last check. Acknowledged were the jobs of `taken`, and a batch of so many.
    pub(crate) async fn check(
        &mut self,
        attempted: usize,
        taken: &[String],
        batch: Option<(String, usize)>,
        patience: Duration,
    ) -> Tally {
        let open = self.open(patience).await;
        let history = History::read(&self.postgres, DATABASE).await;
        let earlier = std::mem::replace(&mut self.found, history.judge());
        let found = Found {
            doubled: self.found.doubled - earlier.doubled,
            stale_writes: self.found.stale_writes - earlier.stale_writes,
        };
        let more = std::mem::take(&mut self.more);
        let attempted = attempted + more.len();
        let of_batch = |job: &Job| batch.as_ref().is_some_and(|(id, _)| job.batch.as_ref() == Some(id));
        let is_taken = |job: &Job| taken.contains(&job.id) || more.contains(&job.id);
        let jobs: Vec<_> = history.jobs.iter().filter(|job| is_taken(job) || of_batch(job)).collect();
        let acknowledged = taken.len() + more.len() + batch.as_ref().map_or(0, |(_, pictures)| *pictures);
        let completed = jobs.iter().filter(|job| job.state == "succeeded" && job.faces >= 1).count();
        let waiting = jobs.iter().filter(|job| !is_terminal(&job.state)).count();
        Tally { attempted, acknowledged, completed, lost: acknowledged - completed - waiting, unfinished: open, found }
    }

    /// Jobs that are queued or running, and batches that are not over, once there is none or `patience` is at its end: the
    /// server makes jobs by itself, to match faces again.
    pub(crate) async fn open(&self, patience: Duration) -> usize {
        let sql = "SELECT (SELECT count(*) FROM jobs WHERE state IN ('queued', 'running'))
            + (SELECT count(*) FROM batches WHERE finished_at IS NULL)";
        let began = Instant::now();
        loop {
            let open = self.count(sql).await;
            if open == 0 || began.elapsed() > patience {
                return open;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Batches whose counts are not those of their jobs, all of which have succeeded.
    pub(crate) async fn wrong_accounts(&self) -> String {
        let sql = "SELECT * FROM batches b WHERE state <> 'completed' OR (items, faces) <> (succeeded, succeeded)
            OR succeeded <> (SELECT count(*) FROM jobs j WHERE j.batch_id = b.id AND j.state = 'succeeded')";
        self.postgres.psql(DATABASE, sql).await.unwrap()
    }

    async fn count(&self, sql: &str) -> usize {
        self.postgres.psql(DATABASE, sql).await.unwrap().trim().parse().unwrap()
    }

    /// Whether one of the processes has logged this.
    pub(crate) fn have_said(&self, text: &str) -> bool {
        let log = |n| std::fs::read_to_string(self.folder.path().join(format!("{n}.log"))).unwrap_or_default();
        (0..self.logs).any(|n| log(n).contains(text))
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

    /// How many jobs there are of each state and attempt.
    pub(crate) async fn jobs_by_attempt(&self) -> HashMap<String, usize> {
        let sql = "SELECT state || ' ' || attempt, count(*) FROM jobs GROUP BY 1";
        let rows = self.postgres.psql(DATABASE, sql).await.unwrap();
        rows.lines().filter_map(|row| row.split_once('|')).map(|(a, n)| (a.to_owned(), n.parse().unwrap())).collect()
    }

    /// A worker's metric; 0 where it has none.
    pub(crate) async fn metric(&self, worker: usize, name: &str) -> f64 {
        let answer = self.http.get(format!("{}/metrics", self.workers[worker].address)).send().await.unwrap();
        let text = answer.text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }
}

pub(super) fn next_log(folder: &tempfile::TempDir, logs: &mut usize) -> PathBuf {
    *logs += 1;
    folder.path().join(format!("{}.log", *logs - 1))
}

pub(super) async fn start(
    settings: &[(String, String)],
    arguments: &[&str],
    variables: &[(&str, &str)],
    prefix: &str,
    log: PathBuf,
) -> Process {
    let name = log.file_stem().unwrap().to_str().unwrap();
    let database = settings.iter().find(|(name, _)| name == DATABASE_URL).map(|(_, url)| history::signed(url, name));
    let mut child = command()
        .args(arguments)
        .envs(settings.iter().cloned())
        .env(DATABASE_URL, database.unwrap())
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

pub(super) fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).unwrap())) {
        kill_process(pid, signal).unwrap();
    }
}

/// The database server runs as another user where this is root.
fn open_to_all(folder: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}
