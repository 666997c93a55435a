//! Configuration: the compiled-in `default.toml`, then a file, then `FACE_ID_*` variables; checked as a whole.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use secret::{Secret, SecretUrl};

use crate::access::Limits;
use crate::db::collections::is_collection_name;
use crate::webhooks::address::AddressPolicy;

mod list;
mod secret;

const DEFAULTS: &str = include_str!("default.toml");

/// Of `worker.batch_sizes`: what goes into a batch is held in memory twice.
const LARGEST_BATCH: usize = 256;

/// Of `webhooks.schedule_s`.
const MOST_RETRIES: usize = 30;

/// Of `server.max_queued_jobs`.
const MOST_QUEUED: u64 = 1_000_000;

/// Of `server.max_queue_age_s`: thirty days.
const MOST_AGE_S: u64 = 2_592_000;

/// Variables that start like a setting but are none: arguments of commands, and what steers tests and the build.
const NOT_SETTINGS: [&str; 5] =
    ["FACE_ID_REQUIRE_ASSETS", "FACE_ID_CONFIG", "FACE_ID_API_KEY", "FACE_ID_CRASH_AT", "FACE_ID_STAND_STILL_AT"];

/// Every setting; `default.toml` explains each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the database, the pictures and the lock file live.
    pub data_dir: PathBuf,
    /// A folder with an operator's own copy of the weights; empty for none.
    assets_dir: PathBuf,
    /// Downloads; empty for the user's cache folder.
    cache_dir: PathBuf,
    /// The file that the settings were read from.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// The key that commands send to servers; an argument and no setting.
    #[serde(skip)]
    pub api_key: Option<Secret>,
    /// `ORT_DYLIB_PATH`, the name under which ONNX Runtime's users know it.
    #[serde(skip)]
    runtime_library: Option<PathBuf>,
    /// The HTTP API.
    pub server: ServerConfig,
    /// How much each API key may take, where it has no limits of its own.
    pub limits: Limits,
    /// The database.
    pub database: DatabaseConfig,
    /// The queue.
    pub queue: QueueConfig,
    /// The object store.
    pub objects: ObjectsConfig,
    /// Pictures of this machine's own folders.
    pub import: ImportConfig,
    /// The face index.
    pub face_index: FaceIndexConfig,
    /// The catalogue and its weights.
    pub models: ModelsConfig,
    /// Claims, retries and parallel work.
    pub worker: WorkerConfig,
    /// Limits of pictures.
    pub vision: VisionConfig,
    /// Clusters of unknown faces.
    pub clustering: ClusteringConfig,
    /// What is told to other programs.
    pub webhooks: WebhooksConfig,
    /// How long things are kept.
    pub retention: RetentionConfig,
    /// Logging.
    pub log: LogConfig,
}

/// `[server]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml explains each setting")]
pub struct ServerConfig {
    pub bind: SocketAddr,
    pub max_body_bytes: usize,
    pub max_wait_s: u64,
    pub body_timeout_s: u64,
    pub header_timeout_s: u64,
    pub write_timeout_s: u64,
    pub max_connections: usize,
    pub max_buffered_bytes: usize,
    pub max_event_streams: usize,
    pub max_queued_jobs: u64,
    pub max_queue_age_s: u64,
    pub legacy_api: bool,
    pub legacy_collection: String,
    pub legacy_pictures: String,
    pub secret_key: Secret,
}

/// `[database]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml explains each setting")]
pub struct DatabaseConfig {
    url: SecretUrl,
    pub connections: u32,
    pub synchronous: Synchronous,
    pub read_connections: u32,
}

/// When `SQLite` lets a commit return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Synchronous {
    /// After the disk has it.
    Full,
    /// After the operating system has it.
    Normal,
}

/// `[queue]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml explains each setting")]
pub struct QueueConfig {
    url: SecretUrl,
    pub namespace: String,
    pub capacity: u32,
    pub bulk_window: u32,
    pub publish_timeout_s: f64,
}

/// `[objects]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml explains each setting")]
pub struct ObjectsConfig {
    bucket: String,
    endpoint: String,
    pub region: String,
    pub access_key_id: String,
    pub secret_access_key: Secret,
    pub path_style: bool,
    pub attempts: u32,
    pub operation_timeout_s: f64,
    pub allowed_buckets: Vec<String>,
}

/// `[import]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml explains each setting")]
pub struct ImportConfig {
    pub roots: Vec<PathBuf>,
}

