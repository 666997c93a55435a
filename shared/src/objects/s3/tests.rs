use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{self, StreamExt as _};
use services::s3::{ACCESS_KEY, Fault, Faults, S3Server, SECRET_KEY};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::objects::contract;

const BUCKET: &str = "face-id";

/// A server with three buckets, and a store on the first.
struct Fixture {
    server: S3Server,
    faults: Faults,
    store: S3Store,
    _folder: TempDir,
}

async fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let server = S3Server::start(folder.path(), 0).await.unwrap();
    for bucket in [BUCKET, "photos", "private"] {
        server.create_bucket(bucket).await.unwrap();
    }
    let store = S3Store::open(options(&server)).unwrap();
    Fixture { faults: server.faults(), server, store, _folder: folder }
}

fn options(server: &S3Server) -> S3Options {
    S3Options {
        bucket: BUCKET.to_owned(),
        endpoint: Some(server.endpoint()),
        access_key_id: ACCESS_KEY.to_owned(),
        secret_access_key: SECRET_KEY.to_owned(),
        path_style: true,
        allowed_buckets: vec!["photos".to_owned()],
        ..S3Options::default()
    }
}

/// A store that gives up soon.
fn hasty(server: &S3Server) -> S3Store {
    let options = S3Options {
        connect_timeout: Duration::from_millis(500),
        attempt_timeout: Duration::from_millis(500),
        operation_timeout: Duration::from_secs(2),
        ..options(server)
    };
    S3Store::open(options).unwrap()
}

#[tokio::test]
async fn keeps_the_contract() {
    let Fixture { store, server, .. } = &fixture().await;
    store.check().await.unwrap();
    contract::run(Arc::new(store.clone())).await;
    assert!(server.faults().requests() > 100);
}

#[tokio::test]
async fn lists_more_than_a_page() {
    let Fixture { store, .. } = &fixture().await;
    let keys: Vec<String> = (0..2500).map(|n| format!("many/{n:04}")).collect();
    stream::iter(&keys).for_each_concurrent(32, async |key| store.put(key, b"x").await.unwrap()).await;
    let names = async |after: Option<&str>, limit| {
        store.list("many/", after, limit).await.unwrap().into_iter().map(|o| o.key).collect::<Vec<_>>()
    };
    assert_eq!(names(None, usize::MAX).await, keys);
    assert_eq!(names(Some("many/0009"), 2000).await, keys[10..2010]);
    assert_eq!(names(None, 1000).await, keys[..1000]);
    assert_eq!(names(None, 0).await, Vec::<String>::new());
}

#[tokio::test]
async fn refuses_a_long_object_unread() {
    let Fixture { store, faults, .. } = &fixture().await;
    store.put("long", &vec![7; 3_000_000]).await.unwrap();
    // The body breaks off at once: whoever reads it fails otherwise.
    faults.set(Fault::Truncate(0));
    let refused = store.get("long", 2_999_999).await.unwrap_err();
    assert!(
        matches!(refused, ObjectError::TooLarge { max_bytes: 2_999_999, .. }) && !refused.is_transient(),
        "{refused}"
    );
    faults.set(Fault::None);
    assert_eq!(store.get("long", 3_000_000).await.unwrap().len(), 3_000_000);
}

#[tokio::test]
async fn never_gives_back_a_part() {
    let Fixture { store, faults, .. } = &fixture().await;
    store.put("cut", &vec![7; 200_000]).await.unwrap();
    for length in [0, 1, 100_000, 199_999] {
        faults.set(Fault::Truncate(length));
        let error = store.get("cut", 200_000).await.unwrap_err();
        assert!(error.is_transient(), "{error:?}");
    }
    faults.set(Fault::None);
    assert_eq!(store.get("cut", 200_000).await.unwrap().len(), 200_000);
}

#[tokio::test]
async fn tries_again_by_itself() {
    let Fixture { store, faults, .. } = &fixture().await;
    store.put("a", b"x").await.unwrap();
    for code in [500, 502, 503] {
        let before = faults.requests();
        faults.set(Fault::Status { code, every: 1000 });
        assert_eq!(store.get("a", 1).await.unwrap(), b"x");
        assert_eq!(faults.requests() - before, 2, "one failed, one served");
    }
}

