//! A collection is given another pipeline while it is in use.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::library::index;
use crate::server::{Server, Site, command, inline, on_both, photo, read};

on_both!(
    a_collection_goes_over_without_its_pictures,
    another_detector_keeps_ids,
    a_run_survives_kills,
    a_run_is_paused_and_cancelled,
);

const PATIENCE: Duration = Duration::from_secs(60);
/// The tiny recognizer sees the colours the other way round: other vectors of the same faces.
pub(crate) const SWAPPED: &str = "tiny-swapped";
/// That, and the detector has to be surer: another revision of it.
pub(crate) const SURE: &str = "tiny-sure";

/// As the first of these, without measured thresholds.
pub(crate) const UNCALIBRATED: &str = "tiny-uncalibrated";

/// Four pipelines of the tiny models.
pub(crate) fn catalogue() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tiny = std::fs::read_to_string(worker::testing::repository().join("models/tiny/tiny.toml")).unwrap();
    let swapped = tiny.replace("channels = \"rgb\"", "channels = \"bgr\"");
    let named = |entry: &str, name: &str| entry.replace("name = \"tiny\"\n", &format!("name = \"{name}\"\n"));
    let sure = swapped.replace("store_score = 0.7", "store_score = 0.71");
    assert!(tiny != swapped && swapped != sure);
    let uncalibrated = swapped.split("[calibration]").next().unwrap();
    for (name, entry) in [("tiny", &*tiny), (SWAPPED, &*swapped), (SURE, &*sure), (UNCALIBRATED, uncalibrated)] {
        std::fs::write(folder.path().join(format!("{name}.toml")), named(entry, name)).unwrap();
    }
    folder
}

/// A site with these pipelines.
pub(crate) struct Models {
    folder: TempDir,
}

impl Models {
    pub(crate) async fn of(site: &Site) -> Self {
        let models = Self { folder: catalogue() };
        if site.has_services() {
            // Makes the new pipelines' partitions.
            let mut migrate = command();
            migrate.arg("migrate").envs(site.settings()).envs(models.settings());
            let migrated = migrate.output().await.unwrap();
            assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        }
        models
    }

    pub(crate) fn settings(&self) -> Vec<(&'static str, &str)> {
        let folder = self.folder.path().to_str().unwrap();
        vec![("FACE_ID_MODELS__CATALOGUE_DIR", folder), ("FACE_ID_WORKER__PIPELINES", "tiny,tiny-swapped,tiny-sure")]
    }

    pub(crate) async fn serve(&self, site: &Site) -> Server {
        Server::start_with(site, &self.settings()).await
    }
}

impl Server {
    pub(crate) async fn reprocess(&self, pipeline: &str) -> Value {
        let body = json!({ "pipeline": pipeline, "tag": "t" });
        let (status, run) = read(self.request(Method::POST, "/v1/collections/c/reprocess").json(&body)).await;
        assert_eq!((status, &run["pipeline"]), (StatusCode::ACCEPTED, &json!(pipeline)), "{run}");
        run
    }

    async fn run_of(&self, run: &Value) -> Value {
        self.get(&format!("/v1/reprocess-runs/{}", run["id"].as_str().unwrap())).await
    }