/// `[face_index]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml explains each setting")]
pub struct FaceIndexConfig {
    pub hnsw_from: u64,
}

/// `[models]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml explains each setting")]
pub struct ModelsConfig {
    pub default_pipeline: String,
    catalogue_dir: PathBuf,
    pub accepted_licences: Vec<String>,
    pub allow_download: bool,
}

/// `[worker]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml explains each setting")]
pub struct WorkerConfig {
    pub probes_bind: SocketAddr,
    pub pipelines: Vec<String>,
    pub execution_provider: ExecutionProvider,
    concurrency: usize,
    sessions: usize,
    #[serde(deserialize_with = "list::numbers")]
    pub batch_sizes: Vec<usize>,
    pub lease_s: f64,
    pub heartbeat_s: f64,
    pub poll_s: f64,
    pub reap_s: f64,
    pub sweep_s: f64,
    pub job_timeout_s: f64,
    pub max_attempts: i32,
    pub retry_base_s: f64,
    pub retry_max_s: f64,
    pub grace_s: f64,
}

/// What runs the models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecutionProvider {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// `[vision]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml explains each setting")]
pub struct VisionConfig {
    pub max_image_bytes: usize,
    pub max_image_pixels: u64,
    pub max_image_side: u32,
}

/// `[clustering]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml explains each setting")]
pub struct ClusteringConfig {
    pub max_faces: usize,
}

/// `[webhooks]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml explains each setting")]
pub struct WebhooksConfig {
    #[serde(deserialize_with = "list::numbers")]
    pub schedule_s: Vec<f64>,
    pub connect_timeout_s: f64,
    pub timeout_s: f64,
    pub max_in_flight: usize,
    pub max_in_flight_per_endpoint: u32,
    pub disable_after_s: f64,
    pub allow_http: bool,
    pub allowed_networks: Vec<String>,
}

/// `[retention]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml explains each setting")]
pub struct RetentionConfig {
    pub upload_hours: u32,
    pub idempotency_hours: u32,
    pub job_days: u32,
    pub cluster_change_days: u32,
    pub webhook_days: u32,
}

