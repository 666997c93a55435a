//! The command as a client of the HTTP API.

use std::time::Duration;

use anyhow::Context as _;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::Value;
use shared::config::Secret;
use uuid::Uuid;

/// Longest time one request may take; a job is waited for within it.
const TIMEOUT: Duration = Duration::from_secs(90);

/// A server at an address; cheap to clone.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    address: String,
    /// What each request says of who sends it.
    headers: HeaderMap,
}

/// A refusal by the server.
#[derive(Debug, thiserror::Error)]
#[error("{status}: {detail}")]
pub(crate) struct Refused {
    pub(crate) status: u16,
    pub(crate) code: String,
    detail: String,
}

impl Client {
    /// With the API key, where there is one.
    pub(crate) fn new(address: &str, key: Option<&Secret>) -> anyhow::Result<Self> {
        let mut headers = HeaderMap::new();
        if let Some(key) = key {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose()))
                .context("the API key is no text of visible characters")?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let http = builder(&headers).timeout(TIMEOUT).build()?;
        Ok(Self { http, address: address.trim_end_matches('/').to_owned(), headers })
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.sent(self.http.get(self.url(path)), path).await
    }

    /// The same, answered when what is asked for ends, or after that many seconds.
    pub(crate) async fn get_when_ended(&self, path: &str, wait_s: u64) -> anyhow::Result<Value> {
        self.sent(self.http.get(self.url(path)).header("prefer", format!("wait={wait_s}")), path).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.sent(self.http.post(self.url(path)).json(body), path).await
    }

    /// Makes something: what was accepted and not answered is not made twice.
    pub(crate) async fn make(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.sent(self.http.post(self.url(path)).header("idempotency-key", new_key()).json(body), path).await
    }

    pub(crate) async fn post_text(&self, path: &str, media_type: &str, text: String) -> anyhow::Result<Value> {
        self.sent(self.http.post(self.url(path)).header("content-type", media_type).body(text), path).await
    }

    pub(crate) async fn post_bytes(&self, path: &str, bytes: Vec<u8>) -> anyhow::Result<Value> {
        self.sent(self.http.post(self.url(path)).body(bytes), path).await
    }

    /// The body as it comes, of any length and for as long as it keeps coming; the first of it within `patience`.
    pub(crate) async fn get_stream(&self, path: &str, patience: Duration) -> anyhow::Result<reqwest::Response> {
        let http = builder(&self.headers).read_timeout(patience).build()?;
        let asking = http.get(self.url(path)).send();
        let answer = tokio::time::timeout(patience, asking).await.context("the server does not answer")?;
        let answer = answer.with_context(|| format!("ask {}{path}", self.address))?;
        if answer.status().is_success() {
            Ok(answer)
        } else {
            Err(self.read(answer, path).await.err().context("a refusal")?)
        }
    }

    /// Sends a body of any length; whoever calls sees to it that it ends.
    pub(crate) async fn post_stream(&self, path: &str, media_type: &str, body: reqwest::Body) -> anyhow::Result<Value> {
        let http = builder(&self.headers).build()?;
        self.sent(http.post(self.url(path)).header("content-type", media_type).body(body), path).await
    }

    /// The same as `make` with a body of some media type.
    pub(crate) async fn make_of(&self, path: &str, media_type: &str, text: String) -> anyhow::Result<Value> {
        let request = self.http.post(self.url(path)).header("idempotency-key", new_key());
        self.sent(request.header("content-type", media_type).body(text), path).await
    }

    /// Whether there was anything to delete is not told.
    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.http.delete(self.url(path)).send().await.with_context(|| format!("ask {}", self.address))?;
        Ok(())
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    /// The body of a good answer; of a bad one, the problem as an error.
    async fn sent(&self, request: reqwest::RequestBuilder, path: &str) -> anyhow::Result<Value> {
        let answer = request.send().await.with_context(|| format!("ask {}{path}", self.address))?;
        self.read(answer, path).await
    }

    async fn read(&self, answer: reqwest::Response, path: &str) -> anyhow::Result<Value> {
        let status = answer.status();
        let body: Value = answer.json().await.with_context(|| format!("read the answer of {}{path}", self.address))?;
        if status.is_success() {
            return Ok(body);
        }
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let (code, mut detail) = (text("code"), text("detail"));
        if code == "unauthenticated" {
            detail.push_str(" (of this command: --api-key or FACE_ID_API_KEY)");
        }
        Err(Refused { status: status.as_u16(), code, detail }.into())
    }
}

fn new_key() -> String {
    Uuid::now_v7().to_string()
}

fn builder(headers: &HeaderMap) -> reqwest::ClientBuilder {
    reqwest::Client::builder().default_headers(headers.clone()).no_proxy()
}
