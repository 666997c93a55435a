//! Models are added to servers that run, with their licences, and those that nobody runs are told of.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use worker::testing::{repository, synthetic_photo};

use crate::server::{Server, Site, command, inline, on_both, read};

on_both!(
    a_model_is_added_while_the_server_runs,
    a_licence_must_be_accepted,
    a_model_that_nobody_runs_says_why,
    the_command_adds_a_model
);

const PATIENCE: Duration = Duration::from_secs(60);
/// A worker that takes whatever it can.
const ALL: [(&str, &str); 1] = [("FACE_ID_WORKER__PIPELINES", "")];

/// An entry of that name: the tiny recognizer sees the colours the other way round.
pub(crate) fn entry(name: &str) -> String {
    let tiny = std::fs::read_to_string(repository().join("models/tiny/tiny.toml")).unwrap();
    tiny.replace("channels = \"rgb\"", "channels = \"bgr\"")
        .replace("name = \"tiny\"\n", &format!("name = \"{name}\"\n"))
}

async fn add(server: &Server, entry: String) -> (StatusCode, Value) {
    let request = server.request(Method::POST, "/v1/models").header("content-type", "application/toml");
    read(request.body(entry)).await
}

/// The model as soon as a worker has tried it.
async fn tried(server: &Server, name: &str) -> Value {
    let began = Instant::now();
    loop {
        let model = server.get(&format!("/v1/models/{name}")).await;
        if model["workers"] != 0 || model["problems"] != json!([]) {
            return model;
        }
        assert!(began.elapsed() < PATIENCE, "no worker tries it: {model}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn reprocess(server: &Server, pipeline: &str, dry_run: bool) -> (StatusCode, Value) {
    let body = json!({ "pipeline": pipeline, "dry_run": dry_run });
    read(server.request(Method::POST, "/v1/collections/c/reprocess").json(&body)).await
}

async fn a_model_is_added_while_the_server_runs(site: Site) {
    let server = Server::start_with(&site, &ALL).await;
    server.make_collection("c").await;
    for seed in 1..=3 {
        server.enroll("c", seed).await;
    }
    let again = json!({ "image": inline(&synthetic_photo(&[1], 320, 320)), "person": { "external_id": "person-1" } });
    assert_eq!(server.run("c", "enroll", &again).await["state"], "succeeded");

    let (status, problem) = reprocess(&server, "added", false).await;
    assert_eq!((status, &problem["errors"][0]["pointer"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("#/pipeline")));
    let (status, model) = add(&server, entry("added")).await;
    assert_eq!((status, &model["origin"]), (StatusCode::CREATED, &json!("added")), "{model}");
    let (status, same) = add(&server, entry("added")).await;
    assert_eq!((status, &same["registered_at"]), (StatusCode::OK, &model["registered_at"]));
    let (status, problem) = add(&server, entry("added").replace("0.1616", "0.1617")).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("model_exists")));
    let (status, problem) = add(&server, entry("added").replace("dimension = 64", "dimension = \"many\"")).await;
    assert_eq!((status, &problem["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("invalid_model")));
    assert!(problem["detail"].as_str().unwrap().contains("line "), "{problem}");
    let (status, _) = read(server.request(Method::POST, "/v1/models").json(&json!({}))).await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);

    let model = tried(&server, "added").await;
    assert_eq!((&model["workers"], &model["licence_accepted"]), (&json!(1), &Value::Null), "{model}");
    assert_eq!(model["calibration"]["far"].as_array().unwrap().len(), 6);
    assert!(model["entry"].as_str().unwrap().contains("name = \"added\""));
    told_by_the_worker(&server).await;

    let run = server.reprocess("added").await;
    let ready = server.until_run_is(&run, "ready").await;
    assert_eq!((&ready["workers"], &ready["problem"]), (&json!(1), &Value::Null));
    compared(&server, &run).await;
    server.switch(&run, "activate").await;
    let job = server.run("c", "identify", &json!({ "image": inline(&crate::server::photo(&[2])) })).await;
    assert_eq!((&job["pipeline"], &job["result"]["faces"][0]["decision"]), (&json!("added"), &json!("match")));
    let delete = async || read(server.request(Method::DELETE, "/v1/models/added")).await;
    let (status, problem) = delete().await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("model_in_use")), "{problem}");
    server.switch(&run, "rollback").await;
    server.tell_run(&run, "cancel").await;
    server.until_run_is(&run, "cancelled").await;
    server.stop().await;

    // It is a row: the next process knows it too.
    let server = Server::start_with(&site, &ALL).await;
    assert_eq!(tried(&server, "added").await["workers"], 1);
    assert_eq!(read(server.request(Method::DELETE, "/v1/models/added")).await.0, StatusCode::NO_CONTENT);
    assert_eq!(read(server.request(Method::GET, "/v1/models/added")).await.1["code"], "model_not_found");
    let (status, problem) = read(server.request(Method::DELETE, "/v1/models/yunet-sface")).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("model_in_use")), "it is part of the program");
    let names = server.get("/v1/models?limit=2").await;
    let rest = server.get(&format!("/v1/models?cursor={}", names["next_cursor"].as_str().unwrap())).await;
    let name = |model: &Value| model["name"].as_str().unwrap().to_owned();
    let all: Vec<String> =
        [&names, &rest].into_iter().flat_map(|page| page["items"].as_array().unwrap()).map(name).collect();
    assert!(all.is_sorted() && all.contains(&"tiny".to_owned()) && !all.contains(&"added".to_owned()), "{all:?}");
    server.stop().await;
}

