//! The HTTP API does what its OpenAPI document says, by Schemathesis: examples, bounds, random and wrong requests, and
//! sequences of them along the document's links.
//!
//! `make contract` runs it longer (`CONTRACT_EXAMPLES`), with other suites that hold the contract; each leaves its counts in
//! the folder of `CARGO_TARGET_TMPDIR`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::process::Command;
use worker::testing::repository;

use crate::batches::{Library, pictures};
use crate::keys::reach;
use crate::reprocess::Models;
use crate::server::{Server, Site, on_both, photo, read};

on_both!(the_api_does_what_its_document_says);

/// Random requests to each operation in an ordinary run.
const EXAMPLES: u32 = 8;
/// Operations that need more luck than a run has to be answered with 2xx: what they are about has to be in another state, or
/// their bodies have to name several things that fit together. So does what deletes: the seeded rows are kept for the others.
/// The other tests here do these.
const SELDOM: [&str; 13] = [
    "POST /v1/batches/{batch}/cancel",
    "POST /v1/batches/{batch}/pause",
    "POST /v1/batches/{batch}/resume",
    "POST /v1/batches/{batch}/retry",
    "POST /v1/collections/{collection}/cluster-changes/{change}/undo",
    "POST /v1/collections/{collection}/clusters/{cluster}/merge",
    "POST /v1/collections/{collection}/clusters/{cluster}/name",
    "POST /v1/collections/{collection}/clusters/{cluster}/split",
    "POST /v1/collections/{collection}/persons/{person}/merge",
    "POST /v1/reprocess-runs/{run}/activate",
    "POST /v1/reprocess-runs/{run}/cancel",
    "POST /v1/reprocess-runs/{run}/prune",
    "POST /v1/reprocess-runs/{run}/rollback",
];
/// Longest time of a run of so many examples; each more may take a part of it.
const PATIENCE: Duration = Duration::from_secs(300);

async fn the_api_does_what_its_document_says(site: Site) {
    let (site, key) = keyed(site).await;
    let library = Library::new(&site, &pictures(40..42)).await;
    // A wait is as good as none here, and would only take time.
    let models = Models::of(&site).await;
    let settings = [&models.settings()[..], &[("FACE_ID_SERVER__MAX_WAIT_S", "1")]].concat();
    let server = library.serve(&site, &settings).await;
    let seeded = reach::fill(&site, &server, &library).await;
    let folder = tempfile::tempdir().unwrap();
    let inputs = Inputs::write(folder.path(), &server, &library, &key, &seeded).await;
    let name = if site.has_services() { "services" } else { "embedded" };
    let output = inputs.run(&server, folder.path()).await;
    let report = report(folder.path(), &output);
    save(name, &report);
    let text = format!("{output}\n{}", report["failures"]);
    assert_eq!(report["errors"], json!([]), "{text}");
    assert_eq!(failures(&report), 0, "{text}");
    assert_eq!(report["operations"]["tested"], documented(&server).await.len(), "each operation was tried\n{text}");
    for phase in ["examples", "coverage", "fuzzing", "stateful"] {
        assert_eq!(report["phases"][phase]["status"], "success", "{phase}\n{text}");
    }
    let never: Vec<String> = documented(&server).await.difference(&done(folder.path())).cloned().collect();
    let is_seldom = |operation: &String| operation.starts_with("DELETE ") || SELDOM.contains(&operation.as_str());
    assert!(never.iter().all(is_seldom), "never answered with 2xx: {never:?}\n{text}");
    let tried = transitions(folder.path());
    assert!(tried > 20, "{tried} links were followed\n{text}");
    // Who is refused learns nothing: the key was good until the end.
    let (status, body) = read(server.request(Method::GET, "/v1/api-keys")).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    server.stop().await;
}

/// A site that asks for keys, and the key that is used, which may do everything.
async fn keyed(mut site: Site) -> (Site, Value) {
    let key = site.make_key(&["--scope", "admin"]).await;
    site.call_with(&key);
    (site, key)
}