    /// Waits until the run is in that state.
    pub(crate) async fn until_run_is(&self, run: &Value, state: &str) -> Value {
        let began = Instant::now();
        loop {
            let seen = self.run_of(run).await;
            if seen["state"] == state {
                return seen;
            }
            assert!(began.elapsed() < PATIENCE, "the run should become {state}: {seen}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn tell_run(&self, run: &Value, what: &str) -> (StatusCode, Value) {
        let path = format!("/v1/reprocess-runs/{}/{what}", run["id"].as_str().unwrap());
        read(self.request(Method::POST, &path)).await
    }

    /// Goes over, as soon as what was stored last has its vectors.
    pub(crate) async fn switch(&self, run: &Value, what: &str) -> Value {
        let began = Instant::now();
        loop {
            let (status, answer) = self.tell_run(run, what).await;
            if status == StatusCode::OK {
                return answer;
            }
            assert_eq!((status, &answer["code"]), (StatusCode::CONFLICT, &json!("reprocess_lacking")), "{answer}");
            assert!(began.elapsed() < PATIENCE, "{answer}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whom an identify names for a picture of one face, and by which pipeline.
    async fn named(&self, seed: u32) -> (Value, String) {
        let job = self.run("c", "identify", &json!({ "image": inline(&photo(&[seed])) })).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        let face = &job["result"]["faces"][0];
        let named = if face["decision"] == "match" { &face["matches"][0]["external_id"] } else { &Value::Null };
        (named.clone(), job["pipeline"].as_str().unwrap().to_owned())
    }

    /// Ids, persons and images of all faces.
    async fn people(&self) -> BTreeSet<(String, String, String)> {
        let faces = self.get("/v1/collections/c/faces?limit=200").await;
        let text = |value: &Value| value.to_string();
        faces["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| (text(&f["id"]), text(&f["person_id"]), text(&f["image_id"])))
            .collect()
    }

    /// How many faces of an export have a vector of each pipeline.
    async fn vectors(&self, pipelines: [&str; 2]) -> [usize; 2] {
        let export = self.request(Method::GET, "/v1/collections/c/export").send().await.unwrap().text().await.unwrap();
        let lines: Vec<Value> = export.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        pipelines.map(|name| lines.iter().filter(|line| line["vectors"][name].is_string()).count())
    }
}

/// The run of a request that is sent again; and it is not sent again to whoever knows it.
async fn a_key_begins_one_run(server: &Server) -> Value {
    let send = async |tag: &str| {
        let body = json!({ "pipeline": SWAPPED, "tag": tag });
        let request = server.request(Method::POST, "/v1/collections/c/reprocess").header("idempotency-key", "over");
        read(request.json(&body)).await
    };
    let (status, run) = send("t").await;
    assert_eq!((status, &run["pipeline"]), (StatusCode::ACCEPTED, &json!(SWAPPED)), "{run}");
    let (status, again) = send("t").await;
    assert_eq!((status, &again["id"]), (StatusCode::ACCEPTED, &run["id"]), "{again}");
    let (status, problem) = send("u").await;
    let expected = (StatusCode::UNPROCESSABLE_ENTITY, &json!("idempotency_key_reused"));
    assert_eq!((status, &problem["code"]), expected, "{problem}");
    run
}

async fn a_collection_goes_over_without_its_pictures(site: Site) {
    let models = Models::of(&site).await;
    let server = models.serve(&site).await;
    server.make_collection("c").await;
    for seed in 1..=3 {
        server.enroll("c", seed).await;
    }
    index(&server, &[1]).await;
    index(&server, &[7, 8]).await;
    let before = server.people().await;
    let body = json!({ "pipeline": SWAPPED, "dry_run": true });
    let (status, plan) = read(server.request(Method::POST, "/v1/collections/c/reprocess").json(&body)).await;
    assert_eq!(status, StatusCode::OK);
    let figures = ["images", "faces", "from_crops", "from_images", "embedded"].map(|name| plan[name].as_i64().unwrap());
    assert_eq!((figures, &plan["detects"]), ([4, 5, 5, 0, 0], &json!(false)), "{plan}");
    // The picture of person 1 came twice and is one.
    server.wait_for_crops(5).await;
    server.wait_for_objects(4).await;
    for picture in server.objects() {
        std::fs::remove_file(picture).unwrap();
    }

    let run = a_key_begins_one_run(&server).await;
    let (status, problem) =
        read(server.request(Method::POST, "/v1/collections/c/reprocess").json(&json!({ "pipeline": SURE }))).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("reprocess_open")));
    let ready = server.until_run_is(&run, "ready").await;
    assert_eq!((&ready["coverage"], &ready["images_missing"], &ready["tag"]), (&json!(1.0), &json!(0), &json!("t")));
    assert_eq!(server.people().await, before);
    assert_eq!(server.named(1).await, (json!("person-1"), "tiny".to_owned()));

    // What is enrolled meanwhile comes along.
    server.enroll("c", 4).await;
    let active = server.switch(&run, "activate").await;
    assert_eq!(active["state"], "active");
    for seed in 1..=4 {
        assert_eq!(server.named(seed).await, (json!(format!("person-{seed}")), SWAPPED.to_owned()));
    }
    assert_eq!(server.named(7).await.0, Value::Null);
    server.enroll("c", 5).await;
    server.switch(&run, "rollback").await;
    assert_eq!(server.named(5).await, (json!("person-5"), "tiny".to_owned()), "and the other way round");
    let (status, problem) = server.tell_run(&run, "prune").await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("reprocess_state")), "{problem}");
    server.switch(&run, "activate").await;
    let (status, told) = server.tell_run(&run, "prune?after_s=0").await;
    assert_eq!(status, StatusCode::OK, "{told}");
    server.until_run_is(&run, "pruned").await;
    assert_eq!(server.vectors(["tiny", SWAPPED]).await, [0, 7]);
    assert_eq!(server.named(2).await, (json!("person-2"), SWAPPED.to_owned()));
    assert!(before.is_subset(&server.people().await), "ids and persons are kept");
    let (status, problem) = server.tell_run(&run, "activate").await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("reprocess_state")), "{problem}");
    server.stop().await;
}

