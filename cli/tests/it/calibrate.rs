//! What a score means, measured anew: stored, decided by, and measured by the command.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::process::Command;
use worker::testing::{real_assets, real_data};

use crate::reprocess::{Models, UNCALIBRATED};
use crate::server::{Server, Site, command, inline, on_both, photo, read};

on_both!(
    a_stored_calibration_decides,
    a_calibration_makes_a_pipeline_decidable,
    a_collection_is_calibrated_by_its_own_people,
);

/// How long it may take until a change is seen.
const PATIENCE: Duration = Duration::from_secs(20);
/// People of a set: 78 are needed for two rates.
const PEOPLE: u32 = 90;

/// A calibration of these thresholds for false accept rates of 1e-1, 1e-2 and 1e-3, of which the last was not measured.
pub(crate) fn calibration(pipeline: &str, collection: Option<&str>, cosines: [f64; 3]) -> Value {
    let point =
        |(far, cosine): (f64, f64)| json!({ "far": far, "cosine": cosine, "lower": far / 2.0, "upper": far * 2.0 });
    let points: Vec<Value> = [1e-1, 1e-2, 1e-3].into_iter().zip(cosines).map(point).collect();
    json!({
        "pipeline": pipeline,
        "collection": collection,
        "measured_on": "nobody",
        "points": points,
        "measured_far": 1e-2,
        "people": 100,
        "faces": 150,
        "comparisons": 11_000,
        "confidence": 0.99,
    })
}

impl Server {
    async fn calibrate(&self, body: &Value) -> (StatusCode, Value) {
        read(self.request(Method::POST, "/v1/calibrations").json(body)).await
    }

    async fn calibrated(&self, body: &Value) -> Value {
        let (status, stored) = self.calibrate(body).await;
        assert_eq!(status, StatusCode::CREATED, "{stored}");
        stored["id"].clone()
    }

