//! One attempt to tell an endpoint of an event: what is sent, and what the answer means.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request};
use shared::config::WebhooksConfig;
use shared::db::webhooks::deliveries::{Attempt, Claimed, Verdict};
use shared::db::webhooks::endpoints::Endpoint;
use shared::secret_key::SecretKey;
use shared::webhooks::signature::sign;
use shared::webhooks::target::{Target, TargetError};

use super::dial::{Answer, Dialer};
use crate::retry::random_unit;

const USER_AGENT: &str = concat!("face-id/", env!("CARGO_PKG_VERSION"));
/// `Retry-After` is honoured up to this, or up to twice the delay that would be otherwise: an endpoint must not push itself
/// out of the schedule.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Tells the endpoint.
pub(super) async fn run(
    dialer: &Dialer,
    key: &SecretKey,
    settings: &WebhooksConfig,
    endpoint: &Endpoint,
    claimed: &Claimed,
) -> (Attempt, Verdict) {
    let began = Instant::now();
    let answer = match request(key, settings, endpoint, claimed) {
        Ok((target, request)) => dialer.send(&target, request).await.map_err(|error| error.to_string()),
        Err(why) => Err(why),
    };
    let latency = began.elapsed();
    let verdict = judge(settings, claimed.attempt - claimed.begun_at_attempt, answer.as_ref().ok(), random_unit());
    let attempt = match answer {
        Ok(answer) => Attempt {
            status: Some(answer.status),
            error: error(answer.status).map(str::to_owned),
            latency,
            response: Some(answer.beginning),
        },
        Err(error) => Attempt { status: None, error: Some(error), latency, response: None },
    };
    (attempt, verdict)
}

fn request(
    key: &SecretKey,
    settings: &WebhooksConfig,
    endpoint: &Endpoint,
    claimed: &Claimed,
) -> Result<(Target, Request<Full<Bytes>>), String> {
    // Settings may have changed since the endpoint was made.
    let target = Target::parse(&endpoint.url, settings).map_err(|error| match error {
        error @ TargetError::Refused(_) => format!("webhook_address_refused: the URL {error}"),
        error => format!("webhook_url_refused: the URL {error}"),
    })?;
    let secrets = endpoint.secrets(key, claimed.now).map_err(|error| format!("secret_unreadable: {error}"))?;
    let (id, timestamp) = (claimed.event_id.to_string(), seconds());
    let signature = sign(&secrets, &id, timestamp, claimed.body.as_bytes());
    let request = Request::builder()
        .method(Method::POST)
        .uri(target.path())
        .header("host", target.authority())
        .header("content-type", "application/json")
        .header("user-agent", USER_AGENT)
        .header("webhook-id", id)
        .header("webhook-timestamp", timestamp)
        .header("webhook-signature", signature)
        .body(Full::new(Bytes::from(claimed.body.clone())));
    Ok((target, request.map_err(|error| format!("webhook_url_refused: {error}"))?))
}

/// Receivers compare it with their own clock, so it is this machine's and not the database's.
fn seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Why an answer is none that ends a delivery.
fn error(status: u16) -> Option<&'static str> {
    match status {
        200..300 => None,
        300..400 => Some("redirect: the answer is a redirect, which is not followed"),
        410 => Some("gone: the endpoint says that it is gone for good"),
        _ => Some("bad_status: the answer is none of 2xx"),
    }
}

/// What follows from the `tries`-th attempt of a round; `unit` in 0..1 spreads the delays.
fn judge(settings: &WebhooksConfig, tries: i32, answer: Option<&Answer>, unit: f64) -> Verdict {
    match answer.map(|answer| answer.status) {
        Some(200..300) => return Verdict::Delivered,
        Some(410) => return Verdict::Gone,
        _ => {}
    }
    let schedule = settings.schedule();
    let Some(base) = usize::try_from(tries - 1).ok().and_then(|at| schedule.get(at)) else { return Verdict::Failed };
    let wanted = answer.filter(|answer| matches!(answer.status, 429 | 503)).and_then(|answer| answer.retry_after);
    let delay = base.mul_f64(0.8 + 0.4 * unit);
    Verdict::Retry(match wanted {
        Some(wanted) => wanted.clamp(delay, (2 * *base).max(LONGEST_RETRY_AFTER).max(delay)),
        None => delay,
    })
}

/// The stable code of an attempt for the metrics: few values.
pub(super) fn outcome(attempt: &Attempt) -> &'static str {
    match attempt.status {
        Some(200..300) => "delivered",
        Some(300..400) => "redirect",
        Some(400..500) => "client_error",
        Some(_) => "server_error",
        None => "no_answer",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use shared::config::Config;

    use super::*;

    fn settings() -> WebhooksConfig {
        Config::from_sources(None, HashMap::new()).unwrap().webhooks
    }

    fn answer(status: u16, retry_after_s: Option<u64>) -> Answer {
        Answer { status, retry_after: retry_after_s.map(Duration::from_secs), beginning: String::new() }
    }

    fn delay(tries: i32, answer: &Answer) -> f64 {
        match judge(&settings(), tries, Some(answer), 0.5) {
            Verdict::Retry(delay) => delay.as_secs_f64(),
            other => panic!("{answer:?} is tried again, not {other:?}"),
        }
    }

    #[test]
    fn follows_the_schedule_to_its_end() {
        let delays: Vec<f64> = (1..=7).map(|tries| delay(tries, &answer(500, None))).collect();
        assert_eq!(delays, [5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 36_000.0]);
        assert_eq!(judge(&settings(), 8, Some(&answer(500, None)), 0.5), Verdict::Failed);
        assert_eq!(judge(&settings(), 8, None, 0.5), Verdict::Failed);
        let early = judge(&settings(), 2, None, 0.0);
        assert_eq!(early, Verdict::Retry(Duration::from_secs(240)), "a fifth less at most");
    }

    #[test]
    fn an_answer_decides() {
        let judged = |status| judge(&settings(), 1, Some(&answer(status, None)), 0.5);
        for good in [200, 202, 204, 299] {
            assert_eq!(judged(good), Verdict::Delivered, "{good}");
        }
        assert_eq!(judged(410), Verdict::Gone);
        for again in [301, 302, 307, 400, 401, 404, 429, 500, 503] {
            assert!(matches!(judged(again), Verdict::Retry(_)), "{again}");
        }
    }

    #[test]
    fn retry_after_is_honoured_within_bounds() {
        let close = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-6, "{found} and not {wanted}");
        close(delay(1, &answer(429, Some(60))), 60.0);
        close(delay(1, &answer(503, Some(1))), 5.0);
        close(delay(1, &answer(429, Some(1_000_000))), 3600.0);
        close(delay(6, &answer(429, Some(1_000_000))), 72_000.0);
        close(delay(1, &answer(500, Some(60))), 5.0);
    }
}