async fn another_detector_keeps_ids(site: Site) {
    let models = Models::of(&site).await;
    let server = models.serve(&site).await;
    server.make_collection("c").await;
    for seed in 1..=3 {
        server.enroll("c", seed).await;
    }
    index(&server, &[7, 8]).await;
    let before = server.people().await;
    let run = server.reprocess(SURE).await;
    assert_eq!(run["detects"], true);
    let ready = server.until_run_is(&run, "ready").await;
    assert_eq!(
        (&ready["faces_lost"], &ready["faces_new"], &ready["images_failed"]),
        (&json!(0), &json!(0), &json!({}))
    );
    assert_eq!(server.people().await, before);
    server.switch(&run, "activate").await;
    assert_eq!(server.people().await, before);
    assert_eq!(server.named(2).await, (json!("person-2"), SURE.to_owned()));
    // What was indexed is known under the new pipeline too.
    let job = server.run("c", "index", &json!({ "image": inline(&photo(&[7, 8])) })).await;
    assert_eq!(job["result"]["already_indexed"], true, "{job}");
    server.tell_run(&run, "prune?after_s=0").await;
    server.until_run_is(&run, "pruned").await;
    assert_eq!(server.people().await, before);
    server.wait_for_crops(before.len()).await;
    server.stop().await;
}

async fn a_run_survives_kills(site: Site) {
    const IMAGES: u32 = 120;
    let models = Models::of(&site).await;
    let slow = [&models.settings()[..], &[("FACE_ID_WORKER__CONCURRENCY", "1")]].concat();
    let mut server = Server::start_with(&site, &slow).await;
    server.make_collection("c").await;
    let sent = (0..IMAGES).map(|n| {
        let server = &server;
        async move { server.submit("c", "index", &json!({ "image": inline(&photo(&[n, n + 1000])) })).await }
    });
    for job in futures_util::future::join_all(sent).await {
        assert_eq!(server.ended(&job).await["state"], "succeeded");
    }
    let run = server.reprocess(SURE).await;
    let mut interrupted = 0;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let seen = server.run_of(&run).await;
        interrupted += usize::from(seen["state"] == "filling");
        server.kill().await;
        server = Server::start_with(&site, &slow).await;
    }
    assert!(interrupted > 0, "the kills came after all the work; more pictures are needed");
    let ready = server.until_run_is(&run, "ready").await;
    assert_eq!(
        (&ready["coverage"], &ready["images"], &ready["images_failed"]),
        (&json!(1.0), &json!(IMAGES), &json!({}))
    );
    let faces = 2 * IMAGES as usize;
    assert_eq!(server.get("/v1/collections/c").await["faces"], json!(faces));
    // Two detectors know its faces: an export could not say which are shown.
    let (status, problem) = read(server.request(Method::GET, "/v1/collections/c/export")).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("reprocess_open")));
    server.switch(&run, "activate").await;
    server.tell_run(&run, "prune?after_s=0").await;
    server.until_run_is(&run, "pruned").await;
    assert_eq!(server.vectors(["tiny", SURE]).await, [0, faces], "each has one");
    assert_eq!(server.get("/v1/collections/c").await["faces"], json!(faces));
    server.stop().await;
}

async fn a_run_is_paused_and_cancelled(site: Site) {
    let models = Models::of(&site).await;
    let server = models.serve(&site).await;
    server.make_collection("c").await;
    server.enroll("c", 1).await;
    let run = server.reprocess(SWAPPED).await;
    server.until_run_is(&run, "ready").await;
    let (_, paused) = server.tell_run(&run, "pause").await;
    assert_eq!(paused["paused"], true);
    server.enroll("c", 2).await;
    let (status, problem) = server.tell_run(&run, "activate").await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("reprocess_lacking")), "{problem}");
    assert_eq!(server.run_of(&run).await["images_missing"], 1);
    let (status, _) = server.tell_run(&run, "activate?accept_lacking=true").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(server.named(1).await.0, "person-1");
    assert_eq!(server.named(2).await.0, Value::Null, "it has no vector of this pipeline");
    let (status, problem) = server.tell_run(&run, "cancel").await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("reprocess_state")), "{problem}");
    server.tell_run(&run, "resume").await;
    server.switch(&run, "rollback").await;
    assert_eq!(server.tell_run(&run, "cancel").await.0, StatusCode::OK);
    let ended = server.until_run_is(&run, "cancelled").await;
    assert!(ended["coverage"].is_f64() && ended["images"] == 2, "its last figures stay: {ended}");
    let path = format!("/v1/reprocess-runs/{}", run["id"].as_str().unwrap());
    let etag = server.request(Method::GET, &path).send().await.unwrap().headers()["etag"].clone();
    let known = server.request(Method::GET, &path).header("if-none-match", etag).send().await.unwrap();
    assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(server.vectors(["tiny", SWAPPED]).await, [2, 0]);
    assert_eq!(server.named(2).await, (json!("person-2"), "tiny".to_owned()));
    // Nothing could be decided by it once the collection went over.
    let uncalibrated = json!({ "pipeline": UNCALIBRATED });
    let (status, problem) = read(server.request(Method::POST, "/v1/collections/c/reprocess").json(&uncalibrated)).await;
    assert_eq!(
        (status, &problem["errors"][0]["pointer"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("#/match_cosine"))
    );
    let unknown = json!({ "pipeline": "vgg" });
    let (status, problem) = read(server.request(Method::POST, "/v1/collections/c/reprocess").json(&unknown)).await;
    assert_eq!((status, &problem["errors"][0]["pointer"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("#/pipeline")));
    server.stop().await;
}
