//! One file a noun: its wire types and its handlers.

pub mod batches;
pub mod calibrations;
pub mod clusters;
pub mod collections;
pub mod comparisons;
pub mod erasures;
pub mod events;
pub mod export;
pub mod faces;
pub mod health;
pub mod images;
pub mod import;
pub mod jobs;
pub mod keys;
pub mod models;
pub mod new_batch;
pub mod persons;
pub mod reprocess;
pub mod submit;
pub mod uploads;
pub mod webhook_deliveries;
pub mod webhooks;

use std::time::{Duration, UNIX_EPOCH};

/// A stored instant (microseconds since the epoch) as RFC 3339 in UTC.
fn instant(micros: i64) -> String {
    // What is written has four digits for the year.
    const LAST: u64 = 253_402_300_799_999_999;
    let since = Duration::from_micros(u64::try_from(micros).unwrap_or_default().min(LAST));
    humantime::format_rfc3339_micros(UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn instants_are_rfc_3339() {
        assert_eq!(super::instant(1_700_000_000_123_456), "2023-11-14T22:13:20.123456Z");
        assert_eq!(super::instant(i64::MAX), "9999-12-31T23:59:59.999999Z");
    }
}