    /// What an identify says of a person that nobody enrolled, by this calibration.
    async fn stranger(&self, calibration: &Value) -> Value {
        let began = Instant::now();
        loop {
            let job = self.run("c", "identify", &json!({ "image": inline(&photo(&[2])) })).await;
            assert_eq!(job["state"], "succeeded", "{job}");
            if job["result"]["calibration"]["id"] == *calibration {
                return job["result"]["faces"][0].clone();
            }
            assert!(began.elapsed() < PATIENCE, "it should decide by {calibration}: {job}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn uncalibrate(&self, id: &Value) -> StatusCode {
        self.delete(&format!("/v1/calibrations/{}", id.as_str().unwrap())).await
    }
}

async fn a_stored_calibration_decides(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    server.enroll("c", 1).await;
    let by_catalogue = server.stranger(&Value::Null).await;
    assert_eq!(by_catalogue["decision"], "unknown", "{by_catalogue}");

    let mut wrong = calibration("tiny", None, [0.1, 0.3, 0.2]);
    let (status, problem) = server.calibrate(&wrong).await;
    let pointer = &problem["errors"][0]["pointer"];
    assert_eq!((status, pointer), (StatusCode::UNPROCESSABLE_ENTITY, &json!("#/points/2/cosine")), "{problem}");
    wrong["pipeline"] = json!("vgg");
    assert_eq!(server.calibrate(&wrong).await.1["errors"][0]["pointer"], "#/pipeline");

    // Whoever looks at all like somebody is taken for that one.
    let general = server.calibrated(&calibration("tiny", None, [-0.9, -0.8, -0.7])).await;
    let matched = server.stranger(&general).await;
    assert_eq!(
        (&matched["decision"], &matched["threshold_extrapolated"]),
        (&json!("match"), &json!(false)),
        "{matched}"
    );
    assert!((matched["threshold"].as_f64().unwrap() + 0.8).abs() < 1e-3, "1 % of one comparison: {matched}");
    assert_eq!(matched["false_positive_rate_extrapolated"], true, "nobody measured so high a score: {matched}");

    let own = server.calibrated(&calibration("tiny", Some("c"), [0.9, 0.95, 0.99])).await;
    assert_eq!(server.stranger(&own).await["decision"], "unknown", "its own counts before the general one");
    let verify = json!({ "image": inline(&photo(&[1])), "other": { "image": inline(&photo(&[2])) } });
    let verified = server.run("c", "verify", &verify).await["result"].clone();
    assert_eq!((&verified["calibration"]["id"], &verified["decision"]), (&own, &json!("unknown")), "{verified}");
    assert_eq!(verified["threshold_extrapolated"], true, "1e-3 was not measured: {verified}");
    assert_eq!(verified["false_accept_rate_extrapolated"], true, "{verified}");

    let path = format!("/v1/calibrations/{}", own.as_str().unwrap());
    let shown = server.get(&path).await;
    let extrapolated: Vec<&Value> = shown["points"].as_array().unwrap().iter().map(|p| &p["extrapolated"]).collect();
    assert_eq!(extrapolated, [false, false, true]);
    let listed = async |path: &str| {
        let page = server.get(path).await;
        page["items"].as_array().unwrap().iter().map(|row| row["id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(listed("/v1/calibrations").await, [own.clone(), general.clone()]);
    assert_eq!(listed("/v1/calibrations?collection=c&pipeline=tiny").await, std::slice::from_ref(&own));
    assert_eq!(listed("/v1/calibrations?pipeline=other").await, [] as [Value; 0]);

    assert_eq!(server.uncalibrate(&own).await, StatusCode::NO_CONTENT);
    assert_eq!(server.uncalibrate(&own).await, StatusCode::NOT_FOUND);
    assert_eq!(server.stranger(&general).await["decision"], "match");
    assert_eq!(server.uncalibrate(&general).await, StatusCode::NO_CONTENT);
    assert_eq!(server.stranger(&Value::Null).await, by_catalogue, "as before");
    server.stop().await;
}

async fn a_calibration_makes_a_pipeline_decidable(site: Site) {
    let models = Models::of(&site).await;
    let pipelines = format!("tiny,{UNCALIBRATED}");
    let settings = [&models.settings()[..], &[("FACE_ID_WORKER__PIPELINES", pipelines.as_str())]].concat();
    let server = Server::start_with(&site, &settings).await;
    server.make_collection("c").await;
    server.enroll("c", 1).await;
    let begin = async |pipeline: &str| {
        let body = json!({ "pipeline": pipeline });
        read(server.request(Method::POST, "/v1/collections/c/reprocess").json(&body)).await
    };
    assert_eq!(begin(UNCALIBRATED).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let id = server.calibrated(&calibration(UNCALIBRATED, Some("c"), [0.1, 0.3, 0.5])).await;
    let (status, run) = begin(UNCALIBRATED).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{run}");
    server.until_run_is(&run, "ready").await;
    assert_eq!(server.stranger(&Value::Null).await["decision"], "unknown", "the old pipeline has its own");
    // What would have decided is gone.
    assert_eq!(server.uncalibrate(&id).await, StatusCode::NO_CONTENT);
    let (status, problem) = server.tell_run(&run, "activate").await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("no_calibration")), "{problem}");
    let id = server.calibrated(&calibration(UNCALIBRATED, None, [0.1, 0.3, 0.5])).await;
    server.switch(&run, "activate").await;
    let decided = server.stranger(&id).await;
    assert!((decided["threshold"].as_f64().unwrap() - 0.3).abs() < 1e-3, "{decided}");
    assert_eq!(server.tell_run(&run, "prune?after_s=0").await.0, StatusCode::OK);
    server.until_run_is(&run, "pruned").await;
    // Nor does a collection go back to what cannot decide any more.
    let (status, run) = begin("tiny").await;
    assert_eq!(status, StatusCode::ACCEPTED, "{run}");
    server.until_run_is(&run, "ready").await;
    server.switch(&run, "activate").await;
    assert_eq!(server.uncalibrate(&id).await, StatusCode::NO_CONTENT, "no collection goes by its pipeline now");
    let (status, problem) = server.tell_run(&run, "rollback").await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("no_calibration")), "{problem}");
    let id = server.calibrated(&calibration(UNCALIBRATED, None, [0.1, 0.3, 0.5])).await;
    server.switch(&run, "rollback").await;
    assert_eq!(server.stranger(&id).await["decision"], decided["decision"]);
    server.stop().await;
}

async fn a_collection_is_calibrated_by_its_own_people(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let calibrate = async |arguments: &[&str]| {
        let mut command = command();
        command.args(["calibrate", "--collection", "c", "--server", &server.address]).args(arguments);
        command.envs(server.key_setting()).output().await.unwrap()
    };
    let nobody = calibrate(&[]).await;
    assert!(!nobody.status.success());
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("has no face of a person"));
    for seed in 1..=3 {
        server.enroll("c", seed).await;
    }
    let few = calibrate(&[]).await;
    let said = String::from_utf8_lossy(&few.stderr).into_owned();
    assert!(!few.status.success() && said.contains("3 people are too few") && said.contains("78 for 1e-2"), "{said}");
    for seed in 4..=PEOPLE {
        server.enroll("c", seed).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, plots) = (folder.path().join("c.json"), folder.path().join("plots"));
    let (json, plotted) = (file.to_str().unwrap(), plots.to_str().unwrap());
    let dry = calibrate(&["--dry-run", "--json", json, "--plots", plotted]).await;
    assert!(dry.status.success(), "{}", String::from_utf8_lossy(&dry.stderr));
    assert!(String::from_utf8_lossy(&dry.stdout).contains("not stored"));
    assert_eq!(server.get("/v1/calibrations").await["items"], json!([]));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((&report["people"], &report["faces"]), (&json!(PEOPLE), &json!(PEOPLE)), "{report}");
    // The tiny recognizer's own calibration has 0.2894 at 1e-2, measured on 4,000 patterns.
    let cosine = report["points"][1]["cosine"].as_f64().unwrap();
    assert!((cosine - 0.2894).abs() < 0.05, "{report}");
    for plot in ["far.svg", "scores.svg"] {
        assert!(std::fs::read_to_string(plots.join(plot)).unwrap().contains("</svg>"), "{plot}");
    }

    let stored = calibrate(&[]).await;
    assert!(stored.status.success(), "{}", String::from_utf8_lossy(&stored.stderr));
    let row = server.get("/v1/calibrations?collection=c").await["items"][0].clone();
    assert_eq!((&row["pipeline"], &row["measured_on"]), (&json!("tiny"), &json!("collection c")), "{row}");
    assert_eq!(row["points"].as_array().unwrap().len(), 6, "{row}");
    let extrapolated: Vec<bool> =
        row["points"].as_array().unwrap().iter().map(|p| p["extrapolated"].as_bool().unwrap()).collect();
    assert_eq!(extrapolated, [false, false, true, true, true, true], "4,005 pairs of people");
    let job = server.run("c", "identify", &json!({ "image": inline(&photo(&[1])) })).await;
    assert_eq!(job["result"]["faces"][0]["decision"], "match", "{job}");
    server.stop().await;
}

/// The bounds hold for other people: of LFW's, one picture of each, so that it takes a minute.
#[tokio::test]
async fn bounds_hold_for_held_out_people() {
    let default = shared::config::Config::load(None).unwrap().models.default_pipeline;
    let pipeline = shared::catalogue::Catalogue::load(None).unwrap().pipeline(&default).unwrap().clone();
    let (Some(_), Some(lfw)) = (real_assets(&pipeline), real_data("lfw")) else { return };
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("splits.json");
    let output = Command::new(env!("CARGO_BIN_EXE_face-id"))
        .args(["calibrate", "--model", &default, "--per-person", "1", "--check-splits", "20", "--images"])
        .arg(lfw.join("lfw-deepfunneled"))
        .arg("--json")
        .arg(&json)
        .output()
        .await
        .unwrap();
    let said = [&output.stdout[..], &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(report["stored"], Value::Null);
    // Who has no picture that the service would match is not among them.
    let [people, unreadable, undetected, unusable] =
        ["people", "unreadable", "undetected", "unusable"].map(|count| report[count].as_u64().unwrap());
    assert_eq!((people + undetected + unusable, unreadable), (4281, 0), "{said}");
    assert!(people > 4200, "{said}");
    let rates: Vec<&Value> = report["splits"].as_array().unwrap().iter().map(|split| &split["far"]).collect();
    assert_eq!(rates, [1e-2, 1e-3]);
    for split in report["splits"].as_array().unwrap() {
        assert!(split["inside"].as_u64().unwrap() >= 17, "{said}");
        assert!(split["widest"].as_f64().unwrap() <= 0.15, "{said}");
    }
}
