//! The walk at the beginning of docs/API.md: its commands, one block after the other, and what they print.

use std::process::Stdio;
use std::time::Duration;

use shared::catalogue::Catalogue;
use tokio::process::Command;
use worker::testing::{real_assets, real_data, repository};

use crate::server::{Server, Site, on_both};

on_both!(the_walk_of_the_manual_goes_as_it_says);

const PIPELINE: &str = "yunet-mobilefacenet";
const TIMEOUT: Duration = Duration::from_secs(120);
/// What is printed between the blocks.
const MARK: &str = "=== next block ===";

/// A block of the walk.
struct Block {
    language: String,
    text: String,
}

/// The blocks between the walk's heading and the next one, in order.
fn blocks() -> Vec<Block> {
    let manual = std::fs::read_to_string(repository().join("docs/API.md")).unwrap();
    let (_, walk) = manual.split_once("\n## A walk\n").unwrap();
    let walk = walk.split("\n## ").next().unwrap();
    let fenced = walk.split("\n```").collect::<Vec<_>>();
    assert!(fenced.len() % 2 == 1, "every block has its end");
    let block = |text: &&str| {
        let (language, text) = text.split_once('\n').unwrap();
        Block { language: language.to_owned(), text: text.to_owned() }
    };
    fenced.iter().skip(1).step_by(2).map(block).collect()
}

/// The settings with which the walk starts its server.
fn settings(block: &Block) -> Vec<(&str, &str)> {
    assert_eq!(block.language, "console", "the walk begins with the server's start");
    let words = block.text.split_whitespace().filter_map(|word| word.split_once('='));
    let settings: Vec<(&str, &str)> = words.filter(|(name, _)| name.starts_with("FACE_ID_")).collect();
    assert_eq!(settings.len(), 2, "{}", block.text);
    settings
}

async fn the_walk_of_the_manual_goes_as_it_says(site: Site) {
    let pipeline = Catalogue::load(None).unwrap().pipeline(PIPELINE).unwrap().clone();
    let (Some(_), Some(faces)) = (real_assets(&pipeline), real_data("faces")) else { return };
    let assets = faces.ancestors().nth(2).unwrap().to_str().unwrap();
    let blocks = blocks();
    let own = [
        ("FACE_ID_ASSETS_DIR", assets),
        ("FACE_ID_MODELS__DEFAULT_PIPELINE", PIPELINE),
        ("FACE_ID_WORKER__PIPELINES", PIPELINE),
    ];
    let server = Server::start_with(&site, &[&own[..], &settings(&blocks[0])].concat()).await;
    let folder = tempfile::tempdir().unwrap();
    for (photograph, name) in [("obama.jpg", "a.jpg"), ("obama2.jpg", "b.jpg")] {
        std::fs::copy(faces.join(photograph), folder.path().join(name)).unwrap();
    }

    let (mut script, mut expected) = (String::new(), Vec::new());
    for block in &blocks[1..] {
        match block.language.as_str() {
            "sh" => {
                script.extend([block.text.as_str(), "\necho '", MARK, "'\n"]);
                expected.push(String::new());
            }
            "text" => expected.last_mut().unwrap().push_str(&block.text),
            language => panic!("a block of {language} in the walk"),
        }
    }
    assert!(expected.len() >= 5 && expected.iter().filter(|text| !text.is_empty()).count() >= 4);
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", &script]).current_dir(folder.path()).stdin(Stdio::null()).kill_on_drop(true);
    bash.env("FACE_ID_URL", &server.address).envs(server.key_setting());
    let output = tokio::time::timeout(TIMEOUT, bash.output()).await.unwrap().unwrap();
    let (printed, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{printed}\n{errors}");
    let printed: Vec<&str> = printed.split(&format!("{MARK}\n")).map(str::trim_end).collect();
    assert_eq!(printed[..expected.len()], expected, "{errors}");
    server.stop().await;
}
