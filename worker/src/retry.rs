//! When a failed attempt is followed by the next.

use std::time::Duration;

use shared::config::WorkerConfig;
use uuid::Uuid;

/// The delay after the `attempt`-th attempt failed: doubling from the base up to the maximum, +-20 %.
pub(crate) fn delay(config: &WorkerConfig, attempt: i32) -> Duration {
    backoff(config.retry_base_s, config.retry_max_s, attempt, random_unit())
}

/// The pause before the `tries`-th new look at a database that is out of reach: short enough to come back with it.
pub(crate) fn outage_delay(config: &WorkerConfig, tries: i32) -> Duration {
    backoff(config.retry_base_s.min(0.5), 5.0, tries, random_unit())
}

fn backoff(base_s: f64, max_s: f64, attempt: i32, unit: f64) -> Duration {
    let doubled = base_s * 2f64.powi(attempt.clamp(1, 64) - 1);
    Duration::from_secs_f64(doubled.min(max_s) * (0.8 + 0.4 * unit))
}

/// A random number in 0..1.
pub(crate) fn random_unit() -> f64 {
    let bytes = Uuid::new_v4().into_bytes();
    f64::from(u16::from_be_bytes([bytes[0], bytes[1]])) / 65_536.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_maximum() {
        let delays: Vec<_> = (1..6).map(|n| backoff(1.0, 5.0, n, 0.5).as_secs_f64()).collect();
        assert_eq!(delays, [1.0, 2.0, 4.0, 5.0, 5.0]);
        assert_eq!(backoff(1.0, 300.0, i32::MAX, 0.5), Duration::from_secs(300));
        assert!((backoff(1.0, 5.0, 1, 0.0).as_secs_f64() - 0.8).abs() < 1e-9);
    }
}