/// What the hooks of `scripts/contract` give to requests.
struct Inputs {
    variables: Vec<(&'static str, String)>,
}

impl Inputs {
    async fn write(folder: &Path, server: &Server, library: &Library, key: &Value, seeded: &reach::Ids) -> Self {
        let file = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.join(name), bytes).unwrap();
            folder.join(name).to_str().unwrap().to_owned()
        };
        let export = server.request(Method::GET, "/v1/collections/c/export").send().await.unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let variables = vec![
            ("FACE_ID_API_KEY", text(&key["token"])),
            ("CONTRACT_KEY_ID", text(&key["id"])),
            ("CONTRACT_PICTURE", file("picture.png", &photo(&[1]))),
            ("CONTRACT_MANIFEST", file("manifest.ndjson", library.line("1/0040.png").as_bytes())),
            ("CONTRACT_ENTRY", file("entry.toml", crate::models::entry("contract").as_bytes())),
            ("CONTRACT_EXPORT", file("export.ndjson", &export.bytes().await.unwrap())),
            ("CONTRACT_SOURCE", library.source().to_string()),
            ("CONTRACT_SEEDED", json!(seeded).to_string()),
        ];
        Self { variables }
    }

    /// Runs Schemathesis, and gives what it printed.
    async fn run(&self, server: &Server, folder: &Path) -> String {
        let examples = examples();
        // The same requests each time in an ordinary run, which must not fail by luck; others each time in a long one.
        let seed: &[&str] = if examples > EXAMPLES { &[] } else { &["--seed", "1"] };
        let mut command = Command::new(repository().join("scripts/contract/schemathesis.sh"));
        command
            .args(["run", &format!("{}/openapi.json", server.address), "--max-examples", &examples.to_string()])
            .args(["--report", "json,ndjson", "--report-dir", "."])
            .args(seed)
            .envs(self.variables.iter().map(|(name, value)| (*name, value)))
            .current_dir(folder)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let patience = PATIENCE * (1 + examples / 20);
        let printed = folder.join("printed");
        let file = std::fs::File::create(&printed).unwrap();
        command.stderr(file.try_clone().unwrap()).stdout(file);
        let status = tokio::time::timeout(patience, command.status()).await;
        let text = String::from_utf8_lossy(&std::fs::read(&printed).unwrap()).into_owned();
        let status = status.unwrap_or_else(|_| panic!("Schemathesis does not end: {text}")).unwrap();
        // 0: all is well, 1: it found something. Anything else says that it did not run.
        assert!(matches!(status.code(), Some(0 | 1)), "make setup-contract puts it in place: {text}");
        text
    }
}

#[expect(clippy::disallowed_methods, reason = "it is no setting of the program")]
fn examples() -> u32 {
    std::env::var("CONTRACT_EXAMPLES").map_or(EXAMPLES, |n| n.parse().unwrap())
}

/// The one file of this folder whose name begins and ends so.
fn written(folder: &Path, begin: &str) -> String {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let found = names.into_iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(begin));
    std::fs::read_to_string(found.expect("Schemathesis writes its report")).unwrap()
}

fn report(folder: &Path, output: &str) -> Value {
    serde_json::from_str(&written(folder, "json-")).unwrap_or_else(|error| panic!("{error}\n{output}"))
}

fn failures(report: &Value) -> u64 {
    report["failures"].as_array().unwrap().iter().map(|failure| failure["count"].as_u64().unwrap()).sum()
}

/// The operations that the document has.
async fn documented(server: &Server) -> BTreeSet<String> {
    let document = server.get("/openapi.json").await;
    let paths = document["paths"].as_object().unwrap();
    let of = |(path, methods): (&String, &Value)| -> Vec<String> {
        methods.as_object().unwrap().keys().map(|method| format!("{} {path}", method.to_uppercase())).collect()
    };
    paths.iter().flat_map(of).collect()
}

/// The scenarios of the report, as they were recorded.
fn recorded(folder: &Path) -> Vec<Value> {
    let events = written(folder, "ndjson-");
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.map(|event| event["ScenarioFinished"]["recorder"].clone()).filter(Value::is_object).collect()
}

/// The operations that were answered with 2xx.
fn done(folder: &Path) -> BTreeSet<String> {
    let mut done = BTreeSet::new();
    for scenario in recorded(folder) {
        for (id, case) in scenario["cases"].as_object().into_iter().flatten() {
            let status = scenario["interactions"][id]["response"]["status_code"].as_u64();
            let (method, path) = (&case["value"]["method"], &case["value"]["path"]);
            if status.is_some_and(|status| (200..300).contains(&status)) {
                done.insert(format!("{} {}", method.as_str().unwrap(), path.as_str().unwrap()));
            }
        }
    }
    done
}

/// How many different links of the document were followed.
fn transitions(folder: &Path) -> usize {
    let mut followed = BTreeSet::new();
    for scenario in recorded(folder) {
        let cases = scenario["cases"].as_object().into_iter().flatten();
        let links = cases.map(|(_, case)| &case["transition"]).filter(|link| link["is_inferred"] == false);
        followed.extend(links.filter_map(|link| link["id"].as_str().map(str::to_owned)));
    }
    followed.len()
}

fn save(database: &str, report: &Value) {
    let counts = json!({
        "routes": report["operations"]["tested"], "requests": report["test_cases"]["generated"],
        "schemathesis_failures": failures(report) + report["errors"].as_array().unwrap().len() as u64,
    });
    leave(&format!("contract-{database}"), &counts);
}

/// Leaves counts for `make contract`.
pub(crate) fn leave(name: &str, counts: &Value) {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.json"));
    std::fs::write(path, format!("{counts}\n")).unwrap();
}
