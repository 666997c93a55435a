//! A server of a test's own, embedded or on real services, and its client.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use services::s3::S3Server;
use shared::objects::{ObjectStore as _, S3Options, S3Store};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use uuid::Uuid;
use worker::testing::{repository, synthetic_photo};

/// Nothing here takes nearly as long on a slow machine.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The variable with the key that a command sends.
pub(crate) const API_KEY: &str = "FACE_ID_API_KEY";
/// Pictures of tests are this large.
pub(crate) const SIDE: u32 = 256;

/// Runs each test on the embedded set-up and on real services.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::server::Site::embedded()).await;
            })*
        }
        mod services {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::server::Site::services().await).await;
            })*
        }
    };
}
pub(crate) use on_both;

/// Where one test's data is, for servers that come and go.
pub(crate) struct Site {
    folder: tempfile::TempDir,
    /// Settings that name a database, a bucket and queues of the test's own; none in embedded mode.
    services: Option<Vec<(&'static str, String)>>,
    objects: PathBuf,
    /// What its servers are called with: on services one that may do everything; none in embedded mode, which is open.
    key: Option<String>,
}

/// A bucket that is not the installation's.
pub(crate) struct Bucket {
    pub(crate) name: String,
    store: S3Store,
}

impl Bucket {
    /// Makes it in the S3 server where there is none.
    pub(crate) async fn make(s3: &S3Server, name: String) -> Self {
        s3.create_bucket(&name).await.unwrap();
        let options = S3Options {
            bucket: name.clone(),
            endpoint: Some(s3.endpoint()),
            access_key_id: services::s3::ACCESS_KEY.to_owned(),
            secret_access_key: services::s3::SECRET_KEY.to_owned(),
            path_style: true,
            ..S3Options::default()
        };
        Self { name, store: S3Store::open(options).unwrap() }
    }

    pub(crate) async fn put(&self, key: &str, bytes: &[u8]) {
        self.store.put(key, bytes).await.unwrap();
    }

    pub(crate) async fn delete(&self, key: &str) {
        self.store.delete(key).await.unwrap();
    }
}

pub(crate) struct Server {
    pub(crate) address: String,
    /// Of the worker, on services.
    pub(crate) probes: Option<String>,
    objects: PathBuf,
    processes: Vec<Child>,
    /// Sends the site's key.
    pub(crate) http: reqwest::Client,
    key: Option<String>,
}

/// A client that sends the key.
pub(crate) fn http(key: Option<&str>, timeout: Duration) -> reqwest::Client {
    let mut headers = HeaderMap::new();
    if let Some(key) = key {
        headers.insert(AUTHORIZATION, format!("Bearer {key}").parse().unwrap());
    }
    reqwest::Client::builder().timeout(timeout).default_headers(headers).no_proxy().build().unwrap()
}

/// Makes a key where the settings say, and gives what the command printed.
pub(crate) async fn make_key<N: AsRef<OsStr>>(settings: &[(N, String)], arguments: &[&str]) -> Value {
    let mut command = command();
    command.args(["keys", "create", "--json", "--name", "test"]).args(arguments);
    let made = command.envs(settings.iter().map(|(name, value)| (name, value))).output().await.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    serde_json::from_slice(&made.stdout).unwrap()
}

/// The command with the tiny pipeline as its default, and quick housekeeping.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_face-id"));
    command
        .env("FACE_ID_ASSETS_DIR", repository())
        .env("FACE_ID_MODELS__CATALOGUE_DIR", repository().join("models/tiny"))
        .env("FACE_ID_MODELS__DEFAULT_PIPELINE", "tiny")
        .env("FACE_ID_MODELS__ALLOW_DOWNLOAD", "false")
        .env("FACE_ID_WORKER__PIPELINES", "tiny")
        .env("FACE_ID_WORKER__PROBES_BIND", "127.0.0.1:0")
        .env("FACE_ID_WORKER__SWEEP_S", "0.1")
        .env("FACE_ID_WORKER__POLL_S", "0.1")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

impl Site {
    pub(crate) fn embedded() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let objects = folder.path().join("objects");
        Self { folder, services: None, objects, key: None }
    }

