//! What settings may be, alone and together.

use std::path::Path;

use super::{Config, ConfigError, ServerConfig, WebhooksConfig};
use crate::db::collections::is_collection_name;

/// Of `worker.batch_sizes`: what goes into a batch is held in memory twice.
const LARGEST_BATCH: usize = 256;

/// Of `webhooks.schedule_s`.
const MOST_RETRIES: usize = 30;

/// Of `server.max_queued_jobs`.
const MOST_QUEUED: u64 = 1_000_000;

/// Of `server.max_queue_age_s`: thirty days.
const MOST_AGE_S: u64 = 2_592_000;

impl Config {
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

impl WebhooksConfig {
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