#[tokio::test]
async fn gives_up_in_time() {
    let Fixture { store, faults, server, .. } = &fixture().await;
    store.put("a", b"x").await.unwrap();
    let store = &hasty(server);
    for (fault, most_requests) in [
        (Fault::Status { code: 500, every: 1 }, 3),
        (Fault::Status { code: 503, every: 1 }, 3),
        (Fault::Slow(Duration::from_secs(5)), 3),
        (Fault::Gone, 0),
    ] {
        faults.set(fault);
        let (started, before) = (Instant::now(), faults.requests());
        let error = store.get("a", 1).await.unwrap_err();
        assert!(
            matches!(error, ObjectError::Store { action: "read", .. }) && error.is_transient(),
            "{fault:?}: {error:?}"
        );
        assert!(started.elapsed() < Duration::from_secs(4), "{fault:?}: {:?}", started.elapsed());
        assert!(faults.requests() - before <= most_requests, "{fault:?}");
        let error = store.put("a", b"y").await.unwrap_err();
        assert!(error.is_transient(), "{fault:?}: {error:?}");
        assert!(store.check().await.unwrap_err().is_transient(), "{fault:?}");
    }
    faults.set(Fault::None);
    assert_eq!(store.get("a", 1).await.unwrap(), b"x", "works again without a restart");
}

#[tokio::test]
async fn gives_up_on_a_body_that_stands_still() {
    let Fixture { store, faults, server, .. } = &fixture().await;
    store.put("a", &vec![7; 100_000]).await.unwrap();
    faults.set(Fault::Stall(50_000));
    let started = Instant::now();
    let error = hasty(server).get("a", 100_000).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test]
async fn fails_cleanly_where_nobody_speaks_tls() {
    let Fixture { server, .. } = &fixture().await;
    let endpoint = server.endpoint().replace("http:", "https:");
    let store = S3Store::open(S3Options { endpoint: Some(endpoint), ..options(server) }).unwrap();
    let error = store.get("a", 1).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
}