/// `[log]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml explains each setting")]
pub struct LogConfig {
    pub filter: String,
    pub format: LogFormat,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A source does not parse, or holds an unknown or ill-typed setting.
    #[error("read the configuration: {0} (every setting is explained by `face-id config`)")]
    Read(#[from] config::ConfigError),
    /// A setting's value makes no sense.
    #[error("setting {setting}: {why}")]
    Invalid {
        /// The setting, as `section.key`.
        setting: &'static str,
        /// What is wrong and what would be right.
        why: String,
    },
}

impl Config {
    /// Reads the defaults, `file` and the process's environment.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut variables: HashMap<String, String> =
            std::env::vars().filter(|(name, _)| name.starts_with("FACE_ID_")).collect();
        variables.retain(|name, _| !NOT_SETTINGS.contains(&name.as_str()));
        let mut config = Self::from_sources(file, variables)?;
        config.file = file.map(|file| std::path::absolute(file).unwrap_or_else(|_| file.to_owned()));
        config.runtime_library = std::env::var_os("ORT_DYLIB_PATH").filter(|v| !v.is_empty()).map(PathBuf::from);
        if config.cache_dir.as_os_str().is_empty() {
            config.cache_dir = user_cache_dir(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))?;
        }
        Ok(config)
    }

    /// Reads the defaults, `file` and the given variables.
    pub fn from_sources(file: Option<&Path>, variables: HashMap<String, String>) -> Result<Self, ConfigError> {
        let environment = config::Environment::with_prefix("FACE_ID")
            .prefix_separator("_")
            .separator("__")
            .try_parsing(true)
            .list_separator(",")
            .with_list_parse_key("models.accepted_licences")
            .with_list_parse_key("objects.allowed_buckets")
            .with_list_parse_key("import.roots")
            .with_list_parse_key("webhooks.allowed_networks")
            .with_list_parse_key("webhooks.schedule_s")
            .with_list_parse_key("worker.batch_sizes")
            .with_list_parse_key("worker.pipelines")
            .source(Some(variables));
        let mut builder =
            config::Config::builder().add_source(config::File::from_str(DEFAULTS, config::FileFormat::Toml));
        if let Some(file) = file {
            builder = builder.add_source(config::File::from(file));
        }
        let config: Self = builder.add_source(environment).build()?.try_deserialize()?;
        config.check()?;
        Ok(config)
    }

    /// The compiled-in defaults with their explanations, as TOML.
    pub fn documented_defaults() -> &'static str {
        DEFAULTS
    }

    /// The operator's own copy of the weights.
    pub fn assets_dir(&self) -> Option<&Path> {
        Some(self.assets_dir.as_path()).filter(|p| !p.as_os_str().is_empty())
    }

    /// The ONNX Runtime library that the environment names.
    pub fn runtime_library(&self) -> Option<&Path> {
        self.runtime_library.as_deref()
    }

    /// Where downloads and the ONNX Runtime library are kept.
    pub fn cache_dir(&self) -> &Path {
        &self.cache_dir
    }

    /// Refuses settings that make no sense, alone or together.
    pub fn check(&self) -> Result<(), ConfigError> {
        let invalid = |setting, why: &str| Err(ConfigError::Invalid { setting, why: why.to_owned() });
        let worker = &self.worker;
        self.server.check()?;
        if self.has_services() && self.server.legacy_pictures.starts_with('/') {
            return invalid(
                "server.legacy_pictures",
                "must be s3://bucket/prefix: folders are read by `face-id serve` only",
            );
        }
        self.check_services()?;
        self.webhooks.check()?;
        self.check_times()?;
        if worker.heartbeat_s * 3.0 > worker.lease_s * 1.001 {
            return invalid("worker.heartbeat_s", "must be at most a third of worker.lease_s");
        }
        if worker.batch_sizes.first() != Some(&1)
            || !worker.batch_sizes.is_sorted_by(|smaller, larger| smaller < larger)
            || worker.batch_sizes.iter().any(|size| *size > LARGEST_BATCH)
        {
            return invalid("worker.batch_sizes", "must begin with 1, ascend, and end with at most 256: 1,8,32,64");
        }
        if worker.max_attempts < 1 {
            return invalid("worker.max_attempts", "must be at least 1");
        }
        let retention = &self.retention;
        if (1..retention.idempotency_hours.div_ceil(24)).contains(&retention.job_days) {
            return invalid(
                "retention.job_days",
                "must not be shorter than retention.idempotency_hours: a key stands for its job",
            );
        }
        if self.queue.bulk_window < 1 {
            return invalid("queue.bulk_window", "must be at least 1");
        }
        if self.queue.capacity < 1 {
            return invalid("queue.capacity", "must be at least 1");
        }
        if self.database.read_connections < 1 {
            return invalid("database.read_connections", "must be at least 1");
        }
        if self.database.connections < 2 {
            return invalid("database.connections", "must be at least 2: a heartbeat must not wait for a result");
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), ConfigError> {
        let worker = &self.worker;
        let times = [
            ("worker.lease_s", worker.lease_s),
            ("worker.heartbeat_s", worker.heartbeat_s),
            ("worker.poll_s", worker.poll_s),
            ("worker.reap_s", worker.reap_s),
            ("worker.sweep_s", worker.sweep_s),
            ("worker.job_timeout_s", worker.job_timeout_s),
            ("worker.retry_base_s", worker.retry_base_s),
            ("worker.retry_max_s", worker.retry_max_s),
            ("worker.grace_s", worker.grace_s),
            ("queue.publish_timeout_s", self.queue.publish_timeout_s),
            ("objects.operation_timeout_s", self.objects.operation_timeout_s),
            ("webhooks.connect_timeout_s", self.webhooks.connect_timeout_s),
            ("webhooks.timeout_s", self.webhooks.timeout_s),
        ];
        for (setting, seconds) in times {
            if !(0.001..=86_400.0).contains(&seconds) {
                let why = "must lie between 0.001 and 86400 seconds".to_owned();
                return Err(ConfigError::Invalid { setting, why });
            }
        }
        Ok(())
    }

    /// Whether this is the production set-up: a database server, a broker and an object store.
    pub fn has_services(&self) -> bool {
        self.database.url().is_some()
    }

    /// The same settings without services.
    #[must_use]
    pub fn embedded(&self) -> Self {
        let mut config = self.clone();
        config.database.url = SecretUrl::default();
        config.queue.url = SecretUrl::default();
        config.objects.bucket.clear();
        config
    }

    /// All settings as TOML, secrets hidden.
    ///
    /// # Errors
    /// A path is not UTF-8.
    pub fn redacted(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    /// The three services are used together or not at all: a database that two processes share needs a queue and a store
    /// that they share too.
    fn check_services(&self) -> Result<(), ConfigError> {
        let invalid = |setting, why: &str| Err(ConfigError::Invalid { setting, why: why.to_owned() });
        let services = [
            ("database.url", self.database.url().is_some()),
            ("queue.url", self.queue.url().is_some()),
            ("objects.bucket", self.objects.bucket().is_some()),
        ];
        let set = services.iter().filter(|(_, is_set)| *is_set).count();
        if let Some((missing, _)) = services.iter().find(|(_, is_set)| !is_set).filter(|_| set > 0) {
            return invalid(missing, "is empty: set database.url, queue.url and objects.bucket, or none of them");
        }
        let database =
            self.database.url().is_some_and(|u| !u.starts_with("postgres://") && !u.starts_with("postgresql://"));
        if database {
            return invalid("database.url", "must begin with postgres:// or postgresql://");
        }
        if self.queue.url().is_some_and(|u| !u.starts_with("amqp://") && !u.starts_with("amqps://")) {
            return invalid("queue.url", "must begin with amqp:// or amqps://");
        }
        if self.objects.bucket().is_some()
            && (self.objects.access_key_id.is_empty() || self.objects.secret_access_key.expose().is_empty())
        {
            return invalid(
                "objects.access_key_id",
                "and objects.secret_access_key must both be set with objects.bucket",
            );
        }
        if self.objects.bucket().is_some_and(|own| self.objects.allowed_buckets.iter().any(|b| b == own)) {
            return invalid(
                "objects.allowed_buckets",
                "must not hold objects.bucket: any client could read all pictures",
            );
        }
        if self.objects.endpoint().is_some_and(|e| !e.starts_with("http://") && !e.starts_with("https://")) {
            return invalid("objects.endpoint", "must begin with http:// or https://");
        }
        if self.queue.namespace.is_empty()
            || !self.queue.namespace.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
        {
            return invalid("queue.namespace", "must be one or more of letters, digits, - and _");
        }
        Ok(())
    }
}

impl ServerConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |setting, why: &str| Err(ConfigError::Invalid { setting, why: why.to_owned() });
        let times = [
            ("server.body_timeout_s", self.body_timeout_s),
            ("server.header_timeout_s", self.header_timeout_s),
            ("server.write_timeout_s", self.write_timeout_s),
        ];
        if let Some((setting, _)) = times.into_iter().find(|(_, seconds)| !(1..=3600).contains(seconds)) {
            return invalid(setting, "must lie between 1 and 3600 seconds");
        }
        if self.max_connections < 16 {
            return invalid("server.max_connections", "must be at least 16");
        }
        if self.max_queued_jobs == 1 || self.max_queued_jobs > MOST_QUEUED {
            return invalid(
                "server.max_queued_jobs",
                "must be 0, or lie between 2 and 1000000: they are counted each second",
            );
        }
        if self.max_queue_age_s == 1 || self.max_queue_age_s > MOST_AGE_S {
            return invalid("server.max_queue_age_s", "must be 0, or lie between 2 and 2592000 seconds");
        }
        if !is_collection_name(&self.legacy_collection) {
            return invalid(
                "server.legacy_collection",
                "must be 1 to 64 letters, digits, '.', '_' or '-', and no UUID",
            );
        }
        let pictures = &self.legacy_pictures;
        if !pictures.is_empty() && !pictures.starts_with("s3://") && !Path::new(pictures).is_absolute() {
            return invalid("server.legacy_pictures", "must be an absolute path or begin with s3://");
        }
        if self.max_buffered_bytes < self.max_body_bytes {
            return invalid("server.max_buffered_bytes", "must not be less than server.max_body_bytes");
        }
        Ok(())
    }
}

