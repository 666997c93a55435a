//! The sections of the configuration, and what is read out of them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::list;
use super::secret::{Secret, SecretUrl};
use crate::webhooks::address::AddressPolicy;

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
    pub(super) url: SecretUrl,
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
    pub(super) url: SecretUrl,
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
    pub(super) bucket: String,
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
    pub anti_spoofing: String,
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
    models_memory_mib: u64,
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
    pub(super) fn networks(&self) -> impl Iterator<Item = (&str, Result<IpNet, ipnet::AddrParseError>)> {
        self.allowed_networks.iter().map(|n| n.trim()).filter(|n| !n.is_empty()).map(|n| (n, n.parse()))
    }
}

impl WorkerConfig {
    /// Pictures worked on at once: the setting, or two a core, so that one decodes while the other infers.
    pub fn concurrency(&self) -> usize {
        if self.concurrency > 0 { self.concurrency } else { 2 * cores() }
    }

    /// What loaded models may take, in bytes.
    pub fn models_memory(&self) -> u64 {
        match self.models_memory_mib {
            0 => u64::MAX,
            mib => mib.saturating_mul(1 << 20),
        }
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