#[tokio::test]
async fn survives_a_restart_of_the_service() {
    let folder = tempfile::tempdir().unwrap();
    let server = S3Server::start(folder.path(), 0).await.unwrap();
    server.create_bucket(BUCKET).await.unwrap();
    let port: u16 = server.endpoint().rsplit_once(':').unwrap().1.parse().unwrap();
    let store = hasty(&server);
    store.put("a", b"x").await.unwrap();
    drop(server);
    let error = store.get("a", 1).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    let deadline = Instant::now() + Duration::from_secs(5);
    let _server = loop {
        match S3Server::start(folder.path(), port).await {
            Ok(server) => break server,
            Err(error) => assert!(Instant::now() < deadline, "{error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let patient = S3Store { operation_timeout: Duration::from_secs(30), ..store };
    assert_eq!(patient.get("a", 1).await.unwrap(), b"x");
}

#[tokio::test]
async fn tells_a_refusal_from_a_failure() {
    let Fixture { store, faults, server, .. } = &fixture().await;
    store.put("a", b"x").await.unwrap();
    let refused = |error: ObjectError, hint: &str| {
        assert!(matches!(error, ObjectError::Refused { .. }) && !error.is_transient(), "{error:?}");
        assert!(error.to_string().contains(hint), "{error}");
    };
    faults.set(Fault::Refuse);
    let before = faults.requests();
    refused(store.get("a", 1).await.unwrap_err(), "403 AccessDenied");
    refused(store.put("a", b"y").await.unwrap_err(), "403");
    refused(store.head("a").await.unwrap_err(), "403");
    refused(store.delete("a").await.unwrap_err(), "403");
    refused(store.list("", None, 1).await.unwrap_err(), "403");
    refused(store.check().await.unwrap_err(), "403");
    assert_eq!(faults.requests() - before, 6, "a refusal is not repeated");
    faults.set(Fault::None);

    let wrong_secret = S3Options { secret_access_key: "wrong".to_owned(), ..options(server) };
    let wrong = S3Store::open(wrong_secret).unwrap();
    refused(wrong.get("a", 1).await.unwrap_err(), "403 SignatureDoesNotMatch");
    refused(wrong.check().await.unwrap_err(), "403");
    let unknown_key = S3Options { access_key_id: "nobody".to_owned(), ..options(server) };
    refused(S3Store::open(unknown_key).unwrap().get("a", 1).await.unwrap_err(), "403");

    let absent = S3Store::open(S3Options { bucket: "absent".to_owned(), ..options(server) }).unwrap();
    refused(absent.check().await.unwrap_err(), "no such bucket");
    refused(absent.get("a", 1).await.unwrap_err(), "404 NoSuchBucket");
    refused(absent.put("a", b"x").await.unwrap_err(), "404 NoSuchBucket");

    for wrong in [
        S3Options { bucket: "No Bucket".to_owned(), ..options(server) },
        S3Options { endpoint: Some("127.0.0.1:9000".to_owned()), ..options(server) },
    ] {
        refused(S3Store::open(wrong).err().expect("open with senseless options"), "open bucket");
    }
    assert_eq!(store.get("a", 1).await.unwrap(), b"x");
}

#[tokio::test]
async fn reads_allowed_buckets_only() {
    let Fixture { store, server, faults, .. } = &fixture().await;
    for bucket in ["photos", "private"] {
        let other = S3Store::open(S3Options { bucket: bucket.to_owned(), ..options(server) }).unwrap();
        other.put("album/one two.jpg", b"picture").await.unwrap();
    }
    let (bucket, key) = parse_s3_uri("s3://photos/album/one two.jpg").unwrap();
    assert_eq!(store.get_from(bucket, key, 7).await.unwrap(), b"picture");
    assert!(matches!(store.get_from(bucket, key, 6).await, Err(ObjectError::TooLarge { .. })));
    assert!(matches!(store.get_from(bucket, "album/none.jpg", 7).await, Err(ObjectError::NotFound(_))));
    assert!(matches!(store.get_from(bucket, "../private/album/one two.jpg", 7).await, Err(ObjectError::BadKey(_))));
    let before = faults.requests();
    for bucket in ["private", BUCKET, "", "photos/", "PHOTOS"] {
        let error = store.get_from(bucket, key, 7).await.unwrap_err();
        assert!(matches!(error, ObjectError::BucketNotAllowed(_)) && !error.is_transient(), "{error:?}");
    }
    assert_eq!(faults.requests(), before, "the store was not even asked");
}

#[tokio::test]
async fn lends_single_requests() {
    let Fixture { store, .. } = &fixture().await;
    let minute = Duration::from_secs(60);
    let put = store.presign_put("lent/ü b+c", 5, minute).await.unwrap();
    assert_eq!(send(&put, b"hello!").await.0, 403, "another length than the signed one");
    assert!(matches!(store.head("lent/ü b+c").await, Err(ObjectError::NotFound(_))));
    assert_eq!(send(&put, b"hello").await.0, 200);
    assert_eq!(store.get("lent/ü b+c", 5).await.unwrap(), b"hello");

    let get = store.presign_get("lent/ü b+c", minute).await.unwrap();
    assert_eq!(send(&get, b"").await, (200, b"hello".to_vec()));
    let tampered = Presigned { url: get.url.replace("lent/", "sent/"), ..get };
    assert_eq!(send(&tampered, b"").await.0, 403);
    let short = store.presign_get("lent/ü b+c", Duration::from_secs(1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(send(&short, b"").await.0, 403, "expired");

    assert!(matches!(store.presign_put("../x", 1, minute).await, Err(ObjectError::BadKey(_))));
    let too_long = store.presign_get("lent/x", Duration::from_secs(8 * 86_400)).await;
    assert!(matches!(too_long, Err(ObjectError::Refused { .. })));
}

/// Status and body of the answer to the request, sent as any HTTP client would.
async fn send(request: &Presigned, body: &[u8]) -> (u16, Vec<u8>) {
    let (host, path) = request.url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut head = format!("{} /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n", request.method);
    for (name, value) in request.headers.iter().filter(|(name, _)| name != "content-length") {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    write!(head, "content-length: {}\r\n\r\n", body.len()).unwrap();
    let mut socket = TcpStream::connect(host).await.unwrap();
    socket.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let status = std::str::from_utf8(&answer[..end]).unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer[end + 4..].to_vec())
}