impl DatabaseConfig {
    /// The `PostgreSQL` database, if one is configured.
    pub fn url(&self) -> Option<&str> {
        self.url.expose()
    }

    /// The same without its password, for people.
    pub fn shown_url(&self) -> String {
        format!("{:?}", self.url)
    }
}

impl QueueConfig {
    /// The `RabbitMQ` broker, if one is configured.
    pub fn url(&self) -> Option<&str> {
        self.url.expose()
    }
}

impl ObjectsConfig {
    /// The S3 bucket, if one is configured.
    pub fn bucket(&self) -> Option<&str> {
        Some(self.bucket.as_str()).filter(|b| !b.is_empty())
    }

    /// The S3 service's address, where it is not AWS.
    pub fn endpoint(&self) -> Option<&str> {
        Some(self.endpoint.as_str()).filter(|e| !e.is_empty())
    }
}

impl ModelsConfig {
    /// A folder with further catalogue entries.
    pub fn catalogue_dir(&self) -> Option<&Path> {
        Some(self.catalogue_dir.as_path()).filter(|p| !p.as_os_str().is_empty())
    }
}

impl WebhooksConfig {
    /// The delays between attempts.
    pub fn schedule(&self) -> Vec<Duration> {
        self.schedule_s.iter().map(|seconds| Duration::from_secs_f64(*seconds)).collect()
    }

