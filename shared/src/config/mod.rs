//! Configuration: the compiled-in `default.toml`, then a file, then `FACE_ID_*` variables; checked as a whole.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use secret::{Secret, SecretUrl};
pub use sections::{
    ClusteringConfig, DatabaseConfig, ExecutionProvider, FaceIndexConfig, ImportConfig, LogConfig, LogFormat,
    ModelsConfig, ObjectsConfig, QueueConfig, RetentionConfig, ServerConfig, Synchronous, VisionConfig, WebhooksConfig,
    WorkerConfig,
};

use crate::access::Limits;

mod checks;
mod list;
mod secret;
mod sections;

const DEFAULTS: &str = include_str!("default.toml");

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
    use std::time::Duration;

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
