//! Clients that are slow, silent or send too much: others get their answers meanwhile.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::server::{Server, Site, inline, on_both, photo, read};

on_both!(others_get_answers_beside_slow_clients);

/// What an answer may take while nobody is slow, with room for a machine that is busy.
const USUAL: Duration = Duration::from_secs(5);
/// Connections on which nothing is sent.
const IDLE: usize = 500;
/// A body of ten gigabytes.
const MUCH: u64 = 10 << 30;

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address.trim_start_matches("http://")).await.unwrap()
    }

    /// The head of an upload of so many bytes.
    fn head_of_upload(&self, bytes: u64) -> String {
        let key = self.key_setting().map(|(_, key)| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
        format!("POST /v1/collections/c/uploads HTTP/1.1\r\nhost: localhost\r\n{key}content-length: {bytes}\r\n\r\n")
    }
}

async fn others_get_answers_beside_slow_clients(site: Site) {
    let quick = [("FACE_ID_SERVER__HEADER_TIMEOUT_S", "20"), ("FACE_ID_SERVER__BODY_TIMEOUT_S", "20")];
    let server = Server::start_with(&site, &quick).await;
    server.make_collection("c").await;
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(server.connect().await);
    }
    let mut slow = JoinSet::new();
    // One reads an answer of some size a byte a second, another sends a head so, a third a body.
    slow.spawn(read_slowly(server.connect().await));
    slow.spawn(send_slowly(server.connect().await, "GET /openapi.json HTTP/1.1\r\n".to_owned(), false));
    slow.spawn(send_slowly(server.connect().await, server.head_of_upload(1_000_000), true));
    let too_much = tokio::spawn(send_too_much(server.connect().await, server.head_of_upload(MUCH)));
    for round in 0..5 {
        let look = tokio::time::timeout(USUAL, server.get("/v1/collections/c"));
        look.await.unwrap_or_else(|_| panic!("round {round}: an answer took longer than usual"));
        let body = json!({ "image": inline(&photo(&[round])) });
        let job = tokio::time::timeout(USUAL, server.run("c", "identify", &body));
        let job = job.await.unwrap_or_else(|_| panic!("round {round}: a job took longer than usual"));
        assert_eq!(job["state"], "succeeded");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // Those that say nothing are let go.
    let mut silent = idle.pop().unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(40), silent.read(&mut [0; 512])).await;
    assert!(closed.is_ok(), "a silent connection is closed");
    let told = tokio::time::timeout(Duration::from_secs(60), too_much).await;
    told.expect("a body of ten gigabytes is refused soon").unwrap();
    slow.shutdown().await;
    server.stop().await;
}

async fn read_slowly(mut stream: TcpStream) {
    stream.write_all(b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    while stream.read(&mut [0; 1]).await.is_ok_and(|read| read > 0) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Sends a byte a second: of the head, or after it.
async fn send_slowly(mut stream: TcpStream, head: String, send_head_at_once: bool) {
    if send_head_at_once {
        stream.write_all(head.as_bytes()).await.unwrap();
    }
    for byte in head.bytes().cycle() {
        if stream.write_all(&[byte]).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Sends all of it, as far as it is taken.
async fn send_too_much(mut stream: TcpStream, head: String) {
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = vec![0; 1 << 16];
    let mut pieces = 0;
    while pieces < MUCH >> 16 && stream.write_all(&piece).await.is_ok() {
        pieces += 1;
    }
    assert!(pieces << 16 < MUCH / 10, "{pieces} pieces were taken");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    // Where the connection was reset before the answer could be read there is none.
    assert!(answer.is_empty() || answer.contains("413"), "{answer}");
}

#[tokio::test]
async fn a_connection_too_many_is_refused() {
    let site = Site::embedded();
    let server = Server::start_with(&site, &[("FACE_ID_SERVER__MAX_CONNECTIONS", "16")]).await;
    let mut held = Vec::new();
    for _ in 0..16 {
        held.push(server.connect().await);
    }
    let mut refused = String::new();
    let mut stream = server.connect().await;
    tokio::time::timeout(USUAL, stream.read_to_string(&mut refused)).await.unwrap().unwrap();
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("too_many_connections"), "{refused}");
    held.clear();
    let mut status = StatusCode::SERVICE_UNAVAILABLE;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        status = read(server.request(Method::GET, "/healthz")).await.0;
        if status == StatusCode::OK {
            break;
        }
    }
    assert_eq!(status, StatusCode::OK, "places that became free are given out again");
    server.stop().await;
}
