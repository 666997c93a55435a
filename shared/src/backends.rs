//! The services that several processes share: PostgreSQL, RabbitMQ and an S3-compatible store, as the settings name them.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::db::Db;
use crate::db::schema::{self, SchemaError};
use crate::db::secret_key;
use crate::finished::FinishedJobs;
use crate::health::Check;
use crate::objects::{ObjectError, S3Options, S3Store};
use crate::queue::JobQueue;
use crate::queue::amqp::{AmqpOptions, AmqpOptionsError, AmqpQueue, finished};
use crate::secret_key::{SecretKey, SecretKeyError};

/// Connections to all of them.
pub struct Backends {
    /// PostgreSQL.
    pub db: Db,
    /// RabbitMQ.
    pub queue: Arc<AmqpQueue>,
    /// The bucket.
    pub objects: Arc<S3Store>,
    /// Who waits in this process hears of ends in others.
    pub finished: FinishedJobs,
    /// What secrets in the database are encrypted with.
    pub secret_key: SecretKey,
    amqp: AmqpOptions,
}

/// Why the services cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackendsError {
    /// The settings name none.
    #[error(
        "this program needs services: set database.url, queue.url and objects.bucket (see `face-id config`), \
         or run `face-id serve`, which needs none"
    )]
    NotConfigured,
    /// No connection to PostgreSQL.
    #[error("connect to PostgreSQL ({url}): {source}; is the server there, and are user and password right?")]
    Connect {
        /// The setting, without its password.
        url: String,
        /// What is wrong.
        source: sea_orm::DbErr,
    },
    /// The database is not at this version's schema, or the server cannot store vectors.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// There is no secret key, or it is not the database's.
    #[error(transparent)]
    SecretKey(#[from] SecretKeyError),
    /// The broker's settings make no sense.
    #[error(transparent)]
    Queue(#[from] AmqpOptionsError),
    /// The store's settings make no sense.
    #[error("open the object store")]
    Objects(#[from] ObjectError),
}

impl Backends {
    /// Connects to the configured services. A worker names the pipelines whose jobs it takes.
    ///
    /// The broker and the store may be down: they are tried for as long as the process runs, and its readiness says so.
    /// The database must answer, and be migrated.
    ///
    /// # Errors
    /// See [`BackendsError`].
    pub async fn open(config: &Config, consume: Option<Vec<String>>) -> Result<Self, BackendsError> {
        let secret_key = SecretKey::configured(config)?;
        let db = connect(config).await?;
        schema::check_server(&db).await?;
        schema::check(&db).await?;
        secret_key::check(&db, &secret_key).await?;
        let url = config.queue.url().ok_or(BackendsError::NotConfigured)?;
        let amqp = AmqpOptions {
            consume,
            prefetch: u16::try_from(config.worker.concurrency()).unwrap_or(u16::MAX),
            capacity: config.queue.capacity,
            namespace: config.queue.namespace.clone(),
            publish_timeout: Duration::from_secs_f64(config.queue.publish_timeout_s),
            ..AmqpOptions::new(url)
        };
        let queue = Arc::new(AmqpQueue::start(amqp.clone())?);
        let objects = Arc::new(open_objects(config)?);
        Ok(Self { db, queue, objects, finished: FinishedJobs::new(), secret_key, amqp })
    }

    /// Tells other processes of jobs that end here, until `stop`.
    pub fn tell_ends(&self, stop: CancellationToken) -> impl Future<Output = ()> + Send + 'static {
        finished::relay_out(self.amqp.clone(), self.finished.clone(), stop)
    }

    /// Hears of jobs that end in other processes, until `stop`.
    pub fn hear_ends(&self, stop: CancellationToken) -> impl Future<Output = ()> + Send + 'static {
        finished::relay_in(self.amqp.clone(), self.finished.clone(), stop)
    }

    /// What must work before this process should get work.
    pub fn checks(&self) -> Vec<Check> {
        let (db, queue, objects) = (self.db.clone(), Arc::clone(&self.queue), Arc::clone(&self.objects));
        vec![
            Check::new("database", move || {
                let db = db.clone();
                async move { db.ping().await }
            }),
            Check::new("queue", move || {
                let queue = Arc::clone(&queue);
                async move { queue.check().await }
            }),
            Check::new("objects", move || {
                let objects = Arc::clone(&objects);
                async move { objects.check().await }
            }),
        ]
    }
}

/// Connects to PostgreSQL, whether it is migrated or not.
///
/// # Errors
/// None is configured, or it does not let us in.
pub async fn connect(config: &Config) -> Result<Db, BackendsError> {
    let url = config.database.url().ok_or(BackendsError::NotConfigured)?;
    let failed = |source| BackendsError::Connect { url: config.database.shown_url(), source };
    Db::open_postgres(url, config.database.connections).await.map_err(failed)
}

/// The configured bucket alone, for commands that put pictures into it.
///
/// # Errors
/// No bucket is configured, or the settings make no sense.
pub fn open_objects(config: &Config) -> Result<S3Store, BackendsError> {
    let bucket = config.objects.bucket().ok_or(BackendsError::NotConfigured)?;
    Ok(S3Store::open(s3_options(config, bucket))?)
}

/// Another bucket of the configured object store.
pub fn open_bucket(config: &Config, bucket: &str) -> Result<S3Store, BackendsError> {
    Ok(S3Store::open(s3_options(config, bucket))?)
}

fn s3_options(config: &Config, bucket: &str) -> S3Options {
    let objects = &config.objects;
    S3Options {
        bucket: bucket.to_owned(),
        endpoint: objects.endpoint().map(str::to_owned),
        region: objects.region.clone(),
        access_key_id: objects.access_key_id.clone(),
        secret_access_key: objects.secret_access_key.expose().to_owned(),
        path_style: objects.path_style,
        attempts: objects.attempts,
        operation_timeout: Duration::from_secs_f64(objects.operation_timeout_s),
        allowed_buckets: objects.allowed_buckets.clone(),
        ..S3Options::default()
    }
}