    /// Which addresses may be dialled.
    pub fn address_policy(&self) -> AddressPolicy {
        AddressPolicy::new(self.networks().filter_map(|(_, network)| network.ok()).collect())
    }

    /// The allowed networks as written and as read. An empty variable is a list of one empty name.
    fn networks(&self) -> impl Iterator<Item = (&str, Result<IpNet, ipnet::AddrParseError>)> {
        self.allowed_networks.iter().map(|n| n.trim()).filter(|n| !n.is_empty()).map(|n| (n, n.parse()))
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |setting, why: String| Err(ConfigError::Invalid { setting, why });
        let day_fits = |seconds: &f64| (0.001..=86_400.0).contains(seconds);
        if !(1..=MOST_RETRIES).contains(&self.schedule_s.len()) || !self.schedule_s.iter().all(day_fits) {
            let why = format!("must be 1 to {MOST_RETRIES} delays, each between 0.001 and 86400 seconds");
            return invalid("webhooks.schedule_s", why);
        }
        if !(1..=1000).contains(&self.max_in_flight) || self.max_in_flight_per_endpoint < 1 {
            let why = "must lie between 1 and 1000, and webhooks.max_in_flight_per_endpoint be at least 1";
            return invalid("webhooks.max_in_flight", why.to_owned());
        }
        if !(0.001..=31_536_000.0).contains(&self.disable_after_s) {
            return invalid("webhooks.disable_after_s", "must lie between 0.001 and 31536000 seconds".to_owned());
        }
        match self.networks().find(|(_, network)| network.is_err()) {
            Some((text, _)) => {
                invalid("webhooks.allowed_networks", format!("{text} is no network like 10.1.0.0/16 or fd00::/8"))
            }
            None => Ok(()),
        }
    }
}

impl WorkerConfig {
    /// Pictures worked on at once: the setting, or two a core, so that one decodes while the other infers.
    pub fn concurrency(&self) -> usize {
        if self.concurrency > 0 { self.concurrency } else { 2 * cores() }
    }

    /// ONNX Runtime sessions a model: the setting, or one a core; on a GPU one, whose batches fill it.
    pub fn sessions(&self) -> usize {
        match (self.sessions, self.execution_provider) {
            (0, ExecutionProvider::Cpu) => cores(),
            (0, ExecutionProvider::Cuda) => 1,
            (sessions, _) => sessions,
        }
    }

    /// Steps of analyses that keep a core busy at once: on CPUs as many as there are sessions, which are such steps too.
    pub fn cores(&self) -> usize {
        match self.execution_provider {
            ExecutionProvider::Cpu => self.sessions(),
            ExecutionProvider::Cuda => cores(),
        }
    }

