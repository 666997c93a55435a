//! `face-id bench` on few pictures with the tiny models: what can be measured is, and what cannot is told.

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use worker::testing::repository;

use crate::reprocess::{Models, SURE, SWAPPED};
use crate::server::{Site, command, on_both, photo};

on_both!(all_ratios_are_told, a_collection_in_use_goes_over);

/// Parts that need neither Python nor the services.
const PARTS: &str = "small,overhead,identify,memory";

async fn all_ratios_are_told(site: Site) {
    let folder = tempfile::tempdir().unwrap();
    let (pictures, out) = (folder.path().join("pictures"), folder.path().join("out"));
    std::fs::create_dir(&pictures).unwrap();
    for person in 0..500 {
        std::fs::write(pictures.join(format!("{person:03}.png")), photo(&[person])).unwrap();
    }
    let library = if site.has_services() { Some(site.another_bucket().await.name) } else { None };
    let settings: Vec<_> =
        site.settings().into_iter().chain(library.map(|l| ("FACE_ID_OBJECTS__ALLOWED_BUCKETS", l))).collect();
    let output = bench(&pictures, &out, &settings).await;
    let (text, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let missing = &line["missing"];
    // The tiny models are no pipeline that the peer knows, and without services their ratios are missing too.
    assert!(!output.status.success() && log.contains("could not be measured"), "{log}");
    for key in ["index_vs_peer_small", "index_vs_peer_small_fp32"] {
        assert!(line[key].is_null() && missing[key].as_str().unwrap().contains("tiny.toml"), "{line}");
    }
    let of_services = [
        "overhead_ms_per_job",
        "servers_ms_per_job",
        "identify_p99_flood_vs_idle_services",
        "index_vs_runtime_services",
    ];
    for key in of_services {
        if site.has_services() {
            assert!(line[key].as_f64().is_some_and(|figure| figure > 0.0), "{key} in {line}");
        } else {
            assert!(line[key].is_null() && missing[key].as_str().unwrap().contains("make services"), "{line}");
        }
    }
    for key in
        ["index_vs_runtime", "identify_p99_flood_vs_idle", "identify_idle_p50_vs_runtime", "rss_last_vs_second_quarter"]
    {
        assert!(line[key].as_f64().is_some_and(|figure| figure > 0.0), "{key} in {line}");
    }
    // A difference of two measurements, which on so few pictures may come out below zero.
    assert!(line["overhead_ms_per_job_embedded"].is_number(), "{line}");
    assert!(line["search_1m_vs_faiss_flat"].is_null() && missing.get("search_1m_vs_faiss_flat").is_none(), "{line}");
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    assert!(read("report.md").contains("| index_vs_runtime ") && text.starts_with(&read("report.md")));
    assert!(read("small.svg").contains("index, embedded, tiny") && read("memory.svg").contains("pictures done"));
    assert_eq!(read("report.json").trim_end(), text.lines().last().unwrap());
}

async fn bench(pictures: &Path, out: &Path, settings: &[(&str, String)]) -> Output {
    let mut command = command();
    command.args(["bench", "all", "--quick", "--parts", PARTS, "--small"]).arg(pictures);
    command.arg("--repository").arg(repository()).arg("--out").arg(out);
    command.envs(settings.iter().cloned()).output().await.unwrap()
}

/// What `make reprocess` does with thousands of LFW's pictures; on services it does it embedded too.
async fn a_collection_in_use_goes_over(site: Site) {
    const PEOPLE: u32 = 60;
    let models = Models::of(&site).await;
    let folder = tempfile::tempdir().unwrap();
    for person in 0..PEOPLE {
        let own = folder.path().join(format!("person-{person:02}"));
        std::fs::create_dir(&own).unwrap();
        for (name, faces) in [("one.png", vec![person]), ("other.png", vec![person, person + 1000])] {
            std::fs::write(own.join(name), photo(&faces)).unwrap();
        }
    }
    let library = if site.has_services() { Some(site.another_bucket().await.name) } else { None };
    let mut command = command();
    command.args(["bench", "reprocess", "--people", "8", "--kills", "1", "--model", "tiny"]);
    command.args(["--recognizer", SWAPPED, "--detector", SURE, "--images"]).arg(folder.path());
    command.envs(site.settings()).envs(models.settings()).env("FACE_ID_WORKER__CONCURRENCY", "1");
    command.envs(library.map(|library| ("FACE_ID_OBJECTS__ALLOWED_BUCKETS", library)));
    let output = command.output().await.unwrap();
    let (text, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{text}{log}");
    let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let sites = if site.has_services() { 2 } else { 1 };
    let count = |key: &str| line[key].as_u64().unwrap();
    let faces = u64::from(3 * PEOPLE * sites);
    for key in ["faces", "ids_kept_same_detector", "ids_kept_new_detector"] {
        assert_eq!(count(key), faces, "{key} in {line}");
    }
    assert_eq!((count("names"), count("names_kept")), (u64::from(8 * sites), u64::from(8 * sites)), "{line}");
    for key in ["errors", "mixed_answers", "doubled", "source_reads", "detector_calls"] {
        assert_eq!(count(key), 0, "{key} in {line}");
    }
    assert!(count("identified") > 0 && line["coverage_after_kills"] == 1.0, "{line}");
    for key in ["reembed_vs_bare", "time_vs_reindex"] {
        assert!(line[key].as_f64().is_some_and(|figure| figure > 0.0), "{key} in {line}");
    }
}