    pub(crate) async fn services() -> Self {
        let name = format!("test-{}", Uuid::now_v7().simple());
        let (postgres, rabbitmq) = tokio::join!(services::postgres::shared(), services::rabbitmq::shared());
        let s3 = services::s3::shared().await;
        s3.create_bucket(&name).await.unwrap();
        let mut settings = vec![
            ("FACE_ID_DATABASE__URL", postgres.create_database(&name).await.unwrap()),
            ("FACE_ID_QUEUE__URL", rabbitmq.url()),
            ("FACE_ID_QUEUE__NAMESPACE", name.clone()),
            ("FACE_ID_OBJECTS__BUCKET", name.clone()),
            ("FACE_ID_OBJECTS__ENDPOINT", s3.endpoint()),
            ("FACE_ID_OBJECTS__ACCESS_KEY_ID", services::s3::ACCESS_KEY.to_owned()),
            ("FACE_ID_OBJECTS__SECRET_ACCESS_KEY", services::s3::SECRET_KEY.to_owned()),
            ("FACE_ID_SERVER__SECRET_KEY", services::FACE_ID_SECRET_KEY.to_owned()),
            // A worker that was killed is missed soon.
            ("FACE_ID_WORKER__LEASE_S", "3".to_owned()),
            ("FACE_ID_WORKER__HEARTBEAT_S", "1".to_owned()),
            ("FACE_ID_WORKER__REAP_S", "0.5".to_owned()),
        ];
        let migrated = command().arg("migrate").envs(settings.clone()).output().await.unwrap();
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        let objects = s3.root().join(&name);
        let key = make_key(&settings, &["--scope", "admin"]).await["token"].as_str().unwrap().to_owned();
        settings.push((API_KEY, key.clone()));
        Self { folder: tempfile::tempdir().unwrap(), services: Some(settings), objects, key: Some(key) }
    }

