//! Limits of keys, over all processes.

use std::process::Stdio;

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{TIMEOUT, keyed, token};
use crate::server::{Server, Site, command, first_line, http, inline, on_both, photo};

on_both!(a_key_learns_of_its_limits, jobs_in_flight_are_bounded);

const POLICY: &str = "ratelimit-policy";
const LIMIT: &str = "ratelimit";

async fn a_key_learns_of_its_limits(site: Site) {
    let site = keyed(site).await;
    let server = Server::start(&site).await;
    let free = http(Some(token(&site.make_key(&["--scope", "read"]).await)), TIMEOUT);
    let answer = free.get(format!("{}/v1/jobs", server.address)).send().await.unwrap();
    assert!(answer.headers().get(POLICY).is_none() && answer.headers().get(LIMIT).is_none());
    let key = site.make_key(&["--scope", "read", "--requests-per-minute", "20"]).await;
    let client = http(Some(token(&key)), TIMEOUT);
    // A good one, one that is not there, and one that the key may not do: each counts, and each is told.
    let (mut answered, mut refused) = (0, 0);
    for n in 0..50 {
        let path = ["/v1/jobs", "/v1/collections/x", "/v1/api-keys"][n % 3];
        let answer = client.get(format!("{}{path}", server.address)).send().await.unwrap();
        let (status, headers) = (answer.status(), answer.headers().clone());
        assert_eq!(headers[POLICY], "\"requests\";q=20;w=60");
        let left = headers[LIMIT].to_str().unwrap();
        let (r, t) = left.strip_prefix("\"requests\";r=").unwrap().split_once(";t=").unwrap();
        let (r, t): (u32, u32) = (r.parse().unwrap(), t.parse().unwrap());
        assert!(r < 20 && (1..=60).contains(&t), "{left}");
        if status == StatusCode::TOO_MANY_REQUESTS {
            refused += 1;
            let wait: u32 = headers["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((1..=60).contains(&wait) && r == 0);
            assert_eq!(answer.json::<Value>().await.unwrap()["code"], "rate_limited");
        } else {
            answered += 1;
        }
    }
    // Where a minute ends meanwhile, two of them.
    assert!((20..=40).contains(&answered) && refused >= 10, "{answered} answered, {refused} refused");
    server.stop().await;
}

#[tokio::test]
async fn two_apis_share_a_minute() {
    let site = Site::services().await;
    let server = Server::start(&site).await;
    let mut second = command();
    second.args(["api", "--bind", "127.0.0.1:0"]).envs(site.settings()).stdout(Stdio::piped());
    let mut second = second.spawn().unwrap();
    let addresses = [server.address.clone(), first_line(&mut second, "listening on ").await];
    let key = site.make_key(&["--scope", "read", "--requests-per-minute", "60"]).await;
    let client = http(Some(token(&key)), TIMEOUT);
    let minute = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() / 60;
    let (mut answered, began) = (0, minute());
    for n in 0..200 {
        let answer = client.get(format!("{}/v1/collections", addresses[n % 2])).send().await.unwrap();
        answered += u32::from(answer.status() == StatusCode::OK);
    }
    let minutes = u32::try_from(minute() - began + 1).unwrap();
    // What one process holds of a slice is lost to the other.
    assert!(answered <= 60 * minutes && answered >= 54, "{answered} answered in {minutes} minutes");
    second.kill().await.unwrap();
    server.stop().await;
}

async fn jobs_in_flight_are_bounded(site: Site) {
    let site = keyed(site).await;
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let arguments = ["--scope", "identify", "--jobs-in-flight", "1", "--images-per-day", "9"];
    let key = site.make_key(&arguments).await;
    let client = http(Some(token(&key)), TIMEOUT);
    let body = json!({ "image": inline(&photo(&[1])) });
    let post = async || {
        let sent = client.post(format!("{}/v1/collections/c/identify", server.address)).json(&body).send().await;
        let sent = sent.unwrap();
        let (status, wait) = (sent.status(), sent.headers().get("retry-after").cloned());
        (status, wait, sent.json::<Value>().await.unwrap())
    };
    let (mut taken, mut busy) = (0, 0);
    loop {
        // Two at once: the first may have ended before the second is looked at, but never do both wait.
        let (one, other) = tokio::join!(post(), post());
        let mut spent = false;
        for (status, wait, body) in [one, other] {
            if status == StatusCode::ACCEPTED {
                taken += 1;
                server.ended(&body).await;
                continue;
            }
            assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{body}");
            let wait: u64 = wait.unwrap().to_str().unwrap().parse().unwrap();
            match body["code"].as_str().unwrap() {
                "too_many_jobs" => busy += 1,
                "daily_images_spent" => {
                    assert!((1..=24 * 3600).contains(&wait));
                    spent = true;
                }
                code => panic!("{code}"),
            }
        }
        if spent {
            break;
        }
    }
    assert_eq!(taken, 9, "as many pictures as a day has; {busy} requests came too early");
    // Those of refused requests are gone too.
    server.wait_for_objects(0).await;
    server.stop().await;
}
