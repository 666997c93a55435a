//! Webhooks end to end, with receivers of the tests' own.

mod docs;
mod losses;
mod tls;
#[expect(unreachable_pub, reason = "as the manual shows it")]
mod verify;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::server::{Server, Site, inline, on_both, photo, read};

on_both!(
    events_are_told_and_signed,
    receivers_that_do_not_answer_well_are_tried_again,
    a_slow_receiver_keeps_no_other_waiting,
    bad_endpoints_are_refused,
    deliveries_are_sent_again,
);

const PATIENCE: Duration = Duration::from_secs(60);
/// Retries come at once, and only this machine is told.
pub(crate) const SETTINGS: [(&str, &str); 5] = [
    ("FACE_ID_WEBHOOKS__ALLOW_HTTP", "true"),
    ("FACE_ID_WEBHOOKS__ALLOWED_NETWORKS", "127.0.0.0/8"),
    ("FACE_ID_WEBHOOKS__SCHEDULE_S", "0.2,0.2,0.2,0.2,0.2,0.2"),
    ("FACE_ID_WEBHOOKS__TIMEOUT_S", "2"),
    ("FACE_ID_WEBHOOKS__CONNECT_TIMEOUT_S", "1"),
];

/// A message that came.
#[derive(Clone)]
struct Message {
    headers: HeaderMap,
    body: Bytes,
}

impl Message {
    fn id(&self) -> &str {
        self.headers["webhook-id"].to_str().unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn is_signed_with(&self, secret: &str) -> bool {
        verify::is_good(secret, &self.headers, &self.body)
    }
}

/// How a receiver answers the n-th message, from 0, which is the m-th of its event, from 0.
type Behaviour = Arc<dyn Fn(usize, usize) -> (Duration, Response) + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) url: String,
    came: Arc<Mutex<Vec<Message>>>,
    open: Open,
    behaviour: Behaviour,
}

/// How many messages are being answered, and how many were at once.
#[derive(Clone, Default)]
struct Open(Arc<Mutex<(usize, usize)>>);

impl Open {
    fn begin(&self) {
        let mut open = self.0.lock().unwrap();
        *open = (open.0 + 1, open.1.max(open.0 + 1));
    }

    fn end(&self) {
        self.0.lock().unwrap().0 -= 1;
    }

    fn most(&self) -> usize {
        self.0.lock().unwrap().1
    }
}

impl Receiver {
    pub(crate) async fn start(behaviour: impl Fn(usize) -> Response + Send + Sync + 'static) -> Self {
        Self::slow(move |n, _| (Duration::ZERO, behaviour(n))).await
    }

    async fn slow(behaviour: impl Fn(usize, usize) -> (Duration, Response) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?x=1", listener.local_addr().unwrap());
        let receiver = Self { url, came: Arc::default(), open: Open::default(), behaviour: Arc::new(behaviour) };
        let router = Router::new().fallback(receive).with_state(receiver.clone());
        // It ends with the test's runtime.
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        receiver
    }

    fn came(&self) -> Vec<Message> {
        self.came.lock().unwrap().clone()
    }