    /// [`WorkerConfig::lease_s`] as a duration.
    pub fn lease(&self) -> Duration {
        Duration::from_secs_f64(self.lease_s)
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn user_cache_dir(xdg: Option<std::ffi::OsString>, home: Option<std::ffi::OsString>) -> Result<PathBuf, ConfigError> {
    let base = xdg.filter(|v| !v.is_empty()).map(PathBuf::from).or_else(|| home.map(|h| Path::new(&h).join(".cache")));
    base.map(|b| b.join("face-id")).ok_or_else(|| ConfigError::Invalid {
        setting: "cache_dir",
        why: "is empty and neither XDG_CACHE_HOME nor HOME is set: set FACE_ID_CACHE_DIR".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_sources(None, pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn defaults_are_valid() {
        let config = load(&[]).unwrap();
        assert_eq!(config.models.default_pipeline, "yunet-mobilefacenet");
        assert!(config.assets_dir().is_none());
    }

    #[test]
    fn environment_overrides() {
        let config = load(&[
            ("FACE_ID_SERVER__BIND", "127.0.0.1:9"),
            ("FACE_ID_ASSETS_DIR", "/srv/assets"),
            ("FACE_ID_WORKER__LEASE_S", "3"),
            ("FACE_ID_WORKER__HEARTBEAT_S", "1"),
            ("FACE_ID_MODELS__ACCEPTED_LICENCES", "a,b"),
            ("FACE_ID_WORKER__BATCH_SIZES", "1,16"),
            ("FACE_ID_WEBHOOKS__SCHEDULE_S", "0.5,2"),
        ])
        .unwrap();
        assert_eq!(config.server.bind.port(), 9);
        assert_eq!(config.assets_dir(), Some(Path::new("/srv/assets")));
        assert!((config.worker.lease_s - 3.0).abs() < f64::EPSILON);
        assert_eq!(config.models.accepted_licences, ["a", "b"]);
        assert_eq!(config.worker.batch_sizes, [1, 16]);
        assert_eq!(config.webhooks.schedule(), [Duration::from_millis(500), Duration::from_secs(2)]);
        let lists_of_one = [("FACE_ID_WORKER__BATCH_SIZES", "1"), ("FACE_ID_WEBHOOKS__SCHEDULE_S", "0.5")];
        let config = load(&lists_of_one).unwrap();
        assert_eq!((config.worker.batch_sizes, config.webhooks.schedule_s), (vec![1], vec![0.5]));
    }

    #[test]
    fn services_come_together_and_print_without_secrets() {
        let services = [
            ("FACE_ID_DATABASE__URL", "postgres://me:hush1@db/face_id"),
            ("FACE_ID_QUEUE__URL", "amqp://me:hush2@mq/%2f"),
            ("FACE_ID_OBJECTS__BUCKET", "face-id"),
            ("FACE_ID_OBJECTS__ACCESS_KEY_ID", "key"),
            ("FACE_ID_OBJECTS__SECRET_ACCESS_KEY", "hush3"),
        ];
        let config = load(&services).unwrap();
        assert!(config.has_services());
        let shown = config.redacted().unwrap();
        assert!(shown.contains("postgres://me:***@db/face_id") && !shown.contains("hush"), "{shown}");
        assert!(!format!("{config:?}").contains("hush"));
        let text = load(&services[..3]).unwrap_err().to_string();
        assert!(text.contains("objects.access_key_id"), "{text}");
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            (("FACE_ID_SERVER__BINDD", "1"), "bindd"),
            (("FACE_ID_SERVER__BIND", "everywhere"), "bind"),
            (("FACE_ID_LIMITS__JOBS_IN_FLIGHT", "-1"), "jobs_in_flight"),
            (("FACE_ID_WORKER__HEARTBEAT_S", "20"), "worker.heartbeat_s"),
            (("FACE_ID_WORKER__MAX_ATTEMPTS", "0"), "worker.max_attempts"),
            (("FACE_ID_WORKER__BATCH_SIZES", "8,32"), "worker.batch_sizes"),
            (("FACE_ID_WORKER__BATCH_SIZES", "1,8,8"), "worker.batch_sizes"),
            (("FACE_ID_WORKER__BATCH_SIZES", "1,257"), "worker.batch_sizes"),
            (("FACE_ID_WORKER__BATCH_SIZES", ""), "batch_sizes"),
            (("FACE_ID_SERVER__MAX_QUEUED_JOBS", "1"), "server.max_queued_jobs"),
            (("FACE_ID_SERVER__MAX_QUEUE_AGE_S", "9999999"), "server.max_queue_age_s"),
            (("FACE_ID_SERVER__LEGACY_COLLECTION", "a b"), "server.legacy_collection"),
            (("FACE_ID_SERVER__LEGACY_PICTURES", "pictures"), "server.legacy_pictures"),
            (("FACE_ID_LOG__FORMAT", "xml"), "xml"),
            (("FACE_ID_WEBHOOKS__ALLOWED_NETWORKS", "10.0.0.0/33"), "10.0.0.0/33"),
            (("FACE_ID_WEBHOOKS__SCHEDULE_S", "1,-1"), "webhooks.schedule_s"),
            (("FACE_ID_WEBHOOKS__MAX_IN_FLIGHT", "0"), "webhooks.max_in_flight"),
            (("FACE_ID_DATABASE__URL", "postgres://u:p@h/d"), "queue.url"),
        ];
        for (pair, wanted) in cases {
            let text = load(&[pair]).unwrap_err().to_string();
            assert!(text.contains(wanted), "{pair:?} gave {text}");
        }
    }
}