    /// Settings that a command needs to use the same services; none in embedded mode.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        self.services.clone().unwrap_or_default()
    }

    /// Makes a key in the site's database, whether a server runs or not.
    pub(crate) async fn make_key(&self, arguments: &[&str]) -> Value {
        let folder = self.folder.path().to_str().unwrap();
        let place = if self.has_services() { &[][..] } else { &["--data-dir", folder] };
        make_key(&self.settings(), &[arguments, place].concat()).await
    }

    /// Has its servers called with this key from now on.
    pub(crate) fn call_with(&mut self, key: &Value) {
        self.key = key["token"].as_str().map(str::to_owned);
    }

    pub(crate) fn has_services(&self) -> bool {
        self.services.is_some()
    }

    /// Makes a bucket beside the installation's own.
    pub(crate) async fn another_bucket(&self) -> Bucket {
        Bucket::make(services::s3::shared().await, format!("library-{}", Uuid::now_v7().simple())).await
    }

    /// The services' database, which is called as the bucket is.
    pub(crate) fn database(&self) -> &str {
        self.objects.file_name().unwrap().to_str().unwrap()
    }

    /// The embedded mode's data folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Server {
    pub(crate) async fn start(site: &Site) -> Self {
        Self::start_with(site, &[]).await
    }

    /// Starts it with these variables in its environment.
    pub(crate) async fn start_with(site: &Site, variables: &[(&str, &str)]) -> Self {
        Self::start_in(site, site.folder.path(), variables).await
    }

    /// Starts it, in embedded mode on this data folder.
    pub(crate) async fn start_in(site: &Site, data: &Path, variables: &[(&str, &str)]) -> Self {
        Self::start_logging(site, data, variables, |_| Stdio::inherit()).await
    }

    /// The same, with each process's log where `log` says: of `worker` and `api`, or of `serve`.
    pub(crate) async fn start_logging(
        site: &Site,
        data: &Path,
        variables: &[(&str, &str)],
        log: impl Fn(&str) -> Stdio,
    ) -> Self {
        let started = |arguments: &[&str]| {
            let mut command = command();
            command.args(arguments).envs(site.services.iter().flatten().cloned()).envs(variables.iter().copied());
            command.stdout(Stdio::piped()).stderr(log(arguments[0])).spawn().unwrap()
        };
        let data = data.to_str().unwrap();
        let (mut processes, mut probes) = (Vec::new(), None);
        if site.services.is_some() {
            let mut worker = started(&["worker"]);
            probes = Some(first_line(&mut worker, "probes on ").await);
            processes.push(worker);
            processes.push(started(&["api", "--bind", "127.0.0.1:0"]));
        } else {
            processes.push(started(&["serve", "--bind", "127.0.0.1:0", "--data-dir", data]));
        }
        let address = first_line(processes.last_mut().unwrap(), "listening on ").await;
        let (http, key) = (http(site.key.as_deref(), TIMEOUT), site.key.clone());
        Self { address, probes, objects: site.objects.clone(), processes, http, key }
    }

    /// What a command needs to call it.
    pub(crate) fn key_setting(&self) -> Option<(&'static str, &str)> {
        self.key.as_deref().map(|key| (API_KEY, key))
    }

    /// Waits until one of its processes has ended by itself, and kills the rest.
    pub(crate) async fn wait_for_crash(mut self) {
        let began = Instant::now();
        while self.processes.iter_mut().all(|process| process.try_wait().unwrap().is_none()) {
            assert!(began.elapsed() < TIMEOUT, "nothing crashed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.kill().await;
    }

    /// SIGKILL, as a crash or the kernel's out-of-memory killer would.
    pub(crate) async fn kill(mut self) {
        for process in &mut self.processes {
            process.kill().await.unwrap();
        }
    }

    /// SIGTERM, and the wait for a clean end.
    pub(crate) async fn stop(mut self) {
        for process in &mut self.processes {
            let pid = i32::try_from(process.id().unwrap()).unwrap();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        }
        for process in &mut self.processes {
            let status = tokio::time::timeout(TIMEOUT, process.wait()).await.unwrap().unwrap();
            assert!(status.success(), "SIGTERM ends it cleanly, got {status}");
        }
    }

    /// The most memory that the process which answers HTTP has taken so far, in KiB.
    pub(crate) fn peak_kib(&self) -> u64 {
        let pid = self.processes.last().and_then(Child::id).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.address))
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = read(self.request(Method::GET, path)).await;
        assert_eq!(status, StatusCode::OK, "GET {path}: {body}");
        body
    }

    pub(crate) async fn delete(&self, path: &str) -> StatusCode {
        read(self.request(Method::DELETE, path)).await.0
    }

    pub(crate) async fn make_collection(&self, name: &str) {
        let (status, body) = read(self.request(Method::POST, "/v1/collections").json(&json!({ "name": name }))).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
    }

    /// Uploads the picture and returns the upload's id.
    pub(crate) async fn upload(&self, collection: &str, picture: Vec<u8>) -> Value {
        let request = self.request(Method::POST, &format!("/v1/collections/{collection}/uploads")).body(picture);
        let (status, body) = read(request).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["id"].clone()
    }

    /// Makes a job and returns it as accepted.
    pub(crate) async fn submit(&self, collection: &str, kind: &str, body: &Value) -> Value {
        let request = self.request(Method::POST, &format!("/v1/collections/{collection}/{kind}")).json(body);
        let (status, job) = read(request).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{job}");
        job
    }

    /// The job when it has ended.
    pub(crate) async fn ended(&self, job: &Value) -> Value {
        let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
        for _ in 0..6 {
            let (_, job) = read(self.request(Method::GET, &path).header("prefer", "wait=10")).await;
            if !job["finished_at"].is_null() {
                return job;
            }
        }
        panic!("job {job} has not ended");
    }

    /// Makes a job and waits for its end.
    pub(crate) async fn run(&self, collection: &str, kind: &str, body: &Value) -> Value {
        let job = self.submit(collection, kind, body).await;
        self.ended(&job).await
    }

    /// Enrolls one synthetic person and returns the result.
    pub(crate) async fn enroll(&self, collection: &str, seed: u32) -> Value {
        let person = json!({ "external_id": format!("person-{seed}"), "name": format!("Person {seed}") });
        let body = json!({ "image": inline(&photo(&[seed])), "person": person });
        let job = self.run(collection, "enroll", &body).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        job["result"].clone()
    }

    /// Where the object store keeps its files.
    pub(crate) fn object_folder(&self) -> &Path {
        &self.objects
    }

    /// The objects that are stored, but for crops.
    pub(crate) fn objects(&self) -> Vec<PathBuf> {
        // What a kill left half written is none.
        let is_whole = |file: &PathBuf| !file.iter().any(|part| part == ".unfinished");
        files_below(&self.objects).into_iter().filter(|object| is_whole(object) && !is_crop(object)).collect()
    }

    /// The crops that are kept of faces.
    pub(crate) fn crops(&self) -> Vec<PathBuf> {
        files_below(&self.objects).into_iter().filter(|object| is_crop(object)).collect()
    }

    /// Waits until the sweeper has left just `count` objects that are no crops.
    pub(crate) async fn wait_for_objects(&self, count: usize) {
        for _ in 0..200 {
            if self.objects().len() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{count} objects should be left, there are {:?}", self.objects());
    }

    /// Waits until the sweeper has left just `count` crops.
    pub(crate) async fn wait_for_crops(&self, count: usize) {
        for _ in 0..200 {
            if self.crops().len() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{count} crops should be left, there are {:?}", self.crops());
    }
}

fn is_crop(object: &Path) -> bool {
    object.components().any(|part| part.as_os_str() == "crops")
}

/// Waits until the readiness of a worker or an api is as expected; what it then says.
pub(crate) async fn until_ready_is(address: &str, expected: bool, patience: Duration) -> String {
    let http = http(None, TIMEOUT);
    let began = Instant::now();
    loop {
        let answer = http.get(format!("{address}/readyz")).send().await.unwrap();
        let is_ready = answer.status().is_success();
        let said = answer.text().await.unwrap();
        if is_ready == expected {
            return said;
        }
        assert!(began.elapsed() < patience, "ready should become {expected}: {said}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What a process prints first, after `prefix`.
pub(crate) async fn first_line(process: &mut Child, prefix: &str) -> String {
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(TIMEOUT, lines.next_line()).await.unwrap().unwrap();
    let line = line.expect("the process ended before it listened; its log is above");
    line.strip_prefix(prefix).unwrap().to_owned()
}

/// Sends the request; the body as JSON where it is any.
pub(crate) async fn read(request: RequestBuilder) -> (StatusCode, Value) {
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let bytes = answer.bytes().await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

/// A picture of these synthetic persons.
pub(crate) fn photo(people: &[u32]) -> Vec<u8> {
    synthetic_photo(people, SIDE, SIDE)
}

/// A picture as base64 inside a request.
pub(crate) fn inline(picture: &[u8]) -> Value {
    json!({ "base64": base64::engine::general_purpose::STANDARD.encode(picture) })
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}
