//! How the S3 service is reached, and the client made of that.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Config, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls;

/// An unused connection is closed after this long: before the 30 to 60 s after which stores and proxies drop it silently.
const POOL_IDLE: Duration = Duration::from_secs(20);
/// Longest random pause before the second try; it doubles with every further one, up to [`MAX_BACKOFF`].
const INITIAL_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// Where the store is and how patient its callers are. Without `Debug`, for its secret.
#[derive(Clone)]
pub struct S3Options {
    /// The bucket that holds the installation's objects.
    pub bucket: String,
    /// The service's address; `None` is AWS in the region.
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// The access key.
    pub access_key_id: String,
    /// The access key's secret.
    pub secret_access_key: String,
    /// Bucket in the path instead of the host name.
    pub path_style: bool,
    /// Tries of one call, the first included.
    pub attempts: u32,
    /// Longest time to connect.
    pub connect_timeout: Duration,
    /// Longest time of one try.
    pub attempt_timeout: Duration,
    /// Longest time of one call: its tries, the pauses between them and the reading of the object.
    pub operation_timeout: Duration,
    /// Buckets that [`get_from`](super::S3Store::get_from) may read.
    pub allowed_buckets: Vec<String>,
}

impl Default for S3Options {
    /// Three tries with production timeouts on AWS in `us-east-1`; without bucket and access key.
    fn default() -> Self {
        Self {
            bucket: String::new(),
            endpoint: None,
            region: "us-east-1".to_owned(),
            access_key_id: String::new(),
            secret_access_key: String::new(),
            path_style: false,
            attempts: 3,
            connect_timeout: Duration::from_secs(2),
            attempt_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(30),
            allowed_buckets: Vec::new(),
        }
    }
}

impl S3Options {
    /// The client; connects with the first call.
    pub(super) fn client(&self) -> Client {
        let http = aws_smithy_http_client::Builder::new().pool_idle_timeout(POOL_IDLE);
        // A TLS client needs the system's certificates, which a machine that only talks to a store beside it may lack.
        let http = if self.endpoint.as_deref().is_some_and(|e| e.starts_with("http://")) {
            http.build_http()
        } else {
            http.tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring)).build_https()
        };
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(self.connect_timeout)
            .operation_attempt_timeout(self.attempt_timeout)
            .operation_timeout(self.operation_timeout)
            .build();
        let retries = RetryConfig::standard()
            .with_max_attempts(self.attempts.max(1))
            .with_initial_backoff(INITIAL_BACKOFF)
            .with_max_backoff(MAX_BACKOFF);
        let credentials = Credentials::new(&self.access_key_id, &self.secret_access_key, None, None, "face-id");
        let mut config = Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .http_client(http)
            .region(Region::new(self.region.clone()))
            .credentials_provider(credentials)
            .force_path_style(self.path_style)
            .timeout_config(timeouts)
            .retry_config(retries)
            .stalled_stream_protection(
                StalledStreamProtectionConfig::enabled().grace_period(self.attempt_timeout).build(),
            )
            // Stores other than AWS refuse or mangle the checksums that the client would add by itself.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        config.set_endpoint_url(self.endpoint.clone());
        Client::from_conf(config.build())
    }
}
