//! What is dialled, and what is made of answers, against sockets that tell whether anybody knocked.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use shared::config::{Config, WebhooksConfig};
use shared::webhooks::target::Target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::dial::{Answer, DialError, Dialer};

fn settings(networks: &str) -> WebhooksConfig {
    let variables = [
        ("FACE_ID_WEBHOOKS__ALLOW_HTTP", "true"),
        ("FACE_ID_WEBHOOKS__ALLOWED_NETWORKS", networks),
        ("FACE_ID_WEBHOOKS__TIMEOUT_S", "2"),
        ("FACE_ID_WEBHOOKS__CONNECT_TIMEOUT_S", "1"),
    ];
    let variables: HashMap<_, _> = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Config::from_sources(None, variables).unwrap().webhooks
}

/// A socket that answers everybody with these bytes, and counts who came.
async fn receiver(answer: impl Into<Vec<u8>>) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, came, answer) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)), answer.into());
    let counted = Arc::clone(&came);
    // It ends with the test's runtime.
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let answer = answer.clone();
            tokio::spawn(async move {
                let _ = socket.read(&mut [0; 4096]).await;
                let _ = socket.write_all(&answer).await;
                let _ = socket.read(&mut [0; 4096]).await;
            });
        }
    });
    (port, came)
}

/// Sends to a URL that was accepted when everything was allowed.
async fn send(url: &str, dialled: &WebhooksConfig) -> Result<Answer, DialError> {
    let target = Target::parse(url, &settings("0.0.0.0/0,::/0")).unwrap();
    let request = Request::post(target.path()).header("host", target.authority()).body(Full::new(Bytes::from("{}")));
    Dialer::new(dialled).unwrap().send(&target, request.unwrap()).await
}

/// For `make contract`, beside what the other tests leave there.
fn report(tried: usize, dialled: usize) {
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(3).unwrap().join("tmp");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("ssrf.json"), format!(r#"{{"ssrf_tried":{tried},"ssrf_dialled":{dialled}}}"#)).unwrap();
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn inner_addresses_are_not_dialled_whatever_their_spelling() {
    let (port, came) = receiver(OK).await;
    let hosts = [
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "0177.0.0.1",
        "2130706433",
        "017700000001",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "localhost",
        "LOCALHOST",
        "10.0.0.1",
        "169.254.169.254",
        "192.168.0.1",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[fe80::1]",
        "[fd00::1]",
        "198.18.0.1",
        "203.0.113.1",
        "[2001:db8::1]",
    ];
    let mut tried = 0;
    for host in hosts {
        for scheme in ["http", "https"] {
            tried += 1;
            let error = send(&format!("{scheme}://{host}:{port}/"), &settings("")).await.unwrap_err();
            assert!(matches!(error, DialError::Refused(_)), "{host}: {error}");
            assert!(error.to_string().starts_with("webhook_address_refused"), "{error}");
        }
    }
    // Whatever an endpoint may be made with: with nothing allowed, these do not even become one.
    for url in ["http://example.com@127.0.0.1/", "https://127.0.0.1#@example.com/", "https://user:secret@10.0.0.1/"] {
        tried += 1;
        assert!(Target::parse(url, &settings("")).is_err(), "{url}");
    }
    report(tried, came.load(Ordering::SeqCst));
    assert_eq!(came.load(Ordering::SeqCst), 0, "nobody knocked");
    assert_eq!(send(&format!("http://localhost:{port}/"), &settings("127.0.0.0/8")).await.unwrap().status, 200);
    assert_eq!(came.load(Ordering::SeqCst), 1, "where it is allowed, it is dialled");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let (inner, came) = receiver(OK).await;
    for status in [301, 302, 303, 307, 308] {
        let answer = format!("HTTP/1.1 {status} X\r\nlocation: http://127.0.0.1:{inner}/\r\ncontent-length: 0\r\n\r\n");
        let (port, _) = receiver(answer).await;
        let answer = send(&format!("http://127.0.0.1:{port}/"), &settings("127.0.0.0/8")).await.unwrap();
        assert_eq!(answer.status, status);
    }
    assert_eq!(came.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn long_answers_are_cut() {
    let mut endless = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    endless.extend(std::iter::repeat_n(b'x', 10_000_000));
    let (port, _) = receiver(endless).await;
    let answer = send(&format!("http://127.0.0.1:{port}/"), &settings("127.0.0.0/8")).await.unwrap();
    assert_eq!((answer.status, answer.beginning.len()), (200, 1024));
}

#[tokio::test]
async fn a_status_is_the_answer_whatever_its_body_does() {
    let began = Instant::now();
    let (trickling, _) = receiver("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nsome").await;
    let answer = send(&format!("http://127.0.0.1:{trickling}/"), &settings("127.0.0.0/8")).await.unwrap();
    assert_eq!((answer.status, answer.beginning.as_str()), (200, "some"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let (long_head, _) = receiver(format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(1_000_000))).await;
    let error = send(&format!("http://127.0.0.1:{long_head}/"), &settings("127.0.0.0/8")).await.unwrap_err();
    assert!(matches!(error, DialError::Http(_)), "{error}");
}

#[tokio::test]
async fn what_gives_no_answer_says_why() {
    let allowed = settings("127.0.0.0/8");
    let sent = async |url: String| send(&url, &allowed).await.map(|answer| answer.status).unwrap_err().to_string();
    let (plain, _) = receiver(OK).await;
    let error = sent(format!("https://127.0.0.1:{plain}/")).await;
    assert!(error.starts_with("tls_failed"), "{error}");
    let (garbage, _) = receiver("what\r\n\r\n").await;
    let error = sent(format!("http://127.0.0.1:{garbage}/")).await;
    assert!(error.starts_with("http_failed"), "{error}");
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let error = sent(format!("http://127.0.0.1:{free}/")).await;
    assert!(error.starts_with("connect_failed"), "{error}");
    let (silent, _) = receiver("").await;
    let began = Instant::now();
    let error = sent(format!("http://127.0.0.1:{silent}/")).await;
    assert!(error.starts_with("timeout") && began.elapsed() < Duration::from_secs(4), "{error}");
    let error = sent("https://no-such-name.invalid/".to_owned()).await;
    assert!(error.starts_with("name_not_resolved") || error.starts_with("connect_timeout"), "{error}");
}

#[tokio::test]
async fn retry_after_is_read() {
    let (port, _) = receiver("HTTP/1.1 429 Slow\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n").await;
    let answer = send(&format!("http://127.0.0.1:{port}/"), &settings("127.0.0.0/8")).await.unwrap();
    assert_eq!((answer.status, answer.retry_after), (429, Some(Duration::from_secs(7))));
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(90));
    let (port, _) = receiver(format!("HTTP/1.1 503 Later\r\nretry-after: {date}\r\ncontent-length: 0\r\n\r\n")).await;
    let answer = send(&format!("http://127.0.0.1:{port}/"), &settings("127.0.0.0/8")).await.unwrap();
    let left = answer.retry_after.unwrap();
    assert!(left > Duration::from_secs(60) && left <= Duration::from_secs(90), "{left:?}");
}
