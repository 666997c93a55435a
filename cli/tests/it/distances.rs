//! A pipeline whose vectors keep their lengths and are compared by their distance, from the entry to the answer.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use worker::testing::{repository, synthetic_photo};

use crate::calibrate::calibration;
use crate::server::{Server, Site, command, inline, on_both, photo, read};
use crate::transfer::{exported, import};

on_both!(people_are_told_apart_by_distance, thresholds_are_distances, faces_come_together_by_distance);

const PIPELINE: &str = "tiny-distance";

/// Its thresholds are those of 245,000 pairs of synthetic persons, but for the last two: vectors have lengths of 0.37 to 0.57, so
/// that a dot product of one person's is below each of them.
fn catalogue() -> TempDir {
    let tiny = std::fs::read_to_string(repository().join("models/tiny/tiny.toml")).unwrap();
    let (start, _) = tiny.split_once("cosine = ").unwrap();
    let entry = start
        .replace("name = \"tiny\"\n", &format!("name = \"{PIPELINE}\"\n"))
        .replace("layout = \"nchw\"\n", "layout = \"nchw\"\nnormalise = false\nmetric = \"euclidean\"\n");
    let folder = tempfile::tempdir().unwrap();
    let entry = format!("{entry}score = [0.373, 0.431, 0.472, 0.505, 0.535, 0.565]\n");
    std::fs::write(folder.path().join("tiny-distance.toml"), entry).unwrap();
    folder
}

/// A server whose default pipeline it is, with an empty collection `c`.
async fn serve(site: &Site) -> (Server, TempDir) {
    let folder = catalogue();
    let settings = [
        ("FACE_ID_MODELS__CATALOGUE_DIR", folder.path().to_str().unwrap()),
        ("FACE_ID_MODELS__DEFAULT_PIPELINE", PIPELINE),
        ("FACE_ID_WORKER__PIPELINES", PIPELINE),
    ];
    if site.has_services() {
        // Makes the pipeline's partition.
        let migrated = command().arg("migrate").envs(site.settings()).envs(settings).output().await.unwrap();
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    }
    let server = Server::start_with(site, &settings).await;
    server.make_collection("c").await;
    (server, folder)
}

