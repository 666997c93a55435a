//! Batches: of folders, of prefixes, of manifests; held, cancelled, broken off, and posted again.

use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::server::{Bucket, Server, Site, command, on_both, photo, read};

on_both!(a_manifest_is_indexed, a_batch_is_held_and_cancelled, a_long_manifest_is_listed_held_and_cancelled);

/// Pictures where a site's jobs can read them, and the settings that allow it.
pub(crate) struct Library {
    pub(crate) folder: tempfile::TempDir,
    bucket: Option<Bucket>,
}

impl Library {
    /// With these pictures, by name.
    pub(crate) async fn new(site: &Site, pictures: &[(String, Vec<u8>)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut bucket = None;
        if site.has_services() {
            let store = site.another_bucket().await;
            for (name, bytes) in pictures {
                store.put(name, bytes).await;
            }
            bucket = Some(store);
        } else {
            for (name, bytes) in pictures {
                write(folder.path(), name, bytes);
            }
        }
        Self { folder, bucket }
    }

    pub(crate) async fn serve(&self, site: &Site, more: &[(&str, &str)]) -> Server {
        let root = self.folder.path().to_str().unwrap();
        let allowed = match &self.bucket {
            Some(bucket) => ("FACE_ID_OBJECTS__ALLOWED_BUCKETS", bucket.name.as_str()),
            None => ("FACE_ID_IMPORT__ROOTS", root),
        };
        Server::start_with(site, &[more, &[allowed]].concat()).await
    }

    /// All of it, as a batch's source.
    pub(crate) fn source(&self) -> Value {
        match &self.bucket {
            Some(bucket) => json!({ "s3": format!("s3://{}/", bucket.name) }),
            None => json!({ "folder": self.folder.path() }),
        }
    }

    pub(crate) async fn write(&self, name: &str, bytes: &[u8]) {
        match &self.bucket {
            Some(bucket) => bucket.put(name, bytes).await,
            None => write(self.folder.path(), name, bytes),
        }
    }

    pub(crate) async fn remove(&self, name: &str) {
        match &self.bucket {
            Some(bucket) => bucket.delete(name).await,
            None => std::fs::remove_file(self.folder.path().join(name)).unwrap(),
        }
    }

    pub(crate) fn line(&self, name: &str) -> String {
        match &self.bucket {
            Some(Bucket { name: bucket, .. }) => {
                json!({ "s3": format!("s3://{bucket}/{name}"), "fingerprint": name }).to_string()
            }
            None => json!({ "file": self.folder.path().join(name), "fingerprint": name }).to_string(),
        }
    }
}

pub(crate) fn write(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Pictures of one synthetic person each.
pub(crate) fn pictures(seeds: std::ops::Range<u32>) -> Vec<(String, Vec<u8>)> {
    seeds.map(|seed| (format!("{}/{seed:04}.png", seed % 3), photo(&[seed]))).collect()
}

pub(crate) async fn post(server: &Server, body: &Value) -> (StatusCode, Value) {
    let key = Uuid::now_v7().to_string();
    read(server.request(Method::POST, "/v1/batches").header("idempotency-key", key).json(body)).await
}

pub(crate) async fn post_manifest(server: &Server, lines: &[String], key: &str) -> (StatusCode, Value) {
    let request = server.request(Method::POST, "/v1/batches?collection=c&kind=index&tag=trip");
    let request = request.header("content-type", "application/x-ndjson").header("idempotency-key", key);
    read(request.body(lines.join("\n"))).await
}

async fn wish(server: &Server, batch: &Value, wish: &str) -> (StatusCode, Value) {
    let path = format!("/v1/batches/{}/{wish}", batch["id"].as_str().unwrap());
    read(server.request(Method::POST, &path)).await
}

async fn look(server: &Server, batch: &Value) -> Value {
    server.get(&format!("/v1/batches/{}", batch["id"].as_str().unwrap())).await
}

/// Looks at the batch until it is as wanted.
pub(crate) async fn until(server: &Server, batch: &Value, wanted: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..3000 {
        let now = look(server, batch).await;
        let jobs = now["jobs"].as_object().unwrap();
        assert!(jobs.values().all(|count| count.as_i64().unwrap() >= 0), "{now}");
        if wanted(&now) {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the batch has not come to what was wanted: {}", look(server, batch).await);
}

pub(crate) async fn ended(server: &Server, batch: &Value) -> Value {
    until(server, batch, |now| !now["finished_at"].is_null()).await
}

#[tokio::test]
async fn a_folder_is_indexed_and_again_only_what_is_new() {
    let site = Site::embedded();
    let library = Library::new(&site, &pictures(0..12)).await;
    let folder = library.folder.path();
    write(folder, "0/broken.jpg", b"\xff\xd8\xff\xe0 no picture");
    write(folder, "0/notes.txt", b"text");
    write(folder, "1/again.png", &photo(&[0]));
    let server = library.serve(&site, &[]).await;
    server.make_collection("c").await;

    let source = json!({ "folder": folder });
    let body = json!({ "collection": "c", "kind": "index", "source": source });
    let (status, batch) = post(&server, &body).await;
    assert_eq!((status, &batch["state"]), (StatusCode::ACCEPTED, &json!("listing")), "{batch}");
    let batch = ended(&server, &batch).await;
    let jobs = json!({ "queued": 0, "running": 0, "succeeded": 13, "rejected": 1, "failed": 0, "cancelled": 0 });
    assert_eq!((&batch["state"], &batch["jobs"]), (&json!("completed"), &jobs), "{batch}");
    assert_eq!((&batch["items"], &batch["unchanged"], &batch["faces"]), (&json!(14), &json!(0), &json!(12)));
    assert_eq!(batch["problems"], json!([{ "state": "rejected", "code": "image_truncated", "jobs": 1 }]));
    let path = format!("/v1/batches/{}/jobs?state=rejected", batch["id"].as_str().unwrap());
    let rejected = server.get(&path).await;
    assert_eq!(rejected["items"][0]["image"], json!({ "file": folder.join("0/broken.jpg") }));
    let collection = server.get("/v1/collections/c").await;
    assert_eq!((&collection["images"], &collection["faces"]), (&json!(12), &json!(12)), "the same bytes are one image");
    assert_eq!(server.objects().len(), 0, "pictures are read in place");

    write(folder, "2/new.png", &photo(&[77]));
    write(folder, "0/0000.png", &photo(&[78]));
    let (_, again) = post(&server, &body).await;
    let again = ended(&server, &again).await;
    assert_eq!((&again["items"], &again["unchanged"], &again["faces"]), (&json!(15), &json!(13), &json!(2)), "{again}");

    for wrong in [
        json!({ "folder": "/etc" }),
        json!({ "folder": folder.join("0/0003.png") }),
        json!({}),
        json!({ "s3": "s3://bucket/" }),
    ] {
        let (status, problem) = post(&server, &json!({ "collection": "c", "kind": "index", "source": wrong })).await;
        assert_eq!(
            (status, &problem["code"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!("invalid_request")),
            "{wrong}"
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn a_prefix_is_indexed() {
    let site = Site::services().await;
    let mut all = pictures(0..9);
    all.push(("0/notes.txt".to_owned(), b"text".to_vec()));
    let library = Library::new(&site, &all).await;
    let server = library.serve(&site, &[]).await;
    server.make_collection("c").await;
    let bucket = &library.bucket.as_ref().unwrap().name;
    let of = |prefix: &str| json!({ "collection": "c", "kind": "index", "source": { "s3": format!("s3://{bucket}/{prefix}") } });
    let (_, batch) = post(&server, &of("0/")).await;
    let batch = ended(&server, &batch).await;
    assert_eq!(
        (&batch["items"], &batch["jobs"]["succeeded"], &batch["faces"]),
        (&json!(3), &json!(3), &json!(3)),
        "{batch}"
    );
    let (_, batch) = post(&server, &of("")).await;
    let batch = ended(&server, &batch).await;
    assert_eq!((&batch["items"], &batch["unchanged"], &batch["faces"]), (&json!(9), &json!(3), &json!(6)), "{batch}");
    let wrong = json!({ "collection": "c", "kind": "index", "source": { "s3": "s3://somebody-elses/" } });
    let (status, problem) = post(&server, &wrong).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
    server.stop().await;
}

async fn a_manifest_is_indexed(site: Site) {
    let all = pictures(0..20);
    let library = Library::new(&site, &all).await;
    let server = library.serve(&site, &[]).await;
    server.make_collection("c").await;
    let mut lines: Vec<String> = all.iter().map(|(name, _)| library.line(name)).collect();
    lines.push(library.line("not/there.png"));
    let (status, batch) = post_manifest(&server, &lines, "k").await;
    assert_eq!((status, &batch["source"]["manifest"]["lines"]), (StatusCode::ACCEPTED, &json!(21)), "{batch}");
    let batch = ended(&server, &batch).await;
    assert_eq!((&batch["items"], &batch["faces"], &batch["tag"]), (&json!(21), &json!(20), &json!("trip")), "{batch}");
    assert_eq!(batch["problems"], json!([{ "state": "rejected", "code": "source_gone", "jobs": 1 }]));

    let (status, same) = post_manifest(&server, &lines, "k").await;
    assert_eq!((status, &same["id"]), (StatusCode::ACCEPTED, &batch["id"]), "the same key is the same batch");
    let (status, other) = post_manifest(&server, &lines[1..], "k").await;
    assert_eq!((status, &other["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("idempotency_key_reused")));
    let (_, again) = post_manifest(&server, &lines, "k2").await;
    let again = ended(&server, &again).await;
    assert_eq!((&again["items"], &again["unchanged"]), (&json!(21), &json!(20)), "{again}");

    let objects = server.objects().len();
    r#"{"s3": "s3://"#.clone_into(&mut lines[1]);
    let (status, problem) = post_manifest(&server, &lines, "k3").await;
    assert_eq!((status, &problem["errors"][0]["pointer"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("line 2")));
    let (status, problem) = post_manifest(&server, &[], "k4").await;
    assert_eq!((status, &problem["code"]), (StatusCode::BAD_REQUEST, &json!("empty_body")));
    assert_eq!(server.objects().len(), objects, "nothing of a refused manifest is kept");
    let batches = server.get("/v1/batches?collection=c").await;
    assert_eq!(batches["items"].as_array().unwrap().len(), 2);
    server.stop().await;
}

async fn a_batch_is_held_and_cancelled(site: Site) {
    let all = pictures(0..200);
    let library = Library::new(&site, &all).await;
    let server =
        library.serve(&site, &[("FACE_ID_WORKER__CONCURRENCY", "1"), ("FACE_ID_WORKER__HEARTBEAT_S", "0.5")]).await;
    server.make_collection("c").await;
    let lines: Vec<String> = all.iter().map(|(name, _)| library.line(name)).collect();
    let (_, batch) = post_manifest(&server, &lines, "k").await;
    until(&server, &batch, |now| now["jobs"]["succeeded"].as_i64() > Some(0)).await;

    assert_eq!(wish(&server, &batch, "pause").await.0, StatusCode::OK);
    let (status, problem) = wish(&server, &batch, "pause").await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("batch_state")));
    let held = until(&server, &batch, |now| now["jobs"]["running"] == 0).await;
    assert_eq!(held["state"], "paused");
    let waiting = held["jobs"]["queued"].as_i64().unwrap();
    assert!(waiting > 0, "{held}");
    let other = server.run("c", "identify", &json!({ "image": crate::server::inline(&photo(&[3])) })).await;
    assert_eq!(other["state"], "succeeded", "other jobs go on");
    assert_eq!(look(&server, &batch).await["jobs"]["queued"], waiting, "nothing begins while it is held");

    assert_eq!(wish(&server, &batch, "resume").await.0, StatusCode::OK);
    let done = held["jobs"]["succeeded"].as_i64();
    until(&server, &batch, |now| now["jobs"]["succeeded"].as_i64() > done).await;
    assert_eq!(wish(&server, &batch, "cancel").await.0, StatusCode::OK);
    let batch = ended(&server, &batch).await;
    let count = |state: &str| batch["jobs"][state].as_i64().unwrap();
    assert_eq!((&batch["state"], count("succeeded") + count("cancelled")), (&json!("cancelled"), 200), "{batch}");
    assert!(count("cancelled") > 0);
    let collection = server.get("/v1/collections/c").await;
    assert_eq!(collection["images"], json!(count("succeeded")), "a cancelled job stores nothing");
    server.stop().await;
}

#[tokio::test]
async fn the_command_goes_on_after_a_kill() {
    let site = Site::embedded();
    let all = pictures(0..150);
    let library = Library::new(&site, &all).await;
    write(library.folder.path(), "broken, \"x\".jpg", b"\xff\xd8\xff\xe0 no picture");
    let report = site.folder().join("report.csv");
    let index = || {
        let mut index = command();
        index.arg("index").arg(library.folder.path()).args(["--collection", "c", "--data-dir"]);
        index.arg(site.folder().join("data")).arg("--report").arg(&report);
        index.env("FACE_ID_WORKER__CONCURRENCY", "1");
        index
    };
    let mut killed = index().spawn().unwrap();
    let database = site.folder().join("data/face-id.sqlite");
    while !database.is_file() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(800)).await;
    killed.kill().await.unwrap();
    let reported = std::fs::read_to_string(&report).unwrap_or_default();
    assert!(reported.lines().count() <= 1, "the kill came after all the work; more pictures are needed");

    let output = index().output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let summary: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let total = summary["unchanged"].as_i64().unwrap() + summary["jobs"]["succeeded"].as_i64().unwrap();
    assert_eq!((total, &summary["jobs"]["rejected"], &summary["items"]), (150, &json!(1), &json!(151)), "{summary}");
    let lines = std::fs::read_to_string(&report).unwrap();
    assert!(lines.lines().any(|line| line.contains("\"\"x\"\".jpg\",rejected,,image_truncated,")), "{lines}");

    let server = Server::start_in(&site, &site.folder().join("data"), &[]).await;
    let collection = server.get("/v1/collections/c").await;
    assert_eq!((&collection["images"], &collection["faces"]), (&json!(150), &json!(150)), "every image once");
    server.stop().await;
}

/// Lines of the long manifest: some, or as many as `BATCH_LINES` says.
#[expect(clippy::disallowed_methods, reason = "it is no setting: it only says how long this test is")]
fn lines_wanted() -> usize {
    std::env::var("BATCH_LINES").ok().and_then(|lines| lines.parse().ok()).unwrap_or(20_000)
}

/// Every picture that is listed is counted in one state.
fn check_counts(now: &Value) {
    let sum: i64 = now["jobs"].as_object().unwrap().values().map(|count| count.as_i64().unwrap()).sum();
    assert_eq!(sum, now["items"].as_i64().unwrap(), "{now}");
}

/// Jobs that have ended by themselves.
fn done(now: &Value) -> i64 {
    now["jobs"]["succeeded"].as_i64().unwrap() + now["jobs"]["rejected"].as_i64().unwrap()
}

#[expect(clippy::print_stdout, reason = "how long each step took is for whoever runs it with many lines")]
fn tell(steps: &[(&str, Duration)], peak_kib: u64) {
    println!("a manifest of {} lines: {steps:?}, at most {} MiB", lines_wanted(), peak_kib >> 10);
}

async fn a_long_manifest_is_listed_held_and_cancelled(site: Site) {
    let all = pictures(0..500);
    let library = Library::new(&site, &all).await;
    let server = library.serve(&site, &[]).await;
    server.make_collection("c").await;
    // Far more than are worked on before the end: what is not there is rejected.
    let there = all.iter().map(|(name, _)| name.clone());
    let names = there.chain((0..lines_wanted()).map(|n| format!("not/there/{n:07}.png")));
    let lines: Vec<String> = names.take(lines_wanted()).map(|name| library.line(&name)).collect();
    let mut steps = Vec::new();
    let began = Instant::now();
    let (status, batch) = post_manifest(&server, &lines, "k").await;
    assert_eq!(status, StatusCode::ACCEPTED, "{batch}");
    steps.push(("accepted", began.elapsed()));
    let is_listed = |now: &Value| {
        check_counts(now);
        !now["listed_at"].is_null()
    };
    assert_eq!(until(&server, &batch, is_listed).await["items"], json!(lines_wanted()));
    steps.push(("listed", began.elapsed()));
    let batch = held_and_resumed(&server, &batch, &mut steps).await;
    let began = Instant::now();
    assert_eq!(wish(&server, &batch, "cancel").await.0, StatusCode::OK);
    steps.push(("cancel", began.elapsed()));
    let batch = ended(&server, &batch).await;
    steps.push(("cancelled", began.elapsed()));
    check_counts(&batch);
    let ended = done(&batch) + batch["jobs"]["cancelled"].as_i64().unwrap();
    assert_eq!((&batch["state"], ended), (&json!("cancelled"), i64::try_from(lines_wanted()).unwrap()));
    let peak_kib = server.peak_kib();
    assert!(peak_kib < 600 << 10, "the server's memory does not grow with the manifest: {peak_kib} KiB");
    tell(&steps, peak_kib);
    server.stop().await;
}

/// Pauses the batch, has another job run beside it, and resumes it.
async fn held_and_resumed(server: &Server, batch: &Value, steps: &mut Vec<(&'static str, Duration)>) -> Value {
    let began = Instant::now();
    assert_eq!(wish(server, batch, "pause").await.0, StatusCode::OK);
    steps.push(("pause", began.elapsed()));
    let held = until(server, batch, |now| {
        check_counts(now);
        now["jobs"]["running"] == 0
    })
    .await;
    assert!(held["jobs"]["queued"].as_i64().unwrap() > 0, "{held}");
    let began = Instant::now();
    let other = server.run("c", "identify", &json!({ "image": crate::server::inline(&photo(&[3])) })).await;
    assert_eq!(other["state"], "succeeded");
    steps.push(("an identify beside it", began.elapsed()));
    assert_eq!(wish(server, batch, "resume").await.0, StatusCode::OK);
    until(server, batch, |now| {
        check_counts(now);
        done(now) > done(&held)
    })
    .await
}