/// What readiness and metrics of whoever works say of it.
async fn told_by_the_worker(server: &Server) {
    let address = server.probes.as_ref().unwrap_or(&server.address);
    let told = async |path: &str| reqwest::get(format!("{address}{path}")).await.unwrap().text().await.unwrap();
    let ready = told("/readyz").await;
    assert!(ready.contains("takes jobs of added"), "{ready}");
    let metrics = told("/metrics").await;
    for line in
        ["face_id_pipelines_bound{pipeline=\"added\"} 1", "face_id_pipelines_bound{pipeline=\"scrfd-mobilefacenet\"} 0"]
    {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert!(metrics.contains("face_id_pipeline_loaded_bytes{pipeline=\"tiny\"}"), "{metrics}");
}

/// Both models tell the four faces apart.
async fn compared(server: &Server, run: &Value) {
    let path = format!("/v1/reprocess-runs/{}/comparison", run["id"].as_str().unwrap());
    let (status, asked) = read(server.request(Method::POST, &path)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{asked}");
    let began = Instant::now();
    let made = loop {
        let comparison = server.get(&path).await;
        if comparison["made_at"].as_str() >= asked["wanted_at"].as_str() {
            break comparison;
        }
        assert!(began.elapsed() < PATIENCE, "{comparison}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let report = &made["report"];
    assert_eq!((&report["from"]["pipeline"], &report["to"]["pipeline"]), (&json!("tiny"), &json!("added")));
    let counts = ["labelled_faces", "faces", "persons", "faces_with_mates"].map(|name| report[name].as_u64().unwrap());
    assert_eq!(counts, [4, 4, 3, 2], "{made}");
    for side in ["from", "to"] {
        let figures = &report[side];
        assert_eq!((&figures["genuine_pairs"], &figures["impostor_pairs"]), (&json!(1), &json!(5)), "{made}");
        assert_eq!((&figures["rank_1"], &figures["outcomes"]["right"]), (&json!(1.0), &json!(2)), "{made}");
        assert!(figures["tar"][1]["tar"].is_null() && figures["tar"][1]["why_not"].is_string(), "{made}");
    }
    let mut compare = command();
    compare.envs(server.key_setting()).args(["reprocess", "c", "--compare", "--server", &server.address]);
    let output = compare.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("nearest is the right person"), "{text}");
}

async fn a_licence_must_be_accepted(site: Site) {
    let restricted = entry("restricted").replace("use = \"permissive\"", "use = \"non-commercial\"");
    let server = Server::start_with(&site, &ALL).await;
    server.make_collection("c").await;
    server.enroll("c", 1).await;
    let (status, model) = add(&server, restricted).await;
    assert_eq!((status, &model["licence_accepted"]), (StatusCode::CREATED, &json!(false)), "{model}");
    assert_eq!(
        (&model["files"][0]["use"], &model["files"][1]["part"]),
        (&json!("non-commercial"), &json!("recognizer"))
    );
    assert!(tried(&server, "restricted").await["problems"][0].as_str().unwrap().contains("--accept-license"));
    // What it is can be seen before it is accepted.
    let (status, plan) = reprocess(&server, "restricted", true).await;
    assert_eq!((status, &plan["licence_accepted"], &plan["workers"]), (StatusCode::OK, &json!(false), &json!(0)));
    assert_eq!(plan["files"][0]["use"], "non-commercial");
    let (status, problem) = reprocess(&server, "restricted", false).await;
    assert_eq!((status, &problem["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("licence_not_accepted")));
    server.stop().await;

    let accepted = [ALL[0], ("FACE_ID_MODELS__ACCEPTED_LICENCES", "restricted")];
    let server = Server::start_with(&site, &accepted).await;
    assert_eq!(tried(&server, "restricted").await["licence_accepted"], true);
    let run = server.reprocess("restricted").await;
    server.until_run_is(&run, "ready").await;
    server.stop().await;
    // Who takes that back does not go over.
    let server = Server::start_with(&site, &ALL).await;
    let (status, problem) = server.tell_run(&run, "activate").await;
    assert_eq!((status, &problem["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("licence_not_accepted")));
    server.stop().await;
}

async fn a_model_that_nobody_runs_says_why(site: Site) {
    let server = Server::start_with(&site, &ALL).await;
    server.make_collection("c").await;
    server.enroll("c", 1).await;
    let elsewhere = entry("elsewhere").replace("name = \"tiny_recognizer.onnx\"", "name = \"nowhere.onnx\"");
    let addressed = elsewhere.replace("[recognizer.file]", "[recognizer.file]\nurls = [\"http://127.0.0.1:9/x\"]");
    assert_eq!(add(&server, addressed).await.0, StatusCode::CREATED);
    let model = tried(&server, "elsewhere").await;
    assert_eq!((&model["workers"], &model["files"][1]["urls"][0]), (&json!(0), &json!("http://127.0.0.1:9/x")));
    assert!(model["problems"][0].as_str().unwrap().contains("nowhere.onnx"), "{model}");
    let (status, answer) = reprocess(&server, "elsewhere", false).await;
    if site.has_services() {
        assert_eq!(
            (status, &answer["workers"]),
            (StatusCode::ACCEPTED, &json!(0)),
            "another worker may come: {answer}"
        );
        let problem = answer["problem"].as_str().unwrap();
        assert!(problem.contains("no worker runs elsewhere") && problem.contains("nowhere.onnx"), "{problem}");
        let (status, problem) = server.tell_run(&answer, "comparison").await;
        assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("reprocess_state")));
    } else {
        let expected = (StatusCode::UNPROCESSABLE_ENTITY, &json!("pipeline_not_runnable"));
        assert_eq!((status, &answer["code"]), expected, "{answer}");
    }
    server.stop().await;
}

/// Where jobs are run in the one process, and it does not run the collection's model any more.
#[tokio::test]
async fn what_nobody_could_run_is_refused_and_what_waits_is_kept() {
    let site = Site::embedded();
    let restricted = entry("restricted").replace("use = \"permissive\"", "use = \"non-commercial\"");
    let accepted = [ALL[0], ("FACE_ID_MODELS__ACCEPTED_LICENCES", "restricted")];
    let server = Server::start_with(&site, &accepted).await;
    assert_eq!(add(&server, restricted).await.0, StatusCode::CREATED);
    assert_eq!(tried(&server, "restricted").await["workers"], 1);
    let made = server.request(Method::POST, "/v1/collections").json(&json!({ "name": "c", "pipeline": "restricted" }));
    assert_eq!(read(made).await.0, StatusCode::CREATED);
    server.enroll("c", 1).await;
    let again = json!({ "image": inline(&crate::server::photo(&[4])) });
    let with_key = async |server: &Server| {
        let request = server.request(Method::POST, "/v1/collections/c/index").header("idempotency-key", "again");
        read(request.json(&again)).await
    };
    let line = json!({ "file": "/nowhere.png" }).to_string();
    let (status, job) = with_key(&server).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{job}");
    server.ended(&job).await;
    let (status, batch) = crate::batches::post_manifest(&server, std::slice::from_ref(&line), "again").await;
    assert_eq!(status, StatusCode::ACCEPTED, "{batch}");
    crate::batches::until(&server, &batch, |now| !now["finished_at"].is_null()).await;
    server.stop().await;

    // A job is accepted, and the process dies before a worker hears of it.
    let server = Server::start_with(&site, &[&accepted[..], &[("FACE_ID_CRASH_AT", "after_submit")]].concat()).await;
    let image = inline(&crate::server::photo(&[2]));
    let path = "/v1/collections/c/index";
    server.request(Method::POST, path).json(&json!({ "image": image })).send().await.unwrap_err();
    server.wait_for_crash().await;

    // The one that waits fills the queue's window.
    let server = Server::start_with(&site, &[ALL[0], ("FACE_ID_QUEUE__BULK_WINDOW", "1")]).await;
    tried(&server, "restricted").await;
    let (status, same) = with_key(&server).await;
    assert_eq!((status, &same["id"]), (StatusCode::ACCEPTED, &job["id"]), "{same}");
    let objects = server.objects().len();
    let (status, same) = crate::batches::post_manifest(&server, std::slice::from_ref(&line), "again").await;
    assert_eq!((status, &same["id"]), (StatusCode::ACCEPTED, &batch["id"]), "{same}");
    let (status, other) = crate::batches::post_manifest(&server, &[line.clone(), line.clone()], "again").await;
    let reused = (StatusCode::UNPROCESSABLE_ENTITY, &json!("idempotency_key_reused"));
    assert_eq!((status, &other["code"]), reused, "{other}");
    assert!(server.objects().len() <= objects, "nothing of a repeat is kept");
    let expected = (StatusCode::UNPROCESSABLE_ENTITY, &json!("pipeline_not_runnable"));
    for kind in ["index", "identify"] {
        let request = server.request(Method::POST, &format!("/v1/collections/c/{kind}"));
        let (status, problem) = read(request.json(&json!({ "image": image }))).await;
        assert_eq!((status, &problem["code"]), expected, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("models.accepted_licences"), "{problem}");
    }
    let (status, problem) = crate::batches::post_manifest(&server, &[line], "nobody").await;
    assert_eq!((status, &problem["code"]), expected, "{problem}");
    // No model is needed for that, and it does not wait behind what needs one, nor for room beside it.
    let (status, job) = read(server.request(Method::POST, "/v1/collections/c/rematch")).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{job}");
    assert_eq!(server.ended(&job).await["state"], "succeeded");
    let queued = server.get("/v1/jobs?collection=c&state=queued").await;
    let waiting = queued["items"].as_array().unwrap().iter().find(|job| job["kind"] == "index").unwrap();
    server.stop().await;

    let server = Server::start_with(&site, &accepted).await;
    assert_eq!(server.ended(waiting).await["state"], "succeeded");
    server.enroll("c", 3).await;
    server.stop().await;
}

/// A damaged copy of weights that could be fetched, were there a network: what there would be to say when jobs failed is
/// said before.
#[tokio::test]
async fn damaged_weights_are_told_before_jobs_fail() {
    let (site, folder) = (Site::embedded(), tempfile::tempdir().unwrap());
    let models = folder.path().join("models");
    std::fs::create_dir_all(&models).unwrap();
    for part in ["tiny_detector.onnx", "tiny_recognizer.onnx"] {
        std::fs::copy(repository().join("models/tiny").join(part), models.join(part)).unwrap();
    }
    let yunet = shared::catalogue::Catalogue::load(None).unwrap().pipeline("yunet-mobilefacenet").unwrap().clone();
    let damaged = models.join(&yunet.detector.file.name);
    std::fs::File::create(&damaged).unwrap().set_len(yunet.detector.file.size_bytes).unwrap();
    // It lies in the cache that servers of tests have otherwise.
    let runtime = worker::testing::tiny_assets().runtime_library().unwrap();
    let place = folder.path().to_str().unwrap();
    let settings = [
        ALL[0],
        ("FACE_ID_ASSETS_DIR", place),
        ("FACE_ID_CACHE_DIR", place),
        ("FACE_ID_MODELS__ALLOW_DOWNLOAD", "true"),
        ("ORT_DYLIB_PATH", runtime.to_str().unwrap()),
    ];
    let server = Server::start_with(&site, &settings).await;
    let model = tried(&server, "yunet-mobilefacenet").await;
    let problem = model["problems"][0].as_str().unwrap();
    assert!(problem.contains(damaged.to_str().unwrap()) && problem.contains("its sha256 is"), "{problem}");
    let asked = json!({ "name": "c", "pipeline": "yunet-mobilefacenet" });
    let (status, problem) = read(server.request(Method::POST, "/v1/collections").json(&asked)).await;
    let expected = (StatusCode::UNPROCESSABLE_ENTITY, &json!("pipeline_not_runnable"));
    assert_eq!((status, &problem["code"]), expected, "{problem}");
    server.stop().await;
}

async fn the_command_adds_a_model(site: Site) {
    let server = Server::start_with(&site, &ALL).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("added.toml");
    let run = async |text: String| {
        std::fs::write(&file, text).unwrap();
        let mut add = command();
        add.envs(server.key_setting()).args(["models", "add"]).arg(&file).args(["--server", &server.address]);
        add.output().await.unwrap()
    };
    let output = run(entry("added")).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("tiny_recognizer.onnx") && text.contains("any use"), "{text}");
    assert_eq!(tried(&server, "added").await["workers"], 1);
    let output = run(entry("added").replace("width = 112", "width = 1")).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("alignment width"), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn a_folder_that_says_something_else_of_what_is_used_is_refused() {
    let site = Site::embedded();
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    server.stop().await;
    let folder = tempfile::tempdir().unwrap();
    let serve = async |entry: String| {
        std::fs::write(folder.path().join("tiny.toml"), entry).unwrap();
        let mut serve = command();
        serve.env("FACE_ID_MODELS__CATALOGUE_DIR", folder.path());
        serve.args(["serve", "--bind", "127.0.0.1:0", "--data-dir"]).arg(site.folder());
        serve.output().await.unwrap()
    };
    let output = serve(entry("tiny")).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("Give this entry another name"), "{text}");
    // Where only its thresholds changed it starts.
    let tiny = std::fs::read_to_string(repository().join("models/tiny/tiny.toml")).unwrap();
    std::fs::write(folder.path().join("tiny.toml"), tiny.replace("0.1616", "0.1617")).unwrap();
    let variables = [("FACE_ID_MODELS__CATALOGUE_DIR", folder.path().to_str().unwrap())];
    let server = Server::start_with(&site, &variables).await;
    assert!(server.get("/v1/models/tiny").await["entry"].as_str().unwrap().contains("0.1617"));
    server.stop().await;
}