async fn identified(server: &Server, collection: &str, picture: &[u8]) -> Vec<Value> {
    let job = server.run(collection, "identify", &json!({ "image": inline(picture) })).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    job["result"]["faces"].as_array().unwrap().clone()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

async fn people_are_told_apart_by_distance(site: Site) {
    let (server, _folder) = serve(&site).await;
    assert_eq!(server.get(&format!("/v1/models/{PIPELINE}")).await["metric"], "euclidean");
    for seed in 1..=3 {
        server.enroll("c", seed).await;
    }
    let mut faces = identified(&server, "c", &photo(&[2, 9])).await;
    faces.sort_unstable_by_key(|face| face["decision"].to_string());
    let (known, unknown) = (&faces[0], &faces[1]);
    assert_eq!((&known["decision"], &known["matches"][0]["external_id"]), (&json!("match"), &json!("person-2")));
    assert!((0.75..=1.0).contains(&number(&known["matches"][0]["score"])), "{known}");
    assert_eq!(unknown["decision"], "unknown", "{unknown}");
    let nearest = number(&unknown["matches"][0]["score"]);
    assert!((0.0..number(&unknown["threshold"])).contains(&nearest), "{unknown}");
    // One in a hundred searches of three faces: a rate of one in three hundred.
    assert!((0.44..0.46).contains(&number(&known["threshold"])), "{known}");

    let person = &known["matches"][0]["person_id"];
    let one = inline(&photo(&[2]));
    for (other, decision) in [
        (json!({ "person_id": person }), "match"),
        (json!({ "image": one }), "match"),
        (json!({ "image": inline(&photo(&[3])) }), "unknown"),
    ] {
        let job = server.run("c", "verify", &json!({ "image": one, "other": other })).await;
        assert_eq!(job["result"]["decision"], decision, "{job}");
    }

    // With three faces the person is judged by all of them.
    for side in [288, 352] {
        let image = inline(&synthetic_photo(&[2], side, side));
        let enrolled = server.run("c", "enroll", &json!({ "image": image, "person": { "id": person } })).await;
        assert_eq!(enrolled["state"], "succeeded", "{enrolled}");
    }
    let faces = identified(&server, "c", &synthetic_photo(&[2], 320, 320)).await;
    let best = &faces[0]["matches"][0];
    assert_eq!((&faces[0]["decision"], &best["person_id"]), (&json!("match"), person), "{best}");
    assert!(number(&best["score"]) >= number(&best["face_score"]), "{best}");

    let file = exported(&server, "c").await;
    server.make_collection("d").await;
    let (status, added) = import(&server, "d", file).await;
    assert_eq!((status, &added["added"]["vectors"]), (StatusCode::OK, &json!(5)), "{added}");
    let there = identified(&server, "d", &photo(&[2, 9])).await;
    let here = identified(&server, "c", &photo(&[2, 9])).await;
    for (there, here) in there.iter().zip(&here) {
        assert_eq!(there["decision"], here["decision"]);
        let scores = [there, here].map(|face| number(&face["matches"][0]["score"]));
        assert!((scores[0] - scores[1]).abs() < 1e-5, "lengths are kept: {scores:?}");
    }
    server.stop().await;
}

async fn thresholds_are_distances(site: Site) {
    let (server, _folder) = serve(&site).await;
    server.enroll("c", 1).await;
    let decide = async |score: f64| {
        let body = json!({ "settings": { "match_cosine": score } });
        read(server.request(Method::PATCH, "/v1/collections/c").json(&body)).await
    };
    // A distance of 3.5: everybody's.
    assert_eq!(decide(-2.5).await.0, StatusCode::OK);
    assert_eq!(identified(&server, "c", &photo(&[2])).await[0]["decision"], "match");
    let (status, problem) = decide(1.5).await;
    assert_eq!(
        (status, &problem["errors"][0]["pointer"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("#/settings/match_cosine")),
        "{problem}"
    );
    assert!(problem.to_string().contains("1 less the distance"), "{problem}");
    let of_cosines = json!({ "name": "e", "pipeline": "yunet-sface", "settings": { "match_cosine": -2.5 } });
    let (status, problem) = read(server.request(Method::POST, "/v1/collections").json(&of_cosines)).await;
    assert_eq!(
        (status, &problem["errors"][0]["pointer"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("#/settings/match_cosine")),
        "{problem}"
    );

    let store = async |pipeline| {
        let body = calibration(pipeline, None, [-3.0, -2.0, -1.5]);
        read(server.request(Method::POST, "/v1/calibrations").json(&body)).await
    };
    assert_eq!(store(PIPELINE).await.0, StatusCode::CREATED);
    let (status, problem) = store("yunet-sface").await;
    assert_eq!(
        (status, &problem["errors"][0]["pointer"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("#/points/0/cosine"))
    );
    server.stop().await;
}

async fn faces_come_together_by_distance(site: Site) {
    let (server, _folder) = serve(&site).await;
    for people in [[1, 2], [1, 3], [1, 4]] {
        let job = server.run("c", "index", &json!({ "image": inline(&photo(&people)) })).await;
        assert_eq!(job["state"], "succeeded", "{job}");
    }
    let path = "/v1/collections/c/clusters";
    let mut page = server.get(path).await;
    for _ in 0..300 {
        if page["pending"] == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        page = server.get(path).await;
    }
    let sizes: Vec<&Value> = page["items"].as_array().unwrap().iter().map(|cluster| &cluster["faces"]).collect();
    assert_eq!((&page["pending"], sizes), (&json!(0), vec![&json!(3)]), "{page}");

    // Who comes later is found among those that were there before.
    server.enroll("c", 3).await;
    for _ in 0..300 {
        let faces = server.get("/v1/collections/c/faces").await;
        if faces["items"].as_array().unwrap().iter().filter(|face| face["assigned_by"] == "auto").count() == 1 {
            server.stop().await;
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("a rematch finds the face of person 3: {}", server.get("/v1/collections/c/faces").await);
}