    /// Waits until `count` messages have come.
    async fn until(&self, count: usize) -> Vec<Message> {
        let began = Instant::now();
        loop {
            let came = self.came();
            if came.len() >= count {
                return came;
            }
            assert!(began.elapsed() < PATIENCE, "{} of {count} messages came", came.len());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn receive(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> Response {
    let message = Message { headers, body };
    let (nth, again) = {
        let mut came = receiver.came.lock().unwrap();
        let again = came.iter().filter(|earlier| earlier.id() == message.id()).count();
        came.push(message);
        (came.len() - 1, again)
    };
    let (pause, answer) = (receiver.behaviour)(nth, again);
    receiver.open.begin();
    tokio::time::sleep(pause).await;
    receiver.open.end();
    answer
}

fn ok() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

pub(crate) async fn make_endpoint(server: &Server, body: Value) -> Value {
    let (status, made) = read(server.request(Method::POST, "/v1/webhook-endpoints").json(&body)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    made
}

async fn post(server: &Server, path: &str, body: &Value) -> (StatusCode, Value) {
    read(server.request(Method::POST, path).json(body)).await
}

fn path(endpoint: &Value) -> String {
    format!("/v1/webhook-endpoints/{}", endpoint["id"].as_str().unwrap())
}

/// Waits until the endpoint's deliveries are all in this state, and returns them, newest first.
async fn until_all_are(server: &Server, endpoint: &Value, state: &str, count: usize) -> Vec<Value> {
    let began = Instant::now();
    loop {
        let page = server.get(&format!("{}/deliveries?limit=500", path(endpoint))).await;
        let items = page["items"].as_array().unwrap().clone();
        if items.len() == count && items.iter().all(|delivery| delivery["state"] == state) {
            return items;
        }
        assert!(began.elapsed() < PATIENCE, "{count} should become {state}: {items:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Index jobs of a picture each that is not one, which end at once.
async fn jobs(server: &Server, count: usize, more: &Value) -> Vec<Value> {
    let mut jobs = Vec::new();
    for n in 0..count {
        let mut body = json!({ "image": inline(&photo(&[u32::try_from(n).unwrap()])), "tag": format!("t{n}") });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        jobs.push(server.submit("c", "identify", &body).await);
    }
    jobs
}

async fn events_are_told_and_signed(site: Site) {
    // Nothing is told twice because this test was slow.
    let settings = [&SETTINGS[..], &[("FACE_ID_WEBHOOKS__TIMEOUT_S", "15")]].concat();
    let server = Server::start_with(&site, &settings).await;
    server.make_collection("c").await;
    let (receiver, other) = (Receiver::start(|_| ok()).await, Receiver::start(|_| ok()).await);
    let endpoint = make_endpoint(&server, json!({ "url": receiver.url })).await;
    let faces =
        make_endpoint(&server, json!({ "url": other.url, "event_types": ["face.matched", "face.unknown"] })).await;
    let secret = endpoint["secret"].as_str().unwrap().to_owned();
    assert_eq!(server.get(&format!("{}/secret", path(&endpoint))).await["secret"], json!(secret));

    let enrolled = server.enroll("c", 7).await;
    let known = server.run("c", "identify", &json!({ "image": inline(&photo(&[7])), "tag": "a" })).await;
    let unknown = server.run("c", "identify", &json!({ "image": inline(&photo(&[8])) })).await;
    let nobody = json!({ "image": inline(&photo(&[])), "person": { "external_id": "x" } });
    let rejected = server.run("c", "enroll", &nobody).await;
    let came = receiver.until(6).await;
    let by_type = |kind: &str| -> Vec<Value> {
        came.iter().map(Message::json).filter(|m| m["type"] == kind).map(|m| m["data"].clone()).collect()
    };
    assert_eq!(by_type("job.succeeded").len(), 3);
    assert_eq!(by_type("job.rejected")[0]["job_id"], rejected["id"]);
    assert_eq!(by_type("face.matched")[0]["person_id"], enrolled["person_id"]);
    assert_eq!(
        (&by_type("face.matched")[0]["job_id"], &by_type("face.matched")[0]["tag"]),
        (&known["id"], &json!("a"))
    );
    assert_eq!(by_type("face.unknown")[0]["job_id"], unknown["id"]);
    for message in &came {
        assert!(message.is_signed_with(&secret));
        assert_eq!(message.headers[header::CONTENT_TYPE], "application/json");
        assert!(message.headers[header::USER_AGENT].to_str().unwrap().starts_with("face-id/"));
        assert!(!String::from_utf8_lossy(&message.body).contains("Person 7"), "no names");
    }
    other.until(2).await;
    until_all_are(&server, &faces, "delivered", 2).await;
    let told = until_all_are(&server, &endpoint, "delivered", 6).await;
    let told_body = told[0]["body"].as_str().unwrap();
    let is_told = |message: &Message| message.id() == told[0]["event_id"] && message.body == told_body;
    assert!(came.iter().any(is_told), "the log has what was sent");
    assert_eq!((&told[0]["attempts"][0]["status"], &told[0]["attempts"][0]["error"]), (&json!(204), &Value::Null));

    // Both secrets, then the new one alone.
    let (_, rotated) = post(&server, &format!("{}/rotate-secret", path(&endpoint)), &json!({ "grace_s": 60 })).await;
    let only = json!({ "webhook_endpoint_ids": [endpoint["id"]] });
    jobs(&server, 1, &only).await;
    let came = receiver.until(8).await;
    assert!(came[6].is_signed_with(&secret) && came[6].is_signed_with(rotated["secret"].as_str().unwrap()));
    let (_, rotated) = post(&server, &format!("{}/rotate-secret", path(&endpoint)), &json!({ "grace_s": 0 })).await;
    let (status, _) = read(server.request(Method::POST, &format!("{}/test", path(&endpoint)))).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let came = receiver.until(9).await;
    assert_eq!(came[8].json()["type"], "endpoint.test");
    assert!(came[8].is_signed_with(rotated["secret"].as_str().unwrap()) && !came[8].is_signed_with(&secret));
    assert_eq!(other.came().len(), 2, "of a job for one endpoint, no other is told");
    server.stop().await;
}

async fn receivers_that_do_not_answer_well_are_tried_again(site: Site) {
    let server = Server::start_with(&site, &SETTINGS).await;
    server.make_collection("c").await;
    let inner = Receiver::start(|_| ok()).await;
    let location = inner.url.clone();
    let answer = move |n: usize| match n {
        0 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        1 => (StatusCode::FOUND, [(header::LOCATION, location.clone())]).into_response(),
        2 => (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")]).into_response(),
        3 => (StatusCode::BAD_GATEWAY, "x".repeat(5_000_000)).into_response(),
        _ => ok(),
    };
    // The fifth takes longer than it may.
    let answer = move |n: usize, _| (if n == 4 { Duration::from_secs(4) } else { Duration::ZERO }, answer(n));
    let receiver = Receiver::slow(answer).await;
    let endpoint = make_endpoint(&server, json!({ "url": receiver.url, "event_types": ["job.succeeded"] })).await;
    jobs(&server, 1, &json!({})).await;
    let told = until_all_are(&server, &endpoint, "delivered", 1).await;
    let attempts = told[0]["attempts"].as_array().unwrap();
    let statuses: Vec<&Value> = attempts.iter().map(|attempt| &attempt["status"]).collect();
    assert_eq!(statuses, [&json!(500), &json!(302), &json!(429), &json!(502), &Value::Null, &json!(204)]);
    assert_eq!(attempts[3]["response"].as_str().unwrap().len(), 1024);
    assert!(attempts[4]["error"].as_str().unwrap().starts_with("timeout"), "{}", attempts[4]);
    let came = receiver.came();
    assert!(came.iter().all(|m| m.id() == came[0].id() && m.body == came[0].body), "each time the same");
    assert!(inner.came().is_empty(), "no redirect is followed");

    let gone = Receiver::start(|_| StatusCode::GONE.into_response()).await;
    let disabled = make_endpoint(&server, json!({ "url": gone.url, "event_types": ["job.succeeded"] })).await;
    jobs(&server, 1, &json!({})).await;
    until_all_are(&server, &disabled, "failed", 1).await;
    let shown = server.get(&path(&disabled)).await;
    assert_eq!((&shown["state"], &shown["state_reason"]), (&json!("disabled"), &json!("gone")));
    let (status, refused) = read(server.request(Method::POST, &format!("{}/test", path(&disabled)))).await;
    assert_eq!((status, &refused["code"]), (StatusCode::CONFLICT, &json!("webhook_endpoint_disabled")));

    // Nothing listens there, and nothing speaks TLS there.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (url, why) in
        [(format!("http://{free}/"), "connect_failed"), (inner.url.replace("http:", "https:"), "tls_failed")]
    {
        let dead = make_endpoint(&server, json!({ "url": url, "event_types": ["job.failed"] })).await;
        read(server.request(Method::POST, &format!("{}/test", path(&dead)))).await;
        let failed = until_all_are(&server, &dead, "failed", 1).await;
        assert_eq!(failed[0]["attempts"].as_array().unwrap().len(), 7, "the schedule has an end");
        assert!(failed[0]["attempts"][0]["error"].as_str().unwrap().starts_with(why), "{}", failed[0]);
    }
    server.stop().await;
}

async fn a_slow_receiver_keeps_no_other_waiting(site: Site) {
    let settings = [&SETTINGS[..], &[("FACE_ID_WEBHOOKS__TIMEOUT_S", "10")]].concat();
    let server = Server::start_with(&site, &settings).await;
    server.make_collection("c").await;
    let slow = Receiver::slow(|_, _| (Duration::from_secs(9), ok())).await;
    let quick = Receiver::start(|_| ok()).await;
    for receiver in [&slow, &quick] {
        make_endpoint(&server, json!({ "url": receiver.url, "event_types": ["job.succeeded"] })).await;
    }
    jobs(&server, 8, &json!({})).await;
    quick.until(8).await;
    assert!((1..=3).contains(&slow.open.most()), "three at once, {} came", slow.open.most());
    server.stop().await;
}

async fn bad_endpoints_are_refused(site: Site) {
    // Nothing is allowed here.
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let refused = async |body: Value| {
        let (status, problem) = post(&server, "/v1/webhook-endpoints", &body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}: {problem}");
        problem["code"].as_str().unwrap().to_owned()
    };
    for host in ["127.0.0.1", "2130706433", "0x7f.1", "0177.1", "[::1]", "[::ffff:10.0.0.1]", "169.254.169.254", "10.1"]
    {
        assert_eq!(refused(json!({ "url": format!("https://{host}/") })).await, "webhook_address_refused", "{host}");
    }
    for url in
        ["http://example.com/", "https://u:p@example.com/", "https://example.com/#x", "ftp://x/", "x", "https://h:0/"]
    {
        assert_eq!(refused(json!({ "url": url })).await, "invalid_request", "{url}");
    }
    let url = "https://example.com/";
    let nobody = "0190a000-0000-7000-8000-000000000000";
    for more in [
        json!({ "secret": "whsec_AAAA" }),
        json!({ "event_types": ["job.exploded"] }),
        json!({ "collection_ids": [nobody] }),
        json!({ "surprise": 1 }),
    ] {
        let mut body = json!({ "url": url });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(refused(body).await, "invalid_request");
    }
    let endpoint = make_endpoint(&server, json!({ "url": url })).await;
    let change = server.request(Method::PATCH, &path(&endpoint)).json(&json!({ "url": "https://127.0.0.1/" }));
    assert_eq!(read(change).await.1["code"], "webhook_address_refused");
    let job = json!({ "image": inline(&photo(&[1])), "webhook_endpoint_ids": [nobody] });
    let (status, problem) = post(&server, "/v1/collections/c/identify", &job).await;
    assert_eq!(
        (status, &problem["errors"][0]["pointer"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("#/webhook_endpoint_ids"))
    );
    // A name is looked at when it is dialled.
    let inner = make_endpoint(&server, json!({ "url": "https://localhost/", "event_types": ["job.failed"] })).await;
    read(server.request(Method::POST, &format!("{}/test", path(&inner)))).await;
    let began = Instant::now();
    loop {
        let page = server.get(&format!("{}/deliveries", path(&inner))).await;
        if let Some(error) = page["items"][0]["attempts"][0]["error"].as_str() {
            assert!(error.starts_with("webhook_address_refused"), "{error}");
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{page}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.delete(&path(&endpoint)).await, StatusCode::NO_CONTENT);
    assert_eq!(server.delete(&path(&endpoint)).await, StatusCode::NOT_FOUND);
    server.stop().await;
}

async fn deliveries_are_sent_again(site: Site) {
    let settings = [&SETTINGS[..], &[("FACE_ID_WEBHOOKS__SCHEDULE_S", "0.1,0.1")]].concat();
    let server = Server::start_with(&site, &settings).await;
    server.make_collection("c").await;
    // Three attempts of each of three fail.
    let receiver = Receiver::start(|n| if n < 9 { StatusCode::BAD_REQUEST.into_response() } else { ok() }).await;
    let endpoint = make_endpoint(&server, json!({ "url": receiver.url, "event_types": ["job.succeeded"] })).await;
    jobs(&server, 3, &json!({})).await;
    let failed = until_all_are(&server, &endpoint, "failed", 3).await;
    assert!(!server.get(&path(&endpoint)).await["failing_since"].is_null());
    let one = format!("/v1/webhook-deliveries/{}", failed[0]["id"].as_str().unwrap());
    let (status, _) = read(server.request(Method::POST, &format!("{one}/redeliver"))).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let came = receiver.until(10).await;
    assert_eq!(came[9].id(), failed[0]["event_id"].as_str().unwrap());
    let (status, answer) =
        post(&server, &format!("{}/recover", path(&endpoint)), &json!({ "since": "2020-01-01T00:00:00Z" })).await;
    assert_eq!((status, answer), (StatusCode::ACCEPTED, json!({ "deliveries": 2, "more": false })));
    until_all_are(&server, &endpoint, "delivered", 3).await;
    let page = server.get(&format!("{}/deliveries?state=failed", path(&endpoint))).await;
    assert_eq!(page["items"], json!([]));
    assert!(server.get(&path(&endpoint)).await["failing_since"].is_null());
    server.stop().await;
}
